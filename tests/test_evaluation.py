"""An evaluated run: its figures, its table, its page in a real browser."""

import base64
import csv
import io
import json
import re

import keras
import numpy as np
import pytest
from browser import BROWSER, brightness, browse
from PIL import Image

from keras_segen import backend, metrics, runs
from keras_segen.data import arrays
from keras_segen.data.dataset import Dataset
from keras_segen.report.html import image_source
from keras_segen.runs import training
from keras_segen.segmentation import evaluate
from keras_segen.segmentation.evaluate import confusion_matrix, count
from keras_segen.tasks.segmentation import SegmentationTask


@pytest.fixture(scope="module")
def run(picture_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    plan = SegmentationTask(
        data=f"folder:{picture_folder}",
        image_size=(16, 16),
        filters=(4, 8),
        batch_size=4,
        epochs=1,
        loss="cross_entropy+dice",
    )
    training.train(plan, folder, verbose=0)
    return folder


@pytest.fixture(scope="module")
def result(run):
    return runs.evaluate(run, "test", batch_size=3).figures


@pytest.fixture(scope="module")
def dataset(run):
    return SegmentationTask.from_json(run / "run.json").load_data("test")


def lookup(scores):
    """A model that reads its logits off the images: pixel value v has the logits `scores[v]`."""
    scores = np.array(scores, "float32")
    inputs = keras.Input((None, None, 1))
    table = keras.layers.Embedding(*scores.shape, name="table")
    outputs = table(keras.ops.cast(keras.ops.round(inputs[..., 0] * 255), "int32"))
    model = keras.Model(inputs, outputs)
    table.set_weights([scores])
    return model


def scenes(count=7, num_classes=3):
    """Images whose pixel value is the class that `lookup` predicts; more wrong from left to right.

    Item i has i % 4 wrong columns of 8 and a void row.
    """
    generator = np.random.default_rng(0)
    predicted = generator.integers(0, num_classes, (count, 8, 8))
    masks = predicted.copy()
    for index in range(count):
        masks[index, :, : index % 4] = (masks[index, :, : index % 4] + 1) % num_classes
    masks[:, 0] = 255
    return arrays(predicted.astype("uint8"), masks, ignore_class=255), predicted


def test_measure_counts_what_the_metrics_count_on_the_whole():
    dataset, predicted = scenes()
    model = lookup(3 * np.eye(3))
    masks = np.stack([mask for _, mask in dataset])
    expected = metrics.confusion_matrix(masks, predicted, 3, 255)
    boundaries = sum(
        metrics.boundary_counts(mask, classes, 3, 255)
        for mask, classes in zip(masks, predicted, strict=True)
    )
    share = metrics.probabilities(3 * np.eye(3)[predicted])
    for batch_size in (1, 3, 8):
        counts = count(model, dataset, batch_size)
        np.testing.assert_array_equal(counts.matrix, expected)
        np.testing.assert_array_equal(counts.boundaries, boundaries)
        np.testing.assert_array_equal(counts.bins, metrics.calibration_bins(masks, share, 255))
    np.testing.assert_array_equal(confusion_matrix(model, dataset, batch_size=4), expected)


def test_worst_images_come_first_and_only_so_many_are_kept():
    dataset, predicted = scenes()
    model = lookup(np.eye(3))
    scores = [
        metrics.mean_iou(metrics.confusion_matrix(mask, classes, 3, 255))
        for (_, mask), classes in zip(dataset, predicted, strict=True)
    ]
    order = sorted(range(7), key=lambda index: (scores[index], index))
    worst = count(model, dataset, batch_size=2, num_worst=3).worst
    assert [each.index for each in worst] == order[:3]
    assert [each.mean_iou for each in worst] == [scores[index] for index in order[:3]]
    for each in worst:
        np.testing.assert_array_equal(each.predicted, predicted[each.index])
    assert len(count(model, dataset, batch_size=2).worst) == 7


def test_an_image_that_is_void_all_over_is_none_of_the_worst():
    dataset, _ = scenes()
    dataset.masks[2] = 255
    worst = count(lookup(np.eye(3)), dataset, batch_size=4).worst
    assert sorted(each.index for each in worst) == [0, 1, 3, 4, 5, 6]


def test_one_channel_is_the_logit_of_class_one():
    dataset, predicted = scenes(num_classes=2)
    one = count(lookup([[-2.0], [2.0]]), dataset, batch_size=4)
    two = count(lookup([[2.0, 0.0], [0.0, 2.0]]), dataset, batch_size=4)
    np.testing.assert_array_equal(one.matrix, two.matrix)
    np.testing.assert_allclose(one.bins, two.bins, atol=1e-3)
    assert one.matrix.sum() == 7 * 56


def test_evaluation_keeps_no_logits(monkeypatch):
    """Of a long split no more than one batch of logits is alive at a time."""
    alive, most = set(), []

    class Logits(np.ndarray):
        def __array_finalize__(self, source):
            pass

        def __del__(self):
            alive.discard(id(self))

    infer = backend.infer

    def watched(model, images):
        logits = infer(model, images).view(Logits)
        alive.add(id(logits))
        most.append(len(alive))
        return logits

    monkeypatch.setattr(backend, "infer", watched)
    dataset, _ = scenes(count=24)
    count(lookup(np.eye(3)), dataset, batch_size=2)
    assert len(most) == 12 and max(most) <= 2


def test_figures_follow_from_the_counts(result, dataset):
    matrix = np.array(result["confusion_matrix"])
    assert matrix.sum() == sum(int((mask != dataset.ignore_class).sum()) for _, mask in dataset)
    assert result["mean_iou"] == metrics.mean_iou(matrix)
    assert list(result["class_recall"].values()) == pytest.approx(
        metrics.recall_per_class(matrix), nan_ok=True
    )
    assert result["class_pixels"] == dict(
        zip(dataset.class_names, dataset.pixel_counts().tolist(), strict=True)
    )
    counts = np.array(result["boundary_counts"])
    assert counts[:, 0].sum() > 0 and (counts[:, 1] <= counts[:, 0]).all()
    assert result["mean_boundary_f"] == metrics.mean_of_present(metrics.boundary_f_score(counts))
    bins = np.array(result["calibration_bins"])
    assert bins[:, 0].sum() == matrix.sum() and bins[:, 1].sum() == np.trace(matrix)
    assert result["expected_calibration_error"] == metrics.expected_calibration_error(bins)
    assert 0 < result["expected_calibration_error"] < 1
    assert result["model_sha256"] and len(result["worst"]) == 4
    scores = [entry["mean_iou"] for entry in result["worst"]]
    assert scores == sorted(scores)


def test_json_and_table_say_what_was_returned(run, result):
    text = (run / "evaluation-test.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == result
    with open(run / "evaluation-test.csv", newline="", encoding="utf-8") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(result["class_iou"])
    for name, row in rows.items():
        for column in ("iou", "dice", "precision", "recall", "boundary_f", "pixels"):
            value = result[f"class_{column}"][name]
            assert row[column] == ("" if value is None else str(value))


def test_page_needs_nothing_but_itself(run, result):
    page = (run / "evaluation-test.html").read_text("utf-8")
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 4 * 4 and all(s.startswith("data:image/webp") for s in sources)
    assert not re.search(
        r'<script|https?://(?!www\.w3\.org)|url\((?!#)|(href|src)="(?!data:|#)', page
    )
    assert not re.search(r"\b(nan|NaN|None|undefined)\b", re.sub(r"data:[^\"]*", "", page))
    for name in result["class_iou"]:
        assert name in page
    worst = result["worst"][0]
    assert f"Worst: {worst['name']}" in page
    assert f"{worst['most']['truth']} taken for {worst['most']['predicted']}" in page


class Hostile(Dataset):
    """Noise, and names that would like to be markup."""

    def __init__(self, length, shape):
        names = ['<script>alert("1")</script>', "$\\frac{", "_x"]
        super().__init__("<b>noise", "test", names, ignore_class=255, image_shape=shape)
        self.length = length

    def __len__(self):
        return self.length

    def read(self, index):
        generator = np.random.default_rng(index)
        image = generator.random(self.image_shape, "float32")
        return image, generator.integers(0, 3, self.image_shape[:2]).astype("int32")

    def item_name(self, index):
        return f"<img src=x>{index}"


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    dataset = Hostile(30, (40, 60, 3))
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, inputs * 1.0)
    found = evaluate(model, dataset, batch_size=6)
    found.subject, found.settings = "<i>unet", {"data": "folder:<u>"}
    path = tmp_path_factory.mktemp("hostile") / "evaluation-test.html"
    path.write_text(found.page(), "utf-8")
    return path


def test_page_escapes_names_and_holds_a_bounded_number_of_pictures(hostile_page):
    page = hostile_page.read_text("utf-8")
    assert "<script" not in page and "<img src=x>" not in page and "<b>noise" not in page
    assert "<i>unet" not in page and "<u>" not in page
    assert page.count("<img ") == 24 * 4  # of 30 images


def test_pictures_of_the_page_are_small():
    noise = np.random.default_rng(0).integers(0, 256, (500, 2000, 3), "uint8")
    source = image_source(noise, max_side=320)
    assert source.startswith("data:image/webp;base64,") and len(source) < 60_000
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert image.size == (320, 80)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_is_quiet_in_a_browser(run, result, hostile_page, scheme, tmp_path):
    page = run / "evaluation-test.html" if scheme == "light" else hostile_page
    seen, log = browse(page, tmp_path, (400, 1600), scheme)
    assert "CONSOLE" not in log, log
    for frame in seen:
        assert frame["width"] <= frame["inner"], frame["wide"]
        assert frame["hidden"] == [] and frame["height"] < 6000
        assert frame["requests"] == [] and frame["broken"] == 0
        assert (brightness(frame["background"]) < 60) == (scheme == "dark")
        assert (brightness(frame["ink"]) > 180) == (scheme == "dark")
        assert frame["chart"] == frame["ink"]


def test_typical_and_best_images_are_found_among_many():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (9, 6, 6))
    images = np.where(rng.random(masks.shape) < np.linspace(0.1, 0.9, 9)[:, None, None], masks, 0)
    dataset = arrays(np.uint8(images)[..., None], masks)
    model = lookup(np.eye(3))
    found = count(model, dataset, batch_size=4, num_worst=2)
    scores = [
        metrics.mean_iou(metrics.confusion_matrix(mask, image, 3))
        for mask, image in zip(masks, images, strict=True)
    ]
    order = np.argsort(scores, kind="stable").tolist()
    assert [each.index for each in found.typical] == order[3:5]
    assert [each.index for each in found.best] == order[-1:]
    for each in (*found.typical, *found.best):
        assert each.mean_iou == scores[each.index]
        np.testing.assert_array_equal(each.predicted, images[each.index])
