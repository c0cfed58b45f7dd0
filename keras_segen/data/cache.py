"""Where computed things are kept between runs."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import platformdirs

from keras_segen import files


def cache_folder():
    """Returns the folder for computed things that may be deleted at any time.

    It is the environment variable `KERAS_SEGEN_CACHE` if that is set, else the user's cache
    folder for `keras_segen`. It need not exist yet.

    Returns:
        A `pathlib.Path`.
    """
    return Path(os.environ.get("KERAS_SEGEN_CACHE") or platformdirs.user_cache_dir("keras_segen"))


def digest(*key):
    """Returns a name for a file of the cache, 32 hexadecimal digits, made from `key`."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def remember(key, compute):
    """Returns the JSON value kept under `key`, or else computes it and keeps it.

    Args:
        key: tuple of str, int and nested tuples that says all that the value depends on.
        compute: function without arguments that returns a JSON value.

    Returns:
        The value. If the cache cannot be written, a warning says so and nothing else changes.
    """
    path = cache_folder() / f"{digest(*key)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or not whole
        pass
    value = compute()
    try:
        files.write_json(path, value)
    except OSError as error:
        warnings.warn(
            f"{path} could not be written ({error}), so it will be computed again next time; "
            "set KERAS_SEGEN_CACHE to a folder that can be written",
            stacklevel=2,
        )
    return value
