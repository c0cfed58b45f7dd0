"""Self-contained HTML pages.

Style, charts and pictures are inside a page; it runs no script and does not use the network. It
fits a phone and a wide screen, and follows the reader's choice of light or dark.
"""

import base64
import io
import re

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from keras_segen.report.numbers import display_name, percent, setting, show

QUALITY = 80  # of pictures, 0 to 100
MAX_SIDE = 320  # of pictures, pixels


def render(template, **values):
    """Fills a template of `keras_segen/report/templates`: returns the page as a str.

    Args:
        template: str, the file's name.
        **values: the variables of the template.
    """
    return environment().get_template(template).render(**values)


def environment():
    """The Jinja environment: text is escaped, and a missing variable is an error.

    Its filters are `show`, `percent` and `setting`; `source`, the `image_source` of a picture;
    and `name`, the name of a backend for people.
    """
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_segen.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters.update(show=show, percent=percent, setting=setting, source=image_source)
    found.filters["name"] = display_name
    return found


def svg(figure, label, colors=()):
    """Draws a Matplotlib figure as inline SVG that takes its text color from the page around it.

    Args:
        figure: a `matplotlib.figure.Figure` whose text is drawn in `plot.INK_COLOR` and whose
            lines around it in `plot.RULE_COLOR`.
        label: str, the text for screen readers.
        colors: pairs (hexadecimal color, CSS color to put in its place).

    Returns:
        `markupsafe.Markup`.
    """
    import matplotlib  # takes a second, which a command that draws nothing need not wait

    from keras_segen.plot import INK_COLOR, RULE_COLOR

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
    opening = f'<svg {box} role="img" aria-label="{escape(label)}">'
    text = re.sub(r"<svg [^>]*>", lambda match: opening, text, count=1)
    text = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*DejaVu Sans[^;\"]*", _font, text)
    for code, css in ((INK_COLOR, "currentColor"), (RULE_COLOR, "var(--rule)"), *colors):
        text = text.replace(code, css)
    return Markup(text)


def _font(match):
    return f"font-size: {match[2].strip()}" if match[2] else "font-family: inherit"


def image_source(image, max_side=MAX_SIDE):
    """An image as a data URI, WebP, shrunk if a side is longer than `max_side` pixels.

    Args:
        image: RGB, uint8 `(height, width, 3)`.
        max_side: int.
    """
    image = Image.fromarray(image)
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def iframe(page, title, height=720):
    """A page inside a notebook, isolated so that neither's style affects the other.

    Args:
        page: str, HTML.
        title: str, the text for screen readers.
        height: int, pixels.
    """
    return (
        f'<iframe srcdoc="{escape(page)}" title="{escape(title)}" style="display: block; '
        f"width: 100%; height: {height}px; border: 1px solid #8888; border-radius: 6px; "
        'resize: vertical; overflow: auto"></iframe>'
    )
