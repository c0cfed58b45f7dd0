"""What it takes to train a VAE."""

import dataclasses
from typing import ClassVar

from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.generation import GenerationTask

NUM_RECONSTRUCTIONS = 32


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeTask(GenerationTask):
    """One training of a VAE, completely described.

    Without `filters`, the networks have 32, 64, 128, 128, … channels. The optimizer is Adam. What
    is watched is the bound (ELBO) on the validation split, unless `judge` is given.
    """

    MODELS: ClassVar[tuple] = ("vae",)

    model: str = "vae"
    learning_rate: float = 1e-3
    latent_dim: int = 64
    likelihood: str = field(
        "What the decoder says of a pixel.", default="gaussian", choices=("gaussian", "bernoulli")
    )
    beta: float = field(
        "Weight of the distance between codes and the standard normal; 1 for the bound.",
        default=1.0,
        at_least=0,
    )

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
