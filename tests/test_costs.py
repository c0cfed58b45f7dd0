"""What a step costs: what is run, what is counted, what is said of it."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import psutil
import pytest
import rich.console
from browser import BROWSER, brightness, browse

from keras_segen.bench import costs, costs_child, costs_report
from keras_segen.bench.earlier import find_earlier
from keras_segen.compare import rounds
from keras_segen.tasks.gan import GanTask
from keras_segen.tasks.segmentation import SegmentationTask
from keras_segen.tasks.vae import VaeTask

HERE = keras.backend.backend()
TINY = {
    "unet": SegmentationTask(filters=(4, 8), image_size=(16, 16), batch_size=2),
    "vae": VaeTask(filters=(4, 8), image_size=(16, 16), batch_size=4, latent_dim=3),
    "dcgan": GanTask(filters=(8, 16), image_size=(16, 16), batch_size=4),
}
COMMAND = [sys.executable, "-m", "keras_segen", "bench", "costs", "unet", "--filters", "4,8"]


def start(*arguments, **environment):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def only_result(folder, read_json):
    (path,) = folder.glob("*.json")
    return read_json(path)


# What is run.


def test_each_backend_runs_the_modes_that_it_has():
    assert costs.choose_modes(["tensorflow", "torch"], ["eager", "xla+float16", "eager"]) == [
        ("tensorflow", "eager"),
        ("tensorflow", "xla+float16"),
        ("torch", "eager"),
    ]
    for backend, mode in costs.choose_modes(["torch", "tensorflow"]):
        assert mode.split("+")[0] in costs.MODES[backend]


def test_modes_mean_what_they_say():
    mixed = costs.in_mode(TINY["unet"], "graph+bfloat16")
    assert mixed.precision == "mixed_bfloat16"
    assert costs.in_mode(TINY["unet"], "graph") == TINY["unet"]
    on = {"run_eagerly": False, "jit_compile": True}
    assert costs.switches("tensorflow", "xla+bfloat16") == costs.switches("torch", "compile") == on
    assert costs.switches("tensorflow", "eager")["run_eagerly"]


@pytest.mark.parametrize(
    "modes, message",
    [
        (["fast"], "no mode 'fast' here; there are, on"),
        (["eager+int8"], "'eager\\+int8' has the precision 'int8', expected bfloat16 or float16"),
        (["eager+"], "the precision ''"),
        ([{"tensorflow": "compile", "torch": "xla"}[HERE]], "no mode .* here"),
    ],
)
def test_a_mode_that_nobody_has_is_an_error(modes, message):
    with pytest.raises(ValueError, match=message):
        costs.choose_modes([HERE], modes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 2}, "steps is 2 and rounds 2, expected at least 3 steps"),
        ({"rounds": 0}, "rounds 0, expected"),
        ({"image_sizes": []}, "no image sizes"),
        ({"batch_sizes": [2, 2]}, r"batch sizes are \[2, 2\]: name each once"),
        ({"batch_sizes": [2, 0]}, "batch_size is 0"),
        ({"batch_sizes": [2, 300]}, "batch_size is 300, .* has 512 images, .* two batches"),
        ({"image_sizes": [(4, 4)]}, r"size is \(4, 4\)"),
        ({"backends": ["jax"]}, "'jax'"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
        (
            {"task": SegmentationTask(model="my.keras"), "modes": ["eager+bfloat16"]},
            "precision is 'mixed_bfloat16', but my.keras is a whole network",
        ),
        ({"task": SegmentationTask(precision="float64")}, "precision is 'float64'"),
    ],
)
def test_what_is_asked_wrongly_is_said_before_a_process_starts(options, message, tmp_path):
    values = {"task": TINY["unet"], "folder": tmp_path, "image_sizes": [(16, 16)]}
    values |= {"batch_sizes": [2], "backends": [HERE], "steps": 3, "rounds": 2}
    told = []
    with pytest.raises(ValueError, match=message):
        costs.run(**{**values, **options}, tell=told.append)
    assert told == [] and not list(tmp_path.iterdir())


# What is counted.


@pytest.mark.parametrize("model", TINY)
def test_a_cell_measures_its_three_works(model):
    cell = costs_child.Cell(TINY[model], costs.switches(HERE, "eager"), steps=4)
    cell.run_round()
    cell.run_round()
    found = cell.figures()
    for work in costs.WORKS:
        assert found[work]["ms"]["count"] == found[work]["cpu_ms"]["count"] == 2
        assert found[work]["ms"]["median"] > 0 and found[work]["cpu_ms"]["median"] > 0
    assert set(found["seconds"]) == {"build", "first_predict", "first_step"}
    assert min(found["seconds"].values()) > 0
    assert found["memory_mib"]["resident"] > 100
    images = np.shape(cell.network.predict_on_batch(cell.inputs))
    assert images[0] == TINY[model].batch_size  # logits, or pictures made of codes
    assert images[1:3] == (16, 16)


@pytest.mark.parametrize("how", [how for how in costs.MODES[HERE] if how != "compile"])
def test_a_mode_is_what_runs(how):
    """Python sees each step of an eager mode, and no step of a graph that is traced already."""
    cell = costs_child.Cell(TINY["unet"], costs.switches(HERE, how), steps=4)
    seen = []
    for model, method in ((cell.model, "compute_loss"), (cell.network, "predict_step")):
        original = getattr(model, method)

        def spy(*args, original=original, method=method, **options):
            seen.append(method)
            return original(*args, **options)

        setattr(model, method, spy)
    cell.train()
    cell.predict()
    expected = ["compute_loss"] * 4 + ["predict_step"] * 4 if how == "eager" else []
    assert seen == expected
    assert cell.network.jit_compile == cell.model.jit_compile == (how == "xla")


def test_a_mode_that_the_model_does_not_support_is_an_error():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.layers[0].supports_jit = False
    model.compile("sgd", loss="mse")
    with (
        pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"),
        pytest.raises(RuntimeError, match="a layer that does not support jit_compile=True"),
    ):
        costs_child.set_mode(model, {"run_eagerly": False, "jit_compile": True})


def test_the_first_step_and_what_comes_after_the_last_are_not_counted():
    moments = [(0.0, 0.0), (100.0, 50.0), (101.0, 51.5), (104.0, 56.0)]
    assert rounds.per_step(moments) == (2.0, 3.0)


def test_one_batch_is_repeated_and_a_portion_ends_early():
    task = TINY["unet"]
    dataset = task.load_data("train")
    repeated = rounds.Held(dataset, 2, seed=0, count=1, steps=5)
    batches = list(repeated.read(0))
    assert len(repeated) == len(batches) == len(repeated.moments) == 5
    assert all((images == batches[0][0]).all() for images, _ in batches)
    portion = rounds.Portion(dataset, 2, seed=0, steps=3)
    portions = [images for images, _ in portion.read(0)]
    assert len(portions) == 3 and (portions[0] == batches[0][0]).all()
    assert (portions[1] != portions[0]).any()
    assert len(rounds.Portion(dataset, 200, seed=0, steps=3, drop_last=True)) == 2


def test_cpu_time_counts_what_child_processes_do():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        alone, together = rounds.now()[1], rounds.now(children=True)[1]
        assert together - alone > 0.25
    finally:
        child.communicate(b"\n")


def test_a_fit_finds_what_a_step_costs():
    sizes = [(area, images) for area in (0.01, 0.04, 0.16) for images in (1, 2, 8)]
    exact = [3 + 0.5 * images + 40 * area * images for area, images in sizes]
    found = costs.fit(sizes, exact)
    assert (found["fixed"], found["per_image"]) == pytest.approx((3, 0.5), rel=1e-6)
    assert found["per_megapixel"] == pytest.approx(40, rel=1e-6)
    assert found["residual"] == pytest.approx(0, abs=1e-9)
    off = [value * (1.1 if number % 2 else 0.9) for number, value in enumerate(exact)]
    assert 0.08 < costs.fit(sizes, off)["residual"] < 0.14


def test_a_fit_tells_only_what_it_can():
    of_sizes = costs.fit([(0.01, 2), (0.04, 2), (0.16, 2)], [2.0, 3.5, 9.5])
    assert of_sizes["per_image"] is None
    assert (of_sizes["fixed"], of_sizes["per_megapixel"]) == pytest.approx((1.5, 25))
    of_batches = costs.fit([(0.01, 1), (0.01, 3)], [2.0, 4.0])
    assert of_batches == {
        "fixed": pytest.approx(1),
        "per_image": None,
        "per_megapixel": pytest.approx(100),
        "residual": None,
    }
    assert costs.fit([(0.01, 2)], [1.0]) is None
    assert costs.fit([(0.01, 4), (0.02, 2)], [1.0, 1.0]) is None  # as many pixels in each
    assert costs.fit([], []) is None


# What is said.


def times(median):
    return {"median": median, "p10": 0.9 * median, "p90": 1.2 * median, "count": 5}


def made_up(status="failed"):
    """A result of three processes and four cells, one of which failed."""
    task = TINY["unet"]
    chosen = [("tensorflow", "graph"), ("torch", "eager"), ("torch", "compile")]
    processes, cells = [], []
    for factor, (backend, mode) in enumerate(chosen, 1):
        processes.append(
            {
                **costs.process(task, backend, mode),
                "imports_seconds": 2.5 * factor,
                "parameters": 1838,
                "settings": {
                    "threads": 2,
                    "inter-op threads": 2,
                    "layout": "channels_last",
                    "device": "CPU",
                    "replacements": "all",
                },
                "auto": False,
            }
        )
        for size, batch_size in (((16, 16), 2), ((16, 16), 4), ((32, 32), 2), ((32, 32), 4)):
            cell = {"backend": backend, "mode": mode, "image_size": list(size)}
            cell["batch_size"] = batch_size
            if mode == "compile":
                cell |= {"error": "InductorError: no <compiler> here", "details": "…"}
            else:
                ms = factor * (5 + size[0] * size[1] * batch_size / 100)
                for work in costs.WORKS:
                    cell[work] = {"ms": times(ms), "cpu_ms": times(1.5 * ms)}
                cell["seconds"] = {"build": 0.5, "first_predict": 1.0, "first_step": 12.25}
                cell["memory_mib"] = {"resident": 600.0 + ms, "device": None}
            cells.append(cell)
    settings = costs.conditions(task, [(16, 16), (32, 32)], [2, 4], chosen, 2, 8)
    return {
        "name": "costs-unet-20261122T000000Z",
        "time": "2026-11-22T00:00:00+00:00",
        "command": "keras-segen bench costs unet --out 'a <b>'",
        "settings": settings,
        "rounds": 5,
        "versions": {"python": "3.13", "keras": "3.15.1", "torch": None},
        "status": status,
        "processes": processes,
        "cells": cells,
        "fits": costs.fit_all(cells),
        "notes": costs.notes(processes, cells),
        "earlier": None,
    }


def printed(result, folder):
    console = rich.console.Console(file=io.StringIO(), width=200)
    costs_report.print_result(result, console, folder)
    return console.file.getvalue()


def test_the_verdict_names_the_least_and_the_most(tmp_path):
    result = made_up()
    assert costs_report.verdict(result) == (
        "unet with 1,838 parameters on 2 threads: at 32x32 and batch 4 a training step takes "
        "46.0 ms with TensorFlow, graph, the least of 2 modes, and 91.9 ms with PyTorch, eager, "
        "the most."
    )
    text = printed(result, tmp_path)
    assert re.search(r"PyTorch, compile, in 4 cells +InductorError: no <compiler> here", text)
    assert re.search(r"32x32, batch 4 +\n.*first step, s +peak, MiB", text)
    assert re.search(r"TensorFlow, graph +46.0 +46.0 +46.0 +12.2 +646 +\n", text)
    assert re.search(r"41.4 to 55.2 +41.4 to 55.2 +41.4 to 55.2 +prediction 1 +\n", text)
    assert "CPU 68.9" in text and "building 0.5" in text
    assert re.search(r"PyTorch, compile +failed +–", text)
    assert re.search(r"Training step +PyTorch, eager +10.0 +\S+ +20,000 +ms +0.0 %", text)
    page = costs_report.page(result)
    assert all(said in page for said in ("12.2<small>prediction 1</small>", "41.4 to 55.2", "646"))
    result["cells"] = [cell for cell in result["cells"] if "error" in cell]
    assert costs_report.verdict(result).endswith("nothing could be measured.")


def test_fits_are_of_each_process_alone():
    fits = {(row["mode"], row["what"]): row for row in made_up()["fits"]}
    assert set(fits) == {(m, w) for m in ("graph", "eager") for w in (*costs.WORKS, "memory")}
    assert fits["graph", "train"]["fixed"] == pytest.approx(5)
    assert fits["eager", "train"]["per_megapixel"] == pytest.approx(2e4)
    assert fits["eager", "memory"]["fixed"] == pytest.approx(610, rel=1e-3)
    assert all(row["cells"] == 4 for row in fits.values())


def test_what_is_not_equal_or_not_quiet_is_said():
    result = made_up()
    assert result["notes"] == []
    result["processes"][1]["settings"]["threads"] = 1
    robbed = result["cells"][2]
    robbed["train"]["cpu_ms"] = times(0.25 * robbed["train"]["ms"]["median"])
    unequal, busy = costs.notes(result["processes"], result["cells"])
    assert unequal.startswith("Not equal: threads (tensorflow, graph: 2; torch, eager: 1;")
    assert busy.startswith("In 1 of 8 cells training steps had the processor for less than 70%")
    assert "least in tensorflow, graph, 32x32, batch 2: 25%" in busy
    for process in result["processes"]:  # a GPU works while the processor waits
        process["settings"].update(device="GPU", threads=2)
    assert costs.notes(result["processes"], result["cells"]) == []


def test_an_earlier_result_of_the_same_settings_is_found_and_shown(tmp_path):
    result = made_up()
    path = tmp_path / f"{result['name']}.json"
    path.write_text(json.dumps(result))
    found = (tmp_path, "costs-unet-*.json")
    earlier = find_earlier(*found, result["settings"], costs.medians, "bench costs")
    assert earlier["time"] == result["time"]
    assert earlier["ms"]["torch, eager, 16x16, batch 2, load"] == pytest.approx(20.24)
    assert len(earlier["ms"]) == 8 * 3
    other = {**result["settings"], "threads": 1}
    assert find_earlier(*found, other, costs.medians, "bench costs") is None
    result["earlier"] = earlier
    result["cells"][0]["train"]["ms"] = times(2 * 10.12)
    assert "was 10.1 (now ×2.00)" in printed(result, tmp_path)
    assert "was 10.1 (now ×2.00)" in costs_report.page(result)
    path.write_text("{}")
    with pytest.raises(ValueError, match="result of `bench costs`, but is none"):
        find_earlier(*found, result["settings"], costs.medians, "bench costs")


@pytest.mark.parametrize("cells", [0, 1, 5, 12])
def test_a_page_is_made_of_whatever_was_measured(cells, tmp_path):
    """As after an interruption."""
    result = made_up("interrupted")
    result["cells"] = result["cells"][:cells]
    result["fits"] = costs.fit_all(result["cells"])
    page = costs_report.page(result)
    assert "Interrupted" in page and "a &lt;b&gt;" in page
    assert page.count("<svg") == (0 if cells < 2 else 4)
    assert "Interrupted" in printed(result, tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_quiet_in_a_browser(scheme, tmp_path):
    result = made_up()
    result["notes"] = ["Not equal: threads (tensorflow, graph: 2; torch, eager: 1)."]
    page = costs_report.write_page(result, tmp_path)
    seen, log = browse(page, tmp_path, (400, 1600), scheme)
    assert "CONSOLE" not in log, log
    for frame, width in zip(seen, (400, 1600), strict=True):
        assert frame["inner"] == width and frame["width"] <= width, frame["wide"]
        assert frame["requests"] == [] and frame["broken"] == 0
        assert (brightness(frame["background"]) < 60) == (scheme == "dark")
        assert frame["chart"] == frame["ink"]


# Processes.


@pytest.mark.once
def test_both_backends_are_measured_by_turns(tmp_path, read_json):
    process = start(
        *("--image-size", "16x16", "--batch-size", "2", "--modes", "graph,eager"),
        *("--rounds", "2", "--steps", "3", "--threads", "1", "--out", tmp_path),
        KERAS_MAX_STEPS_PER_EPOCH="1",  # a notebook's limit is not for this
    )
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
    result = only_result(tmp_path, read_json)
    assert result["status"] == "done" and result["earlier"] is None
    assert [(p["backend"], p["mode"]) for p in result["processes"]] == [
        ("tensorflow", "graph"),
        ("tensorflow", "eager"),
        ("torch", "eager"),
    ]
    for process in result["processes"]:
        assert process["settings"]["threads"] == process["settings"]["inter-op threads"] == 1
        assert process["settings"]["layout"] == "channels_last"
        assert process["imports_seconds"] > 0.5 and process["parameters"] == 1838
    traced, eager, _ = result["cells"]
    for cell in result["cells"]:
        assert cell["seconds"]["first_step"] > 0 and cell["memory_mib"]["resident"] > 100
        assert all(cell[work]["ms"]["count"] == 2 for work in costs.WORKS)
    assert traced["seconds"]["first_step"] > eager["train"]["ms"]["median"] / 1e3
    assert not any(note.startswith("Not equal") for note in result["notes"])
    assert "run_eagerly=True, jit_compile=False, float32; 1 thread within" in output
    assert (tmp_path / f"{result['name']}.html").exists()


def run_tiny(model, folder, sizes, modes=("eager",), tell=lambda text: None):
    options = {"backends": ["torch"], "threads": 1, "steps": 3, "rounds": 1}
    return costs.run(TINY[model], folder, sizes, [2], modes=modes, tell=tell, **options)


def measuring():
    """The processes that measure: pytest may have others, those of other tests."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if any("costs_child" in part for part in child.cmdline())]


@pytest.mark.once
def test_a_process_that_dies_takes_no_other_with_it(tmp_path):
    """The first process is killed at the second cell; the other goes on."""
    told, killed = [], []

    def tell(text):
        told.append(text)
        if text.startswith("16x16") and text.endswith(" …") and not killed:
            first = min(measuring(), key=lambda child: child.create_time())
            killed.append(first.pid)
            first.kill()

    result = run_tiny("unet", tmp_path, [(8, 8), (16, 16)], ["eager", "eager+bfloat16"], tell)
    assert result["status"] == "failed" and killed
    errors = [cell.get("error") for cell in result["cells"]]
    assert errors == [None, None, "The process ended with exit status -9.", None]
    assert [p["precision"] for p in result["processes"]] == ["float32", "mixed_bfloat16"]
    assert not measuring()
    assert any("eager failed: The process ended" in line for line in told)


@pytest.mark.once
def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(tmp_path, read_json):
    process = start(
        *("--image-size", "8x8,16x16", "--batch-size", "2", "--modes", "eager"),
        *("--backends", "torch", "--rounds", "1", "--steps", "3", "--threads", "1"),
        *("--out", tmp_path),
    )
    for line in process.stderr:
        if line.startswith("16x16"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert children and not psutil.wait_procs(children, timeout=20)[1]
    result = only_result(tmp_path, read_json)
    assert result["status"] == "interrupted"
    assert [cell["image_size"] for cell in result["cells"]] == [[8, 8]]
    assert "Interrupted; what was measured until then is kept." in output


@pytest.mark.once
def test_a_size_that_the_model_does_not_take_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="30"):
        run_tiny("dcgan", tmp_path, [(30, 30)])
    assert not list(tmp_path.iterdir())
