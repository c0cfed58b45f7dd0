"""Cells: drawn scenes of packed cells that touch, with exact instances, without a download.

Each scene is a sheet of round, lobed cells as a microscope shows them, gray with a tint. Where two
meet, a border of background about two pixels wide is all that parts them. Its contrast is drawn for
each pair of neighbors: some borders are plain, others hardly darker than the cells, and inside the
cells are dark fibers that look like borders. So nearly all pixels are easy, and those that tell
one cell from the next are not.
"""

import math

import cv2
import numpy as np

from keras_segen import determinism
from keras_segen.data.borders import largest_parts, without_contacts
from keras_segen.data.shapes import LUMA, Drawn, window_around

CLASSES = ("background", "cell")
PALETTE = ((0, 0, 0), (86, 180, 233))
LENGTHS = {"train": 64, "val": 32, "test": 64}
SPACING = 0.15  # between the middles of cells at least, in units of the shorter side
GAPS = 0.08  # share of cells that are missing
FAINTEST = 0.1  # contrast of a border, where the plainest has 1
BORDER = 0.02  # width of the background between two cells, in these units; at least 1.5 pixels


class Cells(Drawn):
    """Scenes of touching cells with semantic and instance masks.

    Item i of split s depends on (seed, s, i) only. Scenes are drawn in units of the shorter side,
    so an item shows the same scene at every size of the same proportions; only the pixel noise
    differs.

    Args:
        split: str, `"train"`, `"val"` or `"test"`; no scene is in two splits.
        size: int or `(height, width)` in pixels, at least 32.
        length: int, number of items; None is 64 for train, 32 for val and 64 for test.
        seed: int, another seed gives another data set.
        channels: int, 3 (RGB) or 1 (gray).

    Raises:
        ValueError: if an argument is none of these.

    Example:

    >>> image, mask = Cells("val", size=(32, 48))[0]
    >>> image.shape, mask.shape
    ((32, 48, 3), (32, 48))
    """

    def __init__(self, split="train", size=96, length=None, seed=0, channels=3):
        scenes = CLASSES, PALETTE, LENGTHS, 32
        super().__init__("cells", split, scenes, size, length, seed, channels)

    def read(self, index):
        return self.read_instances(index)[:2]

    @property
    def object_classes(self):
        return (1,)

    def instances(self, index):
        """Returns the instance mask of item `index`.

        Returns:
            int32 `(height, width)`: 0 is background, 1 to n are the cells. No pixel of a cell
            touches one of another cell, not at a corner either.
        """
        return self.read_instances(self._index(index))[2]

    def read_instances(self, index):
        rng = determinism.rng("cells", self.seed, self.split, int(index))
        height, width = self.size
        unit = min(height, width)
        # Pixel centers, in units of the shorter side.
        x = ((np.arange(width, dtype=np.float32) + 0.5) / unit)[None, :]
        y = ((np.arange(height, dtype=np.float32) + 0.5) / unit)[:, None]

        cells = scatter(width / unit, height / unit, rng)
        first, second, owner, rival = two_deepest(x, y, cells, rng)
        border = max(BORDER, 1.5 / unit)
        # Half of the border belongs to either side; across it, first - second grows by 2.
        inside = np.minimum(first, (first - second - border) / 2) > 0
        numbers = largest_parts(without_contacts(np.where(inside, owner + 1, 0)))
        image = draw(x, y, first, second, owner, rival, len(cells), border, rng)
        if self.channels == 1:
            image = np.tensordot(LUMA, image, 1)[None]
        image = np.ascontiguousarray(image.clip(0, 1).transpose(1, 2, 0))
        return image, (numbers > 0).astype(np.int32), numbers


def scatter(width, height, rng):
    """Draws middles and radii of cells, so close that most touch: float `(cells, 3)`.

    They lie up to a radius outside of the scene, so that its edges cut some.
    """
    spacing = rng.uniform(0.9, 1.2) * SPACING
    tries = rng.random((int(300 * width * height), 3))
    tries = tries * (width + 0.2, height + 0.2, spacing / 5) + (-0.1, -0.1, 0.6 * spacing)
    x, y, _ = tries.T
    too_close = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2 < spacing**2
    kept, free = [], np.ones(len(tries), bool)
    for k in range(len(tries)):
        if free[k]:
            kept.append(k)
            free &= ~too_close[k]
    return tries[kept][rng.random(len(kept)) >= GAPS]


def two_deepest(x, y, cells, rng):
    """Finds, for each pixel, the two cells that it lies deepest in.

    Returns:
        Depths inside them in units, negative outside and -1 far away: float32 `(height, width)`
        twice; and their indices: int `(height, width)` twice.
    """
    shape, unit = (y.size, x.size), min(y.size, x.size)
    first, second = np.full((2, *shape), -1, np.float32)
    owner, rival = np.zeros((2, *shape), int)
    lobes = rng.random((len(cells), 4), np.float32)
    for k, ((center_x, center_y, radius), (two, at, three, by)) in enumerate(
        zip(cells.tolist(), lobes.tolist(), strict=True)
    ):
        here = window_around((center_x, center_y), 1.3 * radius, unit)
        across, down = x[:, here[1]] - center_x, y[here[0]] - center_y
        angle = np.arctan2(down, across)
        lobed = 0.12 * two * np.cos(2 * (angle - math.pi * at))
        lobed += 0.08 * three * np.cos(3 * (angle - math.pi * by))
        depth = radius * (1 + lobed) - np.hypot(across, down)
        deepest, deeper = depth > first[here], depth > second[here]
        rival[here] = np.where(deepest, owner[here], np.where(deeper, k, rival[here]))
        second[here] = np.where(deepest, first[here], np.maximum(second[here], depth))
        owner[here] = np.where(deepest, k, owner[here])
        first[here] = np.maximum(first[here], depth)
    return first, second, owner, rival


def draw(x, y, first, second, owner, rival, count, border, rng):
    """Draws a scene: float32 `(3, height, width)`; arguments as `two_deepest` returns them."""
    unit = min(first.shape)
    shades = rng.uniform(0.5, 0.75, count).astype(np.float32)
    contrasts = rng.uniform(FAINTEST, 1, (count, count)).astype(np.float32)
    contrasts = np.minimum(contrasts, contrasts.T)  # of the border between two cells
    cover = (first * unit + 0.5).clip(0, 1)
    gap = np.where(second > -border, first - second, 1)  # there is no neighbor: no border
    line = np.exp(-((gap / border) ** 2)) * contrasts[owner, rival]
    line = np.maximum(line, fibers(x, y, border, rng))
    gray = rng.uniform(0.2, 0.35)
    cell = shades[owner] * (0.85 + 2 * first.clip(0, 0.1)) * (1 - 0.55 * line)
    image = gray + cover * (cell - gray)

    blur, angle, light, noise = rng.random(4).tolist()
    image = cv2.GaussianBlur(image, (0, 0), (0.005 + 0.004 * blur) * unit)
    angle *= 2 * math.pi
    slope = math.cos(angle) * (x - x.mean()) + math.sin(angle) * (y - y.mean())
    tint = 1 + rng.uniform(-0.1, 0.1, 3).astype(np.float32)
    image = tint[:, None, None] * image * (1 + 0.4 * light * slope)
    image += (0.02 + 0.04 * noise) * rng.standard_normal(image.shape, np.float32)
    return image.astype(np.float32)


def fibers(x, y, border, rng):
    """Draws dark arcs that look like borders: 0 to 1, float32 `(height, width)`."""
    line, unit = np.zeros((y.size, x.size), np.float32), min(y.size, x.size)
    for center_x, center_y, size, at, strength in rng.random((rng.integers(4, 12), 5)).tolist():
        center = center_x * float(x[0, -1]), center_y * float(y[-1, 0])
        radius, at = 0.05 + 0.2 * size, 2 * math.pi * at
        here = window_around(center, radius + border, unit)
        across, down = x[:, here[1]] - center[0], y[here[0]] - center[1]
        away = np.hypot(across, down) - radius
        turned = np.abs((np.arctan2(down, across) - at + math.pi) % (2 * math.pi) - math.pi)
        arc = np.exp(-((2 * away / border) ** 2)) * (turned < 0.06 / radius)
        line[here] = np.maximum(line[here], (0.3 + 0.4 * strength) * arc)
    return line
