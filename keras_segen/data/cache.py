"""The cache of computed values, and the folder of downloaded data sets."""

import contextlib
import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import platformdirs

from keras_segen import files


def cache_folder():
    """Returns the folder of computed values, which may be deleted at any time.

    It is the environment variable `KERAS_SEGEN_CACHE` if that is set, else the user's cache
    folder for `keras_segen`. It need not exist yet.

    Returns:
        A `pathlib.Path`.
    """
    return Path(os.environ.get("KERAS_SEGEN_CACHE") or platformdirs.user_cache_dir("keras_segen"))


def data_folder():
    """Returns the folder of downloaded data sets, which take long to download again.

    It is the environment variable `KERAS_SEGEN_DATA` if that is set, else the user's data folder
    for `keras_segen`. It need not exist yet.

    Returns:
        A `pathlib.Path`.
    """
    return Path(os.environ.get("KERAS_SEGEN_DATA") or platformdirs.user_data_dir("keras_segen"))


def digest(*key):
    """Returns a name for a file of the cache, 32 hexadecimal digits, made from `key`."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def remember(key, compute):
    """Returns the cached JSON value of `key`; computes and caches it if there is none.

    Args:
        key: tuple of str, int and nested tuples: everything that the value depends on.
        compute: function without arguments that returns a JSON value.

    Returns:
        The value. If the cache cannot be written, there is only a warning.
    """
    path = cache_folder() / f"{digest(*key)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or not whole
        pass
    value = compute()
    with if_possible(path):
        files.write_json(path, value)
    return value


@contextlib.contextmanager
def if_possible(path):
    """Only warns if the file `path` of the cache cannot be written."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"{path} could not be written ({error}), so it will be computed again next time; "
            "set KERAS_SEGEN_CACHE to a folder that can be written",
            stacklevel=4,
        )


class ItemCache:
    """Caches the arrays of items, so that files are decoded once.

    Args:
        where: None, `"ram"` or `"disk"` (in `cache_folder()`).

    Raises:
        ValueError: if it is none of these.
    """

    def __init__(self, where):
        if where not in (None, "ram", "disk"):
            raise ValueError(f"cache is {where!r}, expected None, 'ram' or 'disk'")
        self.where = where
        self._ram = {}

    def __getstate__(self):
        return self.__dict__ | {"_ram": {}}  # each worker process fills its own

    def take(self, index, parts, key, compute):
        """Returns the arrays of an item.

        Args:
            index: int, the item.
            parts: sequence of str, the names of the arrays, such as `("image", "mask")`.
            key: function without arguments that returns everything that the arrays depend on, as
                text, numbers and tuples; with another key they are computed again.
            compute: function without arguments that returns the arrays.
        """
        if self.where is None:
            return compute()
        key = key()
        if self.where == "ram":
            if self._ram.get(index, (None,))[0] != key:
                self._ram[index] = key, compute()
            return self._ram[index][1]
        folder = cache_folder() / "items"
        paths = [folder / f"{digest(key, part)}.npy" for part in parts]
        try:
            return [np.load(path, allow_pickle=False) for path in paths]
        except (OSError, ValueError, EOFError):  # not there, or not whole
            arrays = compute()
        for path, array in zip(paths, arrays, strict=True):
            with files.write_atomically(path) as temporary:
                np.save(temporary, array)
        return arrays
