"""One folder shared out among the splits."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_segen import data
from keras_segen.data.splitting import assign_splits

pytestmark = pytest.mark.once  # no framework is asked


@pytest.fixture
def folder(tmp_path):
    """Ten images: three of each of three patients, and one of a fourth."""
    root, rng = tmp_path / "scans", np.random.default_rng(0)
    for kind in ("images", "masks", "instances"):
        (root / kind).mkdir(parents=True)
    for i in range(10):
        name = f"patient{i // 3}_slice{i % 3}"
        Image.fromarray(rng.integers(0, 256, (8, 8), "uint8")).save(root / "images" / f"{name}.bmp")
        mask = Image.fromarray(np.eye(8, dtype="uint8"))
        mask.save(root / "masks" / f"{name}.png")
        mask.save(root / "instances" / f"{name}.png")
    (root / "classes.csv").write_text("name,red,green,blue\nrest,0,0,0\nline,9,9,9\n")
    return root


def listing(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_file_is_in_one_split_and_the_folder_is_as_it_was(folder, tmp_path):
    before = listing(folder)
    found = data.split_folder(folder, tmp_path / "out", val=0.2, test=0.1, seed=1)
    assert [len(found[split]) for split in ("train", "val", "test")] == [7, 2, 1]
    assert found["groups"] is None and not (tmp_path / "out" / "groups.csv").exists()
    assert listing(folder) == before
    after = listing(tmp_path / "out")
    assert len(after) == len(before)
    for split in ("train", "val", "test"):
        loaded = data.load(f"folder:{tmp_path / 'out'}", split)
        assert sorted(found[split]) == [loaded.item_name(i) for i in range(len(loaded))]
        assert loaded.class_names == ("rest", "line")
        for name in found[split]:
            for kind, suffix in (("images", "bmp"), ("masks", "png"), ("instances", "png")):
                path = folder / kind / f"{name}.{suffix}"
                copy = tmp_path / "out" / split / kind / path.name
                assert copy.read_bytes() == path.read_bytes() and not copy.samefile(path)


@pytest.mark.parametrize("groups", [r"patient\d", r"(p\w+)_", "table"])
def test_groups_stay_together(folder, tmp_path, groups):
    if groups == "table":
        groups = tmp_path / "of.csv"
        names = [path.stem for path in (folder / "images").iterdir()]
        with open(groups, "w", newline="") as file:
            rows = [(name, name.split("_")[0]) for name in names]
            csv.writer(file).writerows([("name", "group"), *rows])
    found = data.split_folder(folder, tmp_path / "out", groups=groups)
    assert found.pop("groups") == 4
    patients = [{name.split("_")[0] for name in names} for names in found.values()]
    assert sum(map(len, patients)) == 4 and all(patients)
    loaded = [data.load(f"folder:{tmp_path / 'out'}", split) for split in found]
    assert [set(each.groups) for each in loaded] == patients
    described = data.describe(*loaded, augment=None).figures["findings"]
    assert "of a group that is in two splits" not in [each["text"] for each in described]


def test_the_groups_of_the_folder_are_kept(folder, tmp_path):
    rows = [f"{path.stem},{path.stem[-1]}\n" for path in (folder / "images").iterdir()]
    (folder / "groups.csv").write_text("name,group\n" + "".join(rows))
    assert data.split_folder(folder, tmp_path / "out")["groups"] == 3


def test_links_take_no_space(folder, tmp_path):
    found = data.split_folder(folder, tmp_path / "out", link=True, test=0)
    assert sorted(found) == ["groups", "train", "val"]
    name = found["val"][0]
    copy = tmp_path / "out" / "val" / "images" / f"{name}.bmp"
    assert copy.samefile(folder / "images" / f"{name}.bmp")
    assert os.stat(tmp_path / "out" / "classes.csv").st_nlink == 1  # is likely to be edited


@given(
    groups=st.lists(st.integers(0, 9), min_size=10, max_size=60),
    val=st.floats(0.05, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 3),
)
def test_shares_are_met_within_the_largest_group(groups, val, test, seed):
    groups[:3] = [10, 11, 12]
    shares = {"train": 1 - val - test, "val": val, "test": test}
    splits = assign_splits(len(groups), shares, seed, groups)
    assert splits == assign_splits(len(groups), shares, seed, groups)
    assert len({*zip(groups, splits, strict=True)}) == len({*groups})  # a group is in one split
    assert {*splits} == {*shares}
    largest = max(map(groups.count, groups))
    for split, share in shares.items():
        assert abs(splits.count(split) - share * len(groups)) <= largest + 2


def test_another_seed_gives_another_split():
    shares = {"train": 0.8, "val": 0.2}
    found = [assign_splits(50, shares, seed) for seed in range(3)]
    assert all(splits.count("val") == 10 for splits in found)
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"val": 1.5}, "val is 1.5, expected a share"),
        ({"val": 0.5, "test": 0.5}, "leave 0 for training"),
        ({"val": 0, "test": 0}, "more than 0"),
        ({"groups": "patient["}, "no regular expression"),
        ({"groups": "patient[0-2]"}, "'patient3_slice0' .of 1. does not begin so"),
        ({"groups": "pat()"}, "does not begin so"),
        ({"groups": "p"}, "1 groups of 10 items cannot be dealt to train, val, test"),
        ({"groups": "none.csv"}, "none.csv"),
    ],
)
def test_what_cannot_be_split_is_said_and_nothing_is_left(folder, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.split_folder(folder, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_folders_of_another_kind_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.split_folder(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileExistsError, match="scans is there already"):
        data.split_folder(folder, folder)
    (folder / "instances" / "patient0_slice0.png").unlink()
    with pytest.raises(ValueError, match=r"patient0_slice0\.\*: no such file, for 1 of 10 images"):
        data.split_folder(folder, tmp_path / "out")
    (folder / "train").mkdir()
    with pytest.raises(ValueError, match="so it is split already"):
        data.split_folder(folder, tmp_path / "out")


def test_files_from_outside_are_refused(folder, tmp_path):
    (folder / "images" / "patient0_slice0.bmp").unlink()
    (tmp_path / "secret.bmp").write_bytes(b"secret")
    (folder / "images" / "patient0_slice0.bmp").symlink_to(tmp_path / "secret.bmp")
    with pytest.raises(ValueError, match="outside of the data set"):
        data.split_folder(folder, tmp_path / "out")


def test_the_command_says_what_it_did(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_segen", "split", folder, "--out", tmp_path / "out"]
        + ["--val", "0.2", "--test", "0.2", "--groups", "patient[0-9]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "10 items: " in done.stdout and "in val" in done.stdout
    assert "4 groups, each in one split" in done.stdout and "is as it was" in done.stdout
