"""What is known about the place where two frameworks part, and what to report upstream.

`divergence.compare` names the first layer in the order of computation that is beyond its tolerance:
all that went into it is within. This file adds the proof, the tolerance that would have been
needed, the operation of PyTorch, and one line for the maintainers.
"""

import collections
import math

import numpy as np

from keras_segen.compare.layerwise.divergence import (
    AFTER,
    FORWARD,
    LOW,
    MEASURED,
    MEASURES,
    STEP_MEASURES,
    judged,
)
from keras_segen.frameworks import FRAMEWORKS
from keras_segen.report.numbers import listing, setting, show

NO_DIGIT = 0.1  # what rounds by more than a tenth of itself has no digit to compare
SHOWN = 6  # operations of a layer that a sentence names
TRACKERS = {
    "torch": "pytorch/pytorch on GitHub",
    "keras": "keras-team/keras on GitHub",
}


def evidence(found, a, b, seed=0):
    """Adds to a comparison what was seen at the place where the two part.

    Args:
        found: dict, what `divergence.compare(a, b, …)` returned.
        a, b: the `divergence.Record` of each backend.
        seed: int, that of the task.

    Returns:
        Dict of plain values. `least_tolerance`, the smallest one, relative, with which every
        layer and step had passed (a dict of `tolerance`, `layer`, `where`; `tolerance` is
        infinite if a number is not finite); `lines`, list of str, sentences for people;
        `upstream`, None or the line to report; and, where a layer parted, `inputs`, a list of
        dicts with `name`, `difference` and `tolerance`; `largest`, the largest difference of one
        of its numbers in float32, or None; `operation`, None or the name of PyTorch's; `wrong`,
        whether it differs from its own result in float64.
    """
    least = least_tolerance(found)
    result = {"least_tolerance": least, "lines": [], "upstream": None}
    result |= {"inputs": [], "largest": None, "operation": None, "wrong": False}
    parted, lines = found["parted"], result["lines"]
    if parted is None:
        lines.append(
            "The smallest tolerance that would have been needed: "
            f"{show(least['tolerance'])}, relative ({_place(least)})."
        )
        return result
    if parted["kind"] == "batches":
        return result
    layer = next((each for each in a.layers if each["name"] == parted["layer"]), None)
    kind, size, where = parted["kind"], parted["difference"], parted["layer"] or parted["where"]
    if layer is not None:
        lines.append(_went_in(found, a, layer, kind, result))
    if size is not None:
        result["largest"] = _largest(a, b, f"{LOW}/{kind}/{where}") if kind in FORWARD else None
        lines.append(_needed(parted, least, result["largest"]))
    if layer is not None and kind not in ("start", *AFTER):
        lines.append(_operations(found, a, b, layer, result))
    if layer is not None:
        result["upstream"] = _upstream(found, layer, a, b, seed, result)
        lines.append(result["upstream"])
    result["lines"] = [line for line in lines if line]
    return result


def least_tolerance(found):
    """The smallest relative tolerance with which every layer and step had passed.

    What is 0 but for rounding, such as the gradient by a bias before a batch normalization, does
    not count: its relative difference says nothing.
    """
    least = {"tolerance": 0.0, "layer": None, "where": "everywhere"}
    words = {**FORWARD, "gradient": "the gradient", **AFTER}

    def consider(measured, layer, where):
        difference, _ = judged(measured, found["precision"])
        if least["tolerance"] < difference and measured["tolerance"] < NO_DIGIT:
            least.update(tolerance=difference, layer=layer, where=where)

    for layer in found["layers"]:
        for kind in MEASURES[1:]:
            if layer[kind] is not None:
                consider(layer[kind], layer["name"], words[kind])
    for name, values in found["steps"].items():
        for k in range(found["num_steps"]):
            measured = {key: values[key][k] for key in MEASURED}
            consider(measured, None, f"step {k + 1}, {STEP_MEASURES[name]}")
    return least


def _place(least):
    return ", ".join(part for part in (least["layer"], least["where"]) if part)


def _went_in(found, a, layer, kind, result):
    """A sentence on what went into a layer: that it is equal, and how equal."""
    rows = {row["name"]: row for row in found["layers"]}
    if kind == "gradient":
        between, until = _behind(a, found, layer)
        if not until:
            return "No layer with weights comes after it: what differs comes from the loss."
        through = f" through {listing(between)}" if between else ""
        return (
            f"The gradient comes to it from {listing(until)}, whose own gradients are equal"
            f"{through}: what differs is the backward pass of one of these."
        )
    if kind not in FORWARD:
        return ""
    if layer["type"] == "InputLayer":
        part = layer["name"].rpartition("/")[0]
        return (
            f"{layer['name']} is no layer, but what goes into {part}. All layers before it put "
            "out the same: what differs is computed between the networks."
        )
    parts = []
    for name in dict.fromkeys(layer["sources"]):
        measured = rows[name][kind] if name in rows else None
        if measured is not None:
            difference, tolerance = judged(measured, found["precision"])
            row = {"name": name, "difference": difference, "tolerance": tolerance}
            result["inputs"].append(row)
            parts.append(f"{name} (difference {show(difference, 2)}, at most {show(tolerance, 2)})")
        elif name is not None:
            parts.append(f"{name} (of the batch, to the bit)")
    if not parts:
        return "Every layer before it puts out the same on both."
    return f"Its inputs are equal: {listing(parts)}."


def _behind(a, found, layer):
    """The layers without weights behind a layer, and those with equal gradients behind them."""
    rows = {row["name"]: row for row in found["layers"]}
    between, until, waiting = [], [], [layer["name"]]
    while waiting:
        name = waiting.pop(0)
        for reader in a.layers:
            known = reader["name"] in (*between, *until)
            if name not in reader["sources"] or known:
                continue
            if rows[reader["name"]]["gradient"] is None:
                between.append(reader["name"])
                waiting.append(reader["name"])
            else:
                until.append(reader["name"])
    return between, until


def _largest(a, b, name):
    if not all(name in record.arrays for record in (a, b)):
        return None
    arrays = [np.asarray(record.arrays[name], "float64") for record in (a, b)]
    if arrays[0].shape != arrays[1].shape:
        return None
    largest = float(np.abs(arrays[0] - arrays[1]).max())
    return largest if math.isfinite(largest) else None


def _needed(parted, least, largest):
    """A sentence on the tolerance that would have been needed, here and everywhere."""
    if not math.isfinite(parted["difference"]):
        return "No tolerance would do: a number is not finite, or the shapes differ."
    times = parted["difference"] / parted["tolerance"]
    text = (
        f"The smallest tolerance that would have been needed: {show(parted['difference'])} here, "
        f"relative, {show(times, 2)} times what rounding explains"
    )
    if largest is not None:
        text += f" ({show(largest)} in absolute numbers)"
    if math.isfinite(least["tolerance"]) and least["tolerance"] > parted["difference"]:
        text += f"; {show(least['tolerance'])} for all ({_place(least)})"
    return f"{text}."


def _operations(found, a, b, layer, result):
    """A sentence on PyTorch's operations in a layer; sets `operation` to the one that parts."""
    ran = {
        record.backend: next(
            (each["operations"] for each in record.layers if each["name"] == layer["name"]), []
        )
        for record in (a, b)
    }
    torch = ran.get("torch", [])
    if not torch:
        return ""
    named = [f"{name} ({count} times)" if count > 1 else name for name, count in _count(torch)]
    if len(named) > SHOWN:
        named[SHOWN:] = [f"{len(named) - SHOWN} more"]
    text = f"On PyTorch it runs {listing(named)}"
    if found["parted"]["kind"] == "gradient":
        return f"{text}, forward."
    if len(_count(torch)) == 1:
        result["operation"] = torch[0]["name"]
        text += f", on {_size(torch[0]['shape'])}: that is the operation"
    if found["precision"] != LOW:  # operations were recorded in float32
        return f"{text}."
    wrong = max(torch, key=lambda each: each["rounding"] or 0.0)
    if (wrong["rounding"] or 0.0) > _middle(found):
        result |= {"operation": wrong["name"], "wrong": True}
        return (
            f"{text}. The operation is {wrong['name']}: it differs by {show(wrong['rounding'])} "
            "from its own result in float64."
        )
    others = [each["norms"] for name in ran if name != "torch" for each in ran[name]]
    if others and result["operation"] is None:
        lone = next((each for each in torch if not _has_equal(each["norms"], others, found)), None)
        if lone is not None:
            result["operation"] = lone["name"]
            text += (
                f". The operation is {lone['name']}, on {_size(lone['shape'])}: the first whose "
                "result none of the other's operations has"
            )
    return f"{text}. Each is within {show(wrong['rounding'])} of its own result in float64."


def _count(operations):
    return collections.Counter(each["name"] for each in operations).items()


def _middle(found):
    """Between rounding and the fault: what is nearer is rounding, what is farther is not."""
    return math.sqrt(min(found["parted"]["difference"], 1.0) * found["parted"]["tolerance"])


def _has_equal(norms, others, found):
    """Whether a result has the norms of another."""
    near = _middle(found)
    return any(
        all(abs(x - y) <= near * max(abs(x), abs(y)) for x, y in zip(norms, other, strict=True))
        for other in others
    )


def _upstream(found, layer, a, b, seed, result):
    """The line to report: layer, settings, type and shapes, difference, versions, seed."""
    parted = found["parted"]
    own = not layer["module"].startswith(("keras.", "keras_segen."))
    if layer["type"] == "InputLayer":
        return f"{layer['name']} is computed in keras_segen: report it there, with this page."
    described = ", ".join(f"{key}={_shown(value)}" for key, value in layer["settings"].items())
    on = listing(
        f"{FRAMEWORKS.get(record.backend, record.backend)} {record.versions.get('framework', '')} "
        f"({record.versions.get('device', '')})"
        for record in (a, b)
    )
    size = parted["difference"]
    if size is None:
        difference = "other values"
    else:
        difference = (
            f"relative difference {show(size)}, expected at most {show(parted['tolerance'])}"
            if math.isfinite(size)
            else "a result that is not finite, or of another shape"
        )
    operation = f", operation {result['operation']}" if result["operation"] else ""
    where = "the author of this layer" if own else TRACKERS["keras"]
    if layer["module"].startswith("keras_segen."):
        where = "keras_segen"
    if result["wrong"]:
        where = TRACKERS["torch"]
    shapes = f"{', '.join(map(_size, layer['input_shapes'])) or '–'} to {_size(layer['shape'])}"
    return (
        f"Report to {where}: {layer['module']}.{layer['type']}({described}), "
        f"{found['precision']} {shapes}{operation}, {parted['where']}: {difference}; {on}, "
        f"Keras {a.versions.get('keras', '')}, seed {seed}."
    )


def _shown(value):
    return repr(value) if isinstance(value, (list, str)) else setting(value)


def _size(shape):
    return f"({', '.join(map(str, shape))})"
