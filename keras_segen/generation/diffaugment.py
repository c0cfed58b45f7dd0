"""DiffAugment: D sees every image changed, real or fake, and G learns through the change.

With few pictures D learns them by heart. Augmenting only the real ones would teach G to make
augmented pictures; so real and fake are changed alike, each in its own random way, in D's turn and
in G's, and every change can be differentiated, for G's gradient and for D's slope.

Reference: Zhao et al. (2020), "Differentiable augmentation for data-efficient GAN training",
https://arxiv.org/abs/2006.10738

As in the paper. Gray images have no saturation to change.
"""

from keras import ops

from keras_segen.generation import noise

NUMBERS = 7  # random ones for an image


def diffaugment(images, key, step):
    """Changes color, then place (up to an eighth of the size), then cuts out half of each side.

    What comes in from beyond the border, and what is cut out, is 0.

    Args:
        images: float `(batch, height, width, channels)` in [-1, 1].
        key, step: for the random changes, as in `noise.uniform`.

    Returns:
        Images of the same shape; colors may leave [-1, 1].

    Example:

    >>> tuple(diffaugment(ops.ones((2, 8, 8, 3)), ("example", 0), step=0).shape)
    (2, 8, 8, 3)
    """
    u = noise.uniform(key, step, (ops.shape(images)[0], NUMBERS))
    u = ops.cast(u, images.dtype)
    images = change_color(images, u[:, 0], u[:, 1], u[:, 2])
    images = translate(images, u[:, 3], u[:, 4])
    return cut_out(images, u[:, 5], u[:, 6])


def change_color(images, brightness, saturation, contrast):
    """Brightness up to 0.5 more or less, 0 to 2 times the saturation, 0.5 to 1.5 the contrast."""
    brightness, saturation, contrast = (
        ops.reshape(u, (-1, 1, 1, 1)) for u in (brightness, saturation, contrast)
    )
    images = images + (brightness - 0.5)
    gray = ops.mean(images, axis=3, keepdims=True)
    images = gray + (images - gray) * (2 * saturation)
    mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + (images - mean) * (contrast + 0.5)


def translate(images, down, right):
    """Moves each image by whole pixels, up to an eighth of its size each way."""
    height, width, channels = images.shape[1:]
    rows, columns = (_moved(u, size, images.dtype) for u, size in ((down, height), (right, width)))
    lines = ops.reshape(images, (-1, height, width * channels))
    images = ops.reshape(ops.matmul(rows, lines), (-1, height, width, channels))
    return ops.matmul(columns[:, None], images)


def _moved(u, size, dtype):
    """Matrices `(batch, size, size)` that move along an axis: 1 where the source is."""
    most = int(size / 8 + 0.5)
    shift = ops.floor(u * (2 * most + 1)) - most
    places = ops.arange(size, dtype=dtype)
    source = places - shift[:, None]  # (b, size), of each place
    return ops.cast(ops.equal(source[:, :, None], places), dtype)


def cut_out(images, y, x):
    """Sets a rectangle of half the height and width to 0; its center is anywhere in the image."""
    height, width = images.shape[1:3]
    rows, columns = (_inside(u, size, images.dtype) for u, size in ((y, height), (x, width)))
    return images * (1 - rows[:, :, None, None] * columns[:, None, :, None])


def _inside(u, size, dtype):
    """`(batch, size)`: 1 within half the size around a random center, else 0."""
    length = int(size / 2 + 0.5)
    first = ops.floor(u * (size + 1 - length % 2)) - length // 2
    after = ops.arange(size, dtype=dtype) - first[:, None]
    return ops.cast(ops.logical_and(after >= 0, after < length), dtype)
