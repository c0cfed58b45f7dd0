"""Data sets whose items are an image and a mask on disk: reading, labels, caching, pairing."""

import collections
import os
from pathlib import Path

import numpy as np

from keras_segen.data import cache as caches
from keras_segen.data import images
from keras_segen.data.dataset import Dataset, check_channels, check_size, check_split

VOID = 255  # the label of ignored pixels, in every data set of files that has any


class Pairs(Dataset):
    """Pairs of an image file and a mask file, read when their item is asked for.

    Subclasses find the files and define which label ids are classes. Counts, and items with
    `cache="disk"`, are kept in `keras_segen.data.cache.cache_folder()`; a file that has changed
    since is read again.

    Args:
        name, split, class_names, palette: as in `Dataset`.
        pairs: list of `(image path, mask path)`.
        label_ids: sequence of int, the id of each class in the mask files.
        void_ids: sequence of int, the ids in the mask files that become `ignore_class`, 255.
        size: int or `(height, width)` to resize to, or None to keep the files' own sizes; if
            all are equal, they give `image_shape`. Images shrink by area and grow bilinearly, masks
            take the nearest pixel.
        channels: int, 3 (RGB) or 1 (gray).
        cache: None, `"ram"` or `"disk"`: where decoded and resized items are kept.

    Raises:
        ValueError: if an argument is none of these, or, when an item is read, a file is damaged,
            a mask has another size than its image, or a label is unknown.
    """

    TURNED = True  # whether images are turned as their EXIF orientation says

    def __init__(
        self, name, split, pairs, class_names, palette, label_ids, void_ids, size, channels, cache
    ):
        self._cache = caches.ItemCache(cache)
        self.size = None if size is None else check_size(size)
        self.channels = check_channels(channels)
        self.pairs = pairs
        self._void_ids = tuple(void_ids)
        sizes = self._sizes() if self.size is None else {self.size: len(pairs)}
        void = VOID if self._void_ids else None
        shape = (*next(iter(sizes)), self.channels) if len(sizes) == 1 else None
        super().__init__(name, split, class_names, palette, void, label_ids, shape)
        self.sizes = sizes

    def __len__(self):
        return len(self.pairs)

    def item_name(self, index):
        return self.pairs[self._index(index)][0].stem

    def _sizes(self):
        """Returns the sizes of the images, the commonest first: dict of (height, width) -> count.

        A subclass returns {} if they are unknown.
        """
        return count_sizes([image for image, _ in self.pairs], self.TURNED)

    def read(self, index):
        image, mask = self._cache.take(
            index, ("image", "mask"), lambda: self._key(index), lambda: self._decode(index)
        )
        return images.to_float(image), mask.astype(np.int32)

    def read_mask(self, index):
        return self._decode_mask(index).astype(np.int32)

    def instances(self, index):
        index = self._index(index)
        (numbers,) = self._cache.take(
            ("numbers", index),
            ("numbers",),
            lambda: (*self._key(index), stamp(self._numbers_path(index))),
            lambda: [self._at_size(self._to_numbers(self._numbers_path(index), index))],
        )
        return numbers.astype(np.int32)

    def _numbers_path(self, index):
        """Returns the path of the file that tells the objects of item `index` apart."""
        raise NotImplementedError

    def _to_numbers(self, path, index):
        """Returns the numbers of the objects as in a file, uint16 `(height, width)`, 0 for none."""
        raise NotImplementedError

    def _key(self, index):
        """Returns everything that item `index` depends on."""
        return self._stamps(index), self.size, self.channels, self._translation()

    def _stamps(self, index):
        """Returns sizes and times that change with the files of item `index`."""
        return [stamp(path) for path in self.pairs[index]]

    def _translation(self):
        """Returns everything that the conversion of mask files to labels depends on."""
        return self.label_ids, self._void_ids

    def _file(self, index, kind):
        """Returns path and content of a file of item `index`; kind 0 is the image, 1 the mask."""
        path = self.pairs[index][kind]
        return path, path.read_bytes()

    def _decode(self, index):
        """Returns image and mask as they are cached: uint8 or uint16, and uint8."""
        path, content = self._file(index, 0)
        image = images.read_image(path, self.channels, content, self.TURNED)
        mask = self._decode_mask(index, (path, image.shape[:2]))
        if self.size is not None:
            image = images.resize_image(image, self.size)
        return image, mask

    def _decode_mask(self, index, image=None):
        path, content = self._file(index, 1)
        pixels, one_bit = images.read_mask(path, content)
        if image is not None and pixels.shape[:2] != image[1]:
            raise ValueError(
                f"{path}: the mask has {in_words(pixels.shape)} pixels, but its image "
                f"{image[0]} has {in_words(image[1])} (turned as its EXIF "
                "orientation says); expected the same"
            )
        return self._at_size(self._to_labels(path, pixels, one_bit))

    def _at_size(self, mask):
        return mask if self.size is None else images.resize_mask(mask, self.size)

    def _to_labels(self, path, pixels, one_bit):
        """Returns the labels uint8 `(height, width)` of a decoded mask file."""
        if pixels.ndim == 3:
            raise ValueError(
                f"{path}: a mask of colors; expected label ids in one channel, "
                f"{listed([*self.label_ids, *self._void_ids])}"
            )
        return self._labels_of_ids(path, pixels)

    def _labels_of_ids(self, path, ids, hint=""):
        return labels_of_ids(path, ids, self.label_ids, self._void_ids, hint)

    def _count(self):
        masks = [self._stamps(index)[-1] for index in range(len(self))]
        key = ("pixels of items", masks, self.size, self._translation())
        return caches.remember(key, super()._count)


def pair_files(root, image_folder, mask_folder):
    """Returns the pairs (image, mask) of equal names before the suffix, in the order of these."""
    image_paths, mask_paths = list_files(root, image_folder), list_files(root, mask_folder)
    if not image_paths and not mask_paths:
        raise ValueError(f"{image_folder}: no files; expected images")
    for some, others, kind, other, folder in (
        (image_paths, mask_paths, "image", "mask", mask_folder),
        (mask_paths, image_paths, "mask", "image", image_folder),
    ):
        alone = sorted(set(some) - set(others))
        if alone:
            more = f" (and {len(alone) - 1} more without)" if alone[1:] else ""
            raise ValueError(
                f"{some[alone[0]]}: no {other} for this {kind}{more}; expected "
                f"{folder / alone[0]}.* with the same name before the suffix"
            )
    return [(image_paths[stem], mask_paths[stem]) for stem in sorted(image_paths)]


def list_files(root, folder):
    """Returns the files of a folder by stem. Hidden files and Thumbs.db are not looked at."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    inside(root, folder)
    found = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "Thumbs.db":
                continue
            path = folder / entry.name
            if entry.is_symlink():
                inside(root, path)
            if not entry.is_file():
                raise ValueError(f"{path}: not a file; expected nothing but files in {folder}")
            if path.stem in found:
                raise ValueError(
                    f"{path}: two files of one name, the other is {found[path.stem]}; expected "
                    "one, since images and masks are paired by the name before the suffix"
                )
            found[path.stem] = path
    return found


def inside(root, path):
    """Returns `path` if it is inside `root`, with links resolved."""
    if not resolved(path).is_relative_to(root):
        raise ValueError(
            f"{path}: a link to {resolved(path)}, outside of the data set {root}; copy the file "
            "into the folder"
        )
    return path


def check_labeled(split, name):
    """Raises a ValueError for the test split of a data set whose labels there are secret."""
    if check_split(split) == "test":
        raise ValueError(
            f"The labels of {name} test split are not public, so nothing can be measured "
            "on it; use split='val' (on the command line --split val)"
        )


def require_files(paths, kind, source):
    """Raises if files of a published data set are missing; the message tells how to get them.

    Args:
        paths: list of `pathlib.Path`, the files that belong to the split.
        kind: str, what they are, such as `"masks"`.
        source: str, a sentence on where to get them.

    Raises:
        FileNotFoundError: it names the first missing file and the number of all.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such file; {len(missing)} of {len(paths)} {kind} are missing. "
            f"{source}"
        )


def resolved(path):
    """Returns a path without `~`, `..` and links.

    Raises:
        ValueError: if links lead in a circle.
    """
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as error:  # up to Python 3.12; later ones return a path
        raise ValueError(f"{path}: a link that leads back to itself; remove it") from error


def header_sizes(paths, turn=True):
    """Returns the size of each image file as its header says, kept in the cache.

    Args:
        paths: list of `pathlib.Path`.
        turn: bool, whether the EXIF orientation counts.

    Returns:
        List of `(height, width)`, or None for a file that is not an image.
    """

    def size(path):
        try:
            return images.read_size(path, turn)
        except Exception:  # what Pillow raises for damaged files has no common type
            return None

    key = ("sizes", turn, [stamp(path) for path in paths])
    found = caches.remember(key, lambda: [size(path) for path in paths])
    return [each and tuple(each) for each in found]


def count_sizes(paths, turn=True):
    """Returns how many image files have which size, the commonest first: dict.

    Files that are not images are left out; reading them is an error.
    """
    sizes = [size for size in header_sizes(paths, turn) if size is not None]
    return dict(collections.Counter(sizes).most_common())


def stamp(path):
    """Returns a file's path, size and time of change."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def labels_of_ids(path, ids, label_ids, void_ids, hint=""):
    """Returns the labels, uint8, that the label ids of a mask stand for: 0 to n - 1, or 255.

    Args:
        path: the mask file, for errors.
        ids: whole numbers, any shape.
        label_ids: sequence of int, the id of each class.
        void_ids: sequence of int, the ids that become 255.
        hint: str, added to the error about an unknown id.

    Raises:
        ValueError: if there is another id.
    """
    known = [*label_ids, *void_ids]
    table = np.full(65536, -1, np.int16)
    table[known] = [*range(len(label_ids)), *(VOID for _ in void_ids)]
    mask = table[check_ids(path, ids)]
    if mask.min() < 0:
        unknown = np.unique(ids[mask < 0]).tolist()
        count = int((ids == unknown[0]).sum())
        raise ValueError(
            f"{path}: label {unknown[0]} in {count} pixels"
            + (f" and {len(unknown) - 1} more unknown labels" if unknown[1:] else "")
            + f"; expected label ids {listed(known)}{hint}"
        )
    return mask.astype(np.uint8)


def check_ids(path, ids):
    """Returns the ids of a mask if they are 0 to 65535."""
    if ids.dtype.itemsize > 2 and (ids.min() < 0 or ids.max() > 65535):
        raise ValueError(f"{path}: labels from {ids.min()} to {ids.max()}; expected 0 to 65535")
    return ids


def in_words(shape):
    """Returns a shape as height x width."""
    return f"{shape[0]} x {shape[1]}"


def listed(numbers):
    """Returns numbers in words, as a range where it is one."""
    numbers = sorted(numbers)
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
