"""The house's rules, read off its source: who imports whom, and who asks what."""

import ast
import re
import sys
from pathlib import Path

import pytest

from keras_segen.tasks.registry import KINDS

pytestmark = pytest.mark.once

pytestmark = pytest.mark.once  # no framework is asked

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_segen"
SOURCES = sorted(PACKAGE.rglob("*.py"))
sys.path.insert(0, str(ROOT / "docs"))

import imports as drawn  # noqa: E402  (docs/imports.py)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_lead_down_the_stairs():
    assert drawn.upwards(drawn.imports()) == []


def test_an_import_that_leads_up_is_found(tmp_path):
    for name, text in (("data.py", "from keras_segen import runs"), ("files.py", "import keras")):
        (tmp_path / name).write_text(text)
    (tmp_path / "losses.py").write_text("def f():\n    import keras_segen.report.html")
    found = [line.split(": ")[1] for line in drawn.upwards(drawn.imports(tmp_path))]
    assert found == ["data imports runs", "losses imports report"]


def test_the_diagram_is_that_of_the_source():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.search(r"```mermaid\n(.*?)\n```", page, re.DOTALL)[1]
    assert shown == drawn.diagram(drawn.imports()), "renew it: python docs/imports.py"


def test_frameworks_are_imported_behind_the_seam_only():
    allowed = (PACKAGE / "backend", PACKAGE / "bench" / "handwritten")
    for path in SOURCES:
        if any(path.is_relative_to(folder) for folder in allowed):
            continue
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in ("tensorflow", "torch"), f"{path}: {name}"


CLASSES = {kind.__name__ for kind in KINDS}
MODELS = {model for kind in KINDS for model in kind.MODELS}


def questions(node):
    """The ways in which code asks what kind a task is, in one node of a syntax tree."""
    if isinstance(node, ast.Attribute) and node.attr == "makes":
        yield "reads makes"
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
        names = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
        names |= {each.attr for each in ast.walk(node.args[1]) if isinstance(each, ast.Attribute)}
        if names & CLASSES:
            yield "asks for the class of a task"
    if isinstance(node, ast.Compare):
        for each in (node.left, *node.comparators):
            values = [each] if isinstance(each, ast.Constant) else getattr(each, "elts", [])
            if any(getattr(value, "value", None) in MODELS for value in values):
                yield "compares with a model's name"
    if isinstance(node, ast.Subscript) and "KINDS" in ast.dump(node.value):
        yield "picks from KINDS by place"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_outside_tasks_asks_what_kind_a_task_is(path):
    if room(path) == "tasks":
        return
    found = [
        f"line {node.lineno}: {question}"
        for node in ast.walk(tree(path))
        for question in questions(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "task.makes == 'masks'",
        "isinstance(task, SegmentationTask)",
        "isinstance(task, (tasks.GanTask, int))",
        "if model == 'sngan': pass",
        "x = model in ('dcgan', 'vae')",
        "kinds = registry.KINDS[:1]",
    ],
)
def test_a_question_is_found(code):
    assert [each for node in ast.walk(ast.parse(code)) for each in questions(node)]


def test_templates_ask_nothing_either():
    for path in (PACKAGE / "report" / "templates").glob("*.j2"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"makes|\bequal_pixels|class_iou|d_loss|mean_iou", text), path
