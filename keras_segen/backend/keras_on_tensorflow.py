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
