"""A trained GAN or VAE judged: how far its pictures are from real ones, and a VAE's bounds."""

from pathlib import Path

import numpy as np

from keras_segen import backend, generation
from keras_segen.data.loader import Batches
from keras_segen.tasks.registry import read
from keras_segen.files import write_json
from keras_segen.runs.training import load_model, load_run, model_digest

BOUND_IMAGES = 1000  # whose importance-weighted bound is computed
BOUND_SAMPLES = 64  # codes for each of them


def evaluate(
    folder, split="test", extractor="efficientnet_lite0", count=None, seed=0, batch_size=None
):
    """Judges the model that a run of a GAN or VAE keeps, on a split.

    Writes `evaluation-SPLIT.json` into the folder.

    Args:
        folder: the run folder.
        split: `"train"`, `"val"` or `"test"`.
        extractor: as in `keras_segen.generation.load_extractor`.
        count: int, generated images and real ones that are compared; None for as many as the
            split has, at most 10,000.
        seed: int, for the generated images.
        batch_size: int, for a VAE's bounds; None for that of the training.

    Returns:
        Dict of plain values: what `keras_segen.generation.evaluate` returns, and `model_sha256`
        of the `model.keras` that was judged. `checkpoint` says which epoch's it is. For a VAE
        also `bounds`: `images` of the split and, as means over them, `elbo`, `reconstruction` and
        `kl` in nats per image and `bits_per_dimension`; and `importance_weighted`, a dict of
        `images`, `samples`, `bound` (nats per image), `bits_per_dimension` and the `elbo` of the
        same images: the first 1000 of the split, 64 codes each.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
        ValueError: the run is of a model that makes masks, or what `generation.evaluate` finds.
    """
    folder = Path(folder)
    task = read(load_run(folder)["experiment"])
    if task.makes != "pictures":
        raise ValueError(
            f"{folder} is a run of {task.model}, which makes {task.makes}: use "
            "keras_segen.runs.evaluate.evaluate."
        )
    extractor = generation.load_extractor(extractor)
    model = load_model(folder)
    dataset = task.load_data(split)
    result = {
        **generation.evaluate(model, dataset, count, extractor, seed, checkpoint=task.kept),
        "split": split,
        "model_sha256": model_digest(folder),
    }
    if isinstance(model, generation.VAE):
        result["bounds"] = bounds(model, dataset, batch_size or task.batch_size, seed)
    write_json(folder / f"evaluation-{split}.json", result)
    return result


def bounds(vae, dataset, batch_size=64, seed=0):
    """Computes a VAE's bounds on the log-likelihood of a data set.

    Args:
        vae: a `keras_segen.generation.VAE`.
        dataset: a `keras_segen.data.Pictures`, with classes if the model is told them.
        batch_size: int, images at once.
        seed: int, for the codes of the importance-weighted bound.

    Returns:
        Dict as the entry `bounds` of `evaluate`.
    """
    if not vae.compiled:
        vae.compile()
    found = vae.evaluate(
        backend.make_loader(Batches(dataset, batch_size)), verbose=0, return_dict=True
    )
    first = [dataset[k] for k in range(min(BOUND_IMAGES, len(dataset)))]
    images, labels = map(np.stack, zip(*first, strict=True))
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
