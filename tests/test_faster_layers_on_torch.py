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
from keras.src.backend.torch.optimizers import torch_adam
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose

from keras_segen.backend.faster import layers_on_torch


def keras_nn_as_installed():
    spec = importlib.util.spec_from_file_location("keras_nn_as_installed", keras_nn.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installed_keras_still_copies():
    """When this fails, `layers_on_torch.drop_copies_around_convolutions` can be deleted."""
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
    layers_on_torch.drop_copies_around_convolutions()
    assert keras_nn._transpose_spatial_inputs is transpose
    monkeypatch.delattr(keras_nn, "_transpose_spatial_inputs")
    layers_on_torch.drop_copies_around_convolutions()
    assert not hasattr(keras_nn, "_transpose_spatial_inputs")


def laid_out(tensor):
    return tensor.permute(3, 2, 0, 1).is_contiguous(memory_format=torch.channels_last)


def test_the_installed_keras_still_copies_kernels():
    """When this fails, `layers_on_torch.lay_kernels_out_for_convolutions` can be deleted."""
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
    layers_on_torch.lay_kernels_out_for_convolutions()
    assert keras_core.Variable._initialize is initialize
    monkeypatch.delattr(keras_nn, "_maybe_convert_to_channels_last")
    layers_on_torch.lay_kernels_out_for_convolutions()
    assert keras_core.Variable._initialize is initialize


def test_the_installed_keras_still_composes_batch_normalization():
    """When this fails, `layers_on_torch.fuse_batch_normalization` can be deleted."""
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
    layers_on_torch.fuse_batch_normalization()
    assert layers.BatchNormalization.call is call


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.Conv2DTranspose])
def test_the_installed_keras_still_adds_biases_apart(kind):
    """When this fails, `layers_on_torch.put_all_of_a_convolution_inside` can be deleted."""
    layer = kind(3, 4, strides=2, padding="same", activation="relu")
    layer.build((None, 5, 5, 2))
    found = operations(kind.call.__wrapped__(layer, torch.rand(1, 5, 5, 2)))
    assert "AddBackward0" in found
    assert ("SliceBackward0" in found) == (kind is layers.Conv2DTranspose)


@pytest.mark.parametrize("activation", [None, "relu", "silu", "tanh"])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same"},
        {"padding": "same", "strides": 2},
        {"padding": "same", "dilation_rate": 2},
        {"groups": 2},
    ],
)
def test_convolutions_are_those_of_keras(activation, use_bias, options):
    layer = layers.Conv2D(6, (3, 4), activation=activation, use_bias=use_bias, **options)
    images = torch.rand(2, 7, 8, 4)
    layer.build(images.shape)
    if use_bias:
        layer.bias.assign(np.arange(6) / 6 - 0.5)

    def outputs_and_gradients(call):
        x = images.clone().requires_grad_(True)
        outputs = call(layer, x)
        weights = [weight.value for weight in layer.weights]
        with torch.no_grad():  # where it may work in place
            again = call(layer, images)
        return [outputs, again, *torch.autograd.grad(outputs.square().sum(), [x, *weights])]

    before = images.clone()
    ours = outputs_and_gradients(layers.Conv2D.call)
    assert "AddBackward0" not in operations(ours[0])
    # In place on a view, PyTorch would copy each gradient.
    assert "AsStridedBackward0" not in operations(ours[0])
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    for found, expected in zip(
        ours, outputs_and_gradients(layers.Conv2D.call.__wrapped__), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_what_needs_no_copy_works_in_place(monkeypatch):
    silu, in_place = torch.nn.functional.silu, []

    def watched(x, inplace=False):
        in_place.append(inplace)
        return silu(x, inplace)

    monkeypatch.setattr(torch.nn.functional, "silu", watched)
    layer = layers.Conv2D(2, 3, activation="silu")
    layer(torch.rand(1, 4, 4, 3))
    with torch.no_grad():
        layer(torch.rand(1, 4, 4, 3))
    assert in_place == [False, True]


def test_a_convolution_of_ones_own_is_left_to_keras():
    class Double(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return 2 * super().convolution_op(inputs, kernel)

    images = torch.rand(1, 4, 4, 2)
    layer, plain = Double(3, 3), layers.Conv2D(3, 3)
    for each in (layer, plain):
        each.build(images.shape)
    plain.kernel.assign(layer.kernel)
    torch.testing.assert_close(layer(images), 2 * plain(images))


def test_adapted_kernels_and_stateless_weights_are_used():
    images = torch.rand(1, 4, 4, 2)
    layer = layers.Conv2D(3, 3)
    layer.build(images.shape)
    zeros = [torch.zeros(tuple(weight.shape)) for weight in layer.weights]
    outputs, _ = layer.stateless_call(zeros, [], images)
    assert not outputs.any() and layer(images).any()
    layer.enable_lora(1)
    layer.lora_kernel_b.assign(torch.ones(layer.lora_kernel_b.shape))
    expected = BaseConv.call.__wrapped__(layer, images)
    torch.testing.assert_close(layer(images), expected)


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
    monkeypatch.setattr(BaseConvTranspose, "call", BaseConvTranspose.call.__wrapped__)
    for found, expected in zip(ours, outputs_and_gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_keras_that_does_not_add_biases_apart_is_left_alone(monkeypatch):
    def call(self, inputs):
        return inputs

    for kind in (BaseConv, BaseConvTranspose):
        monkeypatch.setattr(kind, "call", call)
    layers_on_torch.put_all_of_a_convolution_inside()
    assert BaseConv.call is BaseConvTranspose.call is call


def test_the_installed_keras_still_adds_biases_of_products_apart():
    """When this fails, `layers_on_torch.add_biases_inside_of_products` can be deleted."""
    layer = layers.Dense(3)
    layer.build((None, 2))
    assert "AddBackward0" in operations(layers.Dense.call.__wrapped__(layer, torch.rand(1, 2)))


@pytest.mark.parametrize("activation", [None, "relu", "silu", "tanh"])
@pytest.mark.parametrize(
    "options, shape, inside",
    [
        ({}, (5, 4), True),
        ({"use_bias": False}, (5, 4), False),
        ({}, (5, 6, 4), False),
        ({"dtype": "mixed_bfloat16"}, (5, 4), False),
    ],
)
def test_dense_layers_are_those_of_keras(options, shape, inside, activation):
    layer = layers.Dense(6, activation=activation, **options)
    layer.build(shape)
    if layer.bias is not None:
        layer.bias.assign(np.arange(6) / 6 - 0.5)
    inputs = torch.rand(shape) - 0.5

    def outputs_and_gradients(call):
        before = layers.Dense.call
        layers.Dense.call = call
        try:
            x = inputs.clone().requires_grad_(True)
            outputs = layer(x)
            with torch.no_grad():  # where it may work in place
                again = layer(inputs)
        finally:
            layers.Dense.call = before
        weights = [weight.value for weight in layer.weights]
        return [outputs, again, *torch.autograd.grad(outputs.square().sum(), [x, *weights])]

    ours = outputs_and_gradients(layers.Dense.call)
    theirs = outputs_and_gradients(layers.Dense.call.__wrapped__)
    assert ("AddmmBackward0" in operations(ours[0])) == inside
    assert "AddmmBackward0" not in operations(theirs[0])
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_keras_that_does_not_add_biases_of_products_apart_is_left_alone(monkeypatch):
    def call(self, inputs, training=None):
        return inputs

    monkeypatch.setattr(layers.Dense, "call", call)
    layers_on_torch.add_biases_inside_of_products()
    assert layers.Dense.call is call


@pytest.mark.parametrize("name", layers_on_torch.PARTS_OF_CONVOLUTIONS)
def test_a_keras_that_convolves_in_another_way_is_left_alone(name, monkeypatch):
    original = BaseConv.call.__wrapped__
    for kind in (BaseConv, BaseConvTranspose):
        monkeypatch.setattr(kind, "call", kind.call.__wrapped__)
    monkeypatch.delattr(keras_nn, name)
    layers_on_torch.put_all_of_a_convolution_inside()
    assert BaseConv.call is original


def test_the_installed_keras_still_updates_in_ten_passes():
    """When this fails, `layers_on_torch.update_as_adam_in_fewer_passes` can be deleted."""
    names = torch_adam.Adam._parallel_update_step.__wrapped__.__code__.co_names
    assert "_foreach_addcdiv_" not in names


@pytest.mark.parametrize(
    "optimizer, ours",
    [
        (lambda: keras.optimizers.Adam(1e-2, beta_1=0.5, epsilon=1e-4), True),
        (lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1, clipnorm=0.5), True),
        (lambda: keras.optimizers.Adam(1e-2, amsgrad=True), False),
    ],
)
def test_adam_updates_as_that_of_keras(optimizer, ours, monkeypatch):
    generator = np.random.default_rng(0)
    start = [generator.standard_normal(shape, "float32") for shape in [(3, 3, 4, 5), (7,)]]
    gradients = [
        [torch.tensor(generator.standard_normal(w.shape, "float32")) for w in start]
        for _ in range(5)
    ]
    used = []
    lerp = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *args: used.append(0) or lerp(*args))

    def after_five_steps():
        variables = [keras.Variable(values) for values in start]
        taken = optimizer()
        for grads in gradients:
            taken.apply([grad.clone() for grad in grads], variables)
        return [v.value.detach() for v in [*variables, *taken.variables]]

    found = after_five_steps()
    assert len(used) == (5 if ours else 0)
    original = torch_adam.Adam._parallel_update_step.__wrapped__
    monkeypatch.setattr(torch_adam.Adam, "_parallel_update_step", original)
    for ours, theirs in zip(found, after_five_steps(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not np.allclose(found[0], start[0], atol=1e-3)


def test_an_adam_of_another_keras_is_left_alone(monkeypatch):
    def update(self, grads, variables, learning_rate):
        torch._foreach_addcdiv_(variables, grads, grads)

    monkeypatch.setattr(torch_adam.Adam, "_parallel_update_step", update)
    layers_on_torch.update_as_adam_in_fewer_passes()
    assert torch_adam.Adam._parallel_update_step is update


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
