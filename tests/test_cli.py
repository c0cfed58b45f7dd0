"""The commands, run as a user would: as processes, or where nothing is computed, in this one."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import pytest
from PIL import Image

import keras_segen
from keras_segen import cli
from keras_segen.cli import common

pytestmark = pytest.mark.once


def run(*arguments, cwd=None, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "keras_segen", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Runs a command in this process, which has imported Keras: what it prints, or its error."""

    def here(*arguments, code=0):
        monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())  # and is so again afterwards
        monkeypatch.setattr(sys, "argv", ["keras-segen", *map(str, arguments)])
        monkeypatch.setattr(common.console, "width", 200)
        monkeypatch.chdir(tmp_path)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return said.err if code else said.out

    return here


@pytest.fixture
def refuse(here):
    """Runs a command in this process, in an empty folder: what it says of an error."""
    return functools.partial(here, code=1)


# Commands in a process of their own, which imports Keras once: argv[1] is a list of them.
ONE_AFTER_THE_OTHER = """
import json, sys
from keras_segen import cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["keras-segen", *map(str, words)]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, words
"""


@pytest.fixture(scope="module")
def trained(picture_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run(
        *("train", "unet", "--data", f"folder:{picture_folder}", "--image-size", "16x16"),
        *("--filters", "4,8", "--batch-size", 4, "--epochs", 1, "--run", folder, "--tensorboard"),
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"unet on folder:{picture_folder}, into {folder}"
    begins = [
        "Backend: ",
        "Device: ",
        "Replaced in Keras: ",
        "Model: unet, ",
        "Images: 8 to train, ",
    ]
    assert [line[: len(text)] for line, text in zip(lines[1:], begins, strict=False)] == begins
    assert ", by KERAS_BACKEND" in lines[1] and lines[5].endswith("4 to validate, 16x16x3")
    assert lines[-3:] == [
        lines[-3].partition(";")[0] + f"; the run is in {folder}",
        f"Next: keras-segen evaluate {folder}",
        f"      keras-segen predict {folder} …",
    ]
    return folder


def test_doctor_finds_what_runs():
    done = run("doctor")
    for backend in ("tensorflow", "torch"):
        assert f"{backend}: runs; framework" in done.stdout
    assert "threads" in done.stdout and "data cache" in done.stdout


def test_doctor_exits_with_1_if_nothing_can_run(tmp_path):
    for name in ("tensorflow", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('broken on purpose')")
    done = run("doctor", code=1, PYTHONPATH=str(tmp_path))
    assert "torch: fails: ImportError: broken on purpose" in done.stdout


def test_an_empty_variable_counts_as_not_set(tmp_path):
    """Keras' own setting is then PyTorch, which is said."""
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    command = "from keras_segen import frameworks as f; print(f.chosen(), f.reason()); f.require()"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (f"torch by {tmp_path / 'keras.json'}\n", "")


def test_lists(here):
    datasets, models = here("datasets"), here("models")
    assert datasets.startswith("shapes  ") and "\nfolder:PATH  " in datasets
    assert len({line[len("fashion_mnist[:PATH]") :][:2] for line in datasets.splitlines()}) == 1
    assert models.startswith("unet  ") and "\nplain_unet  " in models
    for name in ("dcgan", "sngan", "stylegan2", "vae"):
        assert f"\n{name:10}  {name}: " in models.lower()


def test_train_resume_evaluate_predict(trained, picture_folder, tmp_path, here):
    assert "run is in" in here("train", "--resume", trained)
    assert list((trained / "tensorboard").glob("events*"))
    evaluated = here("evaluate", trained, "--split", "val")
    assert "\n Mean " in evaluated and "4 images of val" in evaluated
    written = json.loads((trained / "evaluation-val.json").read_text())
    assert written["backend"] == keras.backend.backend()
    photo = picture_folder / "test" / "images" / "scene1.png"
    predicted = here("predict", trained, photo, "--out", tmp_path / "masks")
    assert predicted.startswith("1 masks in")
    with Image.open(tmp_path / "masks" / "scene1.png") as mask:
        assert mask.size == (32, 32)


def test_a_generator_is_trained_and_judged(tmp_path, here, monkeypatch):
    folder, extractor = tmp_path / "run", tmp_path / "small.keras"
    done = run(
        *("train", "vae", "--data", "shapes", "--image-size", "8x8", "--filters", "4"),
        *("--latent-dim", 3, "--batch-size", 128, "--epochs", 1, "--run", folder),
    )
    assert "Best validation ELBO" in done.stdout
    images = keras.Input((8, 8, 3))
    keras.Model(images, keras.layers.Conv2D(4, 3)(images)).save(extractor)
    options = ("--extractor", extractor, "--count", 40)
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))
    said = here("evaluate", folder, *options)
    for text in (
        *("generated against real", "half of the real against the other", "noise against real"),
        *("Fréchet distance on small.keras: 4 features. 40 real images of test", "ELBO "),
        *("Importance-weighted bound", "128 images, 64 codes each", "evaluation-test.html"),
    ):
        assert text in said


def test_extractors_are_for_pictures(trained, refuse):
    said = refuse("evaluate", trained, "--count", 40)
    assert "error: count is for dcgan, sngan, stylegan2, vae, and this is a run of unet" in said


def test_predict_takes_every_option(trained, picture_folder, tmp_path, here, refuse):
    photo = picture_folder / "test" / "images" / "scene1.png"
    options = ("--full-size", "--tile", 24, "--overlap", 8, "--flips", "both", "--fold")
    masks = tmp_path / "masks"
    said = here("predict", trained, photo, "--out", masks, *options, "--scales", "0.75,1")
    assert said.startswith("1 masks in")
    with Image.open(masks / "scene1.png") as mask:
        assert mask.size == (32, 32)
    said = here("predict", trained, photo, "--out", masks, "--output", "entropy")
    assert said.startswith("1 arrays of entropy in")
    assert (masks / "scene1.npy").exists()
    said = refuse("predict", trained, photo, "--out", masks, "--scales", "1;2")
    assert "error: --scales is '1;2', expected numbers such as" in said


def test_bench_predict_measures_memory_and_folding(trained, refuse):
    done = run("bench", "predict", trained, "--sizes", "40,80", "--tile", 16)
    assert "folded / plain = " in done.stdout
    for side in (40, 80):
        assert f"{side} x {side}" in done.stdout
    said = refuse("bench", "predict", trained, "--sizes", "80,40", "--tile", 16)
    assert "expected ascending ones" in said


def test_the_other_backend_takes_over_a_run(trained, picture_folder, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    photo = picture_folder / "test" / "images" / "scene1.png"
    commands = [
        ("train", "--resume", folder, "--epochs", 2, "--backend", "tensorflow"),
        ("evaluate", folder, "--split", "val", "--backend", "tensorflow"),
        ("predict", folder, photo, "--out", tmp_path / "masks", "--backend", "tensorflow"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands, default=str)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "evaluation-val.json").read_text())["backend"] == "tensorflow"
    assert "\n1 masks in" in done.stdout


def test_a_terminated_training_says_how_to_go_on(picture_folder, tmp_path):
    """Also where a shell in the background ignores Ctrl-C for its children, as under nohup."""
    folder = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-m", "keras_segen", "train", "--data", f"folder:{picture_folder}"]
        + ["--image-size", "16x16", "--filters", "4,8", "--epochs", "1000", "--run", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*.keras")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.terminate()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"Go on with: keras-segen train --resume {folder}" in errors.replace("\n", "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--data", "folder:nowhere", "--image-size", "16x16"], "nowhere"),
        (["train", "--data", "coco"], "no data set is named 'coco'"),
        (["train", "--data", "camvid"], "Did you mean camvid:PATH?"),
        (["train", "--image-size", "16"], "--image-size is '16', expected whole numbers"),
        (["train", "--filters", "a"], "--filters is 'a'"),
        (["train", "--optimizer", "lion"], "optimizer is 'lion'"),
        (["train", "unett"], "no model 'unett'"),
        (["train", "unett"], "Did you mean unet?"),
        (["train", "--run", ""], "--run is empty: expected a value"),
        (["train", "--data="], "--data is empty: expected a value"),
        (["train", "--resume", "nowhere"], "no run.json"),
        (["train", "--resume", "nowhere", "--seed", "1"], "--seed would change nothing"),
        (["train", "fcn", "--resume", "nowhere"], "model would change nothing"),
        (["train", "unet", "--r1", "1"], "--r1 is for dcgan, sngan, stylegan2; unet has none"),
        (["train", "vae", "--loss", "hinge"], "fcn, dcgan, sngan, stylegan2; vae has none"),
        (["crossval", "vae"], "vae makes new pictures"),
        (["train", "--backend", "jax"], "'jax'"),
        (["evaluate", "nowhere"], "no run.json"),
        (["compare", "--backends", "torch,jax"], "'jax'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_a_user_can_mend_is_one_line(arguments, message, refuse):
    (line,) = refuse(*arguments).splitlines()
    assert line.startswith("error: ") and message in line


def test_an_error_of_a_process_is_one_line():
    done = run("train", "unett", code=1)
    assert done.stdout == "" and done.stderr.count("\n") == 1


def test_what_needs_no_keras_is_said_without_it(tmp_path):
    expected = {
        "evaluate nowhere": "nowhere is no run folder: it has no run.json",
        "evaluate damaged": "run.json is damaged",
        "evaluate list": "run.json has no experiment as a training writes it",
        "evaluate other": "epochs is 'many', expected a whole number",
        "evaluate begun": "begun has no model.keras yet",
        "evaluate finished --split all": "split is 'all', expected one of train",
        "predict nowhere photo.png": "nowhere is no run folder",
        "predict finished photo.png": "photo.png does not exist",
        "generate nowhere": "nowhere is no run folder",
        "train --data folder:nowhere": "nowhere: no such folder",
        "train --data coco": "no data set is named 'coco'",
        "train --run begun": "begun holds a run already",
        "train --resume nowhere": "nowhere is no run folder",
        "evaluate negative": "label_ids in data is [-1]; expected 1 whole numbers",
    }
    settings = {"experiment": {"model": "unet"}, "data": {}, "starts": []}
    for name, text in {
        "damaged": "{",
        "list": "[]",
        "other": json.dumps({**settings, "experiment": {"model": "unet", "epochs": "many"}}),
        "begun": json.dumps(settings),
        "finished": json.dumps(settings),
        "negative": json.dumps({**settings, "data": {"class_names": ["a"], "label_ids": [-1]}}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "finished" / "model.keras").touch()
    code = (
        "import sys\n"
        "from keras_segen import cli\n"
        "sys.modules['keras'] = None\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['keras-segen', *line.split()]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 1, line\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *expected], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for said, (line, message) in zip(done.stderr.splitlines(), expected.items(), strict=True):
        assert said.startswith("error: ") and message in said, line


def test_brackets_in_names_are_printed_as_they_are(picture_folder, tmp_path, here):
    root, folder = tmp_path / "[red]data[/red]", tmp_path / "[/red]"
    shutil.copytree(picture_folder, root)
    table = (root / "classes.csv").read_text()
    (root / "classes.csv").write_text(table.replace("disc", "[/red]"))
    said = here(
        *("train", "--data", f"folder:{root}", "--image-size", "16x16", "--filters", "4,8"),
        *("--epochs", 1, "--run", folder),
    )
    assert f"; the run is in {folder}" in said and str(root) in said
    said = here("evaluate", folder, "--split", "val")
    assert "\n [/red] " in said and f"{folder}/evaluation-val.html" in said


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_nothing_but_the_answer_is_printed(backend):
    done = run("models", KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="")
    assert done.stderr == ""


def test_the_version_is_shown():
    assert run("--version").stdout == f"keras-segen {keras_segen.__version__}\n"
    assert run("bench", "native", "-h").stdout == run("bench", "native", "--help").stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", "{folder}/typo.yaml"], "'batchsize', which is no field of a task. "),
        (["train", "--config", "{folder}/typo.yaml"], "Did you mean batch_size?"),
        (["train", "--config", "{folder}/broken.yaml"], "broken.yaml cannot be read: "),
        (["train", "--config", "{folder}/broken.json"], "broken.json cannot be read: "),
        (["train", "--config", "{folder}/list.yaml"], "list.yaml holds no settings"),
        (["train", "--config", "{folder}/rate.yaml"], "learning_rate in "),
        (["train", "--config", "{folder}/size.yaml"], "size.yaml is '16', expected whole numbers"),
        (["train", "--config", "{folder}/type.yaml"], "epochs is 'many', expected a whole number"),
        (["train", "vae", "--config", "{folder}/unet.yaml"], "--dropout is for unet, plain_unet"),
        (["crossval", "{folder}/list.json"], "list.json holds no settings"),
        (["crossval", "{folder}/model.json"], "There is no model 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_in_a_file_of_settings_is_said(arguments, message, tmp_path, refuse):
    texts = {
        **{"typo.yaml": "batchsize: 8", "broken.yaml": "epochs: [1\nseed: 2", "list.yaml": "- 1"},
        **{"broken.json": '{"epochs": ', "list.json": "[]", "model.json": '{"model": 3}'},
        **{"rate.yaml": "learning_rate: fast", "size.yaml": "image_size: '16'"},
        **{"type.yaml": "epochs: many", "unet.yaml": "dropout: 0.5"},
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (line,) = refuse(*(argument.format(folder=tmp_path) for argument in arguments)).splitlines()
    assert line.startswith("error: ") and message in line


def test_a_training_is_repeated_from_a_file(trained, tmp_path, here):
    """The run.json of another run, or YAML; an option beside it comes first."""
    here("train", "--config", trained / "run.json", "--seed", 7, "--run", tmp_path / "again")
    first, again = (json.loads((f / "run.json").read_text()) for f in (trained, tmp_path / "again"))
    assert again["experiment"] == {**first["experiment"], "seed": 7}
    (tmp_path / "small.yaml").write_text(
        f"model: plain_unet\ndata: {first['experiment']['data']}\nimage_size: 16x16\n"
        "filters: [4, 8]\nepochs: 2\nlearning_rate: 1e-2\n"
    )
    said = here("train", "--config", tmp_path / "small.yaml", "--run", tmp_path / "small")
    small = json.loads((tmp_path / "small" / "run.json").read_text())["experiment"]
    lines = [line for line in said.splitlines() if "loss" in line]
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert "val_mean_iou 0." in lines[1] and "\x1b" not in said
    assert (small["model"], small["image_size"], small["filters"]) == (
        "plain_unet",
        [16, 16],
        [4, 8],
    )
    assert small["learning_rate"] == 0.01


@pytest.mark.parametrize(
    "words, found",
    [
        ("train dc", ["dcgan"]),
        ("train --optimizer adam", ["adam", "adamw"]),
        ("train --data cam", ["camvid:"]),
        ("bench costs --lik", ["--likelihood"]),
        ("evaluate --backend to", ["torch"]),
    ],
)
def test_a_shell_completes_commands_and_values(words, found):
    done = run(
        _KERAS_SEGEN_COMPLETE="complete_bash",
        COMP_WORDS=f"keras-segen {words}",
        COMP_CWORD=str(len(words.split())),
    )
    assert done.stdout.split() == found


def test_help_shows_what_is_common_first():
    shown = run("train", "--help").stdout
    places = [shown.index(text) for text in ("--data", "--epochs", "--run", "More options", "--r1")]
    assert places == sorted(places)
    defaults = "Default: unet, plain_unet, fcn adam; mask_rcnn adamw."
    assert f"One of adam, adamw, sgd. {defaults}" in shown
    assert "dcgan 100; sngan, stylegan2 128; vae 64" in shown
    assert "--fold " not in run("crossval", "--help").stdout


@pytest.mark.parametrize("option", ["--epochs", "--schedule", "--early-stopping", "--fold"])
def test_bench_costs_refuses_what_makes_no_step_dearer(option, refuse):
    assert f"No such option: {option}" in refuse("bench", "costs", option, "1", code=2)
