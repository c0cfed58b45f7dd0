"""The VAE of `generation/vae.py`, with a Bernoulli decoder, and its training, in TensorFlow."""

import tensorflow as tf

from keras_segen.bench.handwritten.tensorflow_training import (
    Adam,
    Noise,
    double,
    make_variables,
    read_variables,
    trainable,
)


def encoder(variables, x, levels):
    """From images `(batch, height, width, channels)` in [-1, 1] to mean and log variance."""
    for level in range(levels):
        x = tf.nn.conv2d(x, variables[f"down{level}/kernel"], 2, "SAME")
        x = tf.nn.silu(tf.nn.bias_add(x, variables[f"down{level}/bias"]))
    x = tf.reshape(x, (x.shape[0], -1))
    return dense(variables, x, "mean"), dense(variables, x, "log_variance")


def decoder(variables, codes, smallest, levels):
    """From codes `(batch, latent_dim)` to logits `(batch, height, width, channels)`."""
    x = tf.nn.silu(dense(variables, codes, "start"))
    x = tf.reshape(x, (-1, *smallest))
    for level in reversed(range(levels)):
        x = double(variables, x, f"up{level}")
        x = tf.nn.silu(tf.nn.bias_add(x, variables[f"up{level}/bias"]))
    x = tf.nn.conv2d(x, variables["images/kernel"], 1, "SAME")
    return tf.nn.bias_add(x, variables["images/bias"])


def dense(variables, x, name):
    return x @ variables[f"{name}/kernel"] + variables[f"{name}/bias"]


class Trainer:
    """A VAE, its optimizer and the loop.

    Args:
        weights: arrays by name, such as `"down0/kernel"`.
        image_shape: tuple `(height, width, channels)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints.
        learning_rate: float.
        epsilon: float, Adam's.
        draw: `callable(step, batch) -> noise`, float32 `(batch, latent_dim)`, NumPy; None for
            TensorFlow's own.
    """

    def __init__(
        self, weights, image_shape, latent_dim, filters, learning_rate, epsilon, draw=None
    ):
        self.variables = make_variables(weights)
        self.trainable = trainable(self.variables)
        self.optimizer = Adam(self.trainable, learning_rate, epsilon)
        self.levels = len(filters)
        height, width, _ = image_shape
        self.smallest = (height >> self.levels, width >> self.levels, filters[-1])
        self.noise = Noise(latent_dim, draw)

    @tf.function
    def step(self, images, noise):
        with tf.GradientTape() as tape:
            mean, log_variance = encoder(self.variables, 2 * images - 1, self.levels)
            codes = mean + tf.exp(log_variance / 2) * noise
            logits = decoder(self.variables, codes, self.smallest, self.levels)

            # The reconstruction error, and the KL divergence of the codes from N(0, 1).
            losses = tf.nn.sigmoid_cross_entropy_with_logits(images, logits)
            divergence = tf.square(mean) + tf.exp(log_variance) - 1 - log_variance
            loss = (tf.reduce_sum(losses) + tf.reduce_sum(divergence) / 2) / images.shape[0]
        self.optimizer.apply(tape.gradient(loss, self.trainable))
        return loss

    @tf.function
    def reconstruct(self, images):
        mean, _ = encoder(self.variables, 2 * images - 1, self.levels)
        return tf.sigmoid(decoder(self.variables, mean, self.smallest, self.levels))

    def train(self, batches):
        """Takes one step per batch.

        Args:
            batches: iterable of `(images, …)`: float32 `(batch, height, width, channels)` in
                [0, 1], NumPy; labels are not used.

        Yields:
            The loss of each step, the negative bound in nats, a tuple of one tensor.
        """
        for images, *_ in batches:
            yield (self.step(tf.constant(images), self.noise(len(images))),)

    def predict(self, images):
        """Encodes images in [0, 1] and decodes their mean codes: NumPy to NumPy."""
        return self.reconstruct(tf.constant(images)).numpy()

    def weights(self):
        """Returns the weights by name."""
        return read_variables(self.variables)
