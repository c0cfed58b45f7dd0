"""Ours against networks written by hand: the same numbers, and no time without them."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_segen import data
from keras_segen.backend import faster
from keras_segen.bench import contests, handwritten, native, proof
from keras_segen.bench.earlier import find_earlier
from keras_segen.compare.rounds import Held
from keras_segen.data.loader import Batches

TINY = {
    "unet": {"image_size": (16, 16), "filters": (4, 8), "batch_size": 4},
    "fcn": {"image_size": (40, 33), "filters": (4, 4, 4, 4, 4, 8), "batch_size": 2},
    "mask_rcnn": {"image_size": (32, 40), "filters": (4, 4, 8, 8), "batch_size": 2},
    "vae": {"image_size": (16, 16), "filters": (4, 8), "batch_size": 8},
    "dcgan": {"channels": 1, "image_size": (8, 16), "filters": (4, 8), "batch_size": 16},
}


def tiny(network, kind=None, **options):
    make = kind or contests.NETWORKS[network]
    return make(network, **{**TINY[network], **options})


def prove(contest, steps=10):
    dataset = contest.load_data()
    options = {"count": steps, "seed": contest.seed, "drop_last": True}
    return proof.prove(contest, dataset, Held(dataset, contest.batch_size, **options))


@pytest.mark.parametrize("network", contests.NETWORKS)
def test_equal_to_the_network_written_by_hand(network):
    found = prove(tiny(network))
    assert found["steps"] == 10
    assert found["predictions"] < 1e-5
    assert found["losses"] < 1e-5
    if network in ("unet", "mask_rcnn", "dcgan"):
        limit = 0.1 if network == "mask_rcnn" else 1e-2  # few pixels; see `_same_statistics`
        assert 0 < found["statistics"] < limit
    else:
        assert found["statistics"] is None


def test_equal_without_void_pixels_in_grey_and_at_another_size(picture_folder):
    other = {"channels": 1, "image_size": (8, 24), "filters": (4, 6, 8), "batch_size": 3}
    found = prove(tiny("unet", data=f"folder:{picture_folder}", **other), steps=4)
    assert found["losses"] < 1e-4


# Faults of the native side, each of a kind that somebody makes who writes it by hand.


class OtherKernel(contests.SegmentationContest):
    def native(self, dataset, weights, proving=False):
        kernel = weights["up0_upconv/kernel"]
        return super().native(
            dataset, {**weights, "up0_upconv/kernel": kernel[::-1].copy()}, proving
        )


class OtherRate(contests.SegmentationContest):
    def native(self, dataset, weights, proving=False):
        faster = type("Faster", (contests.SegmentationContest,), {"LEARNING_RATE": 2e-3})
        return faster(self.network, **TINY[self.network]).native(dataset, weights, proving)


class OtherMasks(contests.InstanceContest):
    def native(self, dataset, weights, proving=False):
        kernel = weights["mask_head/upconv/kernel"]
        return super().native(
            dataset, {**weights, "mask_head/upconv/kernel": kernel[::-1].copy()}, proving
        )


class OtherSample(contests.InstanceContest):
    def _draw(self, name, step, batch, columns):
        return super()._draw("anchors", step, batch, columns)


class OtherNoise(contests.VaeContest):
    def _draw(self, step, batch):
        return super()._draw(step + 1, batch)


class OtherAverage(contests.DcganContest):
    def native(self, dataset, weights, proving=False):
        slower = type("Slower", (contests.DcganContest,), {"OPTIONS": {"average": 0.01}})
        return slower(self.network, **TINY[self.network]).native(dataset, weights, proving)


class OtherMomentum(contests.SegmentationContest):
    """Remembers ten times as slowly: takes the means of the native side a good part back."""

    def native(self, dataset, weights, proving=False):
        trainer = super().native(dataset, weights, proving)
        found = trainer.weights
        trainer.weights = lambda: {
            name: 0.9 * array if name == "bottom_norm2/moving_variance" else array
            for name, array in found().items()
        }
        return trainer


@pytest.mark.once
@pytest.mark.parametrize(
    "network, kind, message",
    [
        ("unet", OtherKernel, r"the prediction at the start at \(\d, .*they differ by"),
        ("unet", OtherRate, "the loss of step 2: .*a relative difference of"),
        ("mask_rcnn", OtherMasks, r"the prediction at the start, masks, at \(\d, .*differ by"),
        ("mask_rcnn", OtherSample, "the loss of step 1: "),
        ("vae", OtherNoise, "the loss of step 1: "),
        ("dcgan", OtherAverage, "average/start_norm/moving_variance of channel"),
        ("unet", OtherMomentum, "bottom_norm2/moving_variance of channel"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_fault_is_found_and_named(network, kind, message):
    with pytest.raises(ValueError, match=f"part, and no time is shown. Found for {message}"):
        prove(tiny(network, kind))


def test_held_batches_are_those_of_the_loader_and_go_on_in_the_next_epoch():
    dataset = data.Shapes("train", size=8, length=6)
    held = Held(dataset, 2, count=5, seed=3)
    expected = Batches(dataset, 2, seed=3)
    for _ in range(2):
        for step, (images, masks) in enumerate(held.read(0)):
            x, y = expected.batch(*divmod(step, 3))
            assert (images == x).all() and (masks == y).all()
    assert len(held) == len(held.moments) == 5
    with pytest.raises(ValueError, match="has 6 items, the batch size is 7 and the last"):
        Held(dataset, 7, count=5, seed=0, drop_last=True)


def test_the_first_and_the_last_step_are_not_timed():
    held = Held(data.Shapes("train", size=8, length=6), 2, count=5, seed=0)
    held.moments = [(0.0, 0.0), (100.0, 50.0), (101.0, 51.5), (104.0, 53.0), (106.0, 59.0)]
    assert held.per_step() == (2.0, 3.0)
    next(held.read(0))
    with pytest.raises(RuntimeError, match="1 of 5 batches"):
        held.per_step()


@pytest.mark.once
def test_the_clock_runs_while_a_side_works():
    """A slow step is seen; a slow start and what comes after the last batch are not."""
    held = Held(data.Shapes("train", size=8, length=6), 2, count=5, seed=0)
    for pause, slow_steps in ((0.3, (0, 4)), (0.3, (1, 2, 3))):
        for step, _ in enumerate(held.read(0)):
            time.sleep(pause if step in slow_steps else 0)
        assert (held.per_step()[0] >= pause) == (slow_steps == (1, 2, 3))


@pytest.mark.once
def test_a_result_is_written_and_compared_with_the_one_before(tmp_path, read_json):
    contest = tiny("vae")
    before = {"time": "2026-11-22T00:00:00+00:00", "versions": {}}
    before["settings"] = native.conditions(contest, 3)
    before["rows"] = [{"work": "train", "side": "fit", "ratio": 1.5}]
    earlier = tmp_path / f"vae-{before['settings']['backend']}-20261122T000000Z.json"
    earlier.write_text(json.dumps(before))
    result = native.run(contest, tmp_path, steps=3, rounds=2)
    (path,) = (each for each in tmp_path.iterdir() if each != earlier)
    assert read_json(path) == result
    assert result["earlier"]["time"] == before["time"]
    assert result["earlier"]["ratios"] == {"train, fit": 1.5}
    assert [(row["work"], row["side"]) for row in result["rows"]] == [
        ("train", "stock"),
        ("train", "fit"),
        ("predict", "stock"),
        ("predict", "infer"),
    ]
    for row in result["rows"]:
        assert row["native_ms"]["count"] == row["keras_ms"]["count"] == 2
        assert 0 < row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]
    assert [proven["steps"] for proven in result["proofs"]] == [3, 3]
    other = native.conditions(contest, 4)
    pattern = f"vae-{other['backend']}-*.json"
    assert find_earlier(tmp_path, pattern, other, native.ratios, "bench native") is None

    earlier.write_text("{}")
    with pytest.raises(ValueError, match="result of `bench native`, but is none"):
        native.run(contest, tmp_path, steps=3, rounds=1)


class Watched(contests.SegmentationContest):
    """Notes for each of its models what is replaced in Keras when it is built, traced or run."""

    seen = {}  # model -> set of active replacements

    def build(self, dataset, side="fit", proving=False):
        model = super().build(dataset, side, proving)
        seen = self.seen.setdefault(model, {self.replaced()})

        def watch(own):
            def watched(*args, **options):
                seen.add(self.replaced())
                return own(*args, **options)

            return watched

        model.compute_loss, model.call = watch(model.compute_loss), watch(model.call)
        return model

    @staticmethod
    def replaced():
        return frozenset(faster.active()) - {"freed_memory"}


def test_stock_keras_is_built_traced_and_run_without_replacements():
    contest = tiny("unet", Watched)
    dataset = contest.load_data()
    batches = Held(dataset, 4, count=3, seed=0, drop_last=True)
    faster.apply("adam")
    try:
        rows = native.take_times(contest, dataset, batches, rounds=2)
        assert "adam" in faster.active()
    finally:
        faster.remove("adam")
    stock, *others = Watched.seen.values()
    assert stock == {frozenset()}
    assert len(others) == 2 and all(seen == {frozenset(["adam"])} for seen in others)
    assert [row["side"] for row in rows] == ["stock", *contest.SIDES, "stock", "infer"]


@pytest.mark.once
def test_the_command_prints_a_table(tmp_path):
    command = [sys.executable, "-m", "keras_segen", "bench", "native", "vae", "--out", tmp_path]
    command += ["--image-size", "8x8", "--filters", "4,8", "--batch-size", "4", "--channels", "1"]
    command += ["--steps", "3", "--rounds", "1", "--backend", "torch"]
    done = subprocess.run(
        command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for said in ("Equal over 3 steps: losses to", "image_size [8, 8]", "threads ", "keras 3."):
        assert said in done.stdout
    assert re.search(r"Keras, ms +native, ms +ratio +p10 to p90", done.stdout)
    assert re.search(r"predict, infer( +\d+\.\d){2} +(\d+\.\d{3}) +\2 to \2", done.stdout)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_table_shows_what_an_earlier_result_said():
    row = {"ratio": 1.25, "ratio_p10": 1.0, "ratio_p90": 1.5}
    row |= {"keras_ms": {"median": 20.0}, "native_ms": {"median": 16.0}}
    rows = [{"work": "train", "side": side, **row} for side in ("fit", "fit with metrics")]
    earlier = {"time": "2026-11-22T00:00:00+00:00", "ratios": {"train, fit": 1.5}}
    shown = [text for _, text in native.table({"rows": rows, "earlier": None}).shown[0]]
    assert shown == ["train, fit", "20.0", "16.0", "1.250", "1.000 to 1.500"]
    table = native.table({"rows": rows, "earlier": earlier})
    assert table.columns[-1].heading == "ratio on 2026-11-22"
    assert [row[-1][1] for row in table.shown] == ["1.500", "–"]


def test_what_is_asked_wrongly_is_said():
    with pytest.raises(ValueError, match="no native 'unett'; there are: unet, fcn, mask_rcnn, vae"):
        contests.contest("unett")
    with pytest.raises(ValueError, match="batch_size is 0"):
        contests.contest("unet", batch_size=0)
    with pytest.raises(ValueError, match="steps is 2"):
        native.run(tiny("unet"), "nowhere", steps=2)


def test_each_file_imports_its_framework_alone():
    for path in Path(handwritten.__file__).parent.glob("t*_*.py"):
        framework = path.stem.split("_")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.split(".")[0])
                if node.module.startswith("keras_segen"):
                    assert node.module.startswith("keras_segen.bench.handwritten")
                    names = {node.module.split(".")[-1], *(alias.name for alias in node.names)}
                    other = {"tensorflow": "torch_", "torch": "tensorflow_"}[framework]
                    assert not any(name.startswith(other) for name in names)
        assert framework in modules or path.stem == "torch_fcn", path
        assert modules <= {framework, "copy", "math", "numpy", "re", "keras_segen"}, path
