"""The comparison report: its words, its page in a real browser, its lines in the terminal."""

import copy
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from browser import BROWSER, brightness, browse
from rich.console import Console

from keras_segen import plot
from keras_segen.compare import report as reports
from keras_segen.compare.layerwise import divergence
from keras_segen.compare.layerwise.evidence import evidence

pytestmark = pytest.mark.once

NAMES = ("background", "disc", "box", "triangle", "star", "ring")
PALETTE = (
    (38, 42, 51),
    (228, 26, 28),
    (55, 126, 184),
    (77, 175, 74),
    (255, 217, 47),
    (152, 78, 163),
)


def backend_part(name, factor, shift):
    steps = np.arange(96)
    losses = 0.25 + 1.6 * np.exp(-steps / 25) + 0.05 * np.sin(steps * 1.7)
    losses = losses * (1 + shift * 1e-7 * 1.06**steps)
    torch = name == "torch"
    return {
        "status": "ok",
        "error": None,
        "settings": {
            "framework": "2.13.0" if torch else "2.21.0",
            "keras": "3.15.1",
            "numpy": "2.4.6",
            "python": "3.11.9",
            "device": "CPU",
            "mode": "eager" if torch else "graph",
            "compiler": "none (torch.compile off)" if torch else "none (XLA off)",
            "threads": 2,
            "layout": "channels_last",
            "precision": "float32",
        },
        "seconds": {
            "imports": 3.2 * factor,
            "build": 0.41,
            "first_step": 2.13 / factor,
            "training": 11.4 * factor,
            "total": 18.2 * factor,
        },
        "milliseconds": {
            "step": {
                "median": 81.2 * factor,
                "p10": 78.0 * factor,
                "p90": 93.1 * factor,
                "count": 95,
            },
            "loader": {"median": 4.1, "p10": 3.7, "p90": 6.0, "count": 96},
            "predict": {"median": 30.7 * factor, "p10": 29.2, "p90": 44.0, "count": 8},
        },
        "memory_mib": {"peak_resident": 1204.5 / factor, "peak_device": None},
        "losses": {"loss": losses.tolist()},
        "steps_per_epoch": 32,
        "history": {
            "loss": [1.31, 0.62, 0.41],
            "val_loss": [1.02, 0.66, 0.52 + 1e-6 * shift],
            "val_mean_iou": [0.31, 0.48, 0.5921 + 1e-5 * shift],
        },
        "metrics": {
            "mean_iou": 0.59213 + 1e-5 * shift,
            "mean_dice": 0.7244,
            "pixel_accuracy": 0.9312,
            "class_iou": [0.95, 0.62, 0.58, 0.51, math.nan, 0.30 + 1e-4 * shift],
        },
    }


def parity_part(fault=0.0, name="down0_relu1"):
    """A comparison layer by layer of a convolution and a ReLU, the second with a fault."""
    records = []
    operation = {"name": "aten.relu", "shape": [1, 1, 8, 8], "norms": [1, 1], "rounding": 0.0}
    for backend in ("tensorflow", "torch"):
        arrays, rounding = {}, np.random.default_rng(len(backend))
        for precision, size in (("float32", 1e-7), ("float64", 1e-16)):
            for layer in ("down0_conv1", name):
                exact = np.random.default_rng(1).normal(size=64)
                wrong = fault if (backend, layer) == ("torch", name) else 0.0
                for kind in ("inference", "training"):
                    outputs = exact * (1 + size * rounding.normal(size=64)) + wrong
                    arrays[f"{precision}/{kind}/{layer}"] = outputs
                outputs = exact * (1 + size * rounding.normal(size=64))
                arrays[f"{precision}/gradient/{layer}/kernel"] = outputs
            for step in divergence.STEP_MEASURES:
                noise = 1 + size * 1.3 ** np.arange(20) * rounding.normal(size=20)
                arrays[f"{precision}/steps/{step}"] = noise
        outputs = arrays[f"float32/training/{name}"]
        opened = np.flatnonzero(outputs > (0.01 if backend == "torch" else 0))
        arrays[f"float32/gates/{name}"] = np.packbits(np.isin(np.arange(64), opened))
        arrays[f"float32/near/{name}"] = opened
        arrays[f"float32/margin/{name}"] = outputs[opened]
        layers = [
            {
                "name": layer,
                "type": kind,
                "settings": {"filters": 8} if kind == "Conv2D" else {},
                "default": [],
                "shape": [1, 8, 8, 1],
                "weights": ["kernel"],
                "start": [1],
                "module": "keras.layers",
                "sources": [source],
                "input_shapes": [[1, 8, 8, 1]],
                "turn": 0,
                "moved": 0,
                "operations": [operation] if backend == "torch" else [],
            }
            for layer, kind, source in (
                ("down0_conv1", "Conv2D", "images"),
                (name, "ReLU", "down0_conv1"),
            )
        ]
        versions = {"framework": "2.0", "device": "CPU", "keras": "3.0"}
        records.append(divergence.Record(backend, layers, [0] * 20, arrays, versions))
    found = divergence.compare(*records)
    return {**found, "evidence": evidence(found, *records, seed=3)}


def complete_report():
    tensorflow, torch = backend_part("tensorflow", 1.0, 0.0), backend_part("torch", 1.32, 1.0)
    one, other = (np.array(part["losses"]["loss"]) for part in (tensorflow, torch))
    return {
        "schema": 2,
        "version": "0.1.0",
        "created": "2026-11-22T10:00:00+00:00",
        "command": "keras-segen compare unet --data shapes --out runs/compare",
        "status": "passed",
        "experiment": {
            "model": "unet",
            "data": "shapes",
            "image_size": [64, 64],
            "filters": [16, 32, 64, 128],
            "batch_size": 16,
            "epochs": 3,
            "seed": 0,
            "loss": "cross_entropy",
            "optimizer": "adam",
            "learning_rate": 0.001,
            "augment": True,
        },
        "parameters": 482_000,
        "class_names": list(NAMES),
        "palette": [list(color) for color in PALETTE],
        "machine": {
            "system": "Linux 6.1",
            "processor": "x86_64",
            "cores": 2,
            "memory_gib": 23.5,
        },
        "backends": {"tensorflow": tensorflow, "torch": torch},
        "checks": [
            check(
                "initial weights",
                0.0,
                0.0,
                "largest difference",
                "482,000 numbers, equal to the bit",
            ),
            check("batches", 0, 0, "batches that differ", "96 batches, compared by hash"),
            check("logits before training", 2.1e-6, 1e-4, "largest difference", ""),
            check("loss of the first 20 steps", 4.2e-7, 1e-3, "relative difference", ""),
            check("hand-over", 0.999998, 0.9999, "equal pixels", "at least"),
        ],
        "parity": parity_part(),
        "loss_difference": (np.abs(one - other) / one).tolist(),
        "loss_tolerance": {"relative": [1e-3] * 20},
        "pictures": [
            {
                "title": "The same images on both",
                "file": "predictions.png",
                "note": "Yellow: the pixels that the two backends give another class.",
            }
        ],
        "disagreement": {"pixels": 12, "of": 524_288, "share": 12 / 524_288},
        "hand_over": [
            {
                "trained_on": "tensorflow",
                "run_on": "torch",
                "largest_difference": 1.1e-5,
                "equal_pixels": 0.999998,
                "passed": True,
            },
            {
                "trained_on": "torch",
                "run_on": "tensorflow",
                "largest_difference": 9.0e-6,
                "equal_pixels": 1.0,
                "passed": True,
            },
        ],
        "notes": ["Processes ran one after the other, so that neither took time from the other."],
    }


def check(name, measured, tolerance, unit, note, passed=True):
    return {
        "name": name,
        "measured": measured,
        "tolerance": tolerance,
        "unit": unit,
        "passed": passed,
        "note": note,
    }


def parted_report():
    report = complete_report()
    report["status"] = "parted"
    report["checks"][3].update(measured=0.0043, passed=False)
    report["checks"][4].update(measured=None, passed=None)
    report["parity"] = parity_part(fault=math.inf)
    report["loss_difference"] = (1e-7 * 1.9 ** np.arange(96)).clip(0, 0.4).tolist()
    return report


def failed_report():
    report = complete_report()
    report["status"] = "failed"
    report["backends"]["torch"] = {
        "status": "failed",
        "error": "Traceback (most recent call last):\n  File child.py, line 80, in train\n"
        "RuntimeError: out of memory: tried to allocate 3.2 GiB",
        "settings": {"framework": "2.13.0", "keras": "3.15.1"},
        "seconds": {"imports": 2.9},
        "losses": {"loss": [1.85, math.nan]},
    }
    for name in ("checks", "loss_difference", "pictures", "hand_over", "disagreement"):
        report[name] = None
    return report


def interrupted_report():
    report = complete_report()
    report["status"] = "interrupted"
    first = report["backends"]["tensorflow"]
    first["status"] = "interrupted"
    first["losses"] = {"loss": first["losses"]["loss"][:45]}
    first["metrics"] = None
    first["seconds"] = {"imports": 3.2, "build": 0.4, "first_step": 2.1, "training": None}
    first["milliseconds"] = {"step": {"median": 49.0, "p10": None, "p90": None, "count": 3}}
    report["backends"]["torch"] = {"status": "running"}
    for name in ("checks", "loss_difference", "pictures", "hand_over", "disagreement"):
        del report[name]
    return report


def single_report():
    report = complete_report()
    del report["backends"]["torch"]
    report["loss_difference"], report["hand_over"], report["disagreement"] = [], [], None
    report["checks"] = []
    return report


def hostile_report():
    evil = '<script>alert("1")</script><img src=https://evil.example/x.png>[red]$_x'
    report = parted_report()
    report["class_names"] = [evil, *NAMES[1:]]
    report["experiment"]["data"] = f"folder:{evil}"
    report["command"] = f"keras-segen compare unet --data 'folder:{evil}' " + "x" * 300
    report["backends"]["torch"]["settings"]["device"] = evil + "y" * 300
    report["backends"]["torch"]["error"] = evil + "\n" + "z" * 500
    report["checks"][0].update(name=evil, note=evil, unit=evil)
    report["pictures"][0].update(title=evil, note=evil, file=f"{evil[:8]}.png")
    report["notes"] = [evil]
    report["parity"] = parity_part(fault=0.5, name=evil)
    return report


def three_report():
    report = complete_report()
    report["backends"]["jax"] = backend_part("jax", 1.1, 2.0)
    report["backends"]["jax"]["milliseconds"]["step"] = dict.fromkeys(("median", "p10", "p90"), 0.0)
    report["backends"] = dict(reversed(report["backends"].items()))
    return report


def pictures_report():
    """Of a GAN: two losses, one of them not in every step, and no masks."""
    report = complete_report()
    report["makes"] = "pictures"
    report["experiment"] = {"model": "dcgan", "data": "cifar10", "epochs": 3, "judge": 1000}
    for backend, part in report["backends"].items():
        losses = part["losses"].pop("loss")
        part["losses"] = {"d_loss": losses, "g_loss": [None, *losses[1:]]}
        part["history"] = {"val_d_real_accuracy": [0.5, 0.6, 0.7]}
        part["metrics"] = {"kernel_distance": 0.0412 if backend == "torch" else 0.0409}
        part["milliseconds"]["generate"] = part["milliseconds"].pop("predict")
    report["class_names"], report["palette"] = None, None
    report["disagreement"] = {"largest": 0.31, "mean": 0.0123}
    for row in report["hand_over"]:
        del row["equal_pixels"]
    return report


def empty_report():
    return {"status": "interrupted", "backends": {"tensorflow": None, "torch": {}}}


REPORTS = {
    "complete": complete_report,
    "parted": parted_report,
    "failed": failed_report,
    "interrupted": interrupted_report,
    "single": single_report,
    "hostile": hostile_report,
    "three": three_report,
    "pictures": pictures_report,
    "empty": empty_report,
}


def draw_predictions(path):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    images = rng.uniform(0.2, 0.8, (3, 1, 1, 3)) + rng.normal(0, 0.05, (3, 64, 64, 3))
    truth = np.zeros((3, 64, 64), "int32")
    for i in range(3):
        for label in (1, 2, 5):
            row, column = rng.integers(12, 52, 2)
            truth[i][(rows - row) ** 2 + (columns - column) ** 2 < rng.integers(40, 200)] = label
        images[i] = 0.4 * images[i] + 0.6 * np.array(PALETTE)[truth[i]] / 255
    one = np.roll(truth, 1, axis=2)
    other = one.copy()
    other[0, 20, 30:36] = 1
    figure = plot.comparison(
        images.clip(0, 1),
        truth,
        {"TensorFlow": one, "PyTorch": other},
        palette=np.array(PALETTE),
        class_names=NAMES,
    )
    plot.save(figure, path)


@pytest.fixture(scope="module", params=REPORTS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "hostile":
        draw_predictions(folder / "predictions.png")
    path = reports.write_report(REPORTS[request.param](), folder)
    return request.param, path


class Reader(html.parser.HTMLParser):
    """Collects the tags, the attributes and the visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.hidden = [], [], [], None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag in ("style", "title"):
            self.hidden = tag

    def handle_endtag(self, tag):
        if tag == self.hidden:
            self.hidden = None

    def handle_data(self, data):
        if self.hidden is None:
            self.words.append(data)


def test_page_asks_for_nothing_outside(written):
    name, path = written
    text = path.read_text(encoding="utf-8")
    page = Reader(text)
    assert "script" not in page.tags
    for attribute, value in page.attributes:
        if attribute in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith(("data:", "#")), (attribute, value)
        assert not attribute.startswith("on"), attribute
    assert not re.search(r"url\((?!#)", text)
    if name != "hostile":  # there the addresses are text
        assert not re.search("https?://", text)


def test_page_never_shows_nan(written):
    _, path = written
    text = Reader(path.read_text(encoding="utf-8")).text
    assert not re.search(r"\b(nan|NaN|inf|None|null|undefined)\b", text)


def test_json_is_standard_and_nan_is_null(written):
    name, path = written
    report = json.loads(path.with_name("report.json").read_text(), parse_constant=pytest.fail)
    if name == "complete":
        assert report["backends"]["torch"]["metrics"]["class_iou"][4] is None


def test_page_shows_the_error_of_a_failed_backend(tmp_path):
    text = Reader(reports.write_report(failed_report(), tmp_path).read_text("utf-8")).text
    assert "PyTorch failed (RuntimeError: out of memory: tried to allocate 3.2 GiB)" in text
    assert "the result of TensorFlow is kept" in text
    assert "line 80, in train" in text


def test_page_marks_exactly_the_settings_that_differ(tmp_path):
    text = Reader(reports.write_report(complete_report(), tmp_path).read_text("utf-8")).text
    assert "2 of 9 settings differ" in text
    assert [word for word in text.split() if word == "≠"] == ["≠"] * 2


def test_page_escapes_hostile_names(tmp_path):
    text = reports.write_report(hostile_report(), tmp_path).read_text("utf-8")
    page = Reader(text)
    assert "<script" not in text and "img" not in page.tags
    assert '<script>alert("1")</script>' in page.text
    assert "is missing" in page.text


def test_verdict_is_one_true_sentence():
    assert reports.verdict(complete_report()) == (
        "unet with 482,000 parameters, trained on shapes for 3 epochs on TensorFlow and PyTorch "
        "(CPU, 2 threads): from the same weights and batches both came to the same result, all 5 "
        "checks passed; memory peaked at 1,204 MiB on TensorFlow and 912 MiB on PyTorch; "
        "mean IoU is 0.5921 on each."
    )
    assert (
        "1 of 5 checks failed, first “loss of the first 20 steps” "
        "(0.0043, tolerance 0.001; the losses parted at step 16)"
    ) in reports.verdict(parted_report())
    assert "interrupted after 45 of 96 steps on TensorFlow and no steps on PyTorch" in (
        reports.verdict(interrupted_report())
    )
    assert "nothing to compare it with" in reports.verdict(single_report())


def test_a_report_on_a_generator_speaks_of_pictures(tmp_path):
    assert reports.verdict(pictures_report()) == (
        "dcgan with 482,000 parameters, trained on cifar10 for 3 epochs on TensorFlow and PyTorch "
        "(CPU, 2 threads): from the same weights and batches both went the same way, all 5 checks "
        "passed; memory peaked at 1,204 MiB on TensorFlow and 912 MiB on PyTorch; "
        "the kernel distance to validation images is 0.0409 on TensorFlow and 0.0412 on PyTorch."
    )
    page = Reader(reports.page(pictures_report(), tmp_path))
    assert "Loss of the discriminator of every step" in page.text
    assert "Loss of the generator of every step" in page.text
    assert "Share of validation images taken for real after every epoch" in page.text
    assert "Generation per batch" in page.text and "Prediction" not in page.text
    assert "0.0123 apart on average and 0.31 at most" in page.text
    assert "Largest difference of the pictures" in page.text and "Equal pixels" not in page.text


def test_verdict_gives_both_scores_when_they_differ():
    report = complete_report()
    report["backends"]["torch"]["metrics"]["mean_iou"] = 0.61
    assert "mean IoU is 0.5921 on TensorFlow and 0.61 on PyTorch" in reports.verdict(report)


def speed(low, high, busy=0.0):
    cell = {
        "work": "train",
        "batch_size": 8,
        "ms": {"tensorflow": {"median": 80.0}, "torch": {"median": 100.0}},
        "stock_ms": {"tensorflow": {"median": 90.0}, "torch": {"median": 200.0}},
        "ratio": {"value": (low * high) ** 0.5, "low": low, "high": high, "rounds": 7},
        "others_busy": busy,
    }
    return {"start": {"tensorflow": 5.0, "torch": 3.0}, "cells": [cell], "errors": {}}


def test_verdict_names_the_faster_one_only_if_the_run_can_tell():
    report = complete_report()
    report["speed"] = speed(1.2, 1.3)
    assert "TensorFlow trains 1.25 times as fast as PyTorch (95 % interval 1.20 to 1.30, " in (
        reports.verdict(report)
    )
    report["speed"] = speed(0.9, 1.3)
    assert "neither trains faster by more than this machine can tell" in reports.verdict(report)
    report["speed"] = speed(1.2, 1.3, busy=0.5)
    assert "which one is faster cannot be told: other programs" in reports.verdict(report)


def test_figures_show_images_per_second_with_the_interval_and_stock_keras(tmp_path):
    report = complete_report()
    report["speed"] = speed(1.2, 1.3)
    rows = {row["label"]: row for row in reports.figures(reports.complete(report))}
    assert rows["Training, batch 8"]["values"] == [100.0, 80.0]
    assert rows["Training, batch 8"]["ratios"] == ["0.80 (0.77 to 0.83)"]
    assert rows["Training, batch 8, Keras as it ships"]["values"] == [8000 / 90, 40.0]
    assert rows["Start to first prediction"]["values"] == [5.0, 3.0]
    assert "Training, batch 8, images per second" in Reader(reports.page(report, tmp_path)).text
    report["speed"] = speed(1.2, 1.3, busy=0.5)
    rows = {row["label"]: row for row in reports.figures(reports.complete(report))}
    assert rows["Training, batch 8"]["ratios"] == ["–"]


def test_verdict_names_a_users_files_without_their_folders():
    report = complete_report()
    report["experiment"] |= {
        "model": "/home/me/out/own/mine.keras",
        "data": "folder:/home/me/cells",
    }
    assert reports.verdict(report).startswith("mine.keras with 482,000 parameters, trained on ")
    assert " trained on folder:cells for 3 epochs" in reports.verdict(report)


def test_verdict_is_silent_on_a_machine_that_was_not_the_same():
    report = complete_report()
    report["backends"]["torch"]["settings"]["threads"] = 1
    assert "on TensorFlow and PyTorch: from" in reports.verdict(report)
    report["backends"]["torch"]["memory_mib"]["peak_device"] = 7.0  # of one backend only
    assert "; memory peaked at 1,204 MiB" in reports.verdict(report)
    report["backends"]["tensorflow"]["memory_mib"]["peak_device"] = 8.0
    assert "; device memory peaked at 8 MiB on TensorFlow and 7 MiB on PyTorch" in (
        reports.verdict(report)
    )


def test_page_says_what_each_figure_is_from(tmp_path):
    text = Reader(reports.page(complete_report(), tmp_path)).text
    first, then = (
        text.index("Every figure here is of this one run: keras-segen compare"),
        [text.index(title) for title in ("Loss of every step", "The same images", "Figures Times")],
    )
    assert first < then[0] and then == sorted(then)


def test_figures_give_ratios_and_leave_out_what_nobody_measured():
    rows = {row["label"]: row for row in reports.figures(reports.complete(three_report()))}
    assert rows["Mean IoU, validation"]["ratios"][0] != "–"
    rows = {row["label"]: row for row in reports.figures(reports.complete(complete_report()))}
    assert rows["Peak memory, process"]["ratios"] == ["0.76"]
    step = rows["Training step, in the training"]
    assert step["spreads"] == ["78 to 93.1", "103 to 123"]
    assert step["ratios"] == ["–"] and step["factors"] == [None]  # not measured by turns
    assert "Peak memory, device" not in rows


def test_writing_the_report_leaves_it_as_it_was(tmp_path):
    report = complete_report()
    before = copy.deepcopy(report)
    reports.write_report(report, tmp_path)
    np.testing.assert_equal(report, before)


def test_page_is_the_same_to_the_byte(tmp_path):
    first = reports.write_report(complete_report(), tmp_path / "a").read_bytes()
    assert reports.write_report(complete_report(), tmp_path / "b").read_bytes() == first


@pytest.mark.parametrize("name", REPORTS)
def test_terminal_shows_verdict_and_path(name, tmp_path):
    file = io.StringIO()
    console = Console(file=file, width=2000 if name == "hostile" else 80)
    reports.print_report(REPORTS[name](), console, tmp_path)
    text = file.getvalue()
    assert reports.STATUS[REPORTS[name]()["status"]][1] in text
    assert f"Report: {tmp_path / 'report.html'}" in text
    assert not re.search(r"\b(nan|None)\b", text)
    if name == "hostile":
        # Nowhere taken for markup: in the verdict, a note, a check, its unit and note, an error
        # and three times in what is said of layers.
        assert text.count("[red]$_x") == 9


def test_page_and_terminal_tell_where_the_backends_part(tmp_path):
    page = Reader(reports.write_report(complete_report(), tmp_path).read_text("utf-8")).text
    file = io.StringIO()
    reports.print_report(complete_report(), Console(file=file, width=2000), tmp_path)
    for text in (page, file.getvalue()):
        assert "Equal to rounding in all 2 layers" in text
        gates = r"\d of 64 ReLU gates (is|are) open on one backend .*, in down0_relu1;"
        assert re.search(gates, text)
        assert "Over 20 steps the difference of the weights went from" in text
        assert "The smallest tolerance that would have been needed: " in text
        assert "Report to" not in text
    assert "Outputs of each layer" in page and "Loss at each step" in page

    report = complete_report() | {"parity": parity_part(fault=0.5)}
    page = Reader(reports.write_report(report, tmp_path).read_text("utf-8")).text
    assert "They part at layer down0_relu1 (ReLU), forward in inference: difference 0.5" in page
    assert "Its inputs are equal: down0_conv1 (difference 1." in page
    assert "The smallest tolerance that would have been needed: 0.5" in page
    assert "On PyTorch it runs aten.relu, on (1, 1, 8, 8): that is the operation." in page
    assert (
        "Report to keras-team/keras on GitHub: keras.layers.ReLU(), float32 "
        "(1, 8, 8, 1) to (1, 8, 8, 1), operation aten.relu, forward in inference: relative "
        "difference 0.5"
    ) in page
    assert "TensorFlow 2.0 (CPU) and PyTorch 2.0 (CPU), Keras 3.0, seed 3." in page


def test_a_comparison_in_float64_was_no_training():
    report = complete_report()
    report["experiment"]["precision"] = "float64"
    assert ", compared layer by layer on shapes on TensorFlow" in reports.verdict(report)


# The page in a real browser.


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["complete", "hostile"])
def test_page_fits_and_is_quiet_in_a_browser(name, scheme, tmp_path):
    if name == "complete":
        draw_predictions(tmp_path / "predictions.png")
    page = reports.write_report(REPORTS[name](), tmp_path)
    seen, log = browse(page, tmp_path, (400, 1600), scheme)
    assert "CONSOLE" not in log, log
    assert [frame["inner"] for frame in seen] == [400, 1600]
    for frame in seen:
        assert frame["width"] <= frame["inner"], frame["wide"]
        assert frame["requests"] == [] and frame["broken"] == 0
        dark = scheme == "dark"
        assert (brightness(frame["background"]) < 60) == dark
        assert (brightness(frame["ink"]) > 180) == dark
        assert frame["chart"] == frame["ink"]
