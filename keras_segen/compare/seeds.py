"""Is the choice of the framework larger than that of the seed? The same training, other seeds.

With another seed the first weights, the order of the batches and the augmentation are others, on
both backends alike. What the two make of the same seed differs, too: a rounding grows with every
step until it acts as another seed would. So the framework itself has an effect only if the
differences at the same seed point one way.
"""

import numpy as np

from keras_segen.intervals import mean_interval
from keras_segen.report.numbers import show


def summarize(figures, metrics):
    """Compares what the frameworks change with what the seeds change.

    Args:
        figures: dict of name -> `keras_segen.tasks.task.Figure`.
        metrics: dict of backend -> dict of seed -> dict of the figures' name -> value; two
            backends.

    Returns:
        Dict of plain values: `backends`, list of str; `seeds`, list of int, those with results of
        both; and `rows`, one dict for each figure that is known for each of these: `figure`;
        `values`, dict of backend -> list of float; `difference`, the mean of the second backend's
        less the first one's at the same seed, as `mean_interval` gives it; `between_seeds`, the
        standard deviation over the seeds on a backend (root mean square of both). None with less
        than two seeds.
    """
    first, second = metrics.values()
    seeds = [seed for seed in first if seed in second]
    if len(seeds) < 2:
        return None
    rows = []
    for name in figures:
        values = {
            backend: [found[seed].get(name) for seed in seeds] for backend, found in metrics.items()
        }
        if any(value is None for found in values.values() for value in found):
            continue
        a, b = (np.array(found, "float64") for found in values.values())
        spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        rows.append(
            {
                "figure": name,
                "values": values,
                "difference": mean_interval(b - a),
                "between_seeds": float(spread),
            }
        )
    return {"backends": list(metrics), "seeds": seeds, "rows": rows}


def claim(row, figure, names):
    """What a row of `summarize` says, in words: str.

    Example:

    >>> from keras_segen.tasks import SegmentationTask
    >>> difference = {"value": 0.004, "low": -0.01, "high": 0.018}
    >>> row = {"difference": difference, "between_seeds": 0.012, "values": {"a": [0.5] * 3}}
    >>> claim(row, SegmentationTask.figures["mean_iou"], ("A", "B"))
    'over 3 seeds no effect of the framework on mean IoU can be told: B less A is 0.0040 (95 % \
interval -0.0100 to 0.0180), and another seed changes it by 0.0120'
    """
    found, digits = row["difference"], figure.digits
    value, low, high = (f"{found[key]:z.{digits}f}" for key in ("value", "low", "high"))
    name = figure.headline or figure.label
    first, second = names
    count = len(next(iter(row["values"].values())))
    told = f"{second} less {first} is {value} (95 % interval {low} to {high})"
    spread = f"another seed changes it by {row['between_seeds']:.{digits}f}"
    if found["low"] <= 0 <= found["high"]:
        return (
            f"over {count} seeds no effect of the framework on {name} can be told: {told}, and "
            f"{spread}"
        )
    larger = abs(found["value"]) > row["between_seeds"]
    choice = "larger than" if larger else "within"
    return (
        f"over {count} seeds the framework has an effect on {name}, {choice} that of the seed: "
        f"{told}, and {spread}"
    )


def cells(row, digits):
    """The cells of a row on a page: mean and deviation of each backend, difference, deviation."""
    of_each = [
        f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
        for values in row["values"].values()
    ]
    found = row["difference"]
    interval = f"{show(found['low'], digits)} to {show(found['high'], digits)}"
    return [*of_each, f"{show(found['value'], digits)} ({interval})", row["between_seeds"]]
