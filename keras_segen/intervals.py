"""Confidence intervals by Student's distribution, without SciPy."""

import math

import numpy as np


def two_sided_p(t, degrees):
    """The probability of a value at least as far from 0 as `t` under Student's distribution.

    Reference: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: a
    finite sum for whole degrees of freedom.

    Args:
        t: float.
        degrees: int, at least 1, the degrees of freedom.

    Example:

    >>> round(two_sided_p(2.0, 1), 4), round(two_sided_p(-2.132, 4), 4)
    (0.2952, 0.1)
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    square = math.cos(angle) ** 2
    term = math.cos(angle) if degrees % 2 else 1.0
    total = 0.0
    for odd in range(degrees % 2 + 1, degrees, 2):
        total += term
        term *= square * odd / (odd + 1)
    within = math.sin(angle) * total
    if degrees % 2:
        within = 2 / math.pi * (angle + within)
    return max(0.0, 1 - within)


def ratio_interval(first, second, confidence=0.95):
    """The ratio of the second of two paired quantities to the first, with its interval.

    Mean and Student's interval are those of the logarithms of the ratios, which are symmetric.

    Args:
        first, second: positive numbers, as many of each, at least 2; number k of both is of one
            round.
        confidence: float, the share of such intervals that contain the true ratio.

    Returns:
        Dict: `value`, `low`, `high`, `rounds`.

    Example:

    >>> {k: round(v, 3) for k, v in ratio_interval([1, 1, 1, 1], [2, 2.1, 2, 1.9]).items()}
    {'value': 1.999, 'low': 1.873, 'high': 2.133, 'rounds': 4}
    """
    logs = np.log(np.asarray(second, "float64") / np.asarray(first, "float64"))
    mean, rounds = logs.mean(), len(logs)
    low, high = 0.0, 1e3  # of t: its quantile is between them
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if two_sided_p(middle, rounds - 1) > 1 - confidence:
            low = middle
        else:
            high = middle
    half = high * logs.std(ddof=1) / math.sqrt(rounds)
    value, low, high = (float(np.exp(x)) for x in (mean, mean - half, mean + half))
    return {"value": value, "low": low, "high": high, "rounds": rounds}
