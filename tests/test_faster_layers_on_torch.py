"""Layers, losses and optimizers of Keras on PyTorch, once they are made faster."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_segen as ks
from keras_segen import backend

if keras.backend.backend() != "torch":
    pytest.skip("on PyTorch only", allow_module_level=True)

import torch

from keras_segen.backend.faster import layers_on_torch
from keras_segen.backend.faster.layers_on_torch import keras_nn, operations
from keras_segen.backend.faster.probe import NotNeeded


@pytest.fixture(autouse=True)
def faster():
    ks.faster.apply()
    yield
    ks.faster.remove()


def assert_same(ours, theirs, **tolerance):
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        torch.testing.assert_close(found, expected, **tolerance)


def outputs_and_gradients(layer, inputs):
    """What a layer gives with and without gradients, then those by its inputs and weights."""
    x = inputs.clone().requires_grad_(True)
    outputs = layer(x, training=True)
    with torch.no_grad():  # where it may work in place
        again = layer(inputs, training=True)
    weights = [weight.value for weight in layer.trainable_weights]
    return [outputs, again, *torch.autograd.grad(outputs.square().sum(), [x, *weights])]


def fill(layer):
    """Gives a built layer other weights than ones and zeros."""
    generator = np.random.default_rng(0)
    for weight in layer.weights:
        least = 0.5 if weight.name in ("gamma", "moving_variance") else -0.3
        weight.assign(generator.uniform(least, least + 1, weight.shape))


# A layer, the shape of its inputs, and an operation that comes once it is made faster, or one that
# becomes rarer, after a minus; None: what is left to Keras.
LAYERS = [
    (lambda **o: layers.Conv2D(6, (3, 4), **o), (2, 7, 8, 4), "-add"),
    (lambda **o: layers.Conv2D(6, (3, 4), padding="same", strides=2, **o), (2, 7, 8, 4), "-add"),
    (lambda **o: layers.Conv2D(6, 3, padding="same", dilation_rate=2, **o), (1, 7, 9, 4), "-add"),
    (lambda **o: layers.Conv2D(6, 2, padding="same", groups=2, **o), (2, 1, 8, 4), "-add"),
    (lambda **o: layers.Conv2D(6, 1, strides=3, padding="same", **o), (2, 7, 8, 4), "-add"),
    (lambda **o: layers.Conv2D(6, 3, activation="relu", **o), (2, 7, 8, 4), "relu_"),
    (lambda **o: layers.Conv2D(6, 3, activation="silu", **o), (2, 7, 8, 4), "silu_"),
    (lambda **o: layers.Conv2D(6, 3, activation="tanh", **o), (2, 7, 8, 4), "-add"),
    (lambda **o: layers.Conv2D(6, 3, use_bias=False, **o), (2, 7, 8, 4), "-clone"),
    (lambda **o: layers.Conv1D(6, 3, **o), (2, 7, 4), None),
    (lambda **o: layers.Conv3D(6, 3, **o), (2, 4, 4, 4, 1), None),
    (lambda **o: layers.Conv2DTranspose(3, 2, 2, **o), (2, 5, 7, 4), "-add"),
    (lambda **o: layers.Conv2DTranspose(3, 4, 2, padding="same", **o), (2, 5, 7, 4), "-slice"),
    (lambda **o: layers.Conv2DTranspose(3, 8, 4, padding="same", **o), (2, 2, 1, 4), "-slice"),
    (lambda **o: layers.Conv2DTranspose(3, 3, 2, padding="same", **o), (2, 5, 7, 4), "slice"),
    (lambda **o: layers.DepthwiseConv2D(3, strides=2, padding="same", **o), (2, 7, 8, 3), "-clone"),
    (lambda **o: layers.SeparableConv2D(4, 3, **o), (2, 7, 8, 3), "-clone"),
    (lambda **o: layers.MaxPooling2D(3, strides=2, padding="same", **o), (2, 7, 8, 3), "-clone"),
    (lambda **o: layers.AveragePooling2D(2, padding="same", **o), (2, 7, 8, 3), "-clone"),
    (lambda **o: layers.Dense(6, activation="relu", **o), (5, 4), "addmm"),
    (lambda **o: layers.Dense(6, activation="tanh", **o), (5, 4), "addmm"),
    (lambda **o: layers.Dense(6, use_bias=False, **o), (5, 4), None),
    (lambda **o: layers.Dense(6, **o), (5, 6, 4), None),
    (lambda **o: layers.BatchNormalization(epsilon=1e-2, **o), (4, 5, 6, 3), "native_batch_norm"),
    (lambda **o: layers.BatchNormalization(**o), (6, 3), None),
    (lambda **o: layers.BatchNormalization(axis=1, **o), (4, 3, 5, 6), None),
    (lambda **o: layers.BatchNormalization(scale=False, **o), (4, 5, 6, 3), None),
    (lambda **o: layers.BatchNormalization(center=False, **o), (4, 5, 6, 3), None),
    (lambda **o: layers.BatchNormalization(renorm=True, **o), (4, 5, 6, 3), None),
    (lambda **o: layers.BatchNormalization(**o), (1, 1, 1, 3), None),
    (lambda **o: layers.Softmax(**o), (2, 5, 7, 3), "permute"),
    (lambda **o: layers.Softmax(axis=1, **o), (2, 5, 7, 3), None),
]
IDS = [f"{number}" for number in range(len(LAYERS))]


@pytest.mark.parametrize("make, shape, operation", LAYERS, ids=IDS)
def test_layers_are_those_of_keras(make, shape, operation):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(shape, generator=generator) - 0.3
    before = inputs.clone()
    layer = make(dtype="float32")
    layer.build(shape)

    def results():
        fill(layer)
        found = outputs_and_gradients(layer, inputs)
        return found + [weight.value.detach().clone() for weight in layer.non_trainable_weights]

    ours, names = results(), operations(lambda: layer(inputs, training=True))
    with ks.faster.stock():
        theirs, of_keras = results(), operations(lambda: layer(inputs, training=True))
    assert_same(ours, theirs, rtol=1e-4, atol=1e-4)
    assert_same([inputs], [before], rtol=0, atol=0)
    if operation is None:
        assert names == of_keras
    elif operation == "slice":
        assert "slice" in names  # PyTorch cannot leave it out
    elif operation == "-clone" and keras.version() >= "3.16":
        assert names.count("clone") <= of_keras.count("clone")  # Keras 3.16 copies no image itself
    elif operation.startswith("-"):
        assert names.count(operation[1:]) < of_keras.count(operation[1:])
    else:
        assert operation in names and operation not in of_keras


DTYPES = ["float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"]
FIRST = [row for row in LAYERS if row[2] is not None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_types_give_what_they_give_in_keras(dtype):
    size = 2e-2 if "bfloat16" in dtype else 3e-3 if "float16" in dtype else 1e-5
    for make, shape, _ in FIRST:
        inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        layer = make(dtype=dtype)
        layer.build(shape)
        fill(layer)
        ours = layer(inputs, training=False)
        with ks.faster.stock():
            theirs = layer(inputs, training=False)
        assert_same([ours.detach()], [theirs.detach()], rtol=size, atol=size)


def test_a_model_trains_in_mixed_precision_as_in_keras():
    images = np.random.default_rng(0).random((2, 9, 9, 3), dtype="float32")

    def results():
        with_policy = {"dtype": "mixed_float16"}
        inputs = keras.Input((9, 9, 3))
        x = layers.Conv2D(4, 3, activation="relu", padding="same", **with_policy)(inputs)
        x = layers.BatchNormalization(**with_policy)(x)
        x = layers.Conv2DTranspose(2, 2, 2, **with_policy)(x)
        model = keras.Model(inputs, layers.Dense(3, dtype="float32")(x))
        ks.initialize(model, seed=0)
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3)), "mse")
        losses = [model.train_on_batch(images, np.ones((2, 18, 18, 3))) for _ in range(3)]
        return [torch.tensor(losses, dtype=torch.float32)]

    ours = results()
    with ks.faster.stock():
        assert_same(ours, results(), rtol=5e-3, atol=1e-4)


def test_a_frozen_layer_asks_for_no_gradient_and_keeps_its_averages():
    for kind in (lambda: layers.Conv2D(2, 3), layers.BatchNormalization):
        layer = kind()
        layer.build((None, 5, 6, 3))
        fill(layer)
        layer.trainable = False
        before = layer.get_weights()
        x = torch.rand(4, 5, 6, 3)
        outputs = layer(x, training=True)
        assert not outputs.requires_grad
        with ks.faster.stock():
            assert_same([outputs], [layer(x, training=True)], rtol=1e-4, atol=1e-5)
        for weight, value in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, value)


def test_layers_of_users_keep_their_own_parts():
    class Double(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return 2 * super().convolution_op(inputs, kernel)

    class Moments(layers.BatchNormalization):
        def _moments(self, inputs, mask):
            return torch.zeros(3), torch.ones(3)

    class Sum(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) + 1

    for layer, shape in ((Double(3, 3), (1, 4, 4, 2)), (Moments(), (2, 4, 4, 3)), (Sum(2), (2, 3))):
        layer.build(shape)
        fill(layer)
        inputs = torch.rand(shape)
        ours = layer(inputs, training=True)
        with ks.faster.stock():
            assert_same([ours], [layer(inputs, training=True)])


def test_adapted_kernels_and_stateless_weights_are_used():
    images = torch.rand(1, 4, 4, 2)
    layer = layers.Conv2D(3, 3)
    layer.build(images.shape)
    zeros = [torch.zeros(tuple(weight.shape)) for weight in layer.weights]
    outputs, _ = layer.stateless_call(zeros, [], images)
    assert not outputs.any() and layer(images).any()
    layer.enable_lora(1)
    layer.lora_kernel_b.assign(torch.ones(layer.lora_kernel_b.shape))
    ours = layer(images)
    with ks.faster.stock():
        assert_same([ours], [layer(images)])


def test_another_device_computes_nothing_here():
    x = torch.empty(2, 7, 8, 4, device="meta")
    with keras.device("meta"):
        for layer in (
            layers.Conv2D(3, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Softmax(),
            layers.MaxPooling2D(),
        ):
            outputs = layer(x, training=True)
            with ks.faster.stock():
                assert outputs.shape == layer(x, training=True).shape
            assert outputs.device.type == "meta"


def test_images_and_kernels_are_not_copied():
    images = torch.rand(2, 4, 6, 3)
    assert keras_nn._transpose_spatial_inputs(images).data_ptr() == images.data_ptr()
    for kind in (layers.Conv2D, layers.Conv2DTranspose):
        layer = kind(5, 3)
        layer.build((None, 8, 8, 4))
        values = np.random.default_rng(0).random(layer.kernel.shape, dtype="float32")
        layer.kernel.assign(values)
        kernel = layer.kernel.value
        transposed = keras_nn._transpose_conv_kernel(kernel)
        transposed = keras_nn._maybe_convert_to_channels_last(transposed)
        assert transposed.data_ptr() == kernel.data_ptr()
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), values)
        np.testing.assert_array_equal(transposed.detach(), values.transpose(3, 2, 0, 1))


def laid_out(tensor):
    return tensor.permute(3, 2, 0, 1).is_contiguous(memory_format=torch.channels_last)


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
    with ks.faster.stock():  # which saves, loads and trains them as well
        assert laid_out(kernel.value)
        model.train_on_batch(images, np.zeros((2, 180), "float32"))
        backend.save_model(model, tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert not laid_out(loaded.layers[0].kernel.value)
        np.testing.assert_allclose(
            loaded.predict(images, verbose=0), backend.infer(model, images), rtol=1e-5, atol=1e-6
        )


def test_a_parameter_of_somebody_else_stays_as_it_is():
    parameter = torch.nn.Parameter(torch.rand(2, 3, 4, 5))
    variable = keras.Variable(parameter)
    assert variable.value is parameter and parameter.is_contiguous()


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_can_be_differentiated_twice_as_in_keras(training):
    images = np.random.default_rng(1).normal(1.0, 2.0, (4, 5, 6, 3)).astype("float32")

    def results():
        layer = layers.BatchNormalization(momentum=0.7, epsilon=1e-2)
        layer.build(images.shape)
        fill(layer)
        x = torch.tensor(images, requires_grad=True)
        outputs = layer(x, training=training)
        sources = [x, *(weight.value for weight in layer.trainable_weights)]
        found = torch.autograd.grad(outputs.pow(3).sum(), sources, create_graph=True)
        second = torch.autograd.grad(found[0].pow(2).sum(), x)
        return [*found, *second, *(weight.value for weight in layer.weights)]

    ours = results()
    with ks.faster.stock():
        assert_same(ours, results(), rtol=1e-4, atol=1e-3)


def test_a_large_mean_costs_no_digits():
    """The variance of 1000 +- 0.1, which E[x^2] - E[x]^2 in float32 cannot see."""
    images = np.random.default_rng(0).normal(1000.0, 0.1, (4, 16, 16, 3)).astype("float32")
    layer = layers.BatchNormalization(momentum=0.0)
    layer(images, training=True)
    expected = images.astype("float64").var((0, 1, 2))
    np.testing.assert_allclose(layer.moving_variance.value.detach(), expected, rtol=1e-3)


def test_averages_are_forgotten_in_a_stateless_scope():
    layer = layers.BatchNormalization()
    layer.build((None, 5, 6, 3))
    before = layer.moving_mean.numpy().copy()
    with keras.StatelessScope() as scope:
        layer(torch.rand(4, 5, 6, 3), training=True)
        assert scope.get_current_value(layer.moving_mean) is not None
    np.testing.assert_array_equal(layer.moving_mean.numpy(), before)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape, axis", [((2, 5, 7, 3), 3), ((2, 5, 7, 3), None), ((4, 3), -1)])
def test_softmaxes_are_those_of_keras(name, dtype, shape, axis):
    x = torch.randn(shape).to(getattr(torch, dtype))
    softmax = getattr(keras.ops, name)
    ours = softmax(x, axis=axis)
    assert ours.is_contiguous()
    with ks.faster.stock():
        assert_same([ours], [getattr(keras.ops, name)(x, axis=axis)], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer, fewer",
    [
        (lambda: keras.optimizers.Adam(1e-2, beta_1=0.5, epsilon=1e-4), True),
        (lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1, clipnorm=0.5), True),
        (lambda: keras.optimizers.Adam(1e-2, amsgrad=True), False),
    ],
)
def test_adam_updates_as_that_of_keras(optimizer, fewer):
    generator = np.random.default_rng(0)
    start = [generator.standard_normal(shape, "float32") for shape in [(3, 3, 4, 5), (7,)]]
    gradients = [
        [torch.tensor(generator.standard_normal(w.shape, "float32")) for w in start]
        for _ in range(5)
    ]

    def after_five_steps():
        variables = [keras.Variable(values) for values in start]
        taken = optimizer()
        taken.build(variables)

        def steps():
            for grads in gradients:
                taken.apply([grad.clone() for grad in grads], variables)

        passes = operations(steps)
        return passes, [v.value.detach() for v in [*variables, *taken.variables]]

    passes, ours = after_five_steps()
    with ks.faster.stock():
        of_keras, theirs = after_five_steps()
    assert ("_foreach_lerp_" in passes) == fewer and "_foreach_lerp_" not in of_keras
    assert_same(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not np.allclose(ours[0], start[0], atol=1e-3)


def a_fast_adam(self, grads, variables, learning_rate):
    torch._foreach_addcdiv_([v.value for v in variables], grads, grads)


def transposed(inputs):
    return torch.permute(inputs, (0, 3, 1, 2))


FAST = {
    "image_layout": [(keras_nn, "_transpose_spatial_inputs", transposed)],
    "kernel_layout": [(keras_nn, "_maybe_convert_to_channels_last", lambda kernel: kernel)],
    "convolution": [
        (layers.Conv2D, "call", lambda self, x: x),
        (layers.Conv2DTranspose, "call", lambda self, x: x),
    ],
    "dense": [(layers.Dense, "call", lambda self, x: torch.addmm(x, x, x))],
    "softmax": [(keras_nn, "softmax", lambda x, axis: transposed(x).softmax(1))],
    "batch_normalization": [
        (
            layers.BatchNormalization,
            "call",
            lambda self, x, training: torch.nn.functional.batch_norm(
                transposed(x), torch.zeros(1), torch.ones(1)
            ),
        )
    ],
    "adam": [(layers_on_torch.torch_adam.Adam, "_parallel_update_step", a_fast_adam)],
}


@pytest.mark.parametrize("name", FAST)
def test_a_keras_that_is_fast_itself_is_left_alone(name, monkeypatch):
    ks.faster.remove()
    assert getattr(layers_on_torch, name)()
    for change in FAST[name]:
        monkeypatch.setattr(*change)
    with pytest.raises(NotNeeded, match="^Keras "):
        getattr(layers_on_torch, name)()


def test_where_only_one_kind_of_convolution_is_slow_only_that_is_replaced(monkeypatch):
    ks.faster.remove()
    monkeypatch.setattr(*FAST["convolution"][0])
    ((owner, attribute, _),) = layers_on_torch.convolution()
    assert (owner, attribute) == (layers_on_torch.BaseConvTranspose, "call")
