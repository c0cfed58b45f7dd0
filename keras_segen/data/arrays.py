"""Arrays in memory as a data set."""

import functools

import numpy as np

from keras_segen.data.dataset import Dataset
from keras_segen.data.images import to_float
from keras_segen.data.instances import check_numbers


def arrays(images, masks, class_names=None, ignore_class=None, palette=None, instances=None):
    """Makes a data set of arrays that are in memory already; they are not copied.

    Args:
        images: `(number, height, width)` or `(number, height, width, channels)` with 1 or 3
            channels: uint8, uint16, or float in [0, 1].
        masks: `(number, height, width)` or `(number, height, width, 1)`, labels as whole
            numbers or bool: 0 to `num_classes - 1`, or `ignore_class`.
        class_names: sequence of str, one per class. None names as many classes as the highest
            label asks for.
        ignore_class: int or None, the label that losses and metrics leave out.
        palette: array-like `(num_classes, 3)`, RGB, 0 to 255, or None for distinct colors.
        instances: `(number, height, width)`, whole numbers that tell the objects of an image
            apart, 0 where there is none, or None. The classes under a number are those of
            objects; a pixel of such a class without a number belongs to a crowd.

    Returns:
        A `Dataset` named `"arrays"`.

    Raises:
        ValueError: if shapes, types or values do not fit.

    Example:

    >>> data = arrays(np.zeros((2, 8, 8), np.uint8), np.eye(8, dtype=int)[None].repeat(2, 0))
    >>> len(data), data.class_names, data.image_shape
    (2, ('class 0', 'class 1'), (8, 8, 1))
    """
    return Arrays(images, masks, class_names, ignore_class, palette, instances)


class Arrays(Dataset):
    """What `arrays` returns."""

    def __init__(self, images, masks, class_names, ignore_class, palette, instances=None):
        self.images = check_images(np.asarray(images))
        masks = check_masks(np.asarray(masks))
        if masks.shape != self.images.shape[:3]:
            raise ValueError(
                f"images are {self.images.shape} and masks {masks.shape}; expected masks of "
                f"{self.images.shape[:3]}: as many, and of the same height and width"
            )
        self.masks = masks
        labels = np.unique(masks)
        if ignore_class is not None:
            labels = labels[labels != ignore_class]
        highest = int(labels.max(initial=0))
        if class_names is None:
            if highest > 253:
                raise ValueError(
                    f"masks hold label {highest}; without class_names expected labels up to "
                    "253. Is that a label to leave out? Then say ignore_class"
                )
            class_names = [f"class {label}" for label in range(highest + 1)]
        outside = labels[(labels < 0) | (labels >= len(class_names))]
        if len(outside):
            raise ValueError(
                f"masks hold label {outside[0]} in {(masks == outside[0]).sum()} pixels; expected "
                f"0 to {len(class_names) - 1}"
                + ("" if ignore_class is None else f" or ignore_class {ignore_class}")
            )
        shape = self.images.shape[1:]
        super().__init__("arrays", "train", class_names, palette, ignore_class, image_shape=shape)
        self.numbers = self._check_instances(instances)

    def __len__(self):
        return len(self.images)

    def item_name(self, index):
        return f"item_{self._index(index):05d}"

    def read(self, index):
        return np.array(to_float(self.images[index]), order="C"), self.read_mask(index)

    def read_mask(self, index):
        return np.ascontiguousarray(self.masks[index]).astype(np.int32)

    @functools.cached_property
    def object_classes(self):
        if self.numbers is None:
            return ()
        under = np.unique(self.masks[self.numbers > 0])
        return tuple(int(k) for k in under if k != self.ignore_class)

    def instances(self, index):
        return np.ascontiguousarray(self.numbers[self._index(index)]).astype(np.int32)

    def _check_instances(self, instances):
        if instances is None:
            return None
        instances = np.asarray(instances)
        if instances.shape != self.masks.shape or instances.dtype.kind not in "iu":
            raise ValueError(
                f"instances are {instances.dtype} {instances.shape}; expected whole numbers "
                f"{self.masks.shape}, as the masks"
            )
        for index, (mask, numbers) in enumerate(zip(self.masks, instances, strict=True)):
            where = f"instances[{index}]"
            check_numbers(where, mask, self.ignore_class, numbers, self.class_names)
        return instances


def check_images(images):
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images have shape {images.shape}; expected (number, height, width) or "
            "(number, height, width, channels) with 1 or 3 channels, and at least one pixel"
        )
    if images.dtype.kind == "f":
        low, high = images.min(), images.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images are {images.dtype} with values from {low} to {high}; expected 0 to 1. "
                "Divide them by their highest possible value"
            )
    elif images.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"images are {images.dtype}; expected uint8, uint16 or float in [0, 1]")
    return images


def check_masks(masks):
    if masks.ndim == 4 and masks.shape[-1] == 1:
        masks = masks[..., 0]
    if masks.ndim != 3:
        raise ValueError(
            f"masks have shape {masks.shape}; expected (number, height, width) with a label per "
            "pixel" + ("; one-hot masks: masks.argmax(-1)" if masks.ndim == 4 else "")
        )
    if masks.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = masks.astype(np.int32)
        if (whole != masks).any():
            raise ValueError(
                f"masks are {masks.dtype} with values that are not whole, such as "
                f"{masks[whole != masks][0]}; expected labels (shares of foreground: masks >= 0.5)"
            )
        masks = whole
    elif masks.dtype.kind not in "iub":
        raise ValueError(f"masks are {masks.dtype}; expected whole numbers or bool")
    return masks
