"""The base classes of data sets: images with masks, or pictures with labels."""

import operator
import warnings

import numpy as np

from keras_segen import determinism
from keras_segen.data.tree import Spec
from keras_segen.palette import distinct_palette

SPLITS = ("train", "val", "test")


class Items:
    """What `Dataset` and `Pictures` share: items by index, by name, in batches.

    An item is an image and a target. A subclass defines the number of items (`__len__`) and reads
    one (`read`): the image, and one array beside it: a mask, any plane of whole numbers, or a
    label. Caches keep this array, and an augmentation changes it together with the image. After
    the augmentation `make_target` computes the target from it; by default, the array itself. A
    data set with other targets, such as the boxes of the objects in a plane, overrides two things,
    and its boxes fit the augmented image:

    - `target_spec`: a `keras_segen.data.Spec` (shape and type) of the target, or a dict of these,
      which may be nested: `{"boxes": Spec((8, 4), "float32"), "mask": …}`.
    - `make_target(stored)`: returns such a target, a NumPy array or a dict of arrays, from
      `stored` alone.

    Shapes are equal for all items: objects, whose number varies, get a fixed number of slots. A
    batch is `(images, target)`, every array stacked. A dict stays a dict: `fit` matches its keys
    with the losses of a model's outputs. If `weight_spec` is not None, a batch is
    `(images, target, weights)`, with what `make_weights(stored)` returns: sample weights, which
    `fit` gives to the loss.

    Args:
        name: str, the data set's name, such as `"shapes"`.
        split: str, `"train"`, `"val"` or `"test"`.
        class_names: sequence of str, one per class.
        image_shape: `(height, width, channels)` of every item, or None if items keep their
            own sizes.

    Attributes:
        sizes: dict of (height, width) -> number of images, the commonest first, where items are
            files that keep their own sizes, and these are known; else {}.

    Raises:
        ValueError: if the split is unknown.
    """

    def __init__(self, name, split, class_names, image_shape=None):
        self.name = name
        self.split = check_split(split)
        self.class_names = tuple(class_names)
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.sizes = {}

    @property
    def num_classes(self):
        """The number of classes, without the ignored one."""
        return len(self.class_names)

    def common_shape(self):
        """Returns `image_shape`.

        Raises:
            ValueError: if it is None: the images have no common size.
        """
        if self.image_shape is None:
            found = [f"{n:,} of {h}x{w}" for (h, w), n in list(self.sizes.items())[:3]]
            more = ["others"] if len(self.sizes) > 3 else []
            raise ValueError(
                f"The images of {self.name} have no common size"
                + (f": {', '.join(found + more)}" if found else "")
                + ". Bring them to one, HEIGHTxWIDTH: --image-size 128x128 on the command line, "
                "size=(128, 128) in Python."
            )
        return self.image_shape

    @property
    def groups(self):
        """What belongs together and must not be torn apart by a split: a patient, a sequence.

        A list of str, one for each item; None if the items are independent or nothing is known.
        """
        return None

    def __len__(self):
        raise NotImplementedError

    @property
    def target_spec(self):
        """What a target is: a `keras_segen.data.Spec`, or a dict of these.

        None if that depends on the image because items keep their own sizes.
        """
        raise NotImplementedError

    @property
    def weight_spec(self):
        """What the sample weights of an item are: a `keras_segen.data.Spec`, or None for none."""
        return None

    def read(self, index):
        """Returns item `index`, 0 to `len - 1`, as `(image, stored)`; new arrays each time."""
        raise NotImplementedError

    def make_target(self, stored):
        """Returns the target, as `target_spec` says, of what `read` returned beside the image.

        Args:
            stored: that array, changed by the augmentation if there is one.
        """
        return stored

    def make_weights(self, stored):
        """Returns the sample weights, as `weight_spec` says, of what `read` returned."""
        raise NotImplementedError

    def __getitem__(self, index):
        """Returns item `index` as `(image, target)`, without augmentation."""
        image, stored = self.read(self._index(index))
        return image, self.make_target(stored)

    def item_name(self, index):
        """Returns a name for item `index` that serves as a file name, without suffix."""
        return f"{self.split}_{self._index(index):05d}"

    def _index(self, index):
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {self.name}, {self.split}, which has {len(self)}")
        return index % len(self)

    def __repr__(self):
        return f"<{self.name} {self.split}: {len(self)} items, {self.num_classes} classes>"

    def batches(
        self,
        batch_size,
        *,
        seed=None,
        augment=None,
        workers=0,
        drop_last=False,
        first_epoch=0,
        sampling="uniform",
    ):
        """Makes batches for `fit` on the backend in use; see `keras_segen.data.loader.Batches`."""
        from keras_segen import backend  # imports the framework, which workers do not need
        from keras_segen.data.loader import Batches

        # Keras warns about every loader given to `fit`; with a seed, these batches are shuffled.
        warnings.filterwarnings("ignore", message="`shuffle=True` was passed, but will be ignored")
        return backend.make_loader(
            Batches(
                self,
                batch_size,
                seed=seed,
                augment=augment,
                workers=workers,
                drop_last=drop_last,
                first_epoch=first_epoch,
                sampling=sampling,
            )
        )


class Dataset(Items):
    """Images with masks. Subclasses define `__len__` and `read`.

    `dataset[i]` is `(image, mask)`: image float32 `(height, width, channels)` in [0, 1], mask
    int32 `(height, width)` with values 0 to `num_classes - 1` or `ignore_class`. Both belong
    to the caller. A subclass with another target, see `Items`, computes it from such a mask, or
    from an int32 plane of the same shape with values up to 2**24, such as class and number of each
    object; its `read_mask` then returns only the classes. A warp fills pixels from outside the
    image with `ignore_class`.

    Args:
        name: str, the data set's name, such as `"shapes"`.
        split: str, `"train"`, `"val"` or `"test"`.
        class_names: sequence of str, one per class.
        palette: array-like `(num_classes, 3)`, RGB colors, 0 to 255. None chooses
            distinct colors.
        ignore_class: int or None, the label that losses and metrics leave out.
        label_ids: sequence of int, the id of each class in the mask files. None means 0 to
            `num_classes - 1`.
        image_shape: `(height, width, channels)` of every item, or None if items keep their
            own sizes.

    Raises:
        ValueError: if the split is unknown or the classes do not fit together.
    """

    def __init__(
        self,
        name,
        split,
        class_names,
        palette=None,
        ignore_class=None,
        label_ids=None,
        image_shape=None,
    ):
        super().__init__(name, split, class_names, image_shape)
        if not self.class_names:
            raise ValueError("a data set needs at least one class, found no class names")
        if palette is None:
            palette = distinct_palette(self.num_classes)
        self.palette = np.array(palette)
        if self.palette.shape != (self.num_classes, 3):
            raise ValueError(
                f"palette has shape {self.palette.shape}, expected ({self.num_classes}, 3): "
                "red, green and blue for each class"
            )
        if self.palette.min() < 0 or self.palette.max() > 255:
            raise ValueError(
                f"palette has values from {self.palette.min()} to {self.palette.max()}, "
                "expected 0 to 255"
            )
        self.palette = self.palette.astype(np.uint8)
        if ignore_class is not None and 0 <= ignore_class < self.num_classes:
            raise ValueError(
                f"ignore_class {ignore_class} is also the class "
                f"{self.class_names[ignore_class]!r}; expected None or a label outside "
                f"0 to {self.num_classes - 1}, such as 255"
            )
        self.ignore_class = ignore_class
        self.label_ids = tuple(range(self.num_classes) if label_ids is None else label_ids)
        self._counts = None

    @property
    def target_spec(self):
        return None if self.image_shape is None else Spec(self.image_shape[:2], "int32")

    def read_mask(self, index):
        """Returns the mask of item `index`, int32 `(height, width)`."""
        return self.read(index)[1]

    @property
    def object_classes(self):
        """The classes whose objects are told apart by `instances`: tuple of int; () for none."""
        return ()

    def instances(self, index):
        """Returns the instance mask of item `index`, where objects are told apart.

        Returns:
            int32 `(height, width)`: 1 to n are the objects, each of one class of
            `object_classes`; 0 is the rest. A pixel of such a class without a number belongs to
            a crowd.
        """
        raise NotImplementedError

    def read_instances(self, index):
        """Returns `(image, mask, numbers)` of item `index`: `read` and `instances` at once."""
        return *self.read(index), self.instances(index)

    def pixel_counts(self):
        """Counts the pixels of each class over the split, once.

        Returns:
            int64 `(num_classes,)`; ignored pixels are in no count.
        """
        return self.pixel_counts_of_items().sum(axis=0)

    def pixel_counts_of_items(self):
        """Counts the pixels of each class in each item, once.

        Returns:
            int64 `(len, num_classes)`; ignored pixels are in no count.
        """
        if self._counts is None:
            self._counts = np.array(self._count(), np.int64).reshape(len(self), self.num_classes)
        return self._counts.copy()

    def _count(self):
        """Returns the counts of `pixel_counts_of_items` as lists."""
        counts = []
        for index in range(len(self)):
            mask = self.read_mask(index)
            if self.ignore_class is not None:
                mask = mask[mask != self.ignore_class]
            counts.append(np.bincount(mask.ravel(), minlength=self.num_classes).tolist())
        return counts


class Pictures(Items):
    """Pictures to train a generative model on. Subclasses define `__len__` and `read`.

    `pictures[i]` is `(image, label)`: image float32 `(height, width, channels)` in [0, 1], label
    an int32 number, 0 to `num_classes - 1`, or 0 without classes. Batches are
    float32 `(batch, height, width, channels)` and int32 `(batch,)`.

    Args:
        name, split, class_names, image_shape: as in `Items`; without class names the pictures
            have no labels.
        mirror: bool, whether mirrored pictures are as good: not those of digits and letters.
            `augment=keras_segen.data.mirror` then mirrors every other one.

    Raises:
        ValueError: if the split is unknown.
    """

    target_spec = Spec((), "int32")

    def __init__(self, name, split, class_names=(), image_shape=None, mirror=True):
        super().__init__(name, split, class_names, image_shape)
        self.mirror = mirror


class Wrapped:
    """What a data set takes over from the one of whose items it is made, `self.dataset`."""

    def __len__(self):
        return len(self.dataset)

    def item_name(self, index):
        return self.dataset.item_name(index)

    @property
    def groups(self):
        return self.dataset.groups


def require_masks(dataset):
    """Raises a ValueError if this is no data set of images with masks."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"found {dataset!r}; expected a data set of images with masks, such as "
            "keras_segen.data.arrays(images, masks)"
        )


def carve(length, split, splits=("train", "val")):
    """Returns which items belong to a split of a data set that comes without it.

    Each split but "train" gets a tenth of the items, at least one, by a shuffling that depends
    on `length` only; "train" keeps the rest.

    Args:
        length: int, number of items in all.
        split: str, one of `splits`.
        splits: the splits to make, "train" first.

    Returns:
        int64, the indices in rising order; no index is in two splits.

    Raises:
        ValueError: if there are fewer items than splits.
    """
    if length < len(splits):
        raise ValueError(
            f"{length} items cannot be shared out among {', '.join(splits)}; expected at least "
            f"{len(splits)}"
        )
    shuffled = determinism.rng("carve", length).permutation(length)
    part, place = max(1, length // 10), splits.index(split)
    if place == 0:
        return np.sort(shuffled[part * (len(splits) - 1) :])
    return np.sort(shuffled[part * (place - 1) : part * place])


def check_split(split):
    """Returns `split` if it is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    return split


def check_channels(channels):
    """Returns `channels` if it is 1 or 3."""
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}, expected 3 (RGB) or 1 (gray)")
    return int(channels)


def check_size(size):
    """Returns `size`, an int or a pair, as `(height, width)`."""
    pair = (size, size) if isinstance(size, (int, np.integer)) else size
    try:
        height, width = (operator.index(side) for side in pair)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1 or isinstance(size, bool):
        raise ValueError(
            f"size is {size!r}, expected a number of pixels or (height, width), both at least 1"
        )
    return height, width
