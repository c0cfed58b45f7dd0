"""Data sets of objects: each pixel says which object it belongs to, and objects have classes."""

import dataclasses
import warnings

import cv2
import numpy as np

from keras_segen.arguments import as_int
from keras_segen.data.dataset import Dataset, Wrapped, require_masks

# A plane that is stored and augmented holds 65536 * class + number for a pixel of an object. Its
# numbers go to 65534, those of the training's target only to 254: see `to_slots`. Number 0 of a
# class is a crowd, several objects that nobody told apart.
NUMBERS = 65536
VOID = 65535  # neither object nor background
SLOT_VOID = 255  # the same in a target
MOST_SLOTS = 254
MIN_PIXELS = 10  # an object of fewer, at the size of the images, is void: a sliver shows nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
    """One object in an image: found, or true.

    Args:
        class_id: int, from 1.
        name: str, the name of its class.
        box: float32 `(4,)`, `(x1, y1, x2, y2)` in pixels of the image; it ends where the next
            pixel begins.
        corner: `(row, column)` of `pixels` in the image.
        pixels: bool `(rows, columns)`, its pixels in a part of the image that holds all of them.
        image_size: `(height, width)`.
        score: float from 0 to 1, how sure the network is; None for a true object.
        crowd: bool, whether it stands for several objects that nobody told apart.
    """

    class_id: int
    name: str
    box: np.ndarray
    corner: tuple
    pixels: np.ndarray
    image_size: tuple
    score: float | None = None
    crowd: bool = False

    @property
    def mask(self):
        """Its pixels: bool `(height, width)` of the whole image."""
        return pixels_in(self.pixels, self.corner, (0, 0, *self.image_size))

    @property
    def area(self):
        """The number of its pixels: int."""
        return int(self.pixels.sum())

    def __repr__(self):
        sure = "" if self.score is None else f", {100 * self.score:.0f} %"
        box = ", ".join(f"{side:.1f}" for side in self.box.tolist())
        return f"<{self.name}{sure}: box ({box}), {self.area} pixels>"


def as_instances(dataset, max_instances=20):
    """Makes a data set of objects of one whose objects are told apart.

    Args:
        dataset: a `Dataset` with `object_classes`: `shapes`, `cityscapes:PATH`, a `folder:PATH`
            or `arrays:PATH` with instances, or `keras_segen.data.arrays(…, instances=…)`.
        max_instances: int, 1 to 254, the objects of an image that are learned from.

    Returns:
        An `Instances`.

    Raises:
        ValueError: the data set does not tell objects apart, or `max_instances` is out of range.

    Example:

    >>> from keras_segen.data import load
    >>> scenes = as_instances(load("shapes", "val", size=48))
    >>> scenes.class_names
    ('disc', 'box', 'triangle', 'star', 'ring')
    >>> image, plane = scenes[0]
    >>> [int(value) for value in np.unique(plane)]  # 256 * class + number, 0 the background
    [0, 257, 258, 515, 772, 1029, 1286, 1287]
    """
    return Instances(dataset, max_instances)


class Instances(Wrapped, Dataset):
    """What `as_instances` returns. Its classes are those of the objects only, counted from 1.

    `data[i]` is `(image, plane)`: plane int32 `(height, width)`, `256 * class + number` for a pixel
    of object `number` (from 1), 0 for background, 255 for void: what is no object and no
    background, crowds, slivers under 10 pixels, and, if an image has more than `max_instances`
    objects, the smallest ones. Boxes are computed from it, and so fit whatever the augmentation
    made of image and plane.

    Args:
        dataset, max_instances: as in `as_instances`.
    """

    def __init__(self, dataset, max_instances=20):
        require_masks(dataset)
        if not 1 <= (as_int(max_instances) or 0) <= MOST_SLOTS:
            raise ValueError(f"max_instances is {max_instances!r}, expected 1 to {MOST_SLOTS}.")
        classes = list(dataset.object_classes)
        if not classes:
            raise ValueError(
                f"{dataset.name} has masks of classes only, and does not tell one object from the "
                "next: expected shapes, cityscapes:PATH, or a folder:PATH with a folder of "
                "instances beside images and masks."
            )
        self.dataset = dataset
        self.max_instances = int(max_instances)
        names = [dataset.class_names[k] for k in classes]
        kinds = names, dataset.palette[classes], VOID, [dataset.label_ids[k] for k in classes]
        super().__init__(dataset.name, dataset.split, *kinds, dataset.image_shape)
        self.sizes = dataset.sizes
        self._classes = classes
        self._told = False

    def read(self, index):
        """Returns image and plane `65536 * class + number`; see `NUMBERS` and `VOID`."""
        image, mask, numbers = self.dataset.read_instances(index)
        return image, self._plane(mask, numbers, self.item_name(index))

    def read_mask(self, index):
        """Returns classes, int32 `(height, width)`: 0 to `num_classes - 1`, or `ignore_class`."""
        plane = self.read(index)[1]
        classes = plane // NUMBERS
        return np.where(classes > 0, classes - 1, VOID).astype(np.int32)

    def make_target(self, stored):
        plane, dropped = to_slots(stored, self.max_instances)
        if dropped and not self._told:
            self._told = True
            warnings.warn(
                f"An image of {self.name}, {self.split}, has {self.max_instances + dropped} "
                f"objects, and max_instances is {self.max_instances}: the {dropped} smallest are "
                "void in training, and so in other images like it. This is said once.",
                stacklevel=2,
            )
        return plane

    def objects(self, index):
        """Reads the whole truth about an image: none is left out because of `max_instances`.

        Args:
            index: int, the item.

        Returns:
            image: float32 `(height, width, channels)`.
            objects: list of `Instance`, crowds too.
            void: bool `(height, width)`, the pixels where nothing is known.
        """
        image, plane = self.read(self._index(index))
        found, void = [], plane == VOID
        values, counts = np.unique(plane[(plane >= NUMBERS)], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            k, number = divmod(value, NUMBERS)
            here = plane == value
            if number and count < MIN_PIXELS:
                void |= here
            else:
                found.append(instance_of(here, k, self.class_names[k - 1], crowd=not number))
        return image, found, void

    def _plane(self, mask, numbers, name):
        """Puts classes and numbers of objects into one plane."""
        table = np.zeros(self.dataset.num_classes + 1, np.int32)
        table[self._classes] = np.arange(1, self.num_classes + 1)
        table[-1] = -1
        void = mask == self.dataset.ignore_class
        classes = table[np.where(void, -1, mask)]
        check_numbers(name, classes, -1, numbers, ("background", *self.class_names))
        plane = np.where(classes > 0, classes * NUMBERS + numbers, 0)
        plane[void] = VOID
        return plane.astype(np.int32)


def instance_of(mask, class_id, name, score=None, crowd=False):
    """Makes an `Instance` of a mask, bool `(height, width)` with at least one pixel.

    Its box is the smallest one around them.
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = np.array([left, top, left + width, top + height], "float32")
    pixels = mask[top : top + height, left : left + width].copy()
    return Instance(int(class_id), name, box, (top, left), pixels, mask.shape, score, crowd)


def pixels_in(pixels, corner, window):
    """Lays pixels into an image, of which only a window is made.

    Args:
        pixels: bool `(rows, columns)`.
        corner: `(row, column)` of the first of them in the image; they may lie beyond its border.
        window: `(top, left, bottom, right)` in the image.

    Returns:
        bool `(bottom - top, right - left)`.
    """
    top, left, bottom, right = window
    found = np.zeros((bottom - top, right - left), bool)
    row, column = corner[0] - top, corner[1] - left
    y1, y2 = max(row, 0), min(row + pixels.shape[0], bottom - top)
    x1, x2 = max(column, 0), min(column + pixels.shape[1], right - left)
    if y1 < y2 and x1 < x2:
        found[y1:y2, x1:x2] = pixels[y1 - row : y2 - row, x1 - column : x2 - column]
    return found


def to_slots(plane, max_instances):
    """Renumbers the objects of a plane, from 1, and leaves out those without a slot.

    Args:
        plane: int32 `(height, width)`, `65536 * class + number`.
        max_instances: int, the largest ones are kept.

    Returns:
        plane: int32, `256 * class + number`; slivers, crowds and what is left out are 255.
        dropped: int, the objects that are left out because there are too many.
    """
    values, place, counts = np.unique(plane, return_inverse=True, return_counts=True)
    is_object = (values >= NUMBERS) & (values % NUMBERS > 0) & (counts >= MIN_PIXELS)
    places = np.flatnonzero(is_object)
    kept = np.sort(places[np.argsort(-counts[places], kind="stable")][:max_instances])
    new = np.where(values > 0, SLOT_VOID, 0)
    new[kept] = values[kept] // NUMBERS * 256 + np.arange(1, len(kept) + 1)
    return new[place].reshape(plane.shape).astype(np.int32), len(places) - len(kept)


def check_numbers(where, classes, void, numbers, class_names):
    """Raises a ValueError if an object has pixels of two classes.

    Args:
        where: str or path, for the error.
        classes: int `(height, width)`.
        void: int, what stands in `classes` where the class is not known, or None.
        numbers: int `(height, width)`, 0 where there is no object.
        class_names: sequence of str, by class.
    """
    if numbers.max(initial=0) > NUMBERS - 2 or numbers.min(initial=0) < 0:
        raise ValueError(
            f"{where}: numbers of objects from {numbers.min()} to {numbers.max()}, expected 0 to "
            f"{NUMBERS - 2}."
        )
    known = (numbers > 0) & (classes != void)
    pairs = np.unique(numbers[known].astype(np.int64) * NUMBERS + classes[known].astype(np.int64))
    number, twice = np.unique(pairs // NUMBERS, return_counts=True)
    if (twice > 1).any():
        wrong = int(number[twice > 1][0])
        names = [str(class_names[k]) for k in (pairs % NUMBERS)[pairs // NUMBERS == wrong]]
        raise ValueError(
            f"{where}: object {wrong} has pixels of {' and '.join(names)}; expected one class in "
            "the mask for each number in the instances."
        )
