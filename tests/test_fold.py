"""Batch normalization folded into convolutions."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.segmentation import fold_batch_normalization, unet


def filled(model):
    """The model with random weights everywhere, also in the statistics of normalizations."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        positive = "variance" in weight.name or "stddev" in weight.name
        low, high = (0.5, 2) if positive else (-0.5, 0.5)
        weight.assign(generator.uniform(low, high, weight.shape).astype("float32"))
    return model


def images(count=2, height=16, width=16, channels=3):
    shape = (count, height, width, channels)
    return np.random.default_rng(1).random(shape, dtype="float32")


def normalizations(model):
    return [layer for layer in model._flatten_layers() if type(layer) is layers.BatchNormalization]


def assert_folds(model, left):
    """Folds a model and compares the outputs; `left` normalizations stay."""
    before = [ops.convert_to_numpy(weight) for weight in model.weights]
    folded = fold_batch_normalization(model)
    assert len(normalizations(folded)) == left
    expected = backend.infer(model, images())
    np.testing.assert_allclose(
        backend.infer(folded, images()), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
    return folded


CONVOLUTIONS = {
    "plain": layers.Conv2D(5, 3, padding="same", use_bias=False, name="conv"),
    "bias": layers.Conv2D(5, 3, strides=2, name="conv"),
    "dilated": layers.Conv2D(5, 3, dilation_rate=2, padding="same", name="conv"),
    "groups": layers.Conv2D(6, 3, groups=3, name="conv"),
    "transposed": layers.Conv2DTranspose(5, 4, strides=2, padding="same", name="conv"),
    "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="conv"),
    "separable": layers.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False, name="conv"),
}
NORMALIZATIONS = {
    "all": {},
    "no gamma": {"scale": False},
    "no beta": {"center": False, "epsilon": 0.1},
}


def one_convolution(convolution, **options):
    convolution = type(convolution).from_config(convolution.get_config())
    inputs = keras.Input((16, 16, 3))
    x = convolution(inputs)
    x = layers.BatchNormalization(name="norm", **options)(x)
    return filled(keras.Model(inputs, layers.ReLU()(x)))


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("options", NORMALIZATIONS)
def test_each_kind_of_convolution_is_folded(convolution, options):
    model = one_convolution(CONVOLUTIONS[convolution], **NORMALIZATIONS[options])
    folded = assert_folds(model, left=0)
    assert [layer.name for layer in folded.layers[1:2]] == ["conv"]
    assert len(folded.layers) == len(model.layers) - 1


def test_a_unet_is_folded():
    model = filled(unet((16, 16, 3), num_classes=4, filters=(4, 8, 6)))
    folded = assert_folds(model, left=0)
    assert len(normalizations(model)) == 10
    assert folded.name == "unet" and folded.layers[-1].name == "logits"


def test_an_encoder_within_the_model_is_folded():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(inputs)
    half = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv2")(half)
    quarter = layers.BatchNormalization(name="norm2")(x)
    encoder = keras.Model(inputs, [half, quarter], name="encoder")
    model = unet((16, 16, 3), num_classes=4, filters=(4, 8), encoder=encoder)
    folded = assert_folds(filled(model), left=0)
    assert "encoder" in [layer.name for layer in folded.layers]


def test_a_sequential_model_is_folded():
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    )
    assert_folds(filled(model), left=0)


def read_twice(x):
    x = layers.Conv2D(4, 3, padding="same")(x)
    return layers.BatchNormalization()(x) + x


def called_twice(x):
    shared = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(shared(layers.BatchNormalization()(shared(x))))


def normalized_twice(x):
    shared = layers.BatchNormalization()
    return shared(layers.Conv2D(4, 3)(shared(layers.Conv2D(4, 3)(x))))


def with_an_activation(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))


def normalized_first(x):
    return layers.Conv2D(4, 3)(layers.BatchNormalization()(x))


def along_the_width(x):
    return layers.BatchNormalization(axis=2)(layers.Conv2D(4, 3)(x))


def renormalized(x):
    return layers.BatchNormalization(renorm=True)(layers.Conv2D(4, 3)(x))


@pytest.mark.parametrize(
    "build, left",
    [
        (read_twice, 1),
        (called_twice, 2),
        (normalized_twice, 1),
        (with_an_activation, 1),
        (normalized_first, 1),
        (along_the_width, 1),
        (renormalized, 1),
    ],
)
def test_what_cannot_be_folded_stays(build, left):
    inputs = keras.Input((16, 16, 3))
    assert_folds(filled(keras.Model(inputs, build(inputs))), left)


def test_a_convolution_that_is_an_output_stays():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3)(inputs)
    model = filled(keras.Model(inputs, [x, layers.BatchNormalization()(x)]))
    folded = fold_batch_normalization(model)
    assert len(normalizations(folded)) == 1
    for found, expected in zip(folded(images()), model(images()), strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(found), ops.convert_to_numpy(expected))


def test_statistics_of_the_batch_stay():
    inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs), training=True)
    assert len(normalizations(fold_batch_normalization(keras.Model(inputs, x)))) == 1


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="Found Own, whose layers cannot be seen"):
        fold_batch_normalization(Own())


def test_a_folded_model_saves_and_loads_equal(tmp_path):
    folded = fold_batch_normalization(filled(unet((16, 16, 3), 4, (4, 8))))
    backend.save_model(folded, tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(backend.infer(again, images()), backend.infer(folded, images()))


def test_folding_never_imports_the_other_framework():
    other = {"tensorflow": "torch", "torch": "tensorflow"}[keras.backend.backend()]
    code = (
        "import sys\n"
        "from keras_segen.segmentation import fold_batch_normalization, unet\n"
        "fold_batch_normalization(unet((16, 16, 3), 4, (4, 8)))\n"
        f"print({other!r} in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_the_package_names_it():
    assert ks.segmentation.fold_batch_normalization is fold_batch_normalization
