"""Random numbers inside a training step, equal on every framework.

`determinism.rng` draws in NumPy, which a compiled graph cannot call. These numbers come from the
backend's counter-based generator instead. They too are a pure function of a key and a step, so
that a resumed training, or one on the other framework, gets the same noise.
"""

import math

from keras import ops

from keras_segen import backend
from keras_segen.determinism import rng


def uniform(key, step, shape, first_row=0):
    """Draws uniform numbers.

    Args:
        key: tuple of strings and integers, as `determinism.rng` takes it: what for, and the seed.
        step: integer, a number or a tensor.
        shape: `(rows, columns)`; rows may be a tensor.
        first_row: integer, a number or a tensor; row `r` of the result is row `first_row + r` of
            the step, however many are drawn at once.

    Returns:
        float32 `(rows, columns)` in (0, 1), equal on every backend to the bit.

    Example:

    >>> [round(float(u[0]), 4) for u in uniform(("example", 0), step=3, shape=(2, 1))]
    [0.8798, 0.8474]
    """
    rows, columns = shape
    width = -(-columns // 4) * 4  # the generator gives four at a time
    return backend.uniform(_number(key), step, first_row, (rows, width))[:, :columns]


def normal(key, step, shape, first_row=0, dtype="float32"):
    """Draws standard normal numbers; arguments and shape as `uniform`, equal to rounding.

    Computed in `dtype`: a comparison layer by layer also needs them in float64.

    Reference: Box, Muller (1958), "A note on the generation of random normal deviates".

    Example:

    >>> [round(float(z), 4) for z in normal(("example", 0), step=3, shape=(1, 3))[0]]
    [0.4942, 1.0273, 0.1088]
    """
    rows, columns = shape
    width = -(-columns // 4) * 4
    u = ops.cast(backend.uniform(_number(key), step, first_row, (rows, width)), dtype)
    radius = ops.sqrt(-2 * ops.log(u[:, : width // 2]))
    angle = 2 * math.pi * u[:, width // 2 :]
    both = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=1)
    return both[:, :columns]


def _number(key):
    return int(rng(*key).integers(2**64, dtype="uint64"))
