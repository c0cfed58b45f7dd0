"""keras-segen: thin commands over the package.

`KERAS_BACKEND` (or `--backend`) chooses the framework. Keras is imported by the commands that
need it, after that choice.
"""

import os
import signal
import sys

from rich.text import Text

# Each adds commands, in the order in which --help lists them.
# isort: off
from keras_segen.cli import train, use, compare, data, bench, about  # noqa: F401

# isort: on
from keras_segen.cli.common import app, errors


def main():
    """The entry point: one line for errors that a user can fix, a traceback for our bugs."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check_arguments(sys.argv[1:])
        app(prog_name="keras-segen")
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("KERAS_SEGEN_TRACEBACK"):
            raise
        errors.print(Text.assemble(("error:", "bold red"), f" {error}"))
        sys.exit(1)


def _check_arguments(arguments):
    """Raises a ValueError if an argument is empty, such as an unset shell variable."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if not argument or (option.startswith("--") and equals and not value):
            name = option or (before if before.startswith("-") else "An argument")
            raise ValueError(f"{name} is empty: expected a value, or leave it out.")


def _interrupt(number, frame):
    raise KeyboardInterrupt
