"""Borders between touching objects, and how much they weigh: the weight map of the U-Net paper.

Where two objects touch, a mask of classes shows them apart only by a thin border of background:
few pixels, which a mean over all pixels hardly notices. The paper makes them count. A pixel x of
the background weighs

    w(x) = w_c(x) + w_0 * exp(-(d_1(x) + d_2(x))^2 / (2 * sigma^2))

where `w_c` is the weight of its class, and `d_1` and `d_2` are the distances to the nearest and to
the second nearest object, in pixels.

Reference: Ronneberger, Fischer, Brox (2015), "U-Net: Convolutional Networks for Biomedical Image
Segmentation", https://arxiv.org/abs/1505.04597, equation 2.

Differs from the paper: objects themselves get no border weight, which equation 2 would give to
their rims as well; and beyond 4 sigma from the second object it is 0, under 0.04 % of `w_0`.
"""

import cv2
import numpy as np

from keras_segen.arguments import check_number, check_weights
from keras_segen.data.dataset import Dataset, Wrapped, require_masks
from keras_segen.data.tree import Spec

LEVELS = 256  # of a factor from 0 to 1 that is stored beside a class
FAR = 4  # sigmas from which on a second object adds nothing


def border_weights(numbers, sigma=5.0):
    """Computes how close each pixel of the background is to two objects at once.

    Args:
        numbers: int `(height, width)`, 0 for background, another number for each object.
        sigma: float, in pixels.

    Returns:
        float32 `(height, width)`, the last factor of the weight: 1 between objects that all but
        touch, 0 far from all or from all but one, and 0 on objects.

    Raises:
        ValueError: the numbers are none, or `sigma` is not above 0.

    Example:

    >>> numbers = np.array([[1, 0, 2, 0, 0, 0]])
    >>> found = border_weights(numbers, sigma=2.0)  # d_1 + d_2: 2, 4, 6, 8
    >>> [round(float(value), 2) for value in found[0]]
    [0.0, 0.61, 0.0, 0.14, 0.01, 0.0]
    """
    check_number("sigma", sigma, above=0)
    numbers = np.asarray(numbers)
    if numbers.ndim != 2 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"numbers are {numbers.dtype} of shape {numbers.shape}, expected whole numbers "
            "(height, width), another one for each object."
        )
    height, width = numbers.shape
    reach = int(np.ceil(FAR * sigma))
    nearest, second = np.full((2, height, width), np.inf, np.float32)
    for number, (top, left, bottom, right) in boxes(numbers).items():
        here = (
            slice(max(top - reach, 0), bottom + reach),
            slice(max(left - reach, 0), right + reach),
        )
        others = (numbers[here] != number).astype(np.uint8)
        distance = cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        second[here] = np.minimum(second[here], np.maximum(nearest[here], distance))
        nearest[here] = np.minimum(nearest[here], distance)
    with np.errstate(over="ignore", divide="ignore"):  # infinite: there is no second object
        weights = np.exp(-np.square(nearest + second) / (2 * sigma**2))
    return np.where((numbers == 0) & (second <= reach), weights, 0).astype(np.float32)


def boxes(numbers):
    """Returns the boxes of objects: dict of number -> `(top, left, bottom, right)`, ends open."""
    rows, columns = np.nonzero(numbers)
    values, place = np.unique(numbers[rows, columns], return_inverse=True)
    sides = np.empty((len(values), 4), int)
    sides[:, :2], sides[:, 2:] = np.iinfo(int).max, 0
    np.minimum.at(sides[:, 0], place, rows)
    np.minimum.at(sides[:, 1], place, columns)
    np.maximum.at(sides[:, 2], place, rows + 1)
    np.maximum.at(sides[:, 3], place, columns + 1)
    return dict(zip(values.tolist(), sides.tolist(), strict=True))


def without_contacts(numbers):
    """Parts objects that touch: the upper or left one of two neighboring pixels becomes 0.

    Args:
        numbers: int `(height, width)`, 0 for background, another number for each object.

    Returns:
        New array: no pixel of an object has one of another object beside it, nor at a corner.

    Example:

    >>> without_contacts(np.array([[1, 1, 2, 2], [1, 1, 1, 2]])).tolist()
    [[1, 0, 0, 2], [1, 1, 0, 2]]
    """
    parted = numbers.copy()
    for above, below in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        one, other = parted[above], parted[below]
        one[(one != other) & (one > 0) & (other > 0)] = 0
    return parted


def largest_parts(numbers):
    """Keeps the largest connected part of each object, and numbers them anew.

    Args:
        numbers: int `(height, width)`, 0 for background. No two objects touch.

    Returns:
        int32 `(height, width)`: 1 to n in the order of the old numbers; pixels of one object are
        connected side by side.
    """
    _, parts, stats, _ = cv2.connectedComponentsWithStats(
        (numbers > 0).astype(np.uint8), connectivity=4
    )
    sizes = stats[:, cv2.CC_STAT_AREA]
    largest = {}
    for part in range(1, len(sizes)):
        row, column = np.unravel_index(np.argmax(parts == part), parts.shape)
        number = int(numbers[row, column])
        if sizes[part] > sizes[largest.get(number, part)] or number not in largest:
            largest[number] = part
    table = np.zeros(len(sizes), np.int32)
    for new, number in enumerate(sorted(largest), 1):
        table[largest[number]] = new
    return table[parts]


class BorderWeights(Wrapped, Dataset):
    """A data set whose pixels weigh more in the loss on the thin borders between touching objects.

    Its batches are `(images, masks, weights)`, and `fit` gives the weights to the loss: float32
    `(batch, height, width)`, 1, and on the background between two objects up to `1 + weight`.
    Objects that touch without background between them are parted in the mask, by pixels of the
    background (`without_contacts`).

    What is close to two objects is computed once for each item, from its instances as they are
    stored, as in the paper, and kept in memory, in 2 bytes a pixel. An augmentation then warps it
    with the mask, as one plane: so it costs nothing after the first epoch, and lies on the border
    to the pixel, wherever that moves. A warp that enlarges the border widens it too.

    Args:
        dataset: a `Dataset` with `object_classes`: it tells objects apart.
        weight: float, `w_0`; the paper's is 10.
        sigma: float, in pixels; the paper's is 5.
        class_weights: None or one number per class, `w_c`, if the loss has class weights: it
            multiplies by those, and equation 2 adds.

    Raises:
        ValueError: the data set does not tell objects apart, has no class beside those of
            objects, or has another number of classes; `weight` or a class weight is negative,
            `sigma` or the weight of a background is not above 0.

    Example:

    >>> from keras_segen.data import load
    >>> cells = BorderWeights(load("cells", "train", size=48), weight=10)
    >>> images, masks, weights = cells.batches(2).batches.batch(epoch=0, step=0)
    >>> weights.shape, float(weights.min()), bool(weights.max() > 9)
    ((2, 48, 48), 1.0, True)
    """

    def __init__(self, dataset, weight=10.0, sigma=5.0, class_weights=None):
        require_masks(dataset)
        background = [k for k in range(dataset.num_classes) if k not in dataset.object_classes]
        if len(background) in (0, dataset.num_classes):
            found = "masks of classes only" if background else "no class beside those of objects"
            raise ValueError(
                f"{dataset.name} has {found}, and borders between touching objects are background: "
                "expected cells, shapes, cityscapes:PATH, or a folder:PATH with a folder of "
                "instances beside images and masks, and a class that has no instances."
            )
        check_number("weight", weight, least=0)
        check_number("sigma", sigma, above=0)
        of_classes = (1.0,) * dataset.num_classes if class_weights is None else class_weights
        of_classes = np.array(check_weights(of_classes))
        if len(of_classes) != dataset.num_classes or not of_classes[background].all():
            raise ValueError(
                f"class_weights is {class_weights}, expected {dataset.num_classes} numbers for the "
                f"classes of {dataset.name}, that of the background above 0."
            )
        self.dataset = dataset
        self.weight, self.sigma = float(weight), float(sigma)
        self.of_classes = of_classes
        void = dataset.ignore_class
        super().__init__(
            dataset.name,
            dataset.split,
            dataset.class_names,
            dataset.palette,
            None if void is None else LEVELS * void,
            dataset.label_ids,
            dataset.image_shape,
        )
        self.sizes = dataset.sizes
        self._background = background
        self._planes = {}

    def __getstate__(self):
        return self.__dict__ | {"_planes": {}}  # each worker process fills its own

    def read(self, index):
        """Returns image and plane `256 * class + k`, k 0 to 255: the border weight from 0 to 1."""
        if index in self._planes:
            return self.dataset.read(index)[0], self._planes[index].astype(np.int32)
        image, mask, numbers = self.dataset.read_instances(index)
        parted = without_contacts(numbers)
        mask = np.where(parted == numbers, mask, self._background[0])
        close = np.where(np.isin(mask, self._background), border_weights(parted, self.sigma), 0)
        plane = LEVELS * mask + np.rint((LEVELS - 1) * close).astype(np.int32)
        fits = plane.min() >= 0 and plane.max() < 65536
        self._planes[index] = plane.astype(np.uint16 if fits else np.int32)
        return image, plane

    def read_mask(self, index):
        return self.dataset.read_mask(index)

    def _count(self):
        return self.dataset.pixel_counts_of_items().tolist()

    def make_target(self, stored):
        return stored // LEVELS

    @property
    def weight_spec(self):
        return None if self.image_shape is None else Spec(self.image_shape[:2], "float32")

    def make_weights(self, stored):
        classes, close = stored // LEVELS, stored % LEVELS
        of_classes = self.of_classes[np.where(close > 0, classes, self._background[0])]
        return 1 + self.weight * close / (LEVELS - 1) / of_classes
