"""FCN: bilinear enlargement, and one network starting from the weights of a coarser one."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import ndimage

import keras_segen as ks
from keras_segen import backend
from keras_segen.layers import Bilinear, CropLike
from keras_segen.segmentation import fcn, take_weights

FILTERS = (4, 4, 6, 6, 8, 12)


def build(stride, size=(None, None, 3)):
    model = fcn(size, 3, stride, FILTERS, dropout=0.0)
    ks.initialize(model, seed=0)
    return model


def enlarge(x, factor):
    """Enlarges `(height, width, channels)` by Keras' transposed convolution with our kernel."""
    channels = x.shape[-1]
    layer = keras.layers.Conv2DTranspose(
        channels, 2 * factor, factor, "same", use_bias=False, kernel_initializer=Bilinear()
    )
    return ops.convert_to_numpy(layer(x[None].astype("float32")))[0]


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_bilinear_kernel_interpolates_between_the_centers_of_pixels(factor):
    x = np.random.default_rng(0).normal(size=(5, 6, 2))
    rows, columns = ((np.arange(n * factor) + 0.5) / factor - 0.5 for n in x.shape[:2])
    grid = np.meshgrid(rows, columns, indexing="ij")
    expected = [  # beyond the borders the picture is 0
        ndimage.map_coordinates(np.pad(x[..., i], 1), [g + 1 for g in grid], order=1)
        for i in range(2)
    ]
    np.testing.assert_allclose(enlarge(x, factor), np.stack(expected, axis=-1), atol=1e-5)


def test_bilinear_is_the_same_from_initialize():
    images = keras.Input((None, None, 2))
    layer = keras.layers.Conv2DTranspose(2, 4, 2, "same", kernel_initializer=Bilinear())
    model = keras.Model(images, layer(images))
    before = ops.convert_to_numpy(layer.kernel)
    layer.kernel.assign(ops.zeros_like(layer.kernel))
    ks.initialize(model, seed=3)
    assert np.array_equal(ops.convert_to_numpy(layer.kernel), before)
    assert before[:, :, 0, 1].max() == 0 and before[:, :, 1, 1].sum() == 4


def test_crop_like_cuts_at_the_bottom_and_on_the_right():
    x = np.arange(48, dtype="float16").reshape(1, 6, 8, 1)
    cut = CropLike(dtype="float32")([x, np.zeros((1, 5, 7, 3))])
    assert np.array_equal(ops.convert_to_numpy(cut), x[:, :5, :7])
    assert keras.backend.standardize_dtype(cut.dtype) == "float16"


def test_fcn_starts_with_scores_of_zero():
    images = np.random.default_rng(0).random((1, 40, 50, 3), dtype="float32")
    for stride in (8, 16, 32):
        assert not backend.infer(build(stride), images).any()


def test_fcn_enlarges_scores_as_in_the_paper():
    model = build(8)
    trainable = {layer.name: layer.trainable for layer in model.layers if "upscore" in layer.name}
    assert trainable == {"upscore2": True, "upscore_pool4": True, "upscore8": False}
    assert model.get_layer("upscore8").kernel_size == (16, 16)


def score(model, generator):
    """Fills the score layer of an untrained FCN-32s, as training would."""
    layer = model.get_layer("score_fr")
    layer.set_weights([generator.normal(size=w.shape) for w in layer.weights])


def test_fcn16s_starts_as_what_fcn32s_computes():
    """Enlarging by 2 and then by 16 is enlarging by 32, but for the corners of the interpolation.

    Between two coarse pixels both are linear. Enlarging by 2 keeps the values at a quarter of the
    way and at three quarters; between those of two neighbors, around a coarse pixel's center, the
    second step draws a straight line, which misses the corner there by at most 1/8 of the second
    difference.
    """
    coarse, fine = build(32), build(16)
    score(coarse, np.random.default_rng(1))
    taken, new, unused = take_weights(fine, coarse)
    assert "score_fr" in taken and "conv1_1" in taken and "fc7" in taken
    assert new == ["upscore2", "score_pool4", "upscore16"] and unused == ["upscore32"]

    images = np.random.default_rng(2).random((1, 192, 224, 3), dtype="float32")
    expected, found = backend.infer(coarse, images)[0], backend.infer(fine, images)[0]
    scores = keras.Model(coarse.input, coarse.get_layer("score_fr").output)
    scores = backend.infer(scores, images)[0]  # (6, 7, classes)
    np.testing.assert_allclose(found, enlarge(enlarge(scores, 2), 16), atol=1e-4)

    def between(size):  # at least a quarter of a coarse pixel away from each center
        place = (np.arange(size) + 0.5) / 32 - 0.5
        away = np.abs(place - np.round(place)) >= 0.25
        return away & (np.arange(size) >= 32) & (np.arange(size) < size - 32)

    exact = np.ix_(between(192), between(224))
    assert np.abs(expected[exact]).max() > 0.5
    np.testing.assert_allclose(found[exact], expected[exact], atol=1e-4)
    inner = np.s_[32:-32, 32:-32]
    corners = sum(np.abs(np.diff(scores, 2, axis=axis)).max() for axis in (0, 1)) / 8
    difference = np.abs(found - expected)[inner].max()
    assert 1e-3 < difference <= corners + 1e-4


def test_fcn8s_starts_from_fcn16s():
    medium, fine = build(16), build(8)
    for name in ("score_fr", "score_pool4"):
        layer = medium.get_layer(name)
        layer.set_weights([np.full(w.shape, 0.1) for w in layer.weights])
    _, new, unused = take_weights(fine, medium)
    assert new == ["upscore_pool4", "score_pool3", "upscore8"] and unused == ["upscore16"]
    for name in ("upscore2", "score_pool4", "conv5_3"):
        for x, y in zip(medium.get_layer(name).weights, fine.get_layer(name).weights, strict=True):
            assert np.array_equal(ops.convert_to_numpy(x), ops.convert_to_numpy(y))
    assert not ops.convert_to_numpy(fine.get_layer("score_pool3").kernel).any()


def test_networks_without_a_common_layer_say_so():
    other = ks.segmentation.unet((16, 16, 3), 2, (4, 8))
    with pytest.raises(ValueError, match="no layer in common: 'unet' has down0_conv1.*'fcn' has"):
        take_weights(build(8), other)


def test_weights_of_an_encoder_are_taken_within_it():
    def network(num_classes, name="tiny"):
        images = keras.Input((None, None, 3), name="images")
        x = keras.layers.Conv2D(4, 3, 2, padding="same", name="conv")(images)
        y = keras.layers.Conv2D(4, 3, 2, padding="same", name="conv2")(x)
        encoder = keras.Model(images, [x, y], name=name)
        model = ks.segmentation.unet((16, 16, 3), num_classes, (4, 4), encoder=encoder)
        return model

    source, same, other = network(2), network(3), network(2, "another")
    taken, new, unused = take_weights(same, source)
    assert {"tiny/conv", "tiny/conv2", "up0_conv1"} < set(taken)
    assert new == unused == ["logits"]
    theirs, ours = (model.get_layer("tiny").get_layer("conv2") for model in (source, same))
    assert np.array_equal(theirs.get_weights()[0], ours.get_weights()[0])
    assert "tiny/conv" in take_weights(other, source)[2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stride": 4}, "stride is 4, expected 8, 16 or 32"),
        ({"filters": (4, 4, 4, 4, 4)}, "five stages.*found"),
    ],
)
def test_fcn_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        fcn((32, 32, 3), 2, **options)


def test_fcn_learns_a_tiny_fixed_set():
    masks = np.zeros((2, 32, 32), "int32")
    masks[0, :16], masks[1, :, 16:] = 1, 2
    x = np.eye(3, dtype="float32")[masks]
    model = fcn((32, 32, 3), 3, 8, FILTERS, dropout=0.0)
    ks.initialize(model, seed=0)
    metric = ks.metrics.PixelAccuracy(3)
    model.compile(keras.optimizers.Adam(0.01), loss=ks.losses.CrossEntropy(), metrics=[metric])
    accuracy = model.fit(x, masks, epochs=60, verbose=0).history["pixel_accuracy"]
    assert accuracy[0] < 0.8 and accuracy[-1] > 0.95
