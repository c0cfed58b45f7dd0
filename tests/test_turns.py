"""Which backend is faster: what is measured by turns, and what may be said of it."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from keras_segen.compare import turns
from keras_segen.intervals import ratio_interval
from keras_segen.tasks import SegmentationTask

pytestmark = pytest.mark.once


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=12), st.floats(0.8, 0.99))
def test_an_interval_is_students(ratios, confidence):
    found = ratio_interval(np.ones(len(ratios)), ratios, confidence)
    logs = np.log(ratios)
    error = logs.std(ddof=1) / np.sqrt(len(logs))
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * error
    assert found["value"] == pytest.approx(np.exp(logs.mean()))
    assert found["low"] == pytest.approx(np.exp(logs.mean() - half), rel=1e-6)
    assert found["high"] == pytest.approx(np.exp(logs.mean() + half), rel=1e-6)


def cell(low, high, work="train", batch_size=8, busy=0.0):
    ratio = {"value": (low * high) ** 0.5, "low": low, "high": high, "rounds": 7}
    ms = {"tensorflow": {"median": 1.0}, "torch": {"median": 2.0}}
    return {
        "work": work,
        "batch_size": batch_size,
        "ms": ms,
        "ratio": ratio,
        "others_busy": busy,
    }


def test_a_winner_is_named_with_its_interval():
    assert turns.claim(cell(1.2, 1.3)) == (
        "TensorFlow trains 1.25 times as fast as PyTorch (95 % interval 1.20 to 1.30, 7 rounds, "
        "batch 8)"
    )
    assert turns.claim(cell(1 / 1.3, 1 / 1.2, "predict")).startswith(
        "PyTorch predicts 1.25 times as fast as TensorFlow (95 % interval 1.20 to 1.30"
    )


@pytest.mark.parametrize("interval", [(0.9, 1.1), (1.0, 1.2), (1.02, 1.2), (0.8, 0.98), (0.5, 1.0)])
def test_no_winner_is_named_where_the_interval_is_near_to_equal(interval):
    assert turns.claim(cell(*interval)).startswith("neither trains faster by more than")


def test_no_winner_is_named_on_a_busy_machine():
    speed = {"cells": [cell(1.2, 1.3), cell(1.2, 1.3, "predict", busy=0.9)]}
    (claim,) = turns.claims(speed)
    assert claim == ("which one is faster cannot be told: other programs kept 0.9 processors busy")


def test_the_largest_batch_speaks():
    speed = {"cells": [cell(1.2, 1.3), cell(2.0, 2.1, batch_size=16)]}
    (claim,) = turns.claims(speed)
    assert "batch 16" in claim
    assert turns.claims({"cells": []}) == []


def test_a_backend_that_fails_is_named(tmp_path):
    (tmp_path / "torch").mkdir()
    task = SegmentationTask(filters=(2, 4), image_size=(8, 8), data="folder:nowhere")
    found = turns.take_turns(task, tmp_path, ("torch",), 1, seconds=1)
    assert "nowhere" in found["errors"]["torch"] and found["cells"] == []
