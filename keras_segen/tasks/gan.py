"""The task of training a GAN, and what all such tasks share."""

import dataclasses
from typing import ClassVar

from keras_segen.choices import (
    DISCRIMINATOR_AUGMENTATIONS,
    GAN_LOSSES,
    SMOOTHED_GAN_LOSSES,
)
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.generation import GenerationTask

# What the papers train with: field -> value by model.
GAN_DEFAULTS = {
    "loss": {"dcgan": "non_saturating", "sngan": "hinge"},
    "latent_dim": {"dcgan": 100, "sngan": 128},
    "discriminator_steps": {"dcgan": 1, "sngan": 5},
    "beta_1": {"dcgan": 0.5, "sngan": 0.0},
    "beta_2": {"dcgan": 0.999, "sngan": 0.9},
}

# Blocks of a discriminator whose number does not follow from the size of the images.
BLOCKS = {"sngan": 4}


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialTask(GenerationTask):
    """What the trainings of GANs share. The optimizer is Adam.

    An incomplete last batch of an epoch is dropped, since its statistics would differ in the
    discriminator.
    """

    quantities: ClassVar[dict] = {
        "d_loss": "loss of the discriminator",
        "g_loss": "loss of the generator",
        "val_d_real_accuracy": "share of validation images taken for real",
        "val_d_fake_accuracy": "share of generated images seen through",
    }

    discriminator_learning_rate: float | None = field(
        "Learning rate of the discriminator. Without it, the generator's.", default=None, above=0
    )
    loss: str | None = field(
        "The game that the networks play.",
        default=None,
        choices=GAN_LOSSES,
        common=True,
    )
    r1: float = field(
        "Weight of the squared slope of the discriminator at real images.", default=0.0, at_least=0
    )
    augment_discriminator: str = field(
        "Random changes of all images that the discriminator sees, real or fake, for few pictures.",
        default="none",
        choices=DISCRIMINATOR_AUGMENTATIONS,
    )
    beta_1: float | None = field("Adam's, for both networks.", default=None, at_least=0, below=1)
    beta_2: float | None = field("Adam's, for both networks.", default=None, at_least=0, below=1)

    def batch_options(self, dataset):
        return {**super().batch_options(dataset), "drop_last": True}

    def build_model(self, dataset, tell=lambda line: None):
        model = super().build_model(dataset, tell)
        model.ema_generator.set_weights(model.generator.get_weights())
        return model

    def count_parameters(self, model):
        return model.generator.count_params() + model.discriminator.count_params()

    @property
    def losses(self):
        return ("d_loss", "g_loss")

    def decoder_of(self, model):
        return model.ema_generator

    def parts(self, model):
        return {"generator": model.generator, "discriminator": model.discriminator}

    def run_layers(self, model, images, target):
        """The generator on codes, the discriminator on real images and then on fakes."""
        import keras

        images, labels = model.check_images(images), model.check_labels(target)
        codes = model.draw_codes(len(images)).astype(model.float_dtype)
        codes = keras.ops.convert_to_tensor(codes)
        fakes = model.generator(model.join(codes, labels), training=False)
        for each in (images, fakes):
            model.discriminator(model.join(each, labels), training=False)


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class GanTask(AdversarialTask):
    """One training of a GAN, completely described. None means the paper's value: `GAN_DEFAULTS`.

    Without `filters`, `dcgan` has those of the paper's code, and `sngan` 64 in each block, a
    quarter of the paper's. The discriminator of `dcgan` has as many channels as the generator,
    that of `sngan` four blocks of half the first.

    The optimizer is Adam. An incomplete last batch of an epoch is dropped, since its
    statistics would differ in the discriminator's batch normalization.
    """

    MODELS: ClassVar[tuple] = ("dcgan", "sngan")

    model: str = "dcgan"
    learning_rate: float = 2e-4
    gradient_penalty: float = field(
        "Weight of the penalty that keeps the slope of the discriminator between real and fake "
        "images at 1; 10 with wasserstein.",
        default=0.0,
        at_least=0,
    )
    label_smoothing: float = field(
        "How far the target for real images is below 1.", default=0.0, at_least=0, below=0.5
    )
    discriminator_steps: int | None = field(
        "Steps of the discriminator for each step of the generator.", default=None, at_least=1
    )
    ema: float = field(
        "How much of the averaged generator stays in each step.", default=0.999, at_least=0, below=1
    )

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing and self.loss not in SMOOTHED_GAN_LOSSES:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} and acts on "
                f"{' and '.join(SMOOTHED_GAN_LOSSES)}, but the loss is {self.loss!r}."
            )

    @classmethod
    def default(cls, field, model):
        if field in GAN_DEFAULTS:
            return GAN_DEFAULTS[field][model]
        return super().default(field, model)

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
            augment_discriminator=self.augment_discriminator,
        )

    def _adam(self, rate, steps):
        import keras

        return keras.optimizers.Adam(self.rate(rate, steps), self.beta_1, self.beta_2)

    def layerwise(self):
        """Both players move in every step, so that each step shows all layers."""
        return dataclasses.replace(super().layerwise(), discriminator_steps=1)
