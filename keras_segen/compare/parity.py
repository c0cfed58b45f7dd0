"""Where two backends part: the checks of a comparison, in the order in which a fault shows.

Each check measures one number and holds it against a stated tolerance. The first that fails says
where the two trainings parted: in the weights, the batches, the forward pass, the training steps
or when a saved model was handed over.
"""

import numpy as np

LOGITS_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-3
LOSS_STEPS = 20
EQUAL_PIXELS = 0.9999


def checks(results, arrays, serving):
    """Compares what two backends saw.

    Args:
        results: dict of backend -> its `result.json`, two of them.
        arrays: dict of backend -> its `arrays.npz`.
        serving: dict of (trained on, run on) -> `ids` and `last_logits` of the handed-over model.

    Returns:
        List of dicts with `name`, `measured`, `tolerance`, `unit`, `passed`, `note`.
    """
    (first, a), (second, b) = results.items()
    found = [
        _check(
            "initial weights",
            int(a["weights_sha256"] != b["weights_sha256"]),
            0,
            "differing sets of weights",
            f"SHA-256 over all {a['parameters']:,} numbers",
        ),
        _check(
            "batches",
            differing(a["batches_crc32"], b["batches_crc32"]),
            0,
            "differing batches",
            f"checksums of {len(a['batches_crc32']):,} training batches, in order",
        ),
        _check(
            "logits before training",
            largest(arrays[first]["first_logits"], arrays[second]["first_logits"]),
            LOGITS_TOLERANCE,
            "largest difference",
            f"{len(arrays[first]['first_logits'])} validation images, the same weights",
        ),
        _loss_check(a["losses"], b["losses"]),
    ]
    return found + [hand_over_check(row) for row in hand_over(arrays, serving)]


def loss_difference(a, b):
    """Relative difference of two lists of losses, step by step: list of float."""
    steps = min(len(a), len(b))
    a, b = np.asarray(a[:steps]), np.asarray(b[:steps])
    return (np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-12)).tolist()


def hand_over(arrays, serving):
    """What a model gives on the other backend, against what it gave where it was trained.

    Returns:
        List of dicts with `trained_on`, `run_on`, `largest_logit_difference`, `largest_logit`,
        `equal_pixels` (share of all validation pixels), `passed`.
    """
    rows = []
    for (trained_on, run_on), served in serving.items():
        own = arrays[trained_on]
        equal = float((own["ids"] == served["ids"]).mean())
        rows.append(
            {
                "trained_on": trained_on,
                "run_on": run_on,
                "largest_logit_difference": largest(own["last_logits"], served["last_logits"]),
                "largest_logit": float(np.abs(own["last_logits"]).max()),
                "equal_pixels": equal,
                "passed": equal >= EQUAL_PIXELS,
            }
        )
    return rows


def hand_over_check(row):
    return _check(
        f"{row['trained_on']} model run on {row['run_on']}",
        1.0 - row["equal_pixels"],
        1.0 - EQUAL_PIXELS,
        "share of pixels that change",
        f"logits differ by at most {row['largest_logit_difference']:.1e} "
        f"(the largest is {row['largest_logit']:.1f})",
    )


def _loss_check(a, b):
    difference = loss_difference(a, b)
    first = difference[:LOSS_STEPS]
    beyond = next((k for k, d in enumerate(difference) if d > LOSS_TOLERANCE), None)
    note = (
        f"all {len(difference)} steps stay within it"
        if beyond is None
        else f"step {beyond + 1} is the first beyond it, of {len(difference)}"
    )
    return _check(
        f"loss over the first {len(first)} steps",
        max(first),
        LOSS_TOLERANCE,
        "largest relative difference",
        note,
    )


def _check(name, measured, tolerance, unit, note):
    return {
        "name": name,
        "measured": measured,
        "tolerance": tolerance,
        "unit": unit,
        "passed": bool(measured <= tolerance + 1e-12),
        "note": note,
    }


def largest(a, b):
    """The largest difference between two arrays, as a float."""
    return float(np.abs(a.astype("float64") - b.astype("float64")).max())


def differing(a, b):
    """How many entries of two dicts differ; those that only one of them has count."""
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())
