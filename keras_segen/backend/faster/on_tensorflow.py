"""Where Keras on TensorFlow takes the long way: the same results, found faster."""

import functools

import keras
import tensorflow as tf

from keras_segen.backend.faster.probe import NotNeeded

LEAST_EPSILON = 1.001e-5  # TensorFlow's operation takes no smaller one


def operations(function, *signature):
    """The kinds of operations in the graph of a call: set of str, such as `"MatMul"`."""
    graph = tf.function(function, autograph=False).get_concrete_function(*signature).graph
    inside = [node for called in graph.as_graph_def().library.function for node in called.node_def]
    return {operation.type for operation in graph.get_operations()} | {node.op for node in inside}


def batch_normalization():
    """Keras composes batch normalization of several passes over the picture, in predictions too.

    TensorFlow's operation is one, which its graphs join to the convolution before and the ReLU
    after it. In training it stays Keras': TensorFlow's operation would be faster there as well,
    but sums in another way, and after 20 steps the loss is further from that on PyTorch.

    Only what is usual is replaced: float32 pictures whose last axis is normalized.
    """
    layer = keras.layers.BatchNormalization(name="probe", dtype="float32")
    layer.build((None, 2, 2, 1))
    pictures = tf.TensorSpec((1, 2, 2, 1), tf.float32)
    found = operations(lambda x: layer.call(x, training=False), pictures)
    if any("BatchNorm" in name for name in found):
        raise NotNeeded("Keras normalizes in one operation")
    original = keras.layers.BatchNormalization.call

    @functools.wraps(original)
    def call(self, inputs, training=None, mask=None):
        usual = (
            not (training and self.trainable)
            and inputs.shape.rank == 4
            and inputs.dtype == tf.float32
            and self.axis in (-1, 3)
            and self.epsilon >= LEAST_EPSILON
            and self.scale
            and self.center
            and mask is None
            and not self.renorm
            and not self.synchronized
        )
        if not usual:
            return original(self, inputs, training=training, mask=mask)
        weights = self.gamma, self.beta, self.moving_mean, self.moving_variance
        outputs, _, _ = tf.compat.v1.nn.fused_batch_norm(
            inputs, *(each.value for each in weights), epsilon=self.epsilon, is_training=False
        )
        return outputs

    return [(keras.layers.BatchNormalization, "call", call)]


def adam():
    """Keras updates a weight as Adam and AdamW do in a dozen passes over it and its moments.

    TensorFlow's operation is one pass over all three. The values are the same but for
    `1 - beta_2`, which it takes in float32, 1e-5 of it off.

    Sparse gradients, other types than float32, `amsgrad` and distribution are left to Keras.
    """
    variable = keras.Variable([1.0], name="probe", dtype="float32")
    optimizer = keras.optimizers.Adam(name="probe")
    optimizer.build([variable])
    gradient = tf.TensorSpec((1,), tf.float32)
    found = operations(lambda g: optimizer.update_step(g, variable.value, 0.0), gradient)
    if any("ApplyAdam" in name for name in found):
        raise NotNeeded("Keras updates in one operation")
    original = keras.optimizers.Adam.update_step

    @functools.wraps(original)
    def update_step(self, gradient, variable, learning_rate):
        usual = (
            not self.amsgrad
            and isinstance(gradient, tf.Tensor)
            and isinstance(variable, tf.Variable)
            and gradient.dtype == variable.dtype == tf.float32
            and not tf.distribute.has_strategy()
        )
        if not usual:
            return original(self, gradient, variable, learning_rate)
        place = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].value.handle,
            v=self._velocities[place].value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )

    return [(keras.optimizers.Adam, "update_step", update_step)]
