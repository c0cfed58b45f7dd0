"""HTML pages that need nothing but themselves, and numbers written for people.

Style, charts and pictures are inside a page; it runs no script and asks the network for nothing.
It fits a phone and a wide screen, and follows the reader's choice of light or dark.
"""

import base64
import io
import math
import re

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from PIL import Image

from keras_segen.plot import INK_COLOR, RULE_COLOR

QUALITY = 80  # of pictures, 0 to 100


def render(template, filters, **values):
    """Fills a template of `keras_segen/templates`: returns the page as a str.

    Args:
        template: str, the file's name.
        filters: dict from a name to a function, beside `show`, `percent` and `setting`.
        **values: what the template asks for.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_segen"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(show=show, percent=percent, setting=setting, **filters)
    return environment.get_template(template).render(**values)


def svg(figure, label, colors=()):
    """Draws a Matplotlib figure as inline SVG that takes its text colour from the page around it.

    Args:
        figure: a `matplotlib.figure.Figure` whose text is drawn in `plot.INK_COLOR` and whose
            lines around it in `plot.RULE_COLOR`.
        label: str, what a screen reader says of it.
        colors: pairs (hexadecimal colour, CSS colour to put in its place).

    Returns:
        `markupsafe.Markup`.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "keras_segen"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r' id="(figure|axes|patch|text|line2d|legend|matplotlib|xtick|ytick)[^"]*"', "", text
    )
    box = re.search(r'viewBox="[^"]*"', text)[0]
    opening = f'<svg {box} role="img" aria-label="{Markup.escape(label)}">'
    text = re.sub(r"<svg [^>]*>", lambda match: opening, text, count=1)
    text = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*DejaVu Sans[^;\"]*", _font, text)
    for code, css in ((INK_COLOR, "currentColor"), (RULE_COLOR, "var(--rule)"), *colors):
        text = text.replace(code, css)
    return Markup(text)


def _font(match):
    return f"font-size: {match[2].strip()}" if match[2] else "font-family: inherit"


def image_source(image, max_side):
    """An image as a data URI, WebP, made smaller if a side is longer than `max_side` pixels.

    Args:
        image: RGB, uint8 `(height, width, 3)`.
        max_side: int.
    """
    image = Image.fromarray(image)
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def plain(value):
    """The same value out of what JSON knows: NaN and infinity become None, arrays lists."""
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
    """A number for people: `digits` digits that count, 10⁻⁵ instead of e-05, a dash for None.

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


def listing(words):
    """Joins words: "a", "a and b", "a, b and c"."""
    *start, last = list(words) or [""]
    return f"{', '.join(start)} and {last}" if start else last
