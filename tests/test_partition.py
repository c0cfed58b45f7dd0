"""Objects held against true ones: against scikit-image, and by hand."""

import numpy as np
import pytest
import skimage.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

from keras_segen.data.instances import instance_of
from keras_segen.segmentation import adapted_rand_error, components, variation_of_information
from keras_segen.segmentation.components import find_objects
from keras_segen.segmentation.partition import Partition

pytestmark = pytest.mark.once

PLANES = random_arrays(np.int32, (7, 9), elements=st.sampled_from([0, 1, 2, 9]))


@settings(max_examples=100)
@given(true=PLANES, found=PLANES)
def test_figures_are_those_of_scikit_image(true, found):
    if max(np.bincount(true[true > 0]), default=0) < 2:
        return  # no pair of pixels belongs together: scikit-image divides by 0
    with np.errstate(invalid="ignore"):  # precision and recall, which are not asked for here
        expected = skimage.metrics.adapted_rand_error(true, found, ignore_labels=(0,))[0]
    assert adapted_rand_error(true, found) == pytest.approx(expected, abs=1e-12)
    expected = skimage.metrics.variation_of_information(true, found, ignore_labels=(0,))
    assert variation_of_information(true, found) == pytest.approx(expected, abs=1e-9)


def test_without_objects_there_is_nothing_to_measure():
    nothing = np.zeros((4, 4), int)
    assert np.isnan(adapted_rand_error(nothing, nothing + 1))
    assert np.isnan(variation_of_information(nothing, nothing + 1)).all()
    counted = Partition()
    counted.add([], [], np.zeros((4, 4), bool))
    figures = counted.figures()
    assert np.isnan(figures["adapted_rand_error"]) and np.isnan(figures["instance_f1"])
    assert figures["true_objects"] == figures["merged_objects"] == 0


def boxes(*corners, class_id=1, score=None, crowd=False):
    """Instances, rectangles (top, left, bottom, right) in an image of 10 x 20."""
    found = []
    for top, left, bottom, right in corners:
        mask = np.zeros((10, 20), bool)
        mask[top:bottom, left:right] = True
        found.append(instance_of(mask, class_id, "thing", score, crowd))
    return found


def test_merged_split_and_lost_objects_are_counted():
    void = np.zeros((10, 20), bool)
    true = boxes((0, 0, 4, 4), (0, 5, 4, 9), (5, 0, 10, 10), (6, 12, 10, 16))
    found = boxes((0, 0, 4, 9), (5, 0, 10, 6), (5, 6, 10, 10), (0, 12, 3, 15), score=0.9)
    counted = Partition()
    assert counted.add(found, true, void) == {0}  # the first one merges two
    figures = counted.figures()
    # Only half of the split one has an IoU above 0.5: 30 of 50 pixels.
    assert (figures["true_objects"], figures["found_objects"]) == (4, 4)
    assert figures["merged_objects"] == 2 and figures["instance_f1"] == pytest.approx(2 / 8)
    planes = np.zeros((2, 10, 20), int)
    for plane, some in zip(planes, (true, found), strict=True):
        for number, each in enumerate(some, 1):
            plane[each.mask] = number
    assert figures["adapted_rand_error"] == adapted_rand_error(*planes)
    split, merged = variation_of_information(*planes)
    assert figures["variation_split"] == split > 0 and figures["variation_merged"] == merged > 0
    assert figures["variation_of_information"] == split + merged

    counted.add(true, true, void)  # a second image, all right: means of the two
    assert counted.figures()["adapted_rand_error"] == figures["adapted_rand_error"] / 2
    assert counted.figures()["instance_f1"] == pytest.approx(2 * 5 / 16)


def test_classes_void_and_crowds_count_as_they_should():
    void = np.zeros((10, 20), bool)
    true = boxes((0, 0, 4, 4)) + boxes((0, 10, 10, 20), crowd=True)
    other = boxes((0, 0, 4, 4), class_id=2, score=0.5)
    counted = Partition()
    counted.add(other, true, void)
    assert counted.figures()["instance_f1"] == 0 and counted.figures()["adapted_rand_error"] == 0
    counted = Partition()
    in_crowd = boxes((0, 0, 4, 4), (2, 12, 6, 16), score=0.5)
    counted.add(in_crowd, true, void)
    assert counted.figures()["instance_f1"] == 1 and counted.figures()["found_objects"] == 1
    void[:, 2:4] = True  # half of the object
    counted = Partition()
    counted.add(boxes((0, 0, 4, 2), score=0.5), true, void)
    assert counted.figures()["instance_f1"] == 1


def test_components_are_connected_side_by_side():
    classes = np.array([[1, 0, 2, 2], [0, 1, 2, 0], [1, 1, 0, 2]])
    assert components(classes, [1, 2], min_pixels=1).tolist() == [
        [1, 0, 3, 3],
        [0, 2, 3, 0],
        [2, 2, 0, 4],
    ]
    assert components(classes, [2], min_pixels=2).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]
    assert components(classes, []).dtype == np.uint16 and not components(classes, []).any()


def test_objects_grow_into_their_rim_until_they_meet():
    classes = np.zeros((5, 12), int)
    classes[1:4, 1:4], classes[1:4, 7:11], classes[0, 4:7] = 1, 1, 2
    rim = np.zeros(classes.shape, bool)
    rim[2], rim[0] = True, True
    grown = components(classes, [1], min_pixels=1, rim=rim)
    assert grown[2].tolist() == [1] * 6 + [2] * 6  # no further than 2 pixels
    assert grown[3].tolist() == [0, 1, 1, 1, 0, 0, 0, 2, 2, 2, 2, 0]  # not in the rim
    both = components(classes, [1, 2], min_pixels=1, rim=rim)
    assert both[0, 4:7].tolist() == [3] * 3  # what is of an object already stays its own
    assert not components(np.zeros((5, 12), int), [1], rim=rim).any()
    far = np.zeros((1, 9), int)
    far[0, 0] = 1
    assert components(far, [1], 1, np.ones((1, 9), bool)).tolist() == [[1, 1, 1] + [0] * 6]


def test_more_objects_than_16_bits_hold_are_refused():
    dots = np.zeros((600, 600), np.uint8)
    dots[::2, ::2] = 1
    with pytest.raises(ValueError, match="90,000 objects, and a plane of 16 bits holds 65,534"):
        components(dots, [1], min_pixels=1)


def test_found_objects_have_class_box_and_mean_probability():
    classes = np.zeros((10, 12), int)
    classes[1:5, 1:5], classes[7:10, 2:10] = 2, 1
    probabilities = np.full((10, 12, 3), 0.25)
    probabilities[1:5, 1:5, 2], probabilities[1, 1, 2] = 0.8, 0.2
    probabilities[7:10, 2:10, 1] = 0.5
    first, second = find_objects(classes, probabilities, (1, 2), ("a", "b"))
    assert (first.class_id, first.name, first.area) == (2, "b", 16)
    assert first.score == pytest.approx(0.8 - 0.6 / 16) and second.score == 0.5
    assert second.box.tolist() == [2, 7, 10, 10] and second.class_id == 1
    np.testing.assert_array_equal(second.mask, classes == 1)
    probabilities[5, 2:4, 2] = 0.4
    grown = find_objects(classes, probabilities, (1, 2), ("a", "b"), rim_above=0.6)
    assert [each.area for each in grown] == [18, 24]  # 0.25 + 0.4 are above
    assert [each.score for each in grown] == [first.score, second.score]
