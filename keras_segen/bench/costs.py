"""The cost of a step on each framework, in each of its modes, and its growth with size.

Each backend and mode has its own process (`costs_child.py`), with its own memory and start-up. All
exist at once, but only one computes at a time. For each cell, an image size and a batch size, they
prepare one after the other and then take turns, round by round. Cells are in ascending order of
pixels, since the peak memory of a process never falls.
"""

import dataclasses
import datetime
import glob
import itertools
import json
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

from keras_segen import files, frameworks, machine
from keras_segen.bench.earlier import find_earlier
from keras_segen.compare.rounds import by_turns, check_counts
from keras_segen.processes import Worker, num_threads

# Modes of a step: values for Keras' `compile`, never "auto", and a description.
MODES = {
    "tensorflow": {
        "graph": (False, False, "one graph (tf.function), without XLA"),
        "eager": (True, False, "each operation by itself"),
        "xla": (False, True, "one graph (tf.function), compiled by XLA"),
    },
    "torch": {
        "eager": (False, False, "each operation by itself"),
        "compile": (False, True, "the step compiled by torch.compile"),
    },
}
PRECISIONS = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}  # after a "+"
DEFAULTS = {
    "tensorflow": ("graph", "eager", "xla", "graph+bfloat16"),
    "torch": ("eager", "compile", "eager+bfloat16"),
}
WORKS = {
    "train": "a step of fit, as in keras-segen train; the batch is in memory",
    "predict": "a batch from NumPy to NumPy",
    "load": "a batch of the shuffled, augmented training split, alone",
}
BUSY = 0.7  # of the time, at least, a step's threads work, or somebody else had the processor


def choose_modes(backends, modes=None):
    """Chooses the backends and modes: list of pairs (backend, mode).

    Args:
        backends: names of backends.
        modes: names of modes; each backend runs those that it has. A mode is a name out of
            `MODES`, alone or with a precision of `PRECISIONS`, such as `"graph+bfloat16"`. None
            for `DEFAULTS`.

    Raises:
        ValueError: there is no such mode, or none of the backends has it.

    Example:

    >>> choose_modes(["torch"], ["eager", "eager+bfloat16"])
    [('torch', 'eager'), ('torch', 'eager+bfloat16')]
    """
    chosen = [
        (backend, mode)
        for backend in dict.fromkeys(backends)
        for mode in dict.fromkeys(DEFAULTS[backend] if modes is None else modes)
        if mode.split("+")[0] in MODES[backend]
    ]
    for mode in modes or ():
        name, plus, precision = mode.partition("+")
        if plus and precision not in PRECISIONS:
            raise ValueError(
                f"The mode {mode!r} has the precision {precision!r}, expected "
                f"{' or '.join(PRECISIONS)}, such as {name}+bfloat16."
            )
        if not any(name in MODES[backend] for backend in backends):
            here = "; ".join(f"{backend}: {', '.join(MODES[backend])}" for backend in backends)
            raise ValueError(f"There is no mode {mode!r} here; there are, on {here}.")
    return chosen


def check(task, image_sizes, batch_sizes, steps, rounds):
    """Checks the arguments before a framework is imported.

    Raises:
        ValueError: a number is out of range, or the data set cannot give such batches.
    """
    check_counts(steps, rounds)
    for name, values in (("image sizes", image_sizes), ("batch sizes", batch_sizes)):
        if not values:
            raise ValueError(f"There are no {name}: name one at least.")
        if len(set(values)) < len(values):
            raise ValueError(f"The {name} are {list(values)}: name each once.")
    if min(batch_sizes) < 1:
        raise ValueError(f"batch_size is {min(batch_sizes)}, expected 1 or more.")
    for size in image_sizes:
        dataset = dataclasses.replace(task, image_size=size).load_data("train")
        task.check_images(dataset)
    if len(dataset) < 2 * max(batch_sizes):
        raise ValueError(
            f"batch_size is {max(batch_sizes)}, but the training split of {dataset.name} has "
            f"{len(dataset)} images, and the loader is measured on two batches at least: use a "
            "smaller one."
        )


def run(
    task,
    folder,
    image_sizes,
    batch_sizes,
    modes=None,
    backends=("tensorflow", "torch"),
    threads=None,
    steps=8,
    rounds=5,
    tell=lambda text: None,
):
    """Measures the cost of a step and writes the result into a folder.

    Args:
        task: a `keras_segen.tasks.task.Task`; its own image size and batch size do not count.
        folder: path; gets `costs-MODEL-TIME.json`. An earlier one of the same settings in it is
            what the result is compared with.
        image_sizes: list of `(height, width)`.
        batch_sizes: list of int; each is measured at each image size.
        modes: names as `choose_modes` takes them.
        backends: names of the backends.
        threads: int, for each process; None for one per core.
        steps: int, steps per round, at least 3; the first and the last are not timed.
        rounds: int, timed rounds.
        tell: called with a line of text now and then.

    Returns:
        Dict of plain values, as in the file: `status` (`"done"`, `"failed"`: a mode failed
        somewhere; `"interrupted"`: what was measured until then), `settings`, `versions`,
        `command`, `time`, `processes` (one dict per backend and mode), `cells` (one dict per
        backend, mode, image size and batch size: either `error` or the figures), `fits` (as
        `fit_all` returns them), `notes` (what makes the figures less worth, in sentences) and
        `earlier`, or None.

    Raises:
        ValueError: an argument, or what it asks of the model, is wrong.
        ModuleNotFoundError: a backend's framework is not installed.
    """
    for backend in backends:
        frameworks.require(backend)
    image_sizes, batch_sizes = [tuple(size) for size in image_sizes], list(batch_sizes)
    chosen = choose_modes(backends, modes)
    check(task, image_sizes, batch_sizes, steps, rounds)
    threads = num_threads(threads)
    for backend, mode in list(chosen):
        try:
            in_mode(task, mode)
        except ValueError as error:  # a network from a file has its own precision
            if modes is not None:
                raise
            chosen.remove((backend, mode))
            tell(f"{backend}, {mode} is left out: {error}")
    settings = conditions(task, image_sizes, batch_sizes, chosen, threads, steps)
    pattern = f"costs-{glob.escape(Path(task.model).stem)}-*.json"
    earlier = find_earlier(folder, pattern, settings, medians, "bench costs")

    result = {"status": "done", "processes": [], "cells": []}
    workers = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for number, (backend, mode) in enumerate(chosen):
                tell(f"starting {backend}, {mode} …")
                # Earlier results of torch.compile must not make its first step faster.
                cache = {"TORCHINDUCTOR_CACHE_DIR": str(Path(scratch) / f"compiled-{number}")}
                log = Path(scratch) / f"{number}.txt"
                workers.append(
                    Worker("keras_segen.bench.costs_child", backend, threads, log, **cache)
                )
                started = workers[-1].ask(
                    "start",
                    task=in_mode(task, mode).to_dict(),
                    image_sizes=image_sizes,
                    mode=switches(backend, mode),
                    steps=steps,
                    threads=threads,
                )
                if started.get("wrong"):
                    raise ValueError(started["error"].partition(": ")[2] or started["error"])
                result["processes"].append({**process(task, backend, mode), **started})
            sizes = itertools.product(image_sizes, batch_sizes)
            for image_size, batch_size in sorted(sizes, key=pixels):
                measure_cell(result, workers, image_size, batch_size, rounds, tell)
        except KeyboardInterrupt:
            result["status"] = "interrupted"
        finally:
            for worker in workers:
                worker.end()
    if result["status"] == "done" and any("error" in cell for cell in result["cells"]):
        result["status"] = "failed"
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "time": now.isoformat(timespec="seconds"),
        "command": shlex.join(["keras-segen", *sys.argv[1:]]),
        "settings": settings,
        "rounds": rounds,
        "versions": machine.versions(),
        **result,
        "fits": fit_all(result["cells"]),
        "notes": notes(result["processes"], result["cells"]),
        "earlier": earlier,
    }
    result["name"] = f"costs-{Path(task.model).stem}-{now:%Y%m%dT%H%M%SZ}"
    if result["cells"]:
        files.write_json(Path(folder) / f"{result['name']}.json", result)
    return result


def measure_cell(result, workers, image_size, batch_size, rounds, tell):
    """Measures one cell in all processes, by turns, and adds the figures to `result`."""
    where = f"{image_size[0]}x{image_size[1]}, batch {batch_size}"
    cells = []
    for worker, process in zip(workers, result["processes"], strict=True):
        tell(f"{where}: {process['backend']}, {process['mode']} …")
        cell = {
            "backend": process["backend"],
            "mode": process["mode"],
            "image_size": list(image_size),
            "batch_size": batch_size,
        }
        cells.append((worker, cell))
        opened = process  # one that could not start measures nothing
        if "error" not in process:
            opened = worker.ask("open", image_size=image_size, batch_size=batch_size)
        if "error" in opened:
            cell |= {"error": opened["error"], "details": opened["details"]}
            tell(f"{where}: {process['backend']}, {process['mode']} failed: {opened['error']}")
        else:
            process["auto"] = opened["auto"]
    for number, order in enumerate(by_turns(cells, rounds), 1):
        for worker, cell in order:
            if "error" not in cell:
                cell.update(worker.ask("run_round"))
        tell(f"{where}: round {number} of {rounds}")
    for worker, cell in cells:
        found = worker.ask("close")
        if "error" not in cell:
            cell.update(found)
        result["cells"].append(cell)


def in_mode(task, mode):
    """The task with the precision of a mode."""
    precision = mode.partition("+")[2]
    if not precision:
        return task
    return dataclasses.replace(task, precision=PRECISIONS[precision])


def switches(backend, mode):
    """The arguments of Keras' `compile` for a mode."""
    run_eagerly, jit_compile, _ = MODES[backend][mode.split("+")[0]]
    return {"run_eagerly": run_eagerly, "jit_compile": jit_compile}


def process(task, backend, mode):
    """The entry of a process before it starts."""
    return {
        "backend": backend,
        "mode": mode,
        "meaning": MODES[backend][mode.split("+")[0]][2],
        **switches(backend, mode),
        "precision": in_mode(task, mode).precision,
    }


def pixels(cell):
    """Sorts cells: by the pixels of a step, and of an image."""
    (height, width), batch_size = cell
    return height * width * batch_size, height * width


def conditions(task, image_sizes, batch_sizes, chosen, threads, steps):
    """Returns everything that the costs depend on except versions, as plain values."""
    here = machine.hardware()
    values = {
        "experiment": {
            name: value
            for name, value in task.to_dict().items()
            if name not in ("image_size", "batch_size")
        },
        "image_sizes": image_sizes,
        "batch_sizes": batch_sizes,
        "modes": chosen,
        "threads": threads,
        "steps": steps,
        **({"stock": True} if frameworks.stock_is_chosen() else {}),
        **{key: here[key] for key in ("processor", "cores")},
    }
    return json.loads(json.dumps(values))  # lists, as in a file


def medians(result):
    """The figures for comparison with a later result: dict with `ms`, by `key` and work."""
    found = {}
    for cell in result["cells"]:
        if "error" not in cell:
            found |= {f"{key(cell)}, {work}": value(cell, work) for work in WORKS}
    return {"ms": found}


def key(cell):
    """The name of a cell.

    >>> key({"backend": "torch", "mode": "eager", "image_size": [64, 48], "batch_size": 2})
    'torch, eager, 64x48, batch 2'
    """
    height, width = cell["image_size"]
    return f"{cell['backend']}, {cell['mode']}, {height}x{width}, batch {cell['batch_size']}"


def fit(sizes, values):
    """Fits the growth of a cost: a fixed part, a part per image, a part per megapixel.

    Least squares of the relative error, since the error of a time grows with it. The part per
    image can be separated from the others only if both sizes vary.

    Args:
        sizes: list of `(megapixels of an image, images of a step)`.
        values: the cost of a step for each: positive numbers.

    Returns:
        Dict with `fixed`, `per_image` (or None) and `per_megapixel` in the unit of the values,
        and `residual`, the relative standard deviation of the residuals, with the degrees of
        freedom of the fit; None without any. None instead of the dict for fewer than two
        different numbers of pixels.

    Example:

    >>> found = fit([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)], [5.0, 8.0, 7.0, 12.0])
    >>> {name: round(value, 6) for name, value in found.items()}
    {'fixed': 2.0, 'per_image': 1.0, 'per_megapixel': 20.0, 'residual': 0.0}
    """
    area, images = np.array(sizes, "float64").reshape(-1, 2).T
    values = np.array(values, "float64")
    parts = {"fixed": np.ones_like(area), "per_megapixel": area * images}
    if len(set(area)) > 1 and len(set(images)) > 1 and len(values) > 3:
        parts["per_image"] = images
    if len(set(parts["per_megapixel"])) < 2:
        return None
    columns = np.stack(list(parts.values()), axis=1) / values[:, None]
    found = np.linalg.lstsq(columns, np.ones_like(values), rcond=None)[0]
    left = len(values) - len(parts)
    residual = np.sqrt(((columns @ found - 1) ** 2).sum() / left) if left else None
    return {
        "fixed": float(found[0]),
        "per_image": float(found[2]) if "per_image" in parts else None,
        "per_megapixel": float(found[1]),
        "residual": None if residual is None else float(residual),
    }


def fit_all(cells):
    """Fits time and memory of each backend and mode over its cells.

    Returns:
        List of dicts: `backend`, `mode`, `what` (a name of `WORKS`, in ms, or `"memory"`, in
        MiB), `cells` (how many) and what `fit` returned.
    """
    rows = []
    measured = [cell for cell in cells if "error" not in cell]
    for what in (*WORKS, "memory"):
        for backend, mode in dict.fromkeys((cell["backend"], cell["mode"]) for cell in measured):
            own = [cell for cell in measured if (cell["backend"], cell["mode"]) == (backend, mode)]
            found = fit([size(cell) for cell in own], [value(cell, what) for cell in own])
            if found is not None:
                row = {"backend": backend, "mode": mode, "what": what, "cells": len(own)}
                rows.append({**row, **found})
    return rows


def size(cell):
    """Megapixels of an image, and images."""
    height, width = cell["image_size"]
    return height * width / 1e6, cell["batch_size"]


def value(cell, what):
    """The cost of a step: ms, or MiB of the process."""
    return cell["memory_mib"]["resident"] if what == "memory" else cell[what]["ms"]["median"]


def notes(processes, cells):
    """What makes the figures less reliable: list of sentences."""
    said = []
    known = [process["settings"] for process in processes if "settings" in process]
    for name in ("threads", "inter-op threads", "layout", "device"):
        values = {
            f"{process['backend']}, {process['mode']}": process["settings"][name]
            for process in processes
            if "settings" in process
        }
        if len(set(values.values())) > 1:
            text = "; ".join(f"{who}: {found}" for who, found in values.items())
            said.append(f"Not equal: {name} ({text}).")
    if known and all(settings["device"] == "CPU" for settings in known):
        shares = {
            key(cell): cell["train"]["cpu_ms"]["median"] / cell["train"]["ms"]["median"]
            for cell in cells
            if "error" not in cell
        }
        robbed = {name: share for name, share in shares.items() if share < BUSY}
        if robbed:
            worst = min(robbed, key=robbed.get)
            said.append(
                f"In {len(robbed)} of {len(shares)} cells training steps had the processor for "
                f"less than {BUSY:.0%} of their time, least in {worst}: {robbed[worst]:.0%}. Other "
                "programs were busy: times are too long; CPU time tells more."
            )
    return said
