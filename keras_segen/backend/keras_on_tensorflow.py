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


def fuse_batch_normalization():
    """Lets batch normalization run as TensorFlow's own operation.

    Keras 3.15 composes it of means, squares, differences and products of the whole picture, each
    a pass over it, and as many on the way back. TensorFlow's operation computes the same in fewer,
    and in a prediction its graphs join it to the convolution before and the ReLU after it.

    Only what is usual is replaced: float32 pictures whose last axis is normalized. Where Keras no
    longer computes the moments itself, nothing is.
    """
    layer = keras.layers.BatchNormalization
    original = layer.call
    batch_norm = tf.compat.v1.nn.fused_batch_norm
    if "_moments" not in original.__code__.co_names:
        return

    @functools.wraps(original)
    def call(self, inputs, training=None, mask=None):
        usual = (
            inputs.shape.rank == 4
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
        weights = (self.gamma.value, self.beta.value)
        if not (training and self.trainable):
            averages = (self.moving_mean.value, self.moving_variance.value)
            outputs, _, _ = batch_norm(
                inputs, *weights, *averages, epsilon=self.epsilon, is_training=False
            )
            return outputs
        outputs, mean, variance = batch_norm(inputs, *weights, epsilon=self.epsilon)
        # The variance that comes back has n - 1 as divisor.
        numbers = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        variance *= (numbers - 1) / numbers
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        return outputs

    layer.call = call
