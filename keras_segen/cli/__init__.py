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
from keras_segen.cli import train, use, compare, bench, about  # noqa: F401

# isort: on
from keras_segen.cli.common import app, errors


def main():
    """The entry point: one line for what a user can mend, a traceback for what is our fault."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(prog_name="keras-segen")
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("KERAS_SEGEN_TRACEBACK"):
            raise
        errors.print(Text.assemble(("error:", "bold red"), f" {error}"))
        sys.exit(1)


def _interrupt(number, frame):
    raise KeyboardInterrupt
