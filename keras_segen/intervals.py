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
    found = mean_interval(logs, confidence)
    return {**{key: math.exp(value) for key, value in found.items()}, "rounds": len(logs)}


def mean_interval(values, confidence=0.95):
    """The mean of some values, with Student's interval.

    Args:
        values: numbers, at least 2.
        confidence: float, the share of such intervals that contain the true mean.

    Returns:
        Dict: `value`, `low`, `high`.

    Example:

    >>> {k: round(v, 3) for k, v in mean_interval([1, 2, 3]).items()}
    {'value': 2.0, 'low': -0.484, 'high': 4.484}
    """
    values = np.asarray(values, "float64")
    low, high = 0.0, 1e3  # of t: its quantile is between them
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if two_sided_p(middle, len(values) - 1) > 1 - confidence:
            low = middle
        else:
            high = middle
    mean = float(values.mean())
    half = high * float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}
