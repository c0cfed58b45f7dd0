"""Trees of arrays: one array alone, or a dict of trees, such as `{"boxes": …, "labels": …}`."""

import dataclasses
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one array of an item is: a leaf of `target_spec`.

    Args:
        shape: tuple of int, without the batch.
        dtype: str, NumPy's name of the type, such as `"int32"`.
    """

    shape: tuple
    dtype: str

    def __str__(self):
        return f"{self.dtype} {self.shape}"


def map_tree(function, tree, *others):
    """Returns the tree of what a function makes of each leaf; dicts are in the order of keys.

    Args:
        function: takes a leaf of each tree.
        tree, others: trees with the same keys.

    Example:

    >>> map_tree(lambda a, b: a + b, {"y": 1, "x": {"z": 2}}, {"y": 10, "x": {"z": 20}})
    {'x': {'z': 22}, 'y': 11}
    """
    if not isinstance(tree, dict):
        return function(tree, *others)
    return {
        key: map_tree(function, tree[key], *(other[key] for other in others))
        for key in sorted(tree)
    }


def checksum(*trees):
    """Returns the CRC-32 of all bytes of some trees, leaf by leaf in the order of keys."""
    value = 0

    def add(array):
        nonlocal value
        value = zlib.crc32(np.ascontiguousarray(array), value)

    for tree in trees:
        map_tree(add, tree)
    return value


def conform(found, spec, what):
    """Returns a tree as arrays of the types that a tree of `Spec` names.

    Args:
        found: tree of arrays or numbers.
        spec: tree of `Spec`.
        what: str, what `found` is, for the error.

    Raises:
        ValueError: if keys or shapes differ, or numbers are of another kind, as floats where
            whole numbers are expected.
    """
    if isinstance(spec, dict):
        if not isinstance(found, dict) or found.keys() != spec.keys():
            raise ValueError(f"{what} is {in_words(found)}; expected {in_words(spec)}.")
        return {key: conform(found[key], spec[key], f"{what}[{key!r}]") for key in sorted(spec)}
    if isinstance(found, dict):
        raise ValueError(f"{what} is {in_words(found)}; expected {spec}.")
    array = np.asarray(found)
    if array.shape != tuple(spec.shape) or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ValueError(f"{what} is {in_words(array)}; expected {spec}.")
    return array.astype(spec.dtype, copy=False)


def in_words(tree):
    """Returns what a tree is: its keys, or the type and shape of an array."""
    if isinstance(tree, dict):
        return f"a dict of {', '.join(sorted(map(repr, tree))) or 'nothing'}"
    array = np.asarray(tree)
    return f"{array.dtype} {array.shape}"
