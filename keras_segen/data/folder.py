"""A folder of images and masks as a data set."""

import csv
import os
from pathlib import Path

import numpy as np

from keras_segen import files
from keras_segen.data import cache as caches
from keras_segen.data import images
from keras_segen.data.dataset import SPLITS, Dataset, check_channels, check_size, check_split

VOID = 255  # the label of ignored pixels, in every folder that has any
MOST_CLASSES = 254
COLUMNS = ("name", "red", "green", "blue", "ignore")
YES, NO = ("1", "yes", "true", "x"), ("", "0", "no", "false")


class Folder(Dataset):
    """Pairs of files `PATH/SPLIT/images/NAME.*` and `PATH/SPLIT/masks/NAME.*`.

    Images are PNG, JPEG, TIFF, BMP or WebP, 8 or 16 bits, grey, RGB, RGBA or with a palette.
    Masks are the same without JPEG, of the same size as their image.

    `PATH/classes.csv` with the columns name, red, green, blue, ignore describes the classes;
    row i, counted from 0, is label id i. Masks then hold these ids (grey or palette files) or
    exactly these colours (RGB files). Rows with "yes" under ignore become label 255, which
    losses and metrics leave out; the others are the classes 0 to n - 1, in order.

    Without `classes.csv` the label ids are counted over the masks of all splits, once: if they
    are 0 and 255, the classes are background and foreground; else 255 is ignored if there is
    a lower id than 255 beside 0 and none above; each other id is a class. `label_ids` holds
    the ids.

    Files are read when their item is asked for. Counts, and items with `cache="disk"`, are kept
    in `keras_segen.data.cache.cache_folder()`; a file that has changed since is read again.

    Args:
        path: the folder.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` to resize to, or None to keep the files' own sizes.
            Images shrink by area and grow bilinearly, masks take the nearest pixel.
        channels: int, 3 (RGB) or 1 (grey).
        cache: None, `"ram"` or `"disk"`: where decoded and resized items are kept.

    Raises:
        FileNotFoundError: if the folder, the split or its images or masks do not exist.
        ValueError: if images and masks do not pair up, `classes.csv` is wrong, or, when an
            item is read, a file is damaged, a mask has another size than its image, or a label
            or colour is unknown.
    """

    def __init__(self, path, split="train", size=None, channels=3, cache=None):
        if cache not in (None, "ram", "disk"):
            raise ValueError(f"cache is {cache!r}, expected None, 'ram' or 'disk'")
        self.size = None if size is None else check_size(size)
        self.channels = check_channels(channels)
        self.cache = cache
        self._ram = {}
        self.path = Path(path).expanduser().resolve()
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"{path}: no such folder; expected one with train/images, train/masks and so on"
            )
        self.pairs = list_pairs(self.path, check_split(split))
        self._table = None
        if (self.path / "classes.csv").exists():
            self._table = read_classes(inside(self.path, self.path / "classes.csv"))
            rows = [row for row in self._table if not row["ignore"]]
            names = [row["name"] for row in rows]
            palette = [row["colour"] for row in rows]
            label_ids = [row["id"] for row in rows]
            void_ids = [row["id"] for row in self._table if row["ignore"]]
        else:
            names, label_ids, void_ids = classes_of(count_label_ids(self.path))
            palette = None
        self._void_ids = tuple(void_ids)
        super().__init__(
            f"folder:{path}",
            split,
            names,
            palette,
            VOID if void_ids else None,
            label_ids,
            None if self.size is None else (*self.size, self.channels),
        )

    def __len__(self):
        return len(self.pairs)

    def __getstate__(self):
        return self.__dict__ | {"_ram": {}}  # each worker process fills its own

    def item_name(self, index):
        return self.pairs[self._index(index)][0].stem

    def read(self, index):
        image, mask = self._cached(index) if self.cache else self._decode(index)
        return images.to_float(image), mask.astype(np.int32)

    def read_mask(self, index):
        return self._decode_mask(index).astype(np.int32)

    def _cached(self, index):
        key = self._key(index)
        if self.cache == "ram":
            if self._ram.get(index, (None,))[0] != key:
                self._ram[index] = key, *self._decode(index)
            return self._ram[index][1:]
        folder = caches.cache_folder() / "items"
        paths = [folder / f"{caches.digest(key, part)}.npy" for part in ("image", "mask")]
        try:
            return [np.load(path, allow_pickle=False) for path in paths]
        except (OSError, ValueError, EOFError):  # not there, or not whole
            arrays = self._decode(index)
        for path, array in zip(paths, arrays, strict=True):
            with files.write_atomically(path) as temporary:
                np.save(temporary, array)
        return arrays

    def _key(self, index):
        """Returns all that item `index` depends on."""
        stamps = [(str(path), *stamp(path)) for path in self.pairs[index]]
        return stamps, self.size, self.channels, self.label_ids, self._void_ids, self._colours()

    def _decode(self, index):
        """Returns image and mask as they are cached: uint8 or uint16, and uint8."""
        path = self.pairs[index][0]
        image = images.read_image(path, self.channels)
        mask = self._decode_mask(index, image.shape[:2])
        if self.size is not None:
            image = images.resize_image(image, self.size)
        return image, mask

    def _decode_mask(self, index, image_size=None):
        path = self.pairs[index][1]
        pixels, one_bit = images.read_mask(path)
        if image_size is not None and pixels.shape[:2] != image_size:
            raise ValueError(
                f"{path}: the mask has {in_words(pixels.shape)} pixels, but its image "
                f"{self.pairs[index][0]} has {in_words(image_size)} (turned as its EXIF "
                "orientation says); expected the same"
            )
        if self._table is not None and pixels.ndim == 3:
            mask = self._labels_of_colours(path, pixels)
        else:
            mask = self._labels_of_ids(path, to_label_ids(path, pixels, one_bit, self._table))
        return mask if self.size is None else images.resize_mask(mask, self.size)

    def _labels_of_ids(self, path, ids):
        known = [*self.label_ids, *self._void_ids]
        labels = [*range(self.num_classes), *(VOID for _ in self._void_ids)]
        table = np.full(65536, -1, np.int16)
        table[known] = labels
        mask = table[ids]
        if mask.min() < 0:
            unknown = np.unique(ids[mask < 0]).tolist()
            count = int((ids == unknown[0]).sum())
            raise ValueError(
                f"{path}: label {unknown[0]} in {count} pixels"
                + (f" and {len(unknown) - 1} more unknown labels" if unknown[1:] else "")
                + f"; expected label ids {listed(known)}"
                + (" (the rows of classes.csv, counted from 0)" if self._table else "")
            )
        return mask.astype(np.uint8)

    def _colours(self):
        return None if self._table is None else tuple(row["colour"] for row in self._table)

    def _labels_of_colours(self, path, pixels):
        seen = {}
        for row in self._table:
            if row["colour"] in seen:
                raise ValueError(
                    f"{self.path / 'classes.csv'}, line {row['line']}: {row['name']} has the "
                    f"same colour {row['colour']} as {seen[row['colour']]}, so the RGB mask "
                    f"{path} could mean either; give each row a colour of its own"
                )
            seen[row["colour"]] = row["name"]
        colours = np.array(self._colours())
        codes = colours @ (1 << 32, 1 << 16, 1)
        ids = np.array([row["id"] for row in self._table])[np.argsort(codes)]
        found = pixels.astype(np.int64) @ (1 << 32, 1 << 16, 1)
        place = np.minimum(np.searchsorted(np.sort(codes), found), len(codes) - 1)
        wrong = np.sort(codes)[place] != found
        if wrong.any():
            colour = pixels[wrong][0].astype(int)
            count = int((pixels == pixels[wrong][0]).all(-1).sum())
            nearest = self._table[int(((colours - colour) ** 2).sum(-1).argmin())]
            raise ValueError(
                f"{path}: colour {tuple(colour.tolist())} in {count} pixels, {int(wrong.sum())} "
                "pixels in all are of no colour in classes.csv; the nearest is "
                f"{nearest['colour']}, {nearest['name']}. Masks need exact colours: save them "
                "without smoothing and lossless, or as label ids in one channel"
            )
        return self._labels_of_ids(path, ids[place])

    def _count(self):
        masks = [(str(mask), *stamp(mask)) for _, mask in self.pairs]
        key = ("pixels of items", masks, self.size, self.label_ids, self._void_ids, self._colours())
        return caches.remember(key, super()._count)


def list_pairs(root, split):
    """Returns the pairs (image, mask) of a split in the order of their names."""
    there = [name for name in SPLITS if (root / name).is_dir()]
    if split not in there:
        raise FileNotFoundError(
            f"{root} has no folder {split}; it has "
            + (f"{' and '.join(there)}" if there else f"none of {', '.join(SPLITS)}")
            + f". Expected {split}/images and {split}/masks"
        )
    image_paths = list_files(root, root / split / "images")
    mask_paths = list_files(root, root / split / "masks")
    if not image_paths and not mask_paths:
        raise ValueError(f"{root / split / 'images'}: no files; expected images")
    for some, others, kind, other in (
        (image_paths, mask_paths, "image", "mask"),
        (mask_paths, image_paths, "mask", "image"),
    ):
        alone = sorted(set(some) - set(others))
        if alone:
            more = f" (and {len(alone) - 1} more without)" if alone[1:] else ""
            raise ValueError(
                f"{some[alone[0]]}: no {other} for this {kind}{more}; expected "
                f"{root / split / (other + 's') / alone[0]}.* with the same name before the suffix"
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
    """Returns `path` if it lies in `root`, links followed."""
    if not path.resolve().is_relative_to(root):
        raise ValueError(
            f"{path}: a link to {path.resolve()}, outside of the data set {root}; copy the file "
            "into the folder"
        )
    return path


def stamp(path):
    """Returns a file's size and time of change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def count_label_ids(root):
    """Returns the label ids that occur in the masks of all splits, sorted; kept in the cache."""
    paths = []
    for split in SPLITS:
        if (root / split).is_dir():
            paths += list_files(root, root / split / "masks").values()

    def compute():
        found = set()
        for path in paths:
            pixels, one_bit = images.read_mask(path)
            found.update(np.unique(to_label_ids(path, pixels, one_bit)).tolist())
            if len(found - {VOID}) > MOST_CLASSES:
                raise ValueError(
                    f"{path}: more than {MOST_CLASSES} different labels up to this mask; these "
                    "look like photos, not masks. Expected one whole number per class"
                )
        return sorted(found)

    masks = [(str(path), *stamp(path)) for path in paths]
    return caches.remember(("label ids", masks), compute)


def classes_of(ids):
    """Returns class names, their label ids, and the ids of no class, for the ids that occur."""
    if ids == [0, 255]:
        return ["background", "foreground"], ids, []
    others = [value for value in ids if value != VOID]
    if VOID in ids and others and 1 <= max(others) < VOID:
        return [f"class {value}" for value in others], others, [VOID]
    return [f"class {value}" for value in ids], ids, []


def to_label_ids(path, pixels, one_bit, table=None):
    """Returns the label ids `(height, width)` of a decoded mask, 0 to 65535."""
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ValueError(
                f"{path}: a mask of colours, but there is no classes.csv that says what they "
                f"mean; write one beside the splits with the columns {','.join(COLUMNS)}, or "
                "save the masks as label ids in one channel"
            )
        pixels = pixels[..., 0]
    if one_bit and table is not None:
        return (pixels > 0).astype(np.uint8)
    if pixels.dtype.itemsize > 2 and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError(
            f"{path}: labels from {pixels.min()} to {pixels.max()}; expected 0 to 65535"
        )
    return pixels


def read_classes(path):
    """Reads a classes.csv: a list of dicts with id, name, colour, ignore and line."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            missing = [name for name in COLUMNS[:4] if name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(
                    f"{path}, line 1: no column {' and '.join(missing)}; expected the columns "
                    f"{','.join(COLUMNS)}, found {','.join(reader.fieldnames or ['nothing'])}"
                )
            rows = [read_row(path, reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a table in UTF-8 with commas: {error}") from error
    names = {}
    for index, row in enumerate(rows):
        row["id"] = index
        if row["name"] in names:
            raise ValueError(
                f"{path}, line {row['line']}: the name {row['name']!r} is also in line "
                f"{names[row['name']]}; expected different names"
            )
        names[row["name"]] = row["line"]
    num_classes = sum(not row["ignore"] for row in rows)
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ValueError(
            f"{path}: {num_classes} classes in {len(rows)} rows; expected 1 to {MOST_CLASSES} "
            "rows that are not ignored"
        )
    return rows


def read_row(path, line, row):
    """Returns one row of classes.csv as name, colour, ignore and line."""
    if None in row or None in list(row.values())[:4]:
        raise ValueError(f"{path}, line {line}: expected one value for each column")
    row = {key: (value or "").strip() for key, value in row.items()}
    if not row["name"]:
        raise ValueError(f"{path}, line {line}: the class has no name")
    colour = []
    for name in COLUMNS[1:4]:
        if not (row[name].isdecimal() and int(row[name]) <= 255):
            raise ValueError(
                f"{path}, line {line}: {name} is {row[name]!r}; expected a whole number, 0 to 255"
            )
        colour.append(int(row[name]))
    ignore = row.get("ignore", "").lower()
    if ignore not in YES + NO:
        raise ValueError(
            f"{path}, line {line}: ignore is {row['ignore']!r}; expected yes or nothing"
        )
    return {"name": row["name"], "colour": tuple(colour), "ignore": ignore in YES, "line": line}


def in_words(shape):
    """Returns a shape as height x width."""
    return f"{shape[0]} x {shape[1]}"


def listed(numbers):
    """Returns numbers in words, as a range where it is one."""
    numbers = sorted(numbers)
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
