"""Data sets: images with masks, in NumPy, for any backend."""

import inspect

from keras_segen.data.arrays import arrays
from keras_segen.data.augment import Augment
from keras_segen.data.camvid import CamVid
from keras_segen.data.cityscapes import Cityscapes
from keras_segen.data.dataset import SPLITS, Dataset
from keras_segen.data.folder import Folder
from keras_segen.data.imbalance import (
    class_frequencies,
    effective_number_weights,
    inverse_frequency_weights,
    median_frequency_weights,
    repeat_factors,
)
from keras_segen.data.shapes import Shapes
from keras_segen.data.voc import VOC2012

__all__ = [
    "DATASETS",
    "SPLITS",
    "Augment",
    "CamVid",
    "Cityscapes",
    "Dataset",
    "Folder",
    "Shapes",
    "VOC2012",
    "arrays",
    "class_frequencies",
    "effective_number_weights",
    "inverse_frequency_weights",
    "load",
    "median_frequency_weights",
    "repeat_factors",
]

# What one writes, the class that it loads, and what it is. CAPITALS stand for the user's path.
_TABLE = (
    ("shapes", Shapes, "drawn scenes of discs, boxes, triangles, stars, rings; no download"),
    ("folder:PATH", Folder, "PATH/{train,val,test}/{images,masks}, by file name"),
    ("camvid:PATH", CamVid, "road scenes, 11 classes; fetched by hand"),
    ("cityscapes:PATH", Cityscapes, "street scenes, 19 classes; fetched by hand"),
    ("voc2012:PATH", VOC2012, "photos of 20 kinds of objects; fetched by hand"),
)
DATASETS = {usage: text for usage, _, text in _TABLE}


def load(name, split="train", size=None, channels=None, cache=None):
    """Loads a data set by its name.

    Args:
        name: str, a name out of `DATASETS`, with a path in place of the capitals, such as
            `"shapes"` or `"folder:photos"`.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` in pixels, or None for the data set's own: 64 for shapes,
            the files' own sizes for images on disk.
        channels: int, 3 (RGB) or 1 (grey); None is RGB, or what arrays hold.
        cache: None, `"ram"` or `"disk"`: where decoded and resized files are kept. What is no
            file takes None only.

    Returns:
        A `Dataset` (images with masks) or `Pictures` (images with labels).

    Raises:
        ValueError: if the name, the split or another argument is not one of these, or the
            files do not make a data set.
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
        known, needs_path, _ = usage.partition(":")
        if word == known and bool(needs_path) == bool(colon) == bool(path):
            return kind, path or None
    raise ValueError(f"no data set is named {name!r}; expected one of {', '.join(DATASETS)}")
