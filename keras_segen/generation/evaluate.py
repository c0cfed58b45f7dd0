"""Judging generated images: how far they are from real ones, and whether they are copies."""

import hashlib
from typing import NamedTuple

import keras
import numpy as np

from keras_segen import files
from keras_segen.data import cache
from keras_segen.data.arrays import check_images
from keras_segen.data.dataset import Items
from keras_segen.data.images import to_float
from keras_segen.determinism import rng
from keras_segen.generation.distances import (
    check_features,
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
    squared_distances,
)
from keras_segen.generation.extractors import load_extractor

AT_ONCE = 500  # images that are held at once, as pixels; large ones fewer
PIXELS_AT_ONCE = 2**27  # numbers: 512 MB
MOST = 10_000  # images of each side, if the caller does not say
LEAST = 40  # images of each side: two halves of 20


def evaluate(
    fakes, reals, count=None, extractor="efficientnet_lite0", seed=0, checkpoint=None, batch_size=16
):
    """Measures the distance of generated images from real ones.

    The features of the real images are cached (`keras_segen.data.cache`) by the content of the
    images, so that the next evaluation computes only those of the fakes.

    Two references come with the result: one half of the real images against the other, about the
    best possible (with half as many images, the Fréchet distance is larger and the coverage much
    the same), and real images against uniform noise.

    Args:
        fakes: a model with `generate(count, seed=seed)`, such as a `GAN`; or a function
            `(count, seed) -> images`; or images `(number, height, width, channels)`, float in
            [0, 1] or uint8; or a data set. A model generates 500 images at a time (fewer
            if large), each time with another seed, so that any number fits into memory.
        reals: a data set whose images have one size (`keras_segen.data.load`), or images.
        count: int, images of each side, at least 40; None means as many as `reals` has, at most
            10,000. Of more, the same ones are taken each time; of fewer fakes, all.
        extractor: as in `load_extractor`.
        seed: int, for the fakes and for the subsets of the kernel distance.
        checkpoint: str or None, which weights the fakes are from, such as `"best"` or `"last"`:
            for the record.
        batch_size: int, how many images go through the extractor at once.

    Returns:
        Dict of plain values. `measure`: str, the name of the Fréchet distance;
        `frechet_distance`, `kernel_distance`, `kernel_standard_error`, `precision`, `recall`,
        `density`, `coverage`: floats, see `keras_segen.generation.distances`; `sanity`: dict with
        the same figures for `real_against_real` and `real_against_noise`, with `images`, the
        number on each side; `extractor` and its `features` (their number), `extractor_size`,
        `extractor_sha256`; `data`, `split`, `real_images`, `fake_images`, `checkpoint`, `seed`,
        `backend`; `warnings`: list of str, what to be careful about.

    Raises:
        ValueError: if there are too few images, or something else than images, or fakes and reals
            differ in shape; or what `load_extractor` raises.
    """
    extractor = load_extractor(extractor)
    fakes, reals = _as_source(fakes, "fakes"), _as_source(reals, "reals")
    if not _is_finite(reals):
        raise ValueError("reals is a generator; expected a data set or an array of images.")
    count = MOST if count is None else count
    num_reals = min(count, len(reals))
    num_fakes = min(count, len(fakes)) if _is_finite(fakes) else num_reals
    for name, number in (("reals", num_reals), ("fakes", num_fakes)):
        if number < LEAST:
            raise ValueError(f"{number} {name}; expected {LEAST} or more of each.")
    shape = tuple(reals.image_shape if isinstance(reals, Items) else reals.shape[1:])

    of_fakes = _features(extractor, fakes, num_fakes, seed, batch_size, shape)
    of_reals = _cached_features(extractor, reals, num_reals, batch_size, shape)
    num_noise = min(num_reals, 1000)
    of_noise = _cached_features(extractor, _noise(shape), num_noise, batch_size, shape)
    half = num_reals // 2
    rows = {
        "real_against_real": (of_reals[:half], of_reals[half : 2 * half]),
        "real_against_noise": (of_reals[:num_noise], of_noise),
    }
    result = {
        "measure": extractor.distance_name,
        **compare_features(of_reals, of_fakes, seed),
        "sanity": {
            name: {"images": len(first), **compare_features(first, second, seed)}
            for name, (first, second) in rows.items()
        },
        "extractor": extractor.name,
        "features": extractor.dimension,
        "extractor_size": list(extractor.size),
        "extractor_sha256": extractor.sha256,
        "data": getattr(reals, "name", "array"),
        "split": getattr(reals, "split", None),
        "real_images": num_reals,
        "fake_images": num_fakes,
        "checkpoint": checkpoint,
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return result | {"warnings": _warnings(result)}


def compare_features(reals, fakes, seed=0):
    """Computes all distances and scores between two sets of features, at least 20 rows each.

    Returns:
        Dict with `frechet_distance`, `kernel_distance`, `kernel_standard_error`, `precision`,
        `recall`, `density` and `coverage`: floats.
    """
    kernel = kernel_distance(reals, fakes, seed=seed)
    return {
        "frechet_distance": frechet_distance(reals, fakes),
        "kernel_distance": kernel.mean,
        "kernel_standard_error": kernel.standard_error,
        **precision_recall(reals, fakes)._asdict(),
        **density_coverage(reals, fakes)._asdict(),
    }


class Neighbors(NamedTuple):
    """What `nearest_neighbors` finds, the nearest first.

    `indices`: int64 `(number, neighbors)`. `distances`: float64 `(number, neighbors)`.
    `images`: `(number, neighbors, height, width, channels)`, as they are in the real ones.
    """

    indices: np.ndarray
    distances: np.ndarray
    images: np.ndarray


def nearest_neighbors(fakes, reals, neighbors=1, extractor=None, batch_size=16):
    """Finds the real images nearest to each generated one: is it a copy?

    A distance alone says little. Compare it with the distances of new real images (of the test
    split) to the same training images: fakes that are much nearer are copies.

    Args:
        fakes: images `(number, height, width, channels)`, float in [0, 1] or uint8.
        reals: a data set whose images have the same shape, the training split; or images.
        neighbors: int, how many for each.
        extractor: as in `load_extractor`, to compare features; None compares pixels.
        batch_size: int, how many images go through the extractor at once.

    Returns:
        `Neighbors`: indices into `reals`, Euclidean distances between the features or between
        the pixels in [0, 1], and the real images, which `keras_segen.plot.neighbors` draws.

    Raises:
        ValueError: if these are not images, shapes differ, or there are fewer reals than
            `neighbors`; or what `load_extractor` raises.

    Example:

    >>> reals = np.linspace(0, 1, 5).reshape(5, 1, 1, 1) * np.ones((1, 2, 2, 1))
    >>> found = nearest_neighbors(reals[2:3] + 0.05, reals, neighbors=2)
    >>> found.indices, found.distances.round(3)
    (array([[2, 3]]), array([[0.1, 0.4]]))
    """
    fakes, reals = check_images(np.asarray(fakes)), _as_source(reals, "reals")
    if not _is_finite(reals):
        raise ValueError("reals is a generator; expected a data set or an array of images.")
    if not 1 <= neighbors <= len(reals):
        raise ValueError(f"neighbors is {neighbors}, expected 1 to {len(reals)}, the reals.")
    extractor = None if extractor is None else load_extractor(extractor)

    def vectors(images):
        if extractor is not None:
            return extractor(images, batch_size)
        return to_float(images).reshape(len(images), -1)

    wanted = vectors(fakes)
    indices = np.zeros((len(fakes), 0), "int64")
    distances = np.zeros((len(fakes), 0))
    first = 0
    for images in _pick(reals, np.arange(len(reals)), fakes.shape[1:]):
        found, how_far = _nearest(wanted, vectors(images), min(neighbors, len(images)))
        indices = np.concatenate([indices, found + first], axis=1)
        distances = np.concatenate([distances, how_far], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :neighbors]
        indices = np.take_along_axis(indices, order, axis=1)
        distances = np.take_along_axis(distances, order, axis=1)
        first += len(images)
    found = np.concatenate(list(_pick(reals, indices.ravel(), fakes.shape[1:])))
    return Neighbors(indices, distances, found.reshape(*indices.shape, *fakes.shape[1:]))


def _nearest(wanted, candidates, neighbors):
    """Finds the rows nearest to each wanted one: indices and distances `(number, neighbors)`."""
    indices = np.empty((len(wanted), neighbors), "int64")
    distances = np.empty((len(wanted), neighbors))
    for rows, _, squared in squared_distances(wanted, candidates):
        indices[rows] = np.argpartition(squared, neighbors - 1, axis=1)[:, :neighbors]
    for column in range(neighbors):  # from differences, which are exact where two are close
        apart = wanted.astype("float64") - candidates[indices[:, column]]
        distances[:, column] = np.linalg.norm(apart, axis=1)
    return indices, distances


def _as_source(source, name):
    """Returns a data set, an array of images, or a function `(count, seed) -> images`."""
    if hasattr(source, "generate"):
        return lambda count, seed: source.generate(count, seed=seed)
    if isinstance(source, Items):
        if source.image_shape is None:
            raise ValueError(
                f"The images of {source.name} have sizes of their own; expected one size: load "
                "them with size=…."
            )
        return source
    if isinstance(source, keras.Model):
        raise ValueError(
            f"{name}: the model {source.name!r} has no method generate(count, seed); expected a "
            "GAN, a VAE, a function (count, seed) -> images, or images."
        )
    return source if callable(source) else check_images(np.asarray(source))


def _is_finite(source):
    """Whether a source has a certain number of images, and is not a function."""
    return hasattr(source, "__len__")


def _stream(source, count, seed, shape):
    """Yields `count` images of a source, a part at a time, in an order of their own."""
    if _is_finite(source):
        # Shuffled: files of a folder are often sorted by class.
        chosen = rng("images to judge by", len(source)).permutation(len(source))[:count]
        yield from _pick(source, chosen, shape)
        return
    at_once = _at_once(shape)
    for number, first in enumerate(range(0, count, at_once)):
        asked = min(at_once, count - first)
        images = source(asked, int(rng("images to judge", seed, number).integers(2**31)))
        images = check_images(np.asarray(images))
        if len(images) != asked:
            raise ValueError(f"The generator made {len(images)} images; expected {asked}.")
        yield _check_shape(images, shape)


def _pick(source, chosen, shape):
    """Yields the images of a data set or an array, a part at a time."""
    at_once = _at_once(shape)
    for first in range(0, len(chosen), at_once):
        part = chosen[first : first + at_once]
        if isinstance(source, Items):
            images = check_images(np.stack([source[int(index)][0] for index in part]))
        else:
            images = source[part]
        yield _check_shape(images, shape)


def _at_once(shape):
    return max(1, min(AT_ONCE, PIXELS_AT_ONCE // int(np.prod(shape))))


def _check_shape(images, shape):
    if images.shape[1:] != tuple(shape):
        raise ValueError(
            f"Fakes and reals differ in shape: {images.shape[1:]} and {tuple(shape)}; expected "
            "images of one size and number of channels. Load the data set with size=…, channels=…."
        )
    return images


def _noise(shape):
    """A source of images without any order: every pixel uniform in [0, 1]."""
    return lambda count, seed: rng("noise images", seed).random((count, *shape), "float32")


def _features(extractor, source, count, seed, batch_size, shape):
    parts = [extractor(images, batch_size) for images in _stream(source, count, seed, shape)]
    return check_features(np.concatenate(parts))


def _cached_features(extractor, source, count, batch_size, shape):
    """The same, kept in the cache under the content of the images and the extractor's key."""
    content = hashlib.sha256()
    for images in _stream(source, count, 0, shape):
        content.update(f"{images.dtype} {images.shape}".encode())
        content.update(np.ascontiguousarray(images))
    key = ("features", content.hexdigest(), extractor.key)
    path = cache.cache_folder() / "features" / f"{cache.digest(*key)}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or not whole
        features = _features(extractor, source, count, 0, batch_size, shape)
    with cache.if_possible(path), files.write_atomically(path) as temporary:
        np.save(temporary, features)
    return features


def _warnings(result):
    """What to be careful about, as sentences."""
    found = []
    fewest, features = min(result["real_images"], result["fake_images"]), result["features"]
    if fewest < 10 * features:
        floor = result["sanity"]["real_against_real"]["frechet_distance"]
        rank = f" (their covariance has a rank of {fewest - 1} at most)"
        found.append(
            f"{fewest} images are few for {features} features{rank * (fewest <= features)}: the "
            "Fréchet distance comes out too large, the more so the fewer images. Two halves of the "
            f"real ones are {floor:.3g} apart by it. Use {10 * features} images or more, or go by "
            "the kernel distance, which is right on average for any number of images and comes "
            "with its standard error."
        )
    if result["real_images"] != result["fake_images"]:
        found.append(
            f"{result['real_images']} real and {result['fake_images']} generated images: the "
            "Fréchet distance, precision, recall and coverage can be compared only with those of "
            "the same numbers. The kernel distance does not depend on them."
        )
    return found
