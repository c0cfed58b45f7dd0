"""Data before a training: a page about a data set, splits, annotations of other programs."""

from pathlib import Path
from typing import Annotated

import rich.progress
import typer
from rich.text import Text

from keras_segen.cli.common import app, complete, console, errors, numbers
from keras_segen.data.dataset import SPLITS


@app.command()
def data(
    name: Annotated[
        str, typer.Argument(help="A data set as --data takes it: shapes, folder:PATH and so on.")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Only train, val or test; default all that there are.",
            autocompletion=complete(SPLITS),
        ),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH to resize to, such as 176x240.")
    ] = None,
    augment: Annotated[
        str, typer.Option(help="What is previewed: default, none, or steps as train takes them.")
    ] = "default",
    count: Annotated[
        int | None, typer.Option(help="Read at most so many items of each split.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the preview; train --seed sees the same.")] = 0,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
):
    """Look before you train: sizes, classes, samples, and what is suspicious, as a page.

    Every item is read once: images that are in two splits, unknown labels, masks without content
    are found.
    """
    from keras_segen.data import describe

    size = image_size and numbers("--image-size", image_size, "x", 2)
    datasets, missing = _load_splits(name, SPLITS if split is None else (split,), size)
    with rich.progress.Progress(console=errors, transient=True) as progress:
        bar = progress.add_task("reading", total=None)
        found = describe(
            *datasets,
            augment=augment,
            count=count,
            seed=seed,
            tell=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    found.notes += missing
    found.write(out)
    console.print(f"{found.subject}: {found.result}")
    for title, text, note in found.cards[2:3]:
        console.print(f"{title}: {text}" + (f" ({note})" if note else ""))
    for table in [*found.tables, *filter(None, [found.findings])]:
        console.print(table.to_rich())
    if found.findings is None:
        console.print("Nothing suspicious was found.")
    for note in found.notes:
        console.print(Text.assemble(("Note:", "yellow"), f" {note}"))
    console.print(f"Samples and all of it: {out}")


def _load_splits(name, splits, size):
    """Returns the splits of a data set that there are, and a sentence about each of the others."""
    from keras_segen.data import load

    found, missing = [], []
    for split in splits:
        try:
            found.append(load(name, split, size))
        except (FileNotFoundError, ValueError) as error:
            if not found:
                raise
            missing.append(f"No {split}: {error}")
    return found, missing
