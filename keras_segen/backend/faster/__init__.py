"""Keras' slow ways, replaced by faster ones with the same results: when asked for, and reversibly.

    ks.faster.apply()           replaces all that this Keras allows, for the whole process
    ks.faster.remove()          restores Keras
    with ks.faster.stock(): …   Keras as it ships, for a while

Importing keras_segen replaces nothing. The commands apply all, unless `KERAS_SEGEN_STOCK=1` says
otherwise. Models that were built before go on working, with the same results; only what TensorFlow
has traced before stays as it was traced.

A replacement is a function of its name in one of the modules here. The first line of its docstring
says what Keras does. It looks at how Keras behaves, and returns what to set: a list of
`(owner, attribute, value)`. Where Keras is not slow any more, it raises `NotNeeded`; any other
exception says why it is not possible. No two of them set the same attribute.
"""

import contextlib
import functools
import importlib
import inspect
import typing
import warnings

import keras

from keras_segen import frameworks, machine
from keras_segen.backend.faster.probe import NotNeeded

KNOWN_KERAS = ((3, 15), (3, 16))  # what this was tested with; in an older one nothing is replaced

_MODULES = {
    "tensorflow": {"on_tensorflow": ("batch_normalization", "adam")},
    "torch": {
        "layers_on_torch": (
            "image_layout",
            "kernel_layout",
            "convolution",
            "dense",
            "softmax",
            "batch_normalization",
            "adam",
        ),
        "calls_on_torch": ("variables", "graphs", "layer_calls", "model_calls"),
    },
}[keras.backend.backend()]

MEMORY = "freed_memory"  # no part of Keras, and the only one that cannot be undone
NAMES = (*(name for names in _MODULES.values() for name in names), MEMORY)

_MISSING = object()  # the value of an attribute that its owner only inherits


class _Change(typing.NamedTuple):
    """An attribute, as Keras has it and as we do."""

    owner: object
    attribute: str
    stock: object
    ours: object

    def set(self, value):
        if value is _MISSING:
            delattr(self.owner, self.attribute)
        else:
            setattr(self.owner, self.attribute, value)

    def found(self):
        """What is there now: not through the class, which would call a property."""
        return vars(self.owner).get(self.attribute, _MISSING)

    def __str__(self):
        return f"{getattr(self.owner, '__qualname__', self.owner.__name__)}.{self.attribute}"


_active = []  # names, in the order in which they were applied
_told = set()  # what was warned of


def apply(*names):
    """Replaces parts of Keras by faster ones, for the whole process.

    Args:
        *names: str, some of `NAMES`; without any, all of them. Those that are active stay so.

    Warns once of each that this Keras does not allow; `status` says why, and which are not needed.

    Raises:
        ValueError: there is no such name.
        RuntimeError: somebody else has replaced the same part of Keras in the meantime.
    """
    if _version() > KNOWN_KERAS[-1]:
        known = ", ".join(".".join(map(str, version)) for version in KNOWN_KERAS)
        _warn(
            f"keras_segen.faster knows Keras {known}, and this is {keras.__version__}: what still "
            "seems slow is replaced, untested."
        )
    wanted = [name for name in _known(names) if name not in _active]
    if MEMORY in wanted:
        wanted.remove(MEMORY)
        machine.keep_freed_memory()
    found = {name: _find()[name] for name in wanted}
    for name, changes in found.items():
        if isinstance(changes, Exception) and not isinstance(changes, NotNeeded):
            _warn(f"keras_segen cannot replace {name} in Keras {keras.__version__}: {changes}")
    possible = {name: changes for name, changes in found.items() if isinstance(changes, list)}
    _set(possible.values(), "stock", "ours")
    _active.extend(possible)


def remove(*names):
    """Restores parts of Keras as it ships.

    Args:
        *names: str, some of `NAMES`; without any, all that can be restored. How the process keeps
            freed memory cannot be: start another one.

    Raises:
        ValueError: there is no such name, or it is `"freed_memory"`.
        RuntimeError: somebody else has replaced the same part of Keras in the meantime.
    """
    if MEMORY in names:
        raise ValueError(f"{MEMORY} cannot be undone: start a process without it.")
    wanted = [name for name in _known(names) if name in _active]
    _set([_find()[name] for name in wanted], "ours", "stock")
    _active[:] = [name for name in _active if name not in wanted]


@contextlib.contextmanager
def stock():
    """Restores Keras as it ships for a while; after it, what was active is so again."""
    before = list(_active)
    remove()
    try:
        yield
    finally:
        remove()
        if before:
            apply(*before)


def active():
    """Returns the names of the replacements that are active: list of str."""
    also = [MEMORY] if machine.freed_memory == "kept" else []
    return [name for name in NAMES if name in _active + also]


def status():
    """Says of each replacement whether it is active.

    Returns:
        Dict of name -> `"active"`, `"not applied"`, or why it cannot be: `"not needed: …"`,
        `"not possible: …"`.
    """
    found = {}
    for name, changes in _find().items():
        if name in _active:
            found[name] = "active"
        elif isinstance(changes, list):
            found[name] = "not applied"
        else:
            needed = "not needed" if isinstance(changes, NotNeeded) else "not possible"
            found[name] = f"{needed}: {changes}"
    if machine.freed_memory == "kept":
        found[MEMORY] = "active"
    else:
        reason = machine.why_freed_memory_is_not_kept()
        found[MEMORY] = f"not possible: {reason}" if reason else "not applied"
    return found


def summary():
    """Says in one line what is active, for a report."""
    said, names = status(), active()
    if not names:
        return "none (Keras as it ships)"
    if "not applied" in said.values():
        return ", ".join(names)
    others = [f"{name} {text.split(':')[0]}" for name, text in said.items() if text != "active"]
    return f"all but {', '.join(others)}" if others else "all"


def costs():
    """Returns what each replacement of a part of Keras saves: dict of name -> one sentence."""
    functions = {name: function for name, function in _functions().items() if callable(function)}
    return {name: inspect.getdoc(f).splitlines()[0] for name, f in functions.items()}


def apply_by_default():
    """Applies all, as the commands and their processes do, unless Keras as it ships is chosen."""
    if not frameworks.stock_is_chosen():
        apply()


def _known(names):
    for name in names:
        if name not in NAMES:
            raise ValueError(
                f"{name!r} is no replacement on {keras.backend.backend()}; there are: "
                f"{', '.join(NAMES)}."
            )
    return names or NAMES


def _set(groups, before, after):
    """Sets attributes from one of their values to another: all of them, or none."""
    changes = [change for group in groups for change in group]
    for change in changes:
        if change.found() is not getattr(change, before):
            raise RuntimeError(
                f"{change} was replaced by somebody else than keras_segen.faster. Undo that first, "
                "or leave this one out."
            )
    for change in changes:
        change.set(getattr(change, after))


def _functions():
    """The functions that find what to set, or why there is none: dict by name."""
    found = {}
    for module, names in _MODULES.items():
        try:
            functions = importlib.import_module(f"{__name__}.{module}")
        except (ImportError, AttributeError) as error:  # another Keras, with other inner rooms
            found |= dict.fromkeys(names, error)
        else:
            found |= {name: getattr(functions, name) for name in names}
    return found


@functools.cache
def _find():
    """What each replacement changes, or the exception that says why it does not: dict by name.

    It is found once, all of it before anything is replaced, so that each sees Keras as it ships.
    """
    if _version() < KNOWN_KERAS[0]:
        least = ".".join(map(str, KNOWN_KERAS[0]))
        error = ImportError(f"Keras {keras.__version__} is older than {least}")
        return dict.fromkeys(NAMES[:-1], error)
    found = _functions()
    for name, function in found.items():
        if callable(function):
            try:
                found[name] = [
                    _Change(owner, attribute, vars(owner).get(attribute, _MISSING), ours)
                    for owner, attribute, ours in function()
                ]
            except Exception as error:  # whatever another Keras does instead
                found[name] = error
    return found


def _version():
    return tuple(int(number) for number in keras.__version__.split(".")[:2])


def _warn(text):
    if text not in _told:
        _told.add(text)
        warnings.warn(text, stacklevel=3)
