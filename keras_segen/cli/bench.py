"""Benchmarks of time and memory on this machine."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from keras_segen.cli.common import (
    Backend,
    Backends,
    Rounds,
    Steps,
    Stock,
    Threads,
    app,
    console,
    errors,
    leave_stock,
    numbers,
    print_replacements,
    use,
)
from keras_segen.cli.fields import OF_A_WHOLE_TRAINING, takes_task

bench = typer.Typer(help="Measure the product on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
@takes_task
def loader(task, stock: Stock = False, backend: Backend = None):
    """Measure the cost of loading: epochs from the loader against the same batches in memory.

    --epochs epochs of each kind are measured, in pairs, after one to warm up.
    """
    use(backend, stock)
    from keras_segen.bench.loader import loader_ratio

    result = loader_ratio(task, task.epochs, tell=console.print)
    print_replacements()
    console.print(
        f"loader / memory = {result['ratio']:.3f} (median of {len(result['ratios'])} pairs, "
        f"{min(result['ratios']):.3f} to {max(result['ratios']):.3f})"
    )


@bench.command("predict")
def bench_predict(
    run: Annotated[
        Path | None, typer.Argument(help="A run folder; without it, a U-Net of 16,32,64 channels.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Sides of square images, ascending.")
    ] = "1000,2000,4000,10000",
    tile: Annotated[int, typer.Option(help="Pixels.")] = 512,
    stock: Stock = False,
    backend: Backend = None,
):
    """Measure the memory of large images, and the time that folding batch normalization saves."""
    use(backend, stock)
    from keras_segen.bench import prediction

    sides = numbers("--sizes", sizes)
    model = prediction.model_to_predict(run)
    print_replacements()
    folding = prediction.folding_ratio(model, tile)
    console.print(
        f"tile {tile}: {folding['plain_ms']:.0f} ms, folded {folding['folded_ms']:.0f} ms; "
        f"folded / plain = {folding['ratio']:.3f}"
    )
    rows = prediction.prediction_memory(model, sides, tile, tell=errors.print)
    console.print(prediction.table(rows).to_rich())


@bench.command("native")
def bench_native(
    network: Annotated[str, typer.Argument(help="unet, fcn, mask_rcnn, vae or dcgan.")],
    data: Annotated[str, typer.Option(help="Data set, such as folder:PATH.")] = "shapes",
    image_size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH; without it, 128x128, or 96x96 (mask_rcnn), 32x32 (vae, dcgan)."
        ),
    ] = None,
    channels: Annotated[int, typer.Option(help="1 for gray images, 3 for RGB.")] = 3,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images per step; without it, 4, or 8 (mask_rcnn), 64 (vae, dcgan)."),
    ] = None,
    filters: Annotated[str | None, typer.Option(help="Channels per level, such as 16,32.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    steps: Steps = 12,
    rounds: Rounds = 10,
    out: Annotated[Path, typer.Option(help="The folder for results.")] = Path("runs/bench"),
    stock: Stock = False,
    backend: Backend = None,
):
    """Measure the overhead of Keras over a hand-written loop, after proving both equal.

    The result is written into --out, and compared with the latest one there of the same settings.
    """
    use(backend, stock)
    from keras_segen.bench import contests, native

    contest = contests.contest(
        network,
        data=data,
        image_size=image_size and numbers("--image-size", image_size, "x", 2),
        channels=channels,
        batch_size=batch_size,
        filters=filters and numbers("--filters", filters),
        seed=seed,
    )
    result = native.run(contest, out, steps, rounds, tell=errors.print)
    for line in native.lines(result):
        console.print(line)
    console.print(native.table(result).to_rich())


@bench.command("costs")
@functools.partial(takes_task, without=OF_A_WHOLE_TRAINING)
def bench_costs(
    task,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Sizes, HEIGHTxWIDTH each; without it, 64x64,128x128, or half to make pictures."
        ),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Images per step, such as 1,2,4.")] = "2,4",
    modes: Annotated[
        str | None,
        typer.Option(
            help="Of graph, eager, xla, compile, also with +bfloat16 or +float16; without it, all "
            "that a backend has, and its own default with +bfloat16."
        ),
    ] = None,
    backends: Backends = "tensorflow,torch",
    threads: Threads = None,
    steps: Steps = 8,
    rounds: Rounds = 5,
    out: Annotated[Path, typer.Option(help="The folder for results.")] = Path("runs/bench"),
    stock: Stock = False,
):
    """Measure the cost of a step on each framework, in each mode, and its growth with size.

    Training, prediction and loading; time, CPU time, start-up, compilation and memory. The result
    is written into --out, and compared with the latest one there of the same settings.
    """
    leave_stock(stock)
    from keras_segen.bench import costs, costs_report

    sizes = task.bench_sizes
    if image_size is not None:
        sizes = [numbers("--image-size", each, "x", 2) for each in image_size.split(",")]
    result = costs.run(
        task,
        out,
        sizes,
        numbers("--batch-size", batch_size),
        modes.split(",") if modes else None,
        backends.split(","),
        threads,
        steps,
        rounds,
        tell=errors.print,
    )
    if result["cells"]:
        costs_report.write_page(result, out)
    costs_report.print_result(result, console, out)
    raise typer.Exit({"done": 0, "interrupted": 130}.get(result["status"], 1))
