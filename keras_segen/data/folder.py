"""A folder of images and masks as a data set."""

import csv
import functools
import os

import numpy as np

from keras_segen.data import cache as caches
from keras_segen.data import images
from keras_segen.data.dataset import SPLITS, check_split
from keras_segen.data.instances import check_numbers
from keras_segen.data.pairs import (
    VOID,
    Pairs,
    check_ids,
    count_sizes,
    in_words,
    inside,
    list_files,
    pair_files,
    resolved,
    stamp,
)
from keras_segen.files import from_csv

MOST_CLASSES = 254
COLUMNS = ("name", "red", "green", "blue", "ignore")
YES, NO = ("1", "yes", "true", "x"), ("", "0", "no", "false")


class Folder(Pairs):
    """Pairs of files `PATH/SPLIT/images/NAME.*` and `PATH/SPLIT/masks/NAME.*`.

    Images are PNG, JPEG, TIFF, BMP, WebP or GIF, 8 or 16 bits, gray, RGB, RGBA or with a palette.
    Masks are the same without JPEG, of the same size as their image. The highest value of a
    file's type, 255 or 65535, becomes 1, so that images stay comparable; 12-bit slices in 16-bit
    files would be dark: rescale them before saving.

    `PATH/classes.csv` with the columns name, red, green, blue, ignore describes the classes;
    row i, counted from 0, is label id i. Masks then hold these ids (gray or palette files) or
    exactly these colors (RGB files). Rows with "yes" under ignore become label 255, which
    losses and metrics leave out; the others are the classes 0 to n - 1, in order.

    Without `classes.csv` the label ids in the masks of all splits are collected, once: if they
    are 0 and 255, the classes are background and foreground; else 255 is ignored if there is
    a lower id than 255 beside 0 and none above; each other id is a class. `label_ids` holds
    the ids.

    `PATH/SPLIT/instances/NAME.*`, if a split has such a folder, tells objects apart, for models
    that find objects: whole numbers in one channel of 8 or 16 bits, 0 where there is no object, the
    same number for all pixels of an object, which has one class in the mask. The classes that
    occur under a number are those of objects, `object_classes`; a pixel of such a class without a
    number belongs to a crowd, which is neither learned nor counted.

    `PATH/groups.csv` with the columns name (of the image, without suffix) and group names
    images that belong together, such as all slices of a patient; see `groups`.

    Files are read when their item is asked for. Counts, and items with `cache="disk"`, are kept
    in `keras_segen.data.cache.cache_folder()`; a file that has changed since is read again.

    Args:
        path: the folder.
        split: str, `"train"`, `"val"` or `"test"`.
        size: int or `(height, width)` to resize to, or None to keep the files' own sizes; if
            the images of all splits have one size, it gives `image_shape`. Images shrink by area
            and grow bilinearly, masks take the nearest pixel.
        channels: int, 3 (RGB) or 1 (gray).
        cache: None, `"ram"` or `"disk"`: where decoded and resized items are kept.

    Raises:
        FileNotFoundError: if the folder, the split or its images or masks do not exist.
        ValueError: if images and masks do not pair up, `classes.csv` is wrong, or, when an
            item is read, a file is damaged, a mask has another size than its image, or a label
            or color is unknown; or if `groups.csv` has no row for an image.
    """

    def __init__(self, path, split="train", size=None, channels=3, cache=None):
        self.path = resolved(path)
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"{path}: no such folder; expected one with train/images, train/masks and so on"
            )
        pairs = list_pairs(self.path, check_split(split))
        self._table = None
        if os.path.lexists(self.path / "classes.csv"):  # a broken link is an error, too
            self._table = read_classes(inside(self.path, self.path / "classes.csv"))
            classes = classes_of_table(self._table)
        else:
            classes = classes_of(count_label_ids(self.path))
        self._groups = None
        if os.path.lexists(self.path / "groups.csv"):
            path_of_groups = inside(self.path, self.path / "groups.csv")
            self._groups = read_groups(path_of_groups, [image.stem for image, _ in pairs])
        super().__init__(f"folder:{path}", split, pairs, *classes, size, channels, cache)

    @property
    def groups(self):
        return None if self._groups is None else list(self._groups)

    @functools.cached_property
    def object_classes(self):
        parts = []
        for split in SPLITS:
            if (self.path / split / "instances").is_dir():
                parts.append(self if split == self.split else Folder(self.path, split))
        files = [
            stamp(path)
            for part in parts
            for i in range(len(part))
            for path in (part.pairs[i][1], part._numbers_path(i))
        ]

        def compute():
            found = set()
            for part in parts:
                for i in range(len(part)):
                    labels = part._stored_labels(i)
                    numbers = read_numbers(part._numbers_path(i), labels, part)
                    found.update(np.unique(labels[numbers > 0]).tolist())
            return sorted(part.label_ids[k] for k in found if k < len(part.label_ids))

        ids = caches.remember(("object ids", files, self._translation()), compute)
        return tuple(k for k, label_id in enumerate(self.label_ids) if label_id in ids)

    @functools.cached_property
    def _numbers_paths(self):
        folder = self.path / self.split / "instances"
        paths = list_files(self.path, folder)
        for image, _ in self.pairs:
            if image.stem not in paths:
                raise FileNotFoundError(
                    f"{image}: no instances for this image; expected {folder / image.stem}.png, "
                    "16 bits, with a number for each object"
                )
        return paths

    def _numbers_path(self, index):
        return self._numbers_paths[self.pairs[index][0].stem]

    def _to_numbers(self, path, index):
        return read_numbers(path, self._stored_labels(index), self)

    def _stored_labels(self, index):
        """Returns the labels of a mask at its file's own size."""
        path, content = self._file(index, 1)
        return self._to_labels(path, *images.read_mask(path, content))

    def _sizes(self):  # of all splits, which share one `image_shape`
        folders = [self.path / split / "images" for split in SPLITS]
        found = [sorted(folder.iterdir()) for folder in folders if folder.is_dir()]
        paths = [path for paths in found for path in paths if path.is_file()]
        return count_sizes([path for path in paths if not path.name.startswith(".")])

    def _translation(self):
        return self.label_ids, self._void_ids, self._colors()

    def _to_labels(self, path, pixels, one_bit):
        if self._table is None:
            return self._labels_of_ids(path, to_label_ids(path, pixels, one_bit))
        if pixels.ndim == 3:
            rows = self._rows_of_colors(path, pixels)
        else:
            rows = to_label_ids(path, pixels, one_bit, self._table)
        return self._labels_of_ids(path, rows, " (the rows of classes.csv, counted from 0)")

    def _colors(self):
        return None if self._table is None else tuple(row["color"] for row in self._table)

    def _rows_of_colors(self, path, pixels):
        seen = {}
        for row in self._table:
            if row["color"] in seen:
                raise ValueError(
                    f"{self.path / 'classes.csv'}, line {row['line']}: {row['name']} has the "
                    f"same color {row['color']} as {seen[row['color']]}, so the RGB mask "
                    f"{path} could mean either; give each row a color of its own"
                )
            seen[row["color"]] = row["name"]
        colors = np.array(self._colors())
        codes = colors @ (1 << 32, 1 << 16, 1)
        ids = np.array([row["id"] for row in self._table])[np.argsort(codes)]
        found = pixels.astype(np.int64) @ (1 << 32, 1 << 16, 1)
        place = np.minimum(np.searchsorted(np.sort(codes), found), len(codes) - 1)
        wrong = np.sort(codes)[place] != found
        if wrong.any():
            color = pixels[wrong][0].astype(int)
            count = int((pixels == pixels[wrong][0]).all(-1).sum())
            nearest = self._table[int(((colors - color) ** 2).sum(-1).argmin())]
            raise ValueError(
                f"{path}: color {tuple(color.tolist())} in {count} pixels, {int(wrong.sum())} "
                "pixels in all are of no color in classes.csv; the nearest is "
                f"{nearest['color']}, {nearest['name']}. Masks need exact colors: save them "
                "without smoothing and lossless, or as label ids in one channel"
            )
        return ids[place]


def list_pairs(root, split):
    """Returns the pairs (image, mask) of a split in the order of their names."""
    there = [name for name in SPLITS if (root / name).is_dir()]
    if split not in there:
        raise FileNotFoundError(
            f"{root} has no folder {split}; it has "
            + (f"{' and '.join(there)}" if there else f"none of {', '.join(SPLITS)}")
            + f". Expected {split}/images and {split}/masks"
        )
    return pair_files(root, root / split / "images", root / split / "masks")


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

    return caches.remember(("label ids", [stamp(path) for path in paths]), compute)


def read_numbers(path, labels, folder):
    """Reads the numbers of the objects of an image, uint16 `(height, width)`, and checks them.

    Args:
        path: the file.
        labels: uint8 `(height, width)`, the classes of the pixels, or 255.
        folder: the `Folder`, for the names of the classes.

    Raises:
        ValueError: if the file has colors, another size than the mask, or an object of two classes.
    """
    pixels, _ = images.read_mask(path)
    if pixels.ndim != 2:
        raise ValueError(
            f"{path}: instances in colors; expected whole numbers in one channel of 8 or 16 bits, "
            "one for each object, 0 where there is none"
        )
    if pixels.shape != labels.shape:
        raise ValueError(
            f"{path}: the instances have {in_words(pixels.shape)} pixels, but their mask has "
            f"{in_words(labels.shape)}; expected the same"
        )
    check_numbers(path, labels, VOID, pixels, folder.class_names)
    return pixels.astype(np.uint16)


def classes_of(ids):
    """Returns the same as `classes_of_table`, without colors, for the ids that occur."""
    if ids == [0, 255]:
        return ["background", "foreground"], None, ids, []
    others = [value for value in ids if value != VOID]
    if VOID in ids and others and 1 <= max(others) < VOID:
        return [f"class {value}" for value in others], None, others, [VOID]
    return [f"class {value}" for value in ids], None, ids, []


def classes_of_table(table):
    """Returns class names, colors, their label ids, and the ids of no class, of classes.csv."""
    rows = [row for row in table if not row["ignore"]]
    names, palette, label_ids = ([row[key] for row in rows] for key in ("name", "color", "id"))
    return names, palette, label_ids, [row["id"] for row in table if row["ignore"]]


def to_label_ids(path, pixels, one_bit, table=None):
    """Returns the label ids `(height, width)` of a decoded mask, 0 to 65535."""
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ValueError(
                f"{path}: a mask of colors, but there is no classes.csv that says what they "
                f"mean; write one beside the splits with the columns {','.join(COLUMNS)}, or "
                "save the masks as label ids in one channel"
            )
        pixels = pixels[..., 0]
    if one_bit and table is not None:
        return (pixels > 0).astype(np.uint8)
    return check_ids(path, pixels)


def read_classes(path):
    """Reads a classes.csv: a list of dicts with id, name, color, ignore and line."""
    columns, rows = read_table(path)
    missing = [name for name in COLUMNS[:4] if name not in columns]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {' and '.join(missing)}; expected the columns "
            f"{','.join(COLUMNS)}, found {','.join(columns or ['nothing'])}"
        )
    rows = [read_row(path, line, row) for line, row in rows]
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


def read_table(path):
    """Reads a CSV file: the names of its columns, and pairs of a line's number and its row."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            return list(reader.fieldnames or []), [(reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a table in UTF-8 with commas: {error}") from error


def read_groups(path, stems):
    """Reads groups.csv, the columns name and group: returns the group of each stem."""
    groups = {}
    for line, (_, row) in enumerate(read_table(path)[1], start=2):
        name, group = ((row.get(key) or "").strip() for key in ("name", "group"))
        if not name or not group:
            raise ValueError(
                f"{path}, row {line}: found name {name!r} and group {group!r}; expected the "
                "columns name,group and a value for each"
            )
        if groups.setdefault(name, group) != group:
            raise ValueError(f"{path}, row {line}: {name} is also in group {groups[name]!r}")
    alone = [stem for stem in stems if stem not in groups]
    if alone:
        raise ValueError(
            f"{path}: no group for {alone[0]} (of {len(alone)} images without); expected a row "
            "for each image, with its name before the suffix"
        )
    return [groups[stem] for stem in stems]


def read_row(path, line, row):
    """Returns one row of classes.csv as name, color, ignore and line."""
    if None in row or None in list(row.values())[:4]:
        raise ValueError(f"{path}, line {line}: expected one value for each column")
    row = {key: (value or "").strip() for key, value in row.items()}
    if not row["name"]:
        raise ValueError(f"{path}, line {line}: the class has no name")
    for name in COLUMNS[1:4]:
        if not (row[name].isdecimal() and int(row[name]) <= 255):
            raise ValueError(
                f"{path}, line {line}: {name} is {row[name]!r}; expected a whole number, 0 to 255"
            )
    ignore = row.get("ignore", "").lower()
    if ignore not in YES + NO:
        raise ValueError(
            f"{path}, line {line}: ignore is {row['ignore']!r}; expected yes or nothing"
        )
    name, color = from_csv(row["name"]), tuple(int(row[name]) for name in COLUMNS[1:4])
    return {"name": name, "color": color, "ignore": ignore in YES, "line": line}
