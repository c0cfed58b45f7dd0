"""What a comparison found, as report.json, as one self-contained HTML page, and in the terminal.

The report is a plain dict, written by `compare/run.py`; any part of it may be missing, because a
backend may have failed or been interrupted at any moment.
"""

import base64
import math
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from keras_segen.compare.layerwise import divergence
from keras_segen.files import write_json, write_text
from keras_segen.plot import INK_COLOR, finite
from keras_segen.report.charts import COLORS, OTHER_COLORS, Chart, display_name
from keras_segen.report.html import render
from keras_segen.report.numbers import listing, plain, setting, show

SMALLEST_DIFFERENCE = 1e-9  # what the logarithmic axis shows for "equal"
SMALLEST_ROUNDING = 1e-18  # the same, where float64 is shown too

STATUS = {
    "passed": ("✓", "Passed", "green"),
    "parted": ("≠", "Parted", "red"),
    "failed": ("✕", "Failed", "red"),
    "interrupted": ("◼", "Interrupted", "yellow"),
}

# label, unit, where it stands in a backend's part of the report, digits
FIGURES = (
    ("Time per training step", "ms", ("milliseconds", "step"), 3),
    ("Waiting for a batch, in training", "ms", ("milliseconds", "wait"), 3),
    ("Loader time per batch, by itself", "ms", ("milliseconds", "loader"), 3),
    ("Prediction per batch", "ms", ("milliseconds", "predict"), 3),
    ("Generation per batch", "ms", ("milliseconds", "generate"), 3),
    ("First step", "s", ("seconds", "first_step"), 3),
    ("Start-up: imports", "s", ("seconds", "imports"), 3),
    ("Start-up: building the model", "s", ("seconds", "build"), 3),
    ("Training", "s", ("seconds", "training"), 3),
    ("Whole process", "s", ("seconds", "total"), 3),
    ("Peak memory, process", "MiB", ("memory_mib", "peak_resident"), 4),
    ("Peak memory, device", "MiB", ("memory_mib", "peak_device"), 4),
    ("Mean IoU, validation", "0 to 1", ("metrics", "mean_iou"), 4),
    ("Mean Dice, validation", "0 to 1", ("metrics", "mean_dice"), 4),
    ("Pixel accuracy, validation", "0 to 1", ("metrics", "pixel_accuracy"), 4),
    ("ELBO, validation", "nats per image", ("metrics", "elbo"), 5),
    ("Bits per dimension, validation", "bits", ("metrics", "bits_per_dimension"), 4),
    ("Kernel distance, validation", "", ("metrics", "kernel_distance"), 4),
    ("Fréchet distance, validation", "", ("metrics", "frechet_distance"), 4),
)
# What the verdict says of what the models came to, if it is known: key -> name, digits.
HEADLINES = {
    "mean_iou": ("mean IoU", 4),
    "elbo": ("the validation ELBO", 5),
    "kernel_distance": ("the kernel distance to validation images", 4),
}
# What is said of a model, by what it makes.
WORDS = {
    "masks": {
        "result": "both came to the same result",
        "section": "Predictions",
        "outputs": "logits",
        "loss": "10⁻³",
    },
    "pictures": {
        "result": "both went the same way",
        "section": "Pictures",
        "outputs": "pictures",
        "loss": "10⁻⁴",
    },
}
LOSSES = {"d_loss": "loss of the discriminator", "g_loss": "loss of the generator"}
HISTORY = {
    "val_loss": "validation loss",
    "val_mean_iou": "validation mean IoU",
    "val_elbo": "validation ELBO",
    "val_d_real_accuracy": "share of validation images taken for real",
    "val_d_fake_accuracy": "share of generated images seen through",
}
# What is shown of each layer, as `divergence.compare` names it.
PARITY_KINDS = {
    "inference": "Inference",
    "training": "Training",
    "gradient": "Gradient",
    "weights": "Weights, one step on",
    "statistics": "Statistics, one step on",
}
CARDS = (
    "Time per training step",
    "Mean IoU, validation",
    "ELBO, validation",
    "Kernel distance, validation",
    "Peak memory, process",
    "First step",
)


def write_report(report, folder):
    """Writes `report.json` and `report.html` into a folder, each whole or not at all.

    Args:
        report: dict as `compare/run.py` makes it; NaN and infinity are written as null.
        folder: where to; the files named under `"pictures"` lie there already.

    Returns:
        `pathlib.Path` of `report.html`.
    """
    folder = Path(folder)
    write_json(folder / "report.json", plain(report))
    write_text(folder / "report.html", page(report, folder))
    return folder / "report.html"


def print_report(report, console, folder):
    """Prints the verdict, the figures, the checks and where the report lies.

    Args:
        report: dict as for `write_report`.
        console: a `rich.console.Console`.
        folder: the folder that `write_report` wrote to.
    """
    report = complete(report)
    names = list(report["backends"])
    sign, word, color = STATUS[report["status"]]
    console.print()
    console.print(Text.assemble((f"{sign} {word}  ", f"bold {color}"), verdict(report)))
    for note in report["notes"]:
        console.print(Text(note, "yellow"), soft_wrap=True)

    if report["parity"]:
        console.print()
        console.print(Text(report["parity"]["sentence"], "bold"))
        for line in parity_lines(report["parity"]):
            console.print(Text(line))
    rows = figures(report)
    if rows:
        headings = ratio_headings(report)
        title = f"Figures; the ratio is {headings[0]}" if len(headings) == 1 else "Figures"
        table = Table(title=title, title_justify="left", title_style="bold", box=None)
        table.add_column("median, p10 to p90", header_style="dim")
        for name in names:
            table.add_column(Text(display_name(name)), justify="right")
        for heading in headings if len(headings) > 1 else ["ratio"] * len(headings):
            table.add_column(Text(heading), justify="right")
        for row in rows:
            cells = [
                Text.assemble(value, (f"\n{spread}" if spread else "", "dim"))
                for value, spread in zip(row["shown"], row["spreads"], strict=True)
            ]
            table.add_row(Text(f"{row['label']}, {row['unit']}"), *cells, *row["ratios"])
        console.print()
        console.print(table)
    if report["checks"]:
        table = Table(title="Checks", title_justify="left", title_style="bold", box=None)
        table.add_column("")
        table.add_column("check")
        table.add_column("measured", justify="right")
        table.add_column("tolerance", justify="right")
        table.add_column("unit")
        for check in report["checks"]:
            mark = passed_mark(check.get("passed"))
            style = {"✓": "green", "✕": "red"}.get(mark, "yellow")
            table.add_row(
                Text(mark, style),
                Text(str(check["name"])),
                show(check.get("measured")),
                show(check.get("tolerance")),
                Text(str(check.get("unit") or "")),
            )
        console.print()
        console.print(table)
    for name, backend in report["backends"].items():
        if backend.get("error"):
            console.print()
            console.print(Text(f"{display_name(name)} {backend.get('status')}:", "bold red"))
            console.print(Text(str(backend["error"]).rstrip()))
    console.print()
    console.print(Text(f"Report: {Path(folder) / 'report.html'}"), soft_wrap=True)


def verdict(report):
    """Says in one sentence what was compared and what came out.

    Args:
        report: dict as for `write_report`.

    Returns:
        str.
    """
    report = complete(report)
    task, backends = report["experiment"], report["backends"]
    names = [display_name(name) for name in backends]
    subject = Path(task.get("model") or "The model").name
    if report["parameters"]:
        subject += f" with {report['parameters']:,} parameters"
    trained = task.get("precision") != divergence.HIGH
    if task.get("data"):
        subject += f", {'trained' if trained else 'compared layer by layer'} on"
        subject += f" {data_name(task['data'])}"
    if task.get("epochs") and trained:
        subject += f" for {task['epochs']} epoch{'s' if task['epochs'] != 1 else ''}"
    subject += f" on {listing(names)}{equal_machine(backends)}"

    status = report["status"]
    if status == "interrupted":
        counts = [
            f"{steps_done(backend) or 'no'}{planned(backend, task)} steps on {display_name(name)}"
            for name, backend in backends.items()
        ]
        return f"{subject}: interrupted after {listing(counts)}; what was measured is kept."
    if status == "failed":
        failed = [name for name, backend in backends.items() if backend.get("status") == "failed"]
        reasons = [f"{display_name(name)} failed{last_line(backends[name])}" for name in failed]
        kept = [display_name(name) for name in backends if name not in failed]
        ending = f"; the result of {listing(kept)} is kept" if kept else ""
        return f"{subject}: {listing(reasons) or 'the comparison failed'}{ending}."

    checks = report["checks"]
    missed = [check for check in checks if check.get("passed") is False]
    if status == "parted":
        result = "the results parted"
        if missed:
            first = missed[0]
            result = (
                f"{len(missed)} of {len(checks)} checks failed, first “{first['name']}” "
                f"({show(first.get('measured'))}, tolerance {show(first.get('tolerance'))}"
                f"{parting_step(report)})"
            )
    elif len(backends) == 1:
        result = "one backend alone, so nothing to compare it with"
    else:
        result = f"from the same weights and batches {words(report)['result']}"
        if len(backends) > 2:
            result = result.replace("both", "all")
        result += f", all {len(checks)} checks passed" if checks else ""
    return f"{subject}: {result}{in_figures(backends)}."


def data_name(data):
    """A data set's name with the last part of its path: `folder:photos`."""
    name, colon, path = data.partition(":")
    return f"{name}{colon}{Path(path).name}"


def in_figures(backends):
    """The end of the verdict: time, memory and what the models came to, as far as it is known."""
    times = {name: dig(backend, "milliseconds", "step") for name, backend in backends.items()}
    parts = [step_times(times)] if None not in map(median, times.values()) else []
    for key, figure in (("peak_device", "device memory"), ("peak_resident", "memory")):
        peaks = {name: dig(backend, "memory_mib", key) for name, backend in backends.items()}
        if None not in peaks.values():
            found = listing(f"{show(peak)} MiB{on(n, peaks)}" for n, peak in peaks.items())
            parts.append(f"{figure} peaked at {found}")
            break
    for key, (figure, digits) in HEADLINES.items():
        scores = {name: dig(backend, "metrics", key) for name, backend in backends.items()}
        if None in scores.values():
            continue
        shown = {name: show(score, digits) for name, score in scores.items()}
        if len(set(shown.values())) == 1 and len(shown) > 1:
            parts.append(f"{figure} is {next(iter(shown.values()))} on each")
        else:
            parts.append(f"{figure} is " + listing(f"{s}{on(n, shown)}" for n, s in shown.items()))
    return "; " + "; ".join(parts) if parts else ""


def step_times(times):
    """Which backend was faster, and by how much, unless one run cannot tell."""
    if len(times) == 2:
        (fast, short), (slow, long) = sorted(times.items(), key=lambda item: median(item[1]))
        shown = [show(median(short)), show(median(long))]
        if within(median(short), long) and within(median(long), short):
            return (
                f"a step took about as long on each ({listing(shown)} ms, each within the other's "
                "spread)"
            )
        if median(short) > 0:
            return (
                f"a step took {shown[0]} ms on {display_name(fast)} and "
                f"{median(long) / median(short):.2f} times as long, {shown[1]} ms, on "
                f"{display_name(slow)}"
            )
    return "a step took " + listing(f"{show(median(t))} ms{on(n, times)}" for n, t in times.items())


def within(value, statistics):
    """Whether a value lies from the 10th to the 90th percentile of others."""
    low, high = percentiles(statistics)
    return None not in (low, high) and low <= value <= high


def equal_machine(backends):
    """Device and threads in brackets, if they are known and the same for each backend."""
    found = {
        (dig(backend, "settings", "device"), dig(backend, "settings", "threads"))
        for backend in backends.values()
    }
    device, threads = found.pop()
    if found or device is None or threads is None:
        return ""
    return f" ({device}, {threads} thread{'s' if threads != 1 else ''})"


def words(report):
    return WORDS[report.get("makes") or "masks"]


def steps_done(backend):
    return max((len(losses) for losses in (backend.get("losses") or {}).values()), default=0)


def planned(backend, task):
    if not backend.get("steps_per_epoch") or not task.get("epochs"):
        return ""
    return f" of {backend['steps_per_epoch'] * task['epochs']}"


def on(name, backends):
    return f" on {display_name(name)}" if len(backends) > 1 else ""


def parting_step(report):
    """Where the losses parted, if the report says which difference is too much."""
    limit = dig(report, "loss_tolerance", "relative")
    if limit is None:
        return ""
    differences = finite(report["loss_difference"])[: len(limit)]
    beyond = np.flatnonzero(differences > limit[: len(differences)])
    return f"; the losses parted at step {beyond[0] + 1}" if len(beyond) else ""


def figures(report):
    """The measured figures side by side.

    Args:
        report: dict as for `write_report`.

    Returns:
        List of dicts, one per figure that at least one backend has: `label`, `unit`, and, one per
        backend, `values` (number or None), `percentiles` (the 10th and the 90th, or None),
        `shown` (str), `spreads` (str), `shares` (value as share of the largest, or of 1, in
        percent); one per backend after the first, `factors` (value over the first backend's, or
        None) and `ratios` (the same as str).
    """
    rows = []
    for label, unit, keys, digits in FIGURES:
        measured = [dig(backend, *keys) for backend in report["backends"].values()]
        values = [median(value) for value in measured]
        if all(value is None for value in values):
            continue
        whole = 1 if unit == "0 to 1" else max(value for value in values if value is not None)
        factors = [factor(value, values[0]) for value in values[1:]]
        rows.append(
            {
                "label": label,
                "unit": unit,
                "values": values,
                "percentiles": [percentiles(value) for value in measured],
                "shown": [show(value, digits) for value in values],
                "spreads": [spread(value) for value in measured],
                "shares": [100 * (v or 0) / whole if whole > 0 else 0 for v in values],
                "factors": factors,
                "ratios": ["–" if each is None else f"{each:.2f}" for each in factors],
            }
        )
    return rows


def settings(report):
    """Every setting of every backend: list of (name, one str per backend, whether they differ)."""
    backends = list(report["backends"].values())
    names = dict.fromkeys(name for backend in backends for name in backend.get("settings") or {})
    rows = []
    for name in names:
        values = [setting(dig(backend, "settings", name)) for backend in backends]
        rows.append((name, values, len(set(values) - {"–"}) > 1))
    return rows


def page(report, folder):
    """The HTML page as a str. `folder` is where the pictures lie."""
    report = complete(report)
    rows = figures(report)
    class_iou = {
        name: dig(backend, "metrics", "class_iou") or []
        for name, backend in report["backends"].items()
    }
    return render(
        "report.html.j2",
        {"name": display_name, "mark": passed_mark},
        report=report,
        status=STATUS[report["status"]],
        verdict=verdict(report),
        words=words(report),
        colors={name: color(report, name) for name in report["backends"]},
        figures=rows,
        cards=[row for label in CARDS for row in rows if row["label"] == label],
        ratio_headings=ratio_headings(report),
        settings=settings(report),
        settings_compared=sum(bool(b.get("settings")) for b in report["backends"].values()) > 1,
        class_iou=class_iou if any(class_iou.values()) else {},
        charts=charts(report),
        parity=report["parity"],
        parity_lines=parity_lines(report["parity"]) if report["parity"] else [],
        parity_charts=parity_charts(report["parity"]) if report["parity"] else [],
        parity_kinds=PARITY_KINDS,
        all_passed=lambda layer: all(
            layer[kind] is None or layer[kind]["passed"] for kind in divergence.MEASURES
        ),
        pictures=[picture(entry, folder) for entry in report["pictures"]],
        item=lambda values, i: values[i] if i < len(values) else None,
    )


def charts(report):
    """The charts as inline SVG: list of (title, note, Markup)."""
    backends = report["backends"]
    found = []
    of_each = dict.fromkeys(loss for b in backends.values() for loss in b.get("losses") or {})
    for loss in of_each:
        losses = {name: finite(dig(b, "losses", loss) or []) for name, b in backends.items()}
        if not any(np.isfinite(values).any() for values in losses.values()):
            continue
        chart = Chart("training step", LOSSES.get(loss, loss))
        for name, values in losses.items():
            chart.line(values, display_name(name), color(report, name))
        note = "Where the lines coincide, the dashes lie on the line."
        title = f"{chart.axes.get_ylabel().capitalize()} of every step"
        found.append((title, note if len(chart.axes.lines) > 1 else "", chart.svg()))

    differences = finite(report["loss_difference"])
    if np.isfinite(differences).any():
        chart = Chart("training step", "relative difference")
        shown = np.where(
            np.isfinite(differences), np.maximum(differences, SMALLEST_DIFFERENCE), math.nan
        )
        steps = np.arange(1, len(shown) + 1)
        chart.axes.semilogy(steps, shown, color=INK_COLOR, linewidth=1.2, label="difference")
        if len(shown) == 1:
            chart.axes.lines[-1].set_marker("o")
        note = "Of the two losses at each step; both start from the same weights."
        if len(of_each) > 1:
            note = (
                f"The largest of {listing([LOSSES.get(loss, loss) for loss in of_each])}, relative "
                "to the largest loss of the step; both start from the same weights."
            )
        if (differences <= SMALLEST_DIFFERENCE).any():
            note += " Equal losses are drawn at 10⁻⁹."
        if dig(report, "loss_tolerance", "relative"):
            tolerance = report["loss_tolerance"]["relative"]
            there = tolerance[: len(shown)]
            chart.axes.semilogy(
                np.arange(1, len(there) + 1),
                there,
                color=INK_COLOR,
                linestyle=":",
                linewidth=1.6,
                label="tolerance",
            )
            note += f" The tolerance holds for the first {len(tolerance)} steps."
            note += (
                f" It is {words(report)['loss']}, or ten times what one rounding of the first "
                "weights does to the losses of each backend, if that is more."
            )
        found.append(("Relative difference of the losses", note, chart.svg()))

    for key, quantity in HISTORY.items():
        history = {name: finite(dig(b, "history", key) or []) for name, b in backends.items()}
        if max(np.isfinite(values).sum() for values in history.values()) > 1:
            chart = Chart("epoch", quantity)
            for name, values in history.items():
                chart.line(values, display_name(name), color(report, name), marker="o")
            title = f"{quantity[0].upper()}{quantity[1:]} after every epoch"
            found.append((title, "", chart.svg()))
    return found


def parity_lines(parity):
    """What a comparison layer by layer adds to its verdict, in sentences: list of str."""
    lines = []
    flips = {layer["name"]: layer["flips"] for layer in parity["layers"] if layer["flips"]}
    if flips:
        flipped = {name: flip for name, flip in flips.items() if flip["flipped"]}
        text = (
            f"{sum(flip['flipped'] for flip in flipped.values()):,} of "
            f"{sum(flip['of'] for flip in flips.values()):,} ReLU gates are open on one backend "
            "and closed on the other"
        )
        if flipped:
            text += f", in {listing(list(flipped)[:4])}{' and others' if len(flipped) > 4 else ''}"
        margins = [flip["margin"] for flip in flipped.values() if flip["margin"] is not None]
        if margins:
            text += (
                f"; at most {show(max(margins))} of its layer's scale lay between an open one and "
                "its threshold"
            )
        lines.append(f"{text}.")
    for name in ("weights", "loss"):
        values = parity["steps"].get(name) or {}
        parts = []
        for precision, key in (("float32", "difference"), ("float64", "float64")):
            fit = values.get("growth" if key == "difference" else "float64_growth")
            if fit:
                there = [value for value in values[key] if value]
                parts.append(
                    f"from {show(there[0], 2)} to {show(there[-1], 2)} in {precision} (a factor of "
                    f"{show(fit['rate'])} a step fits, R² {show(fit['r2'], 2)})"
                )
        if parts:
            lines.append(
                f"Over {parity['num_steps']} steps the difference of the {name} went "
                f"{listing(parts)}."
            )
    return lines


def parity_charts(parity):
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
            label = "layer, in the order of the network"
            if kind == "gradient":
                label = "layer with weights, in the order of the network"
            found.append((title, note, parity_chart(label, columns(rows))))
    for name, words in divergence.STEP_MEASURES.items():
        if name in ("loss", "weights") and name in parity["steps"]:
            chart = parity_chart("training step", parity["steps"][name])
            found.append((f"{words.capitalize()} at each step", "", chart))
    return found


def columns(rows):
    return {key: [row[key] for row in rows] for key in ("difference", "tolerance", "float64")}


def parity_chart(label, values):
    """One chart of differences, their tolerance and what is left of them in float64."""
    chart = Chart(label, "relative difference")
    for key, text, style in (
        ("difference", "float32", "-"),
        ("tolerance", "tolerance", ":"),
        ("float64", "float64", (0, (4, 2))),
    ):
        numbers = finite(values[key])
        numbers = np.maximum(numbers, SMALLEST_ROUNDING)  # NaN, where nothing is, stays NaN
        chart.axes.semilogy(
            np.arange(1, len(numbers) + 1),
            numbers,
            color=INK_COLOR,
            linestyle=style,
            linewidth=1.4,
            marker="o" if len(numbers) == 1 else None,
            label=text,
        )
    return chart.svg()


def picture(entry, folder):
    """One of the report's pictures with its file as data URI; `source` is None if it is missing."""
    path = Path(folder) / entry["file"]
    source = None
    if path.is_file():
        source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    return {"title": "", "note": "", **entry, "source": source}


def complete(report):
    """The report as plain values, with something empty where a part is missing."""
    empty = {"experiment": {}, "machine": {}, "checks": [], "pictures": [], "hand_over": []}
    empty |= {"loss_difference": [], "class_names": [], "palette": [], "notes": []}
    empty |= dict.fromkeys(("parameters", "disagreement", "loss_tolerance", "command", "parity"))
    empty |= dict.fromkeys(("version", "created"), "")
    known = {name: value for name, value in plain(report).items() if value is not None}
    known["backends"] = {name: backend or {} for name, backend in known["backends"].items()}
    return {**empty, **known}


def passed_mark(passed):
    return "–" if passed is None else "✓" if passed else "✕"


def color(report, backend):
    others = [name for name in report["backends"] if name not in COLORS]
    if backend in COLORS:
        return COLORS[backend]
    return OTHER_COLORS[others.index(backend) % len(OTHER_COLORS)]


def ratio_headings(report):
    names = [display_name(name) for name in report["backends"]]
    return [f"{name} / {names[0]}" for name in names[1:]]


def factor(value, reference):
    return value / reference if value is not None and reference else None


def median(value):
    """The number itself, or the median of a dict of statistics."""
    return value.get("median") if isinstance(value, dict) else value


def percentiles(value):
    """The 10th and the 90th percentile of a dict of statistics; else None and None."""
    return (value.get("p10"), value.get("p90")) if isinstance(value, dict) else (None, None)


def spread(value):
    """The same as text; nothing where there are none."""
    low, high = percentiles(value)
    return "" if low is None or high is None else f"{show(low)} to {show(high)}"


def dig(value, *keys):
    """What stands at a path of keys, None where a part of the path is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def last_line(backend):
    lines = str(backend.get("error") or "").strip().splitlines()
    return f" ({lines[-1].strip()[:200]})" if lines else ""
