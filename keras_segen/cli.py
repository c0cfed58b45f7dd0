"""keras-segen: thin commands over the package.

`KERAS_BACKEND` (or `--backend`) chooses the framework. Keras is imported by the commands that
need it, after that choice.
"""

import dataclasses
import functools
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import rich.console
import rich.markup
import rich.progress
import rich.table
import typer

from keras_segen import frameworks

app = typer.Typer(
    help="Image segmentation and generation on TensorFlow and PyTorch, each model written once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the product on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")
console = rich.console.Console()
errors = rich.console.Console(stderr=True)

Backend = Annotated[
    str | None,
    typer.Option(help="tensorflow or torch; without it, KERAS_BACKEND decides."),
]

# What the command line says of each field of an Experiment.
HELP = {
    "data": "Data set: a name that `keras-segen datasets` lists, such as folder:PATH.",
    "filters": "Channels per level, such as 16,32,64; without it, what suits a laptop.",
    "encoder": "none, vgg16, resnet50, mobilenet_v2, efficientnet_v2_b0 or efficientnet_lite0.",
    "encoder_weights": "imagenet or none: what the encoder starts from.",
    "stride": "8, 16 or 32: the finest features that fcn labels.",
    "dropout": "Share of values that unet and fcn drop in training.",
    "image_size": "HEIGHTxWIDTH that images are brought to, such as 176x240.",
    "channels": "1 for grey images, 3 for RGB.",
    "batch_size": "Images per step.",
    "epochs": "Passes over the training split.",
    "optimizer": "adam, adamw or sgd.",
    "learning_rate": "Learning rate at the start.",
    "freeze_epochs": "Epochs at the start in which the encoder is frozen.",
    "fine_tune_rate": "Learning rate after those; without it, a tenth of the other.",
    "schedule": "constant or cosine.",
    "weight_decay": "Weight decay of adamw.",
    "loss": "cross_entropy, dice or cross_entropy+dice.",
    "class_weights": "none or median_frequency, for unbalanced classes.",
    "augment": "default, none, or steps such as 'flip=0.5 brightness=0.5,-0.2,0.2'.",
    "precision": "float32, mixed_float16 or mixed_bfloat16.",
    "seed": "Seed of weights, order and augmentation.",
    "workers": "Processes that prepare batches; 0 for a thread.",
    "cache": "none, ram or disk: where decoded images are kept.",
    "start_from": "A run folder whose best model gives the first weights of the same layers.",
}


def takes_experiment(command):
    """Gives a command one option for each field of an Experiment, and calls it with one."""
    from keras_segen.experiment import Experiment

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "experiment"]
    model = Annotated[str, typer.Argument(help="A name that `keras-segen models` lists.")]
    added = [
        inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, annotation=model, default="unet")
    ]
    for field in dataclasses.fields(Experiment):
        if field.name == "model":
            continue
        kind, default = type(field.default), field.default
        if default is None:
            kind = float | None if field.name == "fine_tune_rate" else str | None
        annotation = Annotated[kind, typer.Option(help=HELP[field.name])]
        added.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
            )
        )

    @functools.wraps(command)
    def wrapper(**values):
        fields = {parameter.name: values.pop(parameter.name) for parameter in added}
        if fields["filters"] is not None:
            fields["filters"] = _numbers("--filters", fields["filters"], r"\d+(,\d+)*", ",")
        if fields["image_size"] is not None:
            size = _numbers("--image-size", fields["image_size"], r"\d+x\d+", "x")
            fields["image_size"] = size
        return command(experiment=Experiment(**fields), **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*added, *own]]
    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _numbers(option, text, pattern, separator):
    if not re.fullmatch(pattern, text):
        expected = separator.join(["176", "240"])
        raise ValueError(f"{option} is {text!r}, expected whole numbers such as {expected}.")
    return tuple(int(number) for number in text.split(separator))


def _use(backend):
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    frameworks.require()


@app.command()
def doctor():
    """Show versions, frameworks, devices, threads and the data cache; exit 1 if nothing runs."""
    from keras_segen import machine
    from keras_segen.data.cache import cache_folder

    table = rich.table.Table(show_header=False, box=None)
    for name, value in {**machine.describe(), **machine.versions()}.items():
        table.add_row(name, "not installed" if value is None else str(value))
    table.add_row("data cache", str(cache_folder()))
    table.add_row("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "not set"))
    console.print(table)
    works = []
    for backend in frameworks.FRAMEWORKS:
        if backend not in frameworks.installed():
            console.print(f"{backend}: not installed (pip install 'keras-segen\\[{backend}]')")
            continue
        code = "import json; from keras_segen import backend; print(json.dumps(backend.settings()))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            works.append(backend)
            found = json.loads(done.stdout.splitlines()[-1])
            console.print(f"{backend}: runs; " + ", ".join(f"{k} {v}" for k, v in found.items()))
        else:
            console.print(f"{backend}: fails: {done.stderr.strip().splitlines()[-1]}")
    if not works:
        raise typer.Exit(1)


@app.command()
def datasets(
    download: Annotated[
        str | None, typer.Option(help="Fetch this data set, such as cifar10; says its size first.")
    ] = None,
):
    """List the data sets, or download one."""
    from keras_segen import data

    if download is not None:
        data.download(download)
        return
    for name, text in data.DATASETS.items():
        console.print(f"[bold]{name}[/bold]  {text}", highlight=False)


@app.command()
def models():
    """List the models."""
    from keras_segen.segmentation import MODELS

    for name, builder in MODELS.items():
        text = inspect.getdoc(builder).splitlines()[0]
        console.print(f"[bold]{name}[/bold]  {text}", highlight=False)


@app.command()
@takes_experiment
def train(
    experiment,
    run: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/train"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run folder; other options are ignored.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="Also log scalars for TensorBoard.")] = False,
    backend: Backend = None,
):
    """Train a model into a run folder, or go on with one: --resume RUN."""
    _use(backend)
    from keras_segen import training

    folder = resume or run
    try:
        if resume:
            history = training.resume(resume, tensorboard=tensorboard)
        else:
            history = training.train(experiment, run, tensorboard=tensorboard)
    except KeyboardInterrupt:
        errors.print(
            f"Interrupted. Go on with: keras-segen train --resume {folder}", soft_wrap=True
        )
        raise typer.Exit(130) from None
    best = max(history[training.MONITOR])
    console.print(f"Best validation mean IoU {best:.4f}; the run is in {folder}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    backend: Backend = None,
):
    """Evaluate the best model of a run on a split; writes evaluation-SPLIT.json, .csv, .html."""
    _use(backend)
    from keras_segen import evaluation

    result = evaluation.evaluate(run, split)
    columns = evaluation.CLASS_FIGURES
    table = rich.table.Table("class", *columns.values())
    for name in result["class_iou"]:
        values = [result[f"class_{key}"][name] for key in columns]
        table.add_row(name, *("–" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
    means = [f"mean_{key}" for key in columns]
    for key in (*means, "pixel_accuracy", "expected_calibration_error"):
        console.print(f"{key} {result[key]:.4f}")
    console.print(f"{result['images']} images of {split}, on {result['backend']}")
    console.print(f"The worst images and more: {run / f'evaluation-{split}.html'}", soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    source: Annotated[Path, typer.Argument(help="A photo or a folder of photos.")],
    out: Annotated[Path, typer.Option(help="The folder for masks and overlays.")] = Path("masks"),
    backend: Backend = None,
):
    """Write masks and overlays for photos."""
    _use(backend)
    from keras_segen import evaluation

    with rich.progress.Progress(console=errors) as progress:
        bar = progress.add_task("predicting", total=None)
        written = evaluation.predict(run, source, out, tell=lambda path: progress.advance(bar))
    console.print(f"{len(written)} masks in {out}, overlays in {out / 'overlays'}")


@app.command()
@takes_experiment
def compare(
    experiment,
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("runs/compare"),
    backends: Annotated[str, typer.Option(help="Which to compare.")] = "tensorflow,torch",
    threads: Annotated[int | None, typer.Option(help="Threads of each; default all.")] = None,
):
    """Train on each backend from the same weights and batches, and report what differs."""
    from keras_segen.compare import report, run

    result = run(experiment, out, tuple(backends.split(",")), threads)
    report.print_report(result, console, out)
    raise typer.Exit({"passed": 0, "interrupted": 130}.get(result["status"], 1))


@bench.command()
@takes_experiment
def loader(experiment, backend: Backend = None):
    """Measure what feeding costs: epochs from the loader against the same batches in memory.

    --epochs epochs of each kind are measured, alternating, after one that warms up.
    """
    _use(backend)
    from keras_segen.compare import speed

    result = speed.loader_ratio(experiment, experiment.epochs, tell=console.print)
    console.print(f"loader / memory = {result['ratio']:.3f}")


def _interrupt(number, frame):
    raise KeyboardInterrupt


def main():
    """The entry point: one line for what a user can mend, a traceback for what is our fault."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("KERAS_SEGEN_TRACEBACK"):
            raise
        errors.print(
            f"[bold red]error:[/bold red] {rich.markup.escape(str(error))}", soft_wrap=True
        )
        sys.exit(1)
