"""What a data set holds: as a page, in the terminal and in a notebook."""

import dataclasses
import datetime
from pathlib import Path

from keras_segen.files import write_text
from keras_segen.report import html


@dataclasses.dataclass
class Description:
    """What `keras_segen.data.describe` found. A notebook displays its page.

    Args:
        subject: str, the data set's name.
        result: str, what there is, in a few words.
        figures: dict of plain values, everything that was counted.
        cards: list of `(title, text, note)`, the main figures.
        tables: list of `keras_segen.report.tables.Table`.
        findings: `Table` of what is worth a look, or None if there is nothing.
        suspects: list of `keras_segen.report.evaluation.Shown`, items out of `findings`.
        samples: list of `Shown`, examples.
        augmented: list of `Shown`, examples as a training would see them.
        legend: list of `(name, CSS color)`, for the pictures.
        notes: list of str, what was left out or not to be had.
    """

    subject: str
    result: str
    figures: dict
    cards: list = dataclasses.field(default_factory=list)
    tables: list = dataclasses.field(default_factory=list)
    findings: object = None
    suspects: list = dataclasses.field(default_factory=list)
    samples: list = dataclasses.field(default_factory=list)
    augmented: list = dataclasses.field(default_factory=list)
    legend: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def write(self, path):
        """Writes the page, whole or not at all.

        Args:
            path: the file, such as `"data.html"`; its folder is made if needed.

        Returns:
            `pathlib.Path` of the page.
        """
        write_text(path, self.page())
        return Path(path)

    def page(self):
        """The HTML page as a str; it is whole in itself."""
        return html.render(
            "data.html.j2",
            description=self,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        )

    def _repr_html_(self):
        return html.iframe(self.page(), f"{self.subject}: {self.result}")
