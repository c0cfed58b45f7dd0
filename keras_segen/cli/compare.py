"""Comparisons: models on the same folds, a task on two frameworks."""

from pathlib import Path
from typing import Annotated

import typer

from keras_segen.cli.common import Backend, Stock, Threads, app, console, errors, leave_stock, use
from keras_segen.cli.fields import takes_task, takes_tasks


@app.command()
@takes_tasks
def crossval(
    tasks,
    folds: Annotated[int, typer.Option(help="Parts that the training split is cut into.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("runs/crossval"),
    stock: Stock = False,
    backend: Backend = None,
):
    """Train models on the same folds and compare them; after an interruption, run it again.

    A .json file is a run.json, or has the same entry "experiment"; the options here do not change
    it.
    """
    use(backend, stock)
    from keras_segen.runs import crossval

    try:
        result = crossval.cross_validate(
            tasks, out, folds, verbose="auto" if console.is_terminal else 0, tell=console.print
        )
    except KeyboardInterrupt:
        errors.print(f"Interrupted. Run the same command again to continue in {out}.")
        raise typer.Exit(130) from None
    task = next(iter(tasks.values()))
    console.print(crossval.verdict(result, task))
    for table in crossval.tables(result, task):
        console.print(table.to_rich())
    if result["differences"]:
        console.print(result["caution"])
    console.print(f"Plot and more: {out / 'crossval.html'}")


@app.command()
@takes_task
def compare(
    task,
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("runs/compare"),
    backends: Annotated[str, typer.Option(help="Which to compare.")] = "tensorflow,torch",
    threads: Threads = None,
    parity: Annotated[
        bool, typer.Option(help="Find where they part: layer by layer, step by step.")
    ] = False,
    parity_steps: Annotated[int, typer.Option(help="With --parity: training steps.", min=1)] = 20,
    seconds: Annotated[
        float,
        typer.Option(
            "--time", help="Seconds to find which is faster, by turns, after the trainings; 0: not."
        ),
    ] = 60,
    seeds: Annotated[
        int,
        typer.Option(
            help="Train with so many seeds: is the choice of the framework larger than that of "
            "the seed?",
            min=1,
        ),
    ] = 1,
    stock: Stock = False,
):
    """Train on each backend from the same weights and batches, and report what differs."""
    leave_stock(stock)
    from keras_segen.compare import report
    from keras_segen.compare.run import run

    steps = parity_steps if parity else 0
    result = run(
        task,
        out,
        tuple(backends.split(",")),
        threads,
        parity_steps=steps,
        seconds=seconds,
        num_seeds=seeds,
    )
    report.print_report(result, console, out)
    raise typer.Exit({"passed": 0, "interrupted": 130}.get(result["status"], 1))
