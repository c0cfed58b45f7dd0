"""The U-Net of `segmentation/unet.py` and its training, in plain TensorFlow.

A function of variables and images takes the place of the functional model, and a step compiled
by `tf.function` with a `GradientTape` in it that of `fit`.
"""

import tensorflow as tf

from keras_segen.bench.handwritten.tensorflow_training import (
    Adam,
    batch_norm,
    double,
    make_variables,
    read_variables,
    trainable,
)


def unet(variables, x, levels, training):
    """From images `(batch, height, width, channels)` to logits `(batch, height, width, classes)`.

    Args:
        variables: dict of `tf.Variable` by name, such as `"down0_conv1/kernel"`.
        x: float32, the images.
        levels: int, how often the images are halved.
        training: bool.
    """
    skips = []
    for level in range(levels):
        x = double_conv(variables, x, f"down{level}", training)
        skips.append(x)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    x = double_conv(variables, x, "bottom", training)
    for level in reversed(range(levels)):
        x = double(variables, x, f"up{level}_upconv")
        x = tf.nn.bias_add(x, variables[f"up{level}_upconv/bias"])
        x = tf.concat([skips[level], x], axis=-1)
        x = double_conv(variables, x, f"up{level}", training)
    x = tf.nn.conv2d(x, variables["logits/kernel"], 1, "SAME")
    return tf.nn.bias_add(x, variables["logits/bias"])


def double_conv(variables, x, name, training):
    """Twice: 3x3 convolution, batch normalization, ReLU."""
    for i in (1, 2):
        x = tf.nn.conv2d(x, variables[f"{name}_conv{i}/kernel"], 1, "SAME")
        x = tf.nn.relu(batch_norm(variables, x, f"{name}_norm{i}", training))
    return x


class Trainer:
    """A U-Net, its optimizer and the loop.

    Args:
        weights: arrays by name, such as `"down0_conv1/kernel"`.
        channels: int, channels of the images.
        num_classes: int.
        filters: tuple of ints.
        learning_rate: float.
        epsilon: float, Adam's.
        ignore_class: int or None, the label of the pixels that are left out.
    """

    fixed = ()  # weights that no gradient moves

    def __init__(
        self, weights, channels, num_classes, filters, learning_rate, epsilon, ignore_class=None
    ):
        self.variables = make_variables(weights)
        self.trainable = trainable(self.variables, self.fixed)
        self.optimizer = Adam(self.trainable, learning_rate, epsilon)
        self.filters = filters
        self.ignore_class = ignore_class

    def network(self, images, training):
        return unet(self.variables, images, len(self.filters) - 1, training)

    @tf.function
    def step(self, images, masks):
        with tf.GradientTape() as tape:
            logits = self.network(images, training=True)
            if self.ignore_class is not None:
                valid = masks != self.ignore_class
                logits, masks = logits[valid], masks[valid]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(masks, logits)
            loss = tf.reduce_mean(losses)
        self.optimizer.apply(tape.gradient(loss, self.trainable))
        return loss

    @tf.function
    def infer(self, images):
        return self.network(images, training=False)

    def train(self, batches):
        """Takes one step per batch.

        Args:
            batches: iterable of `(images, masks)`: float32 `(batch, height, width, channels)` and
                int32 `(batch, height, width)`, NumPy.

        Yields:
            The loss of each step, a tuple of one tensor.
        """
        for images, masks in batches:
            yield (self.step(tf.constant(images), tf.constant(masks)),)

    def predict(self, images):
        """Returns the logits of images, `(batch, height, width, classes)`: NumPy to NumPy."""
        return self.infer(tf.constant(images)).numpy()

    def weights(self):
        """Returns the weights by name."""
        return read_variables(self.variables)
