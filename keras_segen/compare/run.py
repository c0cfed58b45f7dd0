"""The comparison itself: train one task on each backend, one after the other, and report.

Every backend runs in its own process (`child.py`), alone on the machine, with the same number of
threads. Then each loads the models that the others saved, and does what else is asked for.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

import keras_segen
from keras_segen import frameworks, machine
from keras_segen.compare import checks, report, seeds, turns
from keras_segen.compare.layerwise import divergence
from keras_segen.compare.layerwise.evidence import evidence
from keras_segen.files import write_json
from keras_segen.processes import Worker, num_threads
from keras_segen.tasks.task import is_file

SECONDS_TO_DRAW = 0.5  # between two pictures of the progress in a notebook


def run(
    task,
    folder,
    backends=("tensorflow", "torch"),
    threads=None,
    console=None,
    parity_steps=0,
    command=None,
    modules=(),
    write_own=None,
    seconds=60.0,
    num_seeds=1,
):
    """Compares backends on one task.

    Writes into the folder: `report.html`, `report.json`, `predictions.png`, and for each backend
    a folder with `model.keras`, `result.json` and `log.txt`, and with `parity_steps`
    `parity.npz`. An earlier comparison there is replaced.

    Args:
        task: a `keras_segen.tasks.Task`.
        folder: path to write to.
        backends: names of the backends, in the order in which they run.
        threads: int, threads for each process, both within and between operations; None for one
            per core.
        console: a `rich.console.Console` for the live progress; None for the notebook, or else
            standard error.
        parity_steps: int, training steps that are also compared layer by layer and in float64
            (`keras_segen.compare.layerwise.divergence`); 0 for none. If the
            task's precision is float64, the result in float64 decides, and there is no training.
        command: str, the command that repeats the comparison; None for that of this process.
        modules: names of modules that the processes import first, for layers of a user's own.
        write_own: called when the folder exists, before a process starts: writes the task's own
            files into its subfolder `own`; or None.
        seconds: float, how long the backends may take turns to find which is faster
            (`keras_segen.compare.turns`), after the trainings; 0 skips that.
        num_seeds: int, how many seeds are trained with, the task's and those after it
            (`keras_segen.compare.seeds`). All but the first are in the folder `seeds`.

    Returns:
        The report, a dict as in `report.json`. `report["status"]` is `"passed"`, `"parted"` (a
        check is outside its tolerance), `"failed"` (a backend failed; the other's results are
        there) or `"interrupted"`.

    Raises:
        ValueError: threads is below 1, or seconds below 0; or several seeds are asked for, but no
            training on two backends; or the task has early stopping, which could end one
            backend's training before the other's; or, with `parity_steps`, it has
            dropout or mixed precision, or makes no masks; or, without, its precision is float64.
        ModuleNotFoundError: a backend's framework is not installed.
        FileExistsError: the folder holds something other than a comparison.
        FileNotFoundError: the model is a `.keras` file that does not exist.
    """
    threads = num_threads(threads)
    if not seconds >= 0:
        raise ValueError(f"seconds is {seconds}, expected 0 or more.")
    if task.early_stopping:
        raise ValueError(
            f"early_stopping is {task.early_stopping}, but a comparison trains the same "
            "epochs on each backend: use early_stopping=0."
        )
    if num_seeds < 1 or num_seeds > 1 and (len(backends) != 2 or task.precision == divergence.HIGH):
        raise ValueError(
            f"seeds is {num_seeds}, expected 1, or more for a training on two backends."
        )
    _check_parity(task, parity_steps)
    for backend in backends:
        frameworks.require(backend)
    folder, model = Path(folder), Path(task.model)
    written = write_own is not None and model.parent == (folder / "own").resolve()
    if is_file(model) and not written and not model.exists():
        raise FileNotFoundError(f"{model} does not exist; expected a model, saved as .keras.")
    _prepare(folder, backends)
    modules = [*modules, *_module_of(task)]
    plan = {"experiment": task.to_dict(), "parity_steps": parity_steps, "modules": modules}
    write_json(folder / "experiment.json", plan)
    if write_own is not None:
        write_own()
    trains = task.precision != divergence.HIGH
    outcomes = {
        backend: {"status": "running", "losses": {name: [] for name in task.losses}}
        for backend in backends
    }
    interrupted, speed, failures = False, None, []
    try:
        with _progress(console) as progress:
            bars = {
                backend: progress.add_task(backend, total=None, phase="waiting", loss="")
                for backend in backends
            }

            def process(backend):
                return _process(
                    backend, folder, threads, outcomes[backend], progress, bars[backend]
                )

            def look_closer(ask, backend):
                """What does not need a process that did nothing before."""
                if trains:
                    ask("serve")
                if parity_steps:
                    ask("parity")
                return _train_other_seeds(ask, task, folder, modules, backend, num_seeds)

            # The last one goes on in its process, since the models of the others are there; the
            # others do so in another one, which has not made the model that it loads.
            for backend in backends:
                with process(backend) as ask:
                    if trains:
                        ask("train")
                    if backend == backends[-1] and _all_well(outcomes):
                        failures += look_closer(ask, backend)
            for backend in backends[:-1]:
                if _all_well(outcomes):
                    with process(backend) as ask:
                        failures += look_closer(ask, backend)
            done = [name for name in backends if outcomes[name]["status"] == "ok"]
            if trains and seconds and len(done) > 1:
                bar = progress.add_task("speed", total=None, phase="waiting", loss="")
                speed = turns.take_turns(
                    task,
                    folder,
                    done,
                    threads,
                    seconds,
                    modules,
                    tell=lambda text: progress.update(bar, phase=text),
                )
                progress.update(bar, phase="done")
    except KeyboardInterrupt:
        interrupted = True
        for outcome in outcomes.values():
            if outcome["status"] == "running":
                outcome["status"] = "interrupted"
    command = command or shlex.join(["keras-segen", *sys.argv[1:]])
    result = _conclude(task, folder, outcomes, interrupted, command)
    result["speed"] = speed
    for backend, error in (speed or {"errors": {}})["errors"].items():
        result["notes"].append(f"By turns, {report.display_name(backend)} failed: {error}")
    result["notes"] += failures
    result["seeds"] = _of_all_seeds(task, folder, result) if num_seeds > 1 else None
    report.write_report(result, folder)
    return result


def _all_well(outcomes):
    return all(outcome["status"] != "failed" for outcome in outcomes.values())


def _train_other_seeds(ask, task, folder, modules, backend, num_seeds):
    """Trains with the seeds after the task's; returns sentences about what failed."""
    for k in range(1, num_seeds):
        other = dataclasses.replace(task, seed=task.seed + k)
        there = folder / "seeds" / str(other.seed)
        (there / backend).mkdir(parents=True, exist_ok=True)
        write_json(there / "experiment.json", {"experiment": other.to_dict(), "modules": modules})
        outcome = {"losses": {loss: [] for loss in task.losses}}
        ask("train", there, outcome, f"seed {other.seed}: ")
        if outcome["status"] == "failed":
            reason = outcome["error"].splitlines()[-1]
            name = report.display_name(backend)
            return [f"With seed {other.seed}, {name} failed: {reason}"]
    return []


def _of_all_seeds(task, folder, result):
    """What the seeds changed, and what the frameworks: as `seeds.summarize` gives it, or None."""
    metrics = {}
    for backend, found in result["backends"].items():
        metrics[backend] = {task.seed: found["metrics"]} if "metrics" in found else {}
        for path in folder.glob(f"seeds/*/{backend}/result.json"):
            other = json.loads(path.read_text(encoding="utf-8"))
            metrics[backend][int(path.parent.parent.name)] = other["metrics"]
    return seeds.summarize(task.figures, metrics)


def _module_of(task):
    """The module that a process must import for a task of a user's own kind."""
    module = type(task).__module__
    if module == "__main__":
        raise ValueError(
            f"{type(task).__name__} is defined in this notebook or script, where other processes "
            "cannot import it: put it into a file of its own, and import it from there."
        )
    return [] if module.split(".")[0] == "keras_segen" else [module]


def _check_parity(task, steps):
    """Checks that a task can be compared layer by layer, if `steps` asks for it."""
    if steps < 0:
        raise ValueError(f"parity_steps is {steps}, expected a number of steps, or 0.")
    if steps == 0 and task.precision == divergence.HIGH:
        raise ValueError(
            "precision is 'float64', in which nothing is trained: compare layer by layer with "
            "--parity, or use precision='float32'."
        )
    if steps and task.precision not in divergence.PRECISIONS:
        raise ValueError(
            f"precision is {task.precision!r}, and a comparison layer by layer is in "
            f"{' or '.join(map(repr, divergence.PRECISIONS))}."
        )
    if steps:
        task.check_layerwise()


def _prepare(folder, backends):
    """Makes the folder, and removes what an earlier comparison left in it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "experiment.json").exists():
        raise FileExistsError(
            f"{folder} is not empty and holds no comparison: name a new folder with --out."
        )
    for name in (*frameworks.FRAMEWORKS, "seeds"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("report.html", "report.json", "predictions.png"):
        (folder / name).unlink(missing_ok=True)
    for backend in backends:
        (folder / backend).mkdir(parents=True)


def _progress(console):
    console = console or rich.console.Console(stderr=True)
    kind = NotebookProgress if console.is_jupyter else rich.progress.Progress
    return kind(
        rich.progress.TextColumn("{task.description:<10}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[phase]}{task.fields[loss]}"),
        rich.progress.TimeElapsedColumn(),
        console=console,
    )


class NotebookProgress(rich.progress.Progress):
    """A progress display below the cell, updated in place.

    Rich itself uses ipywidgets in a notebook, and warns if they are missing.
    """

    def __init__(self, *columns, **options):
        super().__init__(*columns, disable=True, **options)
        self.shown, self.drawn = None, 0.0

    def start(self):
        from IPython.display import display  # only in a notebook

        self.shown = display(self, display_id=True)

    def update(self, task_id, **changes):
        super().update(task_id, **changes)
        if "phase" in changes or time.monotonic() - self.drawn > SECONDS_TO_DRAW:
            self.draw()

    def stop(self):
        self.draw()

    def draw(self):
        self.shown.update(self)
        self.drawn = time.monotonic()


@contextlib.contextmanager
def _process(backend, folder, threads, outcome, progress, bar):
    """A process that runs phases: gives a function that asks for one and shows its progress.

    What became of it is recorded in `outcome`; after a failure nothing more is asked for.
    """

    def ask(phase, there=folder, outcome=outcome, label=""):
        if outcome.get("status") == "failed":
            return

        def show(event):
            if "phase" in event:
                progress.update(bar, phase=label + event["phase"], loss="")
                if "steps" in event:
                    progress.update(bar, total=event["steps"], completed=0)
                return
            for name, value in event["losses"].items():
                outcome["losses"][name].append(value)
            known = [(n, v) for n, v in event["losses"].items() if v is not None]
            text = "".join(f", {name} {value:.4f}" for name, value in known)
            progress.update(bar, completed=event["step"], loss=text)

        outcome["status"] = "running"
        answer = worker.ask(phase, show, folder=str(there.resolve()), threads=threads)
        outcome["status"] = "failed" if "error" in answer else "ok"
        if "error" in answer:
            outcome["error"] = "\n".join(answer["details"].splitlines()[-12:]) or answer["error"]

    progress.update(bar, phase="starting", loss="")
    worker = Worker("keras_segen.compare.child", backend, threads, folder / backend / "log.txt")
    try:
        yield ask
    finally:
        worker.end()
    progress.update(bar, phase="failed" if outcome["status"] == "failed" else "done", loss="")


def _conclude(task, folder, outcomes, interrupted, command):
    """Makes the report from the files of the children."""
    results, arrays = {}, {}
    for backend in outcomes:
        path = folder / backend / "result.json"
        if path.exists():
            results[backend] = json.loads(path.read_text(encoding="utf-8"))
            arrays[backend] = dict(np.load(folder / backend / "arrays.npz"))
    serving = {}
    for run_on, trained_on in itertools.permutations(results, 2):
        path = folder / run_on / f"serving-{trained_on}.npz"
        if path.exists():
            serving[trained_on, run_on] = dict(np.load(path))

    paths = (folder / backend / "parity.npz" for backend in outcomes)
    records = [divergence.Record.load(path) for path in paths if path.exists()]
    parted = None
    if len(records) == 2:
        parted = divergence.compare(*records, task.precision)
        parted["evidence"] = evidence(parted, *records, task.seed)

    both = len(results) == 2
    handed_over = checks.hand_over(arrays, serving, task) if both else []
    checked = checks.checks(results, arrays, handed_over, task) if both else []
    tolerance = checks.loss_tolerance(task, *results.values()) if both else None
    checked[2:2] = divergence.checks(parted) if parted else []  # after weights and batches
    failed = any(outcome["status"] == "failed" for outcome in outcomes.values())
    status = "interrupted" if interrupted else "failed" if failed else "passed"
    if status == "passed" and not all(check["passed"] for check in checked):
        status = "parted"
    return {
        "schema": 3,
        "version": keras_segen.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "status": status,
        "experiment": task.to_dict(),
        "parameters": next((result["parameters"] for result in results.values()), None),
        **task.conclude(task.load_data("val"), arrays, folder),
        "machine": machine.hardware(),
        "installed_mib": {name: round(machine.installed_size(name) / 2**20) for name in outcomes},
        "backends": {
            backend: {**outcome, **results.get(backend, {})}
            for backend, outcome in outcomes.items()
        },
        "checks": checked,
        "parity": parted,
        "loss_tolerance": {"relative": tolerance} if both else None,
        "loss_difference": (
            checks.loss_difference(*(each["losses"] for each in results.values())) if both else []
        ),
        "hand_over": handed_over,
        "notes": notes(results),
    }


def notes(results):
    """What makes the times less reliable: list of sentences.

    Args:
        results: dict of backend -> what `child.py` wrote.
    """
    busy = {backend: result["others_busy"] for backend, result in results.items()}
    if max(busy.values(), default=0) < turns.BUSY:
        return []
    processors = " and ".join(
        f"{value:.1f} while {report.display_name(backend)} trained"
        for backend, value in busy.items()
    )
    return [
        f"Other programs kept processors busy ({processors}, of {os.cpu_count()}): the times of "
        "the trainings are too long, and not to be compared. Close these programs, and compare "
        "again."
    ]
