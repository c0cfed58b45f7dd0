"""A trained run put to use: figures, masks, pictures."""

from pathlib import Path
from typing import Annotated

import rich.progress
import rich.table
import typer
from rich.text import Text

from keras_segen.cli.common import Backend, app, complete, console, decimals, errors, use
from keras_segen.data.dataset import SPLITS, check_split
from keras_segen.run_folder import find_model, load_run
from keras_segen.tasks import registry


def _task_of(run):
    """The task of a run whose model is there, without Keras."""
    task = registry.read(load_run(run)["experiment"])
    find_model(run)
    return task


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
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
    backend: Backend = None,
):
    """Evaluate the model of a run on a split; writes evaluation-SPLIT.json.

    Masks: figures of every class, also as .csv and .html. Pictures of a GAN or VAE: distances to
    real ones, and a VAE's bounds.
    """
    task = _task_of(run)
    check_split(split)
    use(backend)
    from keras_segen import runs
    from keras_segen.runs.evaluate import CLASS_FIGURES

    if task.makes == "pictures":
        from keras_segen.runs import judge

        given = {} if extractor is None else {"extractor": extractor}
        _print_judgement(judge.evaluate(run, split, count=count, **given), run, split)
        return
    if extractor is not None or count is not None:
        raise ValueError(f"--extractor and --count are for pictures, and {run} makes masks.")
    result = runs.evaluate(run, split)
    columns = CLASS_FIGURES
    table = rich.table.Table("class", *columns.values())
    for name in result["class_iou"]:
        values = [result[f"class_{key}"][name] for key in columns]
        table.add_row(name, *("–" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
    means = [f"mean_{key}" for key in columns]
    for key in (*means, "pixel_accuracy", "expected_calibration_error"):
        console.print(f"{key} {result[key]:.4f}")
    console.print(f"{result['images']} images of {split}, on {result['backend']}")
    console.print(f"The worst images and more: {run / f'evaluation-{split}.html'}")


def _print_judgement(result, run, split):
    """Prints what `judging.evaluate` found."""
    rows = {
        "generated against real": {**result, "images": result["fake_images"]},
        "half of the real against the other": result["sanity"]["real_against_real"],
        "noise against real": result["sanity"]["real_against_noise"],
    }
    shown = ("precision", "recall", "density", "coverage")
    table = rich.table.Table("", "images", "Fréchet distance", "kernel distance", *shown)
    for name, row in rows.items():
        kernel = f"{row['kernel_distance']:.4f} ± {row['kernel_standard_error']:.4f}"
        distances = (f"{row['images']}", f"{row['frechet_distance']:.2f}", kernel)
        table.add_row(name, *distances, *(f"{row[key]:.3f}" for key in shown))
    console.print(table)
    console.print(
        f"{result['measure']}: {result['features']} features. {result['real_images']} real images "
        f"of {split}; {result['checkpoint']}; on {result['backend']}",
    )
    if "bounds" in result:
        found, weighted = result["bounds"], result["bounds"]["importance_weighted"]
        console.print(
            f"ELBO {found['elbo']:.2f} nats per image, {found['bits_per_dimension']:.4f} bits per "
            f"dimension; reconstruction {found['reconstruction']:.2f}, KL {found['kl']:.2f}; "
            f"{found['images']} images",
        )
        console.print(
            f"Importance-weighted bound {weighted['bound']:.2f} nats, "
            f"{weighted['bits_per_dimension']:.4f} bits per dimension, where the ELBO is "
            f"{weighted['elbo']:.2f}; {weighted['images']} images, "
            f"{weighted['samples']} codes each",
        )
    for warning in result["warnings"]:
        console.print(Text.assemble(("Careful:", "yellow"), f" {warning}"))
    console.print(f"All of it: {run / f'evaluation-{split}.json'}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    source: Annotated[Path, typer.Argument(help="A photo or a folder of photos.")],
    out: Annotated[Path, typer.Option(help="The folder for masks and overlays.")] = Path("masks"),
    output: Annotated[
        str, typer.Option(help="classes (PNG masks), probabilities or entropy (float32 .npy).")
    ] = "classes",
    full_size: Annotated[
        bool, typer.Option(help="Predict at the photo's own size, in tiles.")
    ] = False,
    tile: Annotated[int | None, typer.Option(help="With --full-size: pixels; default 512.")] = None,
    overlap: Annotated[
        int | None, typer.Option(help="With --full-size: pixels; default a quarter of the tile.")
    ] = None,
    flips: Annotated[
        str, typer.Option(help="none, horizontal or both: average over mirrored photos.")
    ] = "none",
    scales: Annotated[
        str, typer.Option(help="Average over photos at these sizes, such as 0.75,1,1.25.")
    ] = "1",
    fold: Annotated[
        bool, typer.Option(help="Fold batch normalization into the convolutions: faster.")
    ] = False,
    backend: Backend = None,
):
    """Write masks and overlays for photos.

    A photo is brought to the size of the training, and the result back to its own; with
    --full-size it is predicted at its own size.
    """
    _task_of(run)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name an image or a folder of images.")
    options = {
        "output": output,
        "full_size": full_size,
        "tile": tile,
        "overlap": overlap,
        "flips": flips,
        "scales": decimals("--scales", scales),
        "fold": fold,
    }
    use(backend)
    from keras_segen import runs

    with rich.progress.Progress(console=errors) as progress:
        bar = progress.add_task("predicting", total=None)
        written = runs.predict(run, source, out, tell=lambda path: progress.advance(bar), **options)
    what = "masks" if output == "classes" else f"arrays of {output}"
    console.print(f"{len(written)} {what} in {out}, overlays in {out / 'overlays'}")


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="A run folder of a GAN or a VAE.")],
    count: Annotated[
        int | None, typer.Option(help="Samples (64), or rows of the other pictures (8).", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Other seeds give other samples.")] = 0,
    class_name: Annotated[
        str | None, typer.Option("--class", help="The class of all samples, such as cat.")
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option(help="Go from sample to sample in so many steps.")
    ] = None,
    traverse: Annotated[
        int | None, typer.Option(help="Move single numbers of a code in so many steps.")
    ] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Show the nearest real images: are they copies?")
    ] = False,
    split: Annotated[str, typer.Option(help="With --nearest: train, val or test.")] = "train",
    extractor: Annotated[
        str | None,
        typer.Option(help="With --nearest: compare its features, such as efficientnet_lite0."),
    ] = None,
    separate: Annotated[
        Path | None, typer.Option(help="A folder to write the samples to, a file each.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("samples.png"),
    backend: Backend = None,
):
    """Make images with the model of a run: samples, ways between them, what is near to them."""
    _task_of(run)
    check_split(split)
    use(backend)
    from keras_segen import runs

    done = runs.generate(
        run,
        out,
        count=count,
        seed=seed,
        class_name=class_name,
        interpolate=interpolate,
        traverse=traverse,
        nearest=nearest,
        split=split,
        extractor=extractor,
        separate=separate,
    )
    console.print(done)
