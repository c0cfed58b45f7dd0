"""Class frequencies, class weights, and the sampling of items with rare classes."""

import json
import os
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_segen import data
from keras_segen.data import imbalance
from keras_segen.data.loader import Batches
from keras_segen.determinism import order, sample


def dataset(masks, names="abcd"):
    masks = np.array(masks, np.int32)
    return data.arrays(np.zeros(masks.shape, np.uint8), masks, names, ignore_class=255)


def of_counts(counts):
    """A data set whose item i holds counts[i][c] pixels of class c, and void."""
    counts = np.array(counts)
    masks = np.full((len(counts), 1, counts.sum(axis=1).max() + 1), 255)
    for mask, row in zip(masks, counts, strict=True):
        labels = np.repeat(np.arange(len(row)), row)
        mask[0, : len(labels)] = labels
    return dataset(masks, "abcdefgh"[: counts.shape[1]])


COUNTS = [[60, 20, 0, 0], [80, 0, 10, 0], [30, 0, 0, 0]]

some_counts = st.lists(
    st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=6
).filter(lambda counts: np.sum(counts) > 0)


def test_frequencies_are_shares_of_the_labeled_pixels():
    np.testing.assert_allclose(data.class_frequencies(of_counts(COUNTS)), [0.85, 0.1, 0.05, 0])
    assert data.class_frequencies(dataset([[[255, 255]]])).tolist() == [0, 0, 0, 0]


def test_counts_of_items_are_those_of_the_masks():
    found = of_counts(COUNTS).pixel_counts_of_items()
    assert found.tolist() == COUNTS and found.dtype == np.int64


def test_weights_of_a_worked_example():
    rare = of_counts(COUNTS)  # 200 pixels: 170, 20, 10, 0
    found = data.inverse_frequency_weights(rare)
    np.testing.assert_allclose(found, [1 / 2.55, 1 / 0.3, 1 / 0.15, 0], rtol=1e-6)
    # Frequencies 170 / 200, 20 / 80 and 10 / 90; the median is 1 / 4.
    found = data.median_frequency_weights(rare)
    np.testing.assert_allclose(found, [0.25 / 0.85, 1, 2.25, 0], rtol=1e-6)
    # beta = 0.9: the geometric series 1 + 0.9 + 0.81 + ... of as many terms as pixels
    numbers = np.array([sum(0.9**k for k in range(n)) for n in (170, 20, 10)])
    expected = 1 / numbers / np.mean(1 / numbers)
    found = data.effective_number_weights(rare, beta=0.9)
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-6)


@settings(max_examples=50)
@given(some_counts)
def test_inverse_frequency_gives_every_class_the_same_say(counts):
    pixels = np.sum(counts, axis=0)
    say = data.inverse_frequency_weights(of_counts(counts)) * pixels
    present = pixels > 0
    np.testing.assert_allclose(say[present], pixels.sum() / present.sum(), rtol=1e-5)


@settings(max_examples=50)
@given(some_counts)
def test_effective_numbers_lie_between_equal_weights_and_the_inverse_frequency(counts):
    rare = of_counts(counts)
    present = np.sum(counts, axis=0) > 0
    inverse = data.inverse_frequency_weights(rare)
    for beta, expected in ((0, present), (1 - 1e-9, inverse / inverse[present].mean())):
        found = data.effective_number_weights(rare, beta)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    default = data.effective_number_weights(rare)
    assert default[present].mean() == pytest.approx(1, rel=1e-5)
    assert default.max() <= max(1, (inverse / inverse[present].mean()).max()) * (1 + 1e-5)
    # the rarer a class, the larger its weight
    assert (np.diff(default[present][np.argsort(inverse[present])]) >= -1e-6).all()


def test_the_default_of_effective_numbers_does_not_depend_on_the_size_of_images():
    small, large = np.array([[90, 9, 1]]), np.array([[90000, 9000, 1000]])
    found = data.effective_number_weights(of_counts(small * 10))
    expected = data.effective_number_weights(of_counts(large))
    np.testing.assert_allclose(found, expected, rtol=0.01)


@pytest.mark.parametrize("weigh", list(imbalance.CLASS_WEIGHTS.values()))
def test_weights_are_float32_and_zero_if_all_is_ignored(weigh):
    assert weigh(of_counts(COUNTS)).dtype == np.float32
    assert weigh(dataset([[[255, 255]]])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_effective_numbers_reject_a_beta_out_of_range(beta):
    with pytest.raises(ValueError, match=rf"beta is {beta}, expected a number in \[0, 1\)"):
        data.effective_number_weights(of_counts(COUNTS), beta)


def test_counts_of_a_folder_are_kept_between_runs(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path))
    first = data.Folder(picture_folder, size=(16, 16))
    expected = [weigh(first) for weigh in imbalance.CLASS_WEIGHTS.values()]
    weights = data.item_weights(first)
    monkeypatch.setattr(data.Folder, "read_mask", None)  # nothing may be read again
    again = data.Folder(picture_folder, size=(16, 16))
    found = [weigh(again) for weigh in imbalance.CLASS_WEIGHTS.values()]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(data.item_weights(again), weights)


# --- sampling


def test_item_weights_of_a_worked_example():
    # 28 pixels of class a, 4 of b, 2 of c, none of d; the last item is void
    counts = [[9, 0, 0, 0], [9, 1, 0, 0], [1, 3, 2, 0], [9, 0, 0, 0], [0, 0, 0, 0]]
    chances = np.array([9 / 28, 9 / 28 + 1 / 4, 1 / 28 + 3 / 4 + 1, 9 / 28, 0]) / 3
    found = data.item_weights(of_counts(counts))
    np.testing.assert_allclose(found, 5 * chances)
    assert data.item_weights(dataset([[[255, 255]], [[255, 255]]])).tolist() == [1, 1]


@settings(max_examples=50)
@given(some_counts)
def test_item_weights_are_the_chances_of_drawing_a_class_then_a_pixel(counts):
    counts = np.array(counts)
    pixels_of_classes = [np.repeat(np.arange(len(counts)), column) for column in counts.T]
    chances = np.zeros(len(counts))
    present = [items for items in pixels_of_classes if len(items)]
    for items in present:
        for item in items:
            chances[item] += 1 / len(present) / len(items)
    np.testing.assert_allclose(data.item_weights(of_counts(counts)), len(counts) * chances)


def test_sample_with_equal_weights_visits_every_item_once():
    for length in (1, 7, 100):
        assert sorted(sample(0, 1, np.full(length, 0.3))) == list(range(length))


@settings(max_examples=50)
@given(
    st.lists(st.just(0.0) | st.floats(0.01, 100), min_size=1, max_size=40).filter(any),
    st.integers(0, 2**32 - 1),
    st.integers(0, 1000),
)
def test_sample_draws_each_item_as_often_as_its_weight_asks(weights, seed, epoch):
    weights = np.array(weights)
    drawn = sample(seed, epoch, weights)
    assert drawn.shape == weights.shape and drawn.dtype == np.int64
    expected = len(weights) * weights / weights.sum()
    counts = np.bincount(drawn, minlength=len(weights))
    assert (counts >= np.floor(expected - 1e-6)).all()
    assert (counts <= np.ceil(expected + 1e-6)).all()
    np.testing.assert_array_equal(drawn, sample(seed, epoch, weights))


def test_sample_draws_the_weights_on_average_and_mixes():
    weights = np.array([1.0, 1, 1, 2, 3, 0.5, 0.2])
    drawn = np.array([sample(5, epoch, weights) for epoch in range(2000)])
    shares = np.bincount(drawn.ravel(), minlength=7) / drawn.size
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.005)
    first = np.bincount(drawn[:, 0], minlength=7) / len(drawn)  # no item has a place of its own
    np.testing.assert_allclose(first, weights / weights.sum(), atol=0.04)


def test_sample_is_the_same_everywhere():
    assert sample(0, 0, np.array([1.0, 1, 4, 1, 1])).tolist() == [2, 0, 4, 2, 2]


class Wrong(data.Shapes):
    """Scenes that are counted wrong."""

    def _count(self):
        return [[-1, 2, 3, 4, 5, 6]] * len(self)


WEIGHTS = (*imbalance.CLASS_WEIGHTS.values(), data.class_frequencies, data.item_weights)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_are_made_of_masks_and_of_counts_that_are_not_negative(weights):
    with pytest.raises(ValueError, match="shapes counts -1 pixels; expected 0 or more"):
        weights(Wrong("train", size=16, length=2))
    with pytest.raises(ValueError, match="expected a data set of images with masks"):
        weights(data.as_pictures(data.Shapes("train", size=16, length=2)))


# --- in batches


class Rare(data.Dataset):
    """16 items of one color each; class 1 is in items 0 and 1 only."""

    def __init__(self):
        super().__init__("rare", "train", ("common", "rare"), image_shape=(2, 2, 1))

    def __len__(self):
        return 16

    def read(self, index):
        mask = np.zeros((2, 2), np.int32)
        mask[0, 0] = index < 2
        return np.full((2, 2, 1), index / 16, np.float32), mask


def noisy(image, mask, rng):
    return image + np.float32(rng.uniform(0, 1 / 32)), mask


def items_of(images):
    return np.floor(np.asarray(images)[:, 0, 0, 0] * 16).astype(int).tolist()


def test_rare_classes_are_drawn_oftener_and_the_epoch_keeps_its_length():
    # The two items with class 1 have weights of 16 * (1 / 2 + 3 / 62) / 2 = 4.4.
    for sampling, low, high in (("uniform", 2, 2), ("rare_classes", 8, 10)):
        batches = Batches(Rare(), 5, seed=0, sampling=sampling)
        assert len(batches) == 4
        for epoch in range(5):
            items = [i for step in range(4) for i in items_of(batches.batch(epoch, step)[0])]
            assert len(items) == 16
            assert low <= sum(i < 2 for i in items) <= high


def test_uniform_sampling_is_the_order_as_it_was():
    batches = Batches(Rare(), 16, seed=3, sampling="uniform")
    assert items_of(batches.batch(2, 0)[0]) == order(3, 2, 16).tolist()


def test_repeated_items_are_augmented_differently():
    batches = Batches(Rare(), 16, seed=0, augment=noisy, sampling="rare_classes")
    images = batches.batch(0, 0)[0]
    items = items_of(images)
    assert len(set(items)) < len(items)
    assert len(np.unique(images[:, 0, 0, 0])) == len(items)
    # also over the border of batches
    halves = [
        Batches(Rare(), 8, seed=0, augment=noisy, sampling="rare_classes").batch(0, k)[0]
        for k in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), images)


def checksums(loader, epochs=2):
    return [
        zlib.crc32(np.asarray(masks), zlib.crc32(np.asarray(images)))
        for _ in range(epochs)
        for images, masks in loader
    ]


def rare_batches(**options):
    shapes = data.Shapes("train", size=16, length=10)
    return shapes.batches(4, seed=7, sampling="rare_classes", augment=data.Augment(), **options)


@pytest.mark.once
def test_workers_resuming_and_the_backend_change_no_sampled_batch():
    here = checksums(rare_batches())
    assert checksums(rare_batches(workers=1)) == here
    assert checksums(rare_batches(first_epoch=1), epochs=1) == here[3:]
    code = (
        "import json, keras_segen as ks, numpy as np, zlib\n"
        "loader = ks.data.Shapes('train', size=16, length=10).batches("
        "4, seed=7, sampling='rare_classes', augment=ks.data.Augment())\n"
        "print(json.dumps([zlib.crc32(np.asarray(m), zlib.crc32(np.asarray(x)))"
        " for _ in range(2) for x, m in loader]))"
    )
    other = {"tensorflow": "torch", "torch": "tensorflow"}[keras.backend.backend()]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == here


def test_sampling_rejects_what_it_cannot_do():
    with pytest.raises(ValueError, match="sampling is 'rare', expected 'uniform' or 'rare_class"):
        Batches(Rare(), 4, seed=0, sampling="rare")
    with pytest.raises(ValueError, match="needs a seed"):
        Batches(Rare(), 4, sampling="rare_classes")
