"""What it takes to train a GAN."""

import dataclasses
import math
from typing import ClassVar

from keras_segen.tasks.generation import GenerationTask

GAN_LOSSES = ("non_saturating", "hinge", "least_squares", "wasserstein")
SMOOTHED_LOSSES = ("non_saturating", "least_squares")  # by label_smoothing

# What the papers train with, where the two differ.
GAN_DEFAULTS = {
    "dcgan": {
        "loss": "non_saturating",
        "latent_dim": 100,
        "discriminator_steps": 1,
        "beta_1": 0.5,
        "beta_2": 0.999,
    },
    "sngan": {
        "loss": "hinge",
        "latent_dim": 128,
        "discriminator_steps": 5,
        "beta_1": 0.0,
        "beta_2": 0.9,
    },
}

# Blocks of a discriminator whose number does not follow from the size of the images.
BLOCKS = {"sngan": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanTask(GenerationTask):
    """One training of a GAN, completely described.

    What is None is what the model's paper has: `GAN_DEFAULTS`.

    Args:
        model: str, `"dcgan"` or `"sngan"`.
        filters: tuple of int, as `dcgan_generator` or `sngan_generator` takes them. The
            discriminator of `dcgan` has the same, that of `sngan` four blocks of half the first.
            None: as the paper's code for `dcgan`; 64 each for `sngan`, a quarter of the paper's.
        learning_rate: float, at the start; of the generator.
        discriminator_learning_rate: float; None for that of the generator.
        loss: str, one of `GAN_LOSSES`.
        r1: float, weight of the squared slope of the discriminator at real images.
        gradient_penalty: float, weight of the penalty that keeps its slope between real and fake
            images at 1; 10 with the Wasserstein loss.
        label_smoothing: float in [0, 0.5), what the target for real images is below 1.
        discriminator_steps: int, steps of the discriminator for each step of the generator.
        ema: float in [0, 1), how much of the averaged generator stays in each step.
        beta_1, beta_2: floats in [0, 1), Adam's, for both networks.

    The other arguments are those of `GenerationTask` and `keras_segen.tasks.task.Task`. The
    optimizer is Adam. The last batch of an epoch is left out if it is not full: batch
    normalization in the discriminator would see it otherwise than the others.

    Raises:
        ValueError: a value is not among those allowed.
    """

    MODELS: ClassVar[tuple] = tuple(GAN_DEFAULTS)
    quantities: ClassVar[dict] = {
        "d_loss": "loss of the discriminator",
        "g_loss": "loss of the generator",
        "val_d_real_accuracy": "share of validation images taken for real",
        "val_d_fake_accuracy": "share of generated images seen through",
    }

    model: str = "dcgan"
    learning_rate: float = 2e-4
    discriminator_learning_rate: float | None = None
    loss: str | None = None
    r1: float = 0.0
    gradient_penalty: float = 0.0
    label_smoothing: float = 0.0
    discriminator_steps: int | None = None
    ema: float = 0.999
    beta_1: float | None = None
    beta_2: float | None = None

    def __post_init__(self):
        self.check_choices(model=self.MODELS)
        super().__post_init__()
        self.check_choices(loss=GAN_LOSSES)
        self.check_at_least(0, "r1", "gradient_penalty")
        self.check_at_least(1, "discriminator_steps")
        for field in ("ema", "beta_1", "beta_2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)}, expected at least 0 and below 1."
                )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, expected at least 0 and below 0.5."
            )
        if self.label_smoothing and self.loss not in SMOOTHED_LOSSES:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} and acts on "
                f"{' and '.join(SMOOTHED_LOSSES)}, but the loss is {self.loss!r}."
            )
        rate = self.discriminator_learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"discriminator_learning_rate is {rate}, expected more than 0.")

    @classmethod
    def default(cls, field, model):
        return GAN_DEFAULTS[model].get(field, super().default(field, model))

    def batch_options(self, dataset):
        return {**super().batch_options(dataset), "drop_last": True}

    def networks(self, build_first, build_second, image_shape, num_classes):
        filters = other_filters = self.filters  # None: the paper's
        if self.model in BLOCKS:
            filters = filters or (64,) * self.halvings(image_shape)
            other_filters = (max(1, filters[0] // 2),) * BLOCKS[self.model]
        generator = build_first(image_shape, self.latent_dim, filters, num_classes)
        return generator, build_second(image_shape, other_filters, num_classes)

    def assemble(self, first, second, num_classes):
        from keras_segen import generation

        return generation.GAN(first, second, num_classes, self.ema, self.seed)

    def build_model(self, dataset, tell=lambda line: None):
        model = super().build_model(dataset, tell)
        model.ema_generator.set_weights(model.generator.get_weights())
        return model

    def count_parameters(self, model):
        return model.generator.count_params() + model.discriminator.count_params()

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        steps = self.epochs * steps_per_epoch
        other_rate = self.discriminator_learning_rate or self.learning_rate
        model.compile(
            self._adam(self.learning_rate, max(1, steps // self.discriminator_steps)),
            self._adam(other_rate, steps),
            loss=self.loss,
            r1=self.r1,
            gradient_penalty=self.gradient_penalty,
            label_smoothing=self.label_smoothing,
            discriminator_steps=self.discriminator_steps,
        )

    def _adam(self, rate, steps):
        import keras

        return keras.optimizers.Adam(self.rate(rate, steps), self.beta_1, self.beta_2)

    @property
    def losses(self):
        return ("d_loss", "g_loss")

    def decoder_of(self, model):
        return model.ema_generator
