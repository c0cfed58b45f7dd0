"""Training into a run folder."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from keras_segen.cli.common import Backend, Stock, app, console, errors, print_backend, use
from keras_segen.cli.fields import takes_task
from keras_segen.run_folder import check_new, load_run, next_folder
from keras_segen.tasks import registry

WITH_RESUME = ("resume", "epochs", "tensorboard", "check_numerics", "stock", "backend")


@app.command()
@takes_task
def train(
    task,
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Option(help="The run folder to write. Without it, runs/<model>-<data>-<number>."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with this run folder, with its settings; with --epochs also after its end."
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="Also log scalars for TensorBoard.")] = False,
    check_numerics: Annotated[
        bool,
        typer.Option(
            "--check-numerics",
            help="End at the first NaN or infinity, and name the step and the layer; slower.",
        ),
    ] = False,
    stock: Stock = False,
    backend: Backend = None,
):
    """Train a model into a run folder, or resume one: --resume RUN."""
    epochs = None
    if resume:
        _check_alone(context)
        if context.get_parameter_source("epochs").name == "COMMANDLINE":
            epochs = task.epochs
        task = registry.read(load_run(resume)["experiment"])
    else:
        run = run or next_folder(task)
        check_new(run)
    folder = resume or run
    console.print(f"{Path(task.model).name} on {task.data}, into {folder}")
    use(backend, stock)
    print_backend(backend)
    from keras_segen.runs import training

    if resume:
        begin = functools.partial(training.resume, epochs=epochs)
    else:
        begin = functools.partial(training.train, task)
    try:
        history = begin(
            folder,
            tensorboard=tensorboard,
            check_numerics=check_numerics,
            tell=console.print,
            **_progress(task),
        )
    except KeyboardInterrupt:
        errors.print(f"Interrupted. Go on with: keras-segen train --resume {folder}")
        raise typer.Exit(130) from None
    console.print(f"{task.outcome(history)}; the run is in {folder}")
    console.print(f"Next: keras-segen evaluate {folder}")
    console.print(f"      keras-segen {task.used_by} {folder} …")


def _check_alone(context):
    """Raises a ValueError if an option beside --resume would have no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source.name == "COMMANDLINE" and parameter.name not in WITH_RESUME:
            name = parameter.opts[0]
            raise ValueError(
                f"--resume keeps the settings of its run folder, and {name} would change "
                "nothing: leave it out, or train anew into another folder."
            )


def _progress(task):
    """How `fit` shows progress: a bar on a terminal, elsewhere a line for each epoch."""
    if console.is_terminal:
        return {}
    import keras

    def tell(epoch, logs):
        figures = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        console.print(f"epoch {epoch + 1} of {task.epochs}: {figures}")

    return {"verbose": 0, "callbacks": [keras.callbacks.LambdaCallback(on_epoch_end=tell)]}
