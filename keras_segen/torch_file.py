"""Reads the weights that PyTorch saved, without PyTorch and without executing anything.

A `.pth` file consists of pickles, and a pickle is a program that may call any function. This small
interpreter knows only the instructions and names that a dictionary of weights needs; it calls
nothing, and refuses every file that asks for more.
"""

import math
import pickletools
import zipfile

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MARK = object()

# The names that a pickle may use, and their meaning here.
_ORDERED_DICT, _REBUILD_TENSOR = object(), object()
_GLOBALS = {
    "collections OrderedDict": _ORDERED_DICT,
    "torch._utils _rebuild_tensor_v2": _REBUILD_TENSOR,
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
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
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path} is no state dict that can be read safely: {error}.") from None


class _Tensor:
    """A tensor as the pickle describes it; the values come later in the file."""

    def __init__(self, storage, offset, shape, strides, requires_grad, hooks):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def _run(file):
    """Interprets the next pickle of a file and returns its result."""
    stack, memo = [], {}

    def pop_to_mark():
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def set_items(pairs):
        if not isinstance(stack[-1], dict):
            raise ValueError("it sets items of something that is no dict")
        stack[-1].update(pairs)

    for instruction, value, _ in pickletools.genops(file):
        match instruction.name:
            case "PROTO":
                if value != 2:
                    raise ValueError(f"it has pickle protocol {value}, expected 2")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(value)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction.name == "NEWTRUE")
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if instruction.name == "APPEND" else pop_to_mark()
                stack[-1].extend(items)
            case "SETITEM":
                pair = stack.pop(-2), stack.pop()
                set_items([pair])
            case "SETITEMS":
                items = pop_to_mark()
                set_items(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                if value not in _GLOBALS:
                    raise ValueError(f"it asks for {value.replace(' ', '.')!r}")
                stack.append(_GLOBALS[value])
            case "BINPERSID":  # ("storage", type, key, device, number of values, view)
                kind, dtype, key, _, size, view = stack.pop()
                if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
                    raise ValueError(f"it refers to {(kind, dtype, key)}")
                stack.append((key, dtype, size))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if function is _ORDERED_DICT and arguments == ():
                    stack.append({})
                elif function is _REBUILD_TENSOR:
                    stack.append(_Tensor(*arguments))
                else:
                    raise ValueError("it calls a function in a way that a state dict does not")
            case "BUILD":  # a module's `_metadata`: versions, not needed
                stack.pop()
            case "STOP":
                return stack.pop()
            case _:
                raise ValueError(f"it contains the instruction {instruction.name}")


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
