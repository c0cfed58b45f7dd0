"""Average precision against pycocotools, and by hand."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_segen.data import Shapes
from keras_segen.segmentation.average_precision import AREAS, AveragePrecision, match, overlaps

pytestmark = pytest.mark.once

SIZE, NUM_CLASSES = 300, 6
CROWD, NEVER = 5, 6  # a class with crowds, and one that is nowhere


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def scene(index):
    """A drawn scene and what a detector might have found in it: pairs of dicts of arrays."""
    generator = np.random.default_rng(index)
    scenes = Shapes("val", size=SIZE, length=index + 1)
    _, classes = scenes[index]
    numbers = scenes.instances(index)
    true = [numbers == number for number in range(1, numbers.max() + 1)]
    classes = [int(classes[mask][0]) for mask in true]
    truth = {
        "masks": np.array(true),
        "boxes": np.array([box_of(mask) for mask in true], "float64"),
        "classes": np.array(classes),
        "crowd": np.array([k == CROWD and generator.random() < 0.5 for k in classes]),
    }
    found = {name: [] for name in ("masks", "boxes", "classes", "scores")}
    for mask, k in zip(true, classes, strict=True):
        for _ in range(generator.integers(0, 17)):
            # Moved, grown or shrunk, of another class now and then; scores with ties.
            step = int(generator.exponential(3))
            moved = np.roll(mask, generator.integers(-step, step + 1, 2), axis=(0, 1))
            again = np.roll(moved, step, axis=step % 2)
            moved = moved | again if generator.random() < 0.5 else moved & again
            moved = moved if moved.any() else mask
            found["masks"].append(moved)
            found["boxes"].append(np.array(box_of(moved)) + generator.normal(0, 2, 4) * (step > 0))
            found["classes"].append(k if generator.random() < 0.8 else generator.integers(1, 6))
            found["scores"].append(round(generator.random(), 2))
    if index == 0:  # more than count
        for name in found:
            found[name] *= 8
    arrays = {name: np.array(values) for name, values in found.items()}
    return {**arrays, "scores": arrays["scores"].astype("float64")}, truth


@pytest.fixture(scope="module")
def scenes():
    return [scene(index) for index in range(45)]


def by_pycocotools(scenes, kind, with_areas):
    """Precision, scores and recall in our order of axes, and the twelve figures."""
    annotations, results = [], []
    for image, (found, truth) in enumerate(scenes, start=1):
        for n, k in enumerate(truth["classes"]):
            x1, y1, x2, y2 = truth["boxes"][n]
            mask = truth["masks"][n]
            area = mask.sum() if kind == "masks" or with_areas else (x2 - x1) * (y2 - y1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(k),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": rle.encode(np.asfortranarray(mask, "uint8")),
                    "area": float(area),
                    "iscrowd": int(truth["crowd"][n]),
                }
            )
        for n, k in enumerate(found["classes"]):
            result = {"image_id": image, "category_id": int(k), "score": float(found["scores"][n])}
            if kind == "boxes":
                x1, y1, x2, y2 = found["boxes"][n]
                result["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                result["segmentation"] = rle.encode(np.asfortranarray(found["masks"][n], "uint8"))
            results.append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": n + 1, "height": SIZE, "width": SIZE} for n in range(len(scenes))],
            "categories": [{"id": k} for k in range(1, NUM_CLASSES + 1)],
            "annotations": annotations,
            "info": {},
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "segm" if kind == "masks" else "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    order = 2, 3, 4, 0, 1  # thresholds, recalls, classes, areas, limits
    precision, scores = (judge.eval[name].transpose(order) for name in ("precision", "scores"))
    recall = judge.eval["recall"].transpose(1, 2, 3, 0)
    scores = np.where(precision == -1, -1, scores)
    return len(results), [precision, scores, recall], judge.stats


NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NAMES += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


@pytest.mark.parametrize("kind, with_areas", [("masks", True), ("boxes", False), ("boxes", True)])
def test_average_precision_is_that_of_pycocotools(scenes, kind, with_areas):
    counter = AveragePrecision(NUM_CLASSES, kind)
    for found, truth in scenes:
        if with_areas:
            truth = {**truth, "areas": truth["masks"].sum(axis=(1, 2))}
        counter.add(found, truth)
    count, expected, stats = by_pycocotools(scenes, kind, with_areas)
    found = [np.where(np.isnan(values), -1, values) for values in counter.curves()]
    differences = [np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]
    figures = counter.figures()
    differences.append(np.abs(np.array([figures[name] for name in NAMES]) - stats).max())
    print(f"AP of {count} {kind}: at most {max(differences):.1e} from pycocotools")
    assert count > 2000
    assert max(differences) < 1e-9
    assert min(stats) > 0.05 and max(stats[:8]) < 0.95  # each figure is tested by something
    assert np.isnan(figures["class_AP"][NEVER - 1])
    assert np.nanmean(figures["class_AP"]) == pytest.approx(figures["AP"])
    assert np.nanmean(figures["class_AP50"]) == pytest.approx(figures["AP50"])


def squares(*corners, side=10):
    return np.array([[x, y, x + side, y + side] for x, y in corners], "float64").reshape(-1, 4)


def judged(found, scores, true, crowd=None):
    counter = AveragePrecision(1, "boxes")
    truth = {"boxes": true, "classes": np.ones(len(true))}
    if crowd is not None:
        truth["crowd"] = np.array(crowd)
    counter.add({"boxes": found, "classes": np.ones(len(found)), "scores": scores}, truth)
    return counter


def test_average_precision_by_hand():
    true = squares((0, 0), (20, 0), (40, 0), (60, 0))
    # Hit, false alarm, hit; two are missed: precision 1 up to recall 1/4, then 2/3 up to 1/2.
    found = squares((0, 0), (0, 50), (20, 0))
    figures = judged(found, np.array([0.9, 0.8, 0.7]), true).figures()
    expected = (26 * 1 + 25 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP_small"):
        assert figures[name] == pytest.approx(expected)
    assert figures["AR100"] == 0.5 and figures["AR1"] == 0.25
    assert np.isnan(figures["AP_large"])


def test_the_order_of_scores_counts_not_that_of_the_list():
    true, found = squares((0, 0)), squares((0, 50), (0, 0))
    assert judged(found, np.array([0.2, 0.8]), true).figures()["AP"] == pytest.approx(1)
    assert judged(found, np.array([0.8, 0.2]), true).figures()["AP"] == pytest.approx(0.5)


def test_a_second_find_of_an_object_is_a_false_alarm_but_not_of_a_crowd():
    true, found = squares((0, 0), (30, 0)), squares((0, 0), (0, 0), (30, 0), (30, 0), (30, 0))
    scores = np.arange(5, 0, -1) / 10
    twice = judged(found, scores, true).curves()[0][0, 0, -1, 0]
    assert twice[[0, 50]] == pytest.approx(1) and twice[-1] == pytest.approx(2 / 3)
    crowded = judged(found, scores, true, crowd=[False, True]).curves()[0][0, 0, -1, 0]
    assert np.all(crowded == pytest.approx(1))


def test_images_with_nothing_found_or_nothing_true_count():
    nothing = np.zeros((0, 4))
    assert judged(nothing, np.zeros(0), squares((0, 0))).figures()["AP"] == 0
    assert np.isnan(judged(squares((0, 0)), np.ones(1), nothing).figures()["AP"])
    counter = judged(squares((0, 0)), np.array([0.5]), squares((0, 0)))
    alarm = {"boxes": squares((0, 0)), "classes": np.array([1]), "scores": np.array([0.9])}
    counter.add(alarm, {"boxes": nothing, "classes": np.zeros(0)})
    assert counter.figures()["AP"] == pytest.approx(0.5)


def test_curves_have_the_scores_of_their_points():
    true, found = squares((0, 0), (20, 0)), squares((0, 0), (20, 0))
    precision, scores, recall = judged(found, np.array([0.9, 0.6]), true).curves()
    assert precision.shape == scores.shape == (1, len(AREAS), 3, 10, 101)
    assert scores[0, 0, -1, 0, [0, 50, 51, 100]].tolist() == [0.9, 0.9, 0.6, 0.6]
    assert recall.shape == (1, len(AREAS), 3, 10) and recall[0, 0, -1, 0] == 1


def test_overlaps_of_masks_are_those_of_their_pixels():
    generator = np.random.default_rng(0)
    found, true = generator.random((3, 9, 8)) < 0.5, generator.random((2, 9, 8)) < 0.5
    crowd = np.array([False, True])
    expected = [
        [(d & true[0]).sum() / (d | true[0]).sum(), (d & true[1]).sum() / d.sum()] for d in found
    ]
    np.testing.assert_allclose(overlaps(found, true, crowd), expected, atol=1e-12)


def test_a_find_takes_the_real_object_before_the_ignored_one():
    hits, ignored = match(
        np.array([[0.6, 0.9], [0.9, 0.9]]),
        crowd=np.array([False, False]),
        ignored=np.array([[False, True]]),
    )
    assert hits[0, 0].tolist() == [True, True]
    assert ignored[0, 0].tolist() == [False, True]


def test_of_objects_that_are_overlapped_alike_the_last_is_taken():
    # As pycocotools does: the second find then has none left.
    nothing = np.array([False, False])
    hits, _ = match(np.array([[0.6, 0.6], [0.0, 0.6]]), crowd=nothing, ignored=nothing[None])
    assert hits[0, 0].tolist() == [True, False]


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'dots', expected 'masks' or 'boxes'"):
        AveragePrecision(1, "dots")
