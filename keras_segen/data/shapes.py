"""Shapes: drawn scenes with exact masks, without a download.

Each scene is a shaded background with blotches, lines and sometimes stripes, and on it three to
seven discs, boxes, triangles, stars and rings that hide each other. Textures are the same for
every class. Colors are a hint, so that a small network shows something after an epoch, but no
more: six shapes of seven lean toward their class's color, the others have any color, and only
the outline tells for sure.
"""

import math

import numpy as np

from keras_segen import determinism
from keras_segen.arguments import whole_number
from keras_segen.data.dataset import Dataset, check_channels, check_size

CLASSES = ("background", "disc", "box", "triangle", "star", "ring")
PALETTE = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167))
TEXTURES = ("ball", "stripes", "checks", "grain", "plain")
HINT = 0.85  # the part of the shapes that lean toward their class's color
LENGTHS = {"train": 512, "val": 128, "test": 128}
LUMA = np.float32([0.299, 0.587, 0.114])


class Drawn(Dataset):
    """Scenes that are drawn, at any size: the base of `Shapes` and `Cells`.

    Args:
        name: str, the name of the data set.
        scenes: the class names, the palette, the number of items of each split, and the fewest
            pixels of a side.
        split, size, length, seed, channels: as in `Shapes`.
    """

    def __init__(self, name, split, scenes, size, length, seed, channels):
        class_names, palette, lengths, smallest = scenes
        self.size = check_size(size)
        if min(self.size) < smallest:
            raise ValueError(f"size is {self.size}, expected at least {smallest} pixels each way")
        self.channels = check_channels(channels)
        super().__init__(name, split, class_names, palette, image_shape=(*self.size, self.channels))
        length = lengths[split] if length is None else length
        self.length = whole_number("length", length, 1, ", at least 1")
        self.seed = whole_number("seed", seed, -math.inf, "")

    def __len__(self):
        return self.length


class Shapes(Drawn):
    """Scenes of textured shapes with semantic and instance masks.

    Item i of split s depends on (seed, s, i) only. Scenes are drawn in units of the shorter
    side, so an item shows the same scene at every size of the same proportions; only the
    pixel noise differs.

    Args:
        split: str, `"train"`, `"val"` or `"test"`; no scene is in two splits.
        size: int or `(height, width)` in pixels, at least 8.
        length: int, number of items; None is 512 for train, 128 for val and test.
        seed: int, another seed gives another data set.
        channels: int, 3 (RGB) or 1 (gray).

    Raises:
        ValueError: if an argument is none of these.

    Example:

    >>> image, mask = Shapes("val", size=(32, 48))[0]
    >>> image.shape, mask.shape
    ((32, 48, 3), (32, 48))
    """

    def __init__(self, split="train", size=64, length=None, seed=0, channels=3):
        scenes = CLASSES, PALETTE, LENGTHS, 8
        super().__init__("shapes", split, scenes, size, length, seed, channels)

    def read(self, index):
        image, mask, _ = self._draw(index)
        return image, mask

    @property
    def object_classes(self):
        return tuple(range(1, len(CLASSES)))

    def instances(self, index):
        """Returns the instance mask of item `index`.

        Returns:
            int32 `(height, width)`: 0 is background, 1 to n are the visible shapes in the
            order in which they were drawn; a later one hides an earlier one.
        """
        return self.read_instances(self._index(index))[2]

    def read_instances(self, index):
        image, mask, numbers = self._draw(index)
        visible = np.union1d(0, numbers)
        return image, mask, np.searchsorted(visible, numbers).astype(np.int32)

    def _draw(self, index):
        rng = determinism.rng("shapes", self.seed, self.split, int(index))
        height, width = self.size
        unit = min(height, width)
        extent = width / unit, height / unit
        # Pixel centers, in units of the shorter side.
        x = ((np.arange(width, dtype=np.float32) + 0.5) / unit)[None, :]
        y = ((np.arange(height, dtype=np.float32) + 0.5) / unit)[:, None]

        image = draw_background(x, y, extent, rng)  # (3, height, width): faster than RGB last
        mask = np.zeros(self.size, np.int32)
        numbers = np.zeros(self.size, np.int32)
        for number in range(1, rng.integers(4, 9)):
            label = int(rng.integers(1, len(CLASSES)))
            texture = TEXTURES[rng.integers(len(TEXTURES))]
            center, radius = random_point(extent, rng), rng.uniform(0.14, 0.28)
            rows, columns = window_around(center, radius, unit)
            inside = outline(CLASSES[label], x[:, columns], y[rows], center, radius, rng)
            colors = draw_texture(
                texture, x[:, columns], y[rows], center, radius, image, self.palette[label], rng
            )
            if inside.size == 0:
                continue
            # A pixel is as much of the shape's color as it is covered by the shape.
            paint(image[:, rows, columns], colors, inside * unit + 0.5)
            mask[rows, columns][inside > 0] = label
            numbers[rows, columns][inside > 0] = number

        angle, light, noise = rng.random(3).tolist()
        angle *= 2 * np.pi
        slope = math.cos(angle) * (x - extent[0] / 2) + math.sin(angle) * (y - extent[1] / 2)
        image *= 1 + (0.2 + 0.4 * light) * slope
        image += (0.01 + 0.03 * noise) * rng.standard_normal(image.shape, np.float32)
        if self.channels == 1:
            image = np.tensordot(LUMA, image, 1)[None]
        return np.ascontiguousarray(image.clip(0, 1).transpose(1, 2, 0)), mask, numbers


def draw_background(x, y, extent, rng):
    """Draws two colors that run into each other, stripes or none, blotches and lines."""
    unit = min(y.size, x.size)
    # Two grays with a tint; shapes may have any color.
    first, second = rng.uniform(0.2, 0.6, (2, 1)) + rng.uniform(-0.1, 0.1, (2, 3))
    first, second = first.astype(np.float32), second.astype(np.float32)
    image = mix(first, (first + second) / 2, wave(x, y, rng.uniform(0.2, 1.0), rng) / 2 + 0.5)
    strength, stripes = rng.uniform(-0.1, 0.1), wave(x, y, rng.uniform(0.05, 0.2), rng)
    image += max(strength, 0) * stripes
    for _ in range(rng.integers(2, 6)):  # blotches: soft, and so no shape
        center, radius = random_point(extent, rng), rng.uniform(0.05, 0.2)
        color = rng.random(3, np.float32) - (first + second) / 2
        bell_x = np.exp(-(((x - center[0]) / radius) ** 2))
        bell_y = np.exp(-(((y - center[1]) / radius) ** 2))
        image += mix(0 * color, color / 4, bell_x * bell_y)
    for _ in range(rng.integers(0, 4)):  # lines from edge to edge
        center, angle = random_point(extent, rng), rng.uniform(0, np.pi)
        thickness, color = rng.uniform(0.004, 0.02), rng.random(3, np.float32)
        across = math.cos(angle) * (x - center[0]) + math.sin(angle) * (y - center[1])
        paint(image, color[:, None, None], (thickness - np.abs(across)) * unit + 0.5)
    return image


def draw_texture(name, x, y, center, radius, image, class_color, rng):
    """Draws what a shape is made of, `(3, height, width)` for the pixels at `x` and `y`."""
    first, second = rng.random((2, 3), np.float32)
    hint, low_contrast, period = rng.random() < HINT, rng.random() < 0.1, rng.uniform(0.08, 0.16)
    stripes, checks = wave(x, y, period, rng), wave(x, y, period, rng)
    grain = rng.random((16, 16), np.float32)
    row, column = (rng.random(2) * image.shape[1:]).astype(int)
    if hint:
        first = 0.15 * first + 0.85 * np.float32(class_color) / 255
    elif low_contrast:  # close to a color of the scene
        first = image[:, row, column] + 0.3 * (first - 0.5)
    second = first + 0.25 * (second - first)
    if name == "plain":
        amount = 0 * stripes
    elif name == "ball":  # lighter or darker toward the rim
        amount = ((x - center[0]) ** 2 + (y - center[1]) ** 2) / radius**2
    elif name == "stripes":
        amount = stripes > 0
    elif name == "checks":
        amount = (stripes > 0) ^ (checks > 0)
    else:  # grain: a pattern of 16 x 16 that repeats
        amount = grain[(y * 40).astype(int) % 16, (x * 40).astype(int) % 16]
    return mix(first, second, amount)


def outline(name, x, y, center, radius, rng):
    """Returns how far inside the shape each pixel is; negative outside, in units."""
    angle, aspect, thickness = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1), rng.uniform(0.2, 0.4)
    x, y = x - center[0], y - center[1]
    x, y = (math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x)
    if name == "box":
        side = radius * 0.7
        return np.minimum(side - np.abs(x), side * aspect - np.abs(y))
    distance = np.sqrt(x * x + y * y)
    if name == "disc":
        return radius * 0.8 - distance
    if name == "ring":
        return radius * thickness / 2 - np.abs(distance - radius * (1 - thickness / 2))
    # Turn every pixel into the half corner at angle 0, where one straight edge is left: it runs
    # from the notch at angle 0 to the tip at angle `half`.
    corners, depth = (3, 0.5) if name == "triangle" else (5, 0.4)
    half = math.pi / corners
    folded = np.abs(np.arctan2(y, x) % (2 * half) - half)
    tip_x, tip_y, notch_x = radius * math.cos(half), radius * math.sin(half), radius * depth
    length = math.hypot(tip_x - notch_x, tip_y)
    along, across = distance * np.cos(folded), distance * np.sin(folded)
    return ((notch_x - along) * tip_y + across * (tip_x - notch_x)) / length


def random_point(extent, rng):
    """Returns a point (x, y) of the scene, in units."""
    return rng.uniform(0, extent[0]), rng.uniform(0, extent[1])


def window_around(center, radius, unit):
    """Returns the slices (rows, columns) of the pixels within `radius` of `center`."""
    (left, right), (top, bottom) = (
        (math.floor((middle - radius) * unit) - 1, math.ceil((middle + radius) * unit) + 1)
        for middle in center
    )
    return slice(max(top, 0), bottom), slice(max(left, 0), right)


def wave(x, y, period, rng):
    """Returns a plane wave of random direction and phase, -1 to 1."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2).tolist()
    along_x = 2 * np.pi / period * math.cos(angle) * x + phase
    along_y = 2 * np.pi / period * math.sin(angle) * y
    # sin(a + b), without a sine per pixel.
    return np.sin(along_x) * np.cos(along_y) + np.cos(along_x) * np.sin(along_y)


def mix(first, second, amount):
    """Returns the color `first` where `amount` is 0 and `second` where it is 1."""
    return first[:, None, None] + amount * (second - first)[:, None, None]


def paint(image, colors, cover):
    """Lays colors over an image, all of it where `cover` is 1 or more, none where 0 or less."""
    image += cover.clip(0, 1) * (colors - image)
