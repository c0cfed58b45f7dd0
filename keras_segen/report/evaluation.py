"""The results of an evaluation: as JSON, CSV, a page, in the terminal and in a notebook."""

import dataclasses
import datetime
from pathlib import Path

from keras_segen.files import write_json, write_text
from keras_segen.report import html
from keras_segen.report.numbers import plain
from keras_segen.report.tables import settings_table


@dataclasses.dataclass
class Shown:
    """One item of a gallery.

    Args:
        name: str.
        note: str, a text about it.
        pictures: dict from a picture's title to uint8 `(height, width, 3)`.
    """

    name: str
    note: str
    pictures: dict


@dataclasses.dataclass
class Evaluation:
    """The results of an evaluation. A notebook displays its page.

    Args:
        subject: str, the model and the data set; the page begins with it.
        result: str, the result in a few words.
        figures: dict of plain values, all results.
        tables: list of `keras_segen.report.tables.Table`, the most important first: that one is
            also written as CSV.
        sentences: list of str, further results.
        warnings: list of str.
        cards: list of `(title, text, note)`, the main figures.
        charts: list of `(title, note, figure)`, with a `matplotlib.figure.Figure`.
        details: list of `Table`, folded away on the page.
        gallery: `(title, note, list of Shown)`, or None.
        legend: list of `(name, CSS color)`, for the gallery.
        settings: dict of plain values, those of the training and the evaluation.
        files: dict from a name to plain values, written as JSON beside the page: too long for
            `figures`.
    """

    subject: str
    result: str
    figures: dict
    tables: list
    sentences: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)
    cards: list = dataclasses.field(default_factory=list)
    charts: list = dataclasses.field(default_factory=list)
    details: list = dataclasses.field(default_factory=list)
    gallery: tuple | None = None
    legend: list = dataclasses.field(default_factory=list)
    settings: dict = dataclasses.field(default_factory=dict)
    files: dict = dataclasses.field(default_factory=dict)

    def write(self, folder, name):
        """Writes `NAME.json`, `NAME.csv` and `NAME.html` into a folder, each whole or not at all.

        And `NAME-FILE.json` for each of `files`.

        Returns:
            `pathlib.Path` of the page.
        """
        folder = Path(folder)
        write_json(folder / f"{name}.json", plain(self.figures))
        for file, values in self.files.items():
            write_json(folder / f"{name}-{file}.json", plain(values))
        self.tables[0].write_csv(folder / f"{name}.csv")
        write_text(folder / f"{name}.html", self.page(name))
        return folder / f"{name}.html"

    def page(self, name="evaluation"):
        """The HTML page as a str; `name` is that of the files beside it."""
        return html.render(
            "evaluation.html.j2",
            evaluation=self,
            charts=[(title, note, html.svg(each, title)) for title, note, each in self.charts],
            settings=settings_table(self.settings),
            name=name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        )

    def _repr_html_(self):
        return html.iframe(self.page(), f"{self.subject}: {self.result}")
