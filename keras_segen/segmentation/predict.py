"""Prediction for images of any size, in bounded memory.

A network takes images of certain sizes, and an image may be larger than the memory. So an image
is padded to a size that the network takes, or cut into overlapping tiles whose probabilities are
blended. At any time only a band of the image is held as probabilities: rows that no later tile
touches are returned, from the top down.

Flips and scales (test-time augmentation) are further passes over the same image, each with its own
tiles, that add to the same band.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import cv2
import keras
import numpy as np
from keras import ops

from keras_segen import backend
from keras_segen.arguments import as_number, whole_number
from keras_segen.data.dataset import check_size
from keras_segen.data.images import read_image, resize_image, to_float
from keras_segen.segmentation.fold import as_functional, fold_batch_normalization

OUTPUTS = ("classes", "probabilities", "entropy")

# (upside down, left to right) of each pass.
FLIPS = {
    "none": ((False, False),),
    "horizontal": ((False, False), (False, True)),
    "both": ((False, False), (False, True), (True, False), (True, True)),
}

DEFAULT_TILE = 512
MIN_SCALE, MAX_SCALE = 0.05, 20
ROWS_AT_ONCE = 64  # of a band, when it is turned into results


class Predictor:
    """Predicts images of any size with a segmentation network.

    A network for images of any size is first run on small ones, to find the multiple that its
    heights and widths must have. Images up to the tile's size run as a whole, padded to that
    multiple at the bottom and on the right and cropped back. (Padding reflects; an image too small
    to reflect repeats its last row or column.) Without padding, the result is the network's own. A
    network for one size gets tiles of that size; with `tile` it is taken for any size.

    Larger images are cut into overlapping tiles of one size. The probabilities of a tile weigh less
    near its edge (a Hann window), and at each pixel the weights of all tiles sum to 1. Memory grows
    only with the image's width: one band of float32 probabilities
    `(tile height, width, num_classes)`, and a batch of tiles.

    Args:
        model: a functional or sequential `keras.Model` from images
            `(batch, height, width, channels)`, float32 in [0, 1], to logits of the same height
            and width: one per class, or one in all for two classes (its sigmoid is the
            probability of class 1). A model that ends in a softmax, or in one channel with a
            sigmoid, is used unchanged.
        tile: int or `(height, width)`, the largest images that the network gets. None means 512
            rounded up to the network's multiple, or the size that the network was built for.
        overlap: int, the fewest pixels that neighboring tiles share. None means a quarter of the
            tile. If a result shows seams, the receptive field is larger: use larger tiles.
        batch_size: int, tiles per step of the network.
        flips: `"none"`, `"horizontal"` (also mirrored left to right) or `"both"` (also upside
            down, and both). The probabilities of all are averaged.
        scales: tuple of floats from 0.05 to 20, such as (0.75, 1, 1.25): the image is predicted at
            each of these sizes, and the probabilities are averaged.
        fold: bool, whether to fold batch normalization into the convolutions first: faster, and
            equal to rounding.

    Attributes:
        num_classes: int; 2 for a network with one output channel.
        channels: int, channels of the images.
        multiple: int, what heights and widths are padded to; None for a network of one size.
        tile: `(height, width)`.

    Raises:
        ValueError: if an argument is out of range, if the model has no such graph, or if its
            output does not have the size of the images.

    Example:

    >>> from keras_segen.segmentation import unet
    >>> predictor = Predictor(unet((None, None, 3), num_classes=4, filters=(4, 8)), tile=32)
    >>> predictor.predict(np.zeros((50, 33, 3), "uint8")).shape
    (50, 33)
    """

    def __init__(
        self, model, tile=None, overlap=None, batch_size=4, flips="none", scales=(1.0,), fold=False
    ):
        batch_size = whole_number("batch_size", batch_size, 1, ", 1 or more")
        if flips not in FLIPS:
            raise ValueError(f"flips is {flips!r}, expected one of {', '.join(map(repr, FLIPS))}.")
        is_sequence = isinstance(scales, tuple | list | np.ndarray) and len(scales)
        numbers = [as_number(scale) for scale in scales] if is_sequence else [None]
        if None in numbers or not all(MIN_SCALE <= s <= MAX_SCALE for s in numbers):
            raise ValueError(
                f"scales is {scales!r}, expected numbers from {MIN_SCALE} to {MAX_SCALE}, such as "
                "(0.75, 1)."
            )
        self.batch_size = batch_size
        self.flips = flips
        self.scales = tuple(numbers)

        model = fold_batch_normalization(model) if fold else as_functional(model)
        _check_ends(model)
        if tile is not None:
            model = _for_any_size(model)
        self.fixed_size = model.input_shape[1:3]
        self.channels = model.input_shape[3]
        self.multiple = _find_multiple(model) if None in self.fixed_size else None
        self.tile = self._tile(tile)
        self.overlap = self._overlap(overlap)
        self.network = _with_probabilities(model)
        self.num_classes = self.network.output_shape[-1]

    def _tile(self, tile):
        if tile is None:
            free = -(-DEFAULT_TILE // self.multiple) * self.multiple if self.multiple else None
            return tuple(size or free for size in self.fixed_size)
        tile = check_size(tile)
        wrong = [size for size in tile if size % self.multiple]
        if wrong:
            below = wrong[0] // self.multiple * self.multiple
            raise ValueError(
                f"tile is {wrong[0]}, and this network takes multiples of {self.multiple}: use "
                f"{f'{below} or ' if below else ''}{below + self.multiple}."
            )
        return tile

    def _overlap(self, overlap):
        if overlap is None:
            return tuple(size // 4 for size in self.tile)
        if not 0 <= overlap < min(self.tile):
            raise ValueError(
                f"overlap is {overlap}, expected 0 or more and less than the tile's "
                f"{min(self.tile)} pixels."
            )
        return (overlap, overlap)

    def __call__(self, image, output="classes", out=None, size=None):
        """As `predict`."""
        return self.predict(image, output, out, size)

    def predict(self, image, output="classes", out=None, size=None):
        """Predicts one image.

        Args:
            image: array `(height, width, channels)`, uint8, uint16, or float in [0, 1]; a
                `numpy.memmap` is read tile by tile.
            output: `"classes"`, `"probabilities"` or `"entropy"`.
            out: array to write the result into, such as a `numpy.memmap` for a result that is
                larger than the memory; None makes one.
            size: `(height, width)` that the image is resized to first, such as that of the
                training; the probabilities are resized back. None predicts the image at its own
                size.

        Returns:
            An array, or `out`: for `"classes"` `(height, width)`, uint8 (uint16 for more than
            256 classes), the most probable class; for `"probabilities"`
            `(height, width, num_classes)`, float32, their sum is 1; for `"entropy"`
            `(height, width)`, float32, the entropy of the probabilities in nats: 0 where the
            network is sure, log(num_classes) where all classes are equally likely.

        Raises:
            ValueError: if shape, type or values of the image, or the shape or type of `out`, do
                not fit; or if the network gives values that are not finite.
        """
        image = self._checked(image)
        out = self._result(image, output, out)
        if size is not None:
            resized = resize_image(np.ascontiguousarray(image), check_size(size))
            _write_enlarged(self.predict(resized, "probabilities"), output, out)
            return out
        for top, band in self._bands(image):
            _write_rows(band, output, out[top : top + len(band)])
        return out

    def stream(self, images, output="classes", size=None):
        """Predicts images one after the other; none is kept.

        Args:
            images: a `keras_segen.data.Dataset`, or an iterable of arrays as `predict` takes
                them or of paths of image files; or one path.
            output: as in `predict`.
            size: as in `predict`.

        Yields:
            What `predict` returns, for each image in turn.
        """
        for item in [images] if isinstance(images, (str, Path)) else images:
            if isinstance(item, (str, Path)):
                item = read_image(item, self.channels)
            elif isinstance(item, tuple):  # a data set's image and mask
                item = item[0]
            yield self.predict(item, output, size=size)

    def _checked(self, image):
        image = np.asanyarray(image)
        if image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            raise ValueError(
                f"image has shape {image.shape}; expected (height, width, {self.channels}): one "
                "image, without a batch axis, of at least one pixel."
            )
        if image.dtype.kind != "f" and image.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"image is {image.dtype}; expected uint8, uint16 or float in [0, 1].")
        return image

    def _result(self, image, output, out):
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}, expected one of {', '.join(OUTPUTS)}.")
        shape = image.shape[:2] + ((self.num_classes,) if output == "probabilities" else ())
        dtype = np.dtype("float32")
        if output == "classes":
            dtype = np.dtype("uint8" if self.num_classes <= 256 else "uint16")
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or not np.can_cast(dtype, out.dtype, "safe"):
            raise ValueError(
                f"out is {out.dtype} {out.shape}; expected {dtype} {shape} for the {output} of "
                f"this image."
            )
        return out

    def _bands(self, image):
        """Yields `(top, probabilities)` from the top of the image down.

        `probabilities` is `(rows, width, num_classes)`, and is used again for the next band.
        """
        passes = self._passes(*image.shape[:2])
        # The rows of tiles of all passes, by where they begin in the image.
        rows = sorted(
            (top, number, row)
            for number, one in enumerate(passes)
            for row, top in enumerate(one.down.starts)
        )
        height = max(one.down.length for one in passes)
        band = np.zeros((height, image.shape[1], self.num_classes), "float32")
        flat = band.reshape(-1)
        done = 0  # rows of the image that were handed out: the band begins there
        for top, group in itertools.groupby(rows, key=lambda row: row[0]):
            if top > done:
                yield done, band[: top - done]
                # Moved within one dimension, which NumPy does without a copy.
                handed_out = (top - done) * band[0].size
                flat[:-handed_out] = flat[handed_out:]
                flat[-handed_out:] = 0
                done = top
            tiles = [
                _Tile(passes[number], row, column)
                for _, number, row in group
                for column in range(len(passes[number].across.starts))
            ]
            self._add(image, tiles, band)
        yield done, band[: image.shape[0] - done]

    def _passes(self, height, width):
        pairs, passes = list(itertools.product(FLIPS[self.flips], self.scales)), []
        for (upside_down, mirrored), scale in pairs:
            down = self._axis(height, scale, 0, upside_down)
            across = self._axis(width, scale, 1, mirrored)
            passes.append(_Pass(down, across, 1 / len(pairs)))
        return passes

    def _axis(self, length, scale, axis, flipped):
        """Plans the tiles along one axis of an image: see `_Axis`."""
        tile, overlap = self.tile[axis], self.overlap[axis]
        scaled = max(1, round(length * scale))
        if scaled <= tile:
            size = self.fixed_size[axis] or -(-scaled // self.multiple) * self.multiple
            return _Axis((0,), length, scaled, size, flipped, np.ones((1, length), "float32"))
        tile_length = min(length, max(1, round(tile / scale)))
        step = max(1, tile_length - overlap / scale)
        count = 1 + int(np.ceil((length - tile_length) / step))
        starts = np.linspace(0, length - tile_length, count).round().astype(int)
        if flipped:  # the flipped image, cut as an image that is not
            starts = (length - tile_length - starts)[::-1]
        weights = _blending_weights(starts, tile_length, length)
        return _Axis(tuple(starts.tolist()), tile_length, tile, tile, flipped, weights)

    def _add(self, image, tiles, band):
        """Predicts tiles that begin in the band's first row, and adds them to the band."""
        tiles = sorted(tiles, key=lambda tile: tile.size)
        for _, group in itertools.groupby(tiles, key=lambda tile: tile.size):
            group = list(group)
            for first in range(0, len(group), self.batch_size):
                batch = group[first : first + self.batch_size]
                images = np.stack([tile.cut(image) for tile in batch])
                probabilities = backend.infer(self.network, images)
                if not np.isfinite(probabilities).all():
                    raise ValueError(
                        f"{self.network.name} gives NaN or infinite values for this image, which "
                        "are no class: its weights are not finite, or overflow. keras-segen train "
                        "--check-numerics names the layer; train anew, or take another run."
                    )
                for tile, found in zip(batch, probabilities, strict=True):
                    tile.add(found, band)


class _Axis(NamedTuple):
    """How one pass cuts one axis of an image into tiles."""

    starts: tuple  # where the tiles begin in the image, ascending
    length: int  # of a tile, in pixels of the image
    scaled: int  # its length after resizing
    size: int  # what the network gets: the same, or padded to it
    flipped: bool
    weights: np.ndarray  # (number of tiles, length): at each pixel they sum to 1


class _Pass(NamedTuple):
    """One pass over an image: flipped or not, at one scale."""

    down: _Axis
    across: _Axis
    share: float  # in the average of all passes


class _Tile(NamedTuple):
    """One tile of a pass."""

    of: _Pass
    row: int
    column: int

    @property
    def size(self):
        return self.of.down.size, self.of.across.size

    def cut(self, image):
        """Returns what the network gets: float32 `(size, size, channels)`."""
        down, across, _ = self.of
        top, left = down.starts[self.row], across.starts[self.column]
        pixels = np.asarray(image[top : top + down.length, left : left + across.length])
        pixels = _to_float(pixels)[self._flip()]
        pixels = resize_image(np.ascontiguousarray(pixels), (down.scaled, across.scaled))
        return _pad(_pad(pixels, 0, down.size), 1, across.size)

    def add(self, found, band):
        """Adds the tile's probabilities to the band, which begins where the tile does."""
        down, across, share = self.of
        found = found[: down.scaled, : across.scaled]
        if found.shape[:2] != (down.length, across.length):
            found = cv2.resize(found, (across.length, down.length))  # bilinear
        found = found[self._flip()]
        weights = share * down.weights[self.row][:, None] * across.weights[self.column]
        left = across.starts[self.column]
        band[: down.length, left : left + across.length] += found * weights[..., None]

    def _flip(self):
        return tuple(
            slice(None, None, -1 if axis.flipped else 1) for axis in (self.of.down, self.of.across)
        )


def _blending_weights(starts, tile_length, length):
    """Weights of the tiles along an axis: float32 `(number of tiles, tile_length)`.

    A Hann window, which is nowhere 0, divided by the sum of the windows of all tiles.
    """
    window = np.sin(np.pi * (np.arange(tile_length) + 0.5) / tile_length) ** 2
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile_length] += window
    return np.stack([window / total[start : start + tile_length] for start in starts]).astype(
        "float32"
    )


def _to_float(pixels):
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"image is {pixels.dtype} with values from {pixels.min()} to {pixels.max()}; expected "
            "0 to 1. Divide it by its highest possible value."
        )
    return to_float(pixels)


def _pad(pixels, axis, size):
    """Pads at the end of an axis: reflected, or the last value repeated if it is too short."""
    length = pixels.shape[axis]
    widths = [(0, 0)] * 3
    widths[axis] = (0, size - length)
    return np.pad(pixels, widths, mode="reflect" if size - length < length else "edge")


def _write_rows(probabilities, output, out):
    """Writes rows of probabilities into `out` as classes, probabilities or entropy.

    Args:
        probabilities: float32 `(rows, width, num_classes)`.
        output: one of `OUTPUTS`.
        out: array `(rows, width)`, or `(rows, width, num_classes)` for probabilities.
    """
    for first in range(0, len(probabilities), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        part = probabilities[rows]
        if output == "classes":
            out[rows] = part.argmax(axis=-1)
        elif output == "probabilities":
            out[rows] = part
        else:
            logs = np.log(np.maximum(part, np.finfo("float32").tiny))
            out[rows] = np.maximum(0, -(part * logs).sum(axis=-1))


def _write_enlarged(probabilities, output, out):
    """Resizes probabilities bilinearly to the size of `out`, and writes them as `_write_rows`.

    They are resized a few rows at a time: at the new size they are never held in full.

    Args:
        probabilities: float32 `(height, width, num_classes)`.
        output: one of `OUTPUTS`.
        out: array of any height and width.
    """
    height, width = out.shape[:2]
    last = len(probabilities) - 1
    for first in range(0, height, ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, height))
        # Where the centers of the new rows lie between the old ones.
        centers = ((rows + 0.5) * len(probabilities) / height - 0.5).clip(0, last)
        above = np.floor(centers).astype(int)
        share = (centers - above).astype("float32")[:, None, None]
        part = probabilities[above] * (1 - share)
        part += probabilities[np.minimum(above + 1, last)] * share
        part = cv2.resize(part, (width, len(part)))  # bilinear
        _write_rows(part, output, out[first : first + len(part)])


def _check_ends(model):
    """Checks that a model takes one batch of images and gives one of logits."""
    for tensors, name in ((model.inputs, "input"), (model.outputs, "output")):
        shapes = [tensor.shape for tensor in tensors]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] is None:
            raise ValueError(
                f"The model's {name} has the shape {', '.join(map(str, shapes))}; expected one "
                "(batch, height, width, channels)."
            )
    found, expected = model.output_shape[1:3], model.input_shape[1:3]
    if None not in expected and found != expected:
        raise ValueError(
            f"The model gives {found} pixels for images of {expected}; expected as many: the "
            "logits of each pixel."
        )


def _for_any_size(model):
    """Returns the same network, with the same weights, for images of any size."""
    if model.input_shape[1:3] == (None, None):
        return model
    images = keras.Input((None, None, model.input_shape[3]), name=model.inputs[0].name)
    try:
        free = keras.models.clone_model(
            model, input_tensors=images, clone_function=lambda layer: layer
        )
        _find_multiple(free)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"This model takes images of {model.input_shape[1:3]} only, so there is no choice of "
            f"a tile: leave it out. ({error})"
        ) from error
    return free


def _find_multiple(model):
    """Finds the smallest number that heights and widths must be multiples of, up to 64.

    The network is run, as shapes alone do not tell: Keras checks those of a concatenation when it
    is built, not when they are computed. Powers of two are tried first.
    """
    for multiple in sorted(range(1, 65), key=lambda n: (n & (n - 1) > 0, n)):
        # Two sizes of about 64 pixels or more; the factors share none with the strides 2 and 3.
        factor = 6 * -(-64 // (6 * multiple))
        height = model.input_shape[1] or (factor + 1) * multiple
        width = model.input_shape[2] or (factor - 1) * multiple
        images = np.zeros((1, height, width, model.input_shape[3]), "float32")
        try:
            found = tuple(model(images, training=False).shape)
        except Exception:  # what a framework raises for shapes that do not fit has no common type
            continue
        if found[1:3] == (height, width):
            return multiple
    raise ValueError(
        f"{model.name} gives logits of another size than its images have; expected as many "
        "pixels. Tried images whose sides are multiples of 1 to 64."
    )


def _with_probabilities(model):
    """Returns the model with a softmax behind its logits, in float32."""
    scores = model.outputs[0]
    ending = _ending(model)
    if ending == "sigmoid":
        if scores.shape[-1] > 1:
            raise ValueError(
                "The model gives an independent probability per class (sigmoid); expected logits. "
                "Build it with activation=None."
            )
        scores = ops.concatenate([1 - scores, scores], axis=-1)
    elif ending != "softmax":
        scores = ops.cast(scores, "float32")
        if scores.shape[-1] == 1:  # sigmoid(z) is the softmax of (0, z)
            scores = ops.concatenate([ops.zeros_like(scores), scores], axis=-1)
        scores = ops.softmax(scores, axis=-1)
    return keras.Model(model.inputs[0], ops.cast(scores, "float32"), name=model.name)


def _ending(model):
    """The name of the last operation of a model, or of its activation: "softmax", "conv2d", …"""
    last = {operation.name: operation for operation in model.operations}[model.output_names[0]]
    if hasattr(last, "operations"):  # a functional model within the model
        return _ending(last)
    activation = getattr(last, "activation", None)
    return getattr(activation, "__name__", type(last).__name__).lower()
