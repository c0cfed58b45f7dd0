"""What the seam changes in Keras on PyTorch."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import keras_segen as ks
from keras_segen import backend

if keras.backend.backend() != "torch":
    pytest.skip("on PyTorch only", allow_module_level=True)

import torch
from keras.src.backend.torch import core as keras_core
from keras.src.backend.torch import nn as keras_nn
from keras.src.models import functional as keras_functional


def keras_nn_as_installed():
    spec = importlib.util.spec_from_file_location("keras_nn_as_installed", keras_nn.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installed_keras_still_copies():
    """When this fails, `backend.torch._drop_copies_around_convolutions` can be deleted."""
    transpose = keras_nn_as_installed()._transpose_spatial_inputs
    assert transpose(torch.empty(1, 2, 2, 2)).is_contiguous()


def test_images_are_transposed_without_a_copy():
    images = torch.rand(2, 4, 6, 3)
    transposed = keras_nn._transpose_spatial_inputs(images)
    assert transposed.shape == (2, 3, 4, 6)
    assert transposed.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 5, 3)])
def test_sequences_and_volumes_are_left_to_keras(shape):
    found = keras_nn._transpose_spatial_inputs(torch.rand(shape))
    assert found.is_contiguous() and found.shape[1] == 3


def every_spatial_layer():
    x = inputs = keras.Input((13, 18, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="silu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(6, 4, strides=2, padding="same", activation="silu")(x)
    x = layers.AveragePooling2D(2, padding="same")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", dilation_rate=2)(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    ks.initialize(model, seed=0)
    return model


def test_outputs_and_gradients_are_those_with_copies(monkeypatch):
    images = np.random.default_rng(0).random((2, 13, 18, 3), dtype="float32")
    model = every_spatial_layer()

    def outputs_and_gradients():
        outputs = model(images)
        variables = [weight.value for weight in model.trainable_weights]
        return [outputs, *torch.autograd.grad(outputs.square().sum(), variables)]

    found = outputs_and_gradients()
    copying = keras_nn_as_installed()._transpose_spatial_inputs
    monkeypatch.setattr(keras_nn, "_transpose_spatial_inputs", copying)
    for ours, theirs in zip(found, outputs_and_gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_keras_that_does_not_copy_is_left_alone(monkeypatch):
    def transpose(inputs):
        return torch.permute(inputs, (0, 3, 1, 2))

    monkeypatch.setattr(keras_nn, "_transpose_spatial_inputs", transpose)
    backend.torch._drop_copies_around_convolutions()
    assert keras_nn._transpose_spatial_inputs is transpose
    monkeypatch.delattr(keras_nn, "_transpose_spatial_inputs")
    backend.torch._drop_copies_around_convolutions()
    assert not hasattr(keras_nn, "_transpose_spatial_inputs")


def laid_out(tensor):
    return tensor.permute(3, 2, 0, 1).is_contiguous(memory_format=torch.channels_last)


def test_the_installed_keras_still_copies_kernels():
    """When this fails, `backend.torch._lay_kernels_out_for_convolutions` can be deleted."""
    kernel = torch.empty(3, 3, 4, 5)
    transposed = keras_nn._maybe_convert_to_channels_last(keras_nn._transpose_conv_kernel(kernel))
    assert transposed.data_ptr() != kernel.data_ptr()


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.Conv2DTranspose])
def test_kernels_are_not_copied(kind):
    layer = kind(5, 3)
    layer.build((None, 8, 8, 4))
    values = np.random.default_rng(0).random(layer.kernel.shape, dtype="float32")
    layer.kernel.assign(values)
    kernel = layer.kernel.value
    transposed = keras_nn._maybe_convert_to_channels_last(keras_nn._transpose_conv_kernel(kernel))
    assert transposed.data_ptr() == kernel.data_ptr()
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), values)
    np.testing.assert_array_equal(transposed.detach(), values.transpose(3, 2, 0, 1))


def test_kernels_lie_alike_with_their_gradients_and_after_training_and_loading(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(5, 3), layers.Flatten()])
    model.compile("adam", "mse")
    images = np.random.default_rng(0).random((2, 8, 8, 4), dtype="float32")
    model.train_on_batch(images, np.zeros((2, 180), "float32"))
    kernel = model.layers[0].kernel
    moments = [v.value for v in model.optimizer.variables if v.ndim == 4]
    assert len(moments) == 2
    for tensor in (kernel.value, kernel.value.grad, *moments):
        assert laid_out(tensor)
    backend.save_model(model, tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert laid_out(loaded.layers[0].kernel.value)
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), backend.infer(model, images))


def test_a_parameter_of_somebody_else_stays_as_it_is():
    parameter = torch.nn.Parameter(torch.rand(2, 3, 4, 5))
    variable = keras.Variable(parameter)
    assert variable.value is parameter and parameter.is_contiguous()


def test_a_keras_that_does_not_copy_kernels_is_left_alone(monkeypatch):
    def initialize(self, value):
        pass

    monkeypatch.setattr(keras_core.Variable, "_initialize", initialize)
    monkeypatch.setattr(keras_nn, "_maybe_convert_to_channels_last", lambda tensor: tensor)
    backend.torch._lay_kernels_out_for_convolutions()
    assert keras_core.Variable._initialize is initialize
    monkeypatch.delattr(keras_nn, "_maybe_convert_to_channels_last")
    backend.torch._lay_kernels_out_for_convolutions()
    assert keras_core.Variable._initialize is initialize


def test_the_installed_keras_still_composes_batch_normalization():
    """When this fails, `backend.torch._fuse_batch_normalization` can be deleted."""
    layer = layers.BatchNormalization()
    layer.build((None, 4, 4, 3))
    original = layers.BatchNormalization.call.__wrapped__
    outputs = original(layer, torch.rand(2, 4, 4, 3, requires_grad=True), training=True)
    assert "NativeBatchNormBackward0" not in operations(outputs)


def operations(tensor):
    """The names of all operations that a tensor was computed by."""
    names, pending = set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [before for before, _ in node.next_functions]
    return names


def normalization(**options):
    layer = layers.BatchNormalization(momentum=0.7, epsilon=1e-2, **options)
    layer.build((None, 5, 6, 3))
    generator = np.random.default_rng(0)
    for weight in layer.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return layer


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_is_one_operation_with_keras_results(training):
    images = np.random.default_rng(1).normal(1.0, 2.0, (4, 5, 6, 3)).astype("float32")

    def results(call):
        layer, x = normalization(), torch.tensor(images, requires_grad=True)
        outputs = call(layer, x)
        sources = [x, *(weight.value for weight in layer.trainable_weights)]
        (gradient, *_) = found = torch.autograd.grad(
            outputs.pow(3).sum(), sources, create_graph=True
        )
        second = torch.autograd.grad(gradient.pow(2).sum(), x)
        names = operations(outputs)
        return names, [outputs, *found, *second, *(weight.value for weight in layer.weights)]

    original = layers.BatchNormalization.call.__wrapped__
    names, ours = results(lambda layer, x: layer(x, training=training))
    assert names & {"NativeBatchNormBackward0", "CudnnBatchNormBackward0"}
    _, theirs = results(lambda layer, x: original(layer, x, training=training))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_large_mean_costs_no_digits():
    """The variance of 1000 +- 0.1, which E[x^2] - E[x]^2 in float32 cannot see."""
    images = np.random.default_rng(0).normal(1000.0, 0.1, (4, 16, 16, 3)).astype("float32")
    layer = layers.BatchNormalization(momentum=0.0)
    layer(images, training=True)
    expected = images.astype("float64").var((0, 1, 2))
    np.testing.assert_allclose(layer.moving_variance.value.detach(), expected, rtol=1e-3)


def test_a_frozen_batch_normalization_keeps_its_averages():
    layer = normalization()
    layer.trainable = False
    before = layer.get_weights()
    x = torch.rand(4, 5, 6, 3)
    torch.testing.assert_close(layer(x, training=True), layer(x, training=False))
    for weight, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_averages_are_forgotten_in_a_stateless_scope():
    layer = normalization()
    before = layer.moving_mean.numpy().copy()
    with keras.StatelessScope() as scope:
        layer(torch.rand(4, 5, 6, 3), training=True)
        assert scope.get_current_value(layer.moving_mean) is not None
    np.testing.assert_array_equal(layer.moving_mean.numpy(), before)


@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (6, 3)),
        ({"axis": 1}, (4, 3, 5, 6)),
        ({"scale": False}, (4, 5, 6, 3)),
        ({"center": False}, (4, 5, 6, 3)),
        ({"renorm": True}, (4, 5, 6, 3)),
        ({"dtype": "float64"}, (4, 5, 6, 3)),
        ({"dtype": "mixed_float16"}, (4, 5, 6, 3)),
        ({}, (1, 1, 1, 3)),
    ],
)
def test_unusual_batch_normalization_is_left_to_keras(options, shape):
    layer = layers.BatchNormalization(**options)
    layer.build((None, *shape[1:]))
    outputs = layer(torch.rand(shape, requires_grad=True), training=True)
    assert not any("BatchNorm" in name for name in operations(outputs))
    assert outputs.shape == shape


def test_a_keras_without_moments_of_its_own_is_left_alone(monkeypatch):
    def call(self, inputs, training=None, mask=None):
        return inputs

    monkeypatch.setattr(layers.BatchNormalization, "call", call)
    backend.torch._fuse_batch_normalization()
    assert layers.BatchNormalization.call is call


def test_the_installed_keras_still_crops_transposed_convolutions():
    """When this fails, `backend.torch._crop_transposed_convolutions_inside` can be deleted."""
    kernel = torch.rand(4, 4, 2, 3, requires_grad=True)
    original = keras_nn.conv_transpose.__wrapped__
    outputs = original(torch.rand(1, 5, 5, 3), kernel, 2, "same")
    assert "SliceBackward0" in operations(outputs)


# kernel size, stride, options; and whether PyTorch can leave out what Keras cuts off.
TRANSPOSED = [
    (2, 2, {}, True),
    (4, 2, {}, True),
    ((4, 5), (2, 3), {}, True),
    (16, 8, {}, True),
    (4, 2, {"padding": "valid"}, True),
    (3, 1, {"dilation_rate": 2}, True),
    (3, 2, {}, False),  # more on the right than on the left
    (2, 3, {}, True),  # gaps between the kernels
    (4, 2, {"output_padding": 1}, False),
    (4, 2, {"data_format": "channels_first"}, False),
]


@pytest.mark.parametrize("kernel_size, strides, options, inside", TRANSPOSED)
def test_transposed_convolutions_are_those_of_keras(
    kernel_size, strides, options, inside, monkeypatch
):
    options = {"padding": "same", **options}
    layer = layers.Conv2DTranspose(3, kernel_size, strides, **options)
    images = torch.rand(2, 5, 7, 4)
    if options.get("data_format"):
        images = images.permute(0, 3, 1, 2)
    layer.build(images.shape)

    def outputs_and_gradients():
        x = images.clone().requires_grad_(True)
        outputs = layer(x)
        found = torch.autograd.grad(outputs.square().sum(), [x, layer.kernel.value])
        return outputs, *found

    ours = outputs_and_gradients()
    assert ours[0].permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last) or (
        not inside
    )
    assert inside == ("SliceBackward0" not in operations(ours[0]))
    monkeypatch.setattr(keras_nn, "conv_transpose", keras_nn.conv_transpose.__wrapped__)
    for found, expected in zip(ours, outputs_and_gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_keras_that_does_not_crop_is_left_alone(monkeypatch):
    def conv_transpose(inputs, kernel):
        return inputs

    monkeypatch.setattr(keras_nn, "conv_transpose", conv_transpose)
    monkeypatch.delattr(keras_nn, "compute_conv_transpose_output_crops_for_torch")
    backend.torch._crop_transposed_convolutions_inside()
    assert keras_nn.conv_transpose is conv_transpose


def plain_model(x, **options):
    inputs = x
    x = layers.Conv2D(4, 3, padding="same", name="conv", **options)(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Concatenate(name="both")([x, inputs])
    x = layers.Dropout(0.5, seed=0, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(2, name="dense")(x))


@pytest.fixture
def checked(monkeypatch):
    """The names of the layers that were called by way of all of Keras' checks."""
    names = []
    original = keras.layers.Layer.__call__

    def call(self, *args, **kwargs):
        names.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Layer, "__call__", call)
    return names


@pytest.mark.parametrize("training", [True, False])
def test_plain_layers_are_called_directly_with_keras_results(training, checked, monkeypatch):
    images = torch.rand(2, 6, 6, 3)

    def results():
        model = plain_model(keras.Input((6, 6, 3), name="images"))
        ks.initialize(model, seed=0)
        checked.clear()
        outputs = model(images, training=training)
        variables = [weight.value for weight in model.trainable_weights]
        gradients = torch.autograd.grad(outputs.square().sum(), variables)
        statistics = [weight.value for weight in model.non_trainable_weights]
        return list(checked), [outputs, *gradients, *statistics]

    names, ours = results()
    assert len(names) == 1  # the model itself
    monkeypatch.setattr(keras_functional, "operation_fn", keras_functional.operation_fn.__wrapped__)
    names, theirs = results()
    assert len(names) == 7
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def called_with_checks(checked, model, images=None, **options):
    images = torch.rand(2, 6, 6, 3) if images is None else images
    checked.clear()
    model(images, **{"training": False, **options})
    return checked[1:]


def test_what_needs_the_checks_gets_them(checked):
    class Own(layers.ReLU):
        pass

    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, Own(name="own")(layers.ReLU(name="plain")(inputs)))
    assert called_with_checks(checked, model) == ["own"]

    model = plain_model(inputs, dtype="mixed_bfloat16")
    assert "conv" in called_with_checks(checked, model)
    model = plain_model(inputs, activity_regularizer="l2")
    assert called_with_checks(checked, model) == ["conv"]
    assert len(model.losses) == 1

    model = plain_model(inputs)
    seen = []
    model.get_layer("relu").register_forward_hook(lambda *values: seen.append(values))
    assert called_with_checks(checked, model) == ["relu"]
    assert len(seen) == 1

    half = torch.rand(2, 6, 6, 3, dtype=torch.float64)
    model = keras.Model(inputs, layers.ReLU(name="relu")(inputs))
    assert called_with_checks(checked, model, half) == []  # the model casts it
    outer = keras.Sequential([keras.Input((6, 6, 3)), model])
    assert called_with_checks(checked, outer) == [model.name]  # and what is in it directly


def test_masks_find_their_way_past_plain_layers(checked):
    inputs = keras.Input((6, 3))
    x = layers.Masking(name="masking")(inputs)
    x = layers.ReLU(name="relu")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D(name="mean")(x))
    sequence = torch.rand(1, 6, 3)
    sequence[:, 3:] = 0
    names = called_with_checks(checked, model, sequence)
    assert names == ["masking", "relu", "mean"]
    torch.testing.assert_close(model(sequence, training=False), sequence[:, :3].mean(1))


def test_a_keras_with_another_graph_is_left_alone(monkeypatch):
    monkeypatch.delattr(keras_functional, "operation_fn")
    backend.torch._call_plain_layers_directly()
    assert not hasattr(keras_functional, "operation_fn")


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape, axis", [((2, 5, 7, 3), -1), ((2, 5, 7, 3), 3)])
def test_a_softmax_over_channels_is_taken_over_planes(name, shape, axis):
    found = getattr(keras_nn, name)
    images = torch.randn(shape)

    def outputs_and_gradient(softmax):
        x = images.clone().requires_grad_(True)
        outputs = softmax(x, axis)
        return outputs, torch.autograd.grad(outputs.square().sum(), x)[0]

    ours, theirs = outputs_and_gradient(found), outputs_and_gradient(found.__wrapped__)
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one, theirs_one, rtol=1e-5, atol=1e-6)
    assert ours[0].is_contiguous()
    assert "PermuteBackward0" in operations(ours[0])


@pytest.mark.parametrize("shape, axis", [((2, 5, 7, 3), 1), ((2, 5, 7, 3), None), ((4, 3), -1)])
def test_another_softmax_is_left_to_keras(shape, axis):
    x = torch.randn(shape, requires_grad=True)
    outputs = keras_nn.softmax(x, axis)
    assert "PermuteBackward0" not in operations(outputs)
    torch.testing.assert_close(outputs, keras_nn.softmax.__wrapped__(x, axis))
