"""Augmentations that others wrote: functions of image and mask, and Albumentations.

Whatever they draw is a pure function of (seed, epoch, index), as for our own.
"""

import inspect
import random
import threading

import numpy as np

# Held while the generators that all of a process share are seeded for one item.
_shared_generators = threading.Lock()


def adapted(augment):
    """Returns an augmentation as `callable(image, mask, rng)`.

    Args:
        augment: such a callable; one of `(image, mask)`, which draws from `numpy.random` or
            `random`; or a transform of Albumentations, such as its `Compose`.

    Raises:
        ValueError: it is none of these.
    """
    if not callable(augment):
        raise ValueError(_refusal(augment))
    try:
        signature = inspect.signature(augment)
    except (TypeError, ValueError):  # written in C: nothing is known
        return augment
    if "force_apply" in signature.parameters:
        return OfAlbumentations(augment)
    if _takes(signature, 3):
        return augment
    if _takes(signature, 2):
        return OfImageAndMask(augment)
    raise ValueError(_refusal(augment))


def _refusal(augment):
    return (
        f"augment is {augment!r}, expected a keras_segen.data.Augment, a function (image, mask) or "
        "(image, mask, rng), or a Compose of Albumentations."
    )


def _takes(signature, count):
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


class OfImageAndMask:
    """Calls a function of `(image, mask)` with NumPy's and Python's generators seeded for it.

    They are then as before.
    """

    def __init__(self, function):
        self.function = function

    def __call__(self, image, mask, rng):
        with _shared_generators:
            before = np.random.get_state(), random.getstate()
            np.random.seed(rng.integers(2**32, dtype=np.uint32))
            random.seed(int(rng.integers(2**32)))
            try:
                return self.function(image, mask)
            finally:
                np.random.set_state(before[0])
                random.setstate(before[1])


class OfAlbumentations:
    """Calls a transform of Albumentations with an image in uint8, as its authors expect."""

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image, mask, rng):
        pixels = np.round(image * 255).astype(np.uint8)
        if hasattr(self.transform, "set_random_seed"):  # since version 1.4.19
            self.transform.set_random_seed(int(rng.integers(2**32)))
            pixels, mask = self._call(pixels, mask)
        else:  # those before draw from the shared generators
            pixels, mask = OfImageAndMask(self._call)(pixels, mask, rng)
        if np.ndim(pixels) == 2:
            pixels = pixels[..., None]
        scale = 255 if pixels.dtype == np.uint8 else 1
        return (pixels / np.float32(scale)).astype(np.float32), np.asarray(mask, np.int32)

    def _call(self, pixels, mask):
        if np.ndim(mask) == 0:  # the label of a picture
            return self.transform(image=pixels)["image"], mask
        small = mask.min() >= 0 and mask.max() <= 255
        # OpenCV, which it uses, warps no integers of 32 bits.
        given = mask.astype(np.uint8 if small else np.float32)
        found = self.transform(image=pixels, mask=given)
        return found["image"], found["mask"]
