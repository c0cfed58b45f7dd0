"""What can be known of a run folder without Keras: whether it is one, and what it says."""

import json
from pathlib import Path

# Entries of a run.json that everything which reads one takes for granted.
ENTRIES = {"experiment": dict, "data": dict, "starts": list}


def load_run(folder):
    """Reads the `run.json` of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not as a training writes it.
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
    return run


def find_model(folder):
    """Returns the path of the model that a run folder keeps.

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
