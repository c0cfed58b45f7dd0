"""Touching objects by a network that labels pixels: trained, judged, used."""

import keras
import numpy as np
import pytest
from PIL import Image

from keras_segen import data, plot, runs
from keras_segen.data.borders import boxes
from keras_segen.segmentation import components, evaluate
from keras_segen.tasks import SegmentationTask
from keras_segen.tasks.registry import read


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("touching") / "run"
    task = SegmentationTask(
        data="cells",
        image_size=(32, 32),
        filters=(4, 8),
        epochs=1,
        augment="flip=0.5 elastic=1,2,2",
        border_weight=10,
        border_sigma=3,
        class_weights="median_frequency",
    )
    runs.train(task, folder, verbose=0)
    return folder


def grid(merged):
    """8 x 8 squares of 5 pixels with borders of 1; the first `merged` ones of a row have none.

    Returns:
        A data set of one image, whose pixel values are what `same_classes` predicts.
    """
    numbers = np.zeros((48, 48), np.int32)
    for number in range(64):
        row, column = 6 * (number // 8), 6 * (number % 8)
        numbers[row : row + 5, column : column + 5] = number + 1
    predicted = (numbers > 0).astype(np.uint8)
    predicted[numbers.any(axis=1), : max(6 * merged - 1, 0)] = 1
    truth = (numbers > 0).astype(np.int32)
    return data.arrays(predicted[None, ..., None], truth[None], instances=numbers[None])


def same_classes():
    """A model that reads class 0 or 1 off an image of 0 or 1 (of 255)."""
    images = keras.Input((48, 48, 1))
    layer = keras.layers.Conv2D(2, 1, name="classes")
    model = keras.Model(images, layer(images))
    layer.set_weights([np.array([[[[0.0, 2550.0]]]]), np.array([5.0, 0.0])])
    return model


def test_the_page_says_that_objects_are_merged_where_pixels_look_good():
    good = evaluate(same_classes(), grid(merged=0))
    assert good.figures["adapted_rand_error"] == 0 and good.figures["instance_f1"] == 1
    assert good.figures["mask_ap"] == pytest.approx(1) and not good.warnings

    bad = evaluate(same_classes(), grid(merged=4))
    figures = bad.figures
    assert figures["pixel_accuracy"] > 0.85
    # In each row four squares are one.
    assert (figures["true_objects"], figures["found_objects"]) == (64, 40)
    assert figures["merged_objects"] == 32 and figures["instance_f1"] == pytest.approx(64 / 104)
    assert figures["variation_merged"] == pytest.approx(1) and figures["variation_split"] == 0
    (warning,) = bad.warnings
    assert "and yet 32 of 64 objects are merged with another" in warning
    assert warning in bad.page() and "found objects" in bad.page()
    assert "adapted_rand_error" in bad.sentences[1]


def test_data_without_objects_is_judged_by_pixels_alone():
    scenes = grid(merged=4)
    plain = data.arrays(scenes.images, scenes.masks)
    found = evaluate(same_classes(), plain)
    assert "adapted_rand_error" not in found.figures and len(found.tables) == 1
    assert not found.warnings and "found objects" not in found.page()


def test_a_run_with_border_weights_is_judged_by_objects(run):
    found = runs.evaluate(run, "val")
    assert 0 <= found.figures["adapted_rand_error"] <= 1
    assert found.figures["true_objects"] > 200
    assert (run / "evaluation-val.html").is_file()


def test_photos_become_planes_of_objects(run, tmp_path):
    photo = (255 * data.Cells("test", 48)[0][0]).astype("uint8")
    Image.fromarray(photo).save(tmp_path / "sheet.png")
    written = runs.predict(run, tmp_path / "sheet.png", tmp_path / "out")
    assert written == [tmp_path / "out" / "sheet.png"]
    with Image.open(written[0]) as mask, Image.open(tmp_path / "out/instances/sheet.png") as plane:
        assert plane.mode == "I;16" and plane.size == mask.size == (48, 48)
        numbers, classes = np.array(plane), np.array(mask)
    seeds = components(classes, [1])
    np.testing.assert_array_equal(numbers[seeds > 0], seeds[seeds > 0])
    assert ((numbers > 0) & (seeds == 0)).any()  # the rims, which border weights make too wide


def test_what_has_no_objects_is_no_data_for_border_weights(picture_folder, tmp_path):
    task = SegmentationTask(
        data=f"folder:{picture_folder}", image_size=(16, 16), filters=(4, 8), border_weight=10
    )
    with pytest.raises(ValueError, match="has masks of classes only, and borders"):
        runs.train(task, tmp_path / "run", verbose=0)


@pytest.mark.once
def test_a_task_of_an_earlier_version_has_no_border_weights():
    values = SegmentationTask(data="cells").to_dict()
    del values["border_weight"], values["border_sigma"]
    assert read(values).border_weight == 0


@pytest.mark.once
def test_each_object_has_a_color_of_its_own():
    numbers = np.array([[0, 1, 2, 3]])
    picture = plot.objects(np.full((1, 4, 3), 0.5), numbers)
    assert picture[0, 0].tolist() == [128, 128, 128] or picture[0, 0].tolist() == [127, 127, 127]
    assert len(np.unique(picture[0], axis=0)) == 4
    assert boxes(numbers) == {1: [0, 1, 1, 2], 2: [0, 2, 1, 3], 3: [0, 3, 1, 4]}
