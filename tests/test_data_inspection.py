"""Looking at a data set before a training: what is found in it, its page, the command."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from browser import BROWSER, browse
from PIL import Image

from keras_segen import data, plot
from keras_segen.data.loader import Batches

pytestmark = pytest.mark.once  # no framework is asked


def save(root, split, name, image, mask):
    for kind, pixels in (("images", image), ("masks", mask)):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(root / split / kind / f"{name}.png")


@pytest.fixture(scope="module")
def suspicious(tmp_path_factory):
    """A folder with one of every fault, and a class name that is HTML."""
    root = tmp_path_factory.mktemp("suspicious")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 12, 3))
    mask = np.arange(96).reshape(8, 12) % 2
    for number, name in enumerate(("good", "torn", "other")):
        save(root, "train", name, images[number], mask)
    save(root, "train", "first", images[3], mask)
    save(root, "train", "second", images[3], mask)
    save(root, "train", "unknown", images[4], mask + 7)
    save(root, "train", "one_class", images[5], 0 * mask)
    save(root, "train", "void", images[6], 0 * mask + 3)
    save(root, "train", "black", 0 * images[7], mask)
    (root / "train" / "masks" / "damaged.png").write_bytes(b"nothing")
    Image.fromarray(images[8].astype("uint8")).save(root / "train" / "images" / "damaged.png")
    save(root, "val", "leak", images[0], mask)
    save(root, "val", "contradiction", images[2], 1 - mask)
    save(root, "val", "taken", images[9], mask)
    save(root, "val", "small", images[10][:4], mask[:4])
    (root / "classes.csv").write_text(
        "name,red,green,blue,ignore\nfirst,10,0,0,\n<b>second,0,200,0,\nthird,0,0,200,\nvoid,1,1,1,yes\n"
    )
    names = [path.stem for path in sorted(root.glob("*/images/*"))]
    with open(root / "groups.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(name, "ann" if name in ("torn", "taken") else name) for name in names]
        csv.writer(file).writerows([("name", "group"), *rows])
    return root


def load(root, **options):
    return [data.load(f"folder:{root}", split, **options) for split in ("train", "val")]


def test_every_fault_is_found(suspicious):
    found = data.describe(*load(suspicious)).figures["findings"]
    assert {each["text"]: sorted(each["items"]) or each["details"] for each in found} == {
        "cannot be read": ["train: damaged", "train: unknown"],
        "the same image in two splits": [
            *("train: good", "train: other", "val: contradiction", "val: leak"),
        ],
        "the same image, another mask or label": ["train: other", "val: contradiction"],
        "the same image twice in a split": ["train: first", "train: second"],
        "of a group that is in two splits": ["train: torn", "val: taken"],
        "a mask of nothing but void": ["train: void"],
        "a mask of one class only": ["train: one_class"],
        "an image of one color": ["train: black"],
        "classes that nothing in train has": ["third"],
        "classes that nothing in val has": ["third"],
    }
    damaged, unknown = found[0]["details"]
    assert "damaged.png: cannot be read as an image" in damaged and "0x" not in damaged
    assert "label 7 in 48 pixels" in unknown
    assert "val: leak" in found[1]["details"][0] and " = " in found[1]["details"][0]


def test_the_same_pixels_in_another_file_are_the_same_image(tmp_path):
    image, mask = np.random.default_rng(0).integers(0, 256, (6, 6, 3)), np.eye(6)
    save(tmp_path, "train", "a", image, mask)
    save(tmp_path, "val", "b", image, mask)
    path = tmp_path / "val" / "images" / "b.png"
    Image.open(path).save(path.with_suffix(".bmp"))
    path.unlink()
    (finding,) = data.describe(*load(tmp_path), augment=None).figures["findings"]
    assert finding["details"] == ["train: a = val: b"]


def test_shares_and_sizes_are_counted(suspicious):
    splits = data.describe(*load(suspicious)).figures["splits"]
    assert splits["val"]["sizes"] == {"8x12": 3, "4x12": 1}
    assert splits["val"]["class_shares"] == [0.5, 0.5, 0]
    assert splits["val"]["items_with_class"] == [4, 4, 0]
    assert splits["train"]["items"] == 10 and splits["train"]["read"] == 8
    assert splits["train"]["void_share"] == 1 / 8


def test_a_good_data_set_has_no_findings():
    found = data.describe(data.load("shapes", "val", size=16))
    assert found.findings is None and len(found.samples) == 8
    assert "Nothing: every item can be read" in found.page()


def test_the_preview_is_what_a_training_sees():
    scenes = data.load("shapes", "train", size=32)
    found = data.describe(scenes, seed=3, count=4)
    batches = Batches(scenes, 1, seed=3, augment=data.Augment())
    place = next(i for i in range(512) if batches._visited(1)[i] == 0)
    (image,), (mask,) = batches.batch(1, place)
    (first,) = [each for each in found.augmented if each.name == "train: train_00000"]
    drawn = plot.overlay(image, mask, scenes.palette, alpha=0.45)
    np.testing.assert_array_equal(first.pictures["epoch 2"], drawn)


def test_samples_show_every_class():
    masks = np.zeros((40, 4, 4), int)
    masks[31], masks[33, 0] = 1, 2
    images = np.random.default_rng(0).random((40, 4, 4, 1))
    found = data.describe(data.arrays(images, masks), augment="none")
    assert {"train: item_00031", "train: item_00033"} <= {each.name for each in found.samples}
    assert found.augmented == []


def test_a_function_of_image_and_mask_is_previewed():
    scenes = data.Shapes("train", size=16, length=4)

    def flip(image, mask):
        return image[::-1], mask[::-1]

    found = data.describe(scenes, augment=flip)
    stored, first = list(found.augmented[0].pictures.values())[:2]
    assert (first == stored[::-1]).mean() > 0.9  # but for outlines, which lie on one side


def test_pictures_have_labels_and_are_mirrored(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("cats", 3), ("dogs", 1)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8), "uint8")
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    found = data.describe(data.load(f"images:{tmp_path}", "train"))
    assert found.figures["splits"]["train"]["class_shares"] == [0.75, 0.25]
    stored, epochs = found.augmented[0].pictures["stored"], list(found.augmented[0].pictures)[1:]
    shown = [found.augmented[0].pictures[epoch] for epoch in epochs]
    assert any((picture == stored[:, ::-1]).all() for picture in shown)
    assert ">cats" in found.page()


def test_only_some_items_are_read_and_that_is_said():
    told = []
    found = data.describe(
        data.load("shapes", "val", size=16), count=5, tell=lambda *counts: told.append(counts)
    )
    assert told == [(i, 5) for i in range(1, 6)]
    assert "5 of 128 items were read" in found.notes[0]


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ([], {}, "expected at least one data set"),
        (["shapes"], {}, "found \\['shapes'\\]; expected at least one data set"),
        ([data.load("shapes", size=8)], {"count": 0}, "count is 0, expected 1 or more"),
        ([data.load("shapes", size=8)], {"augment": 3}, "augment is 3, expected a keras"),
        ([data.load("shapes", size=8)], {"augment": "flop=1"}, "'flop=1' is not understood"),
    ],
)
def test_what_cannot_be_described_is_said(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        data.describe(*arguments, **options)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "keras_segen", "data", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_command_writes_the_page_without_a_framework(suspicious, tmp_path):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print({'keras', 'torch', 'tensorflow'} & set(sys.modules)))\n"
        f"sys.argv = ['', 'data', 'folder:{suspicious}', '--out', '{tmp_path / 'page.html'}']\n"
        "from keras_segen import cli; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("10 items in train", "the same image in two splits", "= val: leak", "No test: "):
        assert text in done.stdout
    assert done.stdout.endswith("set()\n")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "&lt;b&gt;second" in page and "<b>second" not in page and "<script" not in page


def test_the_command_says_what_it_does_not_understand(suspicious):
    done = command(f"folder:{suspicious}", "--split", "test")
    assert done.returncode == 1 and "has no folder test; it has train and val" in done.stderr
    done = command("shapes", "--image-size", "64")
    assert "--image-size is '64', expected whole numbers such as 176x240" in done.stderr
    done = command("shape")
    assert "Did you mean shapes?" in done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
def test_the_page_fits_a_phone(suspicious, tmp_path):
    page = data.describe(*load(suspicious)).write(tmp_path / "data.html")
    seen, log = browse(page, tmp_path, (400, 1600), "light")
    assert "CONSOLE" not in log, log
    for frame in seen:
        assert frame["width"] <= frame["inner"], frame["wide"]
        assert frame["hidden"] == []
        assert frame["requests"] == [] and frame["broken"] == 0
