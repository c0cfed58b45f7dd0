import pickle
import struct
import zipfile

import numpy as np
import pytest

from keras_segen import data
from keras_segen.data.dataset import carve

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))


def make(seed=0, number=30, ids=(0, 1, 2), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, 6, 8, 1), np.uint8)
    masks = rng.choice(ids, (number, 6, 8)).astype(dtype)
    return {
        "x_train": images,
        "y_train": masks,
        "x_test": images[:4, ::-1],
        "y_test": masks[:4, ::-1],
    }


def write(path, arrays, kind="npy"):
    if kind == "npz":
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
        return path.with_suffix(".npz")
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_splits_are_read_and_validation_is_carved_out_of_training(tmp_path, kind):
    arrays = make()
    path = write(tmp_path / "a", arrays, kind)
    train, val, test = (data.load(f"arrays:{path}", split) for split in data.SPLITS)
    assert (len(train), len(val), len(test)) == (27, 3, 4)
    kept, held = carve(30, "train"), carve(30, "val")
    assert sorted([*kept, *held]) == list(range(30))
    for dataset, source, indices in (
        (train, "train", kept),
        (val, "train", held),
        (test, "test", range(4)),
    ):
        for index, place in enumerate(indices):
            image, mask = dataset[index]
            assert (image.dtype, mask.dtype) == (np.float32, np.int32)
            assert np.array_equal(image, arrays[f"x_{source}"][place] / np.float32(255))
            assert np.array_equal(mask, arrays[f"y_{source}"][place])
            image += 1
            mask += 1
    assert train.image_shape == (6, 8, 1) and train.class_names == ("class 0", "class 1", "class 2")
    counts = np.bincount(arrays["y_train"][kept].ravel(), minlength=3)
    assert np.array_equal(train.pixel_counts(), counts)
    own = write(
        tmp_path / "a", arrays | {"x_val": arrays["x_test"], "y_val": arrays["y_test"]}, kind
    )
    assert len(data.load(f"arrays:{own}")) == 30 and len(data.load(f"arrays:{own}", "val")) == 4


def test_npy_files_are_memory_mapped_also_in_worker_processes(tmp_path):
    path = write(tmp_path / "a", make(number=200))
    dataset = data.load(f"arrays:{path}")
    assert isinstance(dataset._arrays()[0], np.memmap)
    packed = pickle.dumps(dataset)
    assert len(packed) < 10_000  # the images alone have 9,600
    copy = pickle.loads(packed)
    assert all(np.array_equal(a, b) for a, b in zip(dataset[5], copy[5], strict=True))


def test_every_type_of_image_becomes_float(tmp_path):
    arrays = make()
    rgb = np.repeat(arrays["x_train"], 3, -1)
    for number, images in enumerate(
        (
            arrays["x_train"][..., 0],
            rgb,
            rgb * np.uint16(257),
            rgb / 255,
            (rgb / 255).astype(np.float32),
        )
    ):
        path = write(tmp_path / str(number), arrays | {"x_train": images})
        dataset = data.load(f"arrays:{path}")
        expected = arrays["x_train"][carve(30, "train")[3]] / np.float32(255)
        channels = images.shape[3] if images.ndim == 4 else 1
        assert dataset.image_shape == (6, 8, channels)
        np.testing.assert_allclose(dataset[3][0][..., :1], expected, atol=1e-7)
        for channels in (1, 3):
            changed = data.load(f"arrays:{path}", size=(3, 4), channels=channels)
            image, mask = changed[3]
            assert image.shape == changed.image_shape == (3, 4, channels)
            blocks = expected.reshape(3, 2, 4, 2).mean((1, 3))
            np.testing.assert_allclose(image[..., 0], blocks, atol=4e-3)  # rounded to 8 bits
            assert np.array_equal(mask, dataset[3][1][1::2, 1::2])


@pytest.mark.parametrize("shaped", [(30, 6, 8), (30, 6, 8, 1)])
def test_shares_of_foreground_are_cut_at_a_half(tmp_path, shaped):
    arrays = make(ids=(0, 0.25, 0.5, 0.75, 1), dtype=np.float32)
    soft = arrays["y_train"]
    arrays["y_train"], arrays["y_test"] = soft.reshape(shaped), np.round(arrays["y_test"])
    path = write(tmp_path / "a", arrays)
    dataset = data.load(f"arrays:{path}")
    assert np.array_equal(dataset[4][1], soft[carve(30, "train")[4]] >= 0.5)
    assert dataset.class_names == ("background", "foreground") and dataset.ignore_class is None
    assert set(np.unique(data.load(f"arrays:{path}", "test")[0][1])) == {0, 1}


@pytest.mark.parametrize(
    "ids, dtype, names, label_ids, ignore_class",
    [
        ((0, 255), np.uint8, ("background", "foreground"), (0, 255), None),
        ((False, True), bool, ("class 0", "class 1"), (0, 1), None),
        ((0, 7, 255), np.int64, ("class 0", "class 7"), (0, 7), 255),
        ((0, 1, 2), np.float64, ("class 0", "class 1", "class 2"), (0, 1, 2), None),
    ],
)
def test_whole_numbers_are_label_ids(tmp_path, ids, dtype, names, label_ids, ignore_class):
    arrays = make(ids=ids, dtype=dtype)
    dataset = data.load(f"arrays:{write(tmp_path / 'a', arrays, 'npz')}", "test")
    assert dataset.class_names == names and dataset.label_ids == label_ids
    assert dataset.ignore_class == ignore_class
    back = np.full(256, 255)
    back[: len(names)] = label_ids
    assert np.array_equal(back[dataset[1][1]], arrays["y_test"][1].astype(int))


def test_classes_csv_names_the_ids(tmp_path):
    path = write(tmp_path / "a", make())
    (path / "classes.csv").write_text(
        "name,red,green,blue,ignore\nskin,1,2,3,\nvoid,0,0,0,yes\nbone,4,5,6,\n"
    )
    dataset = data.load(f"arrays:{path}")
    assert dataset.class_names == ("skin", "bone") and dataset.palette[1].tolist() == [4, 5, 6]
    expected = np.array([0, 255, 1])[make()["y_train"][carve(30, "train")[0]]]
    assert np.array_equal(dataset[0][1], expected) and dataset.ignore_class == 255
    (path / "classes.csv").write_text("name,red,green,blue\nskin,1,2,3\nbone,4,5,6\n")
    wrong = next(i for i in range(27) if 2 in make()["y_train"][carve(30, "train")[i]])
    with pytest.raises(ValueError, match=r"y_train.npy, item \d+: label 2 in .* 0 to 1"):
        data.load(f"arrays:{path}")[wrong]


def changed(**arrays):
    return lambda known: known | arrays


X, Y = make()["x_train"], make()["y_train"]


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    "change, message",
    [
        (changed(x_train=X[:5]), r"y_train has shape \(30, 6, 8\); expected \(5, 6, 8\)"),
        (changed(y_train=Y[:, :3]), r"y_train has shape \(30, 3, 8\); expected \(30, 6, 8\)"),
        (changed(x_train=X[0]), r"x_train has shape \(6, 8, 1\), it|label per pixel"),
        (changed(x_train=np.repeat(X, 2, -1)), r"\(30, 6, 8, 2\); expected .* 1 or 3 channels"),
        (changed(x_train=X[:0], y_train=Y[:0]), r"x_train has shape \(0, 6, 8, 1\); expected"),
        (changed(x_train=X.astype(int)), "x_train is int64; expected uint8, uint16 or float"),
        (changed(x_test=X[:4] / 2.0), "x_test is float64 with values from .*Divide them"),
        (changed(x_test=X[:4] * np.nan), "x_test is float64 with values from nan"),
        (changed(y_train=Y.astype(str)), "y_train is <U.; expected numbers"),
        (changed(y_train=Y - 1.0), "labels from -1.0 to 2.*; expected 0 to 65535"),
        (changed(y_train=Y.astype(int) + 65534), "expected 0 to 65535"),
        (changed(y_train=Y + 0.5), "not whole, such as 1.5, and values from 0.0 to 2.5"),
        (changed(y_test=Y[:4] * np.nan), "not whole, such as .*nan.* values from nan to nan"),
        (changed(y_train=Y.astype(object)), "array y_train cannot be read, .* holds no numbers"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, kind, change, message):
    path = write(tmp_path / "a", change(make()), kind)
    with pytest.raises(ValueError, match=message):
        data.load(f"arrays:{path}")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or file; expected"):
        data.load(f"arrays:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no x_train; expected x_train.npy beside nothing"):
        data.load(f"arrays:{tmp_path / 'empty'}")
    path = write(tmp_path / "a", make())
    (path / "x_test.npy").unlink()
    assert len(data.load(f"arrays:{path}")) == 27
    with pytest.raises(FileNotFoundError, match="no x_test; expected x_test.npy beside x_train"):
        data.load(f"arrays:{path}", "test")
    (path / "x_train.npy").write_bytes((path / "x_train.npy").read_bytes()[:-9])
    with pytest.raises(ValueError, match="x_train.npy: array x_train cannot be read"):
        data.load(f"arrays:{path}")
    packed = write(tmp_path / "b", {"x_train": X, "y_train": Y}, "npz")
    with pytest.raises(FileNotFoundError, match="b.npz: no array x_test; found x_train, y_train"):
        data.load(f"arrays:{packed}", "test")
    content = packed.read_bytes()
    for damaged in (b"", b"hello", content[:-30]):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match="b.npz: no .npz file, or a damaged one"):
            data.load(f"arrays:{packed}")
    with pytest.raises(ValueError, match="cannot be cached; found cache='ram'"):
        data.load(f"arrays:{path}", cache="ram")


def npy(shape, content, version=(1, 0)):
    """An .npy file that says of itself what it likes."""
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(header)) + header + content


BAD_ARRAYS = {
    "negative": npy((-30, 6, 8), bytes(1440)),
    "twice negative": npy((-30, -6, 8), bytes(1440)),
    "short": npy((30, 6, 8), bytes(1439)),
    "of terabytes": npy((10**12, 6, 8), bytes(1440)),
    "beyond 64 bits": npy((2**62, 2**62), b""),
    "of no number": npy((30, 6, 8.0), bytes(1440)),
    "without an end": b"\x93NUMPY\x01\x00\x14\x00{'a':               ",
    "of a new version": npy((30, 6, 8), bytes(1440), version=(3, 0)),
    "empty": b"",
}


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("bad", BAD_ARRAYS)
def test_arrays_that_lie_about_themselves_are_named(tmp_path, kind, bad):
    path = write(tmp_path / "a", make(), kind)
    if kind == "npy":
        (path / "x_train.npy").write_bytes(BAD_ARRAYS[bad])
    else:
        rewrite(path, {"x_train.npy": BAD_ARRAYS[bad]})
    with pytest.raises(ValueError, match="array x_train cannot be read, it is damaged"):
        data.load(f"arrays:{path}")


def rewrite(path, changed):
    """Changes members of an .npz file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members | changed).items():
            archive.writestr(name, content)


def patch(path, place, value):
    """Overwrites bytes in all records of a zip file, `place` bytes after where their flags are."""
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(mark)
        while start >= 0:
            here = start + flags + place
            content[here : here + len(value)] = value
            start = content.find(mark, here)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (0, b"\x01\x00", "encrypted"),
        *((2, bytes([method, 0]), "") for method in (1, 9, 12, 14, 93, 97, 99)),
    ],
)
def test_archives_that_cannot_be_unpacked_are_named(tmp_path, place, value, message):
    path = write(tmp_path / "a", make(), "npz")
    patch(path, place, value)
    with pytest.raises(ValueError, match=f"a.npz: array x_train cannot be read, .*{message}"):
        data.load(f"arrays:{path}")


def test_an_archive_that_unpacks_to_far_more_is_refused_at_once(tmp_path):
    path = write(tmp_path / "a", make(), "npz")
    lie = npy((2**31 // 48, 6, 8), b"")  # 2 GiB, says the header, and so says the archive
    rewrite(path, {"x_train.npy": lie + bytes(10**6)})
    patch(path, 16, struct.pack("<I", len(lie) + 2**31))
    with pytest.raises(ValueError, match=r"x_train is too large: its 0.0 MiB unpack to 2,048 MiB"):
        data.load(f"arrays:{path}")


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match="x.npy: no .npz file, or a damaged one"):
        data.load(f"arrays:{tmp_path / 'x.npy'}")


def test_carving_is_fixed_and_leaves_nothing_out():
    assert carve(20, "val").tolist() == carve(20, "val").tolist() and len(carve(20, "val")) == 2
    parts = [carve(25, split, data.SPLITS) for split in data.SPLITS]
    assert [len(part) for part in parts] == [21, 2, 2]
    assert sorted(np.concatenate(parts)) == list(range(25))
    assert [len(carve(3, split, data.SPLITS)) for split in data.SPLITS] == [1, 1, 1]
    with pytest.raises(ValueError, match="2 items cannot be shared out among train, val, test"):
        carve(2, "val", data.SPLITS)
