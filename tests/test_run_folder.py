"""Run folders: what belongs together, what was changed, where they lie, how they are extended."""

import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segen as ks
from keras_segen import run_folder
from keras_segen.runs import training
from keras_segen.tasks import GanTask, SegmentationTask

pytestmark = pytest.mark.once

PLAN = {"image_size": (16, 16), "filters": (2, 4), "batch_size": 128, "seed": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet-shapes-1"
    training.train(SegmentationTask(epochs=2, **PLAN), folder, verbose=0)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / "unet-shapes-1")


def weights(folder):
    return [np.asarray(weight) for weight in training.load_model(folder).get_weights()]


def change(path, **values):
    content = json.loads(path.read_text(encoding="utf-8"))
    content["experiment"] |= values
    path.write_text(json.dumps(content), encoding="utf-8")


def test_an_extended_run_is_one_that_was_planned_so(run, tmp_path, capsys):
    """With a constant rate: it goes on where it ended."""
    history = training.resume(run, epochs=3)
    assert "3 epochs instead of 2, schedule constant." in capsys.readouterr().out
    training.train(SegmentationTask(epochs=3, **PLAN), tmp_path / "planned", verbose=0)
    planned = training.read_history(tmp_path / "planned")
    assert history["loss"] == pytest.approx(planned["loss"], rel=1e-5)
    for a, b in zip(weights(run), weights(tmp_path / "planned"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    content = training.load_run(run)
    assert content["experiment"]["epochs"] == 3
    assert content["extended"] == [{"finished": 2, "from": 2, "to": 3}]
    assert training.resume(run, verbose=0) == history


def test_a_run_is_extended_to_more_epochs_only(run):
    with pytest.raises(ValueError, match="epochs is 2, and .* has finished 2 already"):
        training.resume(run, epochs=2)
    assert training.load_run(run)["experiment"]["epochs"] == 2


def test_early_stopping_waits_anew_after_an_extension():
    task = SegmentationTask(epochs=9, early_stopping=2)
    rows = [{"val_mean_iou": str(value)} for value in (0.5, 0.1, 0.1, 0.1)]
    assert training.stops_early(task, rows)
    assert not training.stops_early(task, rows, extended=3)
    assert training.stops_early(task, [*rows, rows[-1]], extended=3)


@pytest.mark.parametrize(
    "values", [{"filters": [4, 8]}, {"loss": "dice"}, {"seed": 2}, {"model": "plain_unet"}]
)
def test_settings_that_were_changed_are_named(run, values):
    change(run / "run.json", epochs=3, **values)
    with pytest.raises(ValueError, match=f"run.json of .* was changed: {next(iter(values))} is"):
        training.resume(run)


def test_a_history_that_was_changed_is_refused(run):
    path = run / "history.csv"
    rows = path.read_text().splitlines()
    for lines in ([], rows[:2], [rows[0], rows[2], rows[1]]):
        path.write_text("\n".join(lines))
        with pytest.raises(ValueError, match="history.csv of .* is not that of checkpoint-0002"):
            training.resume(run, epochs=3)
    path.unlink()
    with pytest.raises(ValueError, match="history.csv of .* is not that of checkpoint-0002"):
        training.resume(run, epochs=3)


@pytest.mark.parametrize("ending", ["1,2", "1,2,3,x", "a,b,c"])
def test_a_damaged_row_of_the_history_is_named(tmp_path, ending):
    (tmp_path / "history.csv").write_text(f"epoch,loss,val_loss\n1,2,3\n{ending}\n")
    with pytest.raises(ValueError, match="history.csv is damaged in line 3"):
        run_folder.read_history(tmp_path)


def test_a_checkpoint_of_another_optimizer_is_refused(run, finished):
    checkpoint = run / "checkpoint-0002.keras"
    model = keras.models.load_model(checkpoint, compile=False)
    model.compile("sgd", "mse")
    model.save(checkpoint)
    with pytest.raises(ValueError, match="checkpoint-0002.keras is damaged, or is not the file"):
        training.resume(run, epochs=3)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("label_ids", [0, 1, 2, 3, 4, -1], "label_ids .*expected 6 whole numbers from 0 to 65535"),
        ("label_ids", [0, 1], "label_ids .*expected 6 whole numbers"),
        ("label_ids", [0, 1, 2, 3, 4, 9], "label_ids in data is .*9., and checkpoint-0002.keras"),
        ("palette", [[0, 0, 256]] * 6, "palette .*expected 6 colors of three numbers"),
        ("palette", [[0, 0, 1]] * 6, "run.json of .* was changed: palette in data"),
        ("class_names", [1] * 6, "class_names .*expected a list of texts"),
        ("class_names", list("abcdef"), "was changed: class_names in data .*'background'"),
    ],
)
def test_classes_of_another_run_are_refused(run, name, value, message):
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    content["data"][name] = value
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ks.load(run)


def test_a_data_set_of_other_classes_is_not_evaluated(picture_folder, tmp_path):
    root, folder = shutil.copytree(picture_folder, tmp_path / "data"), tmp_path / "run"
    training.train(SegmentationTask(data=f"folder:{root}", epochs=1, **PLAN), folder, verbose=0)
    table = (root / "classes.csv").read_text(encoding="utf-8")
    (root / "classes.csv").write_text(table.replace("disc", "moon"), encoding="utf-8")
    with pytest.raises(ValueError, match="has the classes .*moon.* was trained on .*disc"):
        ks.runs.evaluate(folder, "val")


def test_a_damaged_checkpoint_is_refused(run):
    checkpoint = run / "checkpoint-0002.keras"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint-0002.keras is damaged"):
        training.resume(run, epochs=3)


def test_a_run_of_before_has_no_seal_and_goes_on(run):
    (run / "checkpoint-0002.json").unlink()
    assert len(training.resume(run, verbose=0, epochs=3)["loss"]) == 3
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-0003.json",
        "checkpoint-0003.keras",
    ]


def test_each_training_has_a_folder_of_its_own(tmp_path):
    plan, pictures = SegmentationTask(), GanTask(data="images:/some where/cats & dogs")
    assert run_folder.next_folder(plan, tmp_path) == tmp_path / "unet-shapes-1"
    (tmp_path / "unet-shapes-1").mkdir()
    (tmp_path / "unet-shapes-10").mkdir()
    assert run_folder.next_folder(plan, tmp_path) == tmp_path / "unet-shapes-2"
    assert run_folder.next_folder(pictures, tmp_path) == tmp_path / "dcgan-cats_dogs-1"


def test_the_last_run_is_the_one_started_last(run):
    other = shutil.copytree(run, run.parent / "a")
    content = training.load_run(other)
    content["starts"][-1]["time"] = "2001-01-01T00:00:00+00:00"
    (other / "run.json").write_text(json.dumps(content))
    (run.parent / "damaged").mkdir()
    (run.parent / "damaged" / "run.json").write_text("[]")
    assert [path.name for path, _ in run_folder.find_runs(run.parent)] == ["a", "unet-shapes-1"]
    assert run_folder.last_run(run.parent) == run
    with pytest.raises(FileNotFoundError, match="holds no run folder"):
        run_folder.last_run(run / "previews")


def test_a_run_is_opened_with_its_classes_and_predicts(finished, tmp_path):
    opened = ks.load(finished)
    image = ks.data.load("shapes", "val", size=24)[0][0]
    classes = opened.predict(image)
    assert classes.shape == (24, 24) and classes.dtype == "uint8"
    assert opened.class_names[0] == "background" and opened.palette.shape == (6, 3)
    assert repr(opened) == f"<run {finished}: unet on shapes, 2 epochs>"
    pixels = np.rint(image * 255).astype("uint8")

    Image.fromarray(pixels).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(opened.predict(tmp_path / "photo.png"), opened.predict(pixels))


def command(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "keras_segen", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_runs_are_listed_and_the_last_is_taken(run):
    place = run.parent.parent
    done = command("runs", folder=place)
    assert "unet-shapes-1" in done.stdout and "2 of 2" in done.stdout, done.stderr
    assert "Best validation mean IoU" in done.stdout
    done = command("evaluate", "--last", "--split", "val", folder=place)
    assert done.returncode == 0 and (run / "evaluation-val.html").exists(), done.stderr
    done = command("evaluate", run, "--last", folder=place)
    assert done.returncode == 1 and "one of the two" in done.stderr
