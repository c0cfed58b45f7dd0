"""Where Keras on TensorFlow takes the long way: the same results, found faster.

See `keras_on_torch.py`: the same on PyTorch, where there is more of it.
tests/test_keras_on_tensorflow.py holds the results to those of Keras as it is.
"""

import functools

import keras
import tensorflow as tf

LEAST_EPSILON = 1.001e-5  # TensorFlow's operation takes no smaller one


def speed_up():
    """Replaces all of it, once."""
    fuse_batch_normalization()
    update_as_adam_at_once()


def fuse_batch_normalization():
    """Lets batch normalization of a prediction run as TensorFlow's own operation.

    Keras 3.15 composes it of differences, quotients and products of the whole picture, each a pass
    over it. TensorFlow's operation is one, which its graphs join to the convolution before and the
    ReLU after it.

    In training it stays Keras': TensorFlow's operation would be faster there as well, but sums in
    another way, and after 20 steps the loss is further from that on PyTorch.

    Only what is usual is replaced: float32 pictures whose last axis is normalized. Where Keras no
    longer computes the moments itself, nothing is.
    """
    layer = keras.layers.BatchNormalization
    original = layer.call
    if "_moments" not in original.__code__.co_names:
        return

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
        outputs, _, _ = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma.value,
            self.beta.value,
            self.moving_mean.value,
            self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=False,
        )
        return outputs

    layer.call = call


def update_as_adam_at_once():
    """Lets Adam and AdamW update a weight by TensorFlow's own operation.

    Keras 3.15 composes the update of a dozen sums, products and quotients, each a pass over the
    weight or one of its moments; TensorFlow's operation is one pass over all three. The values are
    the same but for `1 - beta_2`, which it takes in float32, 1e-5 of it off.

    Sparse gradients, other types than float32, `amsgrad` and distribution are left to Keras, as is
    all of it where Keras no longer composes it.
    """
    optimizer = keras.optimizers.Adam
    original = optimizer.update_step
    if "assign_add" not in original.__code__.co_names:
        return

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

    optimizer.update_step = update_step
