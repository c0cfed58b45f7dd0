"""The fields of a task: each is defined together with its meaning and its allowed values.

The checks of a new task, the options of the command line and the `Args` of the docstring are
derived from them.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import textwrap
import typing

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The meaning of a field.

    Args:
        text: str, in sentences.
        choices: tuple, the allowed values; empty if a range or the type decides.
        at_least, above, below: numbers, the range; for a tuple, that of each number in it.
        between: str, the separator of the numbers of a tuple on the command line.
        common: bool, whether `--help` lists it first.
        applies: callable, whether it has an effect, by a dict of all settings: pages leave out
            those that have none.
    """

    text: str = ""
    choices: tuple = ()
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    between: str = ","
    common: bool = False
    applies: typing.Callable = lambda settings: True

    @property
    def expected(self):
        """The values that are allowed, in words."""
        if self.choices:
            return f"one of {', '.join(map(repr, self.choices))}"
        if self.below is not None:
            return f"at least {self.at_least} and below {self.below}"
        if self.at_least is not None:
            return f"{self.at_least} or more"
        return "" if self.above is None else f"more than {self.above}"

    def allows(self, value):
        if self.choices:
            return value in self.choices
        return (
            (not isinstance(value, float) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def field(text, *, default=dataclasses.MISSING, **meaning):
    """Defines a field of a task, as `dataclasses.field` does.

    A class that only changes the default of a field writes `name: type = value`; the meaning is
    that of its base.

    Args:
        text: str, what the field means, in sentences.
        default: the default value.
        **meaning: further arguments of `Meaning`.
    """
    return dataclasses.field(default=default, metadata={"meaning": Meaning(text, **meaning)})


def meaning(kind, name):
    """The `Meaning` of a field of a class: that of the nearest base that says one."""
    for base in kind.__mro__:
        own = vars(base).get("__dataclass_fields__", {}).get(name)
        if own is not None and "meaning" in own.metadata:
            return own.metadata["meaning"]
    return Meaning()


def applying(kind, settings):
    """Those of a dict of settings that have an effect; names that are no fields are kept."""
    complete = {each.name: each.default for each in dataclasses.fields(kind)} | settings
    return {
        name: value for name, value in settings.items() if meaning(kind, name).applies(complete)
    }


@functools.cache
def types(kind):
    """The types of the fields of a class: dict of name -> `(type, arguments, may it be None)`.

    Of `tuple[int, int] | None` that is `(tuple, (int, int), True)`.
    """
    hints, found = typing.get_type_hints(kind), {}
    for each in dataclasses.fields(kind):
        hint = hints[each.name]
        parts = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
        first = next(part for part in parts if part is not type(None))
        origin = typing.get_origin(first) or first
        found[each.name] = (origin, typing.get_args(first), type(None) in parts)
    return found


def check(task):
    """Converts the fields of a task to their types, and checks each value.

    Raises:
        ValueError: a field has a value of another type, or one that is not allowed.
    """
    for each in dataclasses.fields(task):
        value = getattr(task, each.name)
        value = _plain(each.name, value, *types(type(task))[each.name])
        object.__setattr__(task, each.name, value)
        if value is not None:
            check_value(each.name, value, meaning(type(task), each.name))


def check_value(name, value, meaning):
    """Raises a ValueError if a field's value is not among those allowed."""
    if not all(map(meaning.allows, value if isinstance(value, tuple) else (value,))):
        each = "numbers of " if isinstance(value, tuple) else ""
        raise ValueError(f"{name} is {value!r}, expected {each}{meaning.expected or 'a number'}.")


def _plain(name, value, kind, inner, optional):
    """Converts a value to the type of its field, if nothing is lost."""
    if value is None and optional:
        return None
    if kind is tuple and isinstance(value, (tuple, list)):
        of_any_length = inner[-1] is ...
        if len(value) == len(inner) or (of_any_length and value):
            return tuple(_plain(name, item, inner[0], (), False) for item in value)
    elif kind is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    elif kind is bool and isinstance(value, bool):
        return value
    elif not isinstance(value, bool):
        if kind is int and isinstance(value, numbers.Integral):
            return int(value)
        if kind is float and isinstance(value, numbers.Real):
            return float(value)
    expected = WORDS.get(kind)
    if kind is tuple:
        expected = "whole numbers" if inner[-1] is ... else f"{len(inner)} whole numbers"
    raise ValueError(f"{name} is {value!r}, expected {expected}.")


def help_text(kind, name):
    """The meaning and the allowed values of a field, in sentences."""
    about = meaning(kind, name)
    obvious = about.at_least in (0, 1) and about.below is None
    allowed = "" if obvious else about.expected.replace("'", "")
    return about.text + (f" {allowed[0].upper()}{allowed[1:]}." if allowed else "")


def document(kind):
    """Decorates a class of tasks: its docstring gets `Args` from its fields."""
    lines = [inspect.cleandoc(kind.__doc__), "", "Args:"]
    for each in dataclasses.fields(kind):
        origin, _, optional = types(kind)[each.name]
        text = f"{each.name}: {origin.__name__}{' or None' if optional else ''}. "
        text += help_text(kind, each.name)
        if each.default is not dataclasses.MISSING:
            text += f" Default: {each.default!r}."
        lines.append(textwrap.fill(text, 92, initial_indent=" " * 4, subsequent_indent=" " * 8))
    lines += ["", "Raises:", "    ValueError: a value is not among those allowed."]
    kind.__doc__ = "\n".join(lines)
    return kind
