import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from keras_segen import data
from keras_segen.data.shapes import CLASSES

pytestmark = pytest.mark.once


def digest(item):
    return hashlib.sha256(b"".join(array.tobytes() for array in item)).hexdigest()


def test_items_have_the_documented_shapes_types_and_ranges():
    for size, channels in ((64, 3), ((40, 72), 3), ((33, 32), 1), (8, 1)):
        dataset = data.Shapes("train", size, channels=channels)
        height, width = dataset.size
        for index in range(20):
            image, mask = dataset[index]
            assert image.shape == dataset.image_shape == (height, width, channels)
            assert mask.shape == (height, width)
            assert (image.dtype, mask.dtype) == (np.float32, np.int32)
            assert image.flags.c_contiguous and mask.flags.c_contiguous
            assert image.flags.writeable and mask.flags.writeable
            assert image.min() >= 0 and image.max() <= 1
            assert mask.min() >= 0 and mask.max() < dataset.num_classes


def test_classes_are_described():
    dataset = data.load("shapes", "val")
    assert dataset.class_names == CLASSES and dataset.num_classes == 6
    assert dataset.palette.shape == (6, 3) and dataset.palette.dtype == np.uint8
    assert len(np.unique(dataset.palette, axis=0)) == 6
    assert dataset.ignore_class is None and dataset.label_ids == (0, 1, 2, 3, 4, 5)
    assert (dataset.name, dataset.split, dataset.image_shape) == ("shapes", "val", (64, 64, 3))
    assert dataset.item_name(3) == "val_00003"
    assert len(data.load("shapes", "train")) == 4 * len(dataset)


def test_an_item_does_not_depend_on_length_order_or_what_was_read_before():
    long, short = data.Shapes("train", 32, length=1000), data.Shapes("train", 32, length=7)
    first = [digest(long[index]) for index in range(7)]
    assert [digest(short[index]) for index in reversed(range(7))][::-1] == first
    assert len(set(first)) == 7


def test_items_are_the_same_in_another_process():
    code = (
        "import hashlib; from keras_segen import data; d = data.Shapes('val', (48, 64), seed=3);"
        "print(hashlib.sha256(b''.join(a.tobytes() for i in range(5) for a in d[i])).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    dataset = data.Shapes("val", (48, 64), seed=3)
    here = hashlib.sha256(b"".join(a.tobytes() for i in range(5) for a in dataset[i]))
    assert printed == here.hexdigest()


def test_reading_data_imports_no_framework():
    code = (
        "import sys; from keras_segen import data; data.load('shapes')[0]; data.Augment();"
        "sys.exit(str({'keras', 'tensorflow', 'torch'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_splits_and_seeds_share_no_scene():
    found = {
        digest(data.Shapes(split, 16, seed=seed)[index])
        for split in data.SPLITS
        for seed in (0, 1)
        for index in range(100)
    }
    assert len(found) == 600


@pytest.mark.parametrize("size, larger", [(64, 192), ((40, 80), (120, 240))])
def test_every_size_shows_the_same_scene(size, larger):
    small, large = data.Shapes("test", size), data.Shapes("test", larger)
    for index in range(20):
        # The center of each small pixel is the center of the middle one of 3 x 3 large ones.
        mask, fine = small[index][1], large[index][1][1::3, 1::3]
        assert (mask == fine).mean() > 0.999
        tiny = large[index][0].reshape(*mask.shape[:1], 3, mask.shape[1], 3, 3).mean((1, 3))
        assert np.abs(small[index][0] - tiny).mean() < 0.08


def test_shapes_are_not_distorted_when_height_and_width_differ():
    # A disc that touches nothing is as wide as it is high.
    dataset, seen = data.Shapes("train", (60, 180)), 0
    for index in range(40):
        mask, numbers = dataset[index][1], dataset.instances(index)
        for number in range(1, numbers.max() + 1):
            here = numbers == number
            rows, columns = (np.flatnonzero(here.any(axis)) for axis in (1, 0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            inside = rows[0] > 0 and rows[-1] < 59 and columns[0] > 0 and columns[-1] < 179
            full = abs(here.sum() - np.pi / 4 * height * width) < 0.06 * here.sum()
            if mask[here][0] == CLASSES.index("disc") and inside and full:
                assert abs(height - width) <= 1
                seen += 1
    assert seen >= 5


def test_shapes_lie_all_over_the_scene():
    masks = np.stack([mask for _, mask in data.Shapes("train", (20, 60), length=200)])
    shares = (masks > 0).reshape(200, 20, 6, 10).mean((0, 1, 3))  # of six columns
    assert shares.min() > 0.5 * shares.max()


def test_instances_agree_with_the_mask():
    dataset = data.Shapes("train", 48)
    for index in range(40):
        mask, numbers = dataset[index][1], dataset.instances(index)
        assert numbers.dtype == np.int32 and numbers.shape == mask.shape
        assert ((numbers > 0) == (mask > 0)).all()
        assert np.array_equal(np.unique(numbers), np.arange(numbers.max() + 1))
        for number in range(1, numbers.max() + 1):
            assert len(np.unique(mask[numbers == number])) == 1


def test_a_full_cover_hides_what_is_below_and_numbers_have_no_gap():
    dataset = data.Shapes("train", 32)
    drawn = [np.unique(dataset._draw(index)[2]) for index in range(100)]
    hidden = [index for index, numbers in enumerate(drawn) if numbers[-1] != len(numbers) - 1]
    assert hidden  # else this test shows nothing
    for index in hidden:
        numbers = dataset.instances(index)
        assert np.array_equal(np.unique(numbers), np.arange(len(drawn[index])))


def test_every_class_occurs_and_none_fills_the_scene():
    counts = data.Shapes("train").pixel_counts()
    assert counts.dtype == np.int64 and counts.sum() == 512 * 64 * 64
    shares = counts / counts.sum()
    assert 0.6 < shares[0] < 0.85 and shares[1:].min() > 0.02


def test_color_alone_does_not_tell_the_class():
    # The best guess from a pixel's color, learned from all of train, gets a third wrong.
    def colors_and_labels(split):
        images, masks = (np.stack(arrays) for arrays in zip(*data.Shapes(split), strict=True))
        return (images * 15.99).astype(int) @ (256, 16, 1), masks

    colors, masks = colors_and_labels("train")
    votes = np.bincount((colors * 6 + masks).ravel(), minlength=4096 * 6).reshape(4096, 6)
    colors, masks = colors_and_labels("val")
    guess = votes.argmax(1)[colors]
    ious = [
        ((guess == label) & (masks == label)).sum() / ((guess == label) | (masks == label)).sum()
        for label in range(6)
    ]
    assert 0.5 < np.mean(ious) < 0.7


# Pixels of each class.
GOLDEN = [[766, 101, 44, 5, 28, 80], [810, 0, 65, 144, 5, 0], [869, 0, 65, 33, 0, 57]]


def test_masks_are_golden():
    counts = [np.bincount(data.Shapes("val", 32)[i][1].ravel(), minlength=6) for i in range(3)]
    assert np.array(counts).tolist() == GOLDEN


def test_iteration_pickling_and_negative_indices():
    dataset = data.Shapes("val", 16, length=3)
    items = list(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert [digest(item) for item in items] == [digest(item) for item in copy]
    assert digest(dataset[-1]) == digest(items[2]) == digest(dataset[np.int64(2)])
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"item {index} of shapes, val, which has 3"):
            dataset[index]
        with pytest.raises(IndexError):
            dataset.instances(index)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "all"}, "split is 'all', expected one of train, val, test"),
        ({"size": 7}, r"size is \(7, 7\), expected at least 8"),
        ({"size": "64"}, "size is '64', expected a number of pixels or"),
        ({"size": (64, 64, 3)}, "size is"),
        ({"size": 64.5}, "size is 64.5"),
        ({"size": True}, "size is True"),
        ({"length": 0}, "length is 0, expected a whole number, at least 1"),
        ({"channels": 2}, r"channels is 2, expected 3 \(RGB\) or 1 \(gray\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.Shapes(**arguments)


def test_load_refuses_unknown_names_and_a_cache_for_shapes():
    with pytest.raises(ValueError, match="no data set is named 'shape'; expected one of shapes"):
        data.load("shape")
    with pytest.raises(ValueError, match="no data set is named 'folder:'"):
        data.load("folder:")
    with pytest.raises(ValueError, match="cannot be cached; found cache='ram'"):
        data.load("shapes", cache="ram")
