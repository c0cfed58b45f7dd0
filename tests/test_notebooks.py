"""Every notebook runs from its first cell to its last, on this backend."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
ALLOWED = ("os", "numpy", "keras", "keras_segen", "matplotlib")


# Smaller networks, for the same cells.
SHORTER = {
    "00": {"filters=(16, 32, 64)": "filters=(4, 8)"},
    "01": {"filters=(16, 32, 64)": "filters=(4, 8)"},
    "02": {"SIZE, FILTERS = 128, (16, 32, 64, 96, 96, 192)": "SIZE, FILTERS = 64, (4,) * 6"},
    "03": {"filters=(16, 32, 64)": "filters=(4, 8)", 'scenes("train", 320': 'scenes("train", 32'},
    "07": {'"filters": (8, 16, 32)': '"filters": (2, 4)', '"seconds": 30': '"seconds": 1'},
}


# This one starts both backends itself.
ONCE = [pytest.param(p, marks=pytest.mark.once) if "07" in p.stem else p for p in NOTEBOOKS]


@pytest.mark.parametrize("path", ONCE, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "1")
    monkeypatch.setenv("KERAS_MAX_STEPS_PER_EPOCH", "2")
    notebook = nbformat.read(path, as_version=4)
    for shown, short in SHORTER.get(path.stem[:2], {}).items():
        assert any(shown in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(shown, short)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_to_the_house(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(cells) <= 15
    for cell in code:  # the formatter's blank lines aside
        assert sum(bool(line.strip()) for line in cell.source.splitlines()) <= 12, cell.source
    assert not any(cell.outputs or cell.execution_count for cell in code), "strip the outputs"
    for line in "\n".join(cell.source for cell in code).splitlines():
        words = line.split()
        if words[:1] in (["import"], ["from"]):
            assert words[1].split(".")[0] in ALLOWED, line
    assert code[0].source.startswith("import os") and "KERAS_BACKEND" in code[0].source
    assert "Try:" in cells[-1].source
