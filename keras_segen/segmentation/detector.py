"""Finds the objects of photos of any size with a Mask R-CNN."""

import dataclasses

import numpy as np

from keras_segen import backend
from keras_segen.arguments import as_int, as_number
from keras_segen.data.images import resize_image, to_channels, to_float
from keras_segen.data.instances import Instance, pixels_in
from keras_segen.segmentation.boxes import paste

MIN_SCORE = 0.5
SAME = 0.5  # IoU, where two tiles overlap, from which on two finds are one object


class Detector:
    """Finds objects: photos in, lists of `keras_segen.data.Instance` out, the surest first.

    The network looks at images of one size. A photo is resized to it, and boxes and masks are
    brought back to the photo's own size; or the photo is cut into overlapping tiles of that size.
    What two tiles saw of an object is then put together, if their masks agree where the tiles
    overlap: so an object may be larger than a tile.

    Args:
        model: a `MaskRCNN`.
        class_names: sequence of str, of the classes 1 to K.
        min_score: float from 0 to 1, objects of lower scores are left out; the network itself
            gives none below 0.05.

    Raises:
        ValueError: `min_score` or the number of names is wrong, or the model finds no objects.
    """

    def __init__(self, model, class_names, min_score=MIN_SCORE):
        if not hasattr(model, "detect"):
            raise ValueError(f"model is {model!r}, expected a MaskRCNN.")
        number = as_number(min_score)
        if number is None or not 0 <= number <= 1:
            raise ValueError(f"min_score is {min_score!r}, expected 0 to 1.")
        if len(class_names) != model.num_classes:
            raise ValueError(
                f"{len(class_names)} class names for a model of {model.num_classes} classes: "
                "expected one for each, without the background."
            )
        self.model = model
        self.class_names = tuple(class_names)
        self.min_score = number
        self.image_size = model.image_size
        self.channels = model.pyramid.inputs[0].shape[-1]

    def find(self, images):
        """Finds the objects in images of the network's size.

        Args:
            images: float32 `(batch, height, width, channels)` in [0, 1].

        Returns:
            A list of `Instance` for each image, the surest first.
        """
        return [self._instances(found, self.image_size) for found in self._detect(images)]

    def predict(self, photo, full_size=False, overlap=None):
        """Finds the objects in a photo.

        Args:
            photo: `(height, width, channels)`, uint8, uint16 or float in [0, 1].
            full_size: bool, whether it is looked at in tiles at its own size: for photos whose
                objects are as large, in pixels, as in the training images.
            overlap: int, with `full_size`: pixels that tiles share; None means a quarter of the
                tile's shorter side.

        Returns:
            List of `Instance` at the photo's size, the surest first; those with a box but no
            pixel are left out.

        Raises:
            ValueError: the photo has another shape or type, or `overlap` is out of range.
        """
        photo = self._check(photo)
        if full_size:
            return self._predict_in_tiles(photo, overlap)
        if overlap is not None:
            raise ValueError("overlap is of tiles, and there are none: use full_size.")
        ratio = np.array(photo.shape[1::-1]) / self.image_size[::-1]  # x, y
        (found,) = self._detect(resize_image(photo, self.image_size)[None])
        found["boxes"] = (found["boxes"] * np.tile(ratio, 2)).astype("float32")
        instances = self._instances(found, photo.shape[:2])
        return [each for each in instances if each.pixels.any()]

    def _check(self, photo):
        photo = np.asarray(photo)
        if photo.ndim not in (2, 3) or photo.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(
                f"The photo has shape {photo.shape}; expected (height, width, 1 or 3)."
            )
        if not photo.size:
            raise ValueError(f"The photo has shape {photo.shape}, and no pixel.")
        photo = to_channels(photo, self.channels)
        if photo.dtype.kind == "f" and not (photo.min() >= 0 and photo.max() <= 1):
            raise ValueError(
                f"The photo has values from {photo.min()} to {photo.max()}; expected 0 to 1, or "
                "uint8."
            )
        return to_float(photo)

    def _detect(self, images):
        """Yields what `MaskRCNN.detect` finds in each image: dict of arrays."""
        found = backend.infer(self.model, images, "detect")
        for i in range(len(images)):
            yield {name: values[i] for name, values in found.items()}

    def _instances(self, found, image_size):
        return as_instances(
            **found, image_size=image_size, class_names=self.class_names, min_score=self.min_score
        )

    def _predict_in_tiles(self, photo, overlap):
        size = self.image_size
        given, overlap = overlap, min(size) // 4 if overlap is None else as_int(overlap)
        if overlap is None or not 0 <= overlap < min(size):
            raise ValueError(
                f"overlap is {given!r}, expected 0 to {min(size) - 1}: less than a tile."
            )
        tiles, finds = [], []
        for top in starts(photo.shape[0], size[0], overlap):
            for left in starts(photo.shape[1], size[1], overlap):
                part = photo[top : top + size[0], left : left + size[1]]
                tile = np.zeros((*size, self.channels), "float32")
                tile[: part.shape[0], : part.shape[1]] = part
                for each in self.find(tile[None])[0]:
                    moved = shifted(each, top, left, photo.shape[:2])
                    if moved is not None:
                        finds.append(moved)
                        tiles.append((top, left, top + size[0], left + size[1]))
        return merge(finds, tiles)


def as_instances(boxes, classes, scores, masks, image_size, class_names, min_score):
    """Makes instances of what `MaskRCNN.detect` finds in one image.

    Args:
        boxes, classes, scores, masks: arrays with a row for each slot; the boxes in pixels of
            an image of the size that follows.
        image_size: `(height, width)`.
        class_names: sequence of str, of the classes 1 to K.
        min_score: float, slots of lower scores are left out, and empty ones.

    Returns:
        List of `keras_segen.data.Instance`.
    """
    instances = []
    for slot in np.flatnonzero((classes > 0) & (scores >= min_score)):
        box, k = boxes[slot], int(classes[slot])
        left, top = np.floor(box[:2]).astype(int).tolist()
        right, bottom = np.ceil(box[2:]).astype(int).tolist()
        here = box - np.float32((left, top, left, top))
        pixels = paste(masks[slot][None], here[None], (bottom - top, right - left))[0]
        name, score = class_names[k - 1], float(scores[slot])
        instances.append(Instance(k, name, box, (top, left), pixels, tuple(image_size), score))
    return instances


def starts(length, tile, overlap):
    """Where tiles begin that cover a length, evenly spaced, sharing at least `overlap`.

    >>> starts(100, 40, 10), starts(30, 40, 10)
    ([0, 30, 60], [0])
    """
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def shifted(instance, top, left, image_size):
    """An instance of a tile as one of the image around it, cut at its border; None if outside."""
    row, column = instance.corner[0] + top, instance.corner[1] + left
    pixels = instance.pixels[: image_size[0] - row, : image_size[1] - column]
    if not pixels.any():
        return None
    height, width = image_size
    box = instance.box + np.float32((left, top, left, top))
    box = np.minimum(box, np.float32((width, height, width, height)))
    return dataclasses.replace(
        instance, box=box, corner=(row, column), pixels=pixels, image_size=image_size
    )


def merge(finds, tiles):
    """Puts finds of overlapping tiles together that are one object.

    Args:
        finds: list of `Instance` at the size of the whole image.
        tiles: for each the tile `(top, left, bottom, right)` in which it was found.

    Returns:
        List of `Instance`, the surest first: masks united, the box around the boxes, the highest
        score.
    """
    parts = [{i} for i in range(len(finds))]  # finds of the same object share a set
    for i, first in enumerate(finds):
        for j in range(i):
            if tiles[i] == tiles[j] or first.class_id != finds[j].class_id:
                continue
            top, left = np.maximum(tiles[i][:2], tiles[j][:2])
            bottom, right = np.minimum(tiles[i][2:], tiles[j][2:])
            if top >= bottom or left >= right or parts[i] is parts[j]:
                continue
            shared = top, left, bottom, right
            a, b = (pixels_in(each.pixels, each.corner, shared) for each in (first, finds[j]))
            if (a & b).sum() > SAME * (a | b).sum():
                parts[i] |= parts[j]
                for k in parts[j]:
                    parts[k] = parts[i]
    groups = {id(group): sorted(group) for group in parts}.values()
    merged = [unite([finds[k] for k in group]) for group in groups]
    return sorted(merged, key=lambda each: -each.score)


def unite(instances):
    """One instance of several: all their pixels, the box around theirs, the highest score."""
    best = max(instances, key=lambda each: each.score)
    if len(instances) == 1:
        return best
    boxes_of_all = np.stack([each.box for each in instances])
    box = np.concatenate([boxes_of_all[:, :2].min(axis=0), boxes_of_all[:, 2:].max(axis=0)])
    corners = np.array([each.corner for each in instances])
    ends = corners + [each.pixels.shape for each in instances]
    corner = tuple(corners.min(axis=0).tolist())
    window = *corner, *ends.max(axis=0)
    pixels = np.any([pixels_in(each.pixels, each.corner, window) for each in instances], axis=0)
    return dataclasses.replace(best, box=box, corner=corner, pixels=pixels)
