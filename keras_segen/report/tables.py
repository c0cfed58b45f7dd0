"""A table, written once: for the terminal (Rich), for a page (a Jinja macro) and as CSV."""

import dataclasses

import rich.table
from rich.text import Text

from keras_segen.files import write_csv
from keras_segen.report.numbers import setting, show

MARK_STYLES = {"good": "green", "bad": "red", "careful": "yellow", "strong": "bold"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value and its decoration.

    Args:
        value: number, str or None.
        below: tuple of str, smaller lines under it.
        mark: str, one of `MARK_STYLES`, or None.
        swatch: CSS color of a small square before it, such as `"#ff0000"`, or None.
        bar: float from 0 to 1, the length of a bar under it on a page, or None.
    """

    value: object
    below: tuple = ()
    mark: str | None = None
    swatch: str | None = None
    bar: float | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: str.
        show: callable from a value of the column to str.
        numeric: bool, whether its cells are aligned to the right.
        swatch: CSS color of a small square before the heading, or None.
        key: str, the heading in a CSV file; None for `heading`.
    """

    heading: str
    show: callable = show
    numeric: bool = True
    swatch: str | None = None
    key: str | None = None


def decimals(count, sign=False):
    """A `show` for a column: numbers with so many decimals, a dash for None.

    >>> decimals(3)(0.5), decimals(2, sign=True)(-1.0), decimals(3)(None)
    ('0.500', '−1.00', '–')
    """

    def show_number(value):
        if value is None or isinstance(value, str):
            return value or "–"
        return f"{value:{'+' if sign else ''}.{count}f}".replace("-", "−")

    return show_number


@dataclasses.dataclass
class Table:
    """A table: its columns and, row by row, their values.

    Args:
        title: str.
        columns: list of `Column`, or of str for `Column(str)`; the first one names the rows.
        rows: list of lists with a value or a `Cell` for each column.
        note: str, a text under the title on a page.
        marked: set of int, numbers of highlighted rows.
        footer: list of lists, summary rows at the end; not in a CSV file.
    """

    title: str
    columns: list
    rows: list
    note: str = ""
    marked: set = dataclasses.field(default_factory=set)
    footer: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        first, *others = self.columns
        if isinstance(first, str):
            first = Column(first, numeric=False)
        self.columns = [first, *(Column(c) if isinstance(c, str) else c for c in others)]
        self.rows, self.footer = (
            [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
            for rows in (self.rows, self.footer)
        )

    @property
    def shown(self):
        """The rows as text: list of lists of pairs `(Cell, str)`."""
        return [
            [
                (cell, column.show(cell.value))
                for cell, column in zip(row, self.columns, strict=True)
            ]
            for row in [*self.rows, *self.footer]
        ]

    def to_rich(self):
        """The table for a terminal, a `rich.table.Table`; its text is not markup."""
        table = rich.table.Table(
            title=Text(self.title), title_justify="left", title_style="bold", box=None
        )
        for column in self.columns:
            table.add_column(
                Text(column.heading),
                justify="right" if column.numeric else "left",
                header_style="dim",
            )
        for row in self.shown:
            table.add_row(
                *(
                    Text.assemble(
                        (text, MARK_STYLES.get(cell.mark, "")),
                        *((f"\n{line}", "dim") for line in cell.below),
                    )
                    for cell, text in row
                )
            )
        return table

    def write_csv(self, path):
        """Writes headings and values, numbers in full, atomically."""
        headings = [column.key or column.heading for column in self.columns]
        write_csv(path, [headings, *([cell.value for cell in row] for row in self.rows)])


def settings_table(values, title="Settings"):
    """A dict of settings as a `Table`, a row each."""
    rows = [[name, setting(value)] for name, value in values.items()]
    return Table(title, ["Setting", Column("Value", str, numeric=False)], rows)
