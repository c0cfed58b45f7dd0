"""What to train to make pictures: the experiments of GAN and VAE.

Keras is imported by what builds a model, not before: the command line knows the options without.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import ClassVar

from keras_segen import data
from keras_segen.recipe import Recipe

AUGMENTS = ("default", "none")
GAN_LOSSES = ("non_saturating", "hinge", "least_squares", "wasserstein")
SMOOTHED_LOSSES = ("non_saturating", "least_squares")  # by label_smoothing
LIKELIHOODS = ("gaussian", "bernoulli")
LEAST_JUDGED = 40  # generated images, which `generation.evaluate` needs at least
NUM_RECONSTRUCTIONS = 32

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorExperiment(Recipe):
    """What a GAN's and a VAE's training have in common.

    Args:
        filters: tuple of int, channels of the networks, by the number of halvings of the image;
            None suits the image's size and a laptop.
        channels: int, 1 for grey images, 3 for RGB; None for the data set's own.
        image_size: as in `Recipe`; `"shapes"` has 32 x 32 pixels, if nothing is said.
        augment: str, `"default"` swaps left and right of every other picture, if the data set is
            one where that is as good (`Pictures.mirror`); `"none"` does not.
        early_stopping: int, as in `Recipe`; for a GAN it needs `judge`.
        latent_dim: int, numbers in a code.
        conditional: bool, whether the model is told the class of each picture, and can be asked
            for one then.
        judge: int, so many generated images are compared with as many of the validation split
            after each epoch (`keras_segen.generation.evaluate` on EfficientNet-Lite0), and the
            epoch with the smallest kernel distance is kept; at least 40, or 0 for no comparison.

    The other arguments are those of `keras_segen.recipe.Recipe`.

    Raises:
        ValueError: a value is not among those allowed.
    """

    makes: ClassVar[str] = "pictures"
    own_sizes: ClassVar[dict] = {"shapes": 32}

    batch_size: int = 64
    latent_dim: int | None = None
    conditional: bool = False
    judge: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None:
                object.__setattr__(self, field.name, self.default(field.name, self.model))
        super().__post_init__()
        self.check_choices(augment=AUGMENTS, channels=(1, 3, None))
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}, expected 1 or more.")
        if self.judge and self.judge < LEAST_JUDGED:
            raise ValueError(
                f"judge is {self.judge}, expected {LEAST_JUDGED} images or more, or 0 for none."
            )
        if self.early_stopping and self.monitor is None:
            raise ValueError(
                f"early_stopping is {self.early_stopping}, but a loss of {self.model} does not say "
                "which epoch is better: use judge=1000, or early_stopping=0."
            )

    def check_at_least(self, lowest, *fields):
        """Raises a ValueError if one of some fields is below, or not finite."""
        for field in fields:
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= lowest):
                raise ValueError(f"{field} is {value}, expected {lowest} or more.")

    def load_data(self, split):
        """Loads a split of the data set: `keras_segen.data.Pictures`; masks are left out."""
        return data.as_pictures(super().load_data(split))

    def batch_options(self, dataset):
        mirrors = self.augment == "default" and dataset.mirror
        return {"augment": data.mirror if mirrors else None}

    def num_classes(self, dataset):
        """The classes that the model is told, or None."""
        if not self.conditional:
            return None
        if not dataset.num_classes:
            raise ValueError(
                f"conditional is True, but the pictures of {dataset.name} have no classes: use "
                "conditional=False, or a data set with classes, such as folders of pictures."
            )
        return dataset.num_classes

    def halvings(self, image_shape):
        """How often the networks halve an image: down to at most 7 pixels, at least once."""
        size, count = min(image_shape[:2]), 0
        while size > 7 or not count:
            size, count = size // 2, count + 1
        return count

    def build_model(self, dataset, tell=lambda line: None):
        """Builds the model for a data set and fills it from the seed.

        Args:
            dataset: a `keras_segen.data.Pictures`, for the shape of its images and its classes.
            tell: not called: all weights are from the seed.

        Returns:
            A `keras_segen.generation.GAN` or `VAE`, not compiled.

        Raises:
            ValueError: the images have no common size, or one that cannot be halved as often as
                the networks do; the precision is float64; the pictures have no classes, and the
                model is to be told them.
            ModuleNotFoundError: the model is to be judged, and the extractor's weights are not
                installed.
        """
        from keras_segen import generation
        from keras_segen.determinism import initialize

        self.check_images(dataset)
        num_classes = self.num_classes(dataset)
        if self.judge:
            _extractor()  # what it lacks is said now and not after an epoch
        with self.dtype_policy():
            networks = self.networks(
                *generation.NETWORKS[self.model], dataset.image_shape, num_classes
            )
        model = self.assemble(*networks, num_classes)
        initialize(model, self.seed)
        return model

    def networks(self, build_first, build_second, image_shape, num_classes):
        """Builds the two networks of the model with their builders."""
        raise NotImplementedError

    def assemble(self, first, second, num_classes):
        """Makes the model of its two networks."""
        raise NotImplementedError

    @property
    def monitor(self):
        return ("val_kernel_distance", -1) if self.judge else None

    def measure(self, model, val_data):
        if not self.judge:
            return {}
        from keras_segen import generation

        found = generation.evaluate(model, val_data, self.judge, _extractor())
        names = ("kernel_distance", "kernel_standard_error", "frechet_distance")
        return {f"val_{name}": found[name] for name in names}

    def draw(self, model, val_data):
        """Draws what the model makes of fixed codes; with classes, a column for each."""
        from keras_segen import plot

        columns = model.num_classes if 1 < (model.num_classes or 0) <= 16 else 8
        return {"epoch": plot.mosaic(model.generate(8 * columns), columns)}

    def finish(self, folder):
        """Writes `animation.gif`: the previews one after the other."""
        from keras_segen import plot

        frames = sorted((Path(folder) / "previews").glob("epoch-*.png"))
        if frames and not (Path(folder) / "animation.gif").exists():
            plot.animation(frames, Path(folder) / "animation.gif")

    def outcome(self, history):
        if self.judge:
            best = min(history["val_kernel_distance"])
            return f"Smallest kernel distance to validation images {best:.4f}"
        count = len(history["epoch"])
        return f"{count} epoch{'s' if count != 1 else ''} trained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanExperiment(GeneratorExperiment):
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

    The other arguments are those of `GeneratorExperiment` and `keras_segen.recipe.Recipe`. The
    optimizer is Adam. The last batch of an epoch is left out if it is not full: batch
    normalization in the discriminator would see it otherwise than the others.

    Raises:
        ValueError: a value is not among those allowed.
    """

    MODELS: ClassVar[tuple] = tuple(GAN_DEFAULTS)

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
        if self.model == "sngan":
            filters = filters or (64,) * self.halvings(image_shape)
            other_filters = (max(1, filters[0] // 2),) * 4
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeExperiment(GeneratorExperiment):
    """One training of a VAE, completely described.

    Args:
        model: str, `"vae"`.
        filters: tuple of int, as `vae_encoder` takes them; None for 32, 64, 128, ….
        latent_dim: int, numbers in a code.
        likelihood: str, one of `LIKELIHOODS`, see `keras_segen.generation.VAE`.
        beta: float, weight of the distance to the standard normal; 1 for the bound.

    The other arguments are those of `GeneratorExperiment` and `keras_segen.recipe.Recipe`. The
    optimizer is Adam. What is watched is the bound (ELBO) on the validation split, unless
    `judge` is given.

    Raises:
        ValueError: a value is not among those allowed.
    """

    MODELS: ClassVar[tuple] = ("vae",)

    model: str = "vae"
    learning_rate: float = 1e-3
    latent_dim: int = 64
    likelihood: str = "gaussian"
    beta: float = 1.0

    def __post_init__(self):
        self.check_choices(model=self.MODELS)
        super().__post_init__()
        self.check_choices(likelihood=LIKELIHOODS)
        self.check_at_least(0, "beta")

    def networks(self, build_first, build_second, image_shape, num_classes):
        levels = range(self.halvings(image_shape))
        filters = self.filters or tuple(min(32 * 2**level, 128) for level in levels)
        encoder = build_first(image_shape, self.latent_dim, filters)
        return encoder, build_second(image_shape, self.latent_dim, filters, num_classes)

    def assemble(self, first, second, num_classes):
        from keras_segen import generation

        return generation.VAE(first, second, self.likelihood, self.beta, num_classes, self.seed)

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        import keras

        rate = self.rate(self.learning_rate, self.epochs * steps_per_epoch)
        optimizer = keras.optimizers.Adam(rate)
        if self.precision == "mixed_float16":  # Keras scales for models that are float16 as a whole
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer)

    @property
    def monitor(self):
        return super().monitor or ("val_elbo", 1)

    def draw(self, model, val_data):
        """Draws what the model makes of fixed codes, and validation images beside themselves."""
        import numpy as np

        from keras_segen import plot

        count = min(NUM_RECONSTRUCTIONS, len(val_data))
        chosen = np.linspace(0, len(val_data) - 1, count).astype(int)
        images, labels = map(np.stack, zip(*(val_data[int(i)] for i in chosen), strict=True))
        again = model.reconstruct(images, labels if self.conditional else None)
        pairs = np.stack([images, again], axis=1).reshape(-1, *images.shape[1:])
        return {**super().draw(model, val_data), "reconstruction": plot.mosaic(pairs, 8)}

    def outcome(self, history):
        if self.judge:
            return super().outcome(history)
        return f"Best validation ELBO {max(history['val_elbo']):.2f} nats per image"


@functools.cache
def _extractor():
    """The network that judges after each epoch, built once."""
    from keras_segen import generation

    return generation.load_extractor("efficientnet_lite0")
