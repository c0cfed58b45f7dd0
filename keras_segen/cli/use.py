"""Use of a trained run: evaluation, prediction, generation."""

from pathlib import Path
from typing import Annotated

import rich.progress
import typer
from rich.text import Text

from keras_segen.cli.common import Backend, Stock, app, complete, console, decimals, errors, use
from keras_segen.data.dataset import SPLITS, check_split
from keras_segen.run_folder import find_model, last_run, load_run
from keras_segen.tasks import registry

Run = Annotated[Path | None, typer.Argument(help="A run folder; or --last.")]
Last = Annotated[bool, typer.Option("--last", help="Take the run that was started last in runs/.")]


def _find_run(run, last):
    """Returns the run folder that is meant, after checking it.

    Keras is not imported yet.
    """
    if (run is None) != last:
        raise ValueError("Name a run folder, or take the last one with --last; one of the two.")
    if last:
        run = last_run()
        console.print(f"{run}:")
    registry.read(load_run(run)["experiment"])
    find_model(run)
    return run


@app.command()
def evaluate(
    run: Run = None,
    split: Annotated[
        str, typer.Option(help="train, val or test.", autocompletion=complete(SPLITS))
    ] = "test",
    extractor: Annotated[
        str | None,
        typer.Option(
            help="For pictures: efficientnet_lite0 (the default), inception_v3:WEIGHTS or a "
            ".keras file, the network whose features are compared."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="For pictures: how many of each side; default all, at most 10,000."),
    ] = None,
    last: Last = False,
    stock: Stock = False,
    backend: Backend = None,
):
    """Evaluate the model of a run on a split; writes evaluation-SPLIT.json, .csv and .html.

    Masks: figures of every class. Objects: average precision, and results in COCO's JSON. Pictures
    of a GAN or VAE: distances to real ones, and a VAE's bounds.
    """
    run = _find_run(run, last)
    check_split(split)
    use(backend, stock)
    from keras_segen import runs

    found = runs.evaluate(run, split, extractor=extractor, count=count)
    for table in found.tables:
        console.print(table.to_rich())
    for sentence in found.sentences:
        console.print(sentence)
    for warning in found.warnings:
        console.print(Text.assemble(("Careful:", "yellow"), f" {warning}"))
    console.print(f"All of it: {run / f'evaluation-{split}.html'}")


@app.command()
def predict(
    run: Run = None,
    source: Annotated[Path | None, typer.Argument(help="A photo or a folder of photos.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for masks and overlays.")] = Path("masks"),
    output: Annotated[
        str | None,
        typer.Option(help="classes (PNG masks), probabilities or entropy (float32 .npy)."),
    ] = None,
    full_size: Annotated[
        bool | None, typer.Option("--full-size", help="Predict at the photo's own size, in tiles.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="With --full-size: pixels; default 512.")] = None,
    overlap: Annotated[
        int | None, typer.Option(help="With --full-size: pixels; default a quarter of the tile.")
    ] = None,
    flips: Annotated[
        str | None, typer.Option(help="none, horizontal or both: average over mirrored photos.")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Average over photos at these sizes, such as 0.75,1,1.25.")
    ] = None,
    fold: Annotated[
        bool | None,
        typer.Option("--fold", help="Fold batch normalization into the convolutions: faster."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="For objects: those of lower scores are left out; default 0.5."),
    ] = None,
    last: Last = False,
    stock: Stock = False,
    backend: Backend = None,
):
    """Write masks and overlays for photos; for models of objects also detections.json.

    A photo is resized to the size of the training images, and the result back to its own; with
    --full-size it is predicted at its own size.
    """
    if last and source is None:
        run, source = None, run
    if source is None:
        raise ValueError("Name a photo or a folder of photos: keras-segen predict RUN PHOTO.")
    run = _find_run(run, last)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name an image or a folder of images.")
    options = {"output": output, "full_size": full_size, "tile": tile, "overlap": overlap}
    options |= {"flips": flips, "fold": fold, "min_score": min_score}
    options |= {"scales": scales and decimals("--scales", scales)}
    use(backend, stock)
    from keras_segen import runs

    with rich.progress.Progress(console=errors) as progress:
        bar = progress.add_task("predicting", total=None)
        written = runs.predict(run, source, out, tell=lambda path: progress.advance(bar), **options)
    task = registry.read(load_run(run)["experiment"])
    what = task.predicts if output in (None, "classes") else f"arrays of {output}"
    console.print(f"{len(written)} {what} in {out}, overlays in {out / 'overlays'}")


@app.command()
def generate(
    run: Run = None,
    count: Annotated[
        int | None, typer.Option(help="Samples (64), or rows of the other pictures (8).", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Other seeds give other samples.")] = 0,
    class_name: Annotated[
        str | None, typer.Option("--class", help="The class of all samples, such as cat.")
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(help="For stylegan2: below 1, samples are more typical and differ less."),
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option(help="Interpolate between samples in this many steps.")
    ] = None,
    traverse: Annotated[
        int | None, typer.Option(help="Vary single dimensions of a code in this many steps.")
    ] = None,
    nearest: Annotated[
        bool | None,
        typer.Option("--nearest", help="Show the nearest real images: are they copies?"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --nearest: train, val or test; default train.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="With --nearest: compare its features, such as efficientnet_lite0."),
    ] = None,
    separate: Annotated[
        Path | None, typer.Option(help="A folder to write the samples to, a file each.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("samples.png"),
    last: Last = False,
    stock: Stock = False,
    backend: Backend = None,
):
    """Make images with the model of a run: samples, interpolations, nearest real images."""
    run = _find_run(run, last)
    if split is not None:
        check_split(split)
    use(backend, stock)
    from keras_segen import runs

    options = {"count": count, "class_name": class_name, "separate": separate}
    options |= {"truncation": truncation}
    options |= {"interpolate": interpolate, "traverse": traverse}
    options |= {"nearest": nearest, "split": split, "extractor": extractor}
    console.print(runs.generate(run, out, seed=seed, **options))
