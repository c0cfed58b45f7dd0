"""How a generator G and a discriminator D are trained: losses, penalties, and their optimizers.

D gives each image a score: high for real, low for fake. Scores are logits, float32 `(batch, 1)`;
`real` and `fake` are the scores of real and of generated images.
"""

import dataclasses
from typing import ClassVar

import keras
from keras import ops

from keras_segen import backend, choices
from keras_segen.generation import noise


def non_saturating_d(real, fake, smoothing):
    targets = 1 - smoothing
    real_loss = targets * ops.softplus(-real) + smoothing * ops.softplus(real)
    return ops.mean(real_loss) + ops.mean(ops.softplus(fake))


def non_saturating_g(fake):
    return ops.mean(ops.softplus(-fake))


def hinge_d(real, fake, smoothing):
    return ops.mean(ops.relu(1 - real)) + ops.mean(ops.relu(1 + fake))


def least_squares_d(real, fake, smoothing):
    return (ops.mean(ops.square(real - 1 + smoothing)) + ops.mean(ops.square(fake))) / 2


def least_squares_g(fake):
    return ops.mean(ops.square(fake - 1)) / 2


def wasserstein_d(real, fake, smoothing):
    return ops.mean(fake) - ops.mean(real)


def raise_scores(fake):
    return -ops.mean(fake)


# The loss of D, the loss of G, and the score above which an image counts as real.
#   non_saturating  Goodfellow et al. (2014), https://arxiv.org/abs/1406.2661: binary
#                   cross-entropy; G maximizes log D(fake) instead of minimizing log(1 - D(fake)).
#   hinge           Lim, Ye (2017), https://arxiv.org/abs/1705.02894.
#   least_squares   Mao et al. (2017), https://arxiv.org/abs/1611.04076, with targets 0, 1, 1.
#   wasserstein     Arjovsky et al. (2017), https://arxiv.org/abs/1701.07875: no score means
#                   "real"; the difference of the means estimates the distance between real and
#                   fake images, if the penalty keeps D's slope at 1.
LOSSES = {
    "non_saturating": (non_saturating_d, non_saturating_g, 0.0),
    "hinge": (hinge_d, raise_scores, 0.0),
    "least_squares": (least_squares_d, least_squares_g, 0.5),
    "wasserstein": (wasserstein_d, raise_scores, None),
}
SMOOTHED = choices.SMOOTHED_GAN_LOSSES


class Lazy:
    """A penalty that is due in every n-th step only, `every`, with n times its `weight`."""

    def __post_init__(self):
        if not self.weight >= 0 or self.every < 1:
            raise ValueError(
                f"Expected {self.NAME} of at least 0, in every step or fewer; found {self}."
            )

    @property
    def share_of_losses(self):
        """The share of steps on the losses, if the penalty has steps of its own."""
        return self.every / (self.every + 1) if self.weight else 1.0

    def when_due(self, step, take):
        """What `take` returns, a number, in the steps when the penalty is due; else 0."""
        return ops.cond(step % self.every == 0, take, lambda: ops.zeros(()))


@dataclasses.dataclass(frozen=True)
class R1(Lazy):
    """Keeps the scores flat at real images: half the squared length of D's gradient there.

    Reference: Mescheder, Geiger, Nowozin (2018), "Which training methods for GANs do actually
    converge?", https://arxiv.org/abs/1801.04406. Lazily: Karras et al. (2020), "Analyzing and
    improving the image quality of StyleGAN", https://arxiv.org/abs/1912.04958.

    Args:
        weight: float, gamma of the paper; 0 for no penalty.
        every: int, n to compute the penalty in every n-th step only, with n times the weight.

    Raises:
        ValueError: when a number is out of range.
    """

    NAME: ClassVar[str] = "r1"
    weight: float
    every: int = 1

    def __call__(self, discriminate, images, step):
        """Scores real images: scores `(batch, 1)`, and the penalty times its weight.

        Args:
            discriminate: callable from images to scores `(batch, 1)`.
            images: float32 `(batch, …)`.
            step: integer, a number or a tensor: the steps of D so far.
        """
        if not self.weight:
            return discriminate(images), 0.0

        def with_penalty():
            return self.penalty(discriminate, images)

        def without_penalty():
            return discriminate(images), ops.zeros(())

        if self.every == 1:
            return with_penalty()
        return ops.cond(step % self.every == 0, with_penalty, without_penalty)

    def penalty(self, discriminate, images):
        """As the call, in a step when the penalty is due."""
        scores, gradient = backend.input_gradient(discriminate, images)
        r1 = ops.mean(_squared_lengths(gradient)) / 2
        return scores, self.weight * self.every * r1


@dataclasses.dataclass(frozen=True)
class GradientPenalty:
    """Keeps the slope of the scores near 1 between real and fake images.

    The penalty is the squared difference between the length of the gradient and 1, at one image
    on the line from each real image to a fake one.

    Reference: Gulrajani et al. (2017), "Improved training of Wasserstein GANs",
    https://arxiv.org/abs/1704.00028

    Args:
        weight: float, lambda of the paper; 0 for no penalty.
        seed: int, for the random places on the lines.

    Raises:
        ValueError: when the weight is below 0.
    """

    weight: float
    seed: int = 0

    def __post_init__(self):
        if not self.weight >= 0:
            raise ValueError(f"Expected a gradient_penalty of at least 0; found {self}.")

    def __call__(self, discriminate, real, fake, step):
        """The penalty times its weight; `real` and `fake` are float32 `(batch, …)`."""
        if not self.weight:
            return 0.0
        key = ("mixture of real and fake", self.seed)
        mixture = noise.uniform(key, step, (ops.shape(real)[0], 1))
        mixture = ops.reshape(ops.cast(mixture, real.dtype), (-1,) + (1,) * (len(real.shape) - 1))
        between = mixture * real + (1 - mixture) * fake
        _, gradient = backend.input_gradient(discriminate, between)
        # The root of 0 has no derivative.
        lengths = ops.sqrt(_squared_lengths(gradient) + 1e-12)
        return self.weight * ops.mean(ops.square(lengths - 1))


@dataclasses.dataclass(frozen=True)
class PathLength(Lazy):
    """Keeps a step in a style equally long in the image, whatever the style and the direction.

    The penalty is the squared difference between the length of the gradient, by the style, of an
    image in a random direction, and the mean of these lengths so far.

    Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN",
    https://arxiv.org/abs/1912.04958

    Args:
        weight: float; 0 for no penalty.
        every: int, n to compute the penalty in every n-th step only, with n times the weight.

    Raises:
        ValueError: when a number is out of range.
    """

    NAME: ClassVar[str] = "path_length"
    weight: float
    every: int = 1

    def penalty(self, synthesize, styles, directions, mean):
        """The penalty times its weight, and the mean that includes these lengths.

        Args:
            synthesize: callable from styles to images `(batch, height, width, channels)`.
            styles: float `(batch, layers, latent_dim)`; learns, together with what made it.
            directions: standard normal `(batch, height, width, channels)`.
            mean: float, a tensor without dimensions: the mean so far.
        """
        height, width = directions.shape[1:3]

        def along(styles):
            images = ops.cast(synthesize(styles), directions.dtype)
            return ops.sum(images * directions, axis=(1, 2, 3)) / (height * width) ** 0.5

        brightness, gradient = backend.slope_at(along, styles)
        # The length of a layer's gradient, squared, is their mean over the layers.
        squares = _squared_lengths(gradient) / styles.shape[1]
        lengths = ops.sqrt(squares + 1e-12)  # the root of 0 has no derivative
        mean = mean + 0.01 * (ops.mean(lengths) - mean)
        penalty = ops.mean(ops.square(lengths - mean))
        # Nothing, for the biases that no length depends on: they, too, get a gradient.
        return self.weight * self.every * penalty + 0 * ops.mean(brightness), mean


def _squared_lengths(x):
    if keras.backend.standardize_dtype(x.dtype) != "float64":
        x = ops.cast(x, "float32")
    return ops.sum(ops.square(x), axis=tuple(range(1, len(x.shape))))


class TwoOptimizers(keras.optimizers.Optimizer):
    """The optimizers of G and of D in one object, since a Keras model has one optimizer.

    Args:
        generator, discriminator: `keras.optimizers.Optimizer`.
        generator_variables: list of `keras.Variable`, which `generator` updates.
        discriminator_variables: list of `keras.Variable`, which `discriminator` updates.

    Attributes:
        learning_rate: that of the generator. Setting it, as callbacks do, changes that of the
            discriminator by the same factor.
        iterations: the steps of the discriminator, which learns from every batch.
    """

    def __init__(self, generator, discriminator, generator_variables, discriminator_variables):
        super().__init__(learning_rate=0.0, name="two_optimizers")
        self.generator = generator
        self.discriminator = discriminator
        self._players = [(generator, generator_variables), (discriminator, discriminator_variables)]
        for optimizer, variables in self._players:
            if not optimizer.built:
                optimizer.build(variables)
        self.built = True

    @property
    def variables(self):
        return [*self.generator.variables, *self.discriminator.variables]

    @property
    def iterations(self):
        return self.discriminator.iterations

    @property
    def learning_rate(self):
        return self.generator.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        before = float(ops.convert_to_numpy(self.generator.learning_rate))
        other = float(ops.convert_to_numpy(self.discriminator.learning_rate))
        self.generator.learning_rate = value
        self.discriminator.learning_rate = other * value / before if before else value

    def finalize_variable_values(self, var_list):
        for optimizer, variables in self._players:
            optimizer.finalize_variable_values(variables)

    # Each of the two saves its own variables; this one has none.
    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


def describe_optimizer(optimizer):
    """Serializes an optimizer so that the other backend can read it.

    Keras on PyTorch has a subclass of its own for each optimizer, and would write its name.
    """
    config = keras.saving.serialize_keras_object(optimizer)
    part = config
    while part is not None:  # an optimizer may hold another: loss scaling
        if part["module"].startswith("keras.src.backend"):
            part.update(module="keras.optimizers", registered_name=None)
        part = part["config"].get("inner_optimizer")
    return config
