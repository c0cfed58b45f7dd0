import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_segen.data import Augment
from keras_segen.data.augment import LIMITS, STEPS, hue_matrix, saturation_matrix

pytestmark = pytest.mark.once

GEOMETRY = ("flip", "vertical_flip", "scale", "rotation", "shift", "shear", "crop", "elastic")
COLOUR = ("brightness", "contrast", "saturation", "hue", "noise", "blur")


def only(**steps):
    """An augmentation with these steps; a range of one value always happens."""
    return Augment(**(dict.fromkeys(STEPS) | steps))


def always(name):
    value = (1, 3, 3) if name == "elastic" else getattr(Augment(), name)
    return only(**{name: (1.0, *value[1:]) if name in LIMITS else 1.0})


def every_step():
    return Augment(**{name: getattr(always(name), name) for name in STEPS})


def rng(seed=0):
    return np.random.default_rng(seed)


def blocks(height, width, cell=12):
    """A mask of blocks with labels 0 to 3, and an image: label / 3 in red and green, blue 1."""
    labels = rng(5).integers(0, 4, (height // cell + 1, width // cell + 1))
    mask = labels.repeat(cell, 0).repeat(cell, 1)[:height, :width].astype(np.int32)
    red = mask.astype(np.float32) / 3
    return np.dstack([red, red, np.ones_like(red)]), mask


def away_from_edges(mask):
    """Pixels whose 5 x 5 surroundings have one label and are all in the picture."""
    values = mask.astype(np.uint8)
    kernel = np.ones((5, 5), np.uint8)
    same = cv2.erode(values, kernel) == cv2.dilate(values, kernel)
    same[[0, 1, -2, -1]] = False
    same[:, [0, 1, -2, -1]] = False
    return same


def a_scene(channels=3):
    image = rng(1).random((24, 36, channels), np.float32)
    return image, rng(2).integers(0, 5, (24, 36)).astype(np.int32)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), ignore=st.sampled_from([None, 255]), shape=st.integers(0, 2))
@pytest.mark.parametrize("name", [*GEOMETRY, "all"])
def test_image_and_mask_stay_aligned(name, seed, ignore, shape):
    image, mask = blocks(*[(96, 120), (120, 96), (97, 97)][shape])
    if name == "all":
        augment = Augment(**{step: getattr(always(step), step) for step in GEOMETRY} | OFF)
    else:
        augment = always(name)
    warped, labels = augment(image, mask, rng(seed), ignore)
    known = warped[..., 2] > 0.9999  # nothing from outside
    sure = away_from_edges(labels) & known
    assert sure.sum() > 500
    assert np.abs(warped[sure][:, :2] * 3 - labels[sure][:, None]).max() < 1e-4
    # Where three quarters are from outside there is no label; at the border either may be.
    assert (labels[warped[..., 2] < 0.2499] == 255).all()


OFF = dict.fromkeys(COLOUR)


def test_an_image_and_a_mask_move_by_the_same_half_pixels():
    # A ramp whose value is its column: the label under each warped pixel is the rounded value.
    columns = np.arange(101, dtype=np.int32)
    mask = np.tile(columns, (51, 1))
    image = np.dstack([mask / 100, mask / 100, np.ones_like(mask)]).astype(np.float32)
    for step in (
        {"rotation": (1, 7, 7)},
        {"scale": (1, 1.17, 1.17)},
        {"shift": (1, 0.123, 0.123)},
        {"crop": (1, 0.73, 0.73)},
        {"shear": (1, 5.3, 5.3)},
    ):
        warped, labels = only(**step)(image, mask, rng(), 255)
        known = warped[..., 2] > 0.9999
        distance = (warped[..., 0] * 100 - labels)[known]
        assert known.sum() > 1000
        assert np.abs(distance).max() < 0.5 + 1 / 16  # some OpenCVs round to 1/32 pixel
        assert "shift" in step or np.abs(distance.mean()) < 0.05


def test_geometry_does_what_its_name_says():
    image, mask = a_scene()
    assert np.array_equal(always("flip")(image, mask, rng())[0], image[:, ::-1])
    assert np.array_equal(always("flip")(image, mask, rng())[1], mask[:, ::-1])
    assert np.array_equal(always("vertical_flip")(image, mask, rng())[0], image[::-1])
    assert np.array_equal(always("vertical_flip")(image, mask, rng())[1], mask[::-1])

    mask = np.zeros((40, 60), np.int32)
    mask[10:30, 20:40] = 1  # a square in the middle
    image = np.zeros((40, 60, 1), np.float32)

    def moved(**step):
        return only(**step)(image, mask, rng(), 255)[1]

    bigger = moved(scale=(1, 1.5, 1.5))
    assert (bigger == 1).sum() == 900 and (bigger[5:35, 15:45] == 1).all()
    smaller = moved(scale=(1, 0.5, 0.5))
    assert (smaller == 1).sum() == 100 and (smaller == 255).sum() == 40 * 60 - 20 * 30
    assert np.array_equal(moved(rotation=(1, 180, 180)), mask)
    shifted = moved(shift=(1, 0.1, 0.1))  # 6 pixels right, 4 down
    assert (shifted[14:34, 26:46] == 1).all() and (shifted[:4] == 255).all()
    assert (shifted[:, :6] == 255).all() and (shifted[4:, 6:] != 255).all()
    cropped = moved(crop=(1, 0.5, 0.5))
    assert (cropped != 255).all() and (cropped == 1).sum() > (mask == 1).sum() * 1.5
    slanted = moved(shear=(1, 45, 45))
    # With 45 degrees a row moves by its distance from the centre, which is row 19.5.
    assert np.flatnonzero(slanted[29] == 1).tolist() in ([*range(29, 49)], [*range(30, 50)])
    assert (slanted[29, :9] == 255).all() and (slanted[29, 10:29] == 0).all()


def test_rotation_is_counterclockwise():
    mask = np.zeros((41, 41), np.int32)
    mask[20, 35] = 1  # right of the centre
    image = mask[..., None].astype(np.float32)
    _, turned = only(rotation=(1, 90, 90))(image, mask, rng())
    assert np.argwhere(turned).tolist() == [[5, 20]]  # above


def test_a_crop_lies_anywhere_inside():
    mask = np.arange(100 * 100, dtype=np.int32).reshape(100, 100)
    image = np.zeros((100, 100, 1), np.float32)
    corners = np.array(
        [only(crop=(1, 0.5, 0.5))(image, mask, rng(seed), 65535)[1][0, 0] for seed in range(200)]
    )
    rows, columns = corners // 100, corners % 100
    for places in (rows, columns):
        assert places.min() <= 2 and 47 <= places.max() <= 50
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2


def test_outside_is_ignored_and_black_or_else_reflected():
    image, mask = np.full((20, 20, 3), 0.5, np.float32), np.ones((20, 20), np.int32)
    augment = only(shift=(1, 0.5, 0.5))
    warped, labels = augment(image, mask, rng(), 255)
    assert (labels[:10] == 255).all() and (warped[:9] == 0).all()
    assert (labels[10:, 10:] == 1).all() and (warped[11:, 11:] == 0.5).all()
    warped, labels = augment(image, mask, rng(), None)
    assert (labels == 1).all() and (warped == 0.5).all()
    _, labels = augment(image, mask, rng(), 0)
    assert (labels[:10] == 0).all()
    _, labels = augment(image, mask, rng(), -1)
    assert (labels[:10] == -1).all()


def test_no_step_and_flips_copy_pixels_exactly():
    image, mask = a_scene()
    kept = image.copy(), mask.copy()
    same, labels = only()(image, mask, rng())
    assert np.array_equal(same, image) and np.array_equal(labels, mask)
    assert not np.shares_memory(same, image) and not np.shares_memory(labels, mask)
    turned, _ = only(flip=1, vertical_flip=1)(image, mask, rng())
    assert np.array_equal(turned, image[::-1, ::-1])
    every_step()(image, mask, rng(), 255)
    assert np.array_equal(kept[0], image) and np.array_equal(kept[1], mask)


@pytest.mark.parametrize("name", COLOUR)
def test_colour_leaves_the_mask_alone(name):
    image, mask = a_scene()
    changed, labels = always(name)(image, mask, rng())
    assert np.array_equal(labels, mask) and not np.array_equal(changed, image)
    assert changed.min() >= 0 and changed.max() <= 1 and changed.dtype == np.float32


def test_colour_follows_its_formulas():
    image, mask = a_scene()
    image = 0.3 + image * 0.3  # nothing is cut

    def changed(**step):
        return only(**step)(image, mask, rng())[0]

    def close(result, expected):
        np.testing.assert_allclose(result, expected, atol=1e-6)

    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    close(changed(brightness=(1, 0.1, 0.1)), image + 0.1)
    close(changed(contrast=(1, 1.5, 1.5)), (image - image.mean()) * 1.5 + image.mean())
    close(changed(saturation=(1, 0.25, 0.25)), grey + 0.25 * (image - grey))
    close(changed(saturation=(1, 0, 0)), np.repeat(grey, 3, -1))
    close(changed(hue=(1, 1 / 3, 1 / 3)), image[..., [2, 0, 1]])  # red becomes green
    close(changed(blur=(1, 2, 2)).mean(), image.mean())
    assert changed(blur=(1, 2, 2)).std() < image.std() / 3
    noise = changed(noise=(1, 0.02, 0.02)) - image
    assert abs(noise.std() - 0.02) < 0.001 and abs(noise.mean()) < 0.002
    # All in the order of the fields.
    step = {
        "brightness": (1, 0.1, 0.1),
        "contrast": (1, 0.8, 0.8),
        "saturation": (1, 0.5, 0.5),
        "hue": (1, 0.05, 0.05),
    }
    expected = image + 0.1
    expected = (expected - expected.mean()) * 0.8 + expected.mean()
    expected = expected @ saturation_matrix(0.5).T @ hue_matrix(0.05).T
    close(changed(**step), expected)


def test_colour_matrices_keep_grey():
    for matrix in (saturation_matrix(1.7), hue_matrix(0.3)):
        np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-12)
    rotation = hue_matrix(0.3)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_grey_images_skip_saturation_and_hue():
    image, mask = a_scene(channels=1)
    for name in ("saturation", "hue"):
        assert np.array_equal(always(name)(image, mask, rng())[0], image)
    for name in set(STEPS) - {"saturation", "hue"}:
        changed, labels = always(name)(image, mask, rng(), 255)
        assert changed.shape == image.shape and labels.shape == mask.shape


def test_black_and_white_stay_in_range():
    for value in (0, 1):
        image, mask = np.full((8, 8, 3), value, np.float32), np.zeros((8, 8), np.int32)
        for seed in range(20):
            changed = every_step()(image, mask, rng(seed))[0]
            assert changed.min() >= 0 and changed.max() <= 1


def displacements(seed, height=99, width=129, sigma=4.0):
    """How far the elastic deformation moves each pixel, (x, y): read off two ramps."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    moved = []
    for ramp in (columns, rows):
        image = (ramp / 200 + 0.1)[..., None]
        warped = only(elastic=(1, sigma, sigma))(image, np.zeros(ramp.shape, int), rng(seed), 255)[
            0
        ]
        moved.append((warped[..., 0] - 0.1) * 200 - ramp)
    return np.stack(moved, axis=-1)


def test_the_elastic_deformation_is_normal_on_a_grid_of_3_by_3():
    # Rows 16, 49, 82 and columns 21, 64, 107 are the middles of thirds.
    grids = np.stack([displacements(seed)[16::33, 21::43] for seed in range(40)])
    inner = grids[:, 1, 1]  # never from outside
    assert grids.shape == (40, 3, 3, 2)
    assert 3 < inner.std() < 5 and abs(inner.mean()) < 1.5
    assert abs(np.corrcoef(inner[:, 0], inner[:, 1])[0, 1]) < 0.4


def test_the_elastic_deformation_is_bicubic_between_the_points_of_its_grid():
    found = displacements(3)[10:89, 12:117]
    grid = displacements(3)[16::33, 21::43]

    def weights(length):  # of the three points, for each pixel: cubic convolution, a = -0.75
        places = (np.arange(length) + 0.5) * 3 / length - 0.5
        near = np.floor(places).astype(int)
        total = np.zeros((length, 3))
        for offset in range(-1, 3):
            t = np.abs(places - near - offset)
            inner = 1.25 * t**3 - 2.25 * t**2 + 1
            outer = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            np.add.at(
                total,
                (np.arange(length), (near + offset).clip(0, 2)),
                np.where(t <= 1, inner, outer),
            )
        return total

    expected = np.einsum("ya,xb,abc->yxc", weights(99), weights(129), grid)[10:89, 12:117]
    rows, columns = np.mgrid[10:89, 12:117]
    old = np.stack([columns, rows], axis=-1) + expected
    inside = ((old > 1) & (old < (127, 97))).all(axis=-1)  # where pixels come from
    assert inside.mean() > 0.9
    # Some OpenCVs round to 1/32 pixel, here and at the points of the grid.
    assert np.abs(found - expected)[inside].max() < 0.1


def test_the_elastic_deformation_leaves_noise_and_blur_as_they_were():
    image, mask = np.full((24, 36, 3), 0.5, np.float32), np.zeros((24, 36), np.int32)
    with_all, without = every_step(), Augment(**(vars(every_step()) | {"elastic": None}))
    for seed in range(5):
        assert np.array_equal(
            with_all(image, mask, rng(seed))[0], without(image, mask, rng(seed))[0]
        )


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(STEPS))
def test_a_step_that_is_off_leaves_the_others_as_they_were(seed, name):
    # The strengths of all other steps are equal, whether `name` is on or off.
    with_all, without = every_step(), Augment(**(vars(every_step()) | {name: None}))
    drawn = dict(zip(STEPS, rng(seed).random((len(STEPS), 3)), strict=True))
    for other in set(STEPS) & set(LIMITS) - {name}:
        assert with_all._strength(other, drawn) == without._strength(other, drawn)
    # And so are pixels: without noise the image before noise is what it was with it.
    image, mask = a_scene()
    if name in COLOUR:
        assert np.array_equal(
            with_all(image, mask, rng(seed), 255)[1], without(image, mask, rng(seed), 255)[1]
        )


def test_probabilities_are_met():
    image, mask = a_scene()
    for name in STEPS:
        half = always(name)
        half = only(**{name: (0.3, *getattr(half, name)[1:]) if name in LIMITS else 0.3})
        changed = 0
        for seed in range(300):
            result = half(image, mask, rng(seed))
            changed += not (np.array_equal(result[0], image) and np.array_equal(result[1], mask))
        assert 60 <= changed <= 120, name  # 90 expected; 60 and 120 are 3.8 deviations away


def test_the_result_depends_on_the_generator_only():
    image, mask = a_scene()
    first, again, other = (every_step()(image, mask, rng(seed), 255) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    code = (
        "import hashlib, numpy as np; from test_data_augment import a_scene, every_step, rng;"
        "r = every_step()(*a_scene(), rng(3), 255);"
        "print(hashlib.sha256(r[0].tobytes() + r[1].tobytes()).hexdigest())"
    )
    folder = os.path.dirname(__file__)
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert printed == hashlib.sha256(first[0].tobytes() + first[1].tobytes()).hexdigest()


def test_results_are_contiguous_writable_and_typed():
    image, mask = a_scene()
    for augment in (only(), only(flip=1), every_step(), always("noise"), always("scale")):
        changed, labels = augment(image, mask, rng(), 255)
        assert changed.flags.c_contiguous and labels.flags.c_contiguous
        assert changed.flags.writeable and labels.flags.writeable
        assert (changed.dtype, labels.dtype) == (np.float32, np.int32)


def test_text_and_pickle_round_trip():
    for augment in (Augment(), only(flip=0.5), every_step(), only(noise=(0.1, 0, 0.5))):
        assert pickle.loads(pickle.dumps(augment)) == augment
        words = [
            f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in dataclasses.asdict(augment).items()
            if value
        ]
        assert Augment.parse(" ".join(words)) == augment


def test_parse_reads_texts():
    assert Augment.parse("default") == Augment() and Augment.parse(" none ") is None
    extended = Augment.parse("default elastic=1,4,4 flip=0")
    assert extended == dataclasses.replace(Augment(), elastic=(1, 4, 4), flip=0)
    parsed = Augment.parse("flip=0.5  brightness=0.5,-0.2,0.2 blur=0")
    assert parsed == only(flip=0.5, brightness=(0.5, -0.2, 0.2))
    assert parsed.noise is None and parsed.vertical_flip == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "augmentation is empty"),
        ("flop=0.5", "'flop=0.5' is not understood"),
        ("flip", "'flip' is not understood"),
        ("flip=half", "'flip=half' is not understood"),
        ("flip=0.1 flip=0.2", "each at most once"),
        ("flip=0.5,1,2", "flip is"),
        ("scale=0.5", "scale is 0.5; expected"),
        ("scale=0.5,0.8", r"scale is \[0.5, 0.8\]; expected \(probability, low, high\)"),
        ("none default", "'none' is not understood"),
    ],
)
def test_parse_refuses_what_it_cannot_read(text, message):
    with pytest.raises(ValueError, match=message):
        Augment.parse(text)


@pytest.mark.parametrize(
    "steps, message",
    [
        ({"flip": 1.5}, "flip is 1.5; expected a probability, 0 to 1"),
        ({"flip": True}, "flip is True"),
        ({"flip": "0.5"}, "flip is '0.5'"),
        ({"vertical_flip": float("nan")}, "vertical_flip is nan"),
        ({"scale": (2, 0.8, 1.2)}, "scale has probability 2.0; expected 0 to 1"),
        ({"scale": (0.5, 1.2, 0.8)}, "scale goes from 1.2 to 0.8; expected low <= high"),
        ({"scale": (0.5, 0, 1)}, "scale goes from 0.0 to 1.0; expected low <= high, within 0.01"),
        ({"crop": (0.5, 0.5, 1.5)}, "crop goes from 0.5 to 1.5; .* within 0.01 to 1"),
        ({"noise": (0.5, -0.1, 0.1)}, "noise goes from -0.1"),
        ({"blur": (0.5, 1)}, r"blur is \(0.5, 1\); expected \(probability, low, high\)"),
        ({"hue": (0.5, 0, float("inf"))}, "hue is"),
        ({"shear": (0.5, -90, 90)}, "within -80 to 80"),
        ({"elastic": 10}, r"elastic is 10; expected \(probability, low, high\)"),
        ({"elastic": (1, -10, 10)}, "elastic goes from -10.0 to 10.0; .* within 0 to 1000"),
        ({"rotation": "ten"}, "rotation is 'ten'"),
    ],
)
def test_wrong_settings_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        Augment(**steps)


def test_wrong_shapes_are_refused():
    image, mask = a_scene()
    for wrong in ((image[..., 0], mask), (image[..., :2], mask), (image, mask[:-1])):
        with pytest.raises(ValueError, match="image has shape .* expected"):
            Augment()(*wrong, rng())
