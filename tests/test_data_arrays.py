import pickle

import numpy as np
import pytest

from keras_segen import data

pytestmark = pytest.mark.once


def test_every_type_becomes_float_images_and_int_masks():
    values = np.random.default_rng(0).integers(0, 256, (3, 6, 8), np.uint8)
    masks = np.random.default_rng(1).integers(0, 4, (3, 6, 8))
    for images in (values, values * np.uint16(257), values / 255, (values / 255).astype("f4")):
        for shaped in (images, images[..., None], np.repeat(images[..., None], 3, -1)):
            for labels in (masks, masks[..., None], masks.astype(np.float32), masks.astype("u1")):
                dataset = data.arrays(shaped, labels)
                image, mask = dataset[1]
                channels = shaped.shape[3] if shaped.ndim == 4 else 1
                assert image.shape == dataset.image_shape == (6, 8, channels)
                assert (image.dtype, mask.dtype) == (np.float32, np.int32)
                np.testing.assert_allclose(image[..., 0], values[1] / 255, atol=1e-7)
                assert np.array_equal(mask, masks[1])
    assert data.arrays(values, masks > 1)[0][1].max() == 1


def test_items_are_copies_and_writable():
    images, masks = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.int32)
    dataset = data.arrays(images, masks)
    image, mask = dataset[0]
    image += 1
    mask += 1
    assert images.max() == 0 and masks.max() == 0
    assert image.flags.c_contiguous and mask.flags.c_contiguous
    reordered = data.arrays(np.asfortranarray(images), np.asfortranarray(masks))[0]
    assert reordered[0].flags.c_contiguous and reordered[1].flags.c_contiguous


def test_classes_come_from_names_or_from_the_masks():
    images, masks = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.int64)
    masks[1, 0, 0], masks[1, 0, 1] = 3, 255
    dataset = data.arrays(images, masks, ignore_class=255)
    assert dataset.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert dataset.ignore_class == 255 and dataset.num_classes == 4
    assert len(np.unique(dataset.palette, axis=0)) == 4
    named = data.arrays(images, masks, "abcde", ignore_class=255, palette=[[1, 2, 3]] * 5)
    assert named.class_names == ("a", "b", "c", "d", "e") and named.palette[4].tolist() == [1, 2, 3]
    assert (named.name, named.split, named.item_name(1)) == ("arrays", "train", "item_00001")
    negative = np.where(masks == 255, -1, masks)
    assert data.arrays(images, negative, ignore_class=-1).num_classes == 4


def test_pixel_counts_and_weights_follow_their_definition():
    masks = np.zeros((3, 2, 5), np.int32)
    masks[0, 0, :2] = 1  # 2 of 10 pixels of image 0
    masks[1, 0, :4] = 1  # 4 of the 8 labeled pixels of image 1
    masks[1, 1, :2] = 255
    masks[2, 0, 0] = 2  # 1 of 10 pixels of image 2
    dataset = data.arrays(np.zeros((3, 2, 5), np.uint8), masks, "abcd", ignore_class=255)
    assert dataset.pixel_counts().tolist() == [21, 6, 1, 0]
    assert dataset.pixel_counts().dtype == np.int64
    weights = data.median_frequency_weights(dataset)
    assert weights.dtype == np.float32
    # Frequencies 21 / 28, 6 / 18 and 1 / 10; the median is 1 / 3.
    np.testing.assert_allclose(weights, [28 / 63, 1, 10 / 3, 0], rtol=1e-6)
    dataset.pixel_counts()[:] = 0
    assert dataset.pixel_counts().tolist() == [21, 6, 1, 0]


def test_weights_are_zero_when_all_is_ignored():
    masks = np.full((1, 2, 2), 255)
    dataset = data.arrays(np.zeros((1, 2, 2)), masks, "ab", ignore_class=255)
    assert data.median_frequency_weights(dataset).tolist() == [0, 0]


def test_arrays_pickle():
    dataset = data.arrays(np.ones((2, 4, 4)), np.ones((2, 4, 4), int))
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[1][1], dataset[1][1])


X, Y = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4), np.int32)


@pytest.mark.parametrize(
    "images, masks, options, message",
    [
        (
            X[0],
            Y,
            {},
            r"images are \(4, 4, 3, 1\) and masks \(2, 4, 4\); expected masks of",
        ),
        (
            X[0, 0],
            Y,
            {},
            r"images have shape \(4, 3\); expected \(number, height, width\)",
        ),
        (X[:0], Y[:0], {}, r"images have shape \(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 2), np.uint8), Y, {}, "with 1 or 3 channels"),
        (X.astype(int), Y, {}, "images are int64; expected uint8, uint16 or float"),
        (X + 1.5, Y, {}, "values from 1.5 to 1.5; expected 0 to 1. Divide"),
        (X - 0.5, Y, {}, "values from -0.5 to -0.5; expected 0 to 1"),
        (X + np.nan, Y, {}, "values from nan to nan"),
        (
            X,
            Y[:1],
            {},
            r"images are \(2, 4, 4, 3\) and masks \(1, 4, 4\); expected masks of",
        ),
        (
            X,
            Y[:, 1:],
            {},
            r"masks of \(2, 4, 4\): as many, and of the same height and width",
        ),
        (X, Y[0], {}, r"masks have shape \(4, 4\); expected \(number, height, width\)"),
        (X, np.zeros((2, 4, 4, 5)), {}, "one-hot masks: masks.argmax"),
        (X, Y + 0.5, {}, "masks are float64 with values that are not whole, such as 0.5"),
        (X, Y + np.nan, {}, "not whole, such as nan"),
        (X, Y.astype(str), {}, "masks are <U11; expected whole numbers or bool"),
        (X, Y - 1, {}, "masks hold label -1 in 32 pixels; expected 0 to 0"),
        (X, Y + 2, {"class_names": "ab"}, "label 2 in 32 pixels; expected 0 to 1$"),
        (
            X,
            Y + 9,
            {"class_names": "ab", "ignore_class": 255},
            "0 to 1 or ignore_class 255",
        ),
        (
            X,
            Y + 255,
            {},
            "masks hold label 255; without class_names .* Then say ignore_class",
        ),
        (X, Y, {"class_names": []}, "label 0 in 32 pixels|at least one class"),
        (
            X,
            Y,
            {"class_names": "ab", "ignore_class": 1},
            "ignore_class 1 is also the class 'b'",
        ),
        (
            X,
            Y,
            {"palette": [[0, 0, 0]] * 2},
            r"palette has shape \(2, 3\), expected \(1, 3\)",
        ),
        (
            X,
            Y,
            {"palette": [[0, 0, 256]]},
            "palette has values from 0 to 256, expected 0 to 255",
        ),
    ],
)
def test_wrong_arrays_are_refused(images, masks, options, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(images, masks, **options)
