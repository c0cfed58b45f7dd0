import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen.segmentation import MODELS, fcn, plain_unet, unet


def small_encoder():
    """Five features of 4, 5, 6, 7, 8 channels at strides 2, 4, 8, 16, 32."""
    images = keras.Input((None, None, 3), name="images")
    x, features = images, []
    for level, channels in enumerate((4, 5, 6, 7, 8)):
        x = layers.Conv2D(channels, 3, 2, padding="same", use_bias=False, name=f"conv{level}")(x)
        x = layers.BatchNormalization(name=f"norm{level}")(x)
        x = layers.Activation("silu", name=f"silu{level}")(x)
        features.append(x)
    return keras.Model(images, features, name="small_encoder")


VGG = (4, 4, 6, 6, 8, 12)  # and fc6, fc7
FIVE = (4, 5, 6, 7, 8)

# id, model, arguments that build a small one
ROWS = [
    ("unet", "unet", {"filters": (4, 8, 16)}),
    ("unet, dropout", "unet", {"filters": (4, 8, 16), "dropout": 0.5}),
    ("unet, encoder", "unet", {"filters": FIVE, "encoder": small_encoder}),
    ("plain_unet", "plain_unet", {"filters": (4, 8, 16)}),
    ("fcn 32s", "fcn", {"filters": VGG, "stride": 32, "dropout": 0.0}),
    ("fcn 16s", "fcn", {"filters": VGG, "stride": 16, "dropout": 0.0}),
    ("fcn 8s", "fcn", {"filters": VGG, "stride": 8}),
    ("fcn 8s, encoder", "fcn", {"filters": (12,), "encoder": small_encoder}),
]
HALVING = ("unet", "unet, dropout", "plain_unet")  # rows whose image sizes are multiples of 4

# id, model, arguments of the paper's size, parameters, trainable ones
PAPER = [
    ("unet", "unet", {"input_shape": (None, None, 3), "num_classes": 2}, 31_049_474, 31_037_698),
    ("plain_unet", "plain_unet", {}, 15_672_067, 15_672_067),
    # VGG16's convolutions 14,714,688; fc6 7 x 7 x 512 x 4096 + 4096; fc7 4096 x 4096 + 4096; score
    # 4096 x 21 + 21; the fixed enlargement 64 x 64 x 21 x 21.
    (
        "fcn 32s",
        "fcn",
        {"input_shape": (None, None, 3), "num_classes": 21, "stride": 32},
        14_714_688 + 102_764_544 + 16_781_312 + 86_037 + 1_806_336,
        14_714_688 + 102_764_544 + 16_781_312 + 86_037,
    ),
]

# initialize(model, seed=0) on the small model, ones pass over `images()`: eight values of the
# output, equal on every backend.
GOLDEN = {
    "unet": [0.201353, -0.0263615, -0.12186, 0.3916365, 0.311687, -0.010529, -0.0107968, 0.4613945],
    "unet, training": [0.331813, 0.337209, -0.210112, 1.492585, 0, 0, 0.495399, 1.02677],
    "unet, encoder": [
        *(-0.332074, 0.068437, -0.279153, 0.061696),
        *(0.0091659, -0.0121492, -0.078525, 0.0198225),
    ],
    "plain_unet": [0.425712, 0.440465, 0.450653, 0.444447, 0.38286, 0.366948, 0.45546, 0.460811],
    "fcn 32s": [
        *(-0.230455, -0.737166, -0.254092, -0.812773),
        *(-0.277728, -0.888379, -0.301364, -0.963986),
    ],
    "fcn 16s": [
        *(-0.668127, -0.734943, -0.784322, -0.862759),
        *(-0.900518, -0.990575, -0.84242, -0.926667),
    ],
    "fcn 8s": [-1.44648, -0.818862, -1.50272, -0.733669, -1.44913, -0.547292, -1.39553, -0.360914],
    "fcn 8s, encoder": [
        *(-1.13766, 0.0173435, -1.20728, 0.0073226),
        *(-1.19898, -0.0075803, -1.19068, -0.0224831),
    ],
}
GOLDEN["unet, dropout"] = GOLDEN["unet"]

small = pytest.mark.parametrize("row", [row[0] for row in ROWS])


def images(count=2, height=16, width=24):
    return np.random.default_rng(0).random((count, height, width, 3), dtype="float32")


def to_numpy(variable):
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def build(row, input_shape=(16, 24, 3), num_classes=3):
    """A small model of a row, filled from a seed; scores that start at 0 are filled as well."""
    _, name, arguments = next(one for one in ROWS if one[0] == row)
    if "encoder" in arguments:
        arguments = {**arguments, "encoder": arguments["encoder"]()}
    model = MODELS[name](input_shape=input_shape, num_classes=num_classes, **arguments)
    ks.initialize(model, seed=0)
    for layer in model.layers:
        if layer.name.startswith("score"):
            generator = np.random.default_rng(1)
            layer.set_weights([generator.normal(size=w.shape) for w in layer.weights])
    return model


# For what trains nothing and changes no weight.
built = functools.cache(build)


def test_every_model_is_in_the_tables():
    assert {row[1] for row in ROWS} == {row[1] for row in PAPER} == set(MODELS)


@small
def test_model_output_has_the_size_of_the_images(row):
    model = built(row)
    assert model.name == row.split(",")[0].split(" ")[0]
    assert model.input_shape == (None, 16, 24, 3)
    assert model.output_shape == (None, 16, 24, 3)
    output = model(images())
    assert tuple(output.shape) == (2, 16, 24, 3)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"


@small
def test_model_takes_images_of_any_size(row):
    model = built(row, (None, None, 3))
    sizes = [(16, 24), (4, 4), (8, 40)]
    for height, width in sizes if row in HALVING else [*sizes, (17, 39), (1, 5)]:
        output = model.predict(images(1, height, width), verbose=0)
        assert output.shape == (1, height, width, 3)


@small
def test_model_with_unknown_size_computes_the_same(row):
    size = (16, 24, 3) if row in HALVING else (19, 37, 3)
    fixed, free = built(row, size), built(row, (None, None, 3))
    x = images(2, *size[:2])
    assert np.array_equal(to_numpy(fixed(x)), to_numpy(free(x)))


@pytest.mark.parametrize("name", ["unet", "plain_unet"])
@pytest.mark.parametrize(
    "input_shape, padded", [((17, 24, 3), (20, 24, 3)), ((None, 30, 1), (None, 32, 1))]
)
def test_model_rejects_sizes_that_it_cannot_halve(name, input_shape, padded):
    with pytest.raises(ValueError) as error:
        MODELS[name](input_shape, 3, (4, 8, 16))
    for part in ("3 levels", "multiples of 4", str(input_shape), f"Pad the images to {padded}"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("filters", [(8,), (), (8, 0), (8, 1.5)])
def test_model_rejects_bad_filters(name, filters):
    with pytest.raises(ValueError, match="filters gives .*positive integers.*; found"):
        MODELS[name]((16, 16, 3), 2, filters=filters)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "shape", [(16, 16), (2, 16, 16, 3), (16, 16, None), (0, 16, 3), (16, 16, 0)]
)
def test_model_rejects_bad_input_shapes(name, shape):
    with pytest.raises(ValueError, match=r"input_shape is \(height, width, channels\)"):
        MODELS[name](shape, 2)


@pytest.mark.parametrize("name", MODELS)
def test_model_rejects_no_classes(name):
    with pytest.raises(ValueError, match="num_classes.*0"):
        MODELS[name]((16, 16, 3), 0)


@pytest.mark.parametrize("name", ["unet", "fcn"])
def test_model_rejects_a_share_of_all_values(name):
    with pytest.raises(ValueError, match="dropout is 1"):
        MODELS[name]((16, 16, 3), 2, dropout=1)


@pytest.mark.parametrize("name, filters", [("unet", FIVE), ("fcn", (8,))])
def test_model_rejects_an_encoder_that_does_not_fit(name, filters):
    with pytest.raises(ValueError, match=r"'small_encoder' takes images .*\(16, 16, 1\)"):
        MODELS[name]((16, 16, 1), 2, filters=filters, encoder=small_encoder())
    encoder = small_encoder()
    four = keras.Model(encoder.inputs, encoder.outputs[:4], name="four")
    with pytest.raises(ValueError, match="'four' gives 4 features.*expected 5"):
        MODELS[name]((16, 16, 3), 2, filters=filters, encoder=four)


@pytest.mark.parametrize("name", ["unet", "plain_unet"])
def test_model_has_as_many_levels_as_filters(name):
    for filters in [(4, 8), (4, 4, 4, 4)]:
        model = MODELS[name]((32, 32, 3), 2, filters)
        poolings = [x for x in model.layers if isinstance(x, layers.MaxPooling2D)]
        assert len(poolings) == len(filters) - 1
        assert model.output_shape == (None, 32, 32, 2)


@small
def test_layer_names_are_addresses(row):
    names = [layer.name for layer in built(row).layers]
    assert names == [layer.name for layer in build(row).layers]
    expected = {
        "unet": {"down0_conv1", "down0_norm1", "bottom_conv2", "up1_upconv", "up0_norm2"},
        "unet, dropout": {"down1_dropout", "bottom_dropout"},
        "unet, encoder": {"small_encoder", "up4_upconv", "up0_crop"},
        "plain_unet": {"down1_conv", "bottom_conv", "up0_repeat", "up0_conv"},
        "fcn 32s": {"conv5_3", "pool5", "fc6", "fc7", "score_fr", "upscore32"},
        "fcn 16s": {"score_pool4", "upscore2", "fuse_pool4", "upscore16"},
        "fcn 8s": {"score_pool3", "upscore_pool4", "fuse_pool3", "upscore8", "fc6_dropout"},
        "fcn 8s, encoder": {"small_encoder", "fc6", "upscore8"},
    }
    assert expected[row] < set(names)
    assert names[-1] == ("outputs" if row == "plain_unet" else "logits")


@small
def test_every_trainable_weight_moves_in_one_step(row):
    model = build(row)
    before = [to_numpy(w) for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), loss="mse", run_eagerly=True)
    model.fit(images(), 100 * images(), verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(to_numpy(weight), old), weight.path


@small
def test_model_saves_and_loads_equal(row, tmp_path):
    model = built(row)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert np.array_equal(to_numpy(model(images())), to_numpy(again(images())))


@small
def test_model_gives_float32_under_mixed_precision(row):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(row)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[1].compute_dtype == "bfloat16"
    assert [x for x in model.layers if x.weights][-1].compute_dtype == "float32"
    output = model(images())
    assert keras.backend.standardize_dtype(output.dtype) == "float32"


@pytest.mark.parametrize(
    "name, arguments, total, trainable", [row[1:] for row in PAPER], ids=[row[0] for row in PAPER]
)
def test_model_has_the_parameters_of_the_paper(name, arguments, total, trainable):
    model = MODELS[name](**arguments)
    assert model.count_params() == total
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == trainable


@small
def test_model_computes_the_same_on_every_backend(row):
    output = to_numpy(built(row)(images()))
    assert np.allclose(output[1, 3:11:2, 7, :2].ravel(), GOLDEN[row], atol=1e-5)


def test_unet_in_training_computes_the_same_on_every_backend():
    output = to_numpy(build("unet")(images(), training=True))
    assert np.allclose(output[1, 3:11:2, 7, :2].ravel(), GOLDEN["unet, training"], atol=1e-5)


def test_package_names_are_the_functions():
    assert ks.segmentation.unet is unet
    assert ks.segmentation.plain_unet is plain_unet
    assert ks.segmentation.fcn is fcn
    for name in ks.segmentation.ENCODERS:
        assert getattr(ks.segmentation, name) is ks.segmentation.ENCODERS[name]
    assert callable(unet) and callable(plain_unet) and callable(fcn)


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
    model = unet((16, 24, 3), 3, (4, 8))
    ks.initialize(model, seed=0)
    metric = ks.metrics.PixelAccuracy(3)
    model.compile(keras.optimizers.Adam(0.02), loss=ks.losses.CrossEntropy(), metrics=[metric])
    accuracy = model.fit(x, masks, epochs=40, verbose=0).history["pixel_accuracy"]
    assert accuracy[0] < 0.8 and accuracy[-1] > 0.99


def test_unet_drops_values_at_the_two_deepest_levels_of_the_way_down():
    plain, dropping = built("unet"), build("unet, dropout")
    x = images()
    assert np.array_equal(to_numpy(plain(x)), to_numpy(dropping(x)))  # in inference
    depths = keras.Model(dropping.input, [dropping.get_layer(n).output for n in DROPPED])
    for values in depths(x, training=True):
        assert 0.65 < np.mean(to_numpy(values) == 0) < 0.85  # ReLU leaves half, this half of that
    skip = dropping.get_layer("up1_skip").input[0]
    assert skip is dropping.get_layer("down1_dropout").output
    ks.initialize(dropping, seed=0)
    first, second = (to_numpy(dropping(x, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, to_numpy(build("unet, dropout")(x, training=True)))


DROPPED = ("down1_dropout", "bottom_dropout")


def test_unet_with_an_encoder_takes_its_features_as_skips():
    model = build("unet, encoder", (45, 70, 3))
    encoder = model.get_layer("small_encoder")
    assert [tuple(x.shape[1:3]) for x in encoder(images(1, 45, 70))] == [
        (23, 35),
        (12, 18),
        (6, 9),
        (3, 5),
        (2, 3),
    ]
    for level in range(5):
        skip, x = model.get_layer(f"up{level}_skip").input
        assert skip.shape[1:3] == x.shape[1:3]
        assert skip.shape[-1] == (3, 4, 5, 6, 7)[level]


def test_an_encoder_frozen_within_a_network_stays_as_it_is():
    model = build("unet, encoder")
    encoder = model.get_layer("small_encoder")
    encoder.trainable = False
    before = [to_numpy(w) for w in encoder.weights]
    others = [to_numpy(w) for w in model.trainable_weights]
    model.compile("sgd", loss="mse", run_eagerly=True)
    model.fit(images(), 100 * images(), verbose=0)
    for weight, old in zip(encoder.weights, before, strict=True):  # statistics as well
        assert np.array_equal(to_numpy(weight), old), weight.path
    for weight, old in zip(model.trainable_weights, others, strict=True):
        assert not np.array_equal(to_numpy(weight), old), weight.path


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
