"""The kinds of tasks, a line each, and which of them a model needs."""

import json
import os

from keras_segen.spelling import did_you_mean
from keras_segen.tasks.gan import GanTask
from keras_segen.tasks.segmentation import SegmentationTask
from keras_segen.tasks.task import is_file
from keras_segen.tasks.vae import VaeTask

# What can be trained: a class for each kind of model.
KINDS = (SegmentationTask, GanTask, VaeTask)


def kind_of(model):
    """Returns the class of `KINDS` that trains a model; a `.keras` file makes masks.

    Raises:
        ValueError: there is no such model.

    Example:

    >>> kind_of("dcgan").__name__
    'GanTask'
    """
    if isinstance(model, (str, os.PathLike)) and is_file(model):
        return SegmentationTask
    for kind in KINDS:
        if model in kind.MODELS:
            return kind
    names = [name for kind in KINDS for name in kind.MODELS]
    raise ValueError(
        f"There is no model {model!r}; there are: {', '.join(names)}, or a .keras file."
        + did_you_mean(model, names)
    )


def read(values):
    """Makes a task of the class that its model needs.

    Args:
        values: dict as `Task.to_dict` returns it, such as the `task` of a `run.json`.

    Raises:
        ValueError: there is no such model, or a value is wrong.
    """
    return kind_of(values.get("model", "unet")).from_dict(values)


def read_json(path):
    """Reads the entry `task` of a JSON file, as `read` does."""
    with open(path, encoding="utf-8") as file:
        return read(json.load(file)["experiment"])
