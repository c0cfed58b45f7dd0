"""Layers and optimizers of Keras on TensorFlow, once they are made faster."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_segen as ks

if keras.backend.backend() != "tensorflow":
    pytest.skip("on TensorFlow only", allow_module_level=True)

import tensorflow as tf

from keras_segen.backend.faster import on_tensorflow
from keras_segen.backend.faster.probe import NotNeeded


@pytest.fixture(autouse=True)
def faster():
    ks.faster.apply()
    yield
    ks.faster.remove()


def operations(call, shape, dtype="float32"):
    return on_tensorflow.operations(call, tf.TensorSpec(shape, dtype))


FUSED = "FusedBatchNormV3"


def normalization(**options):
    layer = layers.BatchNormalization(momentum=0.7, epsilon=1e-2, **options)
    layer.build((None, 5, 6, 3))
    generator = np.random.default_rng(0)
    for weight in layer.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return layer


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (None, None, None, 3)])
def test_batch_normalization_is_one_operation_with_keras_results(shape, compiled):
    images = np.random.default_rng(1).normal(1.0, 2.0, (4, 5, 6, 3)).astype("float32")

    def results():
        layer = normalization()

        def call(layer, x):
            return layer(x, training=False)

        def run(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    outputs = call(layer, x)
                    loss = tf.reduce_sum(outputs**3)
                sources = [x, *(weight.value for weight in layer.trainable_weights)]
                gradient, *found = tape.gradient(loss, sources)
                penalty = tf.reduce_sum(gradient**2)
            return [outputs, gradient, *found, outer.gradient(penalty, x)]

        if compiled:
            run = tf.function(run, input_signature=[tf.TensorSpec(shape, tf.float32)])
        found = run(tf.constant(images))
        return operations(lambda x: call(layer, x), shape), found + layer.get_weights()

    names, ours = results()
    with ks.faster.stock():
        of_keras, theirs = results()
    assert FUSED in names and FUSED not in of_keras
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_batch_normalization_keeps_its_averages():
    layer = normalization()
    layer.trainable = False
    before = layer.get_weights()
    x = tf.random.stateless_uniform((4, 5, 6, 3), (0, 1))
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False))
    for weight, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_training_is_left_to_keras():
    layer = normalization()
    assert FUSED not in operations(lambda x: layer(x, training=True), (4, 5, 6, 3))


@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (6, 3)),
        ({"axis": 1}, (4, 3, 5, 6)),
        ({"scale": False}, (4, 5, 6, 3)),
        ({"center": False}, (4, 5, 6, 3)),
        ({"renorm": True}, (4, 5, 6, 3)),
        ({"epsilon": 1e-6}, (4, 5, 6, 3)),
        ({"dtype": "float64"}, (4, 5, 6, 3)),
        ({"dtype": "mixed_float16"}, (4, 5, 6, 3)),
    ],
)
def test_unusual_batch_normalization_is_left_to_keras(options, shape):
    layer = layers.BatchNormalization(**options)
    layer.build((None, *shape[1:]))
    assert FUSED not in operations(lambda x: layer(x, training=False), shape)


ADAM = "ResourceApplyAdam"


def updates(optimizer, model, gradients=None, strategy=None):
    """The kinds of all operations in the graph of a step of an optimizer."""
    variables = model.trainable_variables
    if gradients is None:
        gradients = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    optimizer.build(variables)

    def step():
        optimizer.apply(gradients, variables)

    return on_tensorflow.operations(step if strategy is None else lambda: strategy.run(step))


def dense(dtype="float32"):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, dtype=dtype)])
    ks.initialize(model, seed=0)
    return model


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.1, beta_1=0.5, beta_2=0.9, epsilon=1e-3),
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
        lambda: keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5, clipnorm=0.5),
        lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 4)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
    ],
)
def test_adam_updates_as_that_of_keras(make, eager):
    generator = np.random.default_rng(0)
    gradients = [[generator.normal(size=s) for s in ((3, 4), (4,))] for _ in range(5)]

    def results():
        model, optimizer = dense(), make()
        optimizer.build(model.trainable_variables)

        def step(*found):
            optimizer.apply(list(found), model.trainable_variables)

        step = step if eager else tf.function(step)
        for found in gradients:
            step(*(tf.constant(gradient, tf.float32) for gradient in found))
        return [*model.get_weights(), *(v.numpy() for v in optimizer.variables)]

    ours = results()
    with ks.faster.stock():
        theirs = results()
    for found, expected in zip(ours, theirs, strict=True):
        # With 1 - beta_2 in float32, 1e-5 of it off; the steps are of 0.1.
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-5)


def test_an_unusual_adam_is_left_to_keras():
    adam = keras.optimizers.Adam
    assert ADAM in updates(adam(), dense())
    assert ADAM not in updates(adam(amsgrad=True), dense())
    assert ADAM not in updates(adam(), dense("float64"))
    rows = tf.IndexedSlices(tf.zeros((1, 4)), tf.constant([2]), tf.constant([3, 4]))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, use_bias=False)])
    assert ADAM not in updates(adam(), model, [rows])
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        assert ADAM not in updates(adam(), dense(), strategy=strategy)


def test_a_model_compiled_by_xla_predicts_as_in_keras():
    images = np.random.default_rng(0).random((2, 5, 6, 3), dtype="float32")

    def prediction():
        inputs = keras.Input((5, 6, 3))
        x = layers.Conv2D(4, 3, activation="relu")(inputs)
        model = keras.Model(inputs, layers.BatchNormalization()(x))
        ks.initialize(model, seed=0)
        model.compile(jit_compile=True)
        return model.predict(images, verbose=0)

    ours = prediction()
    with ks.faster.stock():
        np.testing.assert_allclose(ours, prediction(), rtol=1e-5, atol=1e-6)


def test_a_saved_model_predicts_as_in_keras(tmp_path):
    inputs = keras.Input((5, 6, 3))
    model = keras.Model(inputs, layers.BatchNormalization()(inputs))
    model.export(tmp_path / "model", verbose=False)
    images = tf.random.stateless_uniform((2, 5, 6, 3), (0, 1))
    saved = tf.saved_model.load(tmp_path / "model")
    found = saved.serve(images)
    with ks.faster.stock():
        np.testing.assert_allclose(found, model(images, training=False), rtol=1e-5, atol=1e-6)


def test_layers_and_optimizers_of_users_keep_their_own_parts():
    class Own(layers.BatchNormalization):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training) + 1

    layer = Own()
    layer.build((None, 5, 6, 3))
    images = tf.random.stateless_uniform((2, 5, 6, 3), (0, 1))
    ours = layer(images, training=False)
    with ks.faster.stock():
        np.testing.assert_allclose(ours, layer(images, training=False), rtol=1e-5, atol=1e-6)

    class Still(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            pass

    assert ADAM not in updates(Still(), dense())


def fused(self, x, training):
    return tf.compat.v1.nn.fused_batch_norm(x, [1.0], [0.0], [0.0], [1.0], is_training=False)[0]


def at_once(self, gradient, variable, learning_rate):
    ones = dict.fromkeys(("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon"), 1.0)
    place = {"var": variable.handle, "m": variable.handle, "v": variable.handle}
    tf.raw_ops.ResourceApplyAdam(grad=gradient, **place, **ones)


@pytest.mark.parametrize(
    "name, fast",
    [
        ("batch_normalization", (layers.BatchNormalization, "call", fused)),
        ("adam", (keras.optimizers.Adam, "update_step", at_once)),
    ],
)
def test_a_keras_that_is_fast_itself_is_left_alone(name, fast, monkeypatch):
    ks.faster.remove()
    assert getattr(on_tensorflow, name)()
    monkeypatch.setattr(*fast)
    with pytest.raises(NotNeeded, match="^Keras "):
        getattr(on_tensorflow, name)()
