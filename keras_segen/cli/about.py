"""Information: versions and frameworks, data sets, models, runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import rich.table
import typer
from rich.text import Text

from keras_segen import frameworks
from keras_segen.cli.common import app, console


@app.command()
def doctor():
    """Show versions, frameworks, devices, threads and the data cache; exit 1 if nothing runs."""
    from keras_segen import machine
    from keras_segen.data.cache import cache_folder

    table = rich.table.Table(show_header=False, box=None)
    for name, value in {**machine.hardware(), **machine.versions()}.items():
        table.add_row(name, "not installed" if value is None else str(value))
    table.add_row("data cache", str(cache_folder()))
    table.add_row("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "not set"))
    console.print(table)
    works = []
    for backend in frameworks.FRAMEWORKS:
        if backend not in frameworks.installed():
            console.print(f"{backend}: not installed (pip install 'keras-segen[{backend}]')")
            continue
        code = (
            "import json; from keras_segen import backend; from keras_segen.backend import faster; "
            "faster.apply_by_default(); print(json.dumps([backend.settings(), faster.status()]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            works.append(backend)
            found, replaced = json.loads(done.stdout.splitlines()[-1])
            console.print(f"{backend}: runs; " + ", ".join(f"{k} {v}" for k, v in found.items()))
            for name, text in replaced.items():
                console.print(f"  {name}: {text}")
        else:
            console.print(f"{backend}: fails: {done.stderr.strip().splitlines()[-1]}")
    if not works:
        raise typer.Exit(1)


@app.command()
def datasets(
    download: Annotated[
        str | None, typer.Option(help="Fetch this data set, such as cifar10; print its size.")
    ] = None,
):
    """List the data sets, or download one."""
    from keras_segen import data

    if download is not None:
        data.download(download)
        return
    _print_list(data.DATASETS)


@app.command()
def models():
    """List the models: first for segmentation, then for generation."""
    from keras_segen.tasks.registry import KINDS

    texts = {}
    for kind in KINDS:
        texts |= kind.describe_models()
    _print_list(texts)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds them.")] = Path("runs"),
):
    """List the run folders: task, progress and result."""
    from keras_segen.report.tables import Column, Table
    from keras_segen.run_folder import find_runs, read_history
    from keras_segen.tasks import registry

    rows = []
    for path, run in find_runs(folder):
        try:
            task, history = registry.read(run["experiment"]), read_history(path)
            reached = task.outcome(history) if history else "–"
        except (ValueError, LookupError) as error:
            rows.append([str(path), "", "", "", f"damaged: {error}"])
            continue
        epochs = f"{len(history.get('epoch', ()))} of {task.epochs}"
        started = run["starts"][-1]
        model, data = Path(task.model).name, f"{task.data}, {started['backend']}"
        rows.append([str(path), model, data, epochs, reached])
    if not rows:
        raise FileNotFoundError(f"{folder} holds no run folder: train first, or name another.")
    columns = [Column(each, str, numeric=False) for each in ("model", "data, backend", "epochs")]
    reached = Column("reached", str, numeric=False)
    console.print(Table("Runs", ["run", *columns, reached], rows).to_rich())


def _print_list(texts):
    """Prints names and their descriptions, one below the other."""
    width = max(map(len, texts))
    for name, text in texts.items():
        console.print(Text.assemble((name.ljust(width), "bold"), f"  {text}"))
