"""Where two backends diverge: the checks of a comparison, in the order in which a fault shows.

Each check compares one number with a stated tolerance. The first that fails tells where the two
trainings diverged: in the weights, the batches, the forward pass, the training steps or when a
saved model was handed over.
"""

import numpy as np

OUTPUT_TOLERANCE = 1e-4
LOSS_STEPS = 20


def checks(results, arrays, rows, task):
    """Compares the results of two backends.

    Args:
        results: dict of backend -> its `result.json`, two of them.
        arrays: dict of backend -> its `arrays.npz`.
        rows: what `hand_over` returned.
        task: the `keras_segen.tasks.Task`, which defines the outputs and the tolerance of losses.

    Returns:
        List of dicts with `name`, `measured`, `tolerance`, `unit`, `passed`, `note`.
    """
    (first, a), (second, b) = results.items()
    found = [
        check(
            "initial weights",
            int(a["weights_sha256"] != b["weights_sha256"]),
            0,
            "differing sets of weights",
            f"SHA-256 over all {a['parameters']:,} numbers",
        ),
        check(
            "batches",
            differing(a["batches_crc32"], b["batches_crc32"]),
            0,
            "differing batches",
            f"checksums of {len(a['batches_crc32']):,} training batches, in order",
        ),
        check(
            f"{task.outputs_are} before training",
            largest(arrays[first]["first_outputs"], arrays[second]["first_outputs"]),
            OUTPUT_TOLERANCE,
            "largest difference",
            f"{len(arrays[first]['first_outputs'])} inputs, the same weights",
        ),
        loss_check(a["losses"], b["losses"], loss_tolerance(task, a, b)),
    ]
    for row in rows:
        name = f"{row['trained_on']} model run on {row['run_on']}"
        values = (row[key] for key in ("measured", "tolerance", "unit", "note"))
        found.append(check(name, *values))
    return found


def loss_difference(a, b):
    """Relative difference of the losses of two trainings, step by step: list of float.

    Args:
        a, b: dict from a loss's name to one number per step, or None where it was not computed.

    With several losses, it is the largest difference relative to the largest loss of the step: a
    loss that passes through zero has no relative difference of its own.
    """
    steps = min(len(values) for losses in (a, b) for values in losses.values())
    both = [[losses[name][:steps] for name in a] for losses in (a, b)]
    both = np.array(both, "float64")  # (2, losses, steps); None is NaN
    apart = np.abs(both[0] - both[1])
    apart = np.where(np.isnan(both).all(axis=0), -np.inf, apart).max(axis=0)
    largest = np.nan_to_num(np.abs(both)).max(axis=(0, 1))
    apart[np.isinf(apart)] = np.nan  # a step without any loss
    return (apart / np.maximum(largest, 1e-12)).tolist()


def hand_over(arrays, serving, task):
    """Compares a model's results on the other backend with those on its own.

    Args:
        arrays: dict of backend -> its `arrays.npz`.
        serving: dict of (trained on, run on) -> the same arrays of the handed-over model.
        task: the `keras_segen.tasks.Task`.

    Returns:
        List of dicts with `trained_on`, `run_on`, `passed` and what `task.hand_over` found.
    """
    rows = []
    for (trained_on, run_on), served in serving.items():
        found = task.hand_over(arrays[trained_on], served)
        passed = within(found["measured"], found["tolerance"])
        rows.append({"trained_on": trained_on, "run_on": run_on, **found, "passed": passed})
    return rows


def loss_tolerance(task, a, b):
    """The relative tolerance of the losses of the first steps: list, one number per step.

    Any two trainings diverge, even on one backend: Adam divides gradients by their size, so that
    the rounding of small ones grows as large as themselves. How fast depends on the network, the
    data and the seed. So it is measured: each backend trains once more from weights that are
    nudged by one rounding, and records how far its own losses move. The tolerance is the task's
    least, or ten times the sum of both up to the step; ten, since the nudge is one rounding and a
    training rounds in each operation.
    """
    steps = min(len(a["rounding"]), len(b["rounding"]))
    moved = sum(np.array(each["rounding"][:steps], "float64") for each in (a, b))
    return np.maximum(task.least_loss_tolerance, 10 * np.fmax.accumulate(moved)).tolist()


def loss_check(a, b, tolerance):
    """Compares the losses of the first steps with a tolerance, one number for each step."""
    difference = np.array(loss_difference(a, b))
    tolerance = np.array(tolerance[: len(difference)])
    shares = difference[: len(tolerance)] / tolerance
    worst = int(np.argmax(np.nan_to_num(shares, nan=np.inf)))
    beyond = np.flatnonzero(~(shares <= 1))  # written so that NaN is beyond
    if len(beyond):
        note = f"step {beyond[0] + 1} is the first beyond it"
    else:
        later = np.flatnonzero(~(difference <= tolerance[-1]))
        note = f"step {later[0] + 1} is the first beyond the last of them" if len(later) else ""
    words = " and ".join(a)
    return check(
        f"{words} over the first {len(tolerance)} steps",
        float(difference[worst]),
        float(tolerance[worst]),
        f"relative difference at step {worst + 1}, the nearest to its tolerance",
        f"{note or 'all steps stay within it'}, of {len(difference)}",
    )


def check(name, measured, tolerance, unit, note):
    """One check, as the report holds it."""
    return {
        "name": name,
        "measured": measured,
        "tolerance": tolerance,
        "unit": unit,
        "passed": within(measured, tolerance),
        "note": note,
    }


def within(measured, tolerance):
    """Whether a number is within its tolerance; NaN is not."""
    return bool(measured <= tolerance + 1e-12)


def largest(a, b):
    """The largest difference between two arrays, as a float."""
    return float(np.abs(a.astype("float64") - b.astype("float64")).max())


def differing(a, b):
    """How many entries of two dicts differ; those that only one of them has count."""
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())
