"""Installed frameworks, and the choice of one before Keras is imported.

Keras reads `KERAS_BACKEND` (or ~/.keras/keras.json) once, at its first import, and fails with an
error about a missing module if that framework is not installed. This module reports that earlier,
in one line. It looks for the frameworks but imports none.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

FRAMEWORKS = {"tensorflow": "TensorFlow", "torch": "PyTorch"}
_only = None  # the framework that `choose` took because no other is installed


def installed():
    """Returns the names of the installed frameworks, a list out of `"tensorflow"`, `"torch"`."""
    return [name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None]


def choose():
    """Sets `KERAS_BACKEND` if it is not set and only one framework is installed.

    TensorFlow logs errors only, unless `TF_CPP_MIN_LOG_LEVEL` is set.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not os.environ.get("KERAS_BACKEND"):  # an empty one, such as a shell's, counts as not set
        os.environ.pop("KERAS_BACKEND", None)
    if "KERAS_BACKEND" in os.environ or "keras" in sys.modules:
        return
    global _only
    found = installed()
    if len(found) == 1:
        os.environ["KERAS_BACKEND"] = _only = found[0]


def chosen():
    """Returns the name of Keras' framework, by `KERAS_BACKEND` or keras.json."""
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        settings = json.loads((folder / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    return os.environ.get("KERAS_BACKEND") or settings.get("backend", "tensorflow")


def reason():
    """Returns why `chosen()` is the framework, in words."""
    if _only is not None and os.environ.get("KERAS_BACKEND") == _only:
        return "the only framework that is installed"
    if os.environ.get("KERAS_BACKEND"):
        return "by KERAS_BACKEND"
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return f"by {folder / 'keras.json'}" if (folder / "keras.json").exists() else "Keras' default"


def stock_is_chosen():
    """Whether the commands and their processes leave Keras as it ships: `KERAS_SEGEN_STOCK=1`."""
    return os.environ.get("KERAS_SEGEN_STOCK", "0") not in ("", "0")


def require(name=None):
    """Raises if a framework cannot run.

    Args:
        name: `"tensorflow"` or `"torch"`; None for the one that `KERAS_BACKEND` names.

    Raises:
        ValueError: keras_segen does not run on the framework.
        ModuleNotFoundError: it is not installed; the message says what to install.
    """
    name = name or os.environ.get("KERAS_BACKEND")
    found = installed()
    if name is None:
        if not found:
            raise ModuleNotFoundError(
                "No framework is installed: pip install 'keras-segen[tensorflow]' or "
                "pip install 'keras-segen[torch]'."
            )
        return
    if name not in FRAMEWORKS:
        raise ValueError(
            f"The backend is {name!r}, but keras_segen runs on 'tensorflow' or 'torch': choose one "
            "of them (KERAS_BACKEND or --backend)."
        )
    if name not in found:
        raise ModuleNotFoundError(
            f"The backend is {name!r}, but {FRAMEWORKS[name]} is not installed: "
            f"pip install 'keras-segen[{name}]'."
        )
