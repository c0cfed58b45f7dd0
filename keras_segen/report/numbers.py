"""Numbers and settings as text for people and as JSON."""

import math

import numpy as np

from keras_segen.frameworks import FRAMEWORKS


def plain(value):
    """The same value in JSON's types: NaN and infinity become None, arrays lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def show(value, digits=3):
    """A number for people: `digits` significant digits, 10⁻⁵ instead of e-05, a dash for None.

    >>> show(1234.5), show(0.0), show(0.000024), show(49.23), show(None)
    ('1,234', '0', '2.4×10⁻⁵', '49.2', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if value == 0 or isinstance(value, int):
        return f"{value:,.0f}"
    if not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa}×10{raised}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if 0.99 < value < 1:  # as many nines as it takes
        decimals = max(decimals, math.ceil(-math.log10(1 - value)) + 1)
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == value and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text


def percent(share):
    """A share as percent; never rounded up to 100.

    >>> percent(0.5), percent(0.99999), percent(1.0), percent(None)
    ('50 %', '99.999 %', '100 %', '–')
    """
    if share is None:
        return "–"
    if 0.99 < share < 1:
        return f"{100 * share:.{math.ceil(-math.log10(1 - share))}f}".rstrip("0") + " %"
    return show(100 * share) + " %"


def setting(value):
    """A setting's value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(setting(item) for item in value)
    return str(value)


def display_name(backend):
    """The name of a backend for people."""
    return FRAMEWORKS.get(backend, backend)


def listing(words):
    """Joins words: "a", "a and b", "a, b and c"."""
    *start, last = list(words) or [""]
    return f"{', '.join(start)} and {last}" if start else last
