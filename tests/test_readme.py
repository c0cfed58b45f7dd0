"""What the README and the pages in docs/ say is so."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.core
import typer.main

from keras_segen import cli
from keras_segen.cli import fields
from keras_segen.tasks import registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text, language=""):
    return [block for found, block in FENCED.findall(text) if found == language]


# The task in architecture.md is tests/denoising.py: test_tasks.py takes it from there.
PYTHON = {name: blocks(text, "python") for name, text in TEXTS.items() if name != "architecture.md"}


# In a process of its own: a script for each page, in a folder of its own.
SCRIPTS = """
import json, os, sys
for name, code in json.loads(sys.argv[1]).items():
    os.mkdir(name)
    os.chdir(name)
    print("The examples of", name, file=sys.stderr)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
    os.chdir("..")
"""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["README.md"], id="README.md"),
        pytest.param(
            [name for name, found in PYTHON.items() if found and name != "README.md"],
            id="docs",
            marks=pytest.mark.once,
        ),
    ],
)
def test_the_examples_run(names, tmp_path):
    """One after the other, with one epoch of two steps."""
    code = {name: "\n".join(PYTHON[name]) for name in names}
    environment = {
        **os.environ,
        **{"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "2", "MPLBACKEND": "agg"},
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS, json.dumps(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def commands(text):
    """The `keras-segen` lines of a page: list of lists of words, with bash's variables filled."""
    shown = "\n".join(blocks(text))
    values = {
        name: value for name, value in re.findall(r'^([A-Z0-9]+)="(.*?)"$', shown, re.M | re.S)
    }
    for _ in values:  # one may stand in another
        shown = re.sub(r"\$([A-Z0-9]+)", lambda found: values[found[1]], shown)
    lines = re.findall(r"^keras-segen (.*)$", re.sub(r"\n +", " ", shown), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


LINES = sorted({shlex.join(words) for text in TEXTS.values() for words in commands(text)})


def parse(words):
    """Parses the words of a command as the application does: its values. Nothing is run."""
    command, context = typer.main.get_command(cli.app), None
    name = "keras-segen"
    while isinstance(command, typer.core.TyperGroup):
        context = typer.Context(command, info_name=name, parent=context)
        if words[0] in [option for each in command.params for option in each.opts]:
            return {}
        name, command, words = command.resolve_command(context, list(words))
    return command.make_context(name, words, parent=context).params


def make_task(model, values, folder):
    """Makes the task that a command line asks for, by way of a file of settings."""
    names = {field.name for field in dataclasses.fields(registry.kind_of(model))}
    given = {name: value for name, value in values.items() if value is not None and name in names}
    (folder / "task.json").write_text(json.dumps(given))
    return registry.read({**fields.read_file(folder / "task.json"), "model": model})


@pytest.mark.once
@pytest.mark.parametrize("line", LINES)
def test_every_command_exists_with_its_options(line, tmp_path):
    values = parse(shlex.split(line))
    if line.split()[0] in ("train", "compare"):
        make_task(values["model"] or "unet", values, tmp_path)


@pytest.mark.once
@pytest.mark.parametrize(
    "line, message",
    [
        ("trian unet", "No such command"),
        ("-x", "No such option"),
        ("train --epoch-s 5", "No such option"),
        ("train --epochs many", "valid integer"),
        ("train --class-weights median", "class_weights is 'median'"),
        ("train unet --image-size 64,64", "image_size in .* is '64,64'"),
    ],
)
def test_a_command_that_does_not_work_is_found(line, message, tmp_path):
    with pytest.raises(Exception, match=message):
        make_task("unet", parse(line.split()), tmp_path)


@pytest.mark.once
def test_the_commands_of_a_page_are_found():
    text = "```python\nx\n```\nkeras-segen is text\n```\n"
    text += 'A="--seed 1\n  --epochs 2"\nkeras-segen train $A --run x   # more\n```\n'
    assert commands(text) == [["train", "--seed", "1", "--epochs", "2", "--run", "x"]]
    assert len(LINES) > 60


@pytest.mark.once
def test_every_model_and_data_set_is_in_the_tables():
    from keras_segen.data import DATASETS

    everything = "\n".join(TEXTS.values())
    kinds = [kind for kind in registry.KINDS if kind.__module__.startswith("keras_segen.")]
    for name in (*(model for kind in kinds for model in kind.MODELS), *DATASETS):
        assert f"| `{name}` |" in everything


@pytest.mark.once
@pytest.mark.parametrize("path", PAGES + OTHERS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(path):
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "mailto:")):
            file, _, section = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), target
            if section:
                headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert section in [each.lower().replace(" ", "-") for each in headings], target


@pytest.mark.once
def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 1500
