"""How fast, and with how much memory: measured on this machine."""

import functools
from pathlib import Path
from typing import Annotated

import rich.table
import typer

from keras_segen.cli.common import Backend, app, console, errors, numbers, use
from keras_segen.cli.fields import OF_A_WHOLE_TRAINING, takes_task

bench = typer.Typer(help="Measure the product on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
@takes_task
def loader(task, backend: Backend = None):
    """Measure what feeding costs: epochs from the loader against the same batches in memory.

    --epochs epochs of each kind are measured, in pairs, after one that warms up.
    """
    use(backend)
    from keras_segen.bench.loader import loader_ratio

    result = loader_ratio(task, task.epochs, tell=console.print)
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
    backend: Backend = None,
):
    """Measure the memory that large images take, and what folding batch normalization saves."""
    use(backend)
    from keras_segen.bench import prediction

    sides = numbers("--sizes", sizes)
    model = prediction.model_to_predict(run)
    folding = prediction.folding_ratio(model, tile)
    console.print(
        f"tile {tile}: {folding['plain_ms']:.0f} ms, folded {folding['folded_ms']:.0f} ms; "
        f"folded / plain = {folding['ratio']:.3f}"
    )
    table = rich.table.Table("image", "seconds", "image + result", "peak growth", "beyond them")
    for row in prediction.prediction_memory(model, sides, tile, tell=errors.print):
        mib = [f"{row[key] / 2**20:.0f} MiB" for key in ("arrays", "growth", "beyond")]
        table.add_row(f"{row['side']} x {row['side']}", f"{row['seconds']:.1f}", *mib)
    console.print(table)


@bench.command("native")
def bench_native(
    network: Annotated[str, typer.Argument(help="unet, fcn, vae or dcgan.")],
    data: Annotated[str, typer.Option(help="Data set, such as folder:PATH.")] = "shapes",
    image_size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH; without it, 128x128, or 32x32 to make images.")
    ] = None,
    channels: Annotated[int, typer.Option(help="1 for grey images, 3 for RGB.")] = 3,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step; without it, 4, or 64 to make images.")
    ] = None,
    filters: Annotated[str | None, typer.Option(help="Channels per level, such as 16,32.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps per round, two of them not timed.")] = 12,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed.")] = 10,
    out: Annotated[Path, typer.Option(help="The folder for results.")] = Path("runs/bench"),
    backend: Backend = None,
):
    """Measure what Keras costs on top of a loop written by hand, once both are proven equal.

    The result is written into --out, and compared with the latest one there of the same settings.
    """
    use(backend)
    from keras_segen.bench import native

    contest = native.contest(
        network,
        data=data,
        image_size=image_size and numbers("--image-size", image_size, "x", 2),
        channels=channels,
        batch_size=batch_size,
        filters=filters and numbers("--filters", filters),
        seed=seed,
    )
    result = native.run(contest, out, steps, rounds, tell=errors.print)
    settings, versions, proof = (result[key] for key in ("settings", "versions", "proof"))
    for values in (settings, {key: value for key, value in versions.items() if value}):
        text = ", ".join(f"{key} {value}" for key, value in values.items())
        console.print(text)
    console.print(
        f"Equal over {proof['steps']} steps: losses to {proof['losses']:.1e} (tolerance "
        f"{native.LOSSES:.0e}), predictions to {proof['predictions']:.1e} (tolerance "
        f"{native.PREDICTIONS:.0e}).",
    )
    table = rich.table.Table("", "ms, Keras", "ms, native", "ratio", "p10 to p90")
    for row in result["rows"]:
        table.add_row(
            f"{row['work']}, {row['side']}",
            f"{row['ours_ms']['median']:.1f}",
            f"{row['native_ms']['median']:.1f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_p10']:.3f} to {row['ratio_p90']:.3f}",
        )
    console.print(table)
    for row in result["rows"] if result["earlier"] else ():
        was = result["earlier"]["ratios"].get(f"{row['work']}, {row['side']}")
        if was is not None:
            console.print(
                f"{row['work']}, {row['side']}: ratio {row['ratio']:.3f}, was {was:.3f} on "
                f"{result['earlier']['time'][:10]}",
            )


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
    backends: Annotated[str, typer.Option(help="Which to measure.")] = "tensorflow,torch",
    threads: Annotated[int | None, typer.Option(help="Threads of each; default all.")] = None,
    steps: Annotated[int, typer.Option(help="Steps per round, two of them not timed.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder for results.")] = Path("runs/bench"),
):
    """Measure what a step costs on each framework, in each mode, and how that grows with size.

    Training, prediction and loading; time, CPU time, start-up, compilation and memory. The result
    is written into --out, and compared with the latest one there of the same settings.
    """
    from keras_segen.bench import costs, costs_report

    if image_size is None:
        image_size = "64x64,128x128" if task.makes == "masks" else "32x32,64x64"
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
