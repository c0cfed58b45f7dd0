"""Every command of the README runs as it is written, in order, on tiny data."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_segen import cli

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import first_hour  # noqa: E402  (docs/first_hour.py)

# What is added to a command that begins so: small images, small networks, few steps.
SMALL = ("--image-size", "16x16", "--filters", "4,8")
TINY = {
    "train mask_rcnn": ("--image-size", "32x32", "--filters", "4,8,8,8", "--epochs", "1"),
    "train dcgan": ("--image-size", "8x8", "--filters", "4", "--batch-size", "64"),
    "train --resume": (),
    "train": (*SMALL, "--epochs", "2"),
    "crossval": (*SMALL, "--epochs", "1"),
    "compare mine.keras": ("--epochs", "1", "--time", "0"),
    "bench native": (*SMALL, "--steps", "4", "--rounds", "2"),
    "bench loader": (*SMALL, "--epochs", "1"),
    "bench predict": ("--sizes", "40,80", "--tile", "16"),
    "bench costs": ("--image-size", "8x8", "--filters", "4,8", "--modes", "graph"),
}
ELSEWHERE = {
    "make": "the suite itself, and the comparison that the other lines make, too",
    "keras-segen doctor": "test_cli.py",
    "keras-segen compare unet": "test_compare.py, with all options of these three lines at once",
    "pip": "test_package.py installs the package",
    "keras-segen datasets --download": "it needs a network; test_data_public.py has a stand-in",
}
STEPS = [
    (language, first_hour.fill_in(code))
    for _, language, code, purpose in first_hour.with_preparations(
        first_hour.steps((ROOT / "README.md").read_text(encoding="utf-8"))
    )
    if (language == "console" or purpose) and not code.startswith(tuple(ELSEWHERE))
]


def run(words):
    """Runs a command in this process: its exit status."""
    sys.argv = ["keras-segen", *words]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code or 0
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setenv("KERAS_MAX_STEPS_PER_EPOCH", "4")  # of processes that are started
    keras.config.set_max_steps_per_epoch(4)
    yield
    keras.config.set_max_steps_per_epoch(None)


@pytest.mark.once
@pytest.mark.usefixtures("few_steps")
@pytest.mark.filterwarnings("ignore:Limiting steps_per_epoch", "ignore:Your input ran out")
def test_every_command_of_the_readme_runs(monkeypatch, capfd, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert len(STEPS) > 20
    for language, code in STEPS:
        if language == "python":
            exec(code, {})
            continue
        words = shlex.split(code, comments=True)[1:]
        if words == ["--install-completion"]:  # it asks which shell has started it
            code = f"{shlex.quote(sys.executable)} -m keras_segen --install-completion"
            subprocess.run(["bash", "-c", f"{code}; true"], check=True, env=os.environ)
            assert "keras-segen" in (home / ".bashrc").read_text()
            continue
        added = next((TINY[start] for start in TINY if " ".join(words).startswith(start)), ())
        assert run([*words, *added]) == 0, f"{code}\n{capfd.readouterr().err}"
