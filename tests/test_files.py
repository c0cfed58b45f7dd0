import csv
import os
import signal
import subprocess
import sys

import pytest

from keras_segen import files
from keras_segen.files import remove_leftovers, write_atomically, write_json, write_text

pytestmark = pytest.mark.once


def test_write_atomically_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), write_atomically(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_takes_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path):
    code = """
import os, signal, sys
from keras_segen import files
from keras_segen.files import write_atomically
with write_atomically(sys.argv[1]) as temporary:
    temporary.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for name in ("model.keras", "checkpoint-0002.keras", "plain"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)])
        assert done.returncode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 3 and all(name.startswith(".") for name in left)
    kept = [".env", ".model.keras", ".notes-2024.txt", "model-0a1b2c3d.keras", ".a-0A1B2C3D.txt"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.once
@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@SUM(A1)", "\tx", "\r=x", "'@x"])
def test_no_text_in_a_csv_file_is_a_formula(tmp_path, name):
    files.write_csv(tmp_path / "table.csv", [["name", "value"], [name, -0.5], ["'a", "-0.5"]])
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "value"], [f"'{name}", "-0.5"], ["'a", "-0.5"]]
    assert [files.from_csv(row[0]) for row in rows[1:]] == [name, "'a"]
