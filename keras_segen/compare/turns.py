"""Which backend is faster, with its uncertainty: they take turns until the ratio is known.

Each backend has its own process, and only one of them computes at a time. In each round every one
takes some training steps and predictions, in every second round in reverse order, so that a
machine that slows down for a while affects all alike. The ratio of their times has a confidence
interval over the rounds; the rounds end when it is narrow, or the time is up. If other programs
use the processors, or the interval includes 1, there is no winner.
"""

import time

from keras_segen import machine
from keras_segen.compare.rounds import by_turns, milliseconds
from keras_segen.intervals import ratio_interval
from keras_segen.processes import Worker
from keras_segen.report.numbers import display_name, show

WORKS = {"train": "trains", "predict": "predicts"}
WIDTH = 0.05  # to each side, relative: an interval as narrow as this is enough
LEAST_ROUNDS, MOST_ROUNDS = 6, 200
NEAR = 0.03  # a ratio this near to 1 has no winner: a restart could move it as far
BUSY = 0.2  # processors: with more, other programs disturb the measurement


def take_turns(task, folder, backends, threads, seconds, modules=(), tell=lambda text: None):
    """Lets backends train and predict by turns.

    Args:
        task: a `keras_segen.tasks.Task`.
        folder: `pathlib.Path`, of the comparison; gets the logs of the processes.
        backends: names of the backends.
        threads: int, for each process.
        seconds: float, how long all rounds may take.
        modules: names of modules that the processes import first.
        tell: called with a line of text now and then.

    Returns:
        Dict of plain values: `start`, dict of backend -> seconds from its start to its first
        prediction; `cells`, one dict for each work and batch size: `work`, `batch_size`, `ms`
        and `stock_ms` (of each backend, as `rounds.milliseconds` gives them), `images_per_second`
        (of each backend), `ratio` (the second backend's time over the first one's, as
        `ratio_interval` gives it; None for one backend), `others_busy`; and `errors`, dict of
        backend -> what failed.
    """
    found = {"start": {}, "cells": [], "errors": {}}
    workers = {}
    try:
        for backend in backends:
            tell(f"{display_name(backend)} gets ready")
            log = folder / backend / "turns.txt"
            workers[backend] = Worker("keras_segen.compare.contender", backend, threads, log)
            started = workers[backend].ask(
                "start", task=task.to_dict(), modules=list(modules), threads=threads
            )
            if "error" in started:
                found["errors"][backend] = started["error"]
                return found
            found["start"][backend] = started["first_prediction"]
        sizes = sorted({max(1, task.batch_size // 2), task.batch_size})
        for batch_size in sizes:
            tell(f"by turns, batch {batch_size}")
            _measure(found, workers, batch_size, seconds / len(sizes), started["replaced"])
    finally:
        for worker in workers.values():
            worker.end()
    return found


def _measure(found, workers, batch_size, seconds, stock):
    """Measures one batch size in all processes, by turns."""
    sides = [(backend, "ours") for backend in workers]
    sides += [(backend, "stock") for backend in workers if stock]
    for backend, worker in workers.items():
        opened = worker.ask("open", batch_size=batch_size, stock=stock)
        if "error" in opened:
            found["errors"][backend] = opened["error"]
            return
    times = {work: {side: [] for side in sides} for work in WORKS}
    began, others = time.monotonic(), machine.OtherPrograms()
    for number, order in enumerate(by_turns(sides, MOST_ROUNDS), 1):
        for backend, side in order:
            taken = workers[backend].ask("take_round", side=side)
            if "error" in taken:
                found["errors"][backend] = taken["error"]
                return
            for work in WORKS:
                times[work][backend, side].append(taken[work])
        late = time.monotonic() - began > seconds
        if number >= LEAST_ROUNDS and (late or all(map(_is_narrow, times.values()))):
            break
    busy = round(others.busy(), 2)
    for worker in workers.values():
        worker.ask("close")
    for work, by_side in times.items():
        ours = {backend: by_side[backend, "ours"] for backend in workers}
        found["cells"].append(
            {
                "work": work,
                "batch_size": batch_size,
                "ms": {backend: milliseconds(each) for backend, each in ours.items()},
                "stock_ms": {
                    backend: milliseconds(each)
                    for (backend, side), each in by_side.items()
                    if side == "stock"
                },
                "images_per_second": {
                    backend: round(1e3 * batch_size / milliseconds(each)["median"], 1)
                    for backend, each in ours.items()
                },
                "ratio": _ratio(by_side),
                "others_busy": busy,
            }
        )


def _ratio(by_side):
    ours = [each for (_, side), each in by_side.items() if side == "ours"]
    return ratio_interval(*ours) if len(ours) == 2 else None


def _is_narrow(by_side):
    ratio = _ratio(by_side)
    return ratio is None or (
        ratio["high"] <= ratio["value"] * (1 + WIDTH)
        and ratio["low"] >= ratio["value"] / (1 + WIDTH)
    )


def claim(cell):
    """Which backend is faster, by a cell of a quiet machine, in words: str.

    Example:

    >>> cell = {"work": "train", "batch_size": 8, "ms": {"a": 1, "b": 2}}
    >>> claim({**cell, "ratio": {"value": 1.3, "low": 1.25, "high": 1.35, "rounds": 9}})
    'a trains 1.30 times as fast as b (95 % interval 1.25 to 1.35, 9 rounds, batch 8)'
    """
    ratio, names = cell["ratio"], [display_name(name) for name in cell["ms"]]
    value, low, high = (ratio[key] for key in ("value", "low", "high"))
    if value < 1:
        names.reverse()
        value, low, high = 1 / value, 1 / high, 1 / low
    within = f"95 % interval {low:.2f} to {high:.2f}, {ratio['rounds']} rounds"
    within += f", batch {cell['batch_size']}"
    work = WORKS[cell["work"]]
    if low <= 1 + NEAR:
        return f"neither {work} faster by more than this machine can tell ({within})"
    return f"{names[0]} {work} {value:.2f} times as fast as {names[1]} ({within})"


def claims(speed):
    """The results for the largest batch size: list of str."""
    cells = [cell for cell in speed["cells"] if cell["ratio"]]
    busy = max((cell["others_busy"] for cell in cells), default=0)
    if busy >= BUSY:
        return [
            f"which one is faster cannot be told: other programs kept {show(busy, 2)} processors "
            "busy"
        ]
    largest = max((cell["batch_size"] for cell in cells), default=None)
    return [claim(cell) for cell in cells if cell["batch_size"] == largest]
