"""The overhead of Keras: `fit` and prediction against loops written by hand.

`keras_segen.bench.handwritten` has the same networks in plain PyTorch and plain TensorFlow. All
start from the same weights and see the same batches. First they are proven equal; only then are
they timed, by turns, in one process, with the same clock: the moments at which they take their
batches. The loader plays no part, since the batches are in memory.

Keras takes part twice: made faster by `keras_segen.faster`, and as it ships, `stock`: such models
are built, traced and run without the replacements. All keep freed memory in the same way.

Memory is not compared: all share one process and its peak.
"""

import contextlib
import dataclasses
import datetime
import json
import time
from pathlib import Path

import keras
import numpy as np

from keras_segen import backend, files, machine
from keras_segen.backend import faster
from keras_segen.bench import proof
from keras_segen.bench.earlier import find_earlier
from keras_segen.compare.rounds import Held, by_turns, check_counts, milliseconds
from keras_segen.report.tables import Column, Table, decimals


def take_times(contest, dataset, batches, rounds=10, tell=lambda text: None):
    """Times `fit`, the native loop and predictions, by turns.

    In each round every side trains on all batches and predicts as often, after one round to warm
    up. The result is the median over the rounds.

    Args:
        contest: a `keras_segen.bench.contests.Contest`.
        dataset: what `contest.load_data` returned.
        batches: a `keras_segen.compare.rounds.Held`.
        rounds: int.
        tell: called with a line of text after each round.

    Returns:
        List of dicts, one for each kind of work (`"train"`, `"predict"`) and side of Keras: `work`,
        `side` (`"stock"` and the contest's), `native_ms` and `keras_ms` (as
        `compare.rounds.milliseconds` gives them, per step or per batch), `ratio` (median over the
        rounds of Keras over native), `ratio_p10` and `ratio_p90`.
    """
    with faster.stock():
        models = {"stock": contest.build(dataset)}
    models |= {side: contest.build(dataset, side) for side in contest.SIDES}
    native = contest.native(dataset, proof.weights_by_name(contest.parts(models["fit"])))
    loader = backend.make_loader(batches)
    inputs = contest.inputs(batches)

    predictions = {
        "native": lambda: native.predict(inputs),
        "stock": lambda: contest.predict_as_keras_does(models["stock"], inputs),
        "infer": lambda: contest.predict(models["fit"], inputs),
    }

    def train(side):
        if side == "native":
            for _ in native.train(batches.read(0)):
                pass
        else:
            models[side].fit(loader, shuffle=False, verbose=0)
        return batches.per_step()[0]

    def predict(side):
        predictions[side]()
        start = time.perf_counter()
        for _ in range(len(batches) - 2):
            predictions[side]()
        return (time.perf_counter() - start) / (len(batches) - 2)

    def run_job(job):
        work, side = job
        with faster.stock() if side == "stock" else contextlib.nullcontext():
            return train(side) if work == "train" else predict(side)

    jobs = [("train", side) for side in ("native", *models)]
    jobs += [("predict", side) for side in predictions]
    seconds = {job: [] for job in jobs}
    for job in jobs:
        run_job(job)  # also what traces and compiles
    tell("warmed up")
    for number, order in enumerate(by_turns(jobs, rounds), 1):
        for job in order:
            seconds[job].append(run_job(job))
        tell(f"round {number} of {rounds}")

    rows = []
    for (work, side), ours in seconds.items():
        if side == "native":
            continue
        ratios = np.array(ours) / np.array(seconds[work, "native"])
        low, median, high = np.percentile(ratios, [10, 50, 90])
        rows.append(
            {
                "work": work,
                "side": side,
                "native_ms": milliseconds(seconds[work, "native"]),
                "keras_ms": milliseconds(ours),
                "ratio": round(float(median), 4),
                "ratio_p10": round(float(low), 4),
                "ratio_p90": round(float(high), 4),
            }
        )
    return rows


def run(contest, folder, steps=12, rounds=10, tell=lambda text: None):
    """Proves that both are equal, takes their times and writes the result into a folder.

    Args:
        contest: a `keras_segen.bench.contests.Contest`.
        folder: path; gets `NETWORK-BACKEND-TIME.json`. An earlier one of the same settings in it
            is what the result is compared with.
        steps: int, steps per round, at least 3: of them the first and the last are not timed.
        rounds: int, rounds that are timed.
        tell: called with a line of text now and then.

    Returns:
        Dict of plain values, as in the file: `settings`, `versions`, `time`, `proofs` (what
        `proof.prove` returned, with Keras made faster and as it ships), `rows` (what `take_times`
        returned), and `earlier`: time and ratios of the latest earlier result, or None.

    Raises:
        ValueError: the two parted, or an argument is out of range.
    """
    check_counts(steps, rounds)
    settings = conditions(contest, steps)
    pattern = f"{contest.network}-{keras.backend.backend()}-*.json"
    earlier = find_earlier(folder, pattern, settings, ratios, "bench native")
    dataset = contest.load_data()
    batches = Held(dataset, contest.batch_size, count=steps, seed=contest.seed, drop_last=True)
    proofs = [proof.prove(contest, dataset, batches, tell)]
    with faster.stock():
        proofs.append(proof.prove(contest, dataset, batches, tell))
    rows = take_times(contest, dataset, batches, rounds, tell)
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "time": now.isoformat(timespec="seconds"),
        "settings": settings,
        "versions": machine.versions(),
        "replacements": faster.status(),
        "proofs": proofs,
        "rows": rows,
        "earlier": earlier,
    }
    name = f"{contest.network}-{keras.backend.backend()}-{now:%Y%m%dT%H%M%SZ}.json"
    files.write_json(Path(folder) / name, result)
    return result


def conditions(contest, steps):
    """Returns all that a ratio depends on but the versions, as plain values."""
    here = machine.hardware()
    values = {
        **dataclasses.asdict(contest),
        "learning_rate": contest.LEARNING_RATE,
        "steps": steps,
        "backend": keras.backend.backend(),
        "precision": keras.config.dtype_policy().name,
        "layout": keras.config.image_data_format(),
        **{key: value for key, value in backend.settings().items() if key != "framework"},
        **{key: here[key] for key in ("processor", "cores")},
        "freed_memory": machine.freed_memory,
    }
    return json.loads(json.dumps(values))  # lists, as in a file


def ratios(result):
    """What a later result is compared with, such as `{"ratios": {"train, fit": 1.05}}`."""
    return {"ratios": {_name(row): row["ratio"] for row in result["rows"]}}


def _name(row):
    return f"{row['work']}, {row['side']}"


def lines(result):
    """What holds for all of a result's times, in sentences: list of str."""
    versions = {name: version for name, version in result["versions"].items() if version}
    lists = [
        ", ".join(f"{key} {value}" for key, value in values.items())
        for values in (result["settings"], versions)
    ]
    losses, predictions = (
        max(proven[what] for proven in result["proofs"]) for what in ("losses", "predictions")
    )
    return lists + [
        f"Equal over {result['proofs'][0]['steps']} steps: losses to {losses:.1e} (tolerance "
        f"{proof.LOSS_TOLERANCE:.0e}), predictions to {predictions:.1e} (tolerance "
        f"{proof.PREDICTION_TOLERANCE:.0e})."
    ]


def table(result):
    """The times of a result, as a `keras_segen.report.tables.Table`."""
    earlier = result["earlier"] or {"time": "", "ratios": {}}
    columns = ["", *(Column(name, decimals(1)) for name in ("Keras, ms", "native, ms"))]
    columns += [Column("ratio", decimals(3)), "p10 to p90"]
    rows = [
        [
            _name(row),
            row["keras_ms"]["median"],
            row["native_ms"]["median"],
            row["ratio"],
            f"{row['ratio_p10']:.3f} to {row['ratio_p90']:.3f}",
        ]
        for row in result["rows"]
    ]
    if earlier["ratios"]:
        columns.append(Column(f"ratio on {earlier['time'][:10]}", decimals(3)))
        rows = [[*row, earlier["ratios"].get(row[0])] for row in rows]
    return Table("A step, and a prediction", columns, rows)
