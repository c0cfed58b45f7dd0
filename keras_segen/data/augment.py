"""Random changes of an image and its mask, the same for both: one warp, then color."""

import dataclasses
import math

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
LIMITS = {  # the lowest and the highest value that a range may reach
    "scale": (0.01, 100),
    "rotation": (-360, 360),
    "shift": (-1, 1),
    "shear": (-80, 80),
    "crop": (0.01, 1),
    "brightness": (-1, 1),
    "contrast": (0, 100),
    "saturation": (0, 100),
    "hue": (-1, 1),
    "noise": (0, 1),
    "blur": (0, 100),
    "elastic": (0, 1000),
}
GRID = 3  # random displacements of the elastic deformation, each way


@dataclasses.dataclass(frozen=True)
class Augment:
    """Changes an image and its mask at random.

    A step happens with its probability; its strength is then uniform between low and high. None
    or 0 switches a step off, without changing the others. All geometry is one warp, bilinear for
    the image and nearest for the mask; flips alone copy pixels. Pixels from outside the image are
    black and `ignore_class` if there is one, else a reflection of image and mask.
    Color follows in the order below and is clipped to [0, 1]; gray images skip saturation and hue.

    Args:
        flip: probability of swapping left and right.
        vertical_flip: probability of swapping top and bottom.
        scale: `(probability, low, high)`, a factor: 2 enlarges.
        rotation: degrees, counterclockwise.
        shift: shares of the width and of the height, drawn independently.
        shear: degrees by which vertical lines are slanted.
        crop: the share of each side that is kept, at a random position, and enlarged to fill.
        brightness: added to the image.
        contrast: factor of the distance from the image's mean.
        saturation: factor of the distance from gray.
        hue: turns of the color circle around the gray axis.
        noise: standard deviation of normal noise.
        blur: standard deviation of a Gaussian, in pixels.
        elastic: standard deviation, in pixels, of normal displacements on a grid of 3 x 3, between
            which they are interpolated bicubically. The first U-Net took `(1, 10, 10)` on images
            of 512 pixels (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597). More than a
            tenth of the shorter side folds the image over itself in places.

    Raises:
        ValueError: if a probability is not in [0, 1] or a range is not valid.

    Example:

    >>> image, mask = np.zeros((4, 6, 3), np.float32), np.zeros((4, 6), np.int32)
    >>> image, mask = Augment()(image, mask, np.random.default_rng(0), ignore_class=255)
    >>> image.shape, mask.shape
    ((4, 6, 3), (4, 6))
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple = (0.5, 0.8, 1.25)
    rotation: tuple = (0.5, -10, 10)
    shift: tuple = (0.5, -0.1, 0.1)
    shear: tuple = (0.25, -8, 8)
    crop: tuple = (0.25, 0.7, 1.0)
    brightness: tuple = (0.5, -0.2, 0.2)
    contrast: tuple = (0.5, 0.8, 1.25)
    saturation: tuple = (0.5, 0.8, 1.25)
    hue: tuple = (0.25, -0.05, 0.05)
    noise: tuple = (0.25, 0.0, 0.03)
    blur: tuple = (0.25, 0.3, 1.2)
    elastic: tuple | None = None

    def __post_init__(self):
        for name in STEPS:
            check = check_range if name in LIMITS else check_probability
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def __call__(self, image, mask, rng, ignore_class=None):
        """Returns a changed image and mask; the given ones are not changed.

        Args:
            image: float32 `(height, width, channels)` in [0, 1], 1 or 3 channels.
            mask: int32 `(height, width)`, labels from 0 to 2**24.
            rng: `numpy.random.Generator`; the result depends on nothing else.
            ignore_class: int or None, the label of pixels from outside.

        Returns:
            New image and mask, same shapes and types.

        Raises:
            ValueError: if the shapes of image and mask do not fit.
        """
        if image.ndim != 3 or image.shape[2] not in (1, 3) or image.shape[:2] != np.shape(mask):
            raise ValueError(
                f"image has shape {image.shape} and mask {np.shape(mask)}; expected "
                "(height, width, 1 or 3) and (height, width)"
            )
        # Every step has its own row, drawn even if it does not happen. That of the elastic
        # deformation, and its grid, come from two numbers that no other step uses: so the noise,
        # drawn last, is the same with and without it.
        rows = dict(zip(STEPS[:-1], rng.random((len(STEPS) - 1, 3)), strict=True))
        own = np.random.default_rng((rows["vertical_flip"][1:] * 2**32).astype(int).tolist())
        rows["elastic"], grid = own.random(3), own.standard_normal((GRID, GRID, 2), np.float32)
        image, mask = self._warp(image, mask, rows, grid, ignore_class)
        image = self._recolor(image, rows)
        noise, blur = self._strength("noise", rows), self._strength("blur", rows)
        if noise:
            field = rng.standard_normal(image.shape, np.float32)
            image += np.multiply(field, np.float32(noise), out=field)
        if blur:
            blurred = cv2.GaussianBlur(image, (0, 0), blur, borderType=cv2.BORDER_REFLECT)
            image = blurred.reshape(image.shape)
        return np.clip(image, 0, 1, out=image), mask

    def _happens(self, name, rows):
        setting = getattr(self, name)
        probability = setting[0] if name in LIMITS and setting else setting
        return bool(probability) and rows[name][0] < probability

    def _strength(self, name, rows, place=1):
        """Returns the strength of a step, or None if it does not happen."""
        if not self._happens(name, rows):
            return None
        _, low, high = getattr(self, name)
        return low + (high - low) * float(rows[name][place])

    def _warp(self, image, mask, rows, grid, ignore_class):
        image, mask = np.array(image, np.float32, order="C"), np.array(mask, np.int32, order="C")
        for name, axis in (("flip", 1), ("vertical_flip", 0)):
            if self._happens(name, rows):
                image = cv2.flip(image, axis).reshape(image.shape)
                mask = cv2.flip(mask, axis)
        height, width = mask.shape
        matrix, elastic = self._matrix(height, width, rows), self._strength("elastic", rows)
        if np.array_equal(matrix, np.eye(3)) and not elastic:
            return image, mask
        outside = cv2.BORDER_REFLECT if ignore_class is None else cv2.BORDER_CONSTANT
        if elastic:
            old = old_places(matrix, np.float32(elastic) * grid, height, width)

        def warp(array, interpolation, value):
            if elastic:
                return cv2.remap(array, old, None, interpolation, None, outside, value)
            return cv2.warpAffine(
                array, matrix[:2], (width, height), None, interpolation, outside, value
            )

        warped = warp(image, cv2.INTER_LINEAR, 0)
        # OpenCV cannot warp integers of 32 bits; float32 holds them exactly up to 2**24.
        mask = warp(mask.astype(np.float32), cv2.INTER_NEAREST, ignore_class or 0)
        return warped.reshape(image.shape), mask.astype(np.int32)

    def _matrix(self, height, width, rows):
        """Returns the 3 x 3 matrix from old to new pixels, as (x, y, 1)."""
        matrix = np.eye(3)
        scale, angle = self._strength("scale", rows), self._strength("rotation", rows)
        slant, crop = self._strength("shear", rows), self._strength("crop", rows)
        if scale is not None:
            matrix = np.diag([scale, scale, 1]) @ matrix
        if angle is not None:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            matrix = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ matrix
        if slant is not None:
            tangent = math.tan(math.radians(slant))
            matrix = np.array([[1, tangent, 0], [0, 1, 0], [0, 0, 1]]) @ matrix
        if self._happens("shift", rows):
            x, y = self._strength("shift", rows, 1), self._strength("shift", rows, 2)
            matrix = move(x * width, y * height) @ matrix
        # So far relative to the image's center. Pixel i covers i to i + 1, but OpenCV's
        # coordinates are those of pixel centers.
        matrix = move(width / 2, height / 2) @ matrix @ move(-width / 2, -height / 2)
        if crop is not None:
            left, top = (1 - crop) * rows["crop"][2], (1 - crop) * rows["flip"][1]
            matrix = np.diag([1 / crop, 1 / crop, 1]) @ move(-left * width, -top * height) @ matrix
        return move(-0.5, -0.5) @ matrix @ move(0.5, 0.5)

    def _recolor(self, image, rows):
        """Applies brightness, contrast, saturation and hue as one matrix and one offset."""
        channels = image.shape[2]
        matrix, offset = np.eye(channels), np.zeros(channels)
        brightness, contrast = self._strength("brightness", rows), self._strength("contrast", rows)
        if brightness is not None:
            offset += brightness
        if contrast is not None:
            mean = float(image.mean(dtype=np.float64)) + offset
            matrix, offset = contrast * matrix, contrast * offset + (1 - contrast) * mean
        if channels == 3:
            for name, make in (("saturation", saturation_matrix), ("hue", hue_matrix)):
                strength = self._strength(name, rows)
                if strength is not None:
                    matrix, offset = make(strength) @ matrix, make(strength) @ offset
        if np.array_equal(matrix, np.eye(channels)) and not offset.any():
            return image
        if channels == 1:
            return image * np.float32(matrix[0, 0]) + np.float32(offset[0])
        return cv2.transform(image, np.column_stack([matrix, offset]))

    @classmethod
    def parse(cls, text):
        """Makes an `Augment` from a text, as the command line takes it.

        Args:
            text: `"none"`, or steps separated by spaces, such as
                `"flip=0.5 brightness=0.5,-0.2,0.2"`; steps that are not named are off. After
                `"default"` those that are not named are the defaults.

        Returns:
            An `Augment`, or None for `"none"`.

        Raises:
            ValueError: if the text is none of these.
        """
        if text.strip() == "none":
            return None
        words = text.split()
        default = words[:1] == ["default"]
        steps = dict.fromkeys(STEPS)
        for word in words[default:]:
            name, _, values = word.partition("=")
            try:
                numbers = [float(value) for value in values.split(",")]
            except ValueError:
                numbers = []
            if name not in STEPS or not numbers or steps[name] is not None:
                raise ValueError(
                    f"augmentation {text!r}: {word!r} is not understood; expected default, none, "
                    "or steps such as flip=0.5 brightness=0.5,-0.2,0.2, each at most once: "
                    f"{', '.join(STEPS)}"
                )
            steps[name] = numbers if len(numbers) > 1 else numbers[0]
        if not words:
            raise ValueError("augmentation is empty; expected default, none, or steps")
        if default:
            steps = {name: value for name, value in steps.items() if value is not None}
        return cls(**steps)


STEPS = tuple(field.name for field in dataclasses.fields(Augment))


def check_probability(name, value):
    """Returns a probability as float."""
    if value is None:
        return 0.0
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; expected a probability, 0 to 1")
    return float(value)


def check_range(name, value):
    """Returns (probability, low, high) as floats, or None for a step that is off."""
    if value is None or is_number(value) and value == 0:
        return None
    lowest, highest = LIMITS[name]
    values = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(values) != 3 or not all(is_number(number) for number in values):
        raise ValueError(f"{name} is {value!r}; expected (probability, low, high), None or 0")
    probability, low, high = (float(number) for number in values)
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} has probability {probability}; expected 0 to 1")
    if not lowest <= low <= high <= highest:
        raise ValueError(
            f"{name} goes from {low} to {high}; expected low <= high, within {lowest} to {highest}"
        )
    return probability, low, high


def is_number(value):
    """Whether a value is a finite number, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def old_places(matrix, displacements, height, width):
    """Computes where the pixels of an elastic warp come from.

    Args:
        matrix: float `(3, 3)`, from old to new pixels.
        displacements: float32 `(GRID, GRID, 2)` (x, y) in pixels, at the middles of so many parts
            of the image each way.
        height, width: int.

    Returns:
        float32 `(height, width, 2)`, the old (x, y) of each new pixel.
    """
    y, x = np.mgrid[:height, :width]
    (xx, xy, x0), (yx, yy, y0) = np.linalg.inv(matrix)[:2]
    places = np.stack([xx * x + xy * y + x0, yx * x + yy * y + y0], axis=-1)
    smooth = cv2.resize(displacements, (width, height), interpolation=cv2.INTER_CUBIC)
    return (places + smooth).astype(np.float32)


def move(x, y):
    """Returns the matrix that moves points by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def saturation_matrix(factor):
    """Returns the color matrix that moves colors away from their own gray."""
    return factor * np.eye(3) + (1 - factor) * LUMA


def hue_matrix(turns):
    """Returns the rotation of RGB around its gray axis (1, 1, 1), red toward green."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * cross
