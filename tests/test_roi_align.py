"""ROIAlign against SciPy's interpolation."""

import numpy as np
import pytest
import scipy.ndimage
from keras import ops

from keras_segen import backend
from keras_segen.segmentation.roi_align import crop_instances, levels, roi_align

STRIDES = (4, 8, 16)


def to_numpy(tensor):
    return ops.convert_to_numpy(tensor)


def random_boxes(generator, count, extent=(90, 70)):
    """Of all sizes, some beyond the image."""
    centers = generator.uniform(0, extent, (2, count, 2))
    halves = np.exp(generator.uniform(1, 6, (2, count, 2))) / 2
    return np.concatenate([centers - halves, centers + halves], -1).astype("float32")


def pyramid(generator, channels=3):
    """Levels of images of 70 x 90, rounded up."""
    sizes = [(-(-70 // stride), -(-90 // stride)) for stride in STRIDES]
    return [generator.normal(size=(2, *size, channels)).astype("float32") for size in sizes]


def level_of(box, samples):
    side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    fits = [i for i, stride in enumerate(STRIDES) if side >= 7 * samples * stride]
    return max(fits, default=0)


def points(box, stride, count):
    """Rows and columns of the points of a box in pixels of the level."""
    steps = (np.arange(count) + 0.5) / count
    x, y = ((box[i] + (box[i + 2] - box[i]) * steps) / stride - 0.5 for i in (0, 1))
    return np.meshgrid(y, x, indexing="ij")


@pytest.mark.parametrize("size, samples", [(7, 2), (7, 1), (3, 2)])
def test_roi_align_is_the_mean_of_interpolated_points(size, samples):
    generator = np.random.default_rng(0)
    features, boxes = pyramid(generator), random_boxes(generator, 25)
    found = roi_align(
        [ops.convert_to_tensor(x) for x in features],
        STRIDES,
        ops.convert_to_tensor(boxes),
        size,
        samples,
    )
    assert tuple(found.shape) == (2, 25, size, size, 3)
    used, difference = set(), 0.0
    for (i, n), _ in np.ndenumerate(boxes[..., 0]):
        level = level_of(boxes[i, n], samples)
        used.add(level)
        grid = points(boxes[i, n], STRIDES[level], size * samples)
        for channel in range(3):
            values = scipy.ndimage.map_coordinates(
                features[level][i, ..., channel].astype("float64"), grid, order=1, mode="nearest"
            )
            bins = values.reshape(size, samples, size, samples).mean(axis=(1, 3))
            error = np.abs(to_numpy(found)[i, n, ..., channel] - bins).max()
            difference = max(difference, float(error))
    print(f"ROIAlign {size} x {size}, {samples} samples: at most {difference:.1e} from SciPy's")
    assert used == {0, 1, 2}
    assert difference < 2e-5


def test_levels_follow_the_paper():
    # Equation 1: floor(4 + log2(side / 224)), level 4 at stride 16, level 2 the finest.
    sides = np.array([10, 111, 112, 223, 224, 447, 448, 900, 2000], "float32")
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], -1)
    expected = np.clip(np.floor(4 + np.log2(sides / 224)), 2, 5) - 2
    found = to_numpy(levels(ops.convert_to_tensor(boxes), (4, 8, 16, 32)))
    assert found.tolist() == expected.tolist()
    half = to_numpy(levels(ops.convert_to_tensor(boxes / 2), (4, 8, 16, 32), samples=1))
    assert half.tolist() == expected.tolist()


def test_roi_align_spreads_the_gradient_over_the_pixels_it_read():
    generator = np.random.default_rng(0)
    (features, *_), box = pyramid(generator), np.float32([[[9, 13, 30, 34]]] * 2)

    def fn(x):
        return roi_align([x], (4,), ops.convert_to_tensor(box), 7)

    _, gradient = backend.input_gradient(fn, ops.convert_to_tensor(features))
    gradient = to_numpy(gradient)
    # Each bin is a mean: the slopes of all bins add up to their number.
    np.testing.assert_allclose(gradient.sum(axis=(1, 2)), 49, rtol=1e-5)
    touched = np.argwhere(gradient[0, ..., 0])
    assert touched.min(axis=0).tolist() == [2, 1]
    assert touched.max(axis=0).tolist() == [8, 7]


def test_roi_align_keeps_the_type_of_the_features():
    features = ops.cast(ops.convert_to_tensor(pyramid(np.random.default_rng(0))[0]), "bfloat16")
    found = roi_align(
        [features], (4,), ops.convert_to_tensor(np.float32([[[9, 9, 30, 30]]] * 2)), 7
    )
    assert found.dtype == features.dtype


def test_crop_instances_interpolates_the_mask_of_the_object():
    generator = np.random.default_rng(0)
    planes = generator.integers(0, 3, (2, 5, 6)).repeat(14, 1).repeat(15, 2).astype("int32")
    planes = np.where(planes > 0, 256 * 2 + planes, 0)
    boxes, numbers = random_boxes(generator, 20), generator.integers(1, 3, (2, 20)).astype("int32")
    found = to_numpy(crop_instances(*map(ops.convert_to_tensor, (planes, numbers, boxes)), 28))
    assert found.shape == (2, 20, 28, 28) and found.dtype == "float32"
    for (i, n), number in np.ndenumerate(numbers):
        mask = (planes[i] == 512 + number).astype("float64")
        expected = scipy.ndimage.map_coordinates(
            mask, points(boxes[i, n], 1, 28), order=1, mode="nearest"
        )
        np.testing.assert_allclose(found[i, n], expected, atol=2e-5)
    assert 0.1 < found.mean() < 0.9
