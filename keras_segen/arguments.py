"""Checks of arguments that need neither Keras nor a framework."""

import math
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


def check_weights(class_weights):
    """Returns class weights as a tuple of floats.

    Raises:
        ValueError: when they are no sequence of numbers, or one is negative or not finite.
    """
    is_sequence = isinstance(class_weights, list | tuple) or hasattr(class_weights, "tolist")
    try:
        numbers = [as_number(weight) for weight in class_weights] if is_sequence else [None]
    except TypeError:  # an array without dimensions
        numbers = [None]
    if None in numbers or not all(math.isfinite(weight) and weight >= 0 for weight in numbers):
        raise ValueError(
            "class_weights must be one number for each class, finite and not negative, such as "
            f"(1.0, 3.0); found {class_weights!r}."
        )
    return tuple(numbers)


def check_number(name, value, above=None, least=None, below=None):
    """Raises a ValueError if an argument is no finite number, or lies outside its range."""
    number = as_number(value)
    fits = number is not None and math.isfinite(number)
    fits = fits and (above is None or number > above) and (least is None or number >= least)
    if not fits or (below is not None and number >= below):
        limits = {"above": above, "at least": least, "below": below}
        limits = [f"{word} {limit}" for word, limit in limits.items() if limit is not None]
        raise ValueError(f"{name} must be finite and {' and '.join(limits)}; found {value!r}.")
