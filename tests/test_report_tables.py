"""A table says the same in the terminal, on a page and in a file."""

import csv
import io

import rich.console

from keras_segen.report.html import environment
from keras_segen.report.tables import Cell, Column, Table, decimals


def table():
    return Table(
        "Scores [of] two",
        ["model", Column("IoU", decimals(2)), Column("note", str, numeric=False)],
        [["[bold]unet", Cell(0.123456, ("0.1 to 0.2",), "bad"), "a<b"], ["fcn", None, "–"]],
        marked={0},
    )


def test_table_in_the_terminal_takes_nothing_for_markup():
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table().to_rich())
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "Scores [of] two"
    assert lines[2].split() == ["[bold]unet", "0.12", "a<b"] and lines[3].split() == [
        "0.1",
        "to",
        "0.2",
    ]
    assert lines[4].split() == ["fcn", "–", "–"]


def test_table_as_csv_has_numbers_in_full(tmp_path):
    table().write_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["model", "IoU", "note"], ["[bold]unet", "0.123456", "a<b"], ["fcn", "", "–"]]


def test_table_on_a_page_is_escaped():
    template = '{% from "macros.html.j2" import whole %}{{ whole(shown) }}'
    text = environment().from_string(template).render(shown=table())
    assert "a&lt;b" in text and "<small>0.1 to 0.2</small>" in text and 'class="missed"' in text
    assert 'class="number no"' in text
