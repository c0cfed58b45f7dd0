"""GAN: one network makes images out of noise, another tells them from real ones.

The generator G turns a code of random numbers into an image. The discriminator D gives each
image one score: high for real, low for fake. In every step D learns to keep the two apart, and
G to make images that D, as it is now, takes for real; at the end D should be left guessing.

Reference: Goodfellow et al. (2014), "Generative adversarial networks",
https://arxiv.org/abs/1406.2661. Classes: Mirza, Osindero (2014), https://arxiv.org/abs/1411.1784.

Differs from the paper: D and G take one step each on the same codes, so that G runs forward once;
the images shown and saved are those of a moving average of G (Karras et al., 2018,
https://arxiv.org/abs/1710.10196).
"""

import keras
from keras import ops

from keras_segen import backend
from keras_segen.choices import DISCRIMINATOR_AUGMENTATIONS
from keras_segen.generation import adversarial
from keras_segen.generation.adversarial import LOSSES, SMOOTHED
from keras_segen.generation.diffaugment import diffaugment
from keras_segen.generation.latent import LatentModel, check_inputs


@keras.saving.register_keras_serializable(package="keras_segen")
class GAN(LatentModel):
    """A generator and a discriminator, trained against each other by `fit`.

    `fit` takes images, float in [0, 1] or uint8, as arrays or in batches, with labels where there
    are classes. The history has `d_loss`, `g_loss` and the share of real and of fake images that
    D tells right (`d_real_accuracy`, `d_fake_accuracy`); for the Wasserstein loss, whose scores
    have no zero, `d_distance` instead; `d_penalty` if there is one. `evaluate` and validation
    give the same for other images and the images that the averaged generator makes.

    Batch normalization uses the statistics of its batch: D gets real and fake images in separate
    batches. The running averages of a network change in its own turn only: nothing in D changes
    while G learns, and nothing in G while D does.

    Args:
        generator: a `keras.Model` from codes `(batch, latent_dim)` to images in [-1, 1].
        discriminator: a `keras.Model` from images in [-1, 1] to scores `(batch, 1)`, logits.
        num_classes: int or None. With classes both networks take `[…, labels]`.
        ema: float in [0, 1), the share of the averaged generator that is kept in a step of G. In
            the first steps less is kept: at most t / (t + 10) after t steps.
        seed: int, for the codes in training.

    Attributes:
        ema_generator: the averaged generator, which `generate`, `decode` and `evaluate` use.

    Raises:
        ValueError: when the networks do not fit together, or a number is out of range.

    Example:

    >>> from keras_segen.generation import dcgan_discriminator, dcgan_generator
    >>> shape, filters = (8, 8, 1), (4, 8)
    >>> gan = GAN(dcgan_generator(shape, 4, filters), dcgan_discriminator(shape, filters))
    >>> gan.compile()
    >>> sorted(gan.train_on_batch(keras.ops.ones((4, 8, 8, 1)), return_dict=True))
    ['d_fake_accuracy', 'd_loss', 'd_real_accuracy', 'g_loss']
    >>> gan.generate(3).shape
    (3, 8, 8, 1)
    """

    NETWORKS = ("generator", "discriminator")
    SETTINGS = ("num_classes", "ema", "seed", "name")

    def __init__(self, generator, discriminator, num_classes=None, ema=0.999, seed=0, name="gan"):
        super().__init__(generator, num_classes, seed, name)
        expected = "images (batch, …)" if num_classes is None else "[images, labels (batch,)]"
        check_inputs(discriminator, expected, conditional=num_classes is not None)
        seen = tuple(discriminator.inputs[0].shape[1:])
        if seen != self.image_shape or tuple(discriminator.output_shape[1:]) != (1,):
            raise ValueError(
                f"The generator makes images {self.image_shape}; expected a discriminator from "
                f"these to scores (batch, 1), found one from {seen} to "
                f"{tuple(discriminator.output_shape)}."
            )
        if not 0 <= ema < 1:
            raise ValueError(f"ema is {ema}, expected at least 0 and below 1.")
        self.generator = generator
        self.discriminator = discriminator
        with backend.without_the_other_framework():
            self.ema_generator = keras.models.clone_model(generator)
        self.ema_generator.set_weights(generator.get_weights())
        self.ema = ema
        self.built = True

    def compile(
        self,
        generator_optimizer=None,
        discriminator_optimizer=None,
        loss="non_saturating",
        r1=0.0,
        gradient_penalty=0.0,
        label_smoothing=0.0,
        discriminator_steps=1,
        r1_every=1,
        augment_discriminator="none",
    ):
        """Says how the two are trained.

        Args:
            generator_optimizer, discriminator_optimizer: `keras.optimizers.Optimizer`; None for
                Adam with learning rate 2e-4 and beta_1 0.5 (Radford et al., 2016).
            loss: str, `"non_saturating"`, `"hinge"`, `"least_squares"` or `"wasserstein"`.
            r1: float, weight (gamma) of half the squared length of D's gradient at real images.
            gradient_penalty: float, weight of the penalty that keeps the length of D's gradient
                between real and fake images at 1; 10 with the Wasserstein loss.
            label_smoothing: float in [0, 0.5); D's target for real images is 1 minus this.
            discriminator_steps: int, steps of D, each on a batch of its own, for each step of G;
                5 with the Wasserstein loss and its penalty.
            r1_every: int, n to compute r1 in every n-th step of D only, with n times the weight;
                16 in StyleGAN2.
            augment_discriminator: str, `"none"`, or `"diffaugment"`: all that D sees, real or
                fake, is changed at random; for few images (`keras_segen.generation.diffaugment`).

        Raises:
            ValueError: when a value is out of range, or there is no such loss.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss is {loss!r}, expected one of {', '.join(map(repr, LOSSES))}.")
        if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss not in SMOOTHED):
            raise ValueError(
                f"label_smoothing is {label_smoothing}, expected in [0, 0.5), and 0 for losses "
                f"other than {' and '.join(map(repr, SMOOTHED))}; the loss is {loss!r}."
            )
        if discriminator_steps < 1:
            raise ValueError(f"discriminator_steps is {discriminator_steps}, expected 1 or more.")
        self.r1 = adversarial.R1(r1, r1_every)
        self.gradient_penalty = adversarial.GradientPenalty(gradient_penalty, self.seed)
        if augment_discriminator not in DISCRIMINATOR_AUGMENTATIONS:
            raise ValueError(
                f"augment_discriminator is {augment_discriminator!r}, expected one of "
                f"{', '.join(map(repr, DISCRIMINATOR_AUGMENTATIONS))}."
            )
        self.augment_discriminator = augment_discriminator
        self.label_smoothing, self.discriminator_steps = label_smoothing, discriminator_steps
        self.rules = {
            "loss": loss,
            "r1": r1,
            "gradient_penalty": gradient_penalty,
            "label_smoothing": label_smoothing,
            "discriminator_steps": discriminator_steps,
            "r1_every": r1_every,
            "augment_discriminator": augment_discriminator,
        }
        self.d_loss_fn, self.g_loss_fn, self.threshold = LOSSES[loss]
        super().compile(
            adversarial.TwoOptimizers(
                _optimizer(generator_optimizer, self.generator),
                _optimizer(discriminator_optimizer, self.discriminator),
                self.generator.trainable_variables,
                self.discriminator.trainable_variables,
            ),
            auto_scale_loss=False,  # each of the two scales for itself
        )
        right = ["d_real_accuracy", "d_fake_accuracy"]
        names = ["d_loss", "g_loss", *(["d_distance"] if self.threshold is None else right)]
        if r1 or gradient_penalty:
            names += ["d_penalty"]
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}

    @property
    def metrics(self):
        return list(self.trackers.values()) if self.compiled else []

    def call(self, inputs, training=False):
        """Makes images in [0, 1] out of codes, or `[codes, labels]`: tensors to tensor."""
        return (self.ema_generator(inputs, training=training) + 1) / 2

    def decoded(self, inputs, training=False):
        return ops.cast(self.call(inputs, training), "float32")

    def train_step(self, data):
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        images, labels = self.check_images(images), self.check_labels(labels)
        codes = self.random_codes(ops.shape(images)[0])
        if self.discriminator_steps == 1:
            self.generator_step(images, codes, labels)
        else:
            ops.cond(
                (self.step + 1) % self.discriminator_steps == 0,
                lambda: self.generator_step(images, codes, labels),
                lambda: self.step_without_generator(images, codes, labels),
            )
        self.penalty_steps(images, labels)
        self.step.assign_add(1)
        return self.get_metrics_result()

    def discriminator_step(self, images, fakes, labels):
        """D learns to score real images high and fakes low, wherever the fakes come from."""
        fakes = ops.stop_gradient(fakes)

        def discriminate(images, what="real"):
            return self.judge(images, labels, what)

        def loss_fn():
            real, r1 = self.r1(discriminate, images, self.step)
            fake = discriminate(fakes, "fake")
            penalty = r1 + self.gradient_penalty(discriminate, images, fakes, self.step)
            loss = self.d_loss_fn(real, fake, self.label_smoothing)
            results = {"loss": loss, "real": real, "fake": fake}
            if "d_penalty" in self.trackers:
                results["penalty"] = penalty
            return loss + penalty + sum(self.discriminator.losses), results

        _, results = backend.minimize(
            loss_fn, self.discriminator.trainable_variables, self.optimizer.discriminator
        )
        self._track_discriminator(images, **results)

    def generator_step(self, images, codes, labels):
        """D learns from new fakes, then G learns to make fakes that D scores high."""

        def loss_fn():
            fakes = self.make_fakes(codes, labels)
            # Inside: the same fakes serve both, and G's gradient through them is yet to come.
            self.discriminator_step(images, fakes, labels)
            # Discards what D would update, such as running averages: this is G's turn.
            with keras.StatelessScope():
                scores = self.judge(fakes, labels, "fake, in the turn of G")
            loss = self.g_loss_fn(scores)
            return loss + sum(self.generator.losses), loss

        _, loss = backend.minimize(
            loss_fn, self.generator.trainable_variables, self.optimizer.generator
        )
        self._track(images, g_loss=loss)
        keep = self.share_kept(ops.shape(images)[0])
        for average, weight in zip(self.ema_generator.weights, self.generator.weights, strict=True):
            average.assign(weight + keep * (average - weight))

    def step_without_generator(self, images, codes, labels):
        """A step of D alone: what G would update, such as running averages, is discarded."""
        with keras.StatelessScope():
            fakes = self.make_fakes(codes, labels)
        self.discriminator_step(images, fakes, labels)

    def judge(self, images, labels, what):
        """Scores images in training, augmented if D sees augmented ones; `what` keys the change."""
        if self.augment_discriminator == "diffaugment":
            images = diffaugment(images, (f"augmentation of {what}", self.seed), self.step)
        return self.discriminator(self.join(images, labels), training=True)

    def make_fakes(self, codes, labels):
        """Makes images in training: what G learns from, and D."""
        return self.generator(self.join(codes, labels), training=True)

    def share_kept(self, count):
        """How much of the averaged generator stays in a step on `count` images."""
        # The steps so far, this one included.
        steps = ops.cast(self.optimizer.generator.iterations, self.float_dtype)
        return ops.minimum(self.ema, (steps - 1) / (steps + 9))

    def penalty_steps(self, images, labels):
        """Steps on penalties alone; here there are none."""

    def test_step(self, data):
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        images, labels = self.check_images(images), self.check_labels(labels)
        codes = self.random_codes(ops.shape(images)[0], seen=self.trackers["d_loss"].count)
        fakes = self.ema_generator(self.join(codes, labels), training=False)
        real, fake = (
            self.discriminator(self.join(x, labels), training=False) for x in (images, fakes)
        )
        self._track(images, g_loss=self.g_loss_fn(fake))
        self._track_discriminator(images, self.d_loss_fn(real, fake, 0.0), real, fake)
        results = self.get_metrics_result()
        return {name: results[name] for name in results if not name.endswith("penalty")}

    def _track_discriminator(self, images, loss, real, fake, penalty=None):
        self._track(images, d_loss=loss)
        if penalty is not None:
            self._track(images, d_penalty=penalty)
        if self.threshold is None:
            self._track(images, d_distance=ops.mean(real) - ops.mean(fake))
            return
        real_right = ops.mean(ops.cast(real > self.threshold, "float32"))
        fake_right = ops.mean(ops.cast(fake <= self.threshold, "float32"))
        self._track(images, d_real_accuracy=real_right, d_fake_accuracy=fake_right)

    def _track(self, images, **values):
        """Updates the means over all images: a batch counts by its number of images."""
        for name, value in values.items():
            self.trackers[name].update_state(value, sample_weight=ops.shape(images)[0])

    def get_compile_config(self):
        if not self.compiled:
            return {}
        describe = adversarial.describe_optimizer
        return {
            "generator_optimizer": describe(self.optimizer.generator),
            "discriminator_optimizer": describe(self.optimizer.discriminator),
            **self.rules,
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))


def _optimizer(optimizer, network):
    """The optimizer of a network; in float16 it scales the loss."""
    optimizer = optimizer or keras.optimizers.Adam(2e-4, beta_1=0.5)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    in_float16 = any(layer.compute_dtype == "float16" for layer in network._flatten_layers())
    if in_float16 and not scales:
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
