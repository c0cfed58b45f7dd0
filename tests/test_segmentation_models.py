import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen.segmentation import MODELS, plain_unet, unet

# name, arguments that build a small one, parameters at the paper's size, trainable ones
TABLE = [
    ("unet", {"num_classes": 3, "filters": (4, 8, 16)}, 31_049_474, 31_037_698),
    ("plain_unet", {"num_classes": 3, "filters": (4, 8, 16)}, 15_672_067, 15_672_067),
]
PAPER_SIZE = {"unet": {"input_shape": (None, None, 3), "num_classes": 2}, "plain_unet": {}}

# initialize(model, seed=0) on the small model, ones pass over `images()`: eight values of the
# output, equal on every backend.
GOLDEN = {
    "unet": [0.201353, -0.0263615, -0.12186, 0.3916365, 0.311687, -0.010529, -0.0107968, 0.4613945],
    "unet, training": [0.331813, 0.337209, -0.210112, 1.492585, 0, 0, 0.495399, 1.02677],
    "plain_unet": [0.425712, 0.440465, 0.450653, 0.444447, 0.38286, 0.366948, 0.45546, 0.460811],
}

small = pytest.mark.parametrize("name, arguments", [row[:2] for row in TABLE])


def images(count=2, height=16, width=24):
    return np.random.default_rng(0).random((count, height, width, 3), dtype="float32")


def to_numpy(variable):
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def build(name, arguments, input_shape=(16, 24, 3)):
    model = MODELS[name](input_shape=input_shape, **arguments)
    ks.initialize(model, seed=0)
    return model


def test_every_model_is_in_the_table():
    assert [row[0] for row in TABLE] == list(MODELS)


@small
def test_model_output_has_the_size_of_the_images(name, arguments):
    model = build(name, arguments)
    assert model.name == name
    assert model.input_shape == (None, 16, 24, 3)
    assert model.output_shape == (None, 16, 24, 3)
    output = model(images())
    assert tuple(output.shape) == (2, 16, 24, 3)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"


@small
def test_model_takes_images_of_any_size(name, arguments):
    model = build(name, arguments, input_shape=(None, None, 3))
    for height, width in [(16, 24), (4, 4), (8, 40)]:
        output = model.predict(images(1, height, width), verbose=0)
        assert output.shape == (1, height, width, 3)


@small
def test_model_with_unknown_size_computes_the_same(name, arguments):
    fixed, free = build(name, arguments), build(name, arguments, (None, None, 3))
    free.set_weights([to_numpy(w) for w in fixed.weights])
    assert np.array_equal(to_numpy(fixed(images())), to_numpy(free(images())))


@small
@pytest.mark.parametrize(
    "input_shape, padded", [((17, 24, 3), (20, 24, 3)), ((None, 30, 1), (None, 32, 1))]
)
def test_model_rejects_sizes_that_it_cannot_halve(name, arguments, input_shape, padded):
    with pytest.raises(ValueError) as error:
        MODELS[name](input_shape, **arguments)
    for part in ("3 levels", "multiples of 4", str(input_shape), f"Pad the images to {padded}"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("filters", [(8,), (), (8, 0), (8, 1.5)])
def test_model_rejects_bad_filters(name, filters):
    with pytest.raises(ValueError, match="filters.*at least two positive integers"):
        MODELS[name]((16, 16, 3), 2, filters)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "shape", [(16, 16), (2, 16, 16, 3), (16, 16, None), (0, 16, 3), (16, 16, 0)]
)
def test_model_rejects_bad_input_shapes(name, shape):
    with pytest.raises(ValueError, match=r"input_shape is \(height, width, channels\)"):
        MODELS[name](shape, 2, (4, 8))


@pytest.mark.parametrize("name", MODELS)
def test_model_rejects_no_classes(name):
    with pytest.raises(ValueError, match="num_classes.*0"):
        MODELS[name]((16, 16, 3), 0, (4, 8))


@small
def test_model_has_as_many_levels_as_filters(name, arguments):
    for filters in [(4, 8), (4, 4, 4, 4)]:
        model = MODELS[name]((32, 32, 3), 2, filters)
        poolings = [x for x in model.layers if isinstance(x, layers.MaxPooling2D)]
        assert len(poolings) == len(filters) - 1
        assert model.output_shape == (None, 32, 32, 2)


@small
def test_layer_names_are_addresses(name, arguments):
    names = [layer.name for layer in MODELS[name]((16, 16, 3), **arguments).layers]
    other = [layer.name for layer in MODELS[name]((16, 16, 3), **arguments).layers]
    assert names == other
    if name == "unet":
        assert {"down0_conv1", "down0_norm1", "bottom_conv2", "up1_upconv", "up0_norm2"} < set(
            names
        )
        assert names[-1] == "logits"


@small
def test_every_trainable_weight_moves_in_one_step(name, arguments):
    model = build(name, arguments)
    before = [to_numpy(w) for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    model.fit(images(), 100 * images(), verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(to_numpy(weight), old), weight.path


@small
def test_model_saves_and_loads_equal(name, arguments, tmp_path):
    model = build(name, arguments)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(to_numpy(model(images())), to_numpy(again(images())))


@small
def test_model_gives_float32_under_mixed_precision(name, arguments):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(name, arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[1].compute_dtype == "bfloat16"
    output = model(images())
    assert keras.backend.standardize_dtype(output.dtype) == "float32"


@pytest.mark.parametrize("name, total, trainable", [(row[0], *row[2:]) for row in TABLE])
def test_model_has_the_parameters_of_the_paper(name, total, trainable):
    model = MODELS[name](**PAPER_SIZE[name])
    assert model.count_params() == total
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == trainable


@small
def test_model_computes_the_same_on_every_backend(name, arguments):
    output = to_numpy(build(name, arguments)(images()))
    assert np.allclose(output[1, 3:11:2, 7, :2].ravel(), GOLDEN[name], atol=1e-5)


def test_unet_in_training_computes_the_same_on_every_backend():
    output = to_numpy(build("unet", TABLE[0][1])(images(), training=True))
    assert np.allclose(output[1, 3:11:2, 7, :2].ravel(), GOLDEN["unet, training"], atol=1e-5)


def test_package_names_are_the_functions():
    assert ks.segmentation.unet is unet
    assert ks.segmentation.plain_unet is plain_unet
    assert callable(unet) and callable(plain_unet)


# --- unet


def test_unet_normalizes_each_3x3_convolution():
    model = unet((16, 16, 3), 2, (4, 8))
    convolutions = [x for x in model.layers if "conv" in x.name and "up" not in x.name[2:]]
    assert len(convolutions) == 6
    for i, layer in enumerate(model.layers):
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (3, 3):
            assert not layer.use_bias
            assert isinstance(model.layers[i + 1], layers.BatchNormalization)
            assert model.layers[i + 1].momentum == 0.9


def test_unet_learns_a_tiny_fixed_set():
    masks = (np.arange(16 * 24).reshape(1, 16, 24) // 40 % 3).astype("int32")
    masks = np.concatenate([masks, 2 - masks])
    x = np.eye(3, dtype="float32")[masks] * 0.5 + 0.5 * images()
    model = build("unet", {"num_classes": 3, "filters": (4, 8)})
    metric = ks.metrics.PixelAccuracy(3)
    model.compile(keras.optimizers.Adam(0.02), loss=ks.losses.CrossEntropy(), metrics=[metric])
    accuracy = model.fit(x, masks, epochs=40, verbose=0).history["pixel_accuracy"]
    assert accuracy[0] < 0.8 and accuracy[-1] > 0.99


# --- plain_unet


def the_tutorial(shape, filters, num_classes):
    """The tutorial's own code; only its numbers are arguments."""
    from keras.layers import Concatenate, Conv2D, Input, MaxPooling2D, UpSampling2D
    from keras.models import Model

    f1, f2, f3, f4, f5 = filters
    inputs = Input(shape=shape)
    conv1 = Conv2D(f1, (3, 3), activation="relu", padding="same")(inputs)
    pool1 = MaxPooling2D((2, 2))(conv1)
    conv2 = Conv2D(f2, (3, 3), activation="relu", padding="same")(pool1)
    pool2 = MaxPooling2D((2, 2))(conv2)
    conv3 = Conv2D(f3, (3, 3), activation="relu", padding="same")(pool2)
    pool3 = MaxPooling2D((2, 2))(conv3)
    conv4 = Conv2D(f4, (3, 3), activation="relu", padding="same")(pool3)
    pool4 = MaxPooling2D((2, 2))(conv4)
    conv5 = Conv2D(f5, (3, 3), activation="relu", padding="same")(pool4)
    up6 = UpSampling2D((2, 2))(conv5)
    concat = Concatenate()([up6, conv4])
    conv6 = Conv2D(f4, (3, 3), activation="relu", padding="same")(concat)
    up7 = UpSampling2D((2, 2))(conv6)
    concat = Concatenate()([up7, conv3])
    conv7 = Conv2D(f3, (3, 3), activation="relu", padding="same")(concat)
    up8 = UpSampling2D((2, 2))(conv7)
    concat = Concatenate()([up8, conv2])
    conv8 = Conv2D(f2, (3, 3), activation="relu", padding="same")(concat)
    up9 = UpSampling2D((2, 2))(conv8)
    concat = Concatenate()([up9, conv1])
    conv9 = Conv2D(f1, (3, 3), activation="relu", padding="same")(concat)
    conv10 = Conv2D(num_classes, (1, 1), activation="sigmoid", padding="same")(conv9)
    return Model(inputs=[inputs], outputs=[conv10])


FIVE_LEVELS = (4, 8, 12, 16, 20)


def test_plain_unet_computes_what_the_tutorial_computes():
    theirs = the_tutorial((32, 48, 3), FIVE_LEVELS, 3)
    ours = plain_unet((32, 48, 3), 3, FIVE_LEVELS)
    ks.initialize(theirs, seed=1)
    ours.set_weights([to_numpy(w) for w in theirs.weights])
    x = images(2, 32, 48)
    assert np.array_equal(to_numpy(theirs([x])), to_numpy(ours(x)))


def test_plain_unet_has_the_layers_of_the_tutorial_in_their_order():
    def described(model):
        kept = {"filters", "kernel_size", "strides", "pool_size", "size", "padding", "activation"}
        kept |= {"interpolation", "axis", "use_bias", "kernel_initializer"}
        return [
            (type(x).__name__, {k: v for k, v in x.get_config().items() if k in kept})
            for x in model.layers[1:]
        ]

    ours = plain_unet((32, 48, 3), 3, FIVE_LEVELS)
    assert described(ours) == described(the_tutorial((32, 48, 3), FIVE_LEVELS, 3))


def test_plain_unet_trains_as_in_the_tutorial():
    model = plain_unet((32, 48, 3), 3, FIVE_LEVELS)
    ks.initialize(model, seed=0)
    model.compile(optimizer="adam", loss="binary_crossentropy")
    targets = (images(4, 32, 48) > 0.5).astype("float32")
    losses = model.fit(targets, targets, epochs=4, batch_size=32, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.log(2), abs=0.1)
    assert losses[-1] < losses[0]


def test_plain_unet_without_activation_gives_the_logits():
    with_sigmoid = plain_unet((16, 16, 3), 2, (4, 8))
    without = plain_unet((16, 16, 3), 2, (4, 8), activation=None)
    for model in (with_sigmoid, without):
        ks.initialize(model, seed=0)
    x = images(1, 16, 16)
    logits = to_numpy(without(x))
    assert np.allclose(1 / (1 + np.exp(-logits)), to_numpy(with_sigmoid(x)), atol=1e-6)
    assert np.abs(logits - to_numpy(with_sigmoid(x))).max() > 0.1


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="keras.config.set_image_data_format"):
            unet((16, 16, 3), num_classes=2, filters=(4, 8))
    finally:
        keras.config.set_image_data_format("channels_last")
