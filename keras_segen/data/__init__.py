"""Data sets: images with masks, in NumPy, for any backend."""

import functools
import inspect

from keras_segen.data.annotations import import_annotations
from keras_segen.data.array_files import ArrayFiles, write_arrays
from keras_segen.data.arrays import arrays
from keras_segen.data.augment import Augment
from keras_segen.data.borders import BorderWeights, border_weights
from keras_segen.data.camvid import CamVid
from keras_segen.data.cells import Cells
from keras_segen.data.cityscapes import Cityscapes
from keras_segen.data.dataset import SPLITS, Dataset, Pictures
from keras_segen.data.folder import Folder
from keras_segen.data.imbalance import (
    class_frequencies,
    effective_number_weights,
    inverse_frequency_weights,
    item_weights,
    median_frequency_weights,
)
from keras_segen.data.inspection import describe
from keras_segen.data.instances import Instance, Instances, as_instances
from keras_segen.data.pictures import Cifar10, FashionMnist, ImageFolder, Mnist, as_pictures, mirror
from keras_segen.data.public import Pets
from keras_segen.data.shapes import Shapes
from keras_segen.data.splitting import split_folder
from keras_segen.data.subset import Subset, assign_folds
from keras_segen.data.tree import Spec
from keras_segen.data.voc import VOC2012
from keras_segen.spelling import did_you_mean

__all__ = [
    "DATASETS",
    "SPLITS",
    "ArrayFiles",
    "Augment",
    "BorderWeights",
    "CamVid",
    "Cells",
    "Cifar10",
    "Cityscapes",
    "Dataset",
    "FashionMnist",
    "Folder",
    "ImageFolder",
    "Instance",
    "Instances",
    "Mnist",
    "Pets",
    "Pictures",
    "Shapes",
    "Spec",
    "Subset",
    "VOC2012",
    "arrays",
    "as_instances",
    "as_pictures",
    "assign_folds",
    "border_weights",
    "class_frequencies",
    "describe",
    "download",
    "effective_number_weights",
    "import_annotations",
    "inverse_frequency_weights",
    "item_weights",
    "load",
    "median_frequency_weights",
    "mirror",
    "split_folder",
    "write_arrays",
]

_SQUASHED = functools.partial(ImageFolder, fit="squash")
# Usage, class, description. CAPITALS stand for the user's path; brackets are optional.
_TABLE = (
    ("shapes", Shapes, "drawn scenes of discs, boxes, triangles, stars, rings; no download"),
    ("cells", Cells, "drawn cells that touch, parted by thin borders; no download"),
    ("folder:PATH", Folder, "PATH/{train,val,test}/{images,masks}, by file name"),
    ("pets[:PATH]", Pets, "cats and dogs, 3 classes; --download"),
    ("camvid:PATH", CamVid, "road scenes, 11 classes; fetched by hand"),
    ("cityscapes:PATH", Cityscapes, "street scenes, 19 classes; fetched by hand"),
    ("voc2012:PATH", VOC2012, "photos of 20 kinds of objects; fetched by hand"),
    ("arrays:PATH", ArrayFiles, "x_train, y_train, x_test, y_test as .npy files or one .npz"),
    ("cifar10[:PATH]", Cifar10, "pictures: 10 kinds of things, 32 x 32; --download or .npz"),
    ("mnist[:PATH]", Mnist, "pictures: digits, 28 x 28, gray; --download, .npz or IDX"),
    ("fashion_mnist[:PATH]", FashionMnist, "pictures: clothes, as mnist; --download, .npz or IDX"),
    ("images:PATH", ImageFolder, "pictures: any folder of them, cut to a common shape"),
    ("squashed:PATH", _SQUASHED, "pictures: any folder of them, squashed to size"),
)
DATASETS = {usage: text for usage, _, text in _TABLE}


def load(name, split="train", size=None, channels=None, cache=None):
    """Loads a data set by its name.

    Args:
        name: str, a name in `DATASETS`, with a path in place of the capitals, such as
            `"shapes"` or `"folder:photos"`.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` in pixels, or None for the data set's own: 64 for shapes,
            96 for cells, the files' own sizes for images on disk.
        channels: int, 3 (RGB) or 1 (gray); None is RGB, or what arrays hold.
        cache: None, `"ram"` or `"disk"`: where decoded and resized files are kept. Data
            sets without files take only None.

    Returns:
        A `Dataset` (images with masks) or `Pictures` (images with labels).

    Raises:
        ValueError: if the name, the split or another argument is none of these, or the files are
            not a data set.
        FileNotFoundError: if files or folders are missing.

    Example:

    >>> load("shapes", "val", size=32)[0][0].shape
    (32, 32, 3)
    """
    kind, path = _find(name)
    options = {"split": split, "size": size, "channels": channels, "cache": cache, "path": path}
    options = {option: value for option, value in options.items() if value is not None}
    if "cache" in options and "cache" not in inspect.signature(kind).parameters:
        raise ValueError(
            f"{name} is not read from image files and cannot be cached; found cache={cache!r}, "
            "expected cache=None"
        )
    return kind(**options)


def _find(name):
    """Returns the class and the path (or None) that a name stands for."""
    word, colon, path = name.partition(":") if isinstance(name, str) else (name, "", "")
    for usage, kind, _ in _TABLE:
        known, takes_path, _ = usage.replace("[", "").partition(":")
        fits = bool(colon) == bool(path) and bool(takes_path) >= bool(path)
        if word == known and fits and (path or not takes_path or "[" in usage):
            return kind, path or None
    usages = {usage.replace("[", "").partition(":")[0]: usage for usage in DATASETS}
    raise ValueError(
        f"no data set is named {name!r}; expected one of {', '.join(DATASETS)}."
        + did_you_mean(word, usages)
    )


def download(name):
    """Downloads a public data set once, after printing its size, and shows the progress.

    It is stored in `keras_segen.data.cache.data_folder()`; `load` then needs no network.

    Args:
        name: str, a name out of `DATASETS` without a path, such as `"cifar10"`.

    Raises:
        ValueError: if this data set cannot be downloaded.
        ConnectionError: if the download fails.
        ModuleNotFoundError: if the package that fetches it is not installed.
    """
    known = {usage.partition("[")[0]: kind for usage, kind, _ in _TABLE}
    known = {word: kind for word, kind in known.items() if hasattr(kind, "download")}
    if name not in known:
        raise ValueError(f"{name!r} cannot be downloaded; expected one of {', '.join(known)}")
    known[name].download()
