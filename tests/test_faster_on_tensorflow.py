"""What the seam changes in Keras on TensorFlow."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_segen as ks

if keras.backend.backend() != "tensorflow":
    pytest.skip("on TensorFlow only", allow_module_level=True)

import tensorflow as tf

from keras_segen.backend.faster import on_tensorflow


def operations(call, shape):
    """The kinds of operations in the graph of a call."""
    graph = tf.function(call).get_concrete_function(tf.TensorSpec(shape, tf.float32)).graph
    return {operation.type for operation in graph.get_operations()}


FUSED = "FusedBatchNormV3"


def test_the_installed_keras_still_composes_batch_normalization():
    """When this fails, `on_tensorflow.fuse_batch_normalization` can be deleted."""
    layer = normalization()
    original = layers.BatchNormalization.call.__wrapped__
    found = operations(lambda x: original(layer, x, training=False), (2, 5, 6, 3))
    assert FUSED not in found


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

    def results(call):
        layer = normalization()

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

    original = layers.BatchNormalization.call.__wrapped__
    names, ours = results(lambda layer, x: layer(x, training=False))
    assert FUSED in names
    _, theirs = results(lambda layer, x: original(layer, x, training=False))
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


def test_a_keras_without_moments_of_its_own_is_left_alone(monkeypatch):
    def call(self, inputs, training=None, mask=None):
        return inputs

    monkeypatch.setattr(layers.BatchNormalization, "call", call)
    on_tensorflow.fuse_batch_normalization()
    assert layers.BatchNormalization.call is call


ADAM = "ResourceApplyAdam"


def updates(optimizer, model, gradients=None, strategy=None):
    """The kinds of all operations in the graph of a step of an optimizer."""
    variables = model.trainable_variables
    if gradients is None:
        gradients = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    optimizer.build(variables)

    def step():
        optimizer.apply(gradients, variables)

    def run():
        if strategy is None:
            step()
        else:
            strategy.run(step)

    graph = tf.function(run).get_concrete_function().graph.as_graph_def()
    inside = [node for function in graph.library.function for node in function.node_def]
    return [node.op for node in [*graph.node, *inside]]


def dense(dtype="float32"):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, dtype=dtype)])
    ks.initialize(model, seed=0)
    return model


def test_the_installed_keras_still_composes_adam(monkeypatch):
    """When this fails, `on_tensorflow.update_as_adam_at_once` can be deleted."""
    adam = keras.optimizers.Adam
    assert ADAM in updates(adam(), dense())
    monkeypatch.setattr(adam, "update_step", adam.update_step.__wrapped__)
    assert ADAM not in updates(adam(), dense())


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
def test_adam_updates_as_that_of_keras(make, eager, monkeypatch):
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
    adam = keras.optimizers.Adam
    monkeypatch.setattr(adam, "update_step", adam.update_step.__wrapped__)
    for found, expected in zip(ours, results(), strict=True):
        # With 1 - beta_2 in float32, 1e-5 of it off; the steps are of 0.1.
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-5)


def test_an_unusual_adam_is_left_to_keras():
    adam = keras.optimizers.Adam
    assert ADAM not in updates(adam(amsgrad=True), dense())
    assert ADAM not in updates(adam(), dense("float64"))
    rows = tf.IndexedSlices(tf.zeros((1, 4)), tf.constant([2]), tf.constant([3, 4]))
    model = dense()
    assert updates(adam(), model, [rows, tf.zeros(4)]).count(ADAM) == 1  # the bias'
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        assert ADAM not in updates(adam(), dense(), strategy=strategy)


def test_an_adam_of_another_keras_is_left_alone(monkeypatch):
    def update_step(self, gradient, variable, learning_rate):
        pass

    monkeypatch.setattr(keras.optimizers.Adam, "update_step", update_step)
    on_tensorflow.update_as_adam_at_once()
    assert keras.optimizers.Adam.update_step is update_step
