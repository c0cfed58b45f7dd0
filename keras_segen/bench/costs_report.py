"""What a step costs, as one self-contained HTML page and in the terminal: see `costs.py`."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from rich.table import Table
from rich.text import Text

from keras_segen.bench import costs
from keras_segen.compare.report import COLORS, DASHES, Chart, display_name
from keras_segen.files import write_text
from keras_segen.plot import INK_COLOR
from keras_segen.report.html import render, svg
from keras_segen.report.numbers import setting, show

TITLES = {"train": "Training step", "predict": "Prediction", "load": "Loader"}
MARKERS = "osD^vPX"
WIDE = 20  # from this factor between the smallest and the largest on, an axis is logarithmic


def write_page(result, folder):
    """Writes the page of a result beside its JSON; returns its path."""
    path = Path(folder) / f"{result['name']}.html"
    write_text(path, page(result))
    return path


def verdict(result):
    """Says in one sentence what a training step of the largest cell costs, least and most."""
    settings, processes = result["settings"], result["processes"]
    subject = Path(settings["experiment"]["model"]).name
    known = next((each["parameters"] for each in processes if "parameters" in each), None)
    if known is not None:
        subject += f" with {known:,} parameters"
    subject += f" on {count(settings['threads'], 'thread')}"
    done = [cell for cell in result["cells"] if "error" not in cell]
    if not done:
        return f"{subject}: nothing could be measured."
    last = done[-1]["image_size"], done[-1]["batch_size"]
    cells = [cell for cell in done if (cell["image_size"], cell["batch_size"]) == last]
    cells.sort(key=lambda cell: costs.value(cell, "train"))
    (height, width), batch_size = last
    text = f"{subject}: at {height}x{width} and batch {batch_size} a training step takes "
    text += f"{show(costs.value(cells[0], 'train'))} ms with {name(cells[0])}"
    if len(cells) > 1:
        most = f"{show(costs.value(cells[-1], 'train'))} ms with {name(cells[-1])}"
        text += f", the least of {len(cells)} modes, and {most}, the most"
    return f"{text}."


def name(row):
    """How a backend and mode are called."""
    return f"{display_name(row['backend'])}, {row['mode']}"


def count(number, thing):
    return f"{number} {thing}{'s' if number != 1 else ''}"


def sizes(result):
    """The cells, whoever measured them: list of (image size, batch size)."""
    found = ((tuple(cell["image_size"]), cell["batch_size"]) for cell in result["cells"])
    return list(dict.fromkeys(found))


def rows(result, describe):
    """A row per size: list of (size in words, what `describe(cell)` says of each process).

    None in place of a cell that is not there or failed.
    """
    found = []
    for image_size, batch_size in sizes(result):
        cells = [find(result, process, image_size, batch_size) for process in result["processes"]]
        row = [describe(cell) if cell and "error" not in cell else None for cell in cells]
        found.append((f"{image_size[0]}x{image_size[1]}, batch {batch_size}", row))
    return found


def lines(result, work):
    """The figures of a kind of work: `rows` of dicts with `ms`, `spread`, `cpu` and `was`."""
    earlier = (result["earlier"] or {}).get("ms", {})

    def describe(cell):
        ms, was = cell[work]["ms"], earlier.get(f"{costs.key(cell)}, {work}")
        return {
            "ms": show(ms["median"]),
            "spread": f"{show(ms['p10'])} to {show(ms['p90'])}",
            "cpu": show(cell[work]["cpu_ms"]["median"]),
            "was": f"was {show(was)} (now ×{ms['median'] / was:.2f})" if was else "",
        }

    return rows(result, describe)


def find(result, process, image_size, batch_size):
    """The cell of a process, or None."""
    for cell in result["cells"]:
        own = cell["backend"] == process["backend"] and cell["mode"] == process["mode"]
        if own and (tuple(cell["image_size"]), cell["batch_size"]) == (image_size, batch_size):
            return cell
    return None


def once(result):
    """What is paid once: `rows` of lists of texts."""

    def describe(cell):
        seconds, memory = cell["seconds"], cell["memory_mib"]
        texts = [
            f"first step {show(seconds['first_step'])} s",
            f"first prediction {show(seconds['first_predict'])} s",
            f"building {show(seconds['build'])} s",
            f"{memory['resident']:,.0f} MiB",
        ]
        return texts + ([f"device {memory['device']:,.0f} MiB"] if memory["device"] else [])

    return rows(result, describe)


def imports(result):
    """How long the processes took to start, as text."""
    found = (process.get("imports_seconds") for process in result["processes"])
    return ["–" if seconds is None else f"{show(seconds)} s" for seconds in found]


def failures(result):
    """What failed: list of (where, the error's line), each error of a process once."""
    found = {}
    for cell in result["cells"]:
        if "error" in cell:
            height, width = cell["image_size"]
            where = f"{height}x{width}, batch {cell['batch_size']}"
            found.setdefault((name(cell), cell["error"]), []).append(where)
    return [
        (f"{who}, {places[0] if len(places) == 1 else f'in {len(places)} cells'}", error)
        for (who, error), places in found.items()
    ]


def fits(result):
    """The fits as text: list of dicts of `who`, `what`, `unit` and the columns of the table."""
    return [
        {
            "who": name(row),
            "what": TITLES.get(row["what"], "Memory"),
            "unit": "MiB" if row["what"] == "memory" else "ms",
            **{part: show(row[part]) for part in ("fixed", "per_image", "per_megapixel")},
            "residual": "–" if row["residual"] is None else f"{100 * row['residual']:.1f} %",
            "cells": row["cells"],
        }
        for row in result["fits"]
    ]


def chart(result, what):
    """Draws a cost against the pixels of a step, a line per backend and mode; None for one cell.

    Args:
        result: dict as `costs.run` returns it.
        what: str, one of `costs.WORKS`, or `"memory"`.

    Returns:
        `markupsafe.Markup`, inline SVG.
    """
    if len(sizes(result)) < 2:
        return None
    chart = Chart("megapixels of a step", "MiB" if what == "memory" else "ms")
    counts, drawn = {}, []
    for process in result["processes"]:
        cells = [find(result, process, *each) for each in sizes(result)]
        cells = [cell for cell in cells if cell is not None and "error" not in cell]
        index = counts[process["backend"]] = counts.get(process["backend"], -1) + 1
        if not cells:
            continue
        pixels = [area * images for area, images in map(costs.size, cells)]
        values = np.array([costs.value(cell, what) for cell in cells])
        around = None
        if what != "memory":
            low, high = np.array(
                [[cell[what]["ms"][k] for k in ("p10", "p90")] for cell in cells]
            ).T
            around = np.maximum(0, [values - low, high - values])
        chart.axes.errorbar(
            pixels,
            values,
            around,
            color=COLORS.get(process["backend"], INK_COLOR),
            linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            linewidth=1.4,
            elinewidth=0.8,
            label=name(process),
        )
        drawn += [(x, y) for x, y in zip(pixels, values, strict=True)]
    if not drawn:
        return None
    x, y = np.array(drawn).T
    if max(x) > WIDE * min(x):
        chart.axes.set_xscale("log")
    else:
        chart.axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        chart.axes.set_xlim(left=0)
    if max(y) > WIDE * min(y):
        chart.axes.set_yscale("log")
        chart.axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        chart.axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        chart.axes.yaxis.set_minor_locator(NullLocator())
    else:
        chart.axes.set_ylim(bottom=0)
    chart.axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=2,
        frameon=False,
        labelcolor=INK_COLOR,
        fontsize=8.5,
        borderaxespad=0.2,
        handlelength=3.2,
    )
    label = f"{chart.axes.get_ylabel()} over {chart.axes.get_xlabel()}"
    return svg(chart.figure, label, [(code, f"var(--{each})") for each, code in COLORS.items()])


def page(result):
    """The HTML page as a str."""
    titles = {**TITLES, "memory": "Peak memory of the process"}
    charts = {title: chart(result, what) for what, title in titles.items()}
    return render(
        "costs.html.j2",
        {},
        result=result,
        verdict=verdict(result),
        charts={title: drawn for title, drawn in charts.items() if drawn},
        names=[name(process) for process in result["processes"]],
        works={
            work: {"title": TITLES[work], "note": note, "rows": lines(result, work)}
            for work, note in costs.WORKS.items()
        },
        imports=imports(result),
        once=once(result),
        fits=fits(result),
        failures=failures(result),
        meanings=meanings(result),
        settings=settings(result),
    )


def settings(result):
    """All that the figures depend on: list of (name, value as text)."""
    values = dict(result["settings"])
    values = {**values.pop("experiment"), **values}
    values["image_sizes"] = ["x".join(map(str, each)) for each in values["image_sizes"]]
    values["modes"] = [": ".join(pair) for pair in values["modes"]]
    values["rounds"] = result["rounds"]
    values |= {k: v for k, v in result["versions"].items() if v}
    return [
        (k, "; ".join(map(str, v)) if isinstance(v, list) else setting(v))
        for k, v in values.items()
    ]


def meanings(result):
    """What each process ran: list of (name, in words)."""
    found = []
    for process in result["processes"]:
        text = (
            f"{process['meaning']}: run_eagerly={process['run_eagerly']}, "
            f"jit_compile={process['jit_compile']}, {process['precision']}"
        )
        if "settings" in process:
            own = process["settings"]
            text += f"; {count(own['threads'], 'thread')}, {own['layout']}, {own['device']}"
            if "replacements" in own:  # not in files of before
                text += f"; replaced in Keras: {own['replacements']}"
        if "auto" in process:
            text += f"; “auto” would be jit_compile={process['auto']}"
        found.append((name(process), text))
    return found


def print_result(result, console, folder):
    """Prints what was measured, what it means, and where it lies.

    Args:
        result: dict as `costs.run` returns it.
        console: a `rich.console.Console`.
        folder: the folder that it was written into.
    """
    console.print()
    console.print(Text(verdict(result), "bold"), soft_wrap=True)
    for who, text in meanings(result):
        console.print(Text(f"{who}: {text}"), soft_wrap=True)
    for note in result["notes"]:
        console.print(Text(note, "yellow"), soft_wrap=True)
    for work, note in costs.WORKS.items():
        console.print(Text(f"{TITLES[work]}: {note}.", "dim"), soft_wrap=True)
    title = "A step, ms: median, p10 to p90, CPU time; first step and peak memory so far"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for heading in ("train", "predict", "load", "first, s", "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    by_work = [dict(lines(result, work)) for work in costs.WORKS]
    for image_size, batch_size in sizes(result):
        where = f"{image_size[0]}x{image_size[1]}, batch {batch_size}"
        table.add_row(Text(where, "bold"))
        for index, process in enumerate(result["processes"]):
            cell = find(result, process, image_size, batch_size)
            if cell is None or "error" in cell:
                table.add_row(Text(name(process)), "failed" if cell else "–")
                continue
            shown = [by_size[where][index] for by_size in by_work]
            table.add_row(
                Text(name(process)),
                *(
                    Text.assemble(
                        each["ms"],
                        (f"\n{each['spread']}\nCPU {each['cpu']}", "dim"),
                        (f"\n{each['was']}" if each["was"] else "", "dim"),
                    )
                    for each in shown
                ),
                show(cell["seconds"]["first_step"]),
                f"{cell['memory_mib']['resident']:,.0f}",
            )
    console.print()
    console.print(table)
    growth = fits(result)
    if growth:
        table = Table(
            title="How a step's cost grows", title_justify="left", title_style="bold", box=None
        )
        for heading in ("", "", "fixed", "per image", "per megapixel", "unit", "left over"):
            right = heading not in ("", "unit")
            table.add_column(heading, justify="right" if right else "left")
        for row in growth:
            parts = (row[part] for part in ("fixed", "per_image", "per_megapixel"))
            table.add_row(row["what"], Text(row["who"]), *parts, row["unit"], row["residual"])
        console.print()
        console.print(table)
    for where, error in failures(result):
        console.print(Text.assemble(("failed: ", "bold red"), f"{where}: {error}"), soft_wrap=True)
    if result["earlier"]:
        console.print(f"Compared with the result of {result['earlier']['time']}.", highlight=False)
    if result["status"] == "interrupted":
        console.print("Interrupted; what was measured until then is kept.")
    if result["cells"]:
        path = Path(folder) / f"{result['name']}.html"
        console.print(Text(f"Page: {path}; all numbers in the .json beside it"), soft_wrap=True)
