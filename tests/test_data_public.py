"""Oxford-IIIT Pet, prepared by the builder of tensorflow-datasets out of small made-up photos."""

import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_segen import data
from keras_segen.data import public
from keras_segen.data.dataset import carve

pytestmark = pytest.mark.once

tfds = pytest.importorskip("tensorflow_datasets")


def photo(number):
    """A photo of its own size, and its trimap."""
    rng = np.random.default_rng(number)
    height, width = 8 + number, 12
    colors = rng.integers(0, 256, (height, width, 3), np.uint8)
    return colors, rng.integers(1, 4, (height, width), np.uint8)


def write_archives(root):
    """Writes what the two published archives hold; every photo but the first is no JPEG."""
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    lists = {"trainval": range(20), "test": range(20, 26)}
    for name, numbers in lists.items():
        lines = [f"beagle_{number} 5 2 3" for number in numbers]
        (root / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for number in numbers:
            colors, trimap = photo(number)
            kind = "JPEG" if number == 0 else ("PNG", "BMP", "TIFF")[number % 3]
            options = {"exif": turned()} if number == 0 else {}
            Image.fromarray(colors).save(root / f"images/beagle_{number}.jpg", kind, **options)
            Image.fromarray(trimap).save(root / f"annotations/trimaps/beagle_{number}.png")
    gray = Image.fromarray(photo(1)[0]).convert("P")
    gray.save(root / "images" / "beagle_1.jpg", "GIF")
    return {"images": str(root), "annotations": str(root)}


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of data sets, into which pets were downloaded; what the download said."""
    root = tmp_path_factory.mktemp("pets")
    archives, said = write_archives(root / "archives"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_SEGEN_DATA", str(root / "data"))
        patch.setattr(public, "DISK", 1_000_000)
        patch.setattr(
            tfds.download.DownloadManager, "download_and_extract", lambda self, urls: archives
        )
        data.Pets.download(said.append)
    return root, said


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch, prepared):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_SEGEN_DATA", str(prepared[0] / "data"))


def no_network(*_):
    raise OSError("no network")


def test_the_download_says_its_size_and_leaves_only_records(prepared):
    root, said = prepared
    assert said == [f"pets: 811 MB from thor.robots.ox.ac.uk, to {public.default_folder()}"]
    folder = root / "data" / "tensorflow_datasets"
    assert [path.name for path in folder.iterdir()] == ["oxford_iiit_pet"]


def test_a_second_download_needs_no_network(monkeypatch, capsys):
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", no_network)
    data.download("pets")
    assert capsys.readouterr().out.startswith("pets is there: ")


def test_photos_are_decoded_by_content_and_trimaps_are_classes(prepared):
    found = {}
    for split in data.SPLITS:
        dataset = data.load("pets", split)
        for index in range(len(dataset)):
            found[dataset.item_name(index)] = (split, *dataset[index])
    assert sorted(found) == sorted(f"beagle_{number}" for number in range(26))
    for number in range(26):
        split, image, mask = found[f"beagle_{number}"]
        colors, trimap = photo(number)
        assert (split == "test") == (number >= 20)
        assert (image.dtype, mask.dtype) == (np.float32, np.int32)
        assert np.array_equal(mask, trimap - 1)
        if number > 1:
            assert np.array_equal(image, colors / np.float32(255))
    for number in (0, 1):  # a JPEG that is not turned, and a GIF
        with Image.open(prepared[0] / f"archives/images/beagle_{number}.jpg") as stored:
            pixels = np.asarray(stored.convert("RGB"))
        assert np.array_equal(found[f"beagle_{number}"][1], pixels / np.float32(255))


def test_classes_and_splits_are_those_documented():
    train, val, test = (data.load("pets", split) for split in data.SPLITS)
    assert train.class_names == ("foreground", "background", "outline")
    assert train.ignore_class is None and train.label_ids == (1, 2, 3)
    assert (len(train), len(val), len(test)) == (18, 2, 6)
    names = [dataset.item_name(i) for dataset in (train, val) for i in range(len(dataset))]
    assert len(set(names)) == 20 and len(carve(3680, "train")) == 3312
    counts = sum(np.bincount(train[i][1].ravel(), minlength=3) for i in range(18))
    assert np.array_equal(train.pixel_counts(), counts)
    assert np.array_equal(data.load("pets").pixel_counts(), counts)  # kept


@pytest.mark.parametrize("options", [{}, {"cache": "ram"}, {"cache": "disk"}, {"workers": 1}])
def test_photos_come_in_batches(options):
    cache, workers = options.get("cache"), options.get("workers", 0)
    dataset = data.load("pets", size=(8, 10), channels=1, cache=cache)
    plain = data.load("pets", size=(8, 10), channels=1)
    for _ in range(2):
        images, masks = next(iter(dataset.batches(4, workers=workers)))
        assert tuple(images.shape) == (4, 8, 10, 1) and tuple(masks.shape) == (4, 8, 10)
        assert all(np.array_equal(np.asarray(images)[i], plain[i][0]) for i in range(4))
        assert all(np.array_equal(np.asarray(masks)[i], plain[i][1]) for i in range(4))


def test_reading_imports_no_framework():
    script = (
        "import sys; from keras_segen import data; data.load('pets', 'test')[0];"
        "print([name for name in ('tensorflow', 'torch', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch, prepared):
    ask = "811 MB from thor.robots.ox.ac.uk. Fetch it once with `keras-segen datasets --download p"
    with pytest.raises(FileNotFoundError, match=f"pets is not in {tmp_path} yet: {ask}"):
        data.load(f"pets:{tmp_path}")
    with pytest.raises(ValueError, match="split is 'all', expected one of train, val, test"):
        data.load("pets", "all")
    known = importlib.util.find_spec
    for name, message in (
        ("tensorflow", r"Preparing pets needs TensorFlow, once \(reading does not\): pip install"),
        ("tensorflow_datasets", r"is not installed: pip install 'keras-segen\[datasets\]'"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("KERAS_SEGEN_DATA", str(tmp_path))
            patch.setattr(
                importlib.util, "find_spec", lambda n, lacks=name: n != lacks and known(n) or None
            )
            with pytest.raises(ModuleNotFoundError, match=message):
                data.download("pets")
    monkeypatch.setenv("KERAS_SEGEN_DATA", str(tmp_path / "new"))
    monkeypatch.setattr(public, "DISK", 10**18)
    with pytest.raises(OSError, match=r"GB free; preparing pets takes 1000000000\.0 GB .*KERAS_S"):
        data.download("pets")


def test_a_failed_download_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_DATA", str(tmp_path / "new"))
    monkeypatch.setattr(public, "DISK", 1_000_000)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", no_network)
    with pytest.raises(ConnectionError, match=r"could not be downloaded \(no network\).*pets:PATH"):
        data.download("pets")
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError, match="is not in .*new.* yet"):
        data.load("pets")


def test_records_that_cannot_be_read_one_by_one_are_refused(tmp_path, prepared):
    shutil.copytree(prepared[0] / "data" / "tensorflow_datasets", tmp_path / "other")
    about = next((tmp_path / "other").glob("*/*/dataset_info.json"))
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="cannot be read item by item; prepare it with .*array_re"):
        data.load(f"pets:{tmp_path / 'other'}")
