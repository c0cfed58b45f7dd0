"""Ours against networks written by hand: the same numbers, and no time without them."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_segen import data
from keras_segen.bench import handwritten
from keras_segen.bench import native as overhead
from keras_segen.data.loader import Batches

TINY = {
    "unet": {"image_size": (16, 16), "filters": (4, 8), "batch_size": 4},
    "fcn": {"image_size": (40, 33), "filters": (4, 4, 4, 4, 4, 8), "batch_size": 2},
    "vae": {"image_size": (16, 16), "filters": (4, 8), "batch_size": 8},
    "dcgan": {"image_size": (16, 16), "filters": (8, 16), "batch_size": 16},
}


def tiny(network, kind=None, **options):
    make = kind or overhead.NETWORKS[network]
    return make(network, **{**TINY[network], **options})


def prove(contest, steps=10):
    dataset = contest.load_data()
    batches = overhead.Stored(dataset, contest.batch_size, steps, contest.seed)
    return overhead.prove(contest, dataset, batches)


@pytest.mark.parametrize("network", overhead.NETWORKS)
def test_equal_to_the_network_written_by_hand(network):
    proof = prove(tiny(network))
    assert proof["steps"] == 10
    assert proof["predictions"] < 1e-5
    assert proof["losses"] < 1e-5
    if network in ("unet", "dcgan"):
        assert 0 < proof["statistics"] < 1e-2
    else:
        assert proof["statistics"] is None


def test_equal_without_void_pixels(picture_folder):
    proof = prove(tiny("unet", data=f"folder:{picture_folder}", batch_size=3), steps=4)
    assert proof["losses"] < 1e-4


def test_equal_in_grey_and_at_other_sizes():
    assert prove(tiny("unet", channels=1, image_size=(8, 24), filters=(4, 6, 8)))["steps"] == 10
    assert prove(tiny("dcgan", channels=1, image_size=(8, 16), filters=(8,)))["steps"] == 10


# Faults of the native side, each of a kind that somebody makes who writes it by hand.


class OtherKernel(overhead.Masks):
    def native(self, dataset, weights, proving=False):
        kernel = weights["up0_upconv/kernel"]
        return super().native(
            dataset, {**weights, "up0_upconv/kernel": kernel[::-1].copy()}, proving
        )


class OtherRate(overhead.Masks):
    def native(self, dataset, weights, proving=False):
        faster = type("Faster", (overhead.Masks,), {"LEARNING_RATE": 2e-3})
        return faster(self.network, **TINY[self.network]).native(dataset, weights, proving)


class OtherNoise(overhead.VAE):
    def _draw(self, step, batch):
        return super()._draw(step + 1, batch)


class OtherAverage(overhead.DCGAN):
    def native(self, dataset, weights, proving=False):
        slower = type("Slower", (overhead.DCGAN,), {"OPTIONS": {"average": 0.01}})
        return slower(self.network, **TINY[self.network]).native(dataset, weights, proving)


class OtherMomentum(overhead.Masks):
    """Remembers ten times as slowly: takes the means of the native side a good part back."""

    def native(self, dataset, weights, proving=False):
        trainer = super().native(dataset, weights, proving)
        found = trainer.weights
        trainer.weights = lambda: {
            name: 0.9 * array if name == "bottom_norm2/moving_variance" else array
            for name, array in found().items()
        }
        return trainer


@pytest.mark.parametrize(
    "network, kind, message",
    [
        ("unet", OtherKernel, r"the prediction at the start at \(\d, .*they differ by"),
        ("unet", OtherRate, "the loss of step 2: .*a relative difference of"),
        ("vae", OtherNoise, "the loss of step 1: "),
        ("dcgan", OtherAverage, "average/start_norm/moving_variance of channel"),
        ("unet", OtherMomentum, "bottom_norm2/moving_variance of channel"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_fault_is_found_and_named(network, kind, message):
    with pytest.raises(ValueError, match=f"part, and no time is shown. Found for {message}"):
        prove(tiny(network, kind))


def test_stored_batches_are_those_of_the_loader_and_go_on_in_the_next_epoch():
    dataset = data.Shapes("train", size=8, length=6)
    stored = overhead.Stored(dataset, 2, steps=5, seed=3)
    expected = Batches(dataset, 2, seed=3)
    for _ in range(2):
        for step, (images, masks) in enumerate(stored.read(0)):
            x, y = expected.batch(*divmod(step, 3))
            assert (images == x).all() and (masks == y).all()
    assert len(stored) == 5
    with pytest.raises(ValueError, match="batch_size is 7, but shapes has 6 images"):
        overhead.Stored(dataset, 7, steps=5, seed=0)


def test_the_first_and_the_last_step_are_not_timed():
    stored = overhead.Stored(data.Shapes("train", size=8, length=6), 2, steps=5, seed=0)
    stored.taken = [0.0, 100.0, 101.0, 104.0, 106.0]
    assert stored.seconds() == 2.0
    next(stored.read(0))
    with pytest.raises(RuntimeError, match="1 of 5 batches"):
        stored.seconds()


def test_a_result_is_written_and_compared_with_the_one_before(tmp_path, read_json):
    contest = tiny("vae")
    first = overhead.run(contest, tmp_path, steps=3, rounds=2)
    (path,) = tmp_path.iterdir()
    assert read_json(path) == first and first["earlier"] is None
    assert [(row["work"], row["side"]) for row in first["rows"]] == [
        ("train", "fit"),
        ("predict", "infer"),
    ]
    for row in first["rows"]:
        assert row["native_ms"]["count"] == row["ours_ms"]["count"] == 2
        assert 0 < row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]

    later = path.with_name("vae-" + first["settings"]["backend"] + "-99991231T235959Z.json")
    later.write_text(json.dumps(first | {"time": "9999-12-31T23:59:59+00:00"}))
    found = overhead.find_earlier(tmp_path, overhead.describe(contest, 3))
    assert found["time"] == "9999-12-31T23:59:59+00:00"
    assert found["ratios"] == {
        "train, fit": first["rows"][0]["ratio"],
        "predict, infer": first["rows"][1]["ratio"],
    }
    assert overhead.find_earlier(tmp_path, overhead.describe(contest, 4)) is None


def test_the_command_measures_twice_and_compares(tmp_path):
    command = [sys.executable, "-m", "keras_segen", "bench", "native", "vae", "--out", tmp_path]
    command += ["--image-size", "8x8", "--filters", "4,8", "--batch-size", "4", "--channels", "1"]
    command += ["--steps", "3", "--rounds", "1"]
    first, second = (
        subprocess.run(
            command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True
        )
        for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "Equal over 3 steps: losses to" in first.stdout and " was " not in first.stdout
    for said in ("image_size [8, 8]", "threads ", "precision float32", "keras 3.", "train, fit"):
        assert said in first.stdout
    assert re.search(r"predict, infer: ratio \d+\.\d{3}, was \d+\.\d{3} on 20", second.stdout)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_is_no_result_is_named_before_anything_is_measured(tmp_path):
    contest = tiny("vae")
    backend = overhead.describe(contest, 3)["backend"]
    (tmp_path / f"vae-{backend}-1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"-1.json has the name of a result .* move it away"):
        overhead.run(contest, tmp_path, steps=3, rounds=1)


def test_what_is_asked_wrongly_is_said():
    with pytest.raises(ValueError, match="no native 'unett'; there are: unet, fcn, vae, dcgan"):
        overhead.contest("unett")
    with pytest.raises(ValueError, match="batch_size is 0"):
        overhead.contest("unet", batch_size=0)
    with pytest.raises(ValueError, match="steps is 2"):
        overhead.run(tiny("unet"), "nowhere", steps=2)


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


def test_steps_take_time():
    """The clock runs while a side works: a slow step is seen, a slow start is not."""
    stored = overhead.Stored(data.Shapes("train", size=8, length=6), 2, steps=5, seed=0)
    seen = [float(np.sum(images)) for images, _ in stored.read(0)]
    assert len(seen) == 5 and stored.seconds() > 0
