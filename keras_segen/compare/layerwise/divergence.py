"""Where two frameworks diverge: the results of one network on each, compared with their rounding.

Two correct backends round differently, and how much depends on the numbers summed, on the layers
before and on the ReLUs that rounding switches. So the tolerance is measured. Each backend computes
the same steps twice, in float32 and in float64 (`record.py`). If a and b compute the same
function, their float64 results are the same, and by the triangle inequality

    |a32 - b32|  <=  |a32 - a64| + |b64 - b32|

Two results farther apart than both rounding errors together are not of the same function. That
sum is the tolerance of every layer, gradient and step; there is no chosen constant. One rounding of
float32 is added on each side, for operations that a framework always computes in float32.

In float64, rounding is 2**-29 of that in float32, but a fault is as large as before. The tolerance
in float64 is the geometric mean of the two: 2**-14.5 of the tolerance in float32.
"""

import dataclasses
import json
import math
import zipfile

import numpy as np

from keras_segen.compare.checks import check
from keras_segen.files import write_atomically
from keras_segen.frameworks import FRAMEWORKS
from keras_segen.report.numbers import listing, setting, show

LOW, HIGH = "float32", "float64"
PRECISIONS = (LOW, HIGH)
ROUNDING = 2.0**-23  # of one number in float32
MIDDLE = 2.0**-14.5  # between float32 and float64, whose rounding is 2**-29 of it
MEASURED = ("difference", "tolerance", "float64", "float64_tolerance")  # what `deviation` gives

# The measures of every layer, in words. Gradients show a fault from the last layer on.
FORWARD = {"inference": "forward in inference", "training": "forward in training"}
AFTER = {"statistics": "the statistics after one step", "weights": "the weights after one step"}
MEASURES = ("start", *FORWARD, "gradient", *AFTER)
STEP_MEASURES = {
    "loss": "loss",
    "gradient_norm": "norm of the gradient",
    "update_norm": "norm of the update",
    "weights": "weights",
    "statistics": "statistics of normalization",
}


@dataclasses.dataclass
class Record:
    """The results of one backend, in both precisions, from the same weights and batches.

    Args:
        backend: str.
        layers: list of dicts in the order in which the network runs, one for each output of a
            layer: `name`, `type`, `module`, `settings` (dict), `default` (names of the settings
            that are the layer's defaults), `shape`, `weights` (list of names, empty for a layer's
            second output), `start` (a CRC-32 of each weight's values before the first step),
            `sources` (names of the layers whose outputs went in; None for another tensor),
            `input_shapes`, `turn` (how many updates of weights came before it in the step),
            `moved` (how many before that of its own weights), `operations` (as
            `backend.operations` lists them).
        batches: list of int, a CRC-32 of each step's images and masks.
        arrays: dict from a name to an array. `PRECISION/KIND/LAYER[/WEIGHT]`, of which at most
            `record.SAMPLE` values are kept; `PRECISION/KIND`, a row or a number per step.
        versions: dict of str: `framework`, `device`, `keras`.
    """

    backend: str
    layers: list
    batches: list
    arrays: dict
    versions: dict = dataclasses.field(default_factory=dict)

    def save(self, path):
        """Writes the record as `.npz`."""
        values = {"layers": self.layers, "batches": self.batches, "of": self.backend}
        text = json.dumps({**values, "versions": self.versions})
        description = np.frombuffer(text.encode(), np.uint8)
        with write_atomically(path) as temporary:
            np.savez(temporary, description=description, **self.arrays)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
            ValueError: the file is not such a record.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            found = json.loads(arrays.pop("description").tobytes())
            return cls(found["of"], found["layers"], found["batches"], arrays, found["versions"])
        except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no record of a network ({error}).") from error


def compare(a, b, precision=LOW):
    """Finds where two backends diverge.

    Args:
        a, b: a `Record` each.
        precision: str, the one that decides: `"float32"`, or `"float64"`, in which a fault shows
            that float32's rounding hides.

    Returns:
        Dict of plain values. `passed`; `sentence`, the result in words; `parted`, None or a dict
        with `kind` (a name of `MEASURES`, `"batches"` or `"steps"`), `layer`, `type`,
        `where`, `difference`, `tolerance`; `precision`; `layers`, a list of
        dicts with `name`, `type`, `settings`, `flips` (None, or what `flipped_gates` returns),
        and what was measured, each None or a dict as `deviation` returns it and `passed`: `start`,
        `inference`, `training`, and of the worst of its weights, named in `weight`, `gradient`,
        `statistics`, `weights`; `steps`, a dict from each name of `STEP_MEASURES` to lists, one
        number per step, and to `growth`; `num_steps`.

    Raises:
        ValueError: the records are of different networks, so that layers cannot be compared, or
            of different numbers of steps.
    """
    _check_same_network(a, b)
    layers = [_layer(a, b, *pair, precision) for pair in zip(a.layers, b.layers, strict=True)]
    steps = {name: _over_steps(a, b, name) for name in STEP_MEASURES}
    found = {
        "precision": precision,
        "backends": [a.backend, b.backend],
        "num_steps": len(a.batches),
        "layers": layers,
        "steps": {name: values for name, values in steps.items() if values is not None},
    }
    found["parted"] = _first_batch(a, b) or _first(found, precision)
    found["passed"] = found["parted"] is None
    found["sentence"] = sentence(found)
    return found


def deviation(a, b, a_exact, b_exact):
    """Compares the difference of two results with the rounding error of each.

    Args:
        a, b: arrays of one shape, what each backend computed in float32.
        a_exact, b_exact: what it computed in float64.

    Returns:
        Dict of floats, relative to the largest root mean square among the four: `difference`,
        `tolerance`, and the same in float64, `float64` and `float64_tolerance`. All 0, but for
        the tolerances, if all is 0; a difference is infinite if shapes differ or a number is not
        finite.
    """
    arrays = [np.asarray(array, "float64").ravel() for array in (a, b, a_exact, b_exact)]
    tolerance, difference, exact = 0.0, math.inf, math.inf
    if len({array.size for array in arrays}) == 1 and all(np.isfinite(x).all() for x in arrays):
        a, b, a_exact, b_exact = arrays
        scale = max(_rms(array) for array in arrays) or 1.0
        tolerance = (_rms(a - a_exact) + _rms(b - b_exact)) / scale
        difference, exact = _rms(a - b) / scale, _rms(a_exact - b_exact) / scale
    tolerance += 2 * ROUNDING
    return dict(zip(MEASURED, (difference, tolerance, exact, tolerance * MIDDLE), strict=True))


def beyond(measured, precision):
    """Whether what `deviation` returned is beyond its tolerance."""
    difference, tolerance = judged(measured, precision)
    return not difference <= tolerance


def flipped_gates(a, b, layer):
    """Counts the gates of a ReLU that are open on one backend and closed on the other.

    Returns:
        Dict with `flipped`, `of` (all gates of the layer) and `margin`: how far the flipped gates
        were from their threshold on the side where they are open, at most, relative to the root
        mean square of the layer's output; 0 if none flipped.
    """
    name, size = layer["name"], math.prod(layer["shape"])
    bits = [record.arrays[f"{LOW}/gates/{name}"] for record in (a, b)]
    flipped = np.flatnonzero(np.unpackbits(bits[0] ^ bits[1], count=size))
    margin = 0.0
    for record in (a, b):
        opened = np.unpackbits(record.arrays[f"{LOW}/gates/{name}"], count=size)[flipped] == 1
        near = record.arrays[f"{LOW}/near/{name}"]
        margins = record.arrays[f"{LOW}/margin/{name}"]
        if opened.any():
            known = np.isin(near, flipped[opened])
            # The others are farther away than the nearest ones.
            missing = np.count_nonzero(known) < np.count_nonzero(opened)
            margin = max(margin, float(margins[known | missing].max()))
    scale = _rms(a.arrays[f"{LOW}/training/{name}"]) or 1.0
    return {"flipped": len(flipped), "of": size, "margin": margin / scale}


def growth(differences):
    """Fits an exponential to differences step by step, by least squares of their logarithms.

    Args:
        differences: list of float; those that are 0 or not finite do not count.

    Returns:
        None for fewer than 3 of them, or a dict with `rate`, the factor from step to step, and
        `r2`, the share of the variance of the logarithms that the fit explains.

    Example:

    >>> growth([1e-7, 2e-7, 4e-7, 8e-7])
    {'rate': 2.0, 'r2': 1.0}
    """
    steps = [k for k, d in enumerate(differences) if 0 < d < math.inf]
    if len(steps) < 3:
        return None
    logs = np.log([differences[k] for k in steps])
    slope, start = np.polyfit(steps, logs, 1)
    rest = np.sum((logs - start - slope * np.array(steps)) ** 2)
    total = np.sum((logs - logs.mean()) ** 2)
    r2 = 1.0 - rest / total if total > 0 else 1.0
    return {"rate": round(math.exp(slope), 6), "r2": round(float(r2), 6)}


def sentence(found):
    """The result of a comparison in one sentence, and that in float64 in a second one."""
    parted, layers = found["parted"], found["layers"]
    if parted is None:
        text = (
            f"equal to rounding in all {len(layers)} layers, forward and backward, and over "
            f"{found['num_steps']} training steps"
        )
    else:
        place = parted["where"]
        if parted["layer"] is not None:
            inside = ", ".join([parted["type"], *parted["settings"]])
            place = f"layer {parted['layer']} ({inside}), {place}"
        text = f"they part at {place}"
        if parted["difference"] is not None:
            size = (
                show(parted["difference"]) if math.isfinite(parted["difference"]) else "not finite"
            )
            text += f": difference {size}, expected at most {show(parted['tolerance'])}"
    high = found["precision"] == HIGH
    text = f"In float64 {text}" if high else f"{text[0].upper()}{text[1:]}"
    if parted is not None:
        return f"{text}."
    exact = _first(found, HIGH)
    if exact is None:
        largest = show(max(_all_exact(found), default=0.0), 2)
        text += ": the" if high else ". In float64 the"
        text += f" largest difference is {largest}" + ("" if high else ": rounding, no fault")
    else:
        place = f"{exact['layer']}, {exact['where']}" if exact["layer"] else exact["where"]
        text += (
            f". In float64 they part at {place}, by {show(exact['difference'])}: less than "
            "float32's own rounding"
        )
    return f"{text}."


def checks(found):
    """The rows of this comparison among the report's checks: list of dicts, by `check`."""
    precision, layers, steps = found["precision"], found["layers"], found["steps"]
    parted = sum(any(beyond_at(layer, k, precision) for k in MEASURES) for layer in layers)
    late = [
        k
        for k in range(found["num_steps"])
        if any(step_beyond(values, k, precision) for values in steps.values())
    ]
    note = "forward, backward and after one step; tolerance: the rounding of both, measured"
    if parted:
        note = found["sentence"]
    unit = f"of {len(layers)} layers beyond rounding"
    by_layer = check(f"layer by layer, {precision}", parted, 0, unit, note)
    note = f"first at step {late[0] + 1}" if late else ", ".join(STEP_MEASURES.values())
    unit = f"of {found['num_steps']} steps beyond rounding"
    return [by_layer, check(f"step by step, {precision}", len(late), 0, unit, note)]


def _check_same_network(a, b):
    for one, other in zip(a.layers, b.layers, strict=False):
        if one["name"] != other["name"]:
            raise ValueError(
                f"The records are of different networks: where {a.backend} has the layer "
                f"{one['name']!r}, {b.backend} has {other['name']!r}."
            )
    if len(a.layers) != len(b.layers):
        raise ValueError(
            f"The records are of different networks: {len(a.layers)} layers on {a.backend}, "
            f"{len(b.layers)} on {b.backend}."
        )
    if len(a.batches) != len(b.batches):
        raise ValueError(
            f"The records are of {len(a.batches)} steps on {a.backend} and {len(b.batches)} on "
            f"{b.backend}: record the same number."
        )


def _layer(a, b, one, other, precision):
    """The measures of one layer."""
    name, types = one["name"], [one["type"], other["type"]]
    row = {"name": name, "type": " or ".join(dict.fromkeys(types))}
    row["settings"] = _telling_settings(a, b, one, other)
    row |= {key: one[key] for key in ("turn", "moved")}
    for kind in FORWARD:
        row[kind] = _measured(a, b, f"{kind}/{name}")
    row["start"] = None
    if (one["weights"], one["start"]) != (other["weights"], other["start"]):
        row["start"] = dict(zip(MEASURED, (math.inf, 0.0, math.inf, 0.0), strict=True))
    for kind in ("gradient", *AFTER):
        found = {weight: _measured(a, b, f"{kind}/{name}/{weight}") for weight in one["weights"]}
        found = {weight: measured for weight, measured in found.items() if measured}
        row[kind] = _worst(found, precision) if found else None
    has_gates = f"{LOW}/gates/{name}" in a.arrays and one["shape"] == other["shape"]
    row["flips"] = flipped_gates(a, b, one) if has_gates else None
    for kind in MEASURES:
        if row[kind] is not None:
            row[kind]["passed"] = not beyond(row[kind], precision)
    return row


def _worst(found, precision):
    """The worst of a layer's weights, in each precision; `weight` names that of the given one."""
    row = {}
    for each in PRECISIONS:
        excess = {}
        for weight, measured in found.items():
            difference, tolerance = judged(measured, each)
            excess[weight] = difference / tolerance
        worst = max(excess, key=excess.get)
        row |= {key: found[worst][key] for key in _keys(each)}
        if each == precision:
            row["weight"] = worst
    return row


def _measured(a, b, name):
    """`deviation` of one name in both records; what only one of them has is 0 in the other.

    What one of them has in one precision only is beyond any tolerance, which 0 would hide.
    """
    arrays = _arrays(a, b, name)
    if all(array is None for array in arrays):
        return None
    if any((arrays[k] is None) != (arrays[k + 2] is None) for k in (0, 1)):
        return deviation(*(np.full(1, math.nan) for _ in arrays))
    like = next(array for array in arrays if array is not None)
    return deviation(*(np.zeros_like(like) if array is None else array for array in arrays))


def _arrays(a, b, name):
    """The four arrays of one name, or None: of both in float32, then in float64."""
    return [record.arrays.get(f"{each}/{name}") for each in PRECISIONS for record in (a, b)]


def _over_steps(a, b, name):
    """The measures of one quantity at each step: dict of lists, and `growth`."""
    values = _arrays(a, b, f"steps/{name}")
    if any(value is None for value in values):
        return None
    rows = [deviation(*(value[k] for value in values)) for k in range(len(a.batches))]
    found = {key: [row[key] for row in rows] for key in rows[0]}
    found["growth"] = growth(found["difference"])
    found["float64_growth"] = growth(found["float64"])
    return found


def _telling_settings(a, b, one, other):
    """The settings worth showing: those that differ between the two, and those not by default."""
    words = []
    for key in dict.fromkeys([*one["settings"], *other["settings"]]):
        values = [layer["settings"].get(key) for layer in (one, other)]
        if values[0] != values[1]:
            on = [
                f"{_shown(value)} on {FRAMEWORKS.get(record.backend, record.backend)}"
                for value, record in zip(values, (a, b), strict=True)
            ]
            words.append(f"{key} {listing(on)}")
        elif key not in one["default"]:
            words.append(f"{key} {_shown(values[0])}")
    return words


def _shown(value):
    return "×".join(map(str, value)) if isinstance(value, list) else setting(value)


def _first_batch(a, b):
    for k, (one, other) in enumerate(zip(a.batches, b.batches, strict=True)):
        if one != other:
            return _parting("batches", None, f"step {k + 1}: the batches differ", None)
    return None


def _first(found, precision):
    """The first divergence, in the order in which a step computes."""
    layers = found["layers"]
    for layer in layers:
        if beyond_at(layer, "start", precision):
            return _parting("start", layer, "whose weights differ before the first step", None)
    for layer in layers:
        if beyond_at(layer, "inference", precision):
            words = FORWARD["inference"]
            return _parting("inference", layer, words, judged(layer["inference"], precision))
    # One turn, unless two players move one after the other.
    for turn in range(1 + max(max(layer["turn"], layer["moved"]) for layer in layers)):
        parting = _first_of_turn(layers, turn, precision)
        if parting is not None:
            return parting
    for k in range(found["num_steps"]):
        for name, values in found["steps"].items():
            if step_beyond(values, k, precision):
                found_there = judged({key: values[key][k] for key in MEASURED}, precision)
                return _parting("steps", None, f"step {k + 1}, {STEP_MEASURES[name]}", found_there)
    return None


def _first_of_turn(layers, turn, precision):
    """The first divergence between two updates of weights: forward, backward, after the second."""
    for layer in layers:
        if layer["turn"] == turn and beyond_at(layer, "training", precision):
            words = FORWARD["training"]
            return _parting("training", layer, words, judged(layer["training"], precision))
    moved = [layer for layer in layers if layer["moved"] == turn]
    for layer in reversed(moved):
        if beyond_at(layer, "gradient", precision):
            words = f"the gradient by its {layer['gradient']['weight']}"
            return _parting("gradient", layer, words, judged(layer["gradient"], precision))
    for kind, words in AFTER.items():
        for layer in moved:
            if beyond_at(layer, kind, precision):
                words = f"{words} ({layer[kind]['weight']})"
                return _parting(kind, layer, words, judged(layer[kind], precision))
    return None


def _parting(kind, layer, where, measured):
    difference, tolerance = measured or (None, None)
    return {
        "kind": kind,
        "layer": layer and layer["name"],
        "type": layer and layer["type"],
        "settings": layer["settings"] if layer else [],
        "where": where,
        "difference": difference,
        "tolerance": tolerance,
    }


def judged(measured, precision):
    """The difference and the tolerance in a precision, of what `deviation` returned."""
    return tuple(measured[key] for key in _keys(precision))


def _keys(precision):
    return MEASURED[:2] if precision == LOW else MEASURED[2:]


def beyond_at(layer, kind, precision):
    return layer[kind] is not None and beyond(layer[kind], precision)


def step_beyond(values, k, precision):
    return beyond({key: values[key][k] for key in MEASURED}, precision)


def _all_exact(found):
    for layer in found["layers"]:
        yield from (layer[kind]["float64"] for kind in MEASURES if layer[kind] is not None)
    for values in found["steps"].values():
        yield from values["float64"]


def _rms(array):
    array = np.asarray(array, "float64")
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0
