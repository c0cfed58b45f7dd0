"""Arrays on disk: a folder of .npy files, an .npz archive, or the IDX files of MNIST."""

import functools
import gzip
import math
import zipfile
from pathlib import Path

import numpy as np
import psutil

from keras_segen.data import cache as caches
from keras_segen.data import images
from keras_segen.data.dataset import (
    Dataset,
    carve,
    check_channels,
    check_size,
    check_split,
    require_masks,
)
from keras_segen.data.folder import (
    COLUMNS,
    MOST_CLASSES,
    classes_of,
    classes_of_table,
    read_classes,
)
from keras_segen.data.instances import check_numbers
from keras_segen.data.pairs import VOID, labels_of_ids, resolved, stamp
from keras_segen.files import write_atomically, write_csv

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
PIECE = 64  # items that are checked at once
HEADERS = {  # how an .npy file begins, by the version of the format
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# The most bytes that an archive may unpack to, or times its own size: photos compress to a half,
# masks to a hundredth.
UNPACKED, TIMES = 2**30, 200


class ArrayFiles(Dataset):
    """Images and masks in the arrays `x_train`, `y_train`, `x_test`, `y_test` on disk.

    They are `.npy` files in a folder, read item by item (memory-mapped), or in one `.npz` file, of
    which a split is read into memory. `x_val` and `y_val` are optional; without them a tenth of
    the training items is the validation split, always the same.

    Images are `(number, height, width)`, or with 1 or 3 channels last: uint8, uint16, or float
    in [0, 1]. Masks are `(number, height, width)`, or with one channel last:

    - whole numbers are label ids, 0 to 65535, as in the masks of `keras_segen.data.Folder`:
      `classes.csv` in the folder describes them; without it the ids of all splits are collected:
      0 and 255 are background and foreground, 255 beside other ids is ignored.
    - floats in [0, 1] that are not all whole, such as resized masks, are the share of foreground
      in a pixel: 0.5 and more is foreground, less is background.

    `instances_train`, `instances_val` and `instances_test`, `(number, height, width)`, are
    optional: whole numbers that tell the objects of an image apart, as in the folder `instances`
    of `keras_segen.data.Folder`.

    All arrays are read and checked once; `keras_segen.data.cache.cache_folder()` keeps the result.
    Nothing is ever unpickled.

    Args:
        path: the folder or the `.npz` file.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` to resize to, or None for the arrays' own.
        channels: int, 3 (RGB) or 1 (gray); None for the arrays' own.

    Raises:
        FileNotFoundError: if an array that the split needs is missing.
        ValueError: if shapes, types or values do not fit, or a file is damaged.
    """

    def __init__(self, path, split="train", size=None, channels=None):
        self._store = Store(path)
        check_split(split)
        size = None if size is None else check_size(size)
        carved = split in ("train", "val") and "x_val" not in self._store
        self._source = "train" if carved else split
        self._opened = self._opened_numbers = None
        self._soft, names, palette, label_ids, self._void_ids = self._classes()
        images_of_split, _ = self._arrays()
        length, height, width = images_of_split.shape[:3]
        self._indices = carve(length, split) if carved else np.arange(length)
        own = images_of_split.shape[3] if images_of_split.ndim == 4 else 1
        shape = (*(size or (height, width)), own if channels is None else check_channels(channels))
        void = VOID if self._void_ids else None
        super().__init__(f"arrays:{path}", split, names, palette, void, label_ids, shape)

    def __len__(self):
        return len(self._indices)

    def __getstate__(self):
        # Each worker process opens the files itself.
        return self.__dict__ | {"_opened": None, "_opened_numbers": None}

    def read(self, index):
        image = self._arrays()[0][self._indices[index]]
        if image.dtype.kind == "f":  # OpenCV takes no float16
            image = image.astype(np.float32)
        image = images.to_channels(image, self.image_shape[2])
        image = images.resize_image(image, self.image_shape[:2])
        return np.array(images.to_float(image)), self.read_mask(index)

    def read_mask(self, index):
        mask = self._arrays()[1][self._indices[index]]
        mask = mask.reshape(mask.shape[:2])
        ids = (mask >= 0.5 if self._soft else mask).astype(np.int64)
        where = f"{self._store.where('y_' + self._source)}, item {self._indices[index]}"
        mask = labels_of_ids(where, ids, self.label_ids, self._void_ids)
        return images.resize_mask(mask, self.image_shape[:2]).astype(np.int32)

    @functools.cached_property
    def object_classes(self):
        splits = [s for s in ("train", "val", "test") if f"instances_{s}" in self._store]

        def compute():
            found = set()
            for split in splits:
                masks, numbers = open_pair(self._store, split)[1], open_numbers(self._store, split)
                for start in range(0, len(masks), PIECE):
                    here = slice(start, start + PIECE)
                    part = np.asarray(masks[here]).reshape(-1, *masks.shape[1:3])
                    ids = (part >= 0.5 if self._soft else part)[np.asarray(numbers[here]) > 0]
                    found.update(np.unique(ids).astype(int).tolist())
            return sorted(found)

        stamps = self._store.stamps(("x", "y", "instances"))
        ids = caches.remember(("objects of arrays", stamps), compute)
        return tuple(k for k, label_id in enumerate(self.label_ids) if label_id in ids)

    def instances(self, index):
        if self._opened_numbers is None:
            self._opened_numbers = open_numbers(self._store, self._source)
        place = self._indices[self._index(index)]
        numbers = np.asarray(self._opened_numbers[place])
        numbers = images.resize_mask(numbers, self.image_shape[:2]).astype(np.int32)
        where = f"{self._store.where('instances_' + self._source)}, item {place}"
        mask = self.read_mask(self._index(index))
        check_numbers(where, mask, self.ignore_class, numbers, self.class_names)
        return numbers

    def _arrays(self):
        """Returns the stored images and masks that the split is part of."""
        if self._opened is None:
            self._opened = open_pair(self._store, self._source)
        return self._opened

    def _classes(self):
        """Returns whether masks are shares, names, palette, label ids, ids of no class."""
        splits = [split for split in ("train", "val", "test") if f"x_{split}" in self._store]
        ids, soft = caches.remember(
            ("array files", self._store.stamps()), lambda: check_arrays(self._store, splits)
        )
        table = self._store.path / "classes.csv"
        if table.is_file():
            return soft, *classes_of_table(read_classes(table))
        if soft:
            return soft, ["background", "foreground"], None, [0, 1], []
        return soft, *classes_of(ids)

    def _count(self):
        table = (tuple(self.label_ids), tuple(self._void_ids), self.split, self.image_shape[:2])
        return caches.remember(("pixels of arrays", self._store.stamps(), table), super()._count)


def write_arrays(folder, train, val=None):
    """Writes a data set in memory as the folder that `ArrayFiles` reads, nothing pickled.

    Args:
        folder: path; files of the same names are replaced.
        train: a `Dataset` whose items have one shape.
        val: a `Dataset` of the same classes and shape; without it, `ArrayFiles` takes a tenth of
            `train`.

    Raises:
        ValueError: the data sets do not fit together, or items have no common shape.
    """
    folder = Path(folder)
    check_pair(train, val)
    void = train.num_classes  # the row after those of the classes
    classes = zip(train.class_names, train.palette.tolist(), strict=True)
    table = [COLUMNS, *([name, *color, ""] for name, color in classes)]
    if train.ignore_class is not None:
        table.append(["(ignored)", 0, 0, 0, "yes"])
    write_csv(folder / "classes.csv", table)
    for split, dataset in (("train", train), ("val", val)):
        x_path, y_path = (folder / f"{kind}_{split}.npy" for kind in "xy")
        if dataset is None:
            x_path.unlink(missing_ok=True)
            y_path.unlink(missing_ok=True)
            continue
        shape = (len(dataset), *dataset.image_shape)
        with write_atomically(x_path) as x_file, write_atomically(y_path) as y_file:
            x = np.lib.format.open_memmap(x_file, "w+", np.float32, shape)
            y = np.lib.format.open_memmap(y_file, "w+", np.uint8, shape[:3])
            for index in range(len(dataset)):
                x[index], mask = dataset[index]
                y[index] = np.where(mask == dataset.ignore_class, void, mask)
            del x, y  # writes what is left


def check_pair(train, val):
    """Raises a ValueError if two data sets differ in classes or shape, or have no common shape."""
    for dataset in (train, val):
        if dataset is None:
            continue
        require_masks(dataset)
        dataset.common_shape()
        if dataset.num_classes > MOST_CLASSES:
            raise ValueError(
                f"{dataset.name} has {dataset.num_classes} classes, expected at most {MOST_CLASSES}"
            )
    if val is None:
        return
    for name in ("image_shape", "class_names", "ignore_class"):
        found, expected = getattr(val, name), getattr(train, name)
        if found != expected:
            raise ValueError(
                f"{name} of the validation split is {found}, expected that of the training "
                f"split, {expected}"
            )


class Store:
    """The arrays `x_train`, `y_train` and so on of a path, by name.

    Args:
        path: a folder of `.npy` files, or of the IDX files of MNIST (`train-images-idx3-ubyte`
            and so on, also with `.gz`); or an `.npz` file.

    Raises:
        FileNotFoundError: if there is no such folder or file.
    """

    def __init__(self, path):
        self.path = resolved(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f"{self.path}: no such folder or file; expected a folder with x_train.npy, "
                "y_train.npy and so on, or an .npz file of these arrays"
            )
        self._members = None
        if not self.path.is_dir():
            try:
                with zipfile.ZipFile(self.path) as archive:
                    names = archive.namelist()
            except Exception:  # zipfile's errors for damaged files have no common type
                names = []
            self._members = sorted(name.removesuffix(".npy") for name in names)
            if not self._members:
                raise ValueError(
                    f"{self.path}: no .npz file, or a damaged one; expected an archive of the "
                    "arrays x_train, y_train and so on"
                )

    def __contains__(self, name):
        if self._members is not None:
            return name in self._members
        return any(path.is_file() for path in self._candidates(name))

    def __getitem__(self, name):
        """Returns an array: read-only and memory-mapped if it is a `.npy` file."""
        if name not in self:
            found = self._members or sorted(path.name for path in self.path.iterdir())
            raise FileNotFoundError(
                f"{self.path}: no {name}; expected {self._candidates(name)[0].name} beside "
                f"{', '.join(found[:8]) or 'nothing'}"
                if self._members is None
                else f"{self.path}: no array {name}; found {', '.join(found[:8])}"
            )
        path = self.where(name)
        try:
            if self._members is not None:
                return read_member(path, name)
            if path.suffix == ".npy":
                with open(path, "rb") as file:
                    check_header(file, path.stat().st_size)
                return np.load(path, mmap_mode="r", allow_pickle=False)
            return read_idx(path)
        except MemoryError as error:
            raise ValueError(
                f"{path}: array {name} is too large: {error}. Save it as {name}.npy in a folder: "
                "such files are read item by item"
            ) from error
        except Exception as error:  # those of NumPy and zipfile have no common type
            raise ValueError(
                f"{path}: array {name} cannot be read, it is damaged or holds no numbers ({error})"
            ) from error

    def where(self, name):
        """Returns the path of the file that holds an array."""
        if self._members is not None:
            return self.path
        return next(path for path in self._candidates(name) if path.is_file())

    def stamps(self, kinds=("x", "y")):
        """Returns sizes and times that change with the files."""
        names = [f"{kind}_{split}" for kind in kinds for split in ("train", "val", "test")]
        paths = sorted({self.where(name) for name in names if name in self})
        return [stamp(path) for path in paths]

    def _candidates(self, name):
        idx = [IDX_NAMES[name], f"{IDX_NAMES[name]}.gz"] if name in IDX_NAMES else []
        return [self.path / file for file in (f"{name}.npy", *idx)]


def read_idx(path):
    """Reads an IDX file of bytes, the format of MNIST, plain or compressed by gzip.

    Args:
        path: the file.

    Returns:
        A uint8 array.

    Raises:
        ValueError: if it is not such a file, truncated, or followed by more.
        MemoryError: if it unpacks to far more than its size.
    """
    path = Path(path)
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as file:
        start = file.read(4)
        if len(start) < 4 or start[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes: expected it to start with 0, 0, 8")
        shape = tuple(np.frombuffer(file.read(4 * start[3]), ">u4").tolist())
        size = math.prod(shape)
        check_unpacked(size, path.stat().st_size)
        content = file.read(size)
        if len(content) < size or file.read(1):
            raise ValueError(f"it says that it holds {shape} bytes, and holds another number")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_member(path, name):
    """Reads an array of an .npz file, if its header and the archive agree on its size."""
    with zipfile.ZipFile(path) as archive:
        member = next(info for info in archive.infolist() if info.filename in (name, f"{name}.npy"))
        with archive.open(member) as file:
            check_header(file, member.file_size)
        check_unpacked(member.file_size, min(member.compress_size, path.stat().st_size))
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def check_header(file, size):
    """Raises a ValueError if the header of an .npy file promises more than its size.

    Args:
        file: the file, open at its beginning.
        size: int, its bytes.
    """
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format, which is not for arrays of numbers")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(
            f"its header says {dtype} {shape}, but {size - file.tell():,} bytes follow it"
        )


def check_unpacked(size, packed):
    """Raises a MemoryError if something would unpack to far more than its size."""
    free = psutil.virtual_memory().available
    if size > min(free, max(UNPACKED, TIMES * packed)):
        raise MemoryError(
            f"its {packed / 2**20:,.1f} MiB unpack to {size / 2**20:,.0f} MiB; expected at most "
            f"{TIMES} times as much, and less than the {free / 2**20:,.0f} MiB of free memory"
        )


def open_pair(store, split):
    """Returns the arrays of images and of masks of a split, with their shapes checked."""
    pictures, masks = store[f"x_{split}"], store[f"y_{split}"]
    shape_fits = pictures.ndim in (3, 4) and pictures.shape[3:] in ((), (1,), (3,))
    if not shape_fits or 0 in pictures.shape:
        raise ValueError(
            f"{store.path}: x_{split} has shape {pictures.shape}; expected (number, height, "
            "width) or (number, height, width, channels) with 1 or 3 channels"
        )
    if pictures.dtype.kind != "f" and pictures.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{store.path}: x_{split} is {pictures.dtype}; expected uint8, uint16 or float in "
            "[0, 1]"
        )
    if masks.shape not in (pictures.shape[:3], (*pictures.shape[:3], 1)):
        raise ValueError(
            f"{store.path}: y_{split} has shape {masks.shape}; expected {pictures.shape[:3]}, a "
            f"label per pixel of x_{split}"
        )
    if masks.dtype.kind not in "iubf":
        raise ValueError(f"{store.path}: y_{split} is {masks.dtype}; expected numbers")
    return pictures, masks


def open_numbers(store, split):
    """Returns the array that tells the objects of a split apart, with its shape checked."""
    numbers, masks = store[f"instances_{split}"], open_pair(store, split)[1]
    if numbers.shape != masks.shape[:3] or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{store.path}: instances_{split} is {numbers.dtype} {numbers.shape}; expected whole "
            f"numbers {masks.shape[:3]}, one per pixel of x_{split}"
        )
    return numbers


def check_arrays(store, splits):
    """Reads all arrays once.

    Returns:
        `[ids, soft]`: the label ids that occur, and whether masks are shares instead of ids.
    """
    ids, soft, low, high = set(), None, math.inf, -math.inf
    for split in splits:
        pictures, masks = open_pair(store, split)
        for start in range(0, len(pictures), PIECE):
            part = np.asarray(pictures[start : start + PIECE])
            if part.dtype.kind == "f" and not (part.min() >= 0 and part.max() <= 1):
                raise ValueError(
                    f"{store.path}: x_{split} is {part.dtype} with values from {part.min()} to "
                    f"{part.max()}; expected 0 to 1. Divide them by their highest possible value"
                )
            part = np.asarray(masks[start : start + PIECE])
            between = part[part != np.rint(part)] if part.dtype.kind == "f" else part[:0]
            if between.size:
                soft = soft or (split, between.ravel()[0])
            else:
                ids.update(np.unique(part).tolist())
            low, high = np.minimum(low, part.min()), np.maximum(high, part.max())  # keeps nan
    if soft and not (low >= 0 and high <= 1):
        raise ValueError(
            f"{store.path}: y_{soft[0]} has values that are not whole, such as {soft[1]}, and "
            f"values from {low} to {high}; expected label ids, or shares from 0 to 1"
        )
    if soft:
        return [[0, 1], True]
    if low < 0 or high > 65535:
        raise ValueError(f"{store.path}: labels from {low} to {high}; expected 0 to 65535")
    return [sorted(int(value) for value in ids), False]
