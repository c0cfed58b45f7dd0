"""The options of commands that take tasks, derived from the tasks' fields."""

import dataclasses
import functools
import inspect
import json
from pathlib import Path
from typing import Annotated

import typer

from keras_segen import data
from keras_segen.cli.common import complete, numbers
from keras_segen.spelling import did_you_mean
from keras_segen.tasks import fields, registry
from keras_segen.tasks.task import is_file

# Fields that do not change the cost of a step.
OF_A_WHOLE_TRAINING = (
    "epochs",
    "schedule",
    "early_stopping",
    "freeze_epochs",
    "fine_tune_rate",
    "judge",
    "folds",
    "fold",
    "start_from",
)

Config = Annotated[
    Path | None,
    typer.Option(
        help="Read the task from a YAML file with a line for each option, such as batch_size: 8, "
        "or from the run.json or report.json of a run; options beside it come first."
    ),
]


def takes_task(command, without=()):
    """Gives a command one option for each field of a task, and calls it with a `task`.

    `without` names the fields that the command does not use.
    """
    text = (
        "A name that `keras-segen models` lists; for masks also a .keras file, a network from "
        "images in 0 to 1 to logits, whose weights are the start. Default: unet."
    )
    argument = typer.Argument(help=text, show_default=False, autocompletion=complete(_models()))

    def call(model, given, values):
        model = model or given.get("model", "unet")
        return command(task=make_task(model, given), **values)

    return _with_options(
        command, registry.KINDS, without, "model", Annotated[str | None, argument], call
    )


def takes_tasks(command):
    """Gives a command options as `takes_task` does, and calls it with `tasks`, a dict by name.

    They are tasks that can be trained on folds.
    """
    text = (
        "Names that `keras-segen models` lists, .keras files, or .json files with whole tasks. "
        "Default: unet."
    )
    argument = typer.Argument(help=text, show_default=False, autocompletion=complete(_models()))
    kinds = [kind for kind in registry.KINDS if kind.fold_figures]

    def call(models, given, values):
        tasks = {}
        for model in models or [given.get("model", "unet")]:
            is_json = model.endswith(".json")
            name = Path(model).stem if is_json or is_file(model) else model
            if name in tasks:
                raise ValueError(f"{name} is named twice: give each task a name of its own.")
            tasks[name] = registry.read(read_file(model)) if is_json else make_task(model, given)
        return command(tasks=tasks, **values)

    return _with_options(
        command, kinds, ("folds", "fold"), "models", Annotated[list[str] | None, argument], call
    )


def _with_options(command, kinds, without, name, argument, call):
    """Gives a command an argument, an option for each field, and `--config`.

    `call` gets the argument's value, a dict of the fields that are given, and the command's own
    values.
    """
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name not in ("task", "tasks")
    ]
    taken = {"model", *without, *(parameter.name for parameter in own)}
    names = [each for each in dict.fromkeys(sum(map(_names, kinds), [])) if each not in taken]
    added = {name: argument} | {each: _option(each, kinds) for each in names} | {"config": Config}
    parameters = [
        *(
            inspect.Parameter(
                each, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None
            )
            for each, annotation in added.items()
        ),
        *own,
    ]

    @functools.wraps(command)
    def wrapper(**values):
        argument, config = values.pop(name), values.pop("config")
        options = {each: values.pop(each) for each in names}
        given = {} if config is None else read_file(config)
        for each, value in options.items():
            if value is not None:
                given[each] = _parse(f"--{each.replace('_', '-')}", each, value)
        return call(argument, given, values)

    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _names(kind):
    return [each.name for each in dataclasses.fields(kind)]


def _option(name, kinds):
    """The annotation of the option for a field: its type, help, default and group."""
    having = [kind for kind in kinds if name in _names(kind)]
    of_text, of_default = {}, {}
    for kind in having:
        of_text.setdefault(fields.help_text(kind, name), []).extend(kind.MODELS)
        for model in kind.MODELS:
            of_default.setdefault(kind.default(name, model), []).append(model)
    texts = [
        text if len(of_text) == 1 else f"{', '.join(models)}: {text}"
        for text, models in of_text.items()
    ]
    defaults = "; ".join(
        str(value) if len(of_default) == 1 else f"{', '.join(models)} {value}"
        for value, models in of_default.items()
        if value is not None
    )
    meaning = fields.meaning(having[0], name)
    panel = "Options" if meaning.common else "More options"
    if len(having) < len(kinds):
        panel = "Only for " + ", ".join(model for kind in having for model in kind.MODELS)
    kind_of_value = fields.types(having[0])[name][0]
    option = typer.Option(
        help=" ".join(texts) + (f" Default: {defaults}." if defaults else ""),
        show_default=False,
        rich_help_panel=panel,
        autocompletion=complete(_values(name, having)),
    )
    return Annotated[str | None if kind_of_value is tuple else kind_of_value | None, option]


def _values(name, kinds):
    """The values of a field that a shell can complete."""
    if name == "data":
        return [usage.partition("[")[0].replace("PATH", "") for usage in data.DATASETS]
    choices = (choice for kind in kinds for choice in fields.meaning(kind, name).choices)
    return list(map(str, dict.fromkeys(choices)))


def _models():
    return [model for kind in registry.KINDS for model in kind.MODELS]


def _parse(said, name, value):
    """Converts text to the type of a field if the command line or YAML cannot.

    `said` is the name that the user gave.
    """
    kind = next(kind for kind in registry.KINDS if name in _names(kind))
    origin, inner, _ = fields.types(kind)[name]
    if isinstance(value, str) and origin is tuple:
        count = None if inner[-1] is ... else len(inner)
        return numbers(said, value, fields.meaning(kind, name).between, count)
    if isinstance(value, str) and origin is float:  # 1e-3 is text to YAML
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{said} is {value!r}, expected a number.") from None
    return value


def read_file(path):
    """Reads the fields of a task from a YAML file, or a JSON file such as a `run.json`.

    Returns:
        Dict of the fields that the file has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, or has an unknown field.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text) if path.suffix == ".json" else _read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(values, dict) and "experiment" in values:
        values = values["experiment"]
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings: expected lines such as batch_size: 8.")
    known = sorted(set(sum(map(_names, registry.KINDS), [])))
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known) or f" Known are: {', '.join(known)}."
            raise ValueError(f"{path} has {name!r}, which is no field of a task.{hint}")
    return {name: _parse(f"{name} in {path}", name, value) for name, value in values.items()}


def _read_yaml(text):
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def make_task(model, given):
    """Makes the task of a model from the given fields."""
    kind = registry.kind_of(model)
    for name in given:
        if name not in _names(kind):
            others = [
                model for other in registry.KINDS if name in _names(other) for model in other.MODELS
            ]
            raise ValueError(
                f"--{name.replace('_', '-')} is for {', '.join(others)}; {model} has none."
            )
    task = kind(**{**given, "model": model})
    _check_data(task)
    return task


def _check_data(task):
    """Raises the errors of loading a missing data set, before Keras is imported."""
    name, _, path = task.data.partition(":")
    alone = {usage.partition("[")[0] for usage in data.DATASETS}
    known = {usage.partition(":")[0] for usage in alone}
    if task.data not in alone and not (name in known and path and Path(path).exists()):
        task.load_data("train")
