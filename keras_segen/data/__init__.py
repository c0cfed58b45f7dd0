"""Data sets: images with masks, in NumPy, for any backend."""

from keras_segen.data.arrays import arrays
from keras_segen.data.augment import Augment
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

__all__ = [
    "DATASETS",
    "SPLITS",
    "Augment",
    "Dataset",
    "Folder",
    "Shapes",
    "arrays",
    "class_frequencies",
    "effective_number_weights",
    "inverse_frequency_weights",
    "load",
    "median_frequency_weights",
    "repeat_factors",
]

DATASETS = {
    "shapes": "drawn scenes of discs, boxes, triangles, stars and rings; no download, any size",
    "folder:PATH": "PATH/{train,val,test}/{images,masks}, by file name; classes.csv optional",
}


def load(name, split="train", size=None, channels=3, cache=None):
    """Loads a data set by its name.

    Args:
        name: str, `"shapes"` or `"folder:PATH"`, see `DATASETS`.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` in pixels, or None: 64 for shapes, the files' own size
            for a folder.
        channels: int, 3 (RGB) or 1 (grey).
        cache: None, `"ram"` or `"disk"`: where a folder keeps its decoded and resized items.
            Shapes are drawn, not read, and take None only.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: if the name, the split or another argument is not one of these, or the
            folder's files do not make a data set.
        FileNotFoundError: if the folder or the split does not exist.

    Example:

    >>> load("shapes", "val", size=32)[0][0].shape
    (32, 32, 3)
    """
    if name == "shapes":
        if cache is not None:
            raise ValueError(
                f"shapes are drawn, not read, and cannot be cached; found cache={cache!r}, "
                "expected cache=None"
            )
        return Shapes(split, size=64 if size is None else size, channels=channels)
    if isinstance(name, str) and name.startswith("folder:") and name != "folder:":
        return Folder(name.removeprefix("folder:"), split, size, channels, cache)
    raise ValueError(f"no data set is named {name!r}; expected one of {', '.join(DATASETS)}")
