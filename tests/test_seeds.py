"""What the frameworks change, told apart from what the seeds change."""

import numpy as np
import pytest
import scipy.stats

from keras_segen.compare import report, seeds
from keras_segen.compare.run import run
from keras_segen.intervals import mean_interval
from keras_segen.tasks import GanTask, SegmentationTask

pytestmark = pytest.mark.once

NAMES = ("TensorFlow", "PyTorch")


def metrics(first, second):
    """Of seeds 3, 4, …; None where a training failed."""
    return {
        backend: {
            3 + k: {"mean_iou": value, "mean_dice": None}
            for k, value in enumerate(values)
            if value is not None
        }
        for backend, values in (("tensorflow", first), ("torch", second))
    }


def summarize(first, second):
    return seeds.summarize(SegmentationTask.figures, metrics(first, second))


def claim(found):
    return seeds.claim(found["rows"][0], SegmentationTask.figures["mean_iou"], NAMES)


def test_an_interval_of_a_mean_is_students():
    values = [0.2, 0.5, 0.1, 0.9]
    found = mean_interval(values, 0.9)
    low, high = scipy.stats.t.interval(0.9, 3, np.mean(values), scipy.stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-6)


def test_differences_are_those_at_the_same_seed():
    found = summarize([0.5, 0.6, 0.4, 0.7], [0.51, 0.62, 0.41, None])
    assert found["seeds"] == [3, 4, 5] and found["backends"] == ["tensorflow", "torch"]
    (row,) = found["rows"]  # no Dice was measured
    assert row["difference"]["value"] == pytest.approx(0.04 / 3)
    deviations = [np.std([0.5, 0.6, 0.4], ddof=1), np.std([0.51, 0.62, 0.41], ddof=1)]
    assert row["between_seeds"] == pytest.approx(np.sqrt(np.mean(np.square(deviations))))
    assert summarize([0.5, None], [0.5, 0.6]) is None


def test_an_effect_is_claimed_only_if_the_differences_point_one_way():
    told = claim(summarize([0.5, 0.6, 0.4], [0.52, 0.58, 0.41]))
    assert told.startswith("over 3 seeds no effect of the framework on mean IoU can be told")
    told = claim(summarize([0.5, 0.6, 0.4], [0.51, 0.612, 0.411]))
    assert "has an effect on mean IoU, within that of the seed: PyTorch less" in told
    told = claim(summarize([0.5, 0.51, 0.49], [0.61, 0.622, 0.601]))
    assert "larger than that of the seed: PyTorch less TensorFlow is 0.1110" in told


def test_the_report_shows_them():
    content = {
        "status": "passed",
        "experiment": SegmentationTask().to_dict(),
        "backends": {"tensorflow": {}, "torch": {}},
        "seeds": summarize([0.5, 0.6, 0.4], [0.52, 0.58, 0.41]),
    }
    assert "another seed changes it by 0.0934" in report.verdict(content)
    table = report.seeds_table(report.complete(content))
    assert [text for _, text in table.shown[0]][1:3] == ["0.5000 ± 0.1000", "0.5033 ± 0.0862"]
    assert not report.seeds_table(report.complete({**content, "seeds": None})).rows


@pytest.mark.parametrize(
    "task, options",
    [
        (GanTask(), {"num_seeds": 0}),
        (GanTask(), {"num_seeds": 2, "backends": ("torch",)}),
        (SegmentationTask(precision="float64"), {"num_seeds": 2, "parity_steps": 1}),
    ],
)
def test_seeds_need_trainings_to_compare(task, options, tmp_path):
    with pytest.raises(ValueError, match="seeds is [02], expected 1, or more for a training"):
        run(task, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
