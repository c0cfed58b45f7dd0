"""What the README says is so."""

import re
from pathlib import Path

import pytest
import typer.testing

from keras_segen import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


SEGMENTATION, GENERATION = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_of_segmentation_runs(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    short = SEGMENTATION.replace("epochs=3", "epochs=1, steps_per_epoch=2, validation_steps=2")
    scope = {}
    exec(short, scope)
    assert scope["model"].count_params() > 100_000
    assert scope["ks"].plot.masks  # the example ends with a picture


def test_the_example_of_generation_runs():
    scope = {}
    exec(GENERATION.replace("epochs=3", "epochs=1, steps_per_epoch=1"), scope)
    images = scope["images"]
    assert images.shape == (16, 32, 32, 3) and 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"^keras-segen (.*?)(?:  |$)", README, re.M)))
)
def test_every_command_exists_with_its_options(line):
    words = line.split()
    command = words[:2] if words[0] == "bench" else words[:1]
    shown = typer.testing.CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [*command, "--help"])
    assert shown.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.output


def test_every_model_and_data_set_is_in_the_tables():
    from keras_segen.data import DATASETS
    from keras_segen.generation import NETWORKS
    from keras_segen.segmentation import MODELS

    for name in (*MODELS, *NETWORKS, *DATASETS):
        assert f"| `{name}` |" in README
