"""The kinds of tasks, a line each, and which of them trains a model."""

import inspect
import json
import os

from keras_segen.spelling import did_you_mean
from keras_segen.tasks.gan import GanTask
from keras_segen.tasks.instances import InstanceTask
from keras_segen.tasks.segmentation import SegmentationTask
from keras_segen.tasks.vae import VaeTask

KINDS = [
    SegmentationTask,
    InstanceTask,
    GanTask,
    VaeTask,
]


def register(kind):
    """Adds a kind of task from another package or file; usable as a decorator.

    A process that reads such a task imports its module first: `compare.run(…, modules=[…])`.
    """
    if kind not in KINDS:
        KINDS.append(kind)
    return kind


def kind_of(model):
    """Returns the class of `KINDS` that trains a model.

    Args:
        model: str, a name, or the path of a `.keras` file.

    Raises:
        ValueError: there is no such model.

    Example:

    >>> kind_of("dcgan").__name__
    'GanTask'
    """
    for kind in KINDS:
        if isinstance(model, str | os.PathLike) and kind.takes(model):
            return kind
    names = [name for kind in KINDS for name in kind.MODELS]
    raise ValueError(
        f"There is no model {model!r}; there are: {', '.join(names)}, or a .keras file."
        + did_you_mean(model, names)
    )


def read(values):
    """Makes a task of the class that its model needs.

    Args:
        values: dict as `Task.to_dict` returns it, such as the `experiment` of a `run.json`.

    Raises:
        ValueError: there is no such model, or a value is wrong.
    """
    return kind_of(values.get("model", "unet")).from_dict(values)


def read_json(path):
    """Reads the entry `experiment` of a JSON file, as `read` does."""
    with open(path, encoding="utf-8") as file:
        return read(json.load(file)["experiment"])


def check_options(task, method, options):
    """Checks that a method of a task takes some options.

    Args:
        task: a `Task`.
        method: str, such as `"evaluate"`.
        options: names, as users give them.

    Raises:
        ValueError: it has no such option; the message names the models that have it.
    """
    own = inspect.signature(getattr(task, method)).parameters
    for name in options:
        if name not in own:
            having = [
                model
                for kind in KINDS
                if name in inspect.signature(getattr(kind, method)).parameters
                for model in kind.MODELS
            ]
            raise ValueError(
                f"{name} is for {', '.join(having)}, and this is a run of {task.model}, which "
                f"{task.does}: leave it out, or use keras-segen {task.used_by}."
            )
