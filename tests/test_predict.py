"""Images of any size: padding, tiles, flips, scales, and the memory that they take."""

import functools
import tracemalloc

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from PIL import Image

import keras_segen as ks
from keras_segen import backend, metrics, runs
from keras_segen.runs import training
from keras_segen.segmentation import Predictor, plain_unet, unet
from keras_segen.tasks.segmentation import SegmentationTask

FREE = (None, None, 3)


def random_image(height, width, channels=3):
    return np.random.default_rng(0).random((height, width, channels), dtype="float32")


@functools.cache  # its graph of predictions as well
def small_unet(input_shape=FREE, num_classes=4, filters=(4, 8, 8)):
    model = unet(input_shape, num_classes, filters)
    ks.initialize(model, seed=0)
    return model


def pointwise(input_shape=FREE, num_classes=4, **options):
    """A network without neighbourhoods: what it says of a pixel depends on that pixel only."""
    images = keras.Input(input_shape)
    x = layers.Conv2D(num_classes, 1, kernel_initializer="he_normal", **options)(images)
    model = keras.Model(images, x)
    ks.initialize(model, seed=0)
    model.set_weights([20 * weight for weight in model.get_weights()])
    return model


def plain_probabilities(model, image):
    return metrics.probabilities(backend.infer(model, image[None]))[0]


# --- small images


@pytest.mark.parametrize("size", [(32, 48), (4, 4), (64, 64)])
def test_a_small_image_gives_what_the_model_gives(size):
    model = small_unet()
    predictor = Predictor(model, tile=64)
    image = random_image(*size)
    expected = plain_probabilities(model, image)
    found = predictor.predict(image, "probabilities")
    assert found.shape == (*size, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    classes = predictor.predict(image)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, found.argmax(axis=-1))
    entropy = predictor.predict(image, "entropy")
    assert entropy.shape == size and entropy.dtype == np.float32
    np.testing.assert_allclose(entropy, -(found * np.log(found)).sum(axis=-1), atol=1e-5)


def test_other_sizes_are_reflected_to_a_multiple_and_cropped():
    model = small_unet()
    image = random_image(30, 41)
    padded = np.pad(image, [(0, 2), (0, 3), (0, 0)], mode="reflect")
    expected = plain_probabilities(model, padded)[:30, :41]
    found = Predictor(model).predict(image, "probabilities")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_image_too_small_to_reflect_repeats_its_edge():
    model = small_unet()
    image = random_image(1, 2)
    padded = np.pad(image, [(0, 3), (0, 2), (0, 0)], mode="edge")
    expected = plain_probabilities(model, padded)[:1, :2]
    np.testing.assert_allclose(
        Predictor(model).predict(image, "probabilities"), expected, atol=1e-6
    )


def test_whole_numbers_count_as_their_share_of_the_highest():
    predictor = Predictor(small_unet(), tile=32)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype="uint8")
    expected = predictor.predict(image.astype("float64") / 255, "probabilities")
    for equal in (image, image.astype("uint16") * 257):
        np.testing.assert_allclose(predictor.predict(equal, "probabilities"), expected, atol=1e-5)


# --- what the network takes


def strided(strides, size=3):
    images = keras.Input(FREE)
    x = images
    for stride in strides:
        x = layers.Conv2D(2, size, stride, padding="same")(x)
    for stride in strides:
        x = layers.UpSampling2D(stride)(x)
    return keras.Model(images, layers.Conv2D(2, 1)(x))


@pytest.mark.parametrize(
    "build, multiple",
    [
        (lambda: pointwise(), 1),
        (lambda: small_unet(filters=(2, 2)), 2),
        (lambda: small_unet(filters=(2, 2, 2, 2, 2)), 16),
        (lambda: strided([3]), 3),
        (lambda: strided([2, 3]), 6),
        (lambda: strided([16, 4], size=1), 64),
    ],
)
def test_the_multiple_is_found(build, multiple):
    predictor = Predictor(build())
    assert predictor.multiple == multiple
    image = random_image(multiple + 1, 2 * multiple + 1)
    assert predictor.predict(image).shape == image.shape[:2]


def test_a_network_for_one_size_is_tiled_at_its_size():
    model = small_unet((32, 24, 3))
    predictor = Predictor(model)
    assert predictor.tile == (32, 24) and predictor.multiple is None
    image = random_image(32, 24)
    np.testing.assert_allclose(
        predictor.predict(image, "probabilities"), plain_probabilities(model, image), atol=1e-6
    )
    assert predictor.predict(random_image(50, 20)).shape == (50, 20)


def test_a_network_for_one_height_takes_any_width():
    predictor = Predictor(small_unet((32, None, 3)))
    assert predictor.tile == (32, 512) and predictor.multiple == 4
    assert predictor.predict(random_image(40, 30)).shape == (40, 30)


def test_a_tile_frees_a_network_from_its_size():
    free = small_unet()
    fixed = small_unet((32, 24, 3))
    image = random_image(70, 50)
    np.testing.assert_array_equal(
        Predictor(fixed, tile=40).predict(image, "probabilities"),
        Predictor(free, tile=40).predict(image, "probabilities"),
    )
    assert fixed.input_shape == (None, 32, 24, 3)


def test_a_network_that_cannot_be_freed_says_so():
    images = keras.Input((8, 8, 3))
    x = layers.Dense(8 * 8 * 2)(layers.Flatten()(images))
    model = keras.Model(images, layers.Reshape((8, 8, 2))(x))
    assert Predictor(model).predict(random_image(9, 20)).shape == (9, 20)
    with pytest.raises(ValueError, match=r"\(8, 8\) only, so there is no choice of a tile"):
        Predictor(model, tile=16)


def test_a_folded_network_predicts_the_same():
    model = small_unet()
    image = random_image(50, 40)
    plain = Predictor(model, tile=32).predict(image, "probabilities")
    predictor = Predictor(model, tile=32, fold=True)
    assert not any("norm" in layer.name for layer in predictor.network.layers)
    np.testing.assert_allclose(predictor.predict(image, "probabilities"), plain, atol=1e-5)


# --- what the network gives


def test_one_channel_is_the_logit_of_class_1():
    model = pointwise(num_classes=1)
    image = random_image(9, 7)
    logits = backend.infer(model, image[None])[0, ..., 0]
    predictor = Predictor(model)
    assert predictor.num_classes == 2
    found = predictor.predict(image, "probabilities")
    np.testing.assert_allclose(found[..., 1], 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(predictor.predict(image), logits > 0)


def ends_in_a_layer():
    model = pointwise()
    return keras.Model(model.input, layers.Softmax()(model.output))


def ends_in_an_operation():
    model = pointwise()
    return keras.Model(model.input, keras.ops.softmax(model.output))


def ends_in_a_model():
    return keras.Sequential([keras.Input(FREE), pointwise(activation="softmax")])


@pytest.mark.parametrize(
    "build",
    [
        lambda: pointwise(activation="softmax"),
        ends_in_a_layer,
        ends_in_an_operation,
        ends_in_a_model,
    ],
)
def test_a_softmax_at_the_end_is_taken_as_it_is(build):
    image = random_image(9, 7)
    expected = plain_probabilities(pointwise(), image)
    found = Predictor(build()).predict(image, "probabilities")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_sigmoid_of_one_channel_is_taken_as_it_is():
    image = random_image(9, 7)
    expected = Predictor(pointwise(num_classes=1)).predict(image, "probabilities")
    found = Predictor(pointwise(num_classes=1, activation="sigmoid")).predict(
        image, "probabilities"
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_sigmoid_for_each_class_is_refused():
    with pytest.raises(ValueError, match="Build it with activation=None"):
        Predictor(plain_unet((16, 16, 3), 2, (4, 8)))


def test_many_classes_need_two_bytes():
    model = pointwise(num_classes=300)
    kernel, bias = model.get_weights()
    bias[299] = 1000
    model.set_weights([kernel, bias])
    classes = Predictor(model).predict(random_image(20, 20))
    assert classes.dtype == np.uint16
    assert (classes == 299).all()


def test_entropy_is_between_0_and_the_log_of_the_number_of_classes():
    even = pointwise()
    even.set_weights([0 * weight for weight in even.get_weights()])
    image = random_image(8, 8)
    np.testing.assert_allclose(Predictor(even).predict(image, "entropy"), np.log(4), rtol=1e-6)
    sure = pointwise(bias_initializer="zeros")
    kernel, bias = sure.get_weights()
    sure.set_weights([0 * kernel, np.array([200, 0, 0, 0], "float32")])
    entropy = Predictor(sure).predict(image, "entropy")
    assert entropy.min() >= 0 and entropy.max() < 1e-6


# --- tiles


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([(8, 0), (8, 2), (16, 15), (24, 8)]),
    st.sampled_from(["none", "horizontal", "both"]),
    st.sampled_from([(1,), (0.6,), (0.75, 1, 1.25), (2.3,)]),
)
def test_weights_of_tiles_sum_to_one_at_every_pixel(size, tiles, flips, scales):
    tile, overlap = tiles
    predictor = PREDICTORS[tiles]
    predictor.flips, predictor.scales = flips, scales
    total = np.zeros(size)
    for one in predictor._passes(*size):
        for row, top in enumerate(one.down.starts):
            for column, left in enumerate(one.across.starts):
                weights = np.outer(one.down.weights[row], one.across.weights[column])
                assert weights.min() > 0
                assert max(one.down.scaled, one.across.scaled) <= tile
                region = np.s_[top : top + one.down.length, left : left + one.across.length]
                assert total[region].shape == weights.shape
                total[region] += one.share * weights
        if scales == (1,):
            for axis in (one.down, one.across):
                steps = np.diff(axis.starts)
                assert (steps > 0).all() and (axis.length - steps >= overlap).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


POINTWISE = pointwise()
PREDICTORS = {
    (tile, overlap): Predictor(POINTWISE, tile=tile, overlap=overlap)
    for tile, overlap in [(8, 0), (8, 2), (16, 15), (24, 8)]
}


@pytest.mark.parametrize("flips", ["none", "both"])
@pytest.mark.parametrize("overlap", [0, 3])
def test_a_network_without_neighbourhoods_gives_the_same_in_tiles(flips, overlap):
    """What is cut, flipped and put together lands where it was."""
    model = pointwise()
    image = random_image(53, 71)
    found = Predictor(model, tile=(16, 24), overlap=overlap, flips=flips, batch_size=3).predict(
        image, "probabilities"
    )
    np.testing.assert_allclose(found, plain_probabilities(model, image), atol=1e-5)


@pytest.mark.parametrize("scales", [(1,), (0.5, 1, 1.3)])
def test_constant_outputs_stay_constant(scales):
    model = pointwise()
    kernel, bias = model.get_weights()
    model.set_weights([0 * kernel, np.array([0, 1, 2, 3], "float32")])
    found = Predictor(model, tile=16, scales=scales).predict(random_image(45, 60), "probabilities")
    expected = np.exp([0, 1, 2, 3]) / np.exp([0, 1, 2, 3]).sum()
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)


def test_tiles_equal_the_whole_image_far_from_their_edges():
    """The middle of a tile sees what it would see in the whole image, and counts the most."""
    model = small_unet(filters=(4, 8))
    image = random_image(64, 112)
    # Tiles begin at 0, 32, 64 of 112 - 48: where two meet, either is 16 pixels from its edge.
    found = Predictor(model, tile=(64, 48), overlap=16).predict(image, "probabilities")
    expected = plain_probabilities(model, image)
    middles = np.r_[0:32, 48:64, 80:112]
    np.testing.assert_allclose(found[:, middles], expected[:, middles], atol=1e-5)


def test_blending_is_smooth_where_tiles_disagree():
    """The network gives each tile a value of its own: no step may remain in the result."""
    images = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(keepdims=True)(images)
    x = layers.UpSampling2D(16)(x)
    model = keras.Model(images, layers.Conv2D(2, 1)(x))
    model.set_weights([np.eye(3, 2).reshape(1, 1, 3, 2) * 4, np.zeros(2)])
    image = np.zeros((16, 64, 3), "float32")
    image[:, 32:, 0] = 1
    found = Predictor(model, overlap=8).predict(image, "probabilities")[0, :, 0]
    assert found[0] < 0.55 and found[-1] > 0.95
    assert np.abs(np.diff(found)).max() < 0.1


# --- flips and scales


def image_in_tiles():
    return random_image(46, 79)  # tiles do not lie symmetrically


@pytest.mark.parametrize("flips, axes", [("horizontal", [1]), ("both", [0, 1])])
@pytest.mark.parametrize("tile", [128, 32])
def test_a_flipped_image_gives_the_flipped_prediction(flips, axes, tile):
    predictor = Predictor(small_unet(), tile=tile, flips=flips, scales=(1, 0.75))
    image = image_in_tiles()
    expected = predictor.predict(image, "probabilities")
    plain = Predictor(small_unet(), tile=tile, scales=(1, 0.75))
    for axis in axes:
        flipped = predictor.predict(np.flip(image, axis), "probabilities")
        np.testing.assert_allclose(np.flip(flipped, axis), expected, atol=1e-5)
        # Without flips the network itself is not symmetrical.
        apart = np.flip(plain.predict(np.flip(image, axis), "probabilities"), axis)
        assert np.abs(apart - plain.predict(image, "probabilities")).max() > 1e-3


@pytest.mark.parametrize("size", [(24, 40), (24, 100)])
def test_flips_average_the_probabilities_of_flipped_images(size):
    image = random_image(*size)
    plain = Predictor(small_unet(), tile=48)
    mirrored = plain.predict(image[:, ::-1], "probabilities")[:, ::-1]
    expected = (plain.predict(image, "probabilities") + mirrored) / 2
    found = Predictor(small_unet(), tile=48, flips="horizontal").predict(image, "probabilities")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scales_average_the_probabilities_of_resized_images():
    image = random_image(24, 40)
    plain = Predictor(small_unet(), tile=64)
    expected = sum(
        plain.predict(image, "probabilities", size=size) for size in [(12, 20), (24, 40), (36, 60)]
    )
    found = Predictor(small_unet(), tile=64, scales=(0.5, 1, 1.5)).predict(image, "probabilities")
    np.testing.assert_allclose(found, expected / 3, atol=1e-5)


def test_size_resizes_the_image_and_the_probabilities():
    image = random_image(150, 90)
    predictor = Predictor(small_unet(), tile=64)
    small = predictor.predict(ks.data.images.resize_image(image, (32, 24)), "probabilities")
    expected = np.stack(
        [
            np.array(Image.fromarray(small[..., k]).resize((90, 150), Image.Resampling.BILINEAR))
            for k in range(4)
        ],
        axis=-1,
    )
    found = predictor.predict(image, "probabilities", size=(32, 24))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(predictor.predict(image, size=(32, 24)), found.argmax(axis=-1))


# --- results and memory


def test_results_go_into_a_given_array(tmp_path):
    predictor = Predictor(small_unet(), tile=32)
    image = random_image(80, 50)
    for output, dtype, shape in [
        ("classes", "uint8", (80, 50)),
        ("classes", "int32", (80, 50)),
        ("probabilities", "float32", (80, 50, 4)),
        ("entropy", "float32", (80, 50)),
    ]:
        out = np.memmap(tmp_path / "out", dtype, "w+", shape=shape)
        assert predictor.predict(image, output, out=out) is out
        np.testing.assert_array_equal(out, predictor.predict(image, output))


@pytest.mark.parametrize("size", [None, (64, 64)])
def test_memory_does_not_grow_with_the_height(tmp_path, size):
    """NumPy's peak, with the image and the result on disk: a band and a few tiles."""
    predictor = Predictor(pointwise(num_classes=6), tile=64, batch_size=2)
    peaks = []
    for height in (500, 500, 4000):  # the first one warms up
        image = np.memmap(tmp_path / "image", "uint8", "w+", shape=(height, 256, 3))
        out = np.memmap(tmp_path / "out", "uint8", "w+", shape=(height, 256))
        tracemalloc.start()
        predictor.predict(image, out=out, size=size)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    in_full = 4000 * 256 * 6 * 4
    assert peaks[2] < 1.5 * peaks[1]  # eight times as high; a call may leave garbage behind
    assert peaks[2] < in_full / 8


def test_images_are_read_tile_by_tile(tmp_path):
    class Watched(np.memmap):
        def __getitem__(self, index):
            part = super().__getitem__(index)
            largest.append(part.size)
            return part

    largest = []
    image = Watched(tmp_path / "image", "uint8", "w+", shape=(300, 200, 3))
    Predictor(pointwise(), tile=32).predict(image)
    assert max(largest) == 32 * 32 * 3


def test_a_stream_gives_one_result_after_the_other(tmp_path):
    predictor = Predictor(small_unet(), tile=32)
    dataset = ks.data.Shapes("val", size=20, length=3)
    expected = [predictor.predict(dataset[i][0]) for i in range(3)]
    for found, classes in zip(predictor.stream(dataset), expected, strict=True):
        np.testing.assert_array_equal(found, classes)
    paths = []
    for i, size in enumerate([(20, 30), (50, 10)]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray((random_image(*size) * 255).astype("uint8")).save(paths[-1])
    assert [x.shape for x in predictor.stream(paths, "entropy")] == [(20, 30), (50, 10)]
    assert next(predictor.stream(str(paths[0]))).shape == (20, 30)
    endless = predictor.stream(random_image(8, 8) for _ in iter(int, 1))
    assert next(endless).shape == next(endless).shape == (8, 8)


# --- errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"flips": "left"}, "flips is 'left', expected one of 'none', 'horizontal', 'both'"),
        ({"scales": ()}, "scales is"),
        ({"scales": (1, 0)}, "scales is"),
        ({"scales": (float("nan"),)}, "scales is"),
        ({"tile": 30}, "multiples of 4: use 28 or 32"),
        ({"tile": 2}, "multiples of 4: use 4"),
        ({"tile": 0}, "size is 0"),
        ({"tile": 32, "overlap": 32}, "overlap is 32, expected 0 or more and less than"),
        ({"overlap": -1}, "overlap is -1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Predictor(small_unet(), **options)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((8, 8)), r"shape \(8, 8\); expected \(height, width, 3\)"),
        (np.zeros((1, 8, 8, 3)), r"shape \(1, 8, 8, 3\)"),
        (np.zeros((8, 8, 1)), r"shape \(8, 8, 1\)"),
        (np.zeros((0, 8, 3)), r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), "int64"), "image is int64; expected uint8, uint16 or float"),
        (np.full((8, 8, 3), 255.0), "values from 255.0 to 255.0; expected 0 to 1"),
        (np.full((8, 8, 3), np.nan), "expected 0 to 1"),
    ],
)
def test_bad_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        PREDICTORS[8, 2].predict(image)


@pytest.mark.parametrize(
    "output, out, message",
    [
        ("logits", None, "output is 'logits', expected one of classes, probabilities, entropy"),
        ("classes", np.zeros((8, 9), "uint8"), r"out is uint8 \(8, 9\); expected uint8 \(8, 8\)"),
        ("classes", np.zeros((8, 8), "bool"), "out is bool"),
        ("entropy", np.zeros((8, 8), "uint8"), "expected float32"),
    ],
)
def test_bad_results_are_refused(output, out, message):
    with pytest.raises(ValueError, match=message):
        PREDICTORS[8, 2].predict(random_image(8, 8), output, out=out)


def halved():
    images = keras.Input(FREE)
    return keras.Model(images, layers.Conv2D(2, 3, 2, padding="same")(images))


def fixed_and_halved():
    images = keras.Input((16, 16, 3))
    return keras.Model(images, layers.Conv2D(2, 3, 2, padding="same")(images))


def classifier():
    images = keras.Input(FREE)
    return keras.Model(images, layers.GlobalAveragePooling2D()(images))


def of_two():
    pair = [keras.Input(FREE), keras.Input(FREE)]
    return keras.Model(pair, layers.Add()(pair))


@pytest.mark.parametrize(
    "build, message",
    [
        (halved, "logits of another size than its images"),
        (fixed_and_halved, r"gives \(8, 8\) pixels for images of \(16, 16\)"),
        (classifier, r"output has the shape \(None, 3\)"),
        (of_two, r"input has the shape \(None, None, None, 3\), \(None"),
        (keras.Sequential, "Found Sequential, whose layers cannot be seen"),
    ],
)
def test_other_models_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        Predictor(build())


# --- a run put to use


@pytest.fixture(scope="module")
def finished(picture_folder, tmp_path_factory):
    """A run folder of a network for images of 16 x 24, and its model."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    plan = SegmentationTask(
        data=f"folder:{picture_folder}",
        image_size=(16, 24),
        filters=(4, 8),
        batch_size=4,
        epochs=1,
    )
    training.train(plan, folder, verbose=0)
    return folder, training.load_model(folder)


@pytest.fixture
def photo(tmp_path):
    pixels = (random_image(40, 52) * 255).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {"size": (16, 24)}),
        ({"flips": "both", "scales": (1, 1.5)}, {"size": (16, 24)}),
        ({"full_size": True}, {}),
        ({"full_size": True, "tile": 32, "overlap": 4, "fold": True}, {}),
    ],
)
def test_a_run_predicts_photos_at_the_size_of_the_training_or_their_own(
    finished, photo, tmp_path, options, expected
):
    folder, model = finished
    path, pixels = photo
    out = tmp_path / "out"
    of_predictor = {key: value for key, value in options.items() if key != "full_size"}
    if options == {"full_size": True}:
        of_predictor["tile"] = 512
    predictor = Predictor(model, **of_predictor)

    (mask,) = runs.predict(folder, path, out, **options)
    classes = predictor.predict(pixels, **expected)
    with Image.open(mask) as image:
        np.testing.assert_array_equal(np.array(image), classes + 1)  # void has label id 0
    (file,) = runs.predict(folder, path, out, output="probabilities", **options)
    probabilities = np.load(file)
    assert file == out / "photo.npy" and probabilities.dtype == np.float32
    np.testing.assert_allclose(
        probabilities, predictor.predict(pixels, "probabilities", **expected), atol=1e-6
    )
    with Image.open(out / "overlays" / "photo.png") as image:
        assert image.size == (52, 40)


def test_a_run_writes_the_entropy_and_its_picture(finished, photo, tmp_path):
    told = []
    (file,) = runs.predict(finished[0], photo[0], tmp_path / "out", told.append, output="entropy")
    assert told == [file]
    entropy = np.load(file)
    assert entropy.shape == (40, 52) and entropy.dtype == np.float32
    assert 0 <= entropy.min() < entropy.max() <= np.log(6) * 1.000001
    with Image.open(tmp_path / "out" / "overlays" / "photo.png") as image:
        brightness = np.array(image.convert("L")).ravel()
    assert np.corrcoef(brightness, entropy.ravel())[0, 1] > 0.95


def test_tiles_need_the_full_size(finished, photo, tmp_path):
    for options in ({"tile": 16}, {"overlap": 0}):
        with pytest.raises(ValueError, match="add full_size"):
            runs.predict(finished[0], photo[0], tmp_path / "out", **options)
