"""ROIAlign: a box of any size and place to a picture of one size, without rounding.

A box is divided into size x size bins. A bin's value is the average of the features at 1 or 2 x 2
points within it, each read by bilinear interpolation between the pixels around it. (ROIPool, its
predecessor, rounded the boxes and bins to whole pixels of the features: at stride 16 objects moved
by up to 8 pixels, which boxes can bear and masks cannot.) Each box is read from the level of a
pyramid that fits its size.

Reference: He, Gkioxari, Dollár, Girshick (2017), "Mask R-CNN", https://arxiv.org/abs/1703.06870

Differs from the paper: points beyond the features take the value at their border.
"""

import numpy as np
from keras import ops

from keras_segen import backend


def roi_align(features, strides, boxes, size, samples=2):
    """Reads boxes out of a pyramid of features.

    Args:
        features: list of tensors `(batch, rows, columns, channels)`, the finest first.
        strides: tuple of ints, pixels of the image for a pixel of each of them.
        boxes: float32 `(batch, n, 4)`, `(x1, y1, x2, y2)` in pixels of the image.
        size: int, bins along each side.
        samples: int, points along each side of a bin: 2 as in the paper, or 1, four times as
            fast; boxes are then read from levels twice as fine.

    Returns:
        `(batch, n, size, size, channels)`, of the features' type.

    Example:

    >>> features = ops.reshape(ops.arange(16, dtype="float32"), (1, 4, 4, 1))
    >>> boxes = ops.convert_to_tensor([[[1.0, 1.0, 3.0, 3.0]]])
    >>> ops.convert_to_numpy(roi_align([features], (1,), boxes, size=2))[0, 0, ..., 0]
    array([[ 5.,  6.],
           [ 9., 10.]], dtype=float32)
    """
    channels, dtype = features[0].shape[-1], features[0].dtype
    heights, widths = ([x.shape[axis] for x in features] for axis in (1, 2))
    sizes = [height * width for height, width in zip(heights, widths, strict=True)]
    pixels = ops.concatenate(
        [ops.reshape(x, (-1, n, channels)) for x, n in zip(features, sizes, strict=True)], axis=1
    )
    level = levels(boxes, strides, samples)
    # Of each box's level the columns and rows, and where it begins among the pixels of the batch.
    starts = np.cumsum([0, *sizes[:-1]])
    table = ops.convert_to_tensor(np.stack([widths, heights, starts], axis=1), "int32")
    table = ops.take(table, level, axis=0)  # (batch, n, 3)
    first = ops.arange(ops.shape(pixels)[0], dtype="int32")[:, None, None] * sum(sizes)
    first = first + table[..., 2:]
    pixels = ops.reshape(pixels, (-1, channels))

    # The two columns and rows around each point, and how much each counts.
    stride = ops.take(ops.convert_to_tensor(strides, boxes.dtype), level, axis=0)[..., None]
    n, count = boxes.shape[1], size * samples
    before, after, between = _neighbors(boxes / stride, table[..., :2, None], count)
    places = ops.stack([before, after], axis=-1)  # (batch, n, 2, count, 2)
    shares = ops.stack([1 - between, between], axis=-1)
    rows = first[..., None] + places[:, :, 1] * table[..., :1, None]  # (batch, n, count, 2)
    # The four pixels around each point: (batch, n, count, count, 2, 2)
    index = rows[:, :, :, None, :, None] + places[:, :, 0, None, :, None]
    weights = shares[:, :, 1, :, None, :, None] * shares[:, :, 0, None, :, None]
    shape = -1, n, count, count, 4
    values = backend.weighted_rows(
        pixels, ops.reshape(index, shape), ops.reshape(ops.cast(weights, dtype), shape)
    )
    if samples == 1:
        return values
    bins = ops.reshape(values, (-1, n, size, samples, size, samples, channels))
    return ops.mean(bins, axis=(3, 5))


def levels(boxes, strides, samples=2):
    """Finds the level for each box: the one on which it is `7 * samples` to twice as many pixels.

    With 7 x 7 bins the points that are read then lie 1 to 2 pixels apart. For `samples=2` and
    strides from 4 on it is the rule of the paper: 224 pixels belong to stride 16.

    Reference: Lin et al. (2017), "Feature pyramid networks for object detection", equation 1.

    Args:
        boxes: `(…, 4)` in pixels of the image.
        strides: tuple of ints, each twice the one before.
        samples: int.

    Returns:
        int32 `(…)`, from 0 to `len(strides) - 1`.

    Example:

    >>> boxes = ops.convert_to_tensor([[0.0, 0, 224, 224], [0, 0, 223, 223], [0, 0, 9, 9]])
    >>> ops.convert_to_numpy(levels(boxes, strides=(4, 8, 16, 32)))
    array([2, 1, 0], dtype=int32)
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    smallest = 7.0 * samples * strides[0]
    # The last term is for rounding: exact powers of 2 belong to the level above.
    level = ops.floor(0.5 * ops.log2(ops.maximum(area, 1e-4) / smallest**2) + 1e-6)
    return ops.cast(ops.clip(level, 0, len(strides) - 1), "int32")


def crop_instances(planes, numbers, boxes, size):
    """Crops the mask of an object out of a plane of integers, as ROIAlign does with one sample.

    No mask per object is ever made: what is interpolated is "this pixel has that number".

    Args:
        planes: int32 `(batch, height, width)`, as in `boxes.py`.
        numbers: int32 `(batch, n)`, the number of the object for each box.
        boxes: float32 `(batch, n, 4)`.
        size: int, points along each side.

    Returns:
        `(batch, n, size, size)` in [0, 1], of the type of the boxes.

    Example:

    >>> planes = ops.convert_to_tensor([[[257, 257, 258, 0], [257, 258, 258, 0]]])
    >>> numbers, boxes = ops.convert_to_tensor([[1]]), ops.convert_to_tensor([[[0.0, 0, 2, 2]]])
    >>> ops.convert_to_numpy(crop_instances(planes, numbers, boxes, size=2))[0, 0]
    array([[1., 1.],
           [1., 0.]], dtype=float32)
    """
    height, width = planes.shape[1:]
    first = ops.arange(ops.shape(planes)[0], dtype="int32")[:, None, None, None] * (height * width)
    pixels = ops.reshape(planes % 256, (-1,))

    def at(y, x):
        same = ops.take(pixels, first + y * width + x, axis=0) == numbers[..., None, None]
        return ops.cast(same, boxes.dtype)

    lengths = ops.convert_to_tensor(np.array([[width], [height]]), "int32")
    before, after, between = _neighbors(boxes, lengths, size)
    (left, top), (right, bottom) = (
        (x[:, :, 0, None], x[:, :, 1, :, None]) for x in (before, after)
    )
    beyond, below = between[:, :, 0, None], between[:, :, 1, :, None]
    upper = at(top, left) * (1 - beyond) + at(top, right) * beyond
    lower = at(bottom, left) * (1 - beyond) + at(bottom, right) * beyond
    return upper * (1 - below) + lower * below


def _neighbors(boxes, lengths, count):
    """Points along the sides of boxes, the columns first, then the rows.

    Args:
        boxes: `(batch, n, 4)` in pixels of what is read.
        lengths: int32 `(…, 2, 1)`, how many columns and rows it has.
        count: int, points along each side.

    Returns:
        The pixels before and after each point, int32 `(batch, n, 2, count)` each, and how far on
        the way between their centers it is.
    """
    steps = ops.convert_to_tensor((np.arange(count) + 0.5) / count, boxes.dtype)
    start, end, last = boxes[..., :2, None], boxes[..., 2:, None], lengths - 1
    places = start + (end - start) * steps - 0.5
    places = ops.minimum(ops.maximum(places, 0.0), ops.cast(last, start.dtype))
    low = ops.floor(places)
    before = ops.cast(low, "int32")
    return before, ops.minimum(before + 1, last), places - low
