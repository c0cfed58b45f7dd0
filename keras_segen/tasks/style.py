"""The task of training StyleGAN2."""

import dataclasses
from typing import ClassVar

from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.gan import AdversarialTask


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleTask(AdversarialTask):
    """One training of StyleGAN2, completely described.

    None means the value of the authors' `auto` configuration (Karras et al., 2020, "Training
    generative adversarial networks with limited data"), in which the mapping has two layers.
    Without `filters`, both networks have 32 channels at the size of the image and 64 below, an
    eighth of the paper's.
    """

    MODELS: ClassVar[tuple] = ("stylegan2",)

    model: str = "stylegan2"
    filters: tuple[int, ...] | None = field(
        "Channels of the networks at the size of the image, at half of it, …: one more than the "
        "networks halve the image.",
        default=None,
        at_least=1,
        common=True,
    )
    batch_size: int = 32
    learning_rate: float = 2.5e-3
    loss: str = "non_saturating"
    latent_dim: int = 128
    r1: float | None = field(
        "Weight of the squared slope of the discriminator at real images. Without it, 0.0002 times "
        "the pixels of an image over the batch size.",
        default=None,
        at_least=0,
    )
    path_length: float = field(
        "Weight of the penalty that keeps the generator even: a step in a style is to change every "
        "image equally much.",
        default=2.0,
        at_least=0,
    )
    style_mixing: float = field(
        "Share of the images that are made of two codes.", default=0.9, at_least=0, below=1
    )
    half_life: float = field(
        "Images after which half of the averaged generator has been replaced.",
        default=10_000.0,
        above=0,
    )
    beta_1: float = 0.0
    beta_2: float = 0.99

    def networks(self, build_first, build_second, image_shape, num_classes):
        filters = self.filters or (32,) + (64,) * self.halvings(image_shape)
        generator = build_first(
            image_shape, self.latent_dim, filters, num_classes, mapping_layers=2
        )
        return generator, build_second(image_shape, filters, num_classes)

    def assemble(self, first, second, num_classes):
        from keras_segen import generation

        return generation.StyleGAN(first, second, num_classes, self.half_life, self.seed)

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        from keras_segen.generation import adversarial, style_gan

        r1 = self.r1
        if r1 is None:
            height, width = model.image_shape[:2]
            r1 = 2e-4 * height * width / self.batch_size
        steps = self.epochs * steps_per_epoch
        optimizers = []
        for rate, penalty in (
            (self.learning_rate, adversarial.PathLength(self.path_length, style_gan.PATH_EVERY)),
            (
                self.discriminator_learning_rate or self.learning_rate,
                adversarial.R1(r1, style_gan.R1_EVERY),
            ),
        ):
            share = penalty.share_of_losses
            rate = self.rate(share * rate, max(1, round(steps / share)))
            optimizers.append(style_gan.lazy_adam(rate, share, self.beta_1, self.beta_2))
        model.compile(
            *optimizers,
            loss=self.loss,
            r1=r1,
            path_length=self.path_length,
            style_mixing=self.style_mixing,
            augment_discriminator=self.augment_discriminator,
        )

    def truncate(self, model, truncation):
        if not truncation >= 0:
            raise ValueError(f"truncation is {truncation}, expected at least 0, such as 0.7.")
        model.truncation.assign(truncation)
