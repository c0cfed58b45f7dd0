"""The weights of thin borders between touching objects, from instances to the loss."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

import keras_segen as ks
from keras_segen.data import Augment, BorderWeights, arrays, border_weights, load
from keras_segen.data.borders import largest_parts, without_contacts
from keras_segen.data.loader import Batches

PLANES = random_arrays(np.int32, (9, 11), elements=st.sampled_from([0, 0, 0, 0, 1, 2, 5]))


def cells(length=3):
    return ks.data.Cells("train", 32, length=length)


def by_hand(numbers, sigma):
    """The border weights from distances of all pixels to all others."""
    places = np.argwhere(numbers >= 0)
    distances = []
    for number in np.unique(numbers[numbers > 0]):
        own = np.argwhere(numbers == number)
        away = np.sqrt(((places[:, None] - own) ** 2).sum(axis=-1)).min(axis=1)
        distances.append(away.reshape(numbers.shape))
    if len(distances) < 2:
        return np.zeros(numbers.shape)
    nearest, second = np.sort(distances, axis=0)[:2]
    weights = np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where((numbers == 0) & (second <= np.ceil(4 * sigma)), weights, 0)


@pytest.mark.once
@settings(max_examples=60)
@given(numbers=PLANES, sigma=st.sampled_from([0.5, 1.0, 5.0]))
def test_border_weights_are_the_formula(numbers, sigma):
    found = border_weights(numbers, sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(numbers, sigma), atol=1e-6)


@pytest.mark.once
@settings(max_examples=60)
@given(numbers=PLANES)
def test_objects_are_parted_by_as_little_as_is_needed(numbers):
    parted = without_contacts(numbers)
    gone = parted != numbers
    assert (parted[gone] == 0).all() and (numbers[gone] > 0).all()
    padded = np.pad(parted, 1)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            other = np.roll(padded, (down, right), axis=(0, 1))
            assert not ((padded > 0) & (other > 0) & (padded != other)).any()
    if not gone.any():
        return
    for row, column in np.argwhere(gone):  # each that is gone touched another object
        around = np.pad(numbers, 1)[row : row + 3, column : column + 3]
        assert len(np.unique(around[around > 0])) > 1


@pytest.mark.once
def test_of_an_object_in_parts_the_largest_is_kept():
    numbers = np.array([[7, 0, 7, 7, 0], [0, 0, 0, 7, 0], [3, 3, 0, 0, 3]])
    expected = [[0, 0, 2, 2, 0], [0, 0, 0, 2, 0], [1, 1, 0, 0, 0]]
    assert largest_parts(numbers).tolist() == expected


@pytest.mark.once
def test_weights_are_those_of_the_paper_and_follow_the_mask():
    numbers = np.stack([cells().instances(index) for index in range(3)])
    weighted = BorderWeights(cells(), weight=10, sigma=3)
    images, masks, weights = Batches(weighted, 3).batch(0, 0)
    assert images.dtype == weights.dtype == np.float32 and masks.dtype == np.int32
    expected = [1 + 10 * border_weights(plane, 3) for plane in numbers]
    np.testing.assert_allclose(weights, expected, atol=10 / 255 / 2 + 1e-5)  # 256 levels
    np.testing.assert_array_equal(masks, numbers > 0)

    mirrored = Batches(weighted, 3, seed=0, augment=Augment.parse("flip=1"))
    order = mirrored._visited(0)
    _, masks_too, weights_too = mirrored.batch(0, 0)
    np.testing.assert_array_equal(masks_too[:, :, ::-1], masks[order])
    np.testing.assert_array_equal(weights_too[:, :, ::-1], weights[order])

    warped = Batches(weighted, 3, seed=0, augment=Augment.parse("elastic=1,3,3 rotation=1,9,9"))
    _, masks_too, weights_too = warped.batch(0, 0)
    assert not np.array_equal(masks_too, masks[order])
    heavy = weights_too > 7  # on background alone, wherever it moved
    assert heavy.sum() > 100 and (masks_too[heavy] == 0).all()


@pytest.mark.once
def test_weights_add_to_those_of_the_classes():
    plain, balanced = (
        Batches(BorderWeights(cells(), 10, 3, of_classes), 3).batch(0, 0)[2]
        for of_classes in (None, (4.0, 0.5))
    )
    # The loss multiplies by the class's weight: 4 * (1 + 10 e / 4) = 4 + 10 e.
    np.testing.assert_allclose(4 * balanced, 3 + plain, atol=1e-5)


@pytest.mark.once
def test_objects_in_contact_are_parted_and_void_stays_void():
    numbers = np.zeros((1, 8, 12), np.int32)
    numbers[0, 2:6, 1:6], numbers[0, 2:6, 6:11] = 1, 2
    masks = (numbers > 0).astype(np.int32)
    masks[0, 7] = 255
    images = np.zeros((1, 8, 12, 1), np.float32)
    scenes = arrays(images, masks, ignore_class=255, instances=numbers)
    _, target, weights = Batches(BorderWeights(scenes, 10, 5), 1).batch(0, 0)
    assert (target[0, 2:6, 5] == 0).all() and (target[0, 2:6, 6] == 1).all()
    assert (weights[0, 2:6, 5] > 9).all()
    assert (target[0, 7] == 255).all() and (weights[0, 7] == 1).all()
    moved = Batches(BorderWeights(scenes), 1, seed=0, augment=Augment.parse("shift=1,0.3,0.3"))
    _, target, weights = moved.batch(0, 0)
    assert (target[0, 0] == 255).all() and (weights[0, 0] == 1).all()  # from outside


@pytest.mark.once
def test_weights_are_computed_once_for_an_item():
    class Counted(ks.data.Cells):
        read_whole = 0

        def read_instances(self, index):
            Counted.read_whole += 1
            return super().read_instances(index)

        def read(self, index):
            return super().read_instances(index)[:2]

    weighted = BorderWeights(Counted("train", 32, length=3), 10)
    batches = Batches(weighted, 3, seed=0)
    first = batches.batch(0, 0)
    again = batches.batch(0, 0)
    assert Counted.read_whole == 3
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.once
def test_what_has_no_objects_or_no_background_is_refused():
    images, masks = np.zeros((2, 4, 4, 1), np.float32), np.array([[[0, 1] * 2] * 4] * 2)
    with pytest.raises(ValueError, match="has masks of classes only, and borders"):
        BorderWeights(arrays(images, masks))
    with pytest.raises(ValueError, match="has no class beside those of objects"):
        BorderWeights(arrays(images, masks, instances=masks + 1))


def test_both_backends_get_equal_batches_of_three():
    weighted = BorderWeights(cells(), 10, 3)
    loader = weighted.batches(2, seed=1, augment=Augment.parse("elastic=1,2,2"))
    expected = loader.batches.batch(0, 0)
    found = next(iter(loader))
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)


def test_fit_gives_the_weights_to_the_loss():
    weighted = BorderWeights(cells(4), 10, 3)
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(2, 3, padding="same")])
    ks.initialize(model, seed=0)
    images, masks, weights = Batches(weighted, 4, seed=0).batch(0, 0)
    logits = model.predict(images, verbose=0)
    logits -= logits.max(axis=-1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_softmax, masks[..., None], axis=-1)[..., 0]
    model.compile(keras.optimizers.SGD(0.0), ks.losses.CrossEntropy())
    found = model.fit(weighted.batches(4, seed=0), shuffle=False, verbose=0).history["loss"][0]
    assert found == pytest.approx((weights * losses).mean(), rel=1e-5)
    assert found > 1.2 * losses.mean()


def test_a_data_set_of_pixels_loads_as_before():
    assert len(next(iter(load("cells", "val", size=32).batches(2)))) == 2
