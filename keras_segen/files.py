"""Writing files so that nothing is lost: to a temporary name first, then moved into place."""

import contextlib
import csv
import json
import os
import re
import shutil
import uuid
from pathlib import Path

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a formula begins


@contextlib.contextmanager
def write_atomically(path):
    """Yields a temporary path to write to, and moves it to `path` on success.

    A reader sees the old file or the new one, never half of one; after an error the old file
    stays and the temporary one is removed.

    Args:
        path: the path of the file; its folder is made if needed.

    Yields:
        A `pathlib.Path` in the same folder, hidden, with the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(*folders):
    """Removes what `write_atomically` left in folders when it was killed.

    Args:
        folders: paths; no other process may write into them. They need not exist.
    """
    for path in (path for folder in folders for path in Path(folder).glob(".*")):
        if re.fullmatch(r"\..+-[0-9a-f]{8}(\.[^.]+)?", path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_atomically(path):
    """Yields a temporary folder to fill, and moves it to `path` on success.

    After an error there is no folder, and the temporary one is removed.

    Args:
        path: the path of the folder; it must not exist yet.

    Yields:
        A `pathlib.Path` beside it, hidden.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path, text):
    """Writes `text` to `path` as UTF-8, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path, rows):
    """Writes rows of values to `path` as CSV in UTF-8, atomically.

    Text that a spreadsheet would compute, since it begins as a formula does, gets an apostrophe
    before it: `'=1+1`. `from_csv` takes it away.
    """
    with (
        write_atomically(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([_to_csv(value) for value in row] for row in rows)


def from_csv(text):
    """Returns the text that `write_csv` was given for a cell."""
    return text[1:] if text[:1] == "'" and _is_formula(text) else text


def _to_csv(value):
    if not isinstance(value, str) or not _is_formula(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _is_formula(text):
    """Whether a text begins as a formula does, or as one that has been made text."""
    return text.lstrip("'").startswith(FORMULA)


def write_json(path, value):
    """Writes `value` to `path` as indented JSON, atomically. NaN is an error: JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
