"""Annotations of other programs, COCO and LabelMe, made into masks and planes of instances."""

import base64
import binascii
import collections
import dataclasses
import io
import json
import math
import unicodedata
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from keras_segen.data import images as image_files
from keras_segen.data.dataset import check_split, distinct_palette
from keras_segen.data.folder import COLUMNS, MOST_CLASSES, classes_of_table, read_classes
from keras_segen.data.instances import pixels_in
from keras_segen.data.pairs import in_words, resolved
from keras_segen.data.splitting import check_new, place_file
from keras_segen.files import write_csv, write_folder_atomically

BACKGROUND, NOTHING = "background", "void"  # names of classes that have a meaning
MOST_OBJECTS = 255  # of a class in an image: a number is a byte


@dataclasses.dataclass
class Imported:
    """What `import_annotations` did.

    Args:
        kind: str, `"COCO"` or `"LabelMe"`.
        images: int, how many.
        objects: int, how many are to be seen in `instances/`.
        class_names: tuple of str, without void.
        notes: list of str, what was left out or is void.
    """

    kind: str
    images: int
    objects: int
    class_names: tuple
    notes: list


@dataclasses.dataclass
class _Object:
    """An annotated object: `draw(shape)` returns where it is, bool `(height, width)`."""

    label: str
    draw: callable
    key: object  # equal for the parts of one object
    void: bool = False


@dataclasses.dataclass
class _Picture:
    """An annotated image: its file, or its content and suffix, and its objects."""

    stem: str  # of the files to write
    where: str  # the file of annotations, and the entry in it, for errors
    shape: tuple | None  # height, width, as annotated
    objects: list
    path: Path | None = None
    content: bytes | None = None

    @property
    def file(self):
        """What Pillow opens."""
        return self.path if self.content is None else io.BytesIO(self.content)


def import_annotations(source, out, *, images=None, split=None, link=False):
    """Makes a `folder:` data set of annotations in COCO's or LabelMe's format.

    `out` gets `images/`, `masks/`, `instances/` and `classes.csv`; with `split` the first three
    are in a folder of that name, and a second call adds another split. Masks are PNG files of
    8 bits with the class of each pixel, its row in `classes.csv`: 0 is the background, then come
    COCO's categories by id, or LabelMe's labels by name; the last row is void. Planes of
    instances are PNG files of 16 bits: 256 * class + the number of the object within its class,
    counted from 1 in the order of the annotations; 0 where no object is, where void,
    and for those beyond 255 of a class, which are a crowd.

    A pixel belongs to an object if its center is inside. Where objects overlap, the smaller one is
    seen. COCO's crowds, and LabelMe's label `__ignore__`, are void where no object is. LabelMe's
    shapes of one label with one group are one object; points and lines have no area and are left
    out.

    Args:
        source: path of a COCO `.json` file (polygons, run lengths, compressed run lengths), or
            of a LabelMe `.json` file or a folder of these.
        out: path of the folder to make.
        images: path of the folder with the images. None looks beside the annotations; LabelMe's
            may hold the images themselves.
        split: str, `"train"`, `"val"` or `"test"`, or None for a folder without splits, as
            `split_folder` takes it. If `out/classes.csv` is there, its classes are taken.
        link: bool, whether images are hard links in place of copies.

    Returns:
        An `Imported`.

    Raises:
        FileNotFoundError: annotations or images are not there.
        FileExistsError: what would be written is there.
        ValueError: the file is of another kind, an entry is wrong, an image has another size than
            its annotations say, or a path leads out of the folder of images.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: expected a .json file or a folder")
    target = out if split is None else out / check_split(split)
    check_new(target)
    kind, names, pictures, notes = _read(source, None if images is None else Path(images))
    _check_files(pictures)
    table = out / "classes.csv"
    if split is not None and table.exists():
        class_names = _known_classes(table, names)
    else:
        names = [name for name in names if name not in (BACKGROUND, NOTHING)]
        class_names = (BACKGROUND, *names)
        if len(class_names) > MOST_CLASSES:
            raise ValueError(
                f"{source}: {len(class_names)} classes with the background; expected at most "
                f"{MOST_CLASSES}"
            )
    objects, beyond = 0, 0
    if split is not None:
        _write_classes(table, class_names)  # first: a second try takes them
    with write_folder_atomically(target) as folder:
        if split is None:
            _write_classes(folder / "classes.csv", class_names)
        for each in pictures:
            there, more = _write(each, class_names, folder, link)
            objects, beyond = objects + there, beyond + more
    if beyond:
        notes.append(
            f"Not told apart in instances/, which holds {MOST_OBJECTS} of a class in an image: "
            f"{beyond}."
        )
    return Imported(kind, len(pictures), objects, class_names, notes)


def _read(source, images):
    """Returns the format's name, class names, `_Picture`s and notes."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*.json") if not path.name.startswith("."))
        if not paths:
            raise ValueError(f"{source}: no .json files; expected those of LabelMe")
        return "LabelMe", *_read_labelme(source, {path: _load(path) for path in paths}, images)
    content = _load(source)
    if "shapes" in content:
        return "LabelMe", *_read_labelme(source.parent, {source: content}, images)
    if {"images", "annotations", "categories"} <= set(content):
        return "COCO", *_read_coco(source, content, images)
    raise ValueError(
        f"{source}: found {', '.join(sorted(content)[:8]) or 'nothing'}; expected COCO's images, "
        "annotations and categories, or LabelMe's shapes"
    )


def _load(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}; expected a JSON object")
    return content


def _take(record, key, kinds, where, default=None):
    """Returns a value of an entry if it is of one of some types."""
    value = record.get(key, default) if isinstance(record, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {str(value)[:80]!r}, expected {_words(kinds)}")
    return value


def _words(kinds):
    words = {int: "a whole number", str: "text", list: "a list", dict: "an object"}
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return " or ".join(words.get(kind, "nothing") for kind in kinds)


def _name(record, key, where):
    """Returns the name of a class, which a line of a table and a page can show."""
    name = _take(record, key, str, where).strip()
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"{where}: {key} is {name[:80]!r}; expected no control characters in it")
    return name


def _beside(root, file, where):
    """Returns the path of a file in the folder `root`, or out of it."""
    try:
        path = resolved(root / file)
        path.exists()  # an error if the system allows no such name
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {file[:80]!r} names no file ({_reason(error)})") from None
    return path


def _reason(error):
    return error.strerror if isinstance(error, OSError) else str(error)


# COCO.


def _read_coco(source, content, images):
    root = resolved(source.parent if images is None else images)
    categories = {}
    for place, record in enumerate(_take(content, "categories", list, str(source))):
        where = f"{source}, categories[{place}]"
        categories[_take(record, "id", int, where)] = _name(record, "name", where)
    names = [categories[number] for number in sorted(categories)]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"{source}: categories {', '.join(names)}; expected different names")
    pictures = {}
    for place, record in enumerate(_take(content, "images", list, str(source))):
        where = f"{source}, images[{place}]"
        file = _take(record, "file_name", str, where)
        shape = (_take(record, "height", int, where), _take(record, "width", int, where))
        number = _take(record, "id", int, where)
        if number in pictures:
            raise ValueError(f"{where}: the id {number} is there twice")
        path = _beside(root, file, where)
        if path == root:
            raise ValueError(f"{where}: file_name is {file!r}, expected that of an image")
        if not path.is_relative_to(root):
            raise ValueError(
                f"{where}: {file!r} leads out of the folder {root}; copy the image into it"
            )
        pictures[number] = _Picture(_flat(root, path), where, shape, [], path)
    if not pictures:
        raise ValueError(f"{source}: no images")
    crowds = 0
    for place, record in enumerate(_take(content, "annotations", list, str(source))):
        where = f"{source}, annotations[{place}]"
        picture = pictures.get(_take(record, "image_id", int, where))
        label = categories.get(_take(record, "category_id", int, where))
        if picture is None or label is None:
            missing = "image_id" if picture is None else "category_id"
            raise ValueError(f"{where}: {missing} {record[missing]} is not in the file")
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"{where}: iscrowd is {str(crowd)[:80]!r}, expected 0 or 1")
        crowds += crowd
        draw = _coco_shape(record, picture.shape, where)
        picture.objects.append(_Object(label, draw, place, crowd))
    notes = [f"Void, because they are crowds: {crowds}."] if crowds else []
    return names, list(pictures.values()), notes


def _coco_shape(record, shape, where):
    found = _take(record, "segmentation", (list, dict), where)
    if isinstance(found, dict):
        size = _take(found, "size", list, where)
        if tuple(size) != shape:
            raise ValueError(f"{where}: size is {size}, expected that of the image, {[*shape]}")
        counts = _take(found, "counts", (list, str), where)
        return lambda shape: decode_run_lengths(counts, shape, where)
    polygons = [_points(polygon, where) for polygon in found]
    if not polygons:
        raise ValueError(f"{where}: segmentation is empty; expected polygons")
    return lambda shape: _union(fill_polygon(points, shape) for points in polygons)


def _points(numbers, where, least=3, most=None):
    """Returns a list of x, y, x, y, … or of pairs (x, y) as float64 `(count, 2)`."""
    try:
        points = np.array(numbers, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        points = np.empty((0, 2))
    few = len(points) < least or (most is not None and len(points) > most)
    if few or not (np.abs(points) < 1e6).all():
        raise ValueError(
            f"{where}: the points {str(numbers)[:60]}; expected x and y of "
            f"{'at least ' if most is None else ''}{least} points"
        )
    return points


def _union(masks):
    first, *others = masks
    for other in others:
        first |= other
    return first


def decode_run_lengths(counts, shape, where="counts"):
    """Decodes COCO's run lengths: a mask column by column, runs of 0 and 1 by turns.

    Args:
        counts: list of int, or str as COCO packs them: differences to the last but one, five bits
            in a character.
        shape: `(height, width)`.
        where: str, for errors.

    Returns:
        bool `(height, width)`.

    Raises:
        ValueError: the text is damaged, or the runs do not fill the mask.

    Example:

    >>> decode_run_lengths([1, 2, 1], (2, 2)).astype(int)
    array([[0, 1],
           [1, 0]])
    """
    if isinstance(counts, str):
        counts = _unpack(counts, where)
    whole = all(isinstance(count, int) and count >= 0 for count in counts)
    if not whole or sum(counts) != shape[0] * shape[1]:
        total = f"add up to {sum(counts)}" if whole else "are not all whole numbers from 0 on"
        raise ValueError(f"{where}: run lengths {total}; expected {in_words(shape)} pixels")
    runs = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(runs, counts).reshape(shape[::-1]).T)


def _unpack(text, where):
    counts, value, shift = [], 0, 0
    for character in text:
        byte = ord(character) - 48
        if not 0 <= byte < 64 or shift > 40:
            raise ValueError(f"{where}: {text[:40]!r} holds no run lengths as COCO packs them")
        value |= (byte & 31) << shift
        shift += 5
        if byte & 32:  # more of this number follows
            continue
        if byte & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"{where}: {text[:40]!r} ends within a number")
    return counts


def fill_polygon(points, shape):
    """Fills a polygon: the pixels whose centers are inside, by the even-odd rule.

    Args:
        points: float `(count, 2)`, x and y in pixels; pixel 0 covers 0 to 1. Parts outside of the
            image are cut off.
        shape: `(height, width)`.

    Returns:
        bool `(height, width)`.

    Example:

    >>> fill_polygon([(0, 0), (2, 0), (2, 1), (0, 1)], (2, 3)).astype(int)
    array([[1, 1, 0],
           [0, 0, 0]])
    """
    filled = np.zeros(shape, bool)
    points = np.asarray(points, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    left, right = (int(np.clip(side, 0, shape[1])) for side in (low[0], math.ceil(high[0])))
    top, bottom = (int(np.clip(side, 0, shape[0])) for side in (low[1], math.ceil(high[1])))
    if left >= right or top >= bottom:
        return filled
    crossed = np.zeros((bottom - top, right - left + 1), bool)  # where a row goes in or out
    for (x, y), (next_x, next_y) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = (math.ceil(side - 0.5) for side in sorted((y, next_y)))
        rows = np.arange(max(first, top), min(last, bottom))
        if len(rows):
            at = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y)
            columns = np.ceil(at - 0.5).clip(left, right).astype(int)
            crossed[rows - top, columns - left] ^= True
    filled[top:bottom, left:right] = np.logical_xor.accumulate(crossed[:, :-1], axis=1)
    return filled


# LabelMe.


def _read_labelme(base, contents, images):
    pictures, labels, left_out = [], set(), collections.Counter()
    for path, content in contents.items():
        objects = []
        for place, record in enumerate(_take(content, "shapes", list, str(path))):
            where = f"{path}, shapes[{place}]"
            label = _name(record, "label", where)
            kind = _take(record, "shape_type", (str, type(None)), where) or "polygon"
            draw = _labelme_shape(kind, record, where)
            if draw is None:
                left_out[kind] += 1
                continue
            void = label in ("__ignore__", NOTHING)
            label = BACKGROUND if label in ("_background_", BACKGROUND) else label
            if not label:
                raise ValueError(f"{where}: the label is empty")
            if not void:
                labels.add(label)
            group = record.get("group_id")
            key = place if group is None else (label, str(group))
            objects.append(_Object(label, draw, key, void))
        stem = _flat(base, path)
        pictures.append(_labelme_picture(path, stem, content, objects, images))
    notes = [
        f"Left out, because they have no area: {count} of type {kind}."
        for kind, count in sorted(left_out.items())
    ]
    return sorted(labels), pictures, notes


def _labelme_picture(path, stem, content, objects, images):
    shape = None
    if content.get("imageHeight") is not None and content.get("imageWidth") is not None:
        shape = tuple(_take(content, key, int, str(path)) for key in ("imageHeight", "imageWidth"))
    file = str(content.get("imagePath") or "").replace("\\", "/")
    root = resolved(path.parent if images is None else images)
    image = _beside(root, file if images is None else Path(file).name, path)
    if file and image.is_relative_to(root) and image.is_file():
        return _Picture(stem, str(path), shape, objects, image)
    if content.get("imageData"):
        data = _decode_base64(content["imageData"], f"{path}, imageData")
        return _Picture(stem, str(path), shape, objects, content=data)
    raise FileNotFoundError(
        f"{path}: its image {file!r} is not in {root}, and not in the file; name the folder that "
        "holds the images"
    )


def _labelme_shape(kind, record, where):
    """Returns how a shape is drawn, or None if it has no area."""
    points = _take(record, "points", list, where)
    if kind == "polygon":
        if len(points) < 3:
            return None
        points = _points(points, where)
        return lambda shape: fill_polygon(points, shape)
    if kind not in ("rectangle", "circle", "mask"):
        return None
    (x, y), (other_x, other_y) = _points(points, where, 2, 2).tolist()
    if kind == "rectangle":
        corners = [(x, y), (other_x, y), (other_x, other_y), (x, other_y)]
        return lambda shape: fill_polygon(corners, shape)
    if kind == "circle":
        radius = math.hypot(other_x - x, other_y - y)

        def draw_circle(shape):
            rows, columns = np.ogrid[: shape[0], : shape[1]]
            return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2

        return draw_circle
    data = _decode_base64(_take(record, "mask", str, where), f"{where}, mask")
    pixels, _ = image_files.read_mask(f"{where}, mask", data)
    if pixels.ndim != 2:
        raise ValueError(f"{where}, mask: an image in colors; expected a gray one")
    corner = round(min(y, other_y)), round(min(x, other_x))
    return lambda shape: pixels_in(pixels > 0, corner, (0, 0, *shape))


def _decode_base64(text, where):
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(f"{where}: no base64; expected an image in it") from None


# Files.


def _flat(root, path):
    """Returns the name of an image's copy, without suffix: subfolders become part of it."""
    return "_".join(path.relative_to(root).with_suffix("").parts)


def _check_files(pictures):
    """Raises if images are not there, have another size, or would get one name."""
    missing = [each for each in pictures if each.path is not None and not each.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0].path}: no such file; {len(missing)} of {len(pictures)} images are "
            "missing. Name the folder that holds them"
        )
    stems = {}
    for each in pictures:
        if each.stem in stems:
            raise ValueError(
                f"{each.where} and {stems[each.stem]}: two images named {each.stem}; expected "
                "different names before the suffix"
            )
        stems[each.stem] = each.where
        each.shape = _check_size(each)


def _check_size(picture):
    try:
        size = image_files.read_size(picture.file)
    except Exception as error:  # what Pillow raises for damaged files has no common type
        raise ValueError(f"{picture.path or picture.where}: no image ({error})") from None
    if picture.shape not in (None, size):
        raise ValueError(
            f"{picture.where}: the annotations are for {in_words(picture.shape)} pixels, but the "
            f"image has {in_words(size)} (turned as its EXIF orientation says); expected the same"
        )
    return size


def _known_classes(table, names):
    """Returns the classes of a `classes.csv` that an earlier import wrote."""
    rows = read_classes(table)
    known = tuple(classes_of_table(rows)[0])
    unknown = [name for name in names if name not in (*known, NOTHING)]
    if unknown:
        raise ValueError(
            f"{table} has no class {unknown[0]!r}; it has {', '.join(known)}. Import into another "
            "folder, or add the class before the first import"
        )
    if [row["ignore"] for row in rows] != [False] * len(known) + [True] or known[0] != BACKGROUND:
        raise ValueError(
            f"{table}: expected {BACKGROUND} first, then the other classes, and void last, as an "
            "import writes them"
        )
    return known


def _write_classes(path, class_names):
    palette = distinct_palette(len(class_names) + 1).tolist()
    rows = [(name, *color, "") for name, color in zip(class_names, palette, strict=False)]
    write_csv(path, [COLUMNS, *rows, (NOTHING, *palette[-1], "yes")])


def _write(picture, class_names, folder, link):
    """Writes an image, its mask and its instances; returns how many objects they show and hide."""
    classes, instances, there, beyond = paint(picture.objects, class_names, picture.shape)
    for kind in ("images", "masks", "instances"):
        (folder / kind).mkdir(exist_ok=True)
    if picture.content is None:
        place_file(picture.path, folder / "images" / (picture.stem + picture.path.suffix), link)
    else:
        with Image.open(picture.file, formats=image_files.FORMATS) as image:
            suffix = image.format.lower()
        (folder / "images" / f"{picture.stem}.{suffix}").write_bytes(picture.content)
    Image.fromarray(classes).save(folder / "masks" / f"{picture.stem}.png")
    Image.fromarray(instances).save(folder / "instances" / f"{picture.stem}.png")
    return there, beyond


def paint(objects, class_names, shape):
    """Paints the objects of an image, large ones first, crowds before all.

    Args:
        objects: list of `_Object`.
        class_names: tuple of str; the row after the last one is void.
        shape: `(height, width)`.

    Returns:
        Classes uint8 `(height, width)`, instances uint16 `(height, width)`, the number of objects
        that are to be seen, and that of those whose number does not fit.
    """
    parts = collections.defaultdict(list)
    for each in objects:
        parts[each.key].append(each)
    firsts, masks = [same[0] for same in parts.values()], []
    for same in parts.values():
        mask = _union(each.draw(shape) for each in same)
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        window = slice(top, top + height), slice(left, left + width)
        masks.append((window, mask[window].copy(), int(mask.sum())))
    seen = np.zeros(shape, np.int32)  # 1 + the place of the object
    for place in sorted(range(len(masks)), key=lambda i: (not _void(firsts[i]), -masks[i][2])):
        window, mask, _ = masks[place]
        seen[window][mask] = place + 1
    classes, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    numbers, there, beyond = collections.Counter(), 0, 0
    for place in np.unique(seen[seen > 0]).tolist():
        each, window = firsts[place - 1], masks[place - 1][0]
        where = seen[window] == place
        if _void(each):
            classes[window][where] = len(class_names)
            continue
        label = class_names.index(each.label)
        classes[window][where] = label
        if label == 0:
            continue
        numbers[label] += 1
        fits = numbers[label] <= MOST_OBJECTS
        instances[window][where] = 256 * label + numbers[label] if fits else 0
        there, beyond = there + fits, beyond + (not fits)
    return classes, instances, there, beyond


def _void(each):
    return each.void or each.label == NOTHING
