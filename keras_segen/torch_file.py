"""Reads the weights that PyTorch saved, without PyTorch and without executing anything.

A `.pth` file consists of pickles, and a pickle is a program that may call any function. Before
one is run, each of its instructions is looked at: only those that a dictionary of weights needs
are allowed, and none may name a function but the two that it needs, which are replaced by ours.
"""

import collections
import math
import pickle
import pickletools
import zipfile
from typing import NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_INSTRUCTIONS = (
    "PROTO BININT BININT1 BININT2 LONG1 BINUNICODE NONE NEWTRUE NEWFALSE MARK EMPTY_TUPLE "
    "EMPTY_DICT EMPTY_LIST TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT "
    "LONG_BINPUT BINGET LONG_BINGET GLOBAL BINPERSID REDUCE BUILD STOP"
)


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it; the values come later in the file."""

    storage: tuple
    offset: int
    shape: tuple
    strides: tuple
    requires_grad: bool
    hooks: dict


# The names that a pickle may use, and their meaning here.
_GLOBALS = {
    "collections OrderedDict": collections.OrderedDict,
    "torch._utils _rebuild_tensor_v2": _Tensor,
    "torch FloatStorage": "<f4",
    "torch LongStorage": "<i8",
}


def read_state_dict(path):
    """Reads a state dict that `torch.save` wrote in its legacy format (before PyTorch 1.6).

    Args:
        path: the file.

    Returns:
        Dict of name -> NumPy array, float32 or int64, in the file's order.

    Raises:
        ValueError: the file is not such a state dict, is cut off, or holds anything else than
            dense float32 and int64 tensors. Nothing in it is executed.
    """
    if zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is in the format of PyTorch 1.6 and later: save it again with "
            "torch.save(state, path, _use_new_zipfile_serialization=False)."
        )
    with open(path, "rb") as file:
        try:
            found = _run(file), _run(file)
            if found != (_MAGIC, _PROTOCOL):
                raise ValueError(f"it begins with {found}, expected {(_MAGIC, _PROTOCOL)}")
            system = _run(file)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise ValueError("it was not written on a little-endian machine")
            tensors = _run(file)
            storages = _read_storages(file, tensors, keys=_run(file))
            return {name: _to_array(tensor, storages) for name, tensor in tensors.items()}
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            raise ValueError(f"{path} is no state dict that can be read safely: {error}.") from None


class _Unpickler(pickle.Unpickler):
    """Runs a pickle with the names of `_GLOBALS` alone."""

    def find_class(self, module, name):
        found = _GLOBALS[f"{module} {name}"]
        # A new function each time: what a pickle sets on it is gone with the pickle.
        return (lambda *arguments: _Tensor(*arguments)) if found is _Tensor else found

    def persistent_load(self, found):
        kind, dtype, key, _, size, view = found  # the fourth is the device
        if kind != "storage" or dtype not in ("<f4", "<i8") or view is not None:
            raise ValueError(f"it refers to {(kind, dtype, key)}")
        return key, np.dtype(dtype), size


def _run(file):
    """Checks the next pickle of a file and returns its result."""
    start = file.tell()
    for instruction, value, _ in pickletools.genops(file):
        if instruction.name not in _INSTRUCTIONS.split():
            raise ValueError(f"it contains the instruction {instruction.name}")
        if instruction.name == "PROTO" and value != 2:
            raise ValueError(f"it has pickle protocol {value}, expected 2")
        if instruction.name == "GLOBAL" and value not in _GLOBALS:
            raise ValueError(f"it asks for {value.replace(' ', '.')!r}")
    file.seek(start)
    return _Unpickler(file).load()


def _read_storages(file, tensors, keys):
    """Reads the values of all storages, which follow the pickles in the order of `keys`."""
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError("it holds no dict of tensors")
    expected = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"{name!r} is no tensor")
        key, dtype, size = tensor.storage
        expected[key] = dtype, size
    storages = {}
    for key in keys:
        dtype, size = expected[key]
        if int.from_bytes(file.read(8), "little") != size:
            raise ValueError(f"storage {key} has another size than its tensor says")
        values = file.read(size * dtype.itemsize)
        if len(values) != size * dtype.itemsize:
            raise ValueError("it is cut off")
        storages[key] = np.frombuffer(values, dtype)
    return storages


def _to_array(tensor, storages):
    """A tensor's values, copied out of its storage."""
    key, dtype, size = tensor.storage
    axes = list(zip(tensor.shape, tensor.strides, strict=True))
    last = tensor.offset + sum((length - 1) * stride for length, stride in axes)
    inside = tensor.offset >= 0 and last < size and math.prod(tensor.shape) <= size
    if not inside or not all(length > 0 and stride > 0 for length, stride in axes):
        raise ValueError(
            f"a tensor of shape {tensor.shape} and strides {tensor.strides} does not lie in its "
            f"storage of {size} values"
        )
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    values = storages[key][tensor.offset :]
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides).copy(order="C")
