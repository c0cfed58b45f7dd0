"""StyleGAN2's training: a GAN whose generator has styles, and penalties with steps of their own.

R1 keeps D flat at real images; the path length keeps G even: a step in w is to change every image
equally much. Both are dear and hardly change from step to step, so each gets a step of its own now
and then (lazy regularization), after the one on the losses. Some images are made of two codes,
coarse layers of one and fine layers of the other, so that neighboring layers learn to do without
each other (style mixing).

Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN",
https://arxiv.org/abs/1912.04958; style mixing and truncation: Karras, Laine, Aila (2019),
https://arxiv.org/abs/1812.04948; the ramp of the average: Karras et al. (2020), "Training
generative adversarial networks with limited data", https://arxiv.org/abs/2006.06676.

Differs from the paper: D and G take their steps on the same codes, as in `GAN`.
"""

import math

import keras
from keras import ops

from keras_segen import backend
from keras_segen.generation import adversarial, noise
from keras_segen.generation.gan import GAN

R1_EVERY, PATH_EVERY = 16, 8  # steps between two on a penalty, of the paper


@keras.saving.register_keras_serializable(package="keras_segen")
class StyleGAN(GAN):
    """A GAN of StyleGAN2's networks, trained by `fit` as StyleGAN2 is.

    The history has what that of a `GAN` has, and `r1_penalty` and `path_penalty`, means over all
    steps.

    Args:
        generator, discriminator, num_classes, seed: as in `GAN`; the generator has networks
            `mapping` and `synthesis` and a layer `noise`, as `stylegan2_generator` has.
        half_life: float, images after which half of the averaged generator has been replaced. At
            first it is a twentieth of the images seen so far.

    Attributes:
        truncation: float32 variable, 1 at first. Styles of the averaged generator are this share
            of their distance from the mean style: below 1 images are more typical and differ less.

    Raises:
        ValueError: when the networks do not fit together, or a number is out of range.

    Example:

    >>> from keras_segen.generation import stylegan2_discriminator, stylegan2_generator
    >>> shape, filters = (8, 8, 1), (4, 4)
    >>> networks = stylegan2_generator(shape, 4, filters), stylegan2_discriminator(shape, filters)
    >>> gan = StyleGAN(*networks)
    >>> _ = gan.truncation.assign(0.7)
    >>> gan.generate(3).shape
    (3, 8, 8, 1)
    """

    SETTINGS = ("num_classes", "half_life", "seed", "name")

    def __init__(
        self,
        generator,
        discriminator,
        num_classes=None,
        half_life=10_000.0,
        seed=0,
        name="style_gan",
    ):
        super().__init__(generator, discriminator, num_classes, 0.0, seed, name)
        missing = {"mapping", "synthesis", "noise"} - {layer.name for layer in generator.layers}
        if missing:
            raise ValueError(
                f"The generator {generator.name!r} has no {' and no '.join(sorted(missing))}: "
                "expected one with styles, such as stylegan2_generator(…)."
            )
        if not half_life > 0:
            raise ValueError(f"half_life is {half_life}, expected more than 0 images.")
        self.half_life = half_life
        self.truncation_initializer, self.mean_length_initializer = "ones", "zeros"
        self.truncation = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="truncation"
        )
        self.mean_length = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="mean_length"
        )

    def compile(
        self,
        generator_optimizer=None,
        discriminator_optimizer=None,
        loss="non_saturating",
        r1=0.05,
        r1_every=R1_EVERY,
        path_length=2.0,
        path_length_every=PATH_EVERY,
        style_mixing=0.9,
        augment_discriminator="none",
    ):
        """Says how the two are trained.

        Args:
            generator_optimizer, discriminator_optimizer: `keras.optimizers.Optimizer`; None for
                `lazy_adam` for a learning rate of 0.0025.
            loss: str, as in `GAN.compile`.
            r1: float, weight (gamma) of half the squared length of D's gradient at real images.
            r1_every: int, the steps between two on r1, which count that many times.
            path_length: float, weight of the penalty that keeps G even; 0 for none.
            path_length_every: int, the steps between two on the path length, on half a batch.
            style_mixing: float in [0, 1], the share of images that are made of two codes.
            augment_discriminator: str, as in `GAN.compile`.

        Raises:
            ValueError: when a value is out of range, or there is no such loss.
        """
        if not 0 <= style_mixing <= 1:
            raise ValueError(f"style_mixing is {style_mixing}, expected a share in [0, 1].")
        self.lazy_r1 = adversarial.R1(r1, r1_every)
        self.path_length = adversarial.PathLength(path_length, path_length_every)
        self.style_mixing = style_mixing
        super().compile(
            *(
                given or lazy_adam(2.5e-3 * penalty.share_of_losses, penalty.share_of_losses)
                for given, penalty in (
                    (generator_optimizer, self.path_length),
                    (discriminator_optimizer, self.lazy_r1),
                )
            ),
            loss,
            augment_discriminator=augment_discriminator,
        )
        self.rules = {
            "loss": loss,
            "r1": r1,
            "r1_every": r1_every,
            "path_length": path_length,
            "path_length_every": path_length_every,
            "style_mixing": style_mixing,
            "augment_discriminator": augment_discriminator,
        }
        names = {"r1_penalty": self.lazy_r1, "path_penalty": self.path_length}
        for name in [name for name, penalty in names.items() if penalty.weight]:
            self.trackers[name] = keras.metrics.Mean(name=name)

    def call(self, inputs, training=False):
        """Makes images in [0, 1] out of codes, or `[codes, labels]`: tensors to tensor."""
        mapping, synthesis, fixed_noise = _parts(self.ema_generator)
        mean = mapping.get_layer("mean").mean
        style = mapping(inputs, training=training)
        style = mean + ops.cast(self.truncation, style.dtype) * (style - mean)
        styles = _for_each_layer(style, synthesis)
        images = synthesis([styles, fixed_noise(style)], training=training)
        return ops.clip((images + 1) / 2, 0, 1)

    def make_fakes(self, codes, labels):
        styles = self.styles(codes, labels, "codes")
        return self.synthesize(styles, "noise")

    def styles(self, codes, labels, what):
        """A style for each layer, `(batch, layers, latent_dim)`, of one code or of two."""
        mapping, synthesis, _ = _parts(self.generator)
        if not self.style_mixing:
            return _for_each_layer(mapping(self.join(codes, labels), training=True), synthesis)
        count, num_layers = ops.shape(codes)[0], synthesis.inputs[0].shape[1]
        codes = ops.concatenate([codes, self.draw(f"other {what}", count, self.latent_dim)])
        labels = None if labels is None else ops.concatenate([labels, labels])
        both = mapping(self.join(codes, labels), training=True)  # (2b, latent_dim)
        # From a random layer on, the second; in images that are not mixed, from none.
        u = noise.uniform((f"mixing of {what}", self.seed), self.step, (count, 2))
        change = 1 + ops.floor(u[:, :1] * (num_layers - 1))
        change = ops.where(u[:, 1:] < self.style_mixing, change, num_layers)
        first = ops.arange(num_layers, dtype="float32") < change  # (b, layers)
        return ops.where(first[..., None], both[:count, None], both[count:, None])

    def synthesize(self, styles, what):
        """Makes images of styles, with fresh noise."""
        _, synthesis, _ = _parts(self.generator)
        fresh = self.draw(what, ops.shape(styles)[0], synthesis.inputs[1].shape[1])
        return synthesis([styles, fresh], training=True)

    def draw(self, what, count, numbers):
        """Standard normal numbers `(count, numbers)` of this step."""
        return noise.normal((what, self.seed), self.step, (count, numbers), dtype=self.float_dtype)

    def share_kept(self, count):
        """A half-life in images, so that batches of any size average over equally many."""
        count = ops.cast(count, self.float_dtype)
        seen = ops.cast(self.step, self.float_dtype) * count
        return 0.5 ** (count / ops.maximum(ops.minimum(self.half_life, 0.05 * seen), 1e-3))

    def penalty_steps(self, images, labels):
        if self.lazy_r1.weight:
            found = self.lazy_r1.when_due(self.step, lambda: self.r1_step(images, labels))
            self._track(images, r1_penalty=found)
        if self.path_length.weight:
            found = self.path_length.when_due(self.step, lambda: self.path_step(images, labels))
            self._track(images, path_penalty=found)

    def r1_step(self, images, labels):
        """D learns to be flat at real images."""

        def discriminate(images):
            return self.judge(images, labels, "real, for r1")

        def loss_fn():
            scores, penalty = self.lazy_r1.penalty(discriminate, images)
            # Nothing, for the last bias, on which no slope depends: it, too, gets a gradient.
            return penalty + 0 * ops.mean(scores), penalty

        _, penalty = backend.minimize(
            loss_fn, self.discriminator.trainable_variables, self.optimizer.discriminator
        )
        return penalty

    def path_step(self, images, labels):
        """G learns to answer a step in w equally everywhere, on half as many new images."""
        count = (ops.shape(images)[0] + 1) // 2
        labels = None if labels is None else labels[:count]

        def loss_fn():
            codes = self.draw("codes of paths", count, self.latent_dim)
            directions = self.draw("directions of paths", count, math.prod(self.image_shape))
            directions = ops.reshape(directions, (-1, *self.image_shape))
            penalty, mean = self.path_length.penalty(
                lambda styles: self.synthesize(styles, "noise of paths"),
                self.styles(codes, labels, "codes of paths"),
                directions,
                self.mean_length.value,
            )
            return penalty, (penalty, mean)

        _, (penalty, mean) = backend.minimize(
            loss_fn, self.generator.trainable_variables, self.optimizer.generator
        )
        self.mean_length.assign(mean)
        return penalty


def lazy_adam(learning_rate, share, beta_1=0.0, beta_2=0.99):
    """Adam for a network of whose steps some are on a penalty alone.

    It sees n + 1 steps instead of n, so each moves and forgets n / (n + 1) times as much.

    Args:
        learning_rate: float or schedule, `share` times that of steps on the losses alone.
        share: float, n / (n + 1), such as `adversarial.R1(0.05, every=16).share_of_losses`.
        beta_1, beta_2: floats, for steps on the losses alone.

    Example:

    >>> optimizer = lazy_adam(0.8 * 0.01, share=0.8, beta_1=0.5)
    >>> round(optimizer.beta_1, 4), round(optimizer.beta_2, 4)
    (0.5743, 0.992)
    """
    return keras.optimizers.Adam(learning_rate, beta_1**share, beta_2**share, epsilon=1e-8)


def _parts(generator):
    return [generator.get_layer(name) for name in ("mapping", "synthesis", "noise")]


def _for_each_layer(style, synthesis):
    """One style for all layers: (b, latent_dim) to (b, layers, latent_dim)."""
    return ops.repeat(style[:, None], synthesis.inputs[0].shape[1], axis=1)
