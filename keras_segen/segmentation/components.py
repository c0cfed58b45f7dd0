"""Objects out of classes: the connected parts of each class of objects."""

import cv2
import numpy as np

from keras_segen.data.borders import boxes
from keras_segen.data.instances import MIN_PIXELS, NUMBERS, Instance

RIM = 2  # pixels by which objects grow at most


def components(classes, object_classes, min_pixels=MIN_PIXELS, rim=None):
    """Tells the objects of a mask of classes apart: pixels that are connected side by side.

    Pixels that meet only at a corner are not connected, so a border one pixel wide is enough, even
    one that runs diagonally.

    Args:
        classes: int `(height, width)`, the class of each pixel, as `Predictor.predict` returns it.
        object_classes: sequence of int, the classes whose objects are told apart.
        min_pixels: int, smaller parts are no objects.
        rim: None, or bool `(height, width)`, pixels that may belong to an object beside them: the
            nearest object gets those that are up to 2 pixels from it and of no such class.

    Returns:
        uint16 `(height, width)`: 1 to n are the objects, those of the first class first; 0 is the
        rest.

    Raises:
        ValueError: there are more than 65,534 objects, or the sizes of the arrays are wrong.

    Example:

    >>> mask = np.array([[0, 1, 0, 1], [0, 1, 1, 0]])
    >>> components(mask, [1], min_pixels=1).tolist()
    [[0, 1, 0, 2], [0, 1, 1, 0]]
    >>> components(mask, [1], min_pixels=1, rim=np.array([[1, 0, 0, 0], [0, 0, 0, 0]]) > 0).tolist()
    [[1, 1, 0, 2], [0, 1, 1, 0]]
    """
    classes = np.asarray(classes)
    rim = None if rim is None else np.asarray(rim, bool)
    if classes.ndim != 2 or (rim is not None and rim.shape != classes.shape):
        raise ValueError(
            f"classes have shape {classes.shape}, expected (height, width)"
            + ("." if rim is None else f", and rim the same; it has {rim.shape}.")
        )
    numbers, last = np.zeros(classes.shape, np.int32), 0
    for k in object_classes:
        _, parts, stats, _ = cv2.connectedComponentsWithStats(
            (classes == k).astype(np.uint8), connectivity=4
        )
        large = stats[:, cv2.CC_STAT_AREA] >= min_pixels
        large[0] = False  # what is not of the class
        numbers += np.where(large, last + np.cumsum(large), 0).astype(np.int32)[parts]
        last += int(large.sum())
    if last > NUMBERS - 2:
        raise ValueError(
            f"The mask has {last:,} objects, and a plane of 16 bits holds {NUMBERS - 2:,}: cut the "
            "image into parts."
        )
    if rim is not None and last:
        distance, labels = cv2.distanceTransformWithLabels(
            (numbers == 0).astype(np.uint8),
            cv2.DIST_L2,
            cv2.DIST_MASK_PRECISE,
            labelType=cv2.DIST_LABEL_PIXEL,
        )
        inside = numbers > 0
        nearest = np.zeros(labels.max() + 1, np.int32)  # by the label of an object's pixel
        nearest[labels[inside]] = numbers[inside]
        free = rim & (distance <= RIM) & ~np.isin(classes, object_classes)
        numbers = np.where(free, nearest[labels], numbers)
    return numbers.astype(np.uint16)


def likely(probabilities, object_classes, above):
    """Finds the pixels that may belong to an object: bool `(height, width)`, or None.

    Args:
        probabilities: float `(height, width, num_classes)`.
        object_classes: sequence of int.
        above: float, the probability of these classes above which a pixel may; None for None.
    """
    if above is None:
        return None
    return probabilities[..., list(object_classes)].sum(axis=-1) > above


def find_objects(classes, probabilities, object_classes, class_names, rim_above=None):
    """Finds the objects of an image in the classes of its pixels.

    Args:
        classes: int `(height, width)`.
        probabilities: float `(height, width, num_classes)`.
        object_classes: sequence of int.
        class_names: sequence of str, of these classes.
        rim_above: float or None, the probability above which a pixel may belong to an object beside
            it, see `components`.

    Returns:
        List of `keras_segen.data.Instance`, the surest first. Their classes are 1 for the first of
        `object_classes` and so on; the score is the mean probability of the object's class over
        the pixels that have it.
    """
    rim = likely(probabilities, object_classes, rim_above)
    numbers = components(classes, object_classes, rim=rim)
    own = np.where(np.isin(classes, object_classes), numbers, 0)
    found = []
    for number, (top, left, bottom, right) in boxes(numbers).items():
        here = slice(top, bottom), slice(left, right)
        k = int(classes[here][own[here] == number][0])
        score = float(probabilities[here][own[here] == number, k].mean())
        place = object_classes.index(k)
        found.append(
            Instance(
                place + 1,
                class_names[place],
                np.array([left, top, right, bottom], "float32"),
                (top, left),
                numbers[here] == number,
                numbers.shape,
                score,
            )
        )
    return sorted(found, key=lambda each: -each.score)
