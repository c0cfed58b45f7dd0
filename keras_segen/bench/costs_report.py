"""The cost of a step as a self-contained HTML page and in the terminal, see `costs.py`."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from rich.text import Text

from keras_segen.bench import costs
from keras_segen.files import write_text
from keras_segen.plot import INK_COLOR
from keras_segen.report.charts import COLORS, DASHES, Chart
from keras_segen.report.html import render
from keras_segen.report.numbers import display_name, show
from keras_segen.report.tables import Cell, Column, Table, settings_table
from keras_segen.tasks.fields import applying
from keras_segen.tasks.registry import kind_of

TITLES = {"train": "Training step", "predict": "Prediction", "load": "Loader"}
MARKERS = "osD^vPX"
WIDE = 20  # from this factor between the smallest and the largest on, an axis is logarithmic


def write_page(result, folder):
    """Writes the page of a result beside its JSON; returns its path."""
    path = Path(folder) / f"{result['name']}.html"
    write_text(path, page(result))
    return path


def verdict(result):
    """The least and the most cost of a training step of the largest cell, in one sentence."""
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
    """The name of a backend and mode."""
    return f"{display_name(row['backend'])}, {row['mode']}"


def count(number, thing):
    return f"{number} {thing}{'s' if number != 1 else ''}"


def sizes(result):
    """The cells of all processes: list of (image size, batch size)."""
    found = ((tuple(cell["image_size"]), cell["batch_size"]) for cell in result["cells"])
    return list(dict.fromkeys(found))


def find(result, process, image_size, batch_size):
    """The cell of a process, or None."""
    for cell in result["cells"]:
        own = cell["backend"] == process["backend"] and cell["mode"] == process["mode"]
        if own and (tuple(cell["image_size"]), cell["batch_size"]) == (image_size, batch_size):
            return cell
    return None


def step_table(result, image_size, batch_size):
    """The cost of a step at one size, a row for each process: a `Table`."""
    rows = []
    for process in result["processes"]:
        cell = find(result, process, image_size, batch_size)
        row = [None] * 5
        if cell and "error" in cell:
            row[0] = Cell("failed", mark="bad")
        elif cell:
            seconds, memory = cell["seconds"], cell["memory_mib"]
            first = [f"prediction {show(seconds['first_predict'])}"]
            first.append(f"building {show(seconds['build'])}")
            device = [f"device {memory['device']:,.0f}"] if memory["device"] else []
            row = [work_cell(result, cell, work) for work in costs.WORKS]
            row += [Cell(seconds["first_step"], first), Cell(round(memory["resident"]), device)]
        rows.append([name(process), *row])
    columns = ["", *(f"{work}, ms" for work in costs.WORKS), "first step, s", "peak, MiB"]
    return Table(f"{image_size[0]}x{image_size[1]}, batch {batch_size}", columns, rows)


def work_cell(result, cell, work):
    """The time of a kind of work; below it its range, the CPU time, and the earlier result."""
    ms, was = cell[work]["ms"], result["earlier"] and result["earlier"]["ms"]
    was = was and was.get(f"{costs.key(cell)}, {work}")
    below = [f"{show(ms['p10'])} to {show(ms['p90'])}"]
    below.append(f"CPU {show(cell[work]['cpu_ms']['median'])}")
    if was:
        below.append(f"was {show(was)} (now ×{ms['median'] / was:.2f})")
    return Cell(ms["median"], below)


def growth_table(result):
    """The fits: a `Table`."""
    columns = ["what", Column("backend, mode", numeric=False), "fixed", "per image"]
    columns += ["per megapixel", Column("unit", numeric=False), "left over", "cells"]
    rows = [
        [
            TITLES.get(row["what"], "Memory"),
            name(row),
            *(row[part] for part in ("fixed", "per_image", "per_megapixel")),
            "MiB" if row["what"] == "memory" else "ms",
            None if row["residual"] is None else f"{100 * row['residual']:.1f} %",
            row["cells"],
        ]
        for row in result["fits"]
    ]
    return Table("How a step's cost grows", columns, rows)


def mode_table(result):
    """The mode of each process, and its start-up time: a `Table`."""
    rows = []
    for process in result["processes"]:
        text = (
            f"{process['meaning']}: run_eagerly={process['run_eagerly']}, "
            f"jit_compile={process['jit_compile']}, {process['precision']}"
        )
        if "settings" in process:
            own = process["settings"]
            text += f"; {count(own['threads'], 'thread')} within an operation, "
            text += f"{own['inter-op threads']} side by side, {own['layout']}, {own['device']}"
        if "replacements" in process.get("settings", {}):  # not in older files
            text += f"; replaced in Keras: {own['replacements']}"
        if "auto" in process:
            text += f"; “auto” would be jit_compile={process['auto']}"
        rows.append([name(process), text, process.get("imports_seconds")])
    return Table("Modes", ["", Column("what runs", numeric=False), "imports, s"], rows)


def failure_table(result):
    """The errors, each error of a process once: a `Table`."""
    found = {}
    for cell in result["cells"]:
        if "error" in cell:
            height, width = cell["image_size"]
            where = f"{height}x{width}, batch {cell['batch_size']}"
            found.setdefault((name(cell), cell["error"]), []).append(where)
    rows = [
        [f"{who}, {places[0] if len(places) == 1 else f'in {len(places)} cells'}", error]
        for (who, error), places in found.items()
    ]
    return Table("What failed", ["where", Column("error", numeric=False)], rows)


def setting_table(result):
    """Everything that the figures depend on: a `Table`."""
    values = dict(result["settings"])
    experiment = values.pop("experiment")
    values = {**applying(kind_of(experiment["model"]), experiment), **values}
    values["image_sizes"] = ["x".join(map(str, each)) for each in values["image_sizes"]]
    values["modes"] = [": ".join(pair) for pair in values["modes"]]
    values["rounds"] = result["rounds"]
    values |= {k: v for k, v in result["versions"].items() if v}
    return settings_table(values)


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
    return chart.svg(columns=2)


def page(result):
    """The HTML page as a str."""
    titles = {**TITLES, "memory": "Peak memory of the process"}
    charts = {title: chart(result, what) for what, title in titles.items()}
    return render(
        "costs.html.j2",
        result=result,
        verdict=verdict(result),
        charts={title: drawn for title, drawn in charts.items() if drawn},
        works={TITLES[work]: note for work, note in costs.WORKS.items()},
        steps=[step_table(result, *each) for each in sizes(result)],
        growth=growth_table(result),
        modes=mode_table(result),
        failures=failure_table(result),
        settings=setting_table(result),
    )


def print_result(result, console, folder):
    """Prints the figures, the verdict and the path of the page.

    Args:
        result: dict as `costs.run` returns it.
        console: a `rich.console.Console`.
        folder: the folder that it was written into.
    """
    console.print()
    console.print(Text(verdict(result), "bold"), soft_wrap=True)
    for note in result["notes"]:
        console.print(Text(note, "yellow"), soft_wrap=True)
    for work, note in costs.WORKS.items():
        console.print(Text(f"{TITLES[work]}: {note}.", "dim"), soft_wrap=True)
    console.print(Text("Median, 10th to 90th percentile, CPU time of all threads.", "dim"))
    steps = [step_table(result, *each) for each in sizes(result)]
    for table in (*steps, growth_table(result), mode_table(result), failure_table(result)):
        if table.rows:
            console.print()
            console.print(table.to_rich())
    if result["earlier"]:
        console.print(f"Compared with the result of {result['earlier']['time']}.", highlight=False)
    if result["status"] == "interrupted":
        console.print("Interrupted; what was measured until then is kept.")
    if result["cells"]:
        path = Path(folder) / f"{result['name']}.html"
        console.print(Text(f"Page: {path}; all numbers in the .json beside it"), soft_wrap=True)
