"""The results of a comparison as report.json, as a self-contained HTML page, and in the terminal.

The report is a plain dict, written by `compare/run.py`; any part of it may be missing, because a
backend may have failed or been interrupted at any moment.
"""

import base64
from pathlib import Path

import numpy as np
from rich.text import Text

from keras_segen.compare import seeds, turns
from keras_segen.compare.layerwise import divergence
from keras_segen.compare.layerwise import report as layers
from keras_segen.files import write_json, write_text
from keras_segen.plot import finite
from keras_segen.report.charts import COLORS, OTHER_COLORS, Chart
from keras_segen.report.html import render
from keras_segen.report.numbers import display_name, listing, plain, setting, show
from keras_segen.report.tables import Cell, Column, Table, settings_table
from keras_segen.tasks import fields, registry
from keras_segen.tasks.task import Task

SMALLEST_DIFFERENCE = 1e-9  # what the logarithmic axis shows for "equal"

STATUS = {
    "passed": ("✓", "Passed", "green"),
    "parted": ("≠", "Parted", "red"),
    "failed": ("✕", "Failed", "red"),
    "interrupted": ("◼", "Interrupted", "yellow"),
}

# Of a check: sign, word, mark of `report.tables.Cell`.
RESULTS = {
    True: ("✓", "passed", "good"),
    False: ("✕", "failed", "bad"),
    None: ("–", "not measured", "careful"),
}
RESULT = Column("Result", str, numeric=False)

# label, unit, path in a backend's part of the report, digits; the task adds its own
FIGURES = (
    ("Training step, in the training", "ms", ("milliseconds", "step"), 3),
    ("Waiting for a batch, in training", "ms", ("milliseconds", "wait"), 3),
    ("Loader time per batch, by itself", "ms", ("milliseconds", "loader"), 3),
    ("First step", "s", ("seconds", "first_step"), 3),
    ("Start-up: imports", "s", ("seconds", "imports"), 3),
    ("Start-up: building the model", "s", ("seconds", "build"), 3),
    ("Training", "s", ("seconds", "training"), 3),
    ("Whole process", "s", ("seconds", "total"), 3),
    ("Peak memory, process", "MiB", ("memory_mib", "peak_resident"), 4),
    ("Peak memory, device", "MiB", ("memory_mib", "peak_device"), 4),
)
CARDS = ("Peak memory, process", "First step")


def write_report(report, folder):
    """Writes `report.json` and `report.html` into a folder, each whole or not at all.

    Args:
        report: dict as `compare/run.py` makes it; NaN and infinity are written as null.
        folder: the folder; it already holds the files named under `"pictures"`.

    Returns:
        `pathlib.Path` of `report.html`.
    """
    folder = Path(folder)
    write_json(folder / "report.json", plain(report))
    write_text(folder / "report.html", page(report, folder))
    return folder / "report.html"


def print_report(report, console, folder):
    """Prints the verdict, the figures, the checks and the path of the report.

    Args:
        report: dict as for `write_report`.
        console: a `rich.console.Console`.
        folder: the folder that `write_report` wrote to.
    """
    report = complete(report)
    sign, word, color = STATUS[report["status"]]
    console.print()
    console.print(Text.assemble((f"{sign} {word}  ", f"bold {color}"), verdict(report)))
    for note in report["notes"]:
        console.print(Text(note, "yellow"), soft_wrap=True)

    if report["parity"]:
        console.print()
        console.print(Text(report["parity"]["sentence"], "bold"))
        for line in layers.lines(report["parity"]):
            console.print(Text(line))
    for table in (figures_table(report), seeds_table(report), checks_table(report)):
        if table.rows:
            console.print()
            console.print(table.to_rich())
    for name, backend in report["backends"].items():
        if backend.get("error"):
            console.print()
            console.print(Text(f"{display_name(name)} {backend.get('status')}:", "bold red"))
            console.print(Text(str(backend["error"]).rstrip()))
    console.print()
    console.print(Text(f"Report: {Path(folder) / 'report.html'}"), soft_wrap=True)


def verdict(report):
    """The comparison and its result in one sentence.

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
        result = f"from the same weights and batches {kind_of_task(report).result}"
        if len(backends) > 2:
            result = result.replace("both", "all")
        result += f", all {len(checks)} checks passed" if checks else ""
    told = in_figures(kind_of_task(report), backends, report["speed"])
    return f"{subject}: {result}{told}{of_seeds(report)}."


def data_name(data):
    """A data set's name with the last part of its path: `folder:photos`."""
    name, colon, path = data.partition(":")
    return f"{name}{colon}{Path(path).name}"


def in_figures(kind, backends, speed):
    """The end of the verdict: known times, memory and figures of the models."""
    parts = turns.claims(speed) if speed else []
    for key, figure in (("peak_device", "device memory"), ("peak_resident", "memory")):
        peaks = {name: dig(backend, "memory_mib", key) for name, backend in backends.items()}
        if None not in peaks.values():
            found = listing(f"{show(peak)} MiB{on(n, peaks)}" for n, peak in peaks.items())
            parts.append(f"{figure} peaked at {found}")
            break
    for key, (_, _, digits, figure) in kind.figures.items():
        if not figure:
            continue
        scores = {name: dig(backend, "metrics", key) for name, backend in backends.items()}
        if None in scores.values():
            continue
        shown = {name: show(score, digits) for name, score in scores.items()}
        if len(set(shown.values())) == 1 and len(shown) > 1:
            parts.append(f"{figure} is {next(iter(shown.values()))} on each")
        else:
            parts.append(f"{figure} is " + listing(f"{s}{on(n, shown)}" for n, s in shown.items()))
    return "; " + "; ".join(parts) if parts else ""


def of_seeds(report):
    """What the verdict says of several seeds: of the first figure."""
    found = report["seeds"]
    if not found or not found["rows"]:
        return ""
    figure = kind_of_task(report).figures[found["rows"][0]["figure"]]
    names = [display_name(name) for name in found["backends"]]
    return "; " + seeds.claim(found["rows"][0], figure, names)


def equal_machine(backends):
    """Device and threads in brackets, if known and the same for each backend."""
    found = {
        (dig(backend, "settings", "device"), dig(backend, "settings", "threads"))
        for backend in backends.values()
    }
    device, threads = found.pop()
    if found or device is None or threads is None:
        return ""
    return f" ({device}, {threads} thread{'s' if threads != 1 else ''})"


def kind_of_task(report):
    """The kind of task of a report; the base of all if it is unknown."""
    try:
        return registry.kind_of(report["experiment"].get("model") or "unet")
    except ValueError:
        return Task


def steps_done(backend):
    return max((len(losses) for losses in (backend.get("losses") or {}).values()), default=0)


def planned(backend, task):
    if not backend.get("steps_per_epoch") or not task.get("epochs"):
        return ""
    return f" of {backend['steps_per_epoch'] * task['epochs']}"


def on(name, backends):
    return f" on {display_name(name)}" if len(backends) > 1 else ""


def parting_step(report):
    """The step at which the losses diverged, if the report has a tolerance."""
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
    rows, kind = speed_rows(report), kind_of_task(report)
    work, label = kind.work
    own = [
        (label, "ms", ("milliseconds", work), 3),
        *((f.label, f.unit, ("metrics", name), f.digits) for name, f in kind.figures.items()),
    ]
    for label, unit, keys, digits in (*FIGURES, *own):
        row = _row(label, unit, [dig(each, *keys) for each in report["backends"].values()], digits)
        if unit in ("ms", "s"):  # not measured by turns: a ratio would mean nothing
            row["ratios"], row["factors"] = ["–"] * len(row["ratios"]), [None] * len(row["ratios"])
        if any(value is not None for value in row["values"]):
            rows.append(row)
    sizes = report.get("installed_mib") or {}
    if sizes:
        sizes = [sizes.get(name) for name in report["backends"]]
        rows.append(_row("On disk, the framework and what it needs", "MiB", sizes, 4))
    return rows


def speed_rows(report):
    """The speeds measured by turns, as rows of `figures`; none without them."""
    speed, names = report["speed"], list(report["backends"])
    if not speed:
        return []
    rows, largest = [], max((cell["batch_size"] for cell in speed["cells"]), default=None)
    for work, label in (("train", "Training"), ("predict", "Prediction")):
        for cell in speed["cells"]:
            if cell["work"] != work:
                continue
            images, batch = 1e3 * cell["batch_size"], cell["batch_size"]
            for key, words in (("ms", ""), ("stock_ms", ", Keras as it ships")):
                if not cell[key]:
                    continue
                values = [median(cell[key].get(name)) for name in names]
                values = [None if each is None else images / each for each in values]
                row = _row(f"{label}, batch {batch}{words}", "images per second", values)
                ratio = cell["ratio"]
                row["ratios"] = ["–"] * len(row["ratios"])
                if key == "ms" and ratio and cell["others_busy"] < turns.BUSY:
                    low, high = 1 / ratio["high"], 1 / ratio["low"]
                    row["ratios"] = [f"{1 / ratio['value']:.2f} ({low:.2f} to {high:.2f})"]
                rows.append({**row, "card": key == "ms" and batch == largest})
    start = [speed["start"].get(name) for name in names]
    rows.append(_row("Start to first prediction", "s", start))
    return rows


def _row(label, unit, measured, digits=3):
    """A row of `figures`: of numbers, or of dicts of statistics, whose medians are the values."""
    values = [median(each) for each in measured]
    known = [value for value in values if value is not None]
    whole = 1 if unit == "0 to 1" else max(known, default=0)
    factors = [factor(value, values[0]) for value in values[1:]]
    return {
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


def figures_table(report):
    """`figures` as a `keras_segen.report.tables.Table`."""
    headings = ratio_headings(report)
    note = (
        "Times of steps and batches are medians, with the 10th to the 90th percentile below; the "
        "first step is counted apart."
    )
    if len(headings) == 1:
        note += f" The ratio is {headings[0]}."
        headings = ["Ratio"]
    rows = [
        [
            f"{row['label']}, {row['unit']}".removesuffix(", "),
            *(
                Cell(value, (spread,) if spread else ())
                for value, spread in zip(row["shown"], row["spreads"], strict=True)
            ),
            *row["ratios"],
        ]
        for row in figures(report)
    ]
    return Table("Figures", ["Figure", *backend_columns(report), *headings], rows, note)


def checks_table(report):
    """The checks against tolerances, as a `Table`."""
    rows = []
    for check in report["checks"]:
        below = "; ".join(filter(None, (check.get("unit"), check.get("note"))))
        sign, word, mark = RESULTS[check.get("passed")]
        rows.append(
            [
                Cell(check.get("name"), (below,) if below else ()),
                check.get("measured"),
                check.get("tolerance"),
                Cell(f"{sign} {word}", mark=mark),
            ]
        )
    columns = ["Check", "Measured", "Tolerance", RESULT]
    return Table("Checks", columns, rows, marked=not_passed(report["checks"]))


def seeds_table(report):
    """What the frameworks change and what the seeds, as a `Table`."""
    found, kind = report["seeds"] or {"rows": []}, kind_of_task(report)
    rows = [
        [kind.figures[row["figure"]].label, *seeds.cells(row, kind.figures[row["figure"]].digits)]
        for row in found["rows"]
    ]
    note = ""
    if rows:
        note = (
            f"Trained with the seeds {listing(map(str, found['seeds']))}: mean and standard "
            "deviation. The difference is that of the backends at the same seed, its mean with "
            "the 95 % interval; the last column is the deviation from seed to seed on a backend."
        )
    first = ["Figure", *backend_columns(report)]
    return Table("Seeds", [*first, "Difference", "Deviation of the seeds"], rows, note)


def hand_over_table(report):
    """The results of handed-over models, as a `Table`."""
    kind = kind_of_task(report)
    rows = []
    for row in report["hand_over"]:
        sign, _, mark = RESULTS[row.get("passed")]
        rows.append(
            [
                f"{display_name(row.get('trained_on'))}, {display_name(row.get('run_on'))}",
                *(row.get(key) for key, _ in kind.handed_over),
                Cell(sign, mark=mark),
            ]
        )
    columns = ["Trained on, run on", *(column for _, column in kind.handed_over), RESULT]
    note = "The model saved by one backend, loaded and run by the other, on the same "
    note += f"{kind.inputs_are}."
    return Table("Hand-over", columns, rows, note, marked=not_passed(report["hand_over"]))


def not_passed(rows):
    """The numbers of the rows that did not pass."""
    return {number for number, row in enumerate(rows) if row.get("passed") is False}


VERSION = "framework"  # among the settings of a backend: which release it is, and no setting


def compared_settings(report):
    """Every setting of every backend, as a `Table`; those that differ stand out."""
    backends = list(report["backends"].values())
    names = dict.fromkeys(name for backend in backends for name in backend.get("settings") or {})
    rows, differing = [], set()
    for name in names:
        values = [setting(dig(backend, "settings", name)) for backend in backends]
        if len(set(values) - {"–"}) > 1 and name != VERSION:
            differing.add(len(rows))
            name += " ≠"
        rows.append([name, *values])
    note = ""
    if sum(bool(backend.get("settings")) for backend in backends) > 1:
        settings = len(rows) - (VERSION in names)
        note = f"{len(differing)} of {settings} settings differ between the backends"
        note += "; they are marked with ≠." if differing else "."
    columns = ["Setting", *backend_columns(report, numeric=False)]
    return Table("Settings that affect speed", columns, rows, note, marked=differing)


def replacements_table(report):
    """The replacements in Keras on each backend, and reasons for missing ones, as a `Table`."""
    of_each = [backend.get("replacements") or {} for backend in report["backends"].values()]
    rows = [
        [name, *(found.get(name) for found in of_each)]
        for name in dict.fromkeys(name for found in of_each for name in found)
    ]
    columns = ["Replacement", *backend_columns(report, numeric=False)]
    return Table("Replaced in Keras", columns, rows)


def backend_columns(report, numeric=True):
    """A column for each backend, with its color."""
    return [
        Column(display_name(name), numeric=numeric, swatch=css(report, name))
        for name in report["backends"]
    ]


def css(report, name):
    """The color of a backend on the page."""
    return f"var(--{name})" if name in COLORS else color(report, name)


def page(report, folder):
    """The HTML page as a str. `folder` holds the pictures."""
    report = complete(report)
    kind = kind_of_task(report)
    rows = figures(report)
    cards = [*CARDS, *(figure.label for figure in kind.figures.values() if figure.headline)]
    experiment = report["experiment"] and fields.applying(kind, report["experiment"]) | {
        "parameters": report["parameters"]
    }
    words = {"memory_gib": "memory, GiB"}
    found = {words.get(name, name): value for name, value in report["machine"].items()}
    return render(
        "report.html.j2",
        report=report,
        status=STATUS[report["status"]],
        verdict=verdict(report),
        section=kind.section,
        disagreement=(
            kind.describe_disagreement(report["disagreement"]) if report["disagreement"] else ""
        ),
        css={name: css(report, name) for name in report["backends"]},
        cards=[row for row in rows if row["label"] in cards or row.get("card")],
        ratio_headings=ratio_headings(report),
        tables=[
            table
            for table in (
                checks_table(report),
                figures_table(report),
                seeds_table(report),
                *kind.compared_tables(report, backend_columns(report)),
                hand_over_table(report),
                compared_settings(report),
                replacements_table(report),
                settings_table(experiment, "Experiment"),
                settings_table(found, "Machine"),
            )
            if table.rows
        ],
        charts=charts(report),
        parity=report["parity"] and layers.parts(report["parity"]),
        pictures=[picture(entry, folder) for entry in report["pictures"]],
    )


def charts(report):
    """The charts as inline SVG: list of (title, note, Markup)."""
    quantities, tolerance = (
        kind_of_task(report).quantities,
        dig(report, "loss_tolerance", "relative"),
    )
    found, losses = [], series(report, "losses")
    for loss, of_each in losses.items():
        if any(np.isfinite(values).any() for values in of_each.values()):
            name = quantities.get(loss, loss.replace("_", " ").replace("rpn", "RPN"))
            chart = line_chart(report, "training step", name, of_each)
            title = f"{name[0].upper()}{name[1:]} of every step"
            note = "Where the lines coincide, the dashes are on the line."
            found.append((title, note if len(chart.axes.lines) > 1 else "", chart.svg()))

    differences = finite(report["loss_difference"])
    if np.isfinite(differences).any():
        chart = Chart("training step", "relative difference")
        # NaN, where nothing is, stays NaN.
        chart.logarithmic(np.maximum(differences, SMALLEST_DIFFERENCE), "difference")
        note = "Of the two losses at each step; both start from the same weights."
        if len(losses) > 1:
            named = listing(quantities.get(loss, loss) for loss in losses)
            note = (
                f"The largest of {named}, relative to the largest loss of the step; both "
                "start from the same weights."
            )
        if (differences <= SMALLEST_DIFFERENCE).any():
            note += " Equal losses are drawn at 10⁻⁹."
        if tolerance:
            chart.logarithmic(tolerance[: len(differences)], "tolerance", ":")
            note += (
                f" The tolerance holds for the first {len(tolerance)} steps."
                f" It is {show(kind_of_task(report).least_loss_tolerance)}, or ten times what one "
                "rounding of the first weights does to the losses of each backend, if that is more."
            )
        found.append(("Relative difference of the losses", note, chart.svg()))

    history = series(report, "history")
    for key, quantity in quantities.items():
        of_each = history.get(key, {})
        if max((np.isfinite(values).sum() for values in of_each.values()), default=0) > 1:
            chart = line_chart(report, "epoch", quantity, of_each, marker="o")
            title = f"{quantity[0].upper()}{quantity[1:]} after every epoch"
            found.append((title, "", chart.svg()))
    return found


def series(report, key):
    """The numbers of all backends under a key: dict of name -> dict of backend -> array."""
    backends = report["backends"]
    names = dict.fromkeys(name for each in backends.values() for name in each.get(key) or {})
    return {
        name: {backend: finite(dig(each, key, name) or []) for backend, each in backends.items()}
        for name in names
    }


def line_chart(report, x_label, y_label, of_each, marker=None):
    """A chart with a line for each backend."""
    chart = Chart(x_label, y_label)
    for backend, values in of_each.items():
        chart.line(values, display_name(backend), color(report, backend), marker)
    return chart


def picture(entry, folder):
    """One of the report's pictures with its file as data URI; `source` is None if it is missing."""
    path = Path(folder) / entry["file"]
    source = None
    if path.is_file():
        source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    return {"title": "", "note": "", **entry, "source": source}


def complete(report):
    """The report as plain values, with empty values for missing parts."""
    empty = {"experiment": {}, "machine": {}, "checks": [], "pictures": [], "hand_over": []}
    empty |= {"loss_difference": [], "class_names": [], "palette": [], "notes": []}
    empty |= dict.fromkeys(
        ("parameters", "disagreement", "loss_tolerance", "command", "parity", "speed", "seeds")
    )
    empty |= dict.fromkeys(("version", "created"), "")
    known = {name: value for name, value in plain(report).items() if value is not None}
    known["backends"] = {name: backend or {} for name, backend in known["backends"].items()}
    return {**empty, **known}


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
    """The percentiles as text, empty without them."""
    low, high = percentiles(value)
    return "" if low is None or high is None else f"{show(low)} to {show(high)}"


def dig(value, *keys):
    """The value at a path of keys; None if a part of the path is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def last_line(backend):
    lines = str(backend.get("error") or "").strip().splitlines()
    return f" ({lines[-1].strip()[:200]})" if lines else ""
