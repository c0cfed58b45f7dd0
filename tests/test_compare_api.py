"""The comparison from Python: what a notebook shows, tables, own models and own data sets."""

import hashlib
import html
import importlib
import json
import math
import re
import subprocess
import sys
import time

import jupyter_client
import keras
import numpy as np
import psutil
import pytest
from browser import BROWSER
from PIL import Image
from test_report import complete_report, empty_report, failed_report, pictures_report, three_report

import keras_segen as ks
from keras_segen.compare import report as reports
from keras_segen.files import write_json
from keras_segen.report.numbers import plain
from keras_segen.segmentation.keras_file import registered_modules

pytestmark = pytest.mark.once


def opened(content, folder):
    """The report as it is after it was written and loaded."""
    write_json(folder / "report.json", plain(content))
    return ks.compare.load(folder)


# What a report gives.


def test_the_figures_are_those_of_the_page(tmp_path):
    report = opened(complete_report(), tmp_path)
    table = report.figures
    rows = reports.figures(report.content)
    assert list(table.index) == [row["label"] for row in rows] and len(rows) > 10
    step = table.loc["Training step, in the training"]
    assert step["unit"] == "ms" and step["tensorflow"] == 81.2
    assert step["torch"] == pytest.approx(107.184)
    assert math.isnan(step["torch / tensorflow"])  # not measured by turns
    assert (step["tensorflow p10"], step["tensorflow p90"]) == (78.0, 93.1)
    assert math.isnan(table.loc["Peak memory, process", "torch p10"])
    for row in rows:
        ratio = table.loc[row["label"], "torch / tensorflow"]
        assert ["–" if math.isnan(ratio) else f"{ratio:.2f}"] == row["ratios"]


def test_the_steps_are_losses_and_how_far_they_are_apart(tmp_path):
    content = complete_report()
    table = opened(content, tmp_path).steps
    assert list(table.columns) == ["tensorflow loss", "torch loss", "difference", "tolerance"]
    assert list(table.index) == list(range(1, 97))
    assert table["torch loss"].tolist() == content["backends"]["torch"]["losses"]["loss"]
    assert table["difference"].tolist() == content["loss_difference"]
    assert table["tolerance"].notna().sum() == 20


def test_checks_and_history_are_tables(tmp_path):
    report = opened(complete_report(), tmp_path)
    assert report.checks.loc["logits before training", "measured"] == 2.1e-6
    assert list(report.checks.columns) == ["measured", "tolerance", "unit", "passed", "note"]
    assert report.checks["passed"].all() and len(report.checks) == 5
    assert list(report.history.index) == [1, 2, 3]
    assert report.history.loc[3, "tensorflow val_mean_iou"] == 0.5921


def test_two_losses_one_of_them_not_in_every_step(tmp_path):
    table = opened(pictures_report(), tmp_path).steps
    assert {"torch d_loss", "torch g_loss"} < set(table.columns)
    assert math.isnan(table.loc[1, "torch g_loss"]) and table.loc[2, "torch g_loss"] > 0


def test_what_is_missing_is_missing_in_the_tables(tmp_path):
    failed = opened(failed_report(), tmp_path / "failed")
    assert failed.status == "failed" and math.isnan(failed.steps.loc[2, "torch loss"])
    assert len(failed.steps) == 96 and len(failed.checks) == 0
    assert math.isnan(failed.figures.loc["Training step, in the training", "torch"])
    empty = opened(empty_report(), tmp_path / "empty")
    assert [len(t) for t in (empty.figures, empty.steps, empty.history, empty.checks)] == [0] * 4
    three = opened(three_report(), tmp_path / "three").figures
    assert {"torch / jax", "tensorflow / jax"} < set(three.columns)


def test_a_report_is_one_sentence_in_a_shell(tmp_path):
    report = opened(complete_report(), tmp_path)
    assert repr(report) == f"✓ Passed: {report.verdict} The report: {tmp_path / 'report.html'}"
    assert report.verdict == reports.verdict(complete_report())


def test_predictions_are_what_the_backends_wrote(tmp_path):
    report = opened(complete_report(), tmp_path)
    assert report.predictions == {}
    ids = np.arange(32, dtype="uint8").reshape(2, 4, 4)
    (tmp_path / "torch").mkdir()
    np.savez_compressed(tmp_path / "torch" / "arrays.npz", ids=ids)
    assert list(report.predictions) == ["torch"]
    np.testing.assert_array_equal(report.predictions["torch"], ids)


def test_tables_say_what_to_install(tmp_path, monkeypatch):
    report = opened(complete_report(), tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras-segen\[notebooks\]'"):
        _ = report.figures


@pytest.mark.parametrize(
    "text, error, message",
    [
        (None, FileNotFoundError, "has no report.json; expected the folder of a comparison"),
        ('{"schema": 2, "back', ValueError, "report.json is damaged"),
        ('{"mean_iou": 1}', ValueError, "is no comparison"),
        ("[1]", ValueError, "is no comparison"),
    ],
)
def test_what_is_no_comparison_is_not_opened(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(error, match=message):
        ks.compare.load(tmp_path)


def test_a_report_is_opened_by_its_file_too(tmp_path):
    assert opened(complete_report(), tmp_path).folder == tmp_path
    assert ks.compare.load(tmp_path / "report.json").path == tmp_path / "report.html"
    with pytest.raises(FileNotFoundError, match="other.json does not exist"):
        ks.compare.load(tmp_path / "other.json")


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
def test_a_notebook_shows_the_page_and_keeps_its_own_style(tmp_path):
    report = opened(complete_report(), tmp_path)
    page = tmp_path / "notebook.html"
    page.write_text(
        '<!DOCTYPE html><meta charset="utf-8"><style>h1 { color: rgb(1, 2, 3) }</style>'
        f"<body><h1>Notebook</h1>{report._repr_html_()}<script>"
        'addEventListener("load", () => {'
        "  const inner = frames[0].document, ink = e => getComputedStyle(e).color;"
        '  document.body.dataset.seen = JSON.stringify([ink(document.querySelector("h1")),'
        '    ink(inner.querySelector("h1")), inner.querySelector("h1").textContent,'
        "    frames[0].innerHeight]);"
        "});</script>",
        "utf-8",
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60
    )
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1]))
    assert "CONSOLE" not in done.stderr
    assert seen[0] == "rgb(1, 2, 3)" and seen[1] != seen[0]
    assert seen[2] == report.verdict and seen[3] > 600


# Starting one.


@pytest.mark.parametrize(
    "model, fields, message",
    [
        ("u-net", {}, "There is no model 'u-net'; there are: unet, "),
        ("unet", {"epoch": 2}, "Unknown task field 'epoch'.*epochs"),
        ("unet", {"latent_dim": 2}, "Unknown task field 'latent_dim'"),
        ("unet", {"early_stopping": 2}, "use early_stopping=0"),
        ("unet", {"parity_steps": 2, "dropout": 0.5}, "dropout is 0.5"),
    ],
)
def test_a_wrong_argument_is_an_error_before_anything_runs(tmp_path, model, fields, message):
    with pytest.raises(ValueError, match=message):
        ks.compare.run(model, out=tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


LAYERS = """
import keras

@keras.saving.register_keras_serializable()
class Double(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Unregistered(Double):
    pass
"""


@pytest.fixture(scope="module")
def own_layers(tmp_path_factory):
    """A module with layers of a user's own, beside a script as it were."""
    folder = tmp_path_factory.mktemp("layers")
    (folder / "own_layers.py").write_text(LAYERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("own_layers")
        del sys.modules["own_layers"]


def network(num_classes=2, shape=(16, 16, 1), between=None, activation=None):
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    x = between(x) if between else x
    return keras.Model(inputs, keras.layers.Conv2D(num_classes, 1, activation=activation)(x))


def scenes(split, length):
    """Grey squares on a dark ground in a void frame, as arrays."""
    masks = np.zeros((length, 16, 16), int)
    for i, mask in enumerate(masks):
        mask[3 + i % 5 : 9 + i % 5, 4:12] = 1
    images = np.where(masks == 1, 200, 50).astype("uint8")
    masks[:, 0] = -1
    return ks.data.arrays(images, masks, class_names=("ground", "square"), ignore_class=-1)


@pytest.fixture(scope="module")
def own(own_layers, tmp_path_factory):
    def build_net():
        return network(between=own_layers.Double())

    folder = tmp_path_factory.mktemp("own") / "out"
    data = (scenes("train", 40), scenes("val", 8))
    fields = {"epochs": 1, "batch_size": 8, "augment": "none", "seed": 3}
    return ks.compare.run(build_net, data, folder, threads=1, seconds=0, **fields)


def test_a_model_and_a_data_set_of_ones_own_are_compared(own):
    assert own.status == "passed", own.content["backends"]
    assert own.verdict.startswith("build_net.keras with 38 parameters, trained on arrays:data for")
    assert own.content["command"].startswith("keras_segen.compare.run(build_net, data=(<arrays ")
    assert len(own.steps) == 5 and own.steps["difference"].max() < 1e-3
    assert {name: ids.shape for name, ids in own.predictions.items()} == {
        "tensorflow": (8, 16, 16),
        "torch": (8, 16, 16),
    }
    assert repr(ks.compare.load(own.folder)) == repr(own)


def test_the_processes_read_the_model_and_the_data_that_were_given(own, own_layers):
    model = network(between=own_layers.Double())
    ks.initialize(model, seed=3)
    saved = keras.models.load_model(own.folder / "own" / "build_net.keras")
    for expected, found in zip(model.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    digest = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
    assert own.content["backends"]["torch"]["weights_sha256"] == digest
    images = np.stack([image for image, _ in scenes("train", 40)])
    np.testing.assert_array_equal(np.load(own.folder / "own" / "data" / "x_train.npy"), images)


@pytest.mark.parametrize(
    "model, data, fields, error, message",
    [
        (
            lambda: 3,
            "shapes",
            {},
            ValueError,
            r"<lambda>\(\) returned a int; expected a keras.Model",
        ),
        (3, "shapes", {}, ValueError, "model is a int; expected a model's name, a function"),
        (lambda: network(3), "own", {}, ValueError, r"makes \(1, 16, 16, 3\).*\(1, 16, 16, 2\)"),
        (
            lambda: network(shape=(8, 8, 1)),
            "own",
            {},
            ValueError,
            r"takes \(8, 8, 1\), and the images",
        ),
        (network, "own", {"filters": (4,)}, ValueError, "filters is .* whole network"),
        (network, "own", {"image_size": (8, 8)}, ValueError, "image_size is .* leave it out"),
        ("missing.keras", "own", {}, FileNotFoundError, "missing.keras does not exist"),
        (network, "pictures", {}, ValueError, "has pictures without masks, and .*learns masks"),
        ("unet", ("shapes", "shapes"), {}, ValueError, "found 'shapes'; expected a data set"),
        ("unet", (1, 2, 3), {}, ValueError, "data holds 3 data sets"),
    ],
)
def test_a_wrong_model_or_data_set_is_an_error_before_anything_runs(
    tmp_path, model, data, fields, error, message
):
    if data == "own":
        data = scenes("train", 10)
    if data == "pictures":
        for number in range(4):
            Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
        data = f"images:{tmp_path}"
    with pytest.raises(error, match=message):
        ks.compare.run(model, data, tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["Unregistered", "Here"])
def test_layers_that_no_other_process_can_load_are_an_error(own_layers, tmp_path, kind):
    layer = own_layers.Unregistered
    message = "class Unregistered, which Keras cannot load.*register_keras_serializable"
    if kind == "Here":
        layer = type("Here", (own_layers.Double,), {"__module__": "__main__"})
        message = "class Here, which is defined in this notebook or script.*file of its own"
    with pytest.raises(ValueError, match=message):
        ks.compare.run(lambda: network(between=layer()), scenes("train", 10), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_loaded_with_the_modules_that_registered_layers_are_from(own_layers):
    modules = registered_modules()
    assert own_layers.__name__ in modules
    assert not [name for name in modules if name.startswith("keras")]


CELL = """
import keras_segen as ks
ks.compare.run("unet", filters=(4, 8), image_size=(16, 16), out="out", threads=1, seconds=0)
"""


def test_an_interrupted_cell_leaves_no_process(tmp_path):
    manager, client = jupyter_client.manager.start_new_kernel(
        kernel_name="python3", cwd=str(tmp_path)
    )
    try:
        kernel = psutil.Process(manager.provisioner.pid)
        client.execute(CELL)
        shown, errors, children = [], [], []
        deadline = time.monotonic() + 300
        while not errors and time.monotonic() < deadline:
            message = client.get_iopub_msg(timeout=300)
            if message["msg_type"] in ("display_data", "update_display_data", "stream"):
                shown.append(message)
            if message["msg_type"] == "error":
                errors.append(message["content"])
            if not children and "training" in json.dumps(message["content"]):
                children = kernel.children(recursive=True)
                manager.interrupt_kernel()
        assert children and errors[0]["ename"] == "KeyboardInterrupt"
        assert "keras_segen.compare.load('out') opens it" in errors[0]["evalue"]
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
        assert ks.compare.load(tmp_path / "out").status == "interrupted"
        # The progress is one display that is drawn again, and nothing is written beside it.
        assert [m["msg_type"] for m in shown].count("display_data") == 1
        assert {m["msg_type"] for m in shown} == {"display_data", "update_display_data"}
        assert "tensorflow" in shown[-1]["content"]["data"]["text/html"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
