"""Looking at a trained GAN or VAE: samples, interpolations, directions, nearest real images.

The functions return a `keras_segen.plot.Picture`, which shows itself in Jupyter.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from keras_segen import plot
from keras_segen.data.dataset import Items
from keras_segen.determinism import rng
from keras_segen.files import write_atomically
from keras_segen.generation.evaluate import nearest_neighbors
from keras_segen.generation.vae import VAE

EXTENT = 3.0  # how far a traversal goes to each side, in standard deviations of a code
TO_MEASURE = 64  # samples for the distances to real images, of which some are drawn


def samples(model, count=64, label=None, seed=0, class_names=()):
    """Draws new images.

    Args:
        model: a `GAN` or `VAE`.
        count: int, 1 to 400.
        label: int, the class of all of them; None, if there are classes, gives them in turn, a
            column each.
        seed: int; image k of a seed is the same on every backend, to rounding.
        class_names: names to write under them, if there are classes.

    Returns:
        A `Picture`.

    Raises:
        ValueError: if the count or the label is out of range.
    """
    _check_number(count)
    images = model.generate(count, label, seed)
    if model.num_classes is None or label is not None:
        return plot.images(images)
    names = class_names or [f"class {number}" for number in range(model.num_classes)]
    labels = [names[number % model.num_classes] for number in range(count)]
    columns = model.num_classes if model.num_classes <= 16 else None
    return plot.images(images, columns, labels)


def interpolation(model, rows=8, num_steps=8, label=None, seed=0):
    """Draws interpolations between samples, one in each row.

    Interpolation is spherical (`LatentModel.interpolate`): in a normal distribution of many
    dimensions nearly all codes have about the same length, and a straight line would pass through
    shorter ones that no network has seen.

    Args:
        model: a `GAN` or `VAE`.
        rows: int; row k goes from sample 2 k of the seed to sample 2 k + 1.
        num_steps: int, images in a row with both ends, at least 2.
        label: int, the class of all of them; None, if there are classes, gives each row another.
        seed: int, as in `samples`.

    Returns:
        A `Picture`.

    Raises:
        ValueError: if a number is out of range.
    """
    _check_number(rows * num_steps)
    codes = model.draw_codes(2 * rows, seed)
    if label is None and model.num_classes is not None:
        label = np.arange(rows) % model.num_classes
    images = model.interpolate(codes[0::2], codes[1::2], num_steps, label)
    between = [""] * (num_steps - 2)
    labels = [[f"sample {2 * k}", *between, f"sample {2 * k + 1}"] for k in range(rows)]
    return plot.images(images.reshape(-1, *model.image_shape), num_steps, sum(labels, []))


def traversal(model, images=None, rows=8, num_steps=7, label=None, seed=0):
    """Draws the effect of single dimensions of a code, one from -3 to 3 in each row.

    With images, for a VAE, the dimensions with the largest KL divergence on these images come
    first, and rows start from the code of the first image. (A VAE does not use dimensions with a
    divergence near 0.) Otherwise the dimensions that change the image most come first, by the mean
    difference of pixels between both ends, and rows start from a random code.

    Args:
        model: a `GAN` or `VAE`.
        images: for a VAE, images `(count, …)` as `encode` takes them; or None.
        rows: int; at most `latent_dim` are drawn.
        num_steps: int, images in a row, at least 2.
        label: int, the class of all of them; None is the first, if there are classes.
        seed: int, for the codes, if there are no images.

    Returns:
        A `Picture`: the first label in a row is the dimension and its divergence or change, the
        others are values.

    Raises:
        ValueError: if a number is out of range, or the model is a GAN and there are images.
    """
    if rows < 1 or num_steps < 2:
        raise ValueError(
            f"A traversal has at least 1 row and 2 steps; found {rows} rows and {num_steps} steps."
        )
    rows = min(rows, model.latent_dim)
    _check_number(rows * num_steps)
    if label is None and model.num_classes is not None:
        label = 0
    if images is None:
        code, unit = model.draw_codes(1, seed)[0], "change"
        amounts = _changes(model, label, seed)
    elif isinstance(model, VAE):
        code, unit = model.encode(images[:1])[0], "KL"
        amounts = model.kl_per_dimension(images)
    else:
        raise ValueError(f"{model.name} has no encoder for images: leave out images.")
    chosen = np.argsort(-amounts, kind="stable")[:rows]
    values = np.linspace(-EXTENT, EXTENT, num_steps)
    codes = np.tile(code, (len(chosen), num_steps, 1))  # (rows, num_steps, latent_dim)
    for row, dimension in enumerate(chosen):
        codes[row, :, dimension] = values
    drawn = model.decode(codes.reshape(-1, model.latent_dim), label)
    labels = []
    for dimension in chosen:
        labels += [f"z{dimension}: {unit} {amounts[dimension]:.2f}"]
        labels += [f"{value:+.1f}" for value in values[1:]]
    return plot.images(drawn, num_steps, labels)


def _changes(model, label, seed):
    """How much the image changes between both ends of each dimension, in [0, 1]."""
    starts = model.draw_codes(4, seed)
    changes = np.empty(model.latent_dim)
    for dimension in range(model.latent_dim):
        ends = np.stack([starts, starts])  # (2, 4, latent_dim)
        ends[:, :, dimension] = [[-EXTENT], [EXTENT]]
        first, second = np.split(model.decode(ends.reshape(-1, model.latent_dim), label), 2)
        changes[dimension] = np.abs(first - second).mean()
    return changes


def neighbors(model, reals, held_out=None, rows=8, extractor=None, label=None, seed=0):
    """Draws samples beside their nearest real images: are they copies?

    A copy is much nearer to a training image than new real images are, and much nearer to that
    one than to the second nearest. The title gives both figures, as medians over 64 samples and as
    many new real images. Blurred images are near to everything by their pixels; this does not
    mislead the second figure. Mirrored copies of training images are not found.

    Args:
        model: a `GAN` or `VAE`.
        reals: a data set or images: the training images.
        held_out: a data set or images: new real images for comparison; or None.
        rows: int, samples that are drawn, 1 to 32.
        extractor: as in `keras_segen.generation.load_extractor`, to compare features; None
            compares pixels.
        label: int, the class of all samples; None, if there are classes, gives them in turn.
        seed: int, as in `samples`.

    Returns:
        A `Picture`; `get_suptitle()` returns its title.

    Raises:
        ValueError: what `nearest_neighbors` finds wrong.
    """
    if not 1 <= rows <= plot.MAX_ROWS:
        raise ValueError(f"1 to {plot.MAX_ROWS} samples can be drawn beside real ones; not {rows}.")
    fakes = model.generate(TO_MEASURE, label, seed)
    found = nearest_neighbors(fakes, reals, 3, extractor)
    figure = plot.neighbors(fakes[:rows], found.images[:rows], found.distances[:rows])
    by = "pixels" if extractor is None else f"features of {getattr(extractor, 'name', extractor)}"
    lines = [
        f"Distance by {by} to the nearest of {len(reals)} real images, and its share of that to "
        "the second nearest (medians):",
        _describe_distances("samples", found.distances),
    ]
    if held_out is not None:
        others = pick(held_out, TO_MEASURE, seed)
        distances = nearest_neighbors(others, reals, 2, extractor).distances
        lines.append(_describe_distances("new real images", distances))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9.5)
    return figure


def _check_number(images):
    """Says that a picture cannot hold these images before they are made."""
    if not 1 <= images <= plot.MAX_IMAGES:
        raise ValueError(f"A picture holds 1 to {plot.MAX_IMAGES} images; these would be {images}.")


def _describe_distances(what, distances):
    nearest, second = distances[:, 0], distances[:, 1]
    shares = np.divide(nearest, second, out=np.ones_like(nearest), where=second > 0)
    return f"{len(distances)} {what}: {np.median(nearest):.3g}, {np.median(shares):.2f}"


def pick(dataset, count, seed):
    """Returns some images of a data set or an array, at most `count`: `(number, …)`."""
    chosen = rng("images to look at", seed).permutation(len(dataset))[:count]
    if not isinstance(dataset, Items):
        return np.asarray(dataset)[chosen]
    return np.stack([dataset[int(index)][0] for index in chosen])


def write_separately(model, folder, count, label=None, seed=0, class_names=()):
    """Writes samples as files, a part at a time, so that any number fits into memory.

    Args:
        model: a `GAN` or `VAE`.
        folder: where to; each sample is a PNG of its own size, named by number and class.
        count, label, seed: as in `samples`.
        class_names: names of the classes, if there are some.
    """
    codes = model.draw_codes(count, seed)
    labels = None
    if model.num_classes is not None:
        labels = np.arange(count) % model.num_classes if label is None else np.full(count, label)
    for start in range(0, count, TO_MEASURE):
        part = slice(start, start + TO_MEASURE)
        images = model.decode(codes[part], labels if labels is None else labels[part])
        for number, image in enumerate(images, start):
            name = f"{number:05d}"
            if labels is not None:
                name += f"_{class_names[labels[number]]}"
            name = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
            pixels = np.rint(image * 255).astype("uint8")
            with write_atomically(Path(folder) / f"{name}.png") as temporary:
                Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(temporary)
