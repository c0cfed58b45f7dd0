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
import typing
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
Stock = Annotated[
    bool, typer.Option("--stock", help="Leave Keras as it ships; without it, it is made faster.")
]

# What the command line says of each field of a task.
HELP = {
    "data": "Data set: a name that `keras-segen datasets` lists, such as folder:PATH.",
    "filters": "Channels per level, such as 16,32,64; without it, what suits a laptop.",
    "latent_dim": "Numbers in a code.",
    "conditional": "Tell the model the class of each picture, so that one can be asked for.",
    "judge": "Generated images to compare with validation ones after each epoch; 0: none.",
    "discriminator_learning_rate": "That of the discriminator; without it, the generator's.",
    "r1": "Weight of the squared slope of the discriminator at real images.",
    "gradient_penalty": "Weight of the penalty that keeps its slope at 1; 10 with wasserstein.",
    "discriminator_steps": "Steps of the discriminator for each step of the generator.",
    "ema": "How much of the averaged generator stays in each step.",
    "beta_1": "Adam's, for both networks.",
    "beta_2": "Adam's, for both networks.",
    "likelihood": "gaussian or bernoulli: what the decoder says of a pixel.",
    "beta": "Weight of the distance between codes and the standard normal.",
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
    "weight_decay": "Weight decay of adamw and sgd.",
    "loss": "For masks a sum such as cross_entropy+0.5*lovasz, of cross_entropy, "
    "binary_cross_entropy, focal, dice, jaccard, tversky, focal_tversky, lovasz; for a GAN "
    "non_saturating, hinge, least_squares or wasserstein.",
    "label_smoothing": "0 to below 1: how far targets are moved off certainty.",
    "class_weights": "none, median_frequency, inverse_frequency or effective_number, for "
    "unbalanced classes.",
    "sampling": "uniform, or rare_classes to draw images with rare classes oftener.",
    "early_stopping": "Epochs without a better validation figure after which to stop; 0: never.",
    "augment": "default, none, or for masks steps such as 'flip=0.5 brightness=0.5,-0.2,0.2'.",
    "precision": "float32, mixed_float16, mixed_bfloat16, or float64 with compare --parity.",
    "seed": "Seed of weights, order and augmentation.",
    "workers": "Processes that prepare batches; 0 for a thread.",
    "cache": "none, ram or disk: where decoded images are kept.",
    "folds": "Folds that the training split is cut into; 0 for none.",
    "fold": "The fold that is held out, from 1: trains on the others.",
    "start_from": "A run folder whose best model gives the first weights of the same layers.",
}


# What makes no step dearer or cheaper.
OF_A_WHOLE_TRAINING = (
    "epochs",
    "schedule",
    "early_stopping",
    "freeze_epochs",
    "fine_tune_rate",
    "judge",
    "folds",
    "fold",
    "start_from",
)


def takes_task(command, without=()):
    """Gives a command one option for each field of a task, and calls it with one.

    `without` names the fields that are nothing to the command.

    A command that takes `tasks` gets a dict of them, one for each model that is named; they
    are tasks of models that make masks.
    """
    from keras_segen.tasks import registry as kinds

    parameters = inspect.signature(command).parameters
    own = [p for p in parameters.values() if p.name not in ("task", "tasks")]
    several = "tasks" in parameters
    known = kinds.KINDS[:1] if several else kinds.KINDS
    if several:
        text = (
            "Names that `keras-segen models` lists, .keras files, or .json files with whole "
            "experiments."
        )
        name, model = "models", {"annotation": Annotated[list[str], typer.Argument(help=text)]}
    else:
        text = typer.Argument(
            help="A name that `keras-segen models` lists; for masks also a .keras file, a network "
            "from images in 0 to 1 to logits, whose weights are the start."
        )
        name, model = "model", {"annotation": Annotated[str, text], "default": "unet"}
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, **model)]
    fields = dict.fromkeys(field.name for kind in known for field in dataclasses.fields(kind))
    for field in fields:
        if field in ("model", *parameters, *without) or (several and field in ("folds", "fold")):
            continue  # a command may take an option in another way
        added.append(
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=_option(field, known),
                default=None,  # what is not given is the model's own business
            )
        )

    @functools.wraps(command)
    def wrapper(**values):
        fields = {parameter.name: values.pop(parameter.name) for parameter in added}
        names = fields.pop(name)
        given = {field: value for field, value in fields.items() if value is not None}
        if "filters" in given:
            given["filters"] = _numbers("--filters", given["filters"], r"\d+(,\d+)*", ",")
        if "image_size" in given:
            size = _numbers("--image-size", given["image_size"], r"\d+x\d+", "x")
            given["image_size"] = size
        if not several:
            return command(task=_make_task(names, given), **values)
        tasks = {}
        for model in names:
            is_file = model.endswith(".json")
            name_of = Path(model).stem if is_file or kinds.is_file(model) else model
            if name_of in tasks:
                raise ValueError(f"{name_of} is named twice: give each task a name of its own.")
            tasks[name_of] = kinds.read_json(model) if is_file else _make_task(model, given)
        return command(tasks=tasks, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*added, *own]]
    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _option(field, known):
    """The annotation of the option for a field: its type, help, default and group."""
    having = [kind for kind in known if field in kind.__dataclass_fields__]
    hint = typing.get_type_hints(having[0])[field]
    kind_of_value = next(t for t in typing.get_args(hint) or (hint,) if t is not type(None))
    if kind_of_value is tuple:
        kind_of_value = str
    models = {}
    for kind in having:
        for model in kind.MODELS:
            models.setdefault(kind.default(field, model), []).append(model)
    shown = "; ".join(
        str(value) if len(models) == 1 else f"{', '.join(models[value])} {value}"
        for value in models
        if value is not None
    )
    panel = "Options"
    if len(having) < len(known):
        panel = "Only for " + ", ".join(model for kind in having for model in kind.MODELS)
    text = HELP[field] + (f" Default: {shown}." if shown else "")
    option = typer.Option(help=text, show_default=False, rich_help_panel=panel)
    return Annotated[kind_of_value | None, option]


def _make_task(model, given):
    """Makes the task of a model out of the options that were given."""
    from keras_segen.tasks import registry as kinds

    kind = kinds.kind_of(model)
    for field in given:
        if field not in kind.__dataclass_fields__:
            others = [
                name
                for other in kinds.KINDS
                if field in other.__dataclass_fields__
                for name in other.MODELS
            ]
            raise ValueError(
                f"--{field.replace('_', '-')} is for {', '.join(others)}; {model} has none."
            )
    return kind(model=model, **given)


def _numbers(option, text, pattern, separator):
    if not re.fullmatch(pattern, text):
        expected = separator.join(["176", "240"])
        raise ValueError(f"{option} is {text!r}, expected whole numbers such as {expected}.")
    return tuple(int(number) for number in text.split(separator))


def _decimals(option, text):
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}, expected numbers such as 0.75,1,1.25.") from None


def _use(backend, stock):
    """Chooses the framework, and Keras as it ships or made faster, here and in child processes."""
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _leave_stock(stock)
    frameworks.require()
    from keras_segen.backend import faster

    faster.apply_by_default()


def _leave_stock(stock):
    if stock:
        os.environ["KERAS_SEGEN_STOCK"] = "1"


def _print_replacements():
    from keras_segen.backend import faster

    console.print(f"Replaced in Keras: {faster.summary()}", highlight=False, soft_wrap=True)


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
                console.print(f"  {name}: {text}", markup=False, highlight=False, soft_wrap=True)
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
    """List the models: those that make masks, then those that make pictures."""
    from keras_segen import generation, segmentation

    texts = {name: inspect.getdoc(builder) for name, builder in segmentation.MODELS.items()}
    for name, builders in generation.NETWORKS.items():
        texts[name] = sys.modules[builders[0].__module__].__doc__
    for name, text in texts.items():
        console.print(f"[bold]{name}[/bold]  {text.splitlines()[0]}", highlight=False)


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
    _use(backend, stock)
    from keras_segen.runs import training
    from keras_segen.tasks.registry import read

    folder = resume or run
    try:
        if resume:
            history = training.resume(resume, tensorboard=tensorboard)
        else:
            history = training.train(task, run, tensorboard=tensorboard)
    except KeyboardInterrupt:
        errors.print(
            f"Interrupted. Go on with: keras-segen train --resume {folder}", soft_wrap=True
        )
        raise typer.Exit(130) from None
    trained = read(training.load_run(folder)["experiment"])
    console.print(f"{trained.outcome(history)}; the run is in {folder}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
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
    stock: Stock = False,
    backend: Backend = None,
):
    """Evaluate the model of a run on a split; writes evaluation-SPLIT.json.

    Masks: figures of every class, also as .csv and .html. Pictures of a GAN or VAE: distances to
    real ones, and a VAE's bounds.
    """
    _use(backend, stock)
    from keras_segen import runs
    from keras_segen.runs import training
    from keras_segen.runs.evaluate import CLASS_FIGURES
    from keras_segen.tasks.registry import read

    if read(training.load_run(run)["experiment"]).makes == "pictures":
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
    console.print(f"The worst images and more: {run / f'evaluation-{split}.html'}", soft_wrap=True)


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
        soft_wrap=True,
    )
    if "bounds" in result:
        found, weighted = result["bounds"], result["bounds"]["importance_weighted"]
        console.print(
            f"ELBO {found['elbo']:.2f} nats per image, {found['bits_per_dimension']:.4f} bits per "
            f"dimension; reconstruction {found['reconstruction']:.2f}, KL {found['kl']:.2f}; "
            f"{found['images']} images",
            soft_wrap=True,
        )
        console.print(
            f"Importance-weighted bound {weighted['bound']:.2f} nats, "
            f"{weighted['bits_per_dimension']:.4f} bits per dimension, where the ELBO is "
            f"{weighted['elbo']:.2f}; {weighted['images']} images, "
            f"{weighted['samples']} codes each",
            soft_wrap=True,
        )
    for warning in result["warnings"]:
        console.print(f"[yellow]Careful:[/yellow] {rich.markup.escape(warning)}", soft_wrap=True)
    console.print(f"All of it: {run / f'evaluation-{split}.json'}", soft_wrap=True)


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
    stock: Stock = False,
    backend: Backend = None,
):
    """Write masks and overlays for photos.

    A photo is brought to the size of the training, and the result back to its own; with
    --full-size it is predicted at its own size.
    """
    _use(backend, stock)
    from keras_segen import runs

    options = {
        "output": output,
        "full_size": full_size,
        "tile": tile,
        "overlap": overlap,
        "flips": flips,
        "scales": _decimals("--scales", scales),
        "fold": fold,
    }
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
    stock: Stock = False,
    backend: Backend = None,
):
    """Make images with the model of a run: samples, ways between them, what is near to them."""
    _use(backend, stock)
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
    console.print(done, markup=False, highlight=False, soft_wrap=True)


@app.command()
@takes_task
def crossval(
    tasks,
    folds: Annotated[int, typer.Option(help="Parts that the training split is cut into.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("runs/crossval"),
    stock: Stock = False,
    backend: Backend = None,
):
    """Train models on the same folds and compare them; again after an interruption, it goes on.

    A .json file is a run.json, or has an entry "experiment" like it; the options here do not
    change it.
    """
    _use(backend, stock)
    from keras_segen.runs import crossval

    try:
        result = crossval.cross_validate(tasks, out, folds, tell=console.print)
    except KeyboardInterrupt:
        errors.print(f"Interrupted. The same command goes on in {out}.", soft_wrap=True)
        raise typer.Exit(130) from None
    table = rich.table.Table("model", *crossval.FIGURES.values())
    for name, model in result["models"].items():
        found = [model[figure] for figure in crossval.FIGURES]
        table.add_row(name, *(f"{f['mean']:.4f} ± {f['standard_deviation']:.4f}" for f in found))
    console.print(table)
    if result["differences"]:
        table = rich.table.Table("difference", "figure", "mean", "standard error", "t", "p")
        for row in result["differences"]:
            error, t, p = (row[key] for key in ("corrected_standard_error", "t", "p"))
            table.add_row(
                f"{row['second']} − {row['first']}",
                crossval.FIGURES[row["figure"]],
                f"{row['mean']:+.4f}",
                f"{error:.4f}",
                *("–" if value is None else f"{value:.3f}" for value in (t, p)),
            )
        console.print(table)
        console.print(result["caution"])
    console.print(f"Plot and more: {out / 'crossval.html'}", soft_wrap=True)


@app.command()
@takes_task
def compare(
    task,
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("runs/compare"),
    backends: Annotated[str, typer.Option(help="Which to compare.")] = "tensorflow,torch",
    threads: Annotated[int | None, typer.Option(help="Threads of each; default all.")] = None,
    parity: Annotated[
        bool, typer.Option(help="Find where they part: layer by layer, step by step.")
    ] = False,
    parity_steps: Annotated[int, typer.Option(help="With --parity: training steps.", min=1)] = 20,
    stock: Stock = False,
):
    """Train on each backend from the same weights and batches, and report what differs."""
    _leave_stock(stock)
    from keras_segen.compare import report
    from keras_segen.compare.run import run

    steps = parity_steps if parity else 0
    result = run(task, out, tuple(backends.split(",")), threads, parity_steps=steps)
    report.print_report(result, console, out)
    raise typer.Exit({"passed": 0, "interrupted": 130}.get(result["status"], 1))


@bench.command()
@takes_task
def loader(task, stock: Stock = False, backend: Backend = None):
    """Measure what feeding costs: epochs from the loader against the same batches in memory.

    --epochs epochs of each kind are measured, in pairs, after one that warms up.
    """
    _use(backend, stock)
    from keras_segen.bench.loader import loader_ratio

    result = loader_ratio(task, task.epochs, tell=console.print)
    _print_replacements()
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
    """Measure the memory that large images take, and what folding batch normalization saves."""
    _use(backend, stock)
    from keras_segen.bench import prediction

    sides = _numbers("--sizes", sizes, r"\d+(,\d+)*", ",")
    model = prediction.model_to_predict(run)
    _print_replacements()
    folding = prediction.folding_ratio(model, tile)
    console.print(
        f"tile {tile}: {folding['plain_ms']:.0f} ms, folded {folding['folded_ms']:.0f} ms; "
        f"folded / plain = {folding['ratio']:.3f}"
    )
    rows = prediction.prediction_memory(model, sides, tile, tell=errors.print)
    console.print(prediction.table(rows).to_rich())


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
    stock: Stock = False,
    backend: Backend = None,
):
    """Measure what Keras costs on top of a loop written by hand, once both are proven equal.

    The result is written into --out, and compared with the latest one there of the same settings.
    """
    _use(backend, stock)
    from keras_segen.bench import contests, native

    contest = contests.contest(
        network,
        data=data,
        image_size=image_size and _numbers("--image-size", image_size, r"\d+x\d+", "x"),
        channels=channels,
        batch_size=batch_size,
        filters=filters and _numbers("--filters", filters, r"\d+(,\d+)*", ","),
        seed=seed,
    )
    result = native.run(contest, out, steps, rounds, tell=errors.print)
    for line in native.lines(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
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
    backends: Annotated[str, typer.Option(help="Which to measure.")] = "tensorflow,torch",
    threads: Annotated[int | None, typer.Option(help="Threads of each; default all.")] = None,
    steps: Annotated[int, typer.Option(help="Steps per round, two of them not timed.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder for results.")] = Path("runs/bench"),
    stock: Stock = False,
):
    """Measure what a step costs on each framework, in each mode, and how that grows with size.

    Training, prediction and loading; time, CPU time, start-up, compilation and memory. The result
    is written into --out, and compared with the latest one there of the same settings.
    """
    _leave_stock(stock)
    from keras_segen.bench import costs, costs_report

    if image_size is None:
        image_size = "64x64,128x128" if task.makes == "masks" else "32x32,64x64"
    sizes = [_numbers("--image-size", each, r"\d+x\d+", "x") for each in image_size.split(",")]
    result = costs.run(
        task,
        out,
        sizes,
        _numbers("--batch-size", batch_size, r"\d+(,\d+)*", ","),
        modes.split(",") if modes else None,
        backends.split(","),
        threads,
        steps,
        rounds,
        tell=lambda text: errors.print(text, markup=False, highlight=False, soft_wrap=True),
    )
    if result["cells"]:
        costs_report.write_page(result, out)
    costs_report.print_result(result, console, out)
    raise typer.Exit({"done": 0, "interrupted": 130}.get(result["status"], 1))


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
