"""Pictures to train generative models on: CIFAR-10, MNIST, Fashion-MNIST, any folder."""

import numpy as np

from keras_segen import files, frameworks
from keras_segen.data import cache as caches
from keras_segen.data import images
from keras_segen.data.array_files import Store
from keras_segen.data.dataset import (
    SPLITS,
    Dataset,
    Pictures,
    Wrapped,
    carve,
    check_channels,
    check_size,
    check_split,
)
from keras_segen.data.pairs import count_sizes, header_sizes, resolved, stamp

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
DIGITS = tuple("0123456789")
FITS = ("crop", "squash")


class PictureArrays(Pictures):
    """Pictures with labels in the arrays `x_train`, `y_train`, `x_test`, `y_test` on disk.

    The base of the classes below. A tenth of the training pictures is the validation split,
    always the same.

    Args:
        path: a folder of these `.npy` files, or of MNIST's IDX files, also with `.gz`; or an
            `.npz` file of these arrays. None means what `keras_segen.data.download` fetched.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` to resize to, or None for the pictures' own.
        channels: int, 3 (RGB) or 1 (gray); None for the pictures' own.

    Raises:
        FileNotFoundError: if there are no such files; the message tells how to get them.
        ValueError: if the arrays are not such pictures and labels.
    """

    KIND = None  # the data set's name
    CLASSES = ()
    SHAPE = ()
    MIRROR = True
    DOWNLOAD = None  # how much comes down, and from where

    def __init__(self, path=None, split="train", size=None, channels=None):
        check_split(split)
        if path is None:
            path = self.folder()
            if not path.is_dir():
                raise FileNotFoundError(
                    f"{self.KIND} is not on this machine yet: {self.DOWNLOAD}. Fetch it once with "
                    f"`keras-segen datasets --download {self.KIND}` or "
                    f"keras_segen.data.download({self.KIND!r}), or name files that you have: "
                    f"{self.KIND}:PATH"
                )
            name = self.KIND
        else:
            name = f"{self.KIND}:{path}"
        self._store = Store(path)
        self._source = "test" if split == "test" else "train"
        self._opened = None
        length = len(self._arrays()[0])
        self._indices = np.arange(length) if split == "test" else carve(length, split)
        height, width, own = self.SHAPE
        height, width = (height, width) if size is None else check_size(size)
        channels = own if channels is None else check_channels(channels)
        super().__init__(name, split, self.CLASSES, (height, width, channels), self.MIRROR)

    def __len__(self):
        return len(self._indices)

    def __getstate__(self):
        return self.__dict__ | {"_opened": None}  # each worker process opens the files itself

    def read(self, index):
        pictures, labels = self._arrays()
        place = self._indices[index]
        image = images.to_channels(pictures[place], self.image_shape[2])
        image = images.resize_image(image, self.image_shape[:2])
        return images.to_float(image), np.int32(labels[place])

    def _arrays(self):
        """Returns the stored pictures and labels that the split is part of."""
        if self._opened is None:
            pictures, labels = (self._store[f"{kind}_{self._source}"] for kind in "xy")
            height, width, channels = self.SHAPE
            shapes = [(height, width, channels)] + ([(height, width)] if channels == 1 else [])
            if pictures.dtype != np.uint8 or pictures.shape[1:] not in shapes:
                raise ValueError(
                    f"{self._store.path}: x_{self._source} is {pictures.dtype} "
                    f"{pictures.shape}; {self.KIND} is uint8 {('number', *self.SHAPE)}"
                )
            labels = labels.reshape(len(labels), -1)
            if labels.shape != (len(pictures), 1) or labels.dtype.kind not in "iu":
                raise ValueError(
                    f"{self._store.path}: y_{self._source} is {labels.dtype} with "
                    f"{labels.size} values; expected {len(pictures)} whole numbers, one for each "
                    "picture"
                )
            if labels.size and not (labels.min() >= 0 and labels.max() < len(self.CLASSES)):
                raise ValueError(
                    f"{self._store.path}: labels from {labels.min()} to {labels.max()}; expected 0 "
                    f"to {len(self.CLASSES) - 1}"
                )
            self._opened = pictures, labels[:, 0]
        return self._opened

    @classmethod
    def folder(cls):
        """Returns the folder that `download` fills."""
        return caches.data_folder() / cls.KIND

    @classmethod
    def download(cls, say=print):
        """Fetches the data set with Keras, once; see `keras_segen.data.download`."""
        if cls.folder().is_dir():
            say(f"{cls.KIND} is there: {cls.folder()}")
            return
        frameworks.require()
        import keras

        say(f"{cls.KIND}: {cls.DOWNLOAD}, to {cls.folder()}")
        try:
            parts = getattr(keras.datasets, cls.KIND).load_data()
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise ConnectionError(
                f"{cls.KIND} could not be downloaded ({error}). Try again later, or name files "
                f"that you have: {cls.KIND}:PATH"
            ) from error
        with files.write_folder_atomically(cls.folder()) as folder:
            for split, (pictures, labels) in zip(("train", "test"), parts, strict=True):
                np.save(folder / f"x_{split}.npy", pictures)
                np.save(folder / f"y_{split}.npy", labels.astype(np.uint8))


class Cifar10(PictureArrays):
    """CIFAR-10: photos of 10 kinds of things, 32 x 32 pixels in color.

    45,000 pictures for training, 5,000 for validation (out of the 50,000 training pictures) and
    10,000 for test.

    From: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. License: none
    stated; free for research, with citation.

    Args and errors are those of `PictureArrays`.
    """

    KIND = "cifar10"
    CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
    CLASSES += ("dog", "frog", "horse", "ship", "truck")
    SHAPE = (32, 32, 3)
    DOWNLOAD = "170 MB from www.cs.toronto.edu"


class Mnist(PictureArrays):
    """MNIST: handwritten digits, 28 x 28 pixels in gray.

    54,000 pictures for training, 6,000 for validation (out of the 60,000 training pictures) and
    10,000 for test.

    From: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998. License:
    CC BY-SA 3.0.

    Args and errors are those of `PictureArrays`.
    """

    KIND = "mnist"
    CLASSES = DIGITS
    SHAPE = (28, 28, 1)
    MIRROR = False
    DOWNLOAD = "11 MB from storage.googleapis.com"


class FashionMnist(PictureArrays):
    """Fashion-MNIST: clothes and shoes, 28 x 28 pixels in gray.

    54,000 pictures for training, 6,000 for validation (out of the 60,000 training pictures) and
    10,000 for test. On Debian, the package `dataset-fashion-mnist` puts the files into
    `/usr/share/datasets/fashion-mnist`.

    From: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
    Learning Algorithms", 2017. License: MIT.

    Args and errors are those of `PictureArrays`.
    """

    KIND = "fashion_mnist"
    CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat")
    CLASSES += ("sandal", "shirt", "sneaker", "bag", "ankle boot")
    SHAPE = (28, 28, 1)
    DOWNLOAD = "31 MB from storage.googleapis.com"


class ImageFolder(Pictures):
    """All pictures in a folder and its subfolders, resized to one size.

    Files are PNG, JPEG, TIFF, BMP, WebP or GIF, as their suffix says; others are not looked at.
    If there is a folder `PATH/train`, the splits are `PATH/train`, `PATH/val` and `PATH/test`.
    If not, a tenth of the pictures is for validation and a tenth for test, always the same ones
    as long as their number does not change.

    If the pictures of a split are in two or more folders, each folder is a class, and pictures have
    labels.

    Args:
        path: the folder.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` to resize to, or None to keep the pictures' own sizes; if
            those of all splits are equal, they give `image_shape`.
        channels: int, 3 (RGB) or 1 (gray).
        cache: None, `"ram"` or `"disk"`: where decoded and resized pictures are kept.
        fit: str, `"crop"` crops the center to the aspect ratio, `"squash"` changes the aspect
            ratio.

    Raises:
        FileNotFoundError: if the folder or the split does not exist.
        ValueError: if there are no pictures, or files are not images: it names them. Truncated
            files are found when they are read.
    """

    def __init__(self, path, split="train", size=None, channels=3, cache=None, fit="crop"):
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}, expected one of {', '.join(FITS)}")
        self.fit = fit
        self.size = None if size is None else check_size(size)
        self.channels = check_channels(channels)
        self._cache = caches.ItemCache(cache)
        root = resolved(path)
        check_split(split)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected one with pictures")
        ready = (root / "train").is_dir()
        self._root = root / split if ready else root
        if not self._root.is_dir():
            raise FileNotFoundError(
                f"{self._root}: no such folder; expected one for each split, since there is "
                f"{root / 'train'}"
            )
        found = list_pictures(self._root)
        check_headers(found)
        self._paths = found if ready else [found[i] for i in carve(len(found), split, SPLITS)]
        # The classes of every split are those of the training split.
        everything = list_pictures(root / "train") if ready and split != "train" else found
        names = classes_of_folders(root / "train" if ready else root, everything)
        self._labels = [0] * len(self._paths)
        if names:
            folders = [path.relative_to(self._root).parts[0] for path in self._paths]
            unknown = sorted(set(folders) - set(names))
            if unknown:
                raise ValueError(
                    f"{self._root / unknown[0]}: no class of this name in training; expected "
                    f"{', '.join(names)}"
                )
            self._labels = [names.index(folder) for folder in folders]
        name = f"images:{path}" if fit == "crop" else f"squashed:{path}"
        if self.size is not None:
            sizes = {self.size: len(self._paths)}
        elif ready:  # of all splits, which share one `image_shape`
            splits = [root / split for split in SPLITS if (root / split).is_dir()]
            sizes = count_sizes([path for each in splits for path in list_pictures(each)])
        else:
            sizes = count_sizes(found)
        shape = (*next(iter(sizes)), self.channels) if len(sizes) == 1 else None
        super().__init__(name, split, names, shape)
        self.sizes = sizes

    def __len__(self):
        return len(self._paths)

    def item_name(self, index):
        path = self._paths[self._index(index)].relative_to(self._root)
        return "_".join(path.with_suffix("").parts)

    def read(self, index):
        path = self._paths[index]
        (image,) = self._cache.take(
            index,
            ("image",),
            lambda: (stamp(path), self.size, self.channels, self.fit),
            lambda: (self._decode(path),),
        )
        return images.to_float(image), np.int32(self._labels[index])

    def _decode(self, path):
        image = images.read_image(path, self.channels)
        if self.size is None:
            return image
        if self.fit == "crop":
            image = crop_middle(image, self.size)
        return images.resize_image(image, self.size)


class WithoutMasks(Wrapped, Pictures):
    """The images of a data set with masks, see `as_pictures`."""

    def __init__(self, dataset):
        self.dataset = dataset
        super().__init__(dataset.name, dataset.split, (), dataset.image_shape)
        self.sizes = dataset.sizes

    def read(self, index):
        return self.dataset.read(index)[0], np.int32(0)


def as_pictures(dataset):
    """Returns the images of any data set as `Pictures` without labels; `Pictures` as they are.

    Args:
        dataset: a `Dataset` or `Pictures`.

    Returns:
        `Pictures`.

    Example:

    >>> from keras_segen import data
    >>> image, label = as_pictures(data.load("shapes", size=32))[0]
    >>> image.shape, int(label)
    ((32, 32, 3), 0)
    """
    return WithoutMasks(dataset) if isinstance(dataset, Dataset) else dataset


def mirror(image, label, rng):
    """Mirrors every other picture, left to right; for `augment=`.

    Args:
        image: float32 `(height, width, channels)`.
        label: returned unchanged.
        rng: `numpy.random.Generator`.

    Returns:
        `(image, label)`.
    """
    return (np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image), label


def crop_middle(image, size):
    """Returns the largest central part of an image with the aspect ratio of `size`."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    new_height, new_width = (max(1, round(side * scale)) for side in size)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return image[top : top + new_height, left : left + new_width]


def list_pictures(root):
    """Returns the picture files in a folder and those in it, sorted; hidden ones are left out."""
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not found:
        raise ValueError(f"{root}: no pictures; expected files with one of {', '.join(SUFFIXES)}")
    return sorted(found)


def check_headers(paths):
    """Raises if files do not start as images do, and names them; each is looked at only once."""
    sizes = header_sizes(paths)
    bad = [str(path) for path, size in zip(paths, sizes, strict=True) if size is None]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(paths)} files are no images: {', '.join(bad[:5])}"
            + (" and more" if bad[5:] else "")
            + "; expected PNG, JPEG, TIFF, BMP, WebP or GIF. Remove them"
        )


def classes_of_folders(root, paths):
    """Returns the names of the folders of pictures, or () if these are not classes."""
    parts = [path.relative_to(root).parts for path in paths]
    names = sorted({part[0] for part in parts})
    return tuple(names) if len(names) > 1 and all(len(part) > 1 for part in parts) else ()
