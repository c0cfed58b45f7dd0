"""Checks of arguments that need neither Keras nor a framework."""

import operator


def whole_number(name, value, least, expected):
    """Returns an argument as int if it is a whole number from `least` on."""
    number = as_int(value)
    if number is None or number < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number{expected}.")
    return number


def as_int(value):
    """Returns a whole number, of Python or NumPy, as int; None for all else, also for a bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_ints(values):
    """Returns a sequence of whole numbers as a tuple of ints; None if it is none.

    An element that is None stays None.
    """
    if isinstance(values, str | bytes | dict):
        return None
    try:
        given = tuple(values)
    except TypeError:
        return None
    wrong = any(as_int(value) is None for value in given if value is not None)
    return None if wrong else tuple(map(as_int, given))


def as_number(value):
    """Returns a number, of Python or NumPy, as float; None for all else, also for text."""
    if isinstance(value, str | bytes | bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
