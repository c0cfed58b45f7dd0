"""The site: it builds without a warning, and nothing public is missing in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_segen

pytestmark = pytest.mark.once  # the same on every framework

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import first_hour  # noqa: E402  (docs/first_hour.py)
import reference  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` builds it: warnings, such as links that lead nowhere, are errors."""
    folder = tmp_path_factory.mktemp("site")
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"-m sphinx (.*) -d build/doctrees \. build/site", make)[1].split()
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-d", folder / "doctrees", ".", folder / "site"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_the_site_builds_without_warnings_and_begins_with_the_readme(site):
    first = (site / "index.html").read_text("utf-8")
    assert "You teach a lab, offline" in first and 'href="docs/data.html"' in first
    for name in ("architecture", "comparison", "data", "measurements"):
        assert (site / "docs" / f"{name}.html").is_file()


def test_docstrings_are_shown_with_their_sections(site):
    page = (site / "docs" / "api" / "data.html").read_text("utf-8")
    assert 'id="keras_segen.data.describe"' in page and "<strong>Raises</strong>" in page
    assert 'id="keras_segen.data.Augment.parse"' in page
    for path in (site / "docs" / "api").glob("*.html"):
        text = path.read_text("utf-8")
        assert not re.search(r"<p>(Args|Returns|Raises|Yields|Attributes):", text), path
        prose = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        assert " at 0x" not in text and "&gt;&gt;&gt; " not in prose, path


def test_no_page_needs_the_network(site):
    for path in site.rglob("*.html"):
        text = path.read_text("utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text), path


def test_every_room_has_a_page():
    assert [path.stem for path in sorted((ROOT / "docs" / "api").glob("*.md"))] == reference.PAGES


@pytest.mark.parametrize("name", reference.PAGES)
def test_every_public_function_has_a_docstring(name):
    room = getattr(keras_segen, name)
    for each in getattr(room, "__all__", ()):
        if callable(getattr(room, each)):
            assert each in reference.members(room)


def test_a_docstring_becomes_markdown():
    text = """Does it.

Args:
    size: int, at most
        1. Default: 1.
    kind, other: str:

        - one
    *more: arrays.

Returns:
    first: an array.
    second: see `keras_segen.data.load` and `keras_segen.data.nothing`.

Example:

>>> f(1)
2

More of it."""
    assert reference.to_markdown(text).splitlines() == [
        *("Does it.", "", "**Args**", "", "- `size`: int, at most", "    1\\. Default: 1."),
        *("- `kind`, `other`: str:", "", "    - one", "- `*more`: arrays.", ""),
        *("**Returns**", "", "- `first`: an array."),
        "- `second`: see {py:obj}`keras_segen.data.load` and `keras_segen.data.nothing`.",
        *("", "", "", "```python", ">>> f(1)", "2", "```", "", "More of it."),
    ]


def test_the_first_hour_has_every_command_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    steps = first_hour.with_preparations(first_hour.steps(text))
    commands = [first_hour.fill_in(code) for _, kind, code, _ in steps if kind == "console"]
    for line in re.findall(r"^(?:keras-segen|make|pip) .*$", text, re.MULTILINE):
        assert first_hour.fill_in(line) in commands
    for command in commands:  # nothing is left that stands for something of the reader's
        assert not re.search(r"\b[A-Z]{3,}", command.partition("#")[0]), command


def test_the_first_hour_is_written_without_the_paths_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(first_hour, "PAGE", tmp_path / "page.md")
    output = "\n".join(f"/somewhere/clone/{i}" for i in range(100))
    record = {"heading": "Install", "language": "console", "code": "keras-segen x", "purpose": ""}
    record |= {
        "status": 3,
        "seconds": 61,
        "output": first_hour.shorten(output, Path("/somewhere/clone")),
        "commit": "abc",
    }
    skipped = record | {"status": None, "output": "no time"}
    first_hour.write_page([record, skipped, record | {"status": 0, "commit": "def"}])
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert (
        "clone of abc: 3 min 03 s in all, 1 failed" in page
        and "$ keras-segen x\n~/keras-segen/0\n" in page
    )
    assert "… 76 lines …" in page and "/somewhere" not in page
    assert page.endswith("1 min 01 s. This was run in the clone brought to def.\n")
    assert "1 min 01 s. It failed, with status 3." in page and "Not run: no time." in page
