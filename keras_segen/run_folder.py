"""Reading and checking run folders without Keras."""

import csv
import hashlib
import json
import re
from pathlib import Path

from keras_segen.files import write_json

# Entries of a run.json that every reader relies on.
ENTRIES = {"experiment": dict, "data": dict, "starts": list}


def load_run(folder):
    """Reads the `run.json` of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a training did not write it so.
    """
    path = Path(folder) / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no run.json.")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or train anew.") from None
    for name, kind in ENTRIES.items():
        found = run.get(name) if isinstance(run, dict) else None
        if not isinstance(found, kind):
            raise ValueError(
                f"{path} has no {name} as a training writes it: restore it, or train anew."
            )
    _check_classes(path, run["data"])
    _check_described(folder, run["data"])
    return run


def _check_classes(path, described):
    """Raises a ValueError if names, colors and label ids of classes are none, or do not fit."""
    names = described.get("class_names", [])
    ids, palette = described.get("label_ids"), described.get("palette")
    wrong = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wrong, expected = "class_names", "a list of texts"
    elif ids is not None and not _are_bytes(ids, len(names), 65535):
        wrong, expected = "label_ids", f"{len(names)} whole numbers from 0 to 65535"
    elif palette is not None and not (
        isinstance(palette, list)
        and len(palette) == len(names)
        and all(_are_bytes(color, 3, 255) for color in palette)
    ):
        wrong, expected = "palette", f"{len(names)} colors of three numbers from 0 to 255"
    if wrong:
        raise ValueError(
            f"{path}: {wrong} in data is {str(described.get(wrong))[:80]}; expected {expected}, "
            "as a training writes it: restore it, or train anew."
        )


def _are_bytes(values, count, highest):
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and 0 <= value <= highest for value in values)
    )


def _check_described(folder, described):
    """Raises a ValueError if the last checkpoint was trained on other data than is described.

    A checkpoint of an earlier version of keras_segen does not say.
    """
    checkpoint, _ = find_checkpoint(folder)
    if checkpoint is None or not checkpoint.with_suffix(".json").exists():
        return
    try:
        kept = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
        before = kept.get("data", described)
        names = [
            name for name in {**before, **described} if before.get(name) != described.get(name)
        ]
    except (ValueError, AttributeError, TypeError):
        return  # damaged: `check_seal` says so when it is resumed
    if names:
        raise ValueError(
            f"run.json of {folder} was changed: {names[0]} in data is "
            f"{str(described.get(names[0]))[:80]}, and {checkpoint.name} was trained with "
            f"{str(before.get(names[0]))[:80]}. Restore it, or train anew."
        )


def find_model(folder):
    """Returns the path of the model in a run folder.

    Raises:
        FileNotFoundError: no epoch of the run is finished yet.
    """
    path = Path(folder) / "model.keras"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no model.keras yet: no epoch is finished.")
    return path


def check_new(folder):
    """Raises a FileExistsError if a folder holds a run already."""
    if (Path(folder) / "run.json").exists():
        raise FileExistsError(
            f"{folder} holds a run already: go on with --resume {folder}, or name another folder."
        )


def read_rows(folder):
    """Reads `history.csv`: a list of dicts of column -> str, one per epoch; empty without it.

    Raises:
        ValueError: a row has more or fewer columns than the header, or a value is not a number.
    """
    path = Path(folder) / "history.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        try:
            for value in row.values():
                float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path} is damaged in line {number}: restore it, or train anew."
            ) from None
    return rows


def read_history(folder):
    """Reads `history.csv`: dict of column -> list with one float per epoch."""
    rows = read_rows(folder)
    return {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else ())}


def find_checkpoint(folder):
    """Finds the last checkpoint of a run: `(path, epochs that it has finished)`, or `(None, 0)`."""
    found = sorted(Path(folder).glob("checkpoint-*.keras"))
    return (found[-1], int(found[-1].stem.split("-")[1])) if found else (None, 0)


def seal(checkpoint, contents, settings, rows, described):
    """Writes digests of what belongs to a checkpoint beside it, for `check_seal`.

    Args:
        checkpoint: path that the `.keras` file will be moved to.
        contents: its path now.
        settings: dict, the task as in `run.json`.
        rows: the rows of the history until here.
        described: dict, the data set as in `run.json`.
    """
    write_json(
        checkpoint.with_suffix(".json"),
        {
            "sha256": digest(contents),
            "experiment": settings,
            "data": described,
            "history": _digest_rows(rows),
        },
    )


def check_seal(checkpoint, settings, rows):
    """Checks that a checkpoint, the settings and the history of a run belong together.

    A run of an earlier version of keras_segen has no seal and is not checked.

    Raises:
        ValueError: something was changed, mixed up or damaged; the message names it.
    """
    path = checkpoint.with_suffix(".json")
    if not path.exists():
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        names = {*kept["experiment"], *settings} - {"epochs"}
        history, contents = kept["history"], kept["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: restore it, or train anew.") from None
    for name in sorted(names):
        before, now = (each.get(name) for each in (kept["experiment"], settings))
        if before != now:
            raise ValueError(
                f"run.json of {checkpoint.parent} was changed: {name} is {now!r}, and "
                f"{checkpoint.name} was trained with {before!r}. Restore it, or train anew."
            )
    if _digest_rows(rows) != history:
        raise ValueError(
            f"history.csv of {checkpoint.parent} is not that of {checkpoint.name}, which says "
            "which epoch was best: restore it, or train anew."
        )
    if digest(checkpoint) != contents:
        raise ValueError(
            f"{checkpoint} is damaged, or is not the file that this run wrote: restore it, or "
            "train anew."
        )


def digest(path):
    """The SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_rows(rows):
    values = [{key: float(value) for key, value in row.items()} for row in rows]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def next_folder(task, parent="runs"):
    """Names a new run folder: `runs/<model>-<data>-<n>`, the first that is not there yet."""
    data, _, path = task.data.partition(":")
    names = (Path(task.model).stem, Path(path).stem or data)
    name = "-".join(re.sub(r"[^\w.]+", "_", each) for each in names)
    taken = {path.name for path in Path(parent).glob(f"{name}-*")}
    number = 1
    while f"{name}-{number}" in taken:
        number += 1
    return Path(parent) / f"{name}-{number}"


def find_runs(parent="runs"):
    """Finds the run folders in a folder: list of `(path, contents of run.json)`, the oldest first.

    Incomplete runs are left out.
    """
    found = []
    for path in Path(parent).glob("*/run.json"):
        try:
            run = load_run(path.parent)
            found.append((run["starts"][-1]["time"], path.parent, run))
        except (ValueError, LookupError, TypeError):
            continue
    return [(path, run) for _, path, run in sorted(found, key=lambda each: each[:2])]


def last_run(parent="runs"):
    """Returns the run folder that was started last.

    Raises:
        FileNotFoundError: there is none.
    """
    found = find_runs(parent)
    if not found:
        raise FileNotFoundError(f"{parent} holds no run folder: name one, or train first.")
    return found[-1][0]
