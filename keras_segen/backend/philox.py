"""Random bits that are a function of a key and a counter, in NumPy: Philox 4x32-10.

Nothing is remembered between two calls: number k of a stream can be had without those before it.
TensorFlow has the same generator as an operation of its graphs, which is why this one was chosen;
`uniform` of the seam gives the same numbers on each framework.

Reference: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405
"""

import numpy as np

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(key, counter, num_blocks):
    """Encrypts consecutive counters.

    Args:
        key: int in [0, 2**64).
        counter: pair of ints in [0, 2**64), the low and the high half of the first counter; the
            low half counts on.
        num_blocks: int.

    Returns:
        uint32 array `(num_blocks, 4)`.

    Example:

    >>> [hex(bits) for bits in philox(key=0, counter=(0, 0), num_blocks=1)[0]]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    low = np.arange(num_blocks, dtype=np.uint64) + np.uint64(counter[0])
    high = np.full(num_blocks, counter[1], np.uint64)
    a, b, c, d = low & _LOW, low >> _HALF, high & _LOW, high >> _HALF
    key_a, key_b = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> _HALF) ^ b ^ np.uint64(key_a), second & _LOW
        c, d = (first >> _HALF) ^ d ^ np.uint64(key_b), first & _LOW
        key_a, key_b = (key_a + _WEYL[0]) & 0xFFFFFFFF, (key_b + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)
