"""A comparison layer by layer for people: sentences, charts and a table."""

import numpy as np

from keras_segen.compare.layerwise import divergence
from keras_segen.plot import finite
from keras_segen.report.charts import Chart
from keras_segen.report.numbers import listing, show
from keras_segen.report.tables import Cell, Column, Table

SMALLEST = 1e-18  # what the logarithmic axis shows for "equal"

# What is shown of each layer, as `divergence.compare` names it.
KINDS = {
    "inference": "Inference",
    "training": "Training",
    "gradient": "Gradient",
    "weights": "Weights, one step on",
    "statistics": "Statistics, one step on",
}


def parts(parity):
    """What a page shows of the result of `divergence.compare`, a dict: that and more."""
    return {**parity, "lines": lines(parity), "charts": charts(parity), "table": table(parity)}


def lines(parity):
    """Sentences that a comparison layer by layer adds to its verdict: list of str."""
    found = list((parity.get("evidence") or {}).get("lines", []))  # none in reports of 0.1.0
    flips = {layer["name"]: layer["flips"] for layer in parity["layers"] if layer["flips"]}
    if flips:
        flipped = {name: flip for name, flip in flips.items() if flip["flipped"]}
        count = sum(flip["flipped"] for flip in flipped.values())
        text = (
            f"{count:,} of {sum(flip['of'] for flip in flips.values()):,} ReLU gates "
            f"{'is' if count == 1 else 'are'} open on one backend and closed on the other"
        )
        if flipped:
            text += f", in {listing(list(flipped)[:4])}{' and others' if len(flipped) > 4 else ''}"
        margins = [flip["margin"] for flip in flipped.values() if flip["margin"] is not None]
        if margins:
            text += (
                f"; at most {show(max(margins))} of its layer's scale lay between an open one and "
                "its threshold"
            )
        found.append(f"{text}.")
    for name in ("weights", "loss"):
        values = parity["steps"].get(name) or {}
        spans = []
        for precision, key in (("float32", "difference"), ("float64", "float64")):
            fit = values.get("growth" if key == "difference" else "float64_growth")
            if fit:
                there = [value for value in values[key] if value]
                spans.append(
                    f"from {show(there[0], 2)} to {show(there[-1], 2)} in {precision} (a factor of "
                    f"{show(fit['rate'])} a step fits, R² {show(fit['r2'], 2)})"
                )
        if spans:
            found.append(
                f"Over {parity['num_steps']} steps the difference of the {name} went "
                f"{listing(spans)}."
            )
    return found


def charts(parity):
    """Differences by layer and by step as inline SVG: list of (title, note, Markup)."""
    found = []
    note = (
        "Relative to the layer's scale. Dotted: how far rounding, measured on each backend "
        "against its own float64, may take them apart. Equal ones are drawn at 10⁻¹⁸."
    )
    for kind, title in (
        ("training", "Outputs of each layer"),
        ("gradient", "Gradients of each layer"),
    ):
        rows = [layer[kind] for layer in parity["layers"] if layer[kind]]
        if rows:
            which = "layer with weights" if kind == "gradient" else "layer"
            label = f"{which}, in the order of the network"
            found.append((title, note, chart(label, columns(rows))))
    for name, words in divergence.STEP_MEASURES.items():
        if name in ("loss", "weights") and name in parity["steps"]:
            drawn = chart("training step", parity["steps"][name])
            found.append((f"{words.capitalize()} at each step", "", drawn))
    return found


def columns(rows):
    return {key: [row[key] for row in rows] for key in ("difference", "tolerance", "float64")}


def chart(label, values):
    """One chart of differences, their tolerance and the differences in float64."""
    drawn = Chart(label, "relative difference")
    for key, text, dash in (
        ("difference", "float32", "-"),
        ("tolerance", "tolerance", ":"),
        ("float64", "float64", (0, (4, 2))),
    ):
        # NaN, where nothing is, stays NaN.
        drawn.logarithmic(np.maximum(finite(values[key]), SMALLEST), text, dash)
    return drawn.svg()


def table(parity):
    """Every layer of a comparison layer by layer, as a `Table`."""

    def cell(found):
        if not found:
            return None
        below = (f"at most {show(found['tolerance'], 2)}", f"float64 {show(found['float64'], 2)}")
        return Cell(found["difference"], below, None if found["passed"] else "bad")

    rows, missed = [], set()
    for number, layer in enumerate(parity["layers"]):
        flips = layer["flips"]
        rows.append(
            [
                Cell(layer["name"], (layer["type"],)),
                *(cell(layer[kind]) for kind in KINDS),
                Cell(flips["flipped"], (f"of {show(flips['of'])}",)) if flips else None,
            ]
        )
        if any(layer[kind] and not layer[kind]["passed"] for kind in divergence.MEASURES):
            missed.add(number)
    columns = [Column(heading, lambda value: show(value, 2)) for heading in KINDS.values()]
    note = (
        "Relative differences. “One step on”: after the first training step. Of a layer's weights "
        "the worst is shown."
    )
    if any(layer["name"].rpartition(":")[2].isdigit() for layer in parity["layers"]):
        note += " “:1” is the second time that a step runs a layer."
    return Table("Layers", ["Layer", *columns, "Gates flipped"], rows, note, marked=missed)
