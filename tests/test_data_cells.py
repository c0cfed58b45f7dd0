"""Drawn cells that touch."""

import hashlib

import cv2
import numpy as np
import pytest

from keras_segen import data

pytestmark = pytest.mark.once


def digest(dataset, count):
    items = (dataset.read_instances(index) for index in range(count))
    return [hashlib.sha256(b"".join(part.tobytes() for part in item)).hexdigest() for item in items]


def test_items_have_the_documented_shapes_types_and_ranges():
    for size, channels in ((96, 3), ((48, 80), 1), (32, 1)):
        dataset = data.Cells("val", size, channels=channels)
        for index in range(4):
            image, mask, numbers = dataset.read_instances(index)
            assert image.shape == dataset.image_shape == (*dataset.size, channels)
            assert (image.dtype, mask.dtype, numbers.dtype) == (np.float32, np.int32, np.int32)
            assert image.flags.c_contiguous and image.min() >= 0 and image.max() <= 1
            assert np.array_equal(mask, numbers > 0)
            assert np.array_equal(np.unique(numbers), np.arange(numbers.max() + 1))
            again, again_mask = dataset[index]
            assert np.array_equal(again, image) and np.array_equal(again_mask, mask)
            assert np.array_equal(dataset.instances(index), numbers)


def test_data_set_is_described():
    dataset = data.load("cells", "val")
    assert (dataset.name, dataset.split, dataset.image_shape) == ("cells", "val", (96, 96, 3))
    assert dataset.class_names == ("background", "cell") and dataset.object_classes == (1,)
    assert [len(data.load("cells", split)) for split in data.SPLITS] == [64, 32, 64]


def test_cells_are_whole_and_parted_by_thin_borders():
    touching, images = 0, 12
    for index in range(images):
        _, mask, numbers = data.Cells("train").read_instances(index)
        # Connected parts are the cells, whether or not pixels connect at corners.
        for connectivity in (4, 8):
            parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)[0]
            assert parts - 1 == numbers.max()
        near = cv2.dilate(numbers.astype(np.float32), np.ones((5, 5)))
        touching += len(np.unique(numbers[(numbers > 0) & (near > numbers)])) / numbers.max()
    assert touching / images > 0.6  # of the cells have a neighbor of a higher number 2 pixels away


def test_an_item_depends_on_seed_split_and_index_only():
    first = digest(data.Cells("train", 32, length=4), 4)
    assert digest(data.Cells("train", 32, length=9), 4) == first and len(set(first)) == 4
    for other in (data.Cells("val", 32), data.Cells("train", 32, seed=1)):
        assert not set(digest(other, 4)) & set(first)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"size is \(31, 40\), expected at least 32 pixels"):
        data.Cells(size=(31, 40))
    with pytest.raises(ValueError, match="length is 0, expected a whole number, at least 1"):
        data.Cells(length=0)
