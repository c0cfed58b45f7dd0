"""Boxes around objects: how they overlap, are told apart, thinned out, drawn by lot and filled.

A box is `(x1, y1, x2, y2)` in pixels of the image, float32. It ends where the next pixel begins:
the box of a single pixel at the corner is `(0, 0, 1, 1)`, and its area the number of its pixels.
All shapes are static: a number of slots, and a flag for each that says whether something is in it.

The truth comes as one plane of integers, `256 * class + number` for a pixel of object `number` (1
to 254, unlike within an image) of `class` (from 1), 0 for background and `VOID` for pixels that
count as neither. Boxes are computed from it, so whatever turns or warps images and planes alike
keeps them right.
"""

import numpy as np
from keras import ops

VOID = 255
LARGEST = float(np.log(1000 / 16))  # log of how much larger than its anchor a box may become
SMALLEST = 1e-3  # pixels, so that logarithms and quotients of empty boxes stay finite


def iou(first, second):
    """Intersection over union of all pairs.

    Args:
        first, second: boxes `(…, n, 4)` and `(…, m, 4)`.

    Returns:
        float32 `(…, n, m)`; 0 for two empty boxes.

    Example:

    >>> boxes = ops.convert_to_tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    >>> ops.convert_to_numpy(iou(boxes[:1], boxes)).round(3)
    array([[1.   , 0.333]], dtype=float32)
    """
    intersection, union = _intersection_and_union(first, second)
    return intersection / ops.maximum(union, 1e-9)


def _intersection_and_union(first, second):
    # Each coordinate's numbers side by side in memory: several times as fast.
    sides = ops.stack([second[..., None, :, i] for i in range(4)])  # (4, …, 1, m)
    left, top, right, bottom = (first[..., :, None, i] for i in range(4))
    x1, y1, x2, y2 = (sides[i] for i in range(4))
    widths = ops.relu(ops.minimum(right, x2) - ops.maximum(left, x1))
    heights = ops.relu(ops.minimum(bottom, y2) - ops.maximum(top, y1))
    intersection = widths * heights
    return intersection, _area(first)[..., :, None] + _area(second)[..., None, :] - intersection


def _area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def anchors(image_size, strides, sizes, ratios=(0.5, 1.0, 2.0)):
    """Lays boxes of several proportions around each pixel of each level of a pyramid.

    Args:
        image_size: `(height, width)` in pixels.
        strides: tuple of ints, of the levels; a level has `ceil(height / stride)` rows.
        sizes: tuple of numbers, one for each level: the root of the boxes' area, in pixels.
        ratios: tuple of floats, height over width.

    Returns:
        A list of a float32 array `(rows * columns * len(ratios), 4)` for each level, in NumPy.

    Example:

    >>> anchors((4, 8), strides=(4,), sizes=(4,), ratios=(1.0,))
    [array([[0., 0., 4., 4.],
           [4., 0., 8., 4.]], dtype=float32)]
    """
    levels = []
    halves = np.array([[ratio**-0.5, ratio**0.5] for ratio in ratios]) / 2
    for stride, size in zip(strides, sizes, strict=True):
        rows, columns = (-(-side // stride) for side in image_size)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        centers = (np.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride
        boxes = np.concatenate([centers - size * halves, centers + size * halves], -1)
        levels.append(boxes.reshape(-1, 4).astype("float32"))
    return levels


def encode(boxes, references, weights):
    """Says where boxes lie as seen from references: moves in their sides, logs of growth.

    Args:
        boxes, references: `(…, 4)`.
        weights: tuple of four floats, for x, y, width and height; they bring the numbers to about
            the same spread.

    Returns:
        `(…, 4)` of the type of the boxes, finite also for empty ones.

    Example:

    >>> box = ops.convert_to_tensor([1.0, 0.0, 3.0, 2.0])
    >>> reference = ops.convert_to_tensor([0.0, 0.0, 2.0, 2.0])
    >>> ops.convert_to_numpy(encode(box, reference, (10.0, 10.0, 5.0, 5.0)))
    array([5., 0., 0., 0.], dtype=float32)
    """
    sides = ops.maximum(references[..., 2:] - references[..., :2], SMALLEST)
    grown = ops.maximum(boxes[..., 2:] - boxes[..., :2], SMALLEST)
    moved = boxes[..., :2] + boxes[..., 2:] - references[..., :2] - references[..., 2:]
    deltas = ops.concatenate([moved / (2 * sides), ops.log(grown / sides)], axis=-1)
    return deltas * ops.convert_to_tensor(weights, deltas.dtype)


def decode(deltas, references, weights, image_size):
    """Turns what `encode` gives back into boxes, cut at the border of the image.

    Args:
        deltas, references: `(…, 4)`.
        weights: tuple of four floats, as for `encode`.
        image_size: `(height, width)` in pixels.

    Returns:
        `(…, 4)`, of the type of the deltas.

    Example:

    >>> reference = ops.convert_to_tensor([0.0, 0.0, 2.0, 2.0])
    >>> deltas = ops.convert_to_tensor([5.0, 0.0, 0.0, 0.0])
    >>> ops.convert_to_numpy(decode(deltas, reference, (10.0, 10.0, 5.0, 5.0), (8, 8)))
    array([1., 0., 3., 2.], dtype=float32)
    """
    deltas = deltas / ops.convert_to_tensor(weights, deltas.dtype)
    sides = references[..., 2:] - references[..., :2]
    centers = (references[..., :2] + references[..., 2:]) / 2 + deltas[..., :2] * sides
    halves = ops.exp(ops.minimum(deltas[..., 2:], LARGEST)) * sides / 2
    return clip(ops.concatenate([centers - halves, centers + halves], axis=-1), image_size)


def clip(boxes, image_size):
    """Cuts boxes `(…, 4)` at the border of the image."""
    height, width = image_size
    limits = ops.convert_to_tensor((width, height, width, height), boxes.dtype)
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def highest(values, count):
    """Finds the highest values of each row, the highest first.

    Of equal values the first comes first, on every backend (`ops.top_k` promises no order).

    Args:
        values: `(…, n)`.
        count: int, at most n.

    Returns:
        The values and their places, int32: `(…, count)` each.
    """
    order = ops.argsort(-values, axis=-1)[..., :count]
    return ops.take_along_axis(values, order, axis=-1), order


def take(values, index):
    """Takes from each row those at `index` `(batch, m)`: `(batch, n)` or `(batch, n, c)`, m for n.

    Example:

    >>> values = ops.convert_to_tensor([[[1, 2], [3, 4]]])
    >>> ops.convert_to_numpy(take(values, ops.convert_to_tensor([[1, 1, 0]])))
    array([[[3, 4],
            [3, 4],
            [1, 2]]], dtype=int32)
    """
    if len(values.shape) == 3:
        index = index[..., None]
    return ops.take_along_axis(values, index, axis=1)


def nms(boxes, scores, threshold, num_before, num_after, groups=None):
    """Non-maximum suppression: of boxes that overlap keeps the one of the highest score.

    It is greedy and exact, see `survivors`.

    Args:
        boxes: `(batch, n, 4)`.
        scores: float `(batch, n)`; -inf where there is no box.
        threshold: float, boxes overlap if their IoU is above it.
        num_before: int, how many boxes of the highest scores are looked at.
        num_after: int, how many are kept at most.
        groups: integers `(batch, n)`, such as classes: boxes of two groups do not suppress each
            other; None for one group.

    Returns:
        index: int32 `(batch, num_after)`, the places of those kept, the highest score first.
        found: bool `(batch, num_after)`, False where fewer were kept.

    Example:

    >>> boxes = ops.convert_to_tensor([[[0.0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 8, 8]]])
    >>> scores = ops.convert_to_tensor([[0.5, 0.9, 0.1]])
    >>> index, found = nms(boxes, scores, threshold=0.5, num_before=3, num_after=3)
    >>> ops.convert_to_numpy(index)[ops.convert_to_numpy(found)]
    array([1, 2], dtype=int32)
    """
    num_before = min(num_before, scores.shape[1])
    num_after = min(num_after, num_before)
    scores, order = highest(scores, num_before)
    if groups is not None:
        groups = take(groups, order)
    keep = survivors(take(boxes, order), scores, threshold, groups)
    # Those that stay to the front, in their order.
    found, place = highest(keep, num_after)
    return take(order, place), found > 0.5


def survivors(boxes, scores, threshold, groups=None):
    """Non-maximum suppression of boxes that are sorted by score, the highest first.

    A box stays if no box before it that stays overlaps it. Start from "all stay" and ask this of
    all boxes at once, again and again: after round t the first t answers are final, and answers
    that no longer change are the greedy ones. Real proposals need 5 to 10 rounds of one matrix
    product, instead of a round for each box.

    Args:
        boxes: `(batch, n, 4)`.
        scores: `(batch, n)`, -inf where there is no box.
        threshold, groups: as in `nms`.

    Returns:
        float32 `(batch, n)`: 1 for those that stay, else 0.
    """
    intersection, union = _intersection_and_union(boxes, boxes)
    overlap = intersection > threshold * union  # (batch, n, n), without a division
    if groups is not None:
        overlap = ops.logical_and(overlap, groups[:, :, None] == groups[:, None, :])
    earlier = ops.convert_to_tensor(np.triu(np.ones((boxes.shape[1],) * 2, bool), 1))
    suppresses = ops.cast(ops.logical_and(overlap, earlier), "float32")  # [i, j]: i would remove j
    there = ops.cast(scores > -np.inf, "float32")

    def ask(keep):
        removed = ops.matmul(keep[:, None], suppresses)[:, 0]
        return there * ops.cast(removed < 0.5, "float32")

    keep, _ = ops.while_loop(
        lambda keep, before: ops.any(keep != before),
        lambda keep, before: (ask(keep), keep),
        (ask(there), there),
        maximum_iterations=boxes.shape[1],
    )
    return keep


def sample(first, second, noise, count, most):
    """Draws some of two kinds of boxes by lot, such as positives and negatives.

    At most `most` of the first kind; the second kind fills up. The first kind takes the first
    slots, so that none of it is beyond slot `most`.

    Args:
        first, second: bool `(batch, n)`, which boxes are of which kind.
        noise: uniform random numbers in (0, 1) `(batch, n)`.
        count: int, the slots, at most n.
        most: int, at most `count`.

    Returns:
        index: int32 `(batch, count)`, the boxes drawn.
        of_first: bool `(batch, count)`, whether a slot holds a box of the first kind.
        found: bool `(batch, count)`, whether it holds one at all.

    Example:

    >>> first = ops.convert_to_tensor([[False, True, False, True]])
    >>> noise = ops.convert_to_tensor([[0.2, 0.6, 0.7, 0.3]])
    >>> index, of_first, found = sample(first, ~first, noise, count=4, most=1)
    >>> ops.convert_to_numpy(index)[ops.convert_to_numpy(found)]
    array([1, 2, 0], dtype=int32)
    """
    value, index = highest(ops.where(first, noise, -1.0), most)
    num_first = ops.sum(ops.cast(value > 0, "int32"), axis=1, keepdims=True)
    filling_value, filling = highest(ops.where(second, noise, -1.0), count)
    slots = ops.arange(count, dtype="int32")[None]
    of_first = slots < num_first  # (batch, count)
    place = ops.where(of_first, slots, most + slots - num_first)
    index = take(ops.concatenate([index, filling], axis=1), place)
    found = take(ops.concatenate([value, filling_value], axis=1), place) > 0
    return index, of_first, found


def instances(planes, max_instances):
    """Reads boxes and classes of the objects from planes of integers.

    Args:
        planes: int32 `(batch, height, width)`, see above.
        max_instances: int, the slots; object k is in slot k - 1, others are left out.

    Returns:
        boxes: float32 `(batch, max_instances, 4)`.
        classes: int32 `(batch, max_instances)`, 0 for an empty slot.

    Example:

    >>> planes = ops.convert_to_tensor([[[0, 0, 513], [0, 513, 513]]])
    >>> boxes, classes = instances(planes, max_instances=2)
    >>> ops.convert_to_numpy(boxes)[0]
    array([[1., 0., 3., 2.],
           [0., 0., 0., 0.]], dtype=float32)
    >>> ops.convert_to_numpy(classes)[0]
    array([2, 0], dtype=int32)
    """
    batch, (height, width) = ops.shape(planes)[0], planes.shape[1:]
    y, x = np.mgrid[:height, :width].reshape(2, 1, -1).astype("float32")
    sides = ops.convert_to_tensor(np.concatenate([-x, -y, x + 1, y + 1]).T)  # (pixels, 4)
    sides = ops.broadcast_to(sides[None], (batch, height * width, 4))
    planes = ops.reshape(planes, (-1, height * width))
    classes = ops.cast(planes // 256, "float32")[..., None]
    # The highest of each number, for every object of the batch at once.
    owner = planes % 256 + 256 * ops.arange(batch, dtype="int32")[:, None]
    found = ops.segment_max(
        ops.reshape(ops.concatenate([sides, classes], axis=-1), (-1, 5)),
        ops.reshape(owner, (-1,)),
        num_segments=256 * batch,
    )
    found = ops.reshape(found, (-1, 256, 5))[:, 1 : max_instances + 1]
    signs = ops.convert_to_tensor((-1, -1, 1, 1, 1), "float32")
    found = ops.where(found[..., 4:] > 0, found * signs, 0.0)
    return found[..., :4], ops.cast(found[..., 4], "int32")


def sums_above(pixels):
    """Counts the marked pixels above and to the left of each corner of a pixel.

    Args:
        pixels: bool `(batch, height, width)`.

    Returns:
        float32 `(batch, height + 1, width + 1)`.
    """
    sums = ops.cumsum(ops.cumsum(ops.cast(pixels, "float32"), axis=1), axis=2)
    return ops.pad(sums, ((0, 0), (1, 0), (1, 0)))


def share_of(sums, boxes):
    """Measures which share of the pixels of boxes is marked.

    Args:
        sums: what `sums_above` gives; the sum over any box is made of four of them.
        boxes: `(batch, n, 4)`, or `(1, n, 4)` for the same in all images; sides are rounded to
            pixels, what is beyond the image is cut off.

    Returns:
        `(batch, n)` of the type of the boxes; 0 for empty ones.
    """
    rows, columns = sums.shape[1:]
    sums = ops.cast(ops.reshape(sums, (-1, rows * columns)), boxes.dtype)
    boxes = ops.round(clip(boxes, (rows - 1, columns - 1)))
    x1, y1, x2, y2 = (ops.cast(boxes[..., i], "int32") for i in range(4))

    def above(y, x):
        index = y * columns + x
        return take(sums, ops.broadcast_to(index, (ops.shape(sums)[0], index.shape[1])))

    marked = above(y2, x2) - above(y1, x2) - above(y2, x1) + above(y1, x1)
    return marked / ops.maximum(_area(boxes), 1.0)


def paste(masks, boxes, image_size):
    """Lays masks of one size into their boxes, in NumPy.

    Args:
        masks: float array `(n, size, size)`, probabilities.
        boxes: array `(n, 4)`.
        image_size: `(height, width)` in pixels.

    Returns:
        bool array `(n, height, width)`: where the mask, enlarged by bilinear interpolation, is at
        least 0.5 at the center of the pixel.

    Example:

    >>> paste(np.ones((1, 28, 28)), np.array([[1, 0, 3, 2]]), (2, 4)).astype(int)
    array([[[0, 1, 1, 0],
            [0, 1, 1, 0]]])
    """
    boxes = np.asarray(boxes, "float32")

    def weights(start, end, length, size):
        """Of each mask row for each image row: (n, length, size)."""
        sides = np.maximum(end - start, np.float32(SMALLEST))[:, None]
        centers = np.arange(length, dtype="float32") + 0.5
        places = (centers - start[:, None]) / sides * size - 0.5
        distance = np.abs(places[..., None] - np.arange(size, dtype="float32"))
        return (1 - distance).clip(0)

    rows = weights(boxes[:, 1], boxes[:, 3], image_size[0], masks.shape[1])
    columns = weights(boxes[:, 0], boxes[:, 2], image_size[1], masks.shape[2])
    return rows @ masks @ columns.transpose(0, 2, 1) >= 0.5
