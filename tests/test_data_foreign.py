"""Augmentations of others: each item's is a function of (seed, epoch, index)."""

import random

import numpy as np
import pytest

from keras_segen.data import Shapes, arrays
from keras_segen.data.loader import Batches

pytestmark = pytest.mark.once  # NumPy only

SCENES = Shapes("train", size=8, length=6)


class Compose:
    """Called like Albumentations' Compose, which takes and returns dicts."""

    def __init__(self):
        self.generator = random.Random()

    def set_random_seed(self, seed):
        self.generator = random.Random(seed)

    def __call__(self, *args, force_apply=False, **data):
        if args:
            raise KeyError("You have to pass data to augmentations as named arguments")
        image, mask = data["image"], data["mask"]
        assert image.dtype == np.uint8 and mask.dtype in (np.uint8, np.float32)
        if self.generator.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if image.shape[2] == 1:
            image = image[..., 0]  # as some of its transforms do
        return {"image": image, "mask": mask}


class EarlierCompose(Compose):
    """Albumentations before 1.4.19: draws from the shared generators."""

    set_random_seed = None

    def __init__(self):
        self.generator = random

    def __getattribute__(self, name):
        if name == "set_random_seed":
            raise AttributeError(name)
        return super().__getattribute__(name)


def flip(image, mask):
    if np.random.rand() < 0.5:
        return image[:, ::-1], mask[:, ::-1]
    return image, mask


AUGMENTS = {"pair": lambda: flip, "compose": Compose, "earlier": EarlierCompose}


def epoch(number, augment, dataset=SCENES, **options):
    return list(Batches(dataset, 3, seed=1, augment=augment, **options).read(number))


def unlike(a, b):
    return any((x != y).any() for (x, _), (y, _) in zip(a, b, strict=True))


@pytest.mark.parametrize("name", AUGMENTS)
def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(name):
    before = np.random.get_state()[2], random.getstate()
    first = epoch(0, AUGMENTS[name]())
    random.random(), np.random.rand()
    np.testing.assert_equal(epoch(0, AUGMENTS[name]()), first)
    assert unlike(first, epoch(0, None)) and unlike(first, epoch(1, AUGMENTS[name]()))
    assert before[0] != np.random.get_state()[2]  # moved by the draw above, and not put back
    if name == "compose":
        np.testing.assert_equal(epoch(0, AUGMENTS[name](), workers=1), first)


def test_image_and_mask_stay_together():
    columns = np.tile(np.arange(8, dtype="uint8"), (6, 8, 1))
    dataset = arrays(columns[..., None] * 16, columns.astype("int32"), class_names=list("abcdefgh"))
    for augment in (flip, Compose(), lambda image, mask, rng: flip(image, mask)):
        for images, masks in epoch(0, augment, dataset):
            np.testing.assert_allclose(images[..., 0], masks * 16 / 255, atol=1e-6)


def test_labels_beyond_a_byte_survive():
    masks = np.full((2, 4, 4), -1, "int32")
    masks[:, 0] = 0
    names = ("ground",)
    dataset = arrays(np.zeros((2, 4, 4, 3), "uint8"), masks, class_names=names, ignore_class=-1)
    found = Batches(dataset, 2, seed=0, augment=Compose()).batch(0, 0)[1]
    assert np.unique(found).tolist() == [-1, 0]
