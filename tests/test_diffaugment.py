"""DiffAugment: each change against NumPy, and that a GAN's discriminator sees it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen.generation import GAN, noise
from keras_segen.generation.diffaugment import change_color, cut_out, diffaugment, translate

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 3)).astype("float32")


def applied(change, *shares):
    """A change of `IMAGES` by numbers in (0, 1), the same for all."""
    numbers = [ops.full((3,), share) for share in shares]
    return ops.convert_to_numpy(change(ops.convert_to_tensor(IMAGES), *numbers))


def test_numbers_in_the_middle_change_nothing():
    np.testing.assert_allclose(applied(change_color, 0.5, 0.5, 0.5), IMAGES, atol=1e-6)
    np.testing.assert_array_equal(applied(translate, 0.5, 0.5), IMAGES)


def test_colors_change_one_after_the_other():
    np.testing.assert_allclose(applied(change_color, 0.9, 0.5, 0.5), IMAGES + 0.4, atol=1e-6)
    gray = applied(change_color, 0.5, 0.0, 0.5)
    np.testing.assert_allclose(gray, np.repeat(IMAGES.mean(3, keepdims=True), 3, 3), atol=1e-6)
    contrast = applied(change_color, 0.5, 0.5, 0.9)
    assert contrast.std((1, 2, 3)) == pytest.approx(1.4 * IMAGES.std((1, 2, 3)), rel=1e-4)
    assert contrast.mean((1, 2, 3)) == pytest.approx(IMAGES.mean((1, 2, 3)), abs=1e-5)


@pytest.mark.parametrize("down, right", [(0.01, 0.99), (0.99, 0.5), (0.5, 0.01)])
def test_images_move_by_whole_pixels_and_leave_zeros(down, right):
    """An eighth of 8 and of 12 pixels, rounded: one down or up, two right or left."""
    dy, dx = int(3 * down) - 1, int(5 * right) - 2
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    expected = padded[:, 2 - dy : 10 - dy, 2 - dx : 14 - dx]
    np.testing.assert_array_equal(applied(translate, down, right), expected)


@pytest.mark.parametrize(
    "y, x, rows, columns",
    [
        (0.5, 0.5, (2, 6), (3, 9)),
        (0.0, 0.999, (0, 2), (9, 12)),  # a center at the border
        (0.999, 0.0, (6, 8), (0, 3)),
    ],
)
def test_half_of_each_side_is_cut_out(y, x, rows, columns):
    expected = IMAGES.copy()
    expected[:, slice(*rows), slice(*columns)] = 0
    np.testing.assert_array_equal(applied(cut_out, y, x), expected)


def test_changes_are_a_function_of_key_and_step_and_of_each_image():
    def changed(key, step, images=IMAGES):
        images = ops.convert_to_tensor(images)
        return ops.convert_to_numpy(diffaugment(images, ("test", key), step))

    first = changed(0, 3)
    np.testing.assert_array_equal(first, changed(0, 3))
    for other in (changed(1, 3), changed(0, 4)):
        assert np.abs(first - other).max() > 0.1
    same = changed(0, 3, np.repeat(IMAGES[:1], 3, 0))
    assert np.abs(same[0] - same[1]).max() > 0.1
    u = ops.convert_to_numpy(noise.uniform(("test", 0), 3, (3, 7)))
    expected = cut_out(
        translate(change_color(ops.convert_to_tensor(IMAGES), *u.T[:3]), *u.T[3:5]), *u.T[5:]
    )
    np.testing.assert_allclose(first, ops.convert_to_numpy(expected), atol=1e-6)


class Watching(layers.Layer):
    """Passes on images and keeps them."""

    def call(self, x):
        if not hasattr(self, "seen"):
            self.seen = []
        self.seen.append(x)
        return x


def test_the_discriminator_sees_real_and_fake_images_augmented():
    codes, images = keras.Input((3,)), keras.Input((8, 12, 3))
    x = layers.Reshape((8, 12, 3))(layers.Dense(8 * 12 * 3)(codes))
    watching = Watching()
    scores = layers.Dense(1)(layers.Flatten()(watching(images)))
    gan = GAN(keras.Model(codes, x), keras.Model(images, scores), seed=5)
    ks.initialize(gan, seed=0)
    gan.compile(augment_discriminator="diffaugment")
    gan.run_eagerly = True
    watching.seen = []
    before = [ops.convert_to_numpy(v).copy() for v in gan.generator.trainable_variables]
    gan.train_on_batch((IMAGES + 1) / 2)
    real, fake, again = (ops.convert_to_numpy(x) for x in watching.seen)
    expected = diffaugment(ops.convert_to_tensor(IMAGES), ("augmentation of real", 5), 0)
    np.testing.assert_allclose(real, ops.convert_to_numpy(expected), atol=1e-5)
    assert np.abs(fake - again).max() > 0.01  # in G's turn, in another way
    after = [ops.convert_to_numpy(v) for v in gan.generator.trainable_variables]
    for old, new in zip(before, after, strict=True):  # G learns through the change
        assert np.abs(old - new).max() > 0
    with pytest.raises(ValueError, match="augment_discriminator is 'ada', expected one of 'none'"):
        gan.compile(augment_discriminator="ada")
