"""What the commands share: the application, its consoles and common options."""

import os
from typing import Annotated

import rich.console
import typer

from keras_segen import __version__, frameworks

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Names of classes, paths and errors come from users: nothing printed is markup.
console = rich.console.Console(markup=False, highlight=False, soft_wrap=True)
errors = rich.console.Console(markup=False, highlight=False, soft_wrap=True, stderr=True)


def _print_version(asked: bool):
    if asked:
        console.print(f"keras-segen {__version__}")
        raise typer.Exit()


@app.callback()
def keras_segen(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
):
    """Image segmentation and generation on TensorFlow and PyTorch, each model written once."""


def complete(words):
    """Shell completion of an option's value to one of some words."""

    def complete(incomplete: str):
        return [word for word in words if word.startswith(incomplete)]

    return complete


Backend = Annotated[
    str | None,
    typer.Option(
        help="tensorflow or torch. Without it, KERAS_BACKEND decides.",
        autocompletion=complete(frameworks.FRAMEWORKS),
    ),
]


Backends = Annotated[str, typer.Option(help="Which to measure.")]
Threads = Annotated[int | None, typer.Option(help="Threads of each; default all.")]
Steps = Annotated[int, typer.Option(help="Steps per round, two of them not timed.")]
Rounds = Annotated[int, typer.Option(help="Rounds that are timed.")]
Link = Annotated[
    bool, typer.Option("--link", help="Hard links in place of copies: no space is taken.")
]
Stock = Annotated[
    bool, typer.Option("--stock", help="Leave Keras as it ships. Without it, it is made faster.")
]


def use(backend, stock):
    """Chooses the framework, and stock or faster Keras, here and in child processes."""
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    leave_stock(stock)
    frameworks.require()
    from keras_segen.backend import faster  # starts the framework, before Keras is imported

    faster.apply_by_default()


def leave_stock(stock):
    """Lets this process and its children leave Keras as it ships, if `stock`."""
    if stock:
        os.environ["KERAS_SEGEN_STOCK"] = "1"


def print_backend(option):
    """Prints a line each: the framework and why it was chosen, the device, the replacements.

    Args:
        option: str or None, what `--backend` said.
    """
    from keras_segen.backend import settings

    found = settings()
    name = frameworks.FRAMEWORKS[frameworks.chosen()]
    why = "by --backend" if option else frameworks.reason()
    console.print(f"Backend: {name} {found['framework']}, {why}")
    console.print(f"Device: {found['device']}, {found['threads']} threads")
    print_replacements()


def print_replacements():
    from keras_segen.backend import faster

    console.print(f"Replaced in Keras: {faster.summary()}")


def numbers(option, text, between=",", count=None):
    """Reads whole numbers such as `16,32` or, with `x` between them, `176x240`."""
    found = text.split(between)
    if not all(each.isdecimal() for each in found) or len(found) != (count or len(found)):
        expected = between.join(["176", "240"])
        raise ValueError(f"{option} is {text!r}, expected whole numbers such as {expected}.")
    return tuple(map(int, found))


def decimals(option, text):
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}, expected numbers such as 0.75,1,1.25.") from None
