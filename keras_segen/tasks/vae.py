"""The task of training a VAE."""

import dataclasses
from typing import ClassVar

import numpy as np

from keras_segen.choices import LIKELIHOODS
from keras_segen.data.loader import Batches
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.generation import GenerationTask
from keras_segen.tasks.task import Figure, spread, stacked

NUM_RECONSTRUCTIONS = 32
NUM_TRAVERSED = 256  # images for the KL divergence of each dimension
BOUND_IMAGES = 1000  # whose importance-weighted bound is computed
BOUND_SAMPLES = 64  # codes for each of them


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeTask(GenerationTask):
    """One training of a VAE, completely described.

    Without `filters`, the networks have 32, 64, 128, 128, … channels. The optimizer is Adam. The
    best epoch is that of the largest bound (ELBO) on the validation split, unless `judge` is set.
    """

    MODELS: ClassVar[tuple] = ("vae",)
    figures: ClassVar[dict] = {
        "elbo": Figure("ELBO, validation", "nats per image", 5, "the validation ELBO"),
        "bits_per_dimension": Figure("Bits per dimension, validation", "bits", 4),
        **GenerationTask.figures,
    }
    quantities: ClassVar[dict] = {"val_loss": "validation loss", "val_elbo": "validation ELBO"}

    model: str = "vae"
    learning_rate: float = 1e-3
    latent_dim: int = 64
    likelihood: str = field(
        "The distribution of a pixel, given the code.",
        default="gaussian",
        choices=LIKELIHOODS,
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
        """Draws samples of fixed codes, and validation images beside their reconstructions."""
        from keras_segen import plot

        images, labels = stacked(val_data, spread(val_data, NUM_RECONSTRUCTIONS))
        again = model.reconstruct(images, labels if self.conditional else None)
        pairs = np.stack([images, again], axis=1).reshape(-1, *images.shape[1:])
        return {**super().draw(model, val_data), "reconstruction": plot.mosaic(pairs, 8)}

    def outcome(self, history):
        if self.judge:
            return super().outcome(history)
        return f"Best validation ELBO {max(history['val_elbo']):.2f} nats per image"

    def add_bounds(self, evaluation, model, dataset, batch_size, seed):
        """Adds the figures `bounds`, see there, and sentences about them."""
        both = bounds(model, dataset, batch_size, seed)
        weighted = both["importance_weighted"]
        evaluation.figures["bounds"] = both
        evaluation.sentences += [
            f"ELBO {both['elbo']:.2f} nats per image, {both['bits_per_dimension']:.4f} bits per "
            f"dimension; reconstruction {both['reconstruction']:.2f}, KL {both['kl']:.2f}; "
            f"{both['images']} images.",
            f"Importance-weighted bound {weighted['bound']:.2f} nats, "
            f"{weighted['bits_per_dimension']:.4f} bits per dimension, where the ELBO is "
            f"{weighted['elbo']:.2f}; {weighted['images']} images, {weighted['samples']} codes "
            "each.",
        ]

    def images_to_traverse(self, seed):
        from keras_segen.generation.explore import pick

        return pick(self.load_data("val"), NUM_TRAVERSED, seed)

    def decoder_of(self, model):
        return model.decoder

    def parts(self, model):
        return {"encoder": model.encoder, "decoder": model.decoder}

    def copy_model(self, model, copy):
        copied = super().copy_model(model, copy)
        if self.likelihood == "gaussian":
            copied.log_deviation.assign(model.log_deviation)
        return copied

    def run_layers(self, model, images, target):
        model.test_step((images, target))

    def compared_figures(self, model, dataset, history):
        """The last validation bounds, and the distances to real images if `judge` is set."""
        found = super().compared_figures(model, dataset, history)
        for name in ("elbo", "bits_per_dimension"):
            if f"val_{name}" in history:
                found[name] = float(history[f"val_{name}"][-1])
        return found


def bounds(vae, dataset, batch_size=64, seed=0):
    """Computes a VAE's bounds on the log-likelihood of a data set.

    Args:
        vae: a `keras_segen.generation.VAE`.
        dataset: a `keras_segen.data.Pictures`, with classes if the model is conditional.
        batch_size: int, images at once.
        seed: int, for the codes of the importance-weighted bound.

    Returns:
        Dict: `images` of the split and, as means over them, `elbo`, `reconstruction` and `kl` in
        nats per image and `bits_per_dimension`; and `importance_weighted`, a dict of `images`,
        `samples`, `bound` (nats per image), `bits_per_dimension` and the `elbo` of the same
        images: the first 1000 of the split, 64 codes each.
    """
    from keras_segen import backend

    if not vae.compiled:
        vae.compile()
    found = vae.evaluate(
        backend.make_loader(Batches(dataset, batch_size)), verbose=0, return_dict=True
    )
    images, labels = stacked(dataset, range(min(BOUND_IMAGES, len(dataset))))
    labels = None if vae.num_classes is None else labels
    weighted = vae.importance_weighted_bound(images, labels, BOUND_SAMPLES, seed, batch_size)
    same = vae.evaluate(images, labels, batch_size, verbose=0, return_dict=True)
    return {
        "images": len(dataset),
        **{name: float(found[name]) for name in ("elbo", "reconstruction", "kl")},
        "bits_per_dimension": float(found["bits_per_dimension"]),
        "importance_weighted": {
            "images": len(images),
            "samples": BOUND_SAMPLES,
            "bound": float(weighted.mean()),
            "bits_per_dimension": float(vae.bits_per_dimension(weighted.mean())),
            "elbo": float(same["elbo"]),
        },
    }
