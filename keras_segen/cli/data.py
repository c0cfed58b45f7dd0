"""Data before a training: a page about a data set, splits, annotations of other programs."""

from pathlib import Path
from typing import Annotated

import rich.progress
import typer
from rich.text import Text

from keras_segen.cli.common import Link, app, complete, console, errors, numbers
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


@app.command()
def split(
    folder: Annotated[Path, typer.Argument(help="A folder with images/ and masks/.")],
    out: Annotated[Path, typer.Option(help="The folder to make; it must not be there.")],
    val: Annotated[float, typer.Option(help="The share for validation.")] = 0.2,
    test: Annotated[float, typer.Option(help="The share for the test; 0 for none.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
    groups: Annotated[
        str | None,
        typer.Option(
            help="What stays together: a .csv file with the columns name,group, or a regular "
            "expression that begins every name, such as 'patient[0-9]+'. Without it, "
            "FOLDER/groups.csv if there is one."
        ),
    ] = None,
    link: Link = False,
):
    """Share out one folder of images and masks among train, val and test.

    The folder stays as it is. Groups, such as the images of a patient, are in one split as a whole.
    """
    from keras_segen.data import split_folder

    found = split_folder(folder, out, val=val, test=test, seed=seed, groups=groups, link=link)
    number = found.pop("groups")
    items = sum(map(len, found.values()))
    shares = [
        f"{len(names)} ({len(names) / items:.0%}) in {split}" for split, names in found.items()
    ]
    console.print(f"{items} items: {', '.join(shares)}.")
    together = f"{number} groups, each in one split" if number else "every item by itself"
    console.print(f"Dealt with seed {seed}, {together}.")
    console.print(f"{'Linked' if link else 'Copied'} to {out}; {folder} is as it was.")
    console.print(f"Look at it: keras-segen data folder:{out}")


@app.command("import-annotations")
def import_annotations(
    source: Annotated[
        Path, typer.Argument(help="A COCO .json file, or a folder of LabelMe's .json files.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder with the images; default beside SOURCE.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val or test: what these images are for. Without it, one folder for "
            "keras-segen split.",
            autocompletion=complete(SPLITS),
        ),
    ] = None,
    link: Link = False,
):
    """Make masks and instances of COCO's or LabelMe's annotations, for --data folder:OUT.

    Polygons, run lengths, rectangles, circles and masks are drawn; crowds are void.
    """
    from keras_segen import data as data_sets

    found = data_sets.import_annotations(source, out, images=images, split=split, link=link)
    console.print(
        f"{found.kind}: {found.images} images, {found.objects} objects, "
        f"{len(found.class_names)} classes: {', '.join(found.class_names)}"
    )
    for note in found.notes:
        console.print(Text.assemble(("Note:", "yellow"), f" {note}"))
    console.print(f"Written to {out if split is None else out / split}")
    if split is None:
        console.print(f"Share it out: keras-segen split {out} --out FOLDER")
    else:
        console.print(f"Look at it: keras-segen data folder:{out}")


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
