"""The DCGAN of `generation/dcgan.py` and its training, in plain TensorFlow.

The step is that of `generation/gan.py`: D learns from real and fake images, then G from the same
codes, and the generator that makes images is a moving average of G.
"""

import tensorflow as tf

from keras_segen.bench.handwritten.tensorflow_training import (
    Adam,
    Noise,
    batch_norm,
    double,
    make_variables,
    read_variables,
    trainable,
)


def generator(variables, codes, smallest, levels, training):
    """From codes `(batch, latent_dim)` to images `(batch, height, width, channels)` in [-1, 1].

    Args:
        variables: dict of `tf.Variable` by name, such as `"start/kernel"`.
        codes: float32.
        smallest: tuple `(height, width, channels)` of the picture to start with.
        levels: int, how often it is doubled.
        training: bool.
    """
    x = tf.reshape(codes @ variables["start/kernel"], (-1, *smallest))
    x = tf.nn.relu(norm(variables, x, "start_norm", training))
    for level in reversed(range(levels - 1)):
        x = double(variables, x, f"up{level}_conv")
        x = tf.nn.relu(norm(variables, x, f"up{level}_norm", training))
    x = double(variables, x, "image_conv")
    return tf.tanh(tf.nn.bias_add(x, variables["image_conv/bias"]))


def discriminator(variables, x, levels):
    """From images in [-1, 1] to scores `(batch, 1)`, as in training."""
    x = tf.nn.conv2d(x, variables["down0_conv/kernel"], 2, "SAME")
    x = tf.nn.leaky_relu(tf.nn.bias_add(x, variables["down0_conv/bias"]), 0.2)
    for level in range(1, levels):
        x = tf.nn.conv2d(x, variables[f"down{level}_conv/kernel"], 2, "SAME")
        x = tf.nn.leaky_relu(norm(variables, x, f"down{level}_norm", training=True), 0.2)
    x = tf.reshape(x, (x.shape[0], -1))
    return x @ variables["scores/kernel"] + variables["scores/bias"]


def norm(variables, x, name, training):
    return batch_norm(variables, x, name, training, epsilon=1e-5)


class Trainer:
    """G, D and the average of G, two optimizers and the loop.

    Args:
        weights: arrays by name, such as `"generator/start/kernel"`; the parts are `generator`,
            `discriminator` and `average`.
        image_shape: tuple `(height, width, channels)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints.
        learning_rate: float.
        epsilon: float, Adam's.
        average: float, how much of the averaged generator stays in each step.
        draw: `callable(step, batch) -> codes`, float32 `(batch, latent_dim)`, NumPy; None for
            TensorFlow's own.
    """

    def __init__(
        self, weights, image_shape, latent_dim, filters, learning_rate, epsilon, average, draw=None
    ):
        self.generator = make_variables(weights, prefix="generator/")
        self.discriminator = make_variables(weights, prefix="discriminator/")
        self.average = make_variables(weights, prefix="average/")
        self.trainable_g = trainable(self.generator)
        self.trainable_d = trainable(self.discriminator)
        self.optimizer_g = Adam(self.trainable_g, learning_rate, epsilon, beta_1=0.5)
        self.optimizer_d = Adam(self.trainable_d, learning_rate, epsilon, beta_1=0.5)
        self.levels = len(filters)
        height, width, _ = image_shape
        self.smallest = (height >> self.levels, width >> self.levels, filters[-1])
        self.codes = Noise(latent_dim, draw)
        self.keep = average

    @tf.function
    def step(self, images, codes):
        real = 2 * images - 1
        with tf.GradientTape() as tape_g:
            fake = generator(self.generator, codes, self.smallest, self.levels, training=True)

            # D: high scores for real images, low ones for fakes. softplus(-s) is the binary
            # cross-entropy of a score s that should be high, softplus(s) of one that should not.
            with tape_g.stop_recording(), tf.GradientTape() as tape_d:
                real_loss = tf.nn.softplus(-discriminator(self.discriminator, real, self.levels))
                fake_loss = tf.nn.softplus(discriminator(self.discriminator, fake, self.levels))
                d_loss = tf.reduce_mean(real_loss) + tf.reduce_mean(fake_loss)
            with tape_g.stop_recording():
                self.optimizer_d.apply(tape_d.gradient(d_loss, self.trainable_d))

            # G: images that the current D scores high.
            scores = discriminator(self.discriminator, fake, self.levels)
            g_loss = tf.reduce_mean(tf.nn.softplus(-scores))
        self.optimizer_g.apply(tape_g.gradient(g_loss, self.trainable_g))
        self.move_average()
        return d_loss, g_loss

    def move_average(self):
        """Moves the averaged generator a little toward G; faster during the first steps."""
        step = self.optimizer_g.step  # this one included
        keep = tf.minimum(self.keep, (step - 1) / (step + 9))
        for name, average in self.average.items():
            average.assign_sub((1 - keep) * (average - self.generator[name]))

    @tf.function
    def generate(self, codes):
        images = generator(self.average, codes, self.smallest, self.levels, training=False)
        return (images + 1) / 2

    def train(self, batches):
        """Takes one step of D and one of G per batch.

        Args:
            batches: iterable of `(images, …)`: float32 `(batch, height, width, channels)` in
                [0, 1], NumPy; labels are not used.

        Yields:
            The loss of D and the loss of G of each step, a tuple of two tensors.
        """
        for images, *_ in batches:
            yield self.step(tf.constant(images), self.codes(len(images)))

    def predict(self, codes):
        """Decodes codes to images in [0, 1]: NumPy to NumPy."""
        return self.generate(tf.constant(codes)).numpy()

    def weights(self):
        """Returns the weights of G and of its average by name.

        Not those of D: its running averages, which no score in training depends on, also move
        in G's turn here.
        """
        generator = read_variables(self.generator, prefix="generator/")
        return generator | read_variables(self.average, prefix="average/")
