"""Every notebook runs from its first cell to its last, on this backend."""

import json
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from keras_segen.compare import turns

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
ALLOWED = ("os", "numpy", "keras", "keras_segen", "matplotlib")


# Smaller networks, fewer trainings of a kind, for the same cells.
SHORTER = {
    "00": {"filters=(16, 32, 64)": "filters=(4, 8)"},
    "01": {"filters=(16, 32, 64)": "filters=(4, 8)"},
    "02": {
        "SIZE, FILTERS = 128, (16, 32, 64, 96, 96, 192)": "SIZE, FILTERS = 64, (4,) * 6",
        "((32, 10), (16, 5), (8, 5))": "((32, 1), (8, 1))",
    },
    "03": {
        "filters=(16, 32, 64)": "filters=(4, 8)",
        'scenes("train", 320': 'scenes("train", 32',
        "for name, loss in losses.items()": "for name, loss in [*losses.items()][1:3]",
    },
    "04": {"for beta in (1, 5, 25)": "for beta in (1, 25)"},
    "05": {'pictures("train", 1024)': 'pictures("train", 64)'},
    "06": {
        "steps=1500) for name, gan in trials.items()": (
            "steps=1500) for name, gan in [*trials.items()][1:]"
        ),
        ', "equal rates": (1e-3, 1e-3)}': "}",
    },
    "07": {
        '"filters": (8, 16, 32)': '"filters": (2, 4)',
        '"seconds": 30': '"seconds": 1, "batch_size": 2',
        # With one thread: tests/test_compare_api.py.
        'run("unet", out="runs/one_thread", threads=1, **SETTINGS)': 'load("runs/all_threads")',
    },
    "08": {'Shapes("val", SIZE, length=64)': 'Shapes("val", SIZE, length=16)'},
}


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks, each of which begins without names of those before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_MAX_EPOCHS", "1")
        patch.setenv("KERAS_MAX_STEPS_PER_EPOCH", "2")
        manager = AsyncKernelManager(kernel_name="python3")
        run_sync(manager.start_kernel)()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


# This one starts both backends itself.
ONCE = [pytest.param(p, marks=pytest.mark.once) if "07" in p.stem else p for p in NOTEBOOKS]


@pytest.mark.parametrize("path", ONCE, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for shown, short in SHORTER[path.stem[:2]].items():
        assert any(shown in cell.source for cell in notebook.cells), shown
        for cell in notebook.cells:
            cell.source = cell.source.replace(shown, short)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}"))
    client = NotebookClient(notebook, km=kernel, timeout=900)
    client.execute()
    client.kc.stop_channels()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    if "07" in path.stem:
        report = json.loads((tmp_path / "runs" / "all_threads" / "report.json").read_text("utf-8"))
        check_turns(report["speed"])


def check_turns(speed):
    """What the backends measured by turns, in a comparison with batches of up to 2."""
    assert speed["errors"] == {} and set(speed["start"]) == {"tensorflow", "torch"}
    where = [(each["work"], each["batch_size"]) for each in speed["cells"]]
    assert where == [("train", 1), ("predict", 1), ("train", 2), ("predict", 2)]
    for each in speed["cells"]:
        assert each["ms"].keys() == each["stock_ms"].keys() == {"tensorflow", "torch"}
        assert each["ratio"]["low"] < each["ratio"]["value"] < each["ratio"]["high"]
        assert each["ratio"]["rounds"] >= turns.LEAST_ROUNDS
        fast, slow = sorted(each["ms"], key=lambda name: each["ms"][name]["median"])
        images = each["images_per_second"]
        assert images[fast] >= images[slow]


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
