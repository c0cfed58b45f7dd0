"""Masks and objects of photos, as files: label ids with their colors, overlays, COCO's JSON."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from keras_segen import plot
from keras_segen.data.images import read_image, to_float
from keras_segen.files import write_atomically, write_json
from keras_segen.segmentation.coco import document
from keras_segen.segmentation.components import components, likely


def label_photos(
    predictor,
    paths,
    out,
    palette,
    label_ids,
    output="classes",
    size=None,
    object_classes=(),
    rim_above=None,
):
    """Writes a network's predictions for photos, one after the other.

    `OUT/NAME.png` holds label ids as the training masks do, with the colors of the classes as
    its palette; `OUT/overlays/NAME.png` shows the mask over the photo. With `object_classes`,
    `OUT/instances/NAME.png` says which object each pixel belongs to, 16 bits: 1 to n are the
    connected parts of these classes, see `components`, and 0 is the rest. Probabilities and
    entropy go to `OUT/NAME.npy`, float32; the overlay of the entropy is the entropy alone, from
    black (0) to bright yellow (log of the number of classes).

    Args:
        predictor: a `keras_segen.segmentation.Predictor`.
        paths: list of image files, no two with one stem.
        out: the folder to write to.
        palette: uint8 `(num_classes, 3)`, RGB.
        label_ids: int `(num_classes,)`, what the mask files hold for each class.
        output: `"classes"`, `"probabilities"` or `"entropy"`, as in `Predictor.predict`.
        size: `(height, width)` that photos are resized to, or None for their own.
        object_classes: sequence of int, the classes whose objects are told apart; with
            `output="classes"`.
        rim_above: float or None, the probability above which a pixel at the rim of an object
            belongs to it, see `components`.

    Yields:
        The path of each mask or array written.

    Raises:
        ValueError: a file is not an image.
    """
    out = Path(out)
    for path in paths:
        photo = read_image(path, predictor.channels)
        target = out / f"{path.stem}{'.png' if output == 'classes' else '.npy'}"
        if output == "classes":
            rim = None
            if object_classes and rim_above is not None:
                probabilities = predictor.predict(photo, "probabilities", size=size)
                result = probabilities.argmax(axis=-1)
                rim = likely(probabilities, object_classes, rim_above)
            else:
                result = predictor.predict(photo, size=size)
            _write_mask(target, result, palette, label_ids)
            if object_classes:
                numbers = Image.fromarray(components(result, object_classes, rim=rim))
                with write_atomically(out / "instances" / f"{path.stem}.png") as temporary:
                    numbers.save(temporary)
        else:
            shape = photo.shape[:2] + (() if output == "entropy" else (predictor.num_classes,))
            with write_atomically(target) as temporary:
                result = np.lib.format.open_memmap(temporary, "w+", "float32", shape)
                predictor.predict(photo, output, out=result, size=size)
                result.flush()
                result._mmap.close()
            result = np.load(target, mmap_mode="r")
        overlay = Image.fromarray(_overlay(photo, result, output, palette))
        with write_atomically(out / "overlays" / f"{path.stem}.png") as temporary:
            overlay.save(temporary)
        yield target


def find_in_photos(detector, paths, out, palette, label_ids, full_size=False, overlap=None):
    """Writes the objects that a network finds in photos, one photo after the other.

    `OUT/instances/NAME.png` says which object each pixel belongs to, 16 bits: 1 is the surest, 0
    the background. `OUT/masks/NAME.png` holds the label id of its class, as the training masks do.
    With the photos in `images/` these are a split of a `folder:PATH`. `OUT/overlays/NAME.png`
    shows outlines, boxes, names and scores over the photo. `OUT/detections.json` has all objects
    of all photos in COCO's format, with their scores.

    Args:
        detector: a `keras_segen.segmentation.Detector`.
        paths: list of image files, no two with one stem.
        out: the folder to write to.
        palette: uint8 `(num_classes, 3)`, RGB, of the classes 1 to `num_classes`.
        label_ids: int `(num_classes,)`, what the mask files hold for each class.
        full_size, overlap: as in `Detector.predict`.

    Yields:
        The path of each plane of objects written. The JSON is written after the last.

    Raises:
        ValueError: a file is not an image, or `overlap` is out of range.
    """
    out, names, sizes, found = Path(out), [], [], []
    for path in paths:
        photo = read_image(path, detector.channels)
        instances = detector.predict(photo, full_size, overlap)
        names.append(path.name)
        sizes.append(photo.shape[:2])
        found.append(instances)
        numbers = np.zeros(photo.shape[:2], "uint16")
        classes = np.zeros(photo.shape[:2], "int64")
        for number, each in reversed(list(enumerate(instances, 1))):  # the surest last, on top
            (top, left), (rows, columns) = each.corner, each.pixels.shape
            here = slice(top, top + rows), slice(left, left + columns)
            numbers[here][each.pixels] = number
            classes[here][each.pixels] = each.class_id
        ids = np.concatenate([[0], label_ids])
        _write_mask(out / "masks" / f"{path.stem}.png", classes, [(0, 0, 0), *palette], ids)
        overlay = Image.fromarray(plot.draw_instances(to_float(photo), instances, palette))
        for image, folder in ((overlay, "overlays"), (Image.fromarray(numbers), "instances")):
            with write_atomically(out / folder / f"{path.stem}.png") as temporary:
                image.save(temporary)
        yield out / "instances" / f"{path.stem}.png"
    write_json(out / "detections.json", document(names, sizes, found, detector.class_names))


def _overlay(photo, result, output, palette):
    """Draws a result over its photo, a few rows at a time: uint8 `(height, width, 3)`."""
    picture = np.empty((*photo.shape[:2], 3), "uint8")
    for first in range(0, len(photo), 256):
        rows = slice(first, first + 256)
        if output == "entropy":
            picture[rows] = plot.heat(result[rows], math.log(len(palette)))
        else:
            classes = result[rows] if output == "classes" else result[rows].argmax(axis=-1)
            picture[rows] = plot.overlay(to_float(photo[rows]), classes, palette)
    return picture


def _write_mask(path, classes, palette, label_ids):
    """Writes label ids as a PNG: with the palette, or 16-bit gray if an id is above 255."""
    if label_ids.max() > 255:
        image = Image.fromarray(label_ids.astype("uint16")[classes])
    else:
        image = Image.fromarray(label_ids.astype("uint8")[classes], mode="P")
        colors = np.zeros((256, 3), "uint8")
        colors[label_ids] = palette
        image.putpalette(colors.tobytes())
    with write_atomically(path) as temporary:
        image.save(temporary)
