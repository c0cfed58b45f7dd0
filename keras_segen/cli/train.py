"""Training into a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from keras_segen.cli.common import Backend, Stock, app, console, errors, use
from keras_segen.cli.fields import takes_task


@app.command()
@takes_task
def train(
    task,
    run: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/train"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run folder; other options are ignored.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="Also log scalars for TensorBoard.")] = False,
    stock: Stock = False,
    backend: Backend = None,
):
    """Train a model into a run folder, or go on with one: --resume RUN."""
    use(backend, stock)
    from keras_segen.runs import training
    from keras_segen.tasks.registry import read

    folder = resume or run
    try:
        if resume:
            history = training.resume(resume, tensorboard=tensorboard)
        else:
            history = training.train(task, run, tensorboard=tensorboard)
    except KeyboardInterrupt:
        errors.print(f"Interrupted. Go on with: keras-segen train --resume {folder}")
        raise typer.Exit(130) from None
    trained = read(training.load_run(folder)["experiment"])
    console.print(f"{trained.outcome(history)}; the run is in {folder}")
