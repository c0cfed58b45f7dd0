"""The API reference: the docstrings of the public names, as Markdown for Sphinx.

Docstrings of this package are Markdown with the sections of Keras' docstrings (`Args:`, `Returns:`,
`Raises:`, `Attributes:`, `Example:`).
"""

import functools
import inspect
import re

import keras_segen

PAGES = sorted(set(keras_segen.__all__) - {"initialize", "load"})  # of determinism and runs
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example):$")
ITEM = re.compile(r"^    (?! )(\S.*?):(?: (.*)|)$")
RETURNED = re.compile(r"^    ([a-z_]\w*): (.*)$")  # one of several things
ITEMS = {"Args": ITEM, "Attributes": ITEM, "Raises": ITEM, "Returns": RETURNED, "Yields": RETURNED}


def page(name):
    """Returns the reference of a room, such as `"data"`: Markdown without a title."""
    room = getattr(keras_segen, name)
    parts = [to_markdown(inspect.getdoc(room))]
    for member in members(room):
        parts.append(describe(f"keras_segen.{name}.{member}", getattr(room, member)))
    return "\n\n" + "\n\n".join(parts) + "\n"


@functools.cache
def documented():
    """The full names of all that is in the reference: frozenset of str."""
    return frozenset(
        f"keras_segen.{name}.{member}"
        for name in PAGES
        for member in members(getattr(keras_segen, name))
    )


def members(room):
    """The public names of a room that have a docstring, in the order of its `__all__`."""
    names = getattr(room, "__all__", None)
    if names is None:
        own = {k: v for k, v in vars(room).items() if not k.startswith("_")}
        names = [k for k, v in own.items() if getattr(v, "__module__", "") == room.__name__]
    found = [name for name in names if callable(getattr(room, name))]
    return [name for name in found if getattr(room, name).__doc__]


def describe(name, value):
    """Returns the entry of a function or a class."""
    if not inspect.isclass(value):
        return directive("py:function", name + signature(value), to_markdown(inspect.getdoc(value)))
    body = [to_markdown(inspect.getdoc(value))]
    base = documented_base(value)
    if base is not None:
        body.append(f"And all of {{py:obj}}`{named()[base]}`.")
    for member, found in sorted(public(value).items()):
        text = to_markdown(inspect.getdoc(found))
        if isinstance(found, property):
            body.append(directive("py:property", member, text))
        else:
            kind = "py:classmethod" if isinstance(found, classmethod) else "py:method"
            shown = member + signature(getattr(value, member), isinstance(found, classmethod))
            body.append(directive(kind, shown, text))
    return directive("py:class", name + signature(value), "\n\n".join(body), depth=4)


@functools.cache
def named():
    """The classes that are in the reference: dict from class to full name."""
    pairs = [(name, name.split(".")[1:]) for name in sorted(documented())]
    values = [(getattr(getattr(keras_segen, room), member), name) for name, (room, member) in pairs]
    return {value: name for value, name in values if inspect.isclass(value)}


def documented_base(kind):
    """The nearest base class that is in the reference, or None."""
    return next((base for base in kind.__mro__[1:] if base in named()), None)


def public(kind):
    """The public methods and properties of a class that are ours, without a documented base's."""
    base, found = documented_base(kind), {}
    skipped = () if base is None else base.__mro__
    for each in reversed(kind.__mro__):
        if each.__module__.startswith("keras_segen") and each not in skipped:
            found |= {k: v for k, v in vars(each).items() if not k.startswith("_")}
    return {
        name: value
        for name, value in found.items()
        if (callable(value) or isinstance(value, (property, classmethod, staticmethod)))
        and not inspect.isclass(value)
        and inspect.getdoc(value)
    }


def signature(value, bound=False):
    """Returns the arguments of a callable as text."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "()"
    arguments = list(found.parameters.values())
    if arguments and arguments[0].name == "self":
        arguments = arguments[1:]
    arguments = [each.replace(annotation=inspect.Parameter.empty) for each in arguments]
    shown = str(inspect.Signature(arguments))
    return re.sub(r"<\S.*? at 0x\w+>", "...", shown)  # a default without a literal


def directive(kind, argument, body, depth=3):
    """Returns a directive of Sphinx; one with `depth` 4 may hold others."""
    fence = ":" * depth
    return f"{fence}{{{kind}}} {argument}\n\n{body}\n{fence}"


def to_markdown(text):
    """Returns a docstring as Markdown: its sections become lists, its examples code."""
    lines, section = [], None
    for line in (text or "").splitlines():
        heading = SECTION.match(line)
        item = ITEMS[section].match(line) if section in ITEMS else None
        if heading:
            section = heading[1]
            line = f"**{section}**\n" if section != "Example" else ""
        elif item:
            line = f"- {code(item[1])}: {item[2] or ''}"
        elif line.startswith("    ") and section is not None:
            line = re.sub(r"^( +\d+)\.", r"\1\\.", line[4:])  # a number that ends a sentence
        elif line and not line.startswith(" "):
            section = None
        lines.append(line)
    return link(fence_examples(lines))


def code(names):
    """Marks the names of an item as code."""
    return ", ".join(f"`{name}`" for name in names.replace("`", "").split(", "))


def fence_examples(lines):
    """Puts doctests into blocks of code."""
    shown, inside = [], False
    for line in lines:
        if line.startswith(">>> ") and not inside:
            shown.append("```python")
            inside = True
        elif inside and not line.strip():
            shown.append("```")
            inside = False
        shown.append(line)
    return "\n".join(shown + ["```"] * inside)


def link(text):
    """Makes links of names such as `keras_segen.data.Folder` that are in the reference."""

    def to_link(found):
        return f"{{py:obj}}{found[0]}" if found[1] in documented() else found[0]

    return re.sub(r"`(keras_segen\.[\w.]+)`", to_link, text)
