"""The comparison starts both backends itself, so it runs once, under the first."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from keras_segen.compare import checks
from keras_segen.compare.run import notes, run
from keras_segen.tasks import GanTask, SegmentationTask

pytestmark = pytest.mark.once

MASKS, PICTURES = SegmentationTask(), GanTask()
SMALL = ("compare", "unet", "--data", "shapes", "--filters", "4,8", "--epochs", "1")
SMALL += ("--image-size", "16x16", "--batch-size", "4", "--time", "0")


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "keras_segen", *map(str, arguments)],
        env={**os.environ, "KERAS_MAX_STEPS_PER_EPOCH": "24", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "out"
    options = ("--parity", "--parity-steps", 3, "--seeds", 2)
    process = start(*SMALL, *options, "--out", folder)
    output, errors = process.communicate(timeout=600)
    return folder, process.returncode, output + errors


def test_both_backends_train_the_same_model(compared):
    folder, code, output = compared
    result = report(folder)
    assert code == 0 and result["status"] == "passed", output
    measured = {check["name"]: check["measured"] for check in result["checks"]}
    assert measured["initial weights"] == measured["batches"] == 0
    assert measured["logits before training"] <= checks.OUTPUT_TOLERANCE
    assert measured["loss over the first 20 steps"] <= 1e-3
    assert len(result["hand_over"]) == 2 and all(row["passed"] for row in result["hand_over"])
    assert len(result["loss_difference"]) == 24


def test_the_report_tells_what_each_backend_cost(compared):
    folder, _, output = compared
    result = report(folder)
    for backend in ("tensorflow", "torch"):
        found = result["backends"][backend]
        threads = [found["settings"][kind] for kind in ("threads", "inter-op threads")]
        assert threads == [os.cpu_count()] * 2
        assert len(found["losses"]["loss"]) == 24 == found["steps_per_epoch"]
        assert found["history"]["loss"] == [pytest.approx(np.mean(found["losses"]["loss"]))]
        assert found["milliseconds"]["step"]["median"] > 0
        assert found["memory_mib"]["peak_resident"] > 100
        assert found["others_busy"] >= 0
        assert 0 <= found["metrics"]["mean_iou"] <= 1
        assert (folder / backend / "model.keras").exists()
    assert (folder / "predictions.png").exists()
    assert "report.html" in output
    assert result["speed"] is None
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_further_seeds_are_trained_on_each_backend(compared):
    folder, _, output = compared
    found = report(folder)["seeds"]
    assert found["seeds"] == [0, 1] and {row["figure"] for row in found["rows"]} == {
        *SegmentationTask.figures
    }
    other = json.loads((folder / "seeds" / "1" / "torch" / "result.json").read_text())
    values = found["rows"][0]["values"]["torch"]
    assert values[1] == other["metrics"]["mean_iou"] != values[0]
    assert "over 2 seeds" in " ".join(output.split())


def test_other_programs_that_were_busy_are_told():
    assert notes({}) == notes({"torch": {"others_busy": 0.1}}) == []
    (note,) = notes({"tensorflow": {"others_busy": 0.04}, "torch": {"others_busy": 1.26}})
    assert "0.0 while TensorFlow trained and 1.3 while PyTorch trained" in note


def test_the_backends_are_equal_to_rounding_layer_by_layer(compared):
    folder, _, output = compared
    parity = report(folder)["parity"]
    assert parity["passed"] and parity["num_steps"] == 3
    assert parity["backends"] == ["tensorflow", "torch"]
    names = [layer["name"] for layer in parity["layers"]]
    assert names[:3] == ["down0_conv1", "down0_norm1", "down0_relu1"] and names[-1] == "logits"
    for layer in parity["layers"]:
        for kind in ("inference", "training", "gradient", "weights", "statistics"):
            assert layer[kind] is None or layer[kind]["float64"] < 1e-11
    assert max(layer["training"]["difference"] for layer in parity["layers"]) > 0
    text = " ".join(output.split())
    assert f"Equal to rounding in all {len(names)} layers" in text
    least = parity["evidence"]["least_tolerance"]
    assert 0 < least["tolerance"] < 1e-2 and parity["evidence"]["upstream"] is None
    line = "The smallest tolerance that would have been needed: "
    assert line in text and line in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "fields, steps, message",
    [
        ({"precision": "float64"}, 0, "nothing is trained.*--parity"),
        ({"precision": "mixed_bfloat16"}, 2, "'mixed_bfloat16'.*'float32' or 'float64'"),
        ({"dropout": 0.5}, 2, "dropout is 0.5.*dropout=0"),
        ({}, -1, "parity_steps is -1"),
    ],
)
def test_what_cannot_be_compared_layer_by_layer_is_an_error(tmp_path, fields, steps, message):
    with pytest.raises(ValueError, match=message):
        run(SegmentationTask(**fields), tmp_path / "out", parity_steps=steps)
    assert not (tmp_path / "out").exists()


def test_no_training_takes_float64():
    task = SegmentationTask(precision="float64")
    with pytest.raises(ValueError, match="for `compare --parity`"):
        task.build_model(task.load_data("train"))


def test_a_failing_backend_does_not_lose_the_other(tmp_path):
    broken = tmp_path / "broken"
    (broken / "tensorflow").mkdir(parents=True)
    (broken / "tensorflow" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    process = start(*SMALL, "--out", tmp_path / "out", PYTHONPATH=str(broken))
    output, _ = process.communicate(timeout=600)
    result = report(tmp_path / "out")
    assert process.returncode == 1 and result["status"] == "failed"
    assert result["backends"]["torch"]["status"] == "ok"
    assert "broken on purpose" in result["backends"]["tensorflow"]["error"]
    assert "broken on purpose" in output


def test_an_interruption_leaves_no_child_and_keeps_what_there_is(tmp_path):
    """SIGTERM; SIGINT takes the same way, and `bench costs` is tested with it."""
    backends = ("--backends", "torch,tensorflow")
    process = start(*SMALL, *backends, "--out", tmp_path / "out", "--workers", 1)
    children = []
    deadline = time.monotonic() + 300
    result = tmp_path / "out" / "torch" / "result.json"
    while not result.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    while len(children) == 0 and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    found = report(tmp_path / "out")
    assert found["status"] == "interrupted"
    assert found["backends"]["torch"]["metrics"]["mean_iou"] >= 0


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    process = start(*SMALL, "--out", tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "holds no comparison" in errors
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("threads", [0, -1])
def test_a_comparison_needs_a_thread(tmp_path, threads):
    with pytest.raises(ValueError, match=f"threads is {threads}, expected 1 or more"):
        run(SegmentationTask(), tmp_path / "out", threads=threads)
    assert not (tmp_path / "out").exists()


def test_a_comparison_refuses_early_stopping(tmp_path):
    with pytest.raises(ValueError, match="early_stopping is 2.*use early_stopping=0"):
        run(SegmentationTask(early_stopping=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def results():
    """What two backends would have written if they agreed to the last bit."""
    one = {
        "weights_sha256": "aa",
        "parameters": 10,
        "batches_crc32": {"epoch 0, step 0": 1, "epoch 0, step 1": 2},
        "losses": {"loss": [2.0, 1.5, 1.0]},
        "rounding": [1e-7, 1e-7, 1e-7],
    }
    logits = np.zeros((2, 4, 4, 3), "float32")
    logits[..., 0] = 2
    saved = {"first_outputs": logits, "last_outputs": logits, "ids": logits.argmax(-1)}
    return (
        {"a": dict(one), "b": dict(one)},
        {"a": dict(saved), "b": dict(saved)},
        {("a", "b"): dict(saved), ("b", "a"): dict(saved)},
    )


def checked(results, arrays, serving, task=MASKS):
    return checks.checks(results, arrays, checks.hand_over(arrays, serving, task), task)


def failed(*values):
    return [check["name"] for check in checked(*values) if not check["passed"]]


def test_equal_backends_pass_every_check():
    assert failed(*results()) == []
    assert len(checked(*results())) == 6


def test_each_planted_difference_fails_its_check():
    values = results()
    values[0]["b"]["weights_sha256"] = "ab"
    assert failed(*values) == ["initial weights"]

    values = results()
    values[0]["b"]["batches_crc32"] = {"epoch 0, step 0": 1, "epoch 0, step 1": 3}
    assert failed(*values) == ["batches"]

    values = results()
    values[1]["b"]["first_outputs"] = values[1]["b"]["first_outputs"] + np.float32(2e-4)
    assert failed(*values) == ["logits before training"]

    values = results()
    values[0]["b"]["losses"] = {"loss": [2.0, 1.5, 1.002]}
    (check,) = [check for check in checked(*values) if not check["passed"]]
    assert check["measured"] == pytest.approx(0.002, rel=0.01)
    assert check["tolerance"] == 1e-3
    assert "step 3 is the first beyond it" in check["note"]
    for rounding in values[0].values():
        rounding["rounding"] = [1e-7, 2e-4, 1e-7]  # what one of them does by itself
    assert failed(*values) == []

    values = results()
    values[2]["a", "b"]["ids"] = values[2]["a", "b"]["ids"].copy()
    values[2]["a", "b"]["ids"][0, 0, 0] = 1
    assert failed(*values) == ["a model run on b"]


def test_differing_pictures_fail_a_generators_checks():
    one = {
        **results()[0]["a"],
        "losses": {"d_loss": [1.4, 1.2, 1.0], "g_loss": [None, 1e-6, 0.5]},
        "rounding": [1e-7, 1e-7, None],
    }
    saved = dict.fromkeys(("first_outputs", "last_outputs"), np.full((2, 4, 4, 3), 0.5, "float32"))

    def failed(b=(), served=()):
        found = checked(
            {"a": one, "b": {**one, **dict(b)}},
            {"a": saved, "b": saved},
            {("a", "b"): {**saved, **dict(served)}},
            PICTURES,
        )
        assert found[2]["name"] == "pictures of the same codes before training"
        return [check["name"] for check in found if not check["passed"]]

    assert failed() == []
    apart = saved["last_outputs"] + np.float32(2e-4)
    assert failed(served={"last_outputs": apart}) == ["a model run on b"]
    # The loss of G at step 2 is nearly 0: what counts is how large the losses of the step are.
    assert failed(b={"losses": {**one["losses"], "g_loss": [None, 5e-5, 0.5]}}) == []
    name = ["d_loss and g_loss over the first 3 steps"]
    assert failed(b={"losses": {**one["losses"], "g_loss": [None, 1e-6, 0.5003]}}) == name
    assert failed(b={"losses": {**one["losses"], "g_loss": [None, 1e-6, None]}}) == name
    assert failed(b={"losses": {**one["losses"], "g_loss": [0.1, 1e-6, 0.5]}}) == name
    # What one rounding did before on a backend of its own, ten times, is within the tolerance.
    late = {"losses": {**one["losses"], "g_loss": [None, 1e-6, 0.5003]}}
    assert failed(b={**late, "rounding": [1e-7, 5e-5, 1e-7]}) == []
    early = {"losses": {**one["losses"], "d_loss": [1.4006, 1.2, 1.0]}}
    assert failed(b={**early, "rounding": [1e-7, 5e-5, 1e-7]}) == name


@pytest.fixture(scope="module")
def compared_gans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "gans"
    options = ("--filters", "4,8", "--image-size", "8x8", "--batch-size", 8, "--epochs", 1)
    process = start("compare", "dcgan", *options, "--latent-dim", 4, "--time", 0, "--out", folder)
    output, errors = process.communicate(timeout=600)
    return folder, process.returncode, output + errors


def test_both_backends_train_the_same_gan(compared_gans):
    folder, code, output = compared_gans
    result = report(folder)
    assert code == 0 and result["status"] == "passed", output
    measured = {check["name"]: check["measured"] for check in result["checks"]}
    assert measured["initial weights"] == measured["batches"] == 0
    assert 0 < measured["d_loss and g_loss over the first 20 steps"] < 1e-2
    for found in result["backends"].values():
        assert len(found["rounding"]) == 20 and 0 < max(found["rounding"]) < 1e-2
    assert measured["tensorflow model run on torch"] <= checks.OUTPUT_TOLERANCE
    assert 0 < result["disagreement"]["mean"] < result["disagreement"]["largest"] < 0.1
    for found in result["backends"].values():
        assert len(found["losses"]["d_loss"]) == len(found["losses"]["g_loss"]) == 24
        assert found["history"]["g_loss"] == [pytest.approx(np.mean(found["losses"]["g_loss"]))]
        assert found["milliseconds"]["generate"]["median"] > 0
    assert (folder / "predictions.png").exists()
    assert "both went the same way" in " ".join(output.split())


def test_a_missing_batch_is_a_difference():
    assert checks.differing({"epoch 0, step 0": 1}, {}) == 1
