"""Pictures to learn from how to make pictures."""

import gzip
import os
import pickle
import struct
import zlib

import keras
import numpy as np
import pytest
from PIL import Image

from keras_segen import data
from keras_segen.data.dataset import carve
from keras_segen.data.loader import Batches
from keras_segen.tasks.segmentation import SegmentationTask

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_SEGEN_DATA", str(tmp_path / "data"))


def arrays(shape=(32, 32, 3), number=20, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (number, *shape), np.uint8),
        "y_train": (np.arange(number) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (5, *shape), np.uint8),
        "y_test": np.arange(5, dtype=np.uint8)[::-1],
    }


def write_npz(path, known):
    np.savez(path, **known)
    return path


def write_idx(folder, known, pack=gzip.compress):
    folder.mkdir()
    names = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    for name, array in known.items():
        content = struct.pack(">BBBB", 0, 0, 8, array.ndim)
        content += struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        suffix = "" if pack is bytes else ".gz"
        (folder / f"{names[name]}{suffix}").write_bytes(pack(content))
    return folder


# CIFAR-10, MNIST, Fashion-MNIST


def test_cifar10_is_read_from_an_npz_file(tmp_path):
    known = arrays()
    known["y_train"] = known["y_train"][:, None]  # as Keras gives them
    path = write_npz(tmp_path / "c.npz", known)
    for split, source, indices in (
        ("train", "train", carve(20, "train")),
        ("val", "train", carve(20, "val")),
        ("test", "test", range(5)),
    ):
        pictures = data.load(f"cifar10:{path}", split)
        assert isinstance(pictures, data.Pictures) and len(pictures) == len(indices)
        for index, place in enumerate(indices):
            image, label = pictures[index]
            assert (image.dtype, image.shape) == (np.float32, (32, 32, 3))
            assert np.array_equal(image, known[f"x_{source}"][place] / np.float32(255))
            assert label.dtype == np.int32 and label.shape == ()
            assert label == known[f"y_{source}"].ravel()[place]
            image += 1
    assert pictures.class_names[3] == "cat" and pictures.num_classes == 10 and pictures.mirror
    copy = pickle.loads(pickle.dumps(pictures))
    assert np.array_equal(copy[2][0], pictures[2][0])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mnist_is_read_from_idx_files(tmp_path, name, pack):
    known = arrays((28, 28))
    pictures = data.load(f"{name}:{write_idx(tmp_path / 'idx', known, pack)}", "test")
    assert pictures.image_shape == (28, 28, 1) and pictures.mirror == (name == "fashion_mnist")
    for index in range(5):
        image, label = pictures[index]
        assert np.array_equal(image[..., 0], known["x_test"][index] / np.float32(255))
        assert label == known["y_test"][index]
    same = data.load(f"{name}:{write_npz(tmp_path / 'm.npz', known)}", "test")
    assert np.array_equal(same[1][0], pictures[1][0]) and same[1][1] == pictures[1][1]


def test_pictures_take_another_size_and_other_channels(tmp_path):
    path = write_npz(tmp_path / "m.npz", arrays((28, 28)))
    pictures = data.load(f"mnist:{path}", "test", size=14, channels=3)
    assert pictures.image_shape == pictures[0][0].shape == (14, 14, 3)
    blocks = arrays((28, 28))["x_test"][0].reshape(14, 2, 14, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(pictures[0][0][..., 0], blocks, atol=4e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_train": arrays((28, 28, 3))["x_train"]}, r"x_train is uint8 \(20, 28, 28, 3\); cifar"),
        ({"x_train": arrays()["x_train"] / 255}, r"x_train is float64 .* is uint8 \('number', 32"),
        ({"y_train": np.zeros(19, int)}, "y_train is int64 with 19 values; expected 20 whole"),
        ({"y_train": np.zeros((20, 10), int)}, "y_train is int64 with 200 values; expected 20"),
        ({"y_train": np.zeros(20)}, "y_train is float64 with 20 values; expected 20 whole numbers"),
        ({"y_train": np.full(20, 10)}, "labels from 10 to 10; expected 0 to 9"),
        ({"y_train": np.full(20, None)}, "array y_train cannot be read, .* holds no numbers"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, change, message):
    path = write_npz(tmp_path / "c.npz", arrays() | change)
    with pytest.raises(ValueError, match=message):
        data.load(f"cifar10:{path}")


def test_damaged_idx_files_are_named(tmp_path):
    folder = write_idx(tmp_path / "idx", arrays((28, 28)))
    path = folder / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    whole = gzip.decompress(content)
    for damaged in (
        b"",
        content[:-20],
        content[:9] + b"oops" + content[40:],
        gzip.compress(whole[:-1]),
        gzip.compress(b"\0\0\x0d" + whole[3:]),
        whole[:9],
        gzip.compress(whole + b"more"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="idx3-ubyte.gz: array x_train cannot be read"):
            data.load(f"mnist:{folder}")
    # A few kB that unpack to 2 GB, if one lets them.
    many = struct.pack(">4B3I", 0, 0, 8, 3, 2**31 // 784, 28, 28)
    path.write_bytes(gzip.compress(many + bytes(10**6)))
    with pytest.raises(ValueError, match="x_train is too large: its 0.0 MiB unpack to 2,048 MiB"):
        data.load(f"mnist:{folder}")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no x_train; expected x_train.npy"):
        data.load(f"mnist:{folder}")


def test_what_is_not_downloaded_says_its_size_and_how(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="170 MB from www.cs.toronto.edu.*datasets --download cifar10.*cifar10:PATH",
    ):
        data.load("cifar10")
    with pytest.raises(ValueError, match="'shapes' cannot be downloaded; expected one of .*cifar1"):
        data.download("shapes")


def test_a_download_says_the_size_first_and_is_kept(tmp_path, monkeypatch, capsys):
    known = arrays((28, 28))
    said_before = []

    def load_data():
        said_before.append(capsys.readouterr().out)
        return (known["x_train"], known["y_train"]), (known["x_test"], known["y_test"])

    def fail():
        raise Exception("URL fetch failure on https://example.org: None -- no network")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(ConnectionError, match="mnist could not be downloaded .*no network"):
        data.download("mnist")
    assert not (tmp_path / "data" / "mnist").exists()
    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    capsys.readouterr()
    data.download("mnist")
    assert said_before[0].startswith("mnist: 11 MB from storage.googleapis.com, to ")
    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    data.download("mnist")
    pictures = data.load("mnist", "test")
    assert np.array_equal(pictures[4][0][..., 0], known["x_test"][4] / np.float32(255))
    assert pictures.name == "mnist" and len(data.load("mnist")) == 18
    assert os.listdir(tmp_path / "data") == ["mnist"]


# Folders of pictures


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_any_folder_of_pictures_is_found_and_split(tmp_path):
    root = tmp_path / "photos"
    for number in range(20):
        save(root / f"year{number % 2}" / "deep" / f"p{number:02d}.png", photo(9, 9, number))
    save(root / "loose.JPG", photo(9, 9))
    save(root / ".hidden" / "a.png", photo(9, 9))
    (root / "notes.txt").write_text("no picture")
    splits = [data.load(f"images:{root}", split) for split in data.SPLITS]
    assert [len(pictures) for pictures in splits] == [17, 2, 2]
    names = [pictures.item_name(i) for pictures in splits for i in range(len(pictures))]
    assert len(set(names)) == 21 and "year1_deep_p03" in names and "loose" in names
    assert splits[0].num_classes == 0 and splits[0][0][1] == 0
    assert {pictures.image_shape for pictures in splits} == {(9, 9, 3)}
    first = names.index("year0_deep_p04")
    pictures = splits[int(first >= 17) + int(first >= 19)]
    index = first - (0, 17, 19)[splits.index(pictures)]
    assert np.array_equal(pictures[index][0], photo(9, 9, 4) / np.float32(255))


def test_pictures_have_a_common_size_where_all_splits_have_it(tmp_path):
    for split in data.SPLITS:
        save(tmp_path / split / "a.png", photo(8, 10))
    pictures = data.load(f"images:{tmp_path}", "val", channels=1)
    assert pictures.image_shape == pictures[0][0].shape == (8, 10, 1)
    save(tmp_path / "test" / "b.png", photo(9, 10))
    pictures = data.load(f"images:{tmp_path}", "val")
    assert pictures.image_shape is None
    with pytest.raises(ValueError, match="3 of 8x10, 1 of 9x10. Bring them"):
        Batches(pictures, 1)


def test_folders_of_pictures_are_classes_where_all_lie_in_one(tmp_path):
    for split, number in (("train", 3), ("val", 1), ("test", 2)):
        for label in ("cat", "dog"):
            for index in range(number):
                save(tmp_path / split / label / f"{index}.png", photo(8, 8))
    pictures = data.load(f"images:{tmp_path}", "test")
    assert pictures.class_names == ("cat", "dog") and len(pictures) == 4
    assert [int(pictures[index][1]) for index in range(4)] == [0, 0, 1, 1]
    save(tmp_path / "test" / "bird" / "0.png", photo(8, 8))
    with pytest.raises(ValueError, match="bird: no class of this name in training; .* cat, dog"):
        data.load(f"images:{tmp_path}", "test")
    with pytest.raises(FileNotFoundError, match="test: no such folder; expected one for each"):
        (tmp_path / "test").rename(tmp_path / "other")
        data.load(f"images:{tmp_path}", "test")


@pytest.mark.parametrize("cache", [None, "ram", "disk"])
def test_pictures_are_cut_in_the_middle_or_squashed(tmp_path, cache):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :20], image[:, 20:60], image[:, 60:] = 255, 100, 200
    for number in range(3):
        save(tmp_path / "p" / f"{number}.png", image)
        save(tmp_path / "q" / f"{number}.png", image.transpose(1, 0, 2).copy())
    for _ in range(2):
        cut, _ = data.load(f"images:{tmp_path / 'p'}", size=10, cache=cache)[0]
        assert cut.shape == (10, 10, 3) and np.array_equal(cut, np.full_like(cut, 100 / 255))
        cut, _ = data.load(f"images:{tmp_path / 'q'}", size=(20, 20), channels=1, cache=cache)[0]
        assert cut.shape == (20, 20, 1) and np.array_equal(cut, np.full_like(cut, 100 / 255))
        squashed, _ = data.load(f"squashed:{tmp_path / 'p'}", size=8, cache=cache)[0]
        columns = np.float32([255, 255, 100, 100, 100, 100, 200, 200]) / np.float32(255)
        assert np.array_equal(squashed, np.broadcast_to(columns[None, :, None], (8, 8, 3)))
        wide, _ = data.load(f"images:{tmp_path / 'p'}", size=(10, 80), cache=cache)[0]
        assert np.array_equal(wide[0, :, 0], np.repeat(columns, 10))


def test_bad_files_are_named(tmp_path):
    root = tmp_path / "photos"
    for number in range(3):
        save(root / f"{number}.png", photo(8, 8, number))
    with pytest.raises(ValueError, match="cache is 'gpu', expected None"):
        data.load(f"images:{root}", cache="gpu")
    with pytest.raises(ValueError, match="fit is 'pad', expected one of crop, squash"):
        data.ImageFolder(root, fit="pad")
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("hello")
    for _ in range(2):
        with pytest.raises(ValueError, match="2 of 5 files are no images: .*empty.png, .*text.jpg"):
            data.load(f"images:{root}")
    (root / "empty.png").unlink()
    (root / "text.jpg").unlink()
    for number in range(3):
        path = root / f"{number}.png"
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"\d.png: cannot be read as an image, it is damaged"):
        data.load(f"images:{root}", size=8)[0]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; expected one with pict"):
        data.load(f"images:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no pictures; expected files with one of .png"):
        data.load(f"images:{tmp_path / 'empty'}")


# Batches


def checksum(loader):
    return [
        zlib.crc32(np.asarray(labels), zlib.crc32(np.asarray(images))) for images, labels in loader
    ]


def test_batches_of_pictures_are_images_and_labels(tmp_path):
    pictures = data.load(f"cifar10:{write_npz(tmp_path / 'c.npz', arrays())}")
    loader = pictures.batches(8, seed=3, augment=data.mirror)
    shapes = [(tuple(images.shape), tuple(labels.shape)) for images, labels in loader]
    assert shapes == [((8, 32, 32, 3), (8,)), ((8, 32, 32, 3), (8,)), ((2, 32, 32, 3), (2,))]
    images, labels = next(iter(loader))
    assert keras.backend.standardize_dtype(images.dtype) == "float32"
    assert keras.backend.standardize_dtype(labels.dtype) == "int32"


def test_batches_of_pictures_are_the_same_on_every_backend(tmp_path):
    pictures = data.load(f"cifar10:{write_npz(tmp_path / 'c.npz', arrays())}")
    for options in ({"seed": 3}, {"seed": 3, "augment": data.mirror}):
        expected = Batches(pictures, 8, **options)
        loader = pictures.batches(8, **options)
        for epoch in range(2):
            made = [expected.batch(epoch, step) for step in range(3)]
            assert checksum(loader) == checksum(made)
    golden = [3741660863, 3601011542, 3060905024]
    assert checksum(pictures.batches(8, seed=0, augment=data.mirror)) == golden


def test_worker_processes_make_the_same_batches(tmp_path):
    pictures = data.load(f"cifar10:{write_npz(tmp_path / 'c.npz', arrays())}")
    options = {"seed": 1, "augment": data.mirror}
    assert checksum(pictures.batches(8, **options, workers=1)) == checksum(
        pictures.batches(8, **options)
    )


def test_mirroring_swaps_left_and_right_of_half_of_the_pictures():
    image = photo(4, 6).astype(np.float32)
    seen = []
    for seed in range(200):
        changed, label = data.mirror(image, np.int32(7), np.random.default_rng(seed))
        assert label == 7 and changed.flags.c_contiguous
        swapped = np.array_equal(changed, image[:, ::-1])
        assert swapped or np.array_equal(changed, image)
        seen.append(swapped)
    assert 70 < sum(seen) < 130


def test_any_data_set_serves_as_pictures(tmp_path):
    scenes = data.load("shapes", size=16)
    pictures = data.as_pictures(scenes)
    assert isinstance(pictures, data.Pictures) and len(pictures) == len(scenes)
    assert np.array_equal(pictures[3][0], scenes[3][0]) and pictures[3][1] == 0
    assert pictures.item_name(3) == scenes.item_name(3) and pictures.groups is None
    assert data.as_pictures(pictures) is pictures
    images, labels = next(iter(pictures.batches(4)))
    assert tuple(images.shape) == (4, 16, 16, 3) and tuple(labels.shape) == (4,)


def test_a_segmentation_model_refuses_pictures(tmp_path):
    name = f"cifar10:{write_npz(tmp_path / 'c.npz', arrays())}"
    task = SegmentationTask(model="unet", data=name, filters=(2, 4))
    with pytest.raises(ValueError, match="has pictures without masks, and unet learns masks: use"):
        task.build_model(data.load(name))
