"""The kinds of tasks, a line each, and which of them trains a model."""

import inspect
import json
import os

from keras_segen.spelling import did_you_mean
from keras_segen.tasks.gan import GanTask
from keras_segen.tasks.instances import InstanceTask
from keras_segen.tasks.segmentation import SegmentationTask
from keras_segen.tasks.style import StyleTask
from keras_segen.tasks.vae import VaeTask

KINDS = [SegmentationTask, InstanceTask, GanTask, StyleTask, VaeTask]


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
        options: dict of name -> value, as users give them; None is as good as not given.

    Returns:
        Dict of those that are given.

    Raises:
        TypeError: no kind of task has such an option.
        ValueError: the task has no such option; the message names the models that have it.
    """
    own = _options(task, method)
    for name, value in options.items():
        having = [kind for kind in KINDS if name in _options(kind, method)]
        if not having and name not in own:
            known = sorted(set().union(*(_options(kind, method) for kind in KINDS)))
            hint = did_you_mean(name, known) or f" Known are: {', '.join(known)}."
            raise TypeError(f"{method}() has no option {name!r}.{hint}")
        if value is not None and name not in own:
            models = [model for kind in having for model in kind.MODELS]
            raise ValueError(
                f"{name} is for {', '.join(models)}, and this is a run of {task.model}, which "
                f"{task.does}: leave it out, or use keras-segen {task.used_by}."
            )
    return {name: value for name, value in options.items() if value is not None}


def _options(kind, method):
    """The names of the options of a method of a task, or of a kind of tasks."""
    parameters = inspect.signature(getattr(kind, method)).parameters.values()
    return [each.name for each in parameters if each.default is not each.empty]
