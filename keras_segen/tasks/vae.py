"""What it takes to train a VAE."""

import dataclasses
from typing import ClassVar

from keras_segen.tasks.generation import GenerationTask

LIKELIHOODS = ("gaussian", "bernoulli")
NUM_RECONSTRUCTIONS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeTask(GenerationTask):
    """One training of a VAE, completely described.

    Args:
        model: str, `"vae"`.
        filters: tuple of int, as `vae_encoder` takes them; None for 32, 64, 128, ….
        latent_dim: int, numbers in a code.
        likelihood: str, one of `LIKELIHOODS`, see `keras_segen.generation.VAE`.
        beta: float, weight of the distance to the standard normal; 1 for the bound.

    The other arguments are those of `GenerationTask` and `keras_segen.tasks.task.Task`. The
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
