"""Which model is better, and by how much: cross-validation with the same folds for every model.

The training split is cut into folds. Each model is trained once per fold, on all other folds, and
evaluated on the fold, which it has never seen. Every training is an ordinary run folder:

    OUT/MODEL/fold-1/     as `training.train` writes it, with `evaluation-val.*`
    OUT/crossval.json     every figure of every fold, means, and differences between the models
    OUT/crossval.csv      a row for each model and fold
    OUT/crossval.png      the folds as dots, those of one fold joined
    OUT/crossval.html     the same as a page

The held-out images choose nothing: the last epoch is evaluated, not the best one.
"""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import keras
import numpy as np

from keras_segen import plot
from keras_segen.files import write_csv, write_json, write_text
from keras_segen.intervals import two_sided_p
from keras_segen.report import html
from keras_segen.report.numbers import listing, setting
from keras_segen.report.tables import Cell, Column, Table, decimals
from keras_segen.runs import training
from keras_segen.runs.evaluate import evaluate
from keras_segen.tasks.fields import applying
from keras_segen.tasks.registry import KINDS, kind_of

CAUTION = (
    "The folds share most of their training images, so their results are not independent, and no "
    "estimate of the variance from one cross-validation is unbiased (Bengio and Grandvalet 2004). "
    "The plain standard error of a difference is too small; the corrected one (Nadeau and Bengio "
    "2003) allows for the overlap. Take p as a guide: it knows nothing of other seeds, and of "
    "many pairs some look different by chance."
)


def cross_validate(tasks, folder, folds=5, verbose="auto", tell=lambda line: None):
    """Trains and evaluates every task on every fold, and compares.

    Finished folds are kept: after an interruption, the same call continues at the fold and epoch
    where it stopped.

    Args:
        tasks: dict from a name (of letters, digits, `.`, `_`, `-`) to a
            `keras_segen.tasks.Task` of one kind. They may differ in all but data and seed.
        folder: where to write.
        folds: int, at least 2.
        verbose: as in `keras.Model.fit`.
        tell: called with a line when a fold begins and ends.

    Returns:
        Dict of plain values, as in `crossval.json`: `data`, `folds`, `seed`, `groups` (number of
        groups, or None), `held_out` (images per fold), `backend`; `models`: dict of name -> dict
        with `experiment`, for each of the task's `fold_figures` a dict of `by_fold`, `mean` and
        `standard_deviation`, and for each of its `fold_details`, such as `class_iou`, a dict
        (of class name -> list by fold, None where the class is absent); `differences`: list of
        dicts as `difference` makes them, with `first`, `second`, `figure`, one for each pair and
        figure; `caution`.

    Raises:
        ValueError: the tasks do not fit together, there are fewer groups than folds, or
            the folder holds folds of other tasks.
    """
    folder = Path(folder)
    _check(tasks, folds)
    for fold in range(1, folds + 1):
        for name, task in tasks.items():
            plan = dataclasses.replace(task, folds=folds, fold=fold)
            tell(f"{name}, fold {fold} of {folds}")
            result = run_fold(plan, folder / name / f"fold-{fold}", verbose)
            figure, words = next(iter(task.fold_figures.items()))
            tell(f"{name}, fold {fold} of {folds}: {words} {result[figure]:.4f}")
    return summarize(tasks, folder, folds)


def run_fold(task, folder, verbose="auto"):
    """Trains one fold, or resumes it, and evaluates its last epoch on the held-out images.

    Args:
        task: a `keras_segen.tasks.Task` with `folds` and `fold`.
        folder: the run folder.
        verbose: as in `keras.Model.fit`.

    Returns:
        The figures of `keras_segen.runs.evaluate` for the split `"val"`.

    Raises:
        ValueError: the folder holds a run of another task.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        found = training.load_run(folder)["experiment"]
        for field, expected in task.to_dict().items():
            if field not in found or found[field] != expected:
                raise ValueError(
                    f"{folder} holds a run with {field} {found.get(field)!r}, expected "
                    f"{expected!r}: name another folder, or remove this one."
                )
        training.resume(folder, verbose=verbose)
    else:
        training.train(task, folder, verbose=verbose)
    result = _evaluated(folder) or evaluate(folder, "val").figures
    keras.utils.clear_session()  # the next fold builds its own model
    return result


def summarize(tasks, folder, folds):
    """Reads the folds of a finished cross-validation, compares, and writes the files.

    Arguments and result are those of `cross_validate`.
    """
    folder = Path(folder)
    models = {}
    for name, task in tasks.items():
        results = [_evaluated(folder / name / f"fold-{fold + 1}") for fold in range(folds)]
        models[name] = {
            "experiment": task.to_dict(),
            **{
                figure: over_folds([result[figure] for result in results])
                for figure in task.fold_figures
            },
            **{
                detail: {
                    each: [result[detail][each] for result in results]
                    for each in results[0][detail]
                }
                for detail in task.fold_details
            },
        }
    whole = next(iter(tasks.values()))
    groups = whole.load_data("train").groups
    result = {
        "data": whole.data,
        "folds": folds,
        "seed": whole.seed,
        "groups": None if groups is None else len(set(groups) - {None}) + groups.count(None),
        "held_out": [result["images"] for result in results],
        "backend": keras.backend.backend(),
        "models": models,
        "differences": [
            {
                "first": first,
                "second": second,
                "figure": figure,
                **difference(models[first][figure]["by_fold"], models[second][figure]["by_fold"]),
            }
            for first, second in itertools.combinations(models, 2)
            for figure in whole.fold_figures
        ],
        "caution": CAUTION,
    }
    write_json(folder / "crossval.json", result)
    _write_rows(folder / "crossval.csv", result, whole.fold_figures)
    plot.save(_draw(result, whole), folder / "crossval.png")
    write_text(folder / "crossval.html", _page(result, whole))
    return result


def over_folds(values):
    """Mean and standard deviation (of a sample: divided by n - 1) of one figure over the folds."""
    return {
        "by_fold": list(values),
        "mean": float(np.mean(values)),
        "standard_deviation": float(np.std(values, ddof=1)),
    }


def difference(first, second):
    """Compares two models fold by fold: the second minus the first.

    The corrected standard error is that of Nadeau and Bengio, "Inference for the Generalization
    Error", Machine Learning 52, 2003: with `k` folds and the standard deviation `s` of their
    differences, `s * sqrt(1/k + 1/(k - 1))`, where `1/(k - 1)` is the share of held-out to
    training images. The plain one, `s * sqrt(1/k)`, assumes independent folds. `t` is the
    mean divided by the corrected standard error; `p` is how often a `t` at least as far from 0
    would come up, with `k - 1` degrees of freedom, if there were no difference.

    Args:
        first: one number per fold, at least 2.
        second: as many, of the same folds.

    Returns:
        Dict: `by_fold`, `mean`, `standard_error`, `corrected_standard_error`, `t`, `p`; the last
        two are None if the difference is the same in every fold.

    Raises:
        ValueError: there are fewer than 2 folds, or not as many for both.

    Example:

    >>> found = difference([0.50, 0.52, 0.48], [0.53, 0.54, 0.52])
    >>> round(found["mean"], 4), round(found["t"], 2), round(found["p"], 3)
    (0.03, 3.29, 0.081)
    """
    first, second = np.array(first, "float64"), np.array(second, "float64")
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            f"Expected one number per fold for both, at least 2; found {first.shape} and "
            f"{second.shape}."
        )
    by_fold = second - first
    folds, mean, deviation = len(by_fold), float(by_fold.mean()), float(by_fold.std(ddof=1))
    corrected = deviation * math.sqrt(1 / folds + 1 / (folds - 1))
    t = mean / corrected if corrected > 0 else None
    return {
        "by_fold": by_fold.tolist(),
        "mean": mean,
        "standard_error": deviation / math.sqrt(folds),
        "corrected_standard_error": corrected,
        "t": t,
        "p": None if t is None else two_sided_p(t, folds - 1),
    }


def _check(tasks, folds):
    if folds < 2:
        raise ValueError(f"folds is {folds}, expected at least 2.")
    if not tasks:
        raise ValueError("There is no model to validate: name at least one.")
    first = next(iter(tasks.values()))
    for name, task in tasks.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{name!r} cannot name a folder: use letters, digits, dots, dashes and underscores."
            )
        if not task.fold_figures or type(task) is not type(first):
            others = [kind.MODELS for kind in KINDS if kind.fold_figures]
            raise ValueError(
                f"{name} {task.does}, and folds are compared by figures that all models of a "
                f"cross-validation have: name some of {', '.join(itertools.chain(*others))}."
            )
        for field in ("data", "seed"):
            if getattr(task, field) != getattr(first, field):
                raise ValueError(
                    f"{field} of {name} is {getattr(task, field)!r}, that of the first "
                    f"experiment {getattr(first, field)!r}: the folds have to be the same."
                )
        if task.start_from is not None:
            before = training.load_run(task.start_from)["experiment"]
            if before["data"] == task.data:
                raise ValueError(
                    f"{name} starts from {task.start_from}, a run on the same data: it has "
                    "seen the images that a fold holds out."
                )


def _evaluated(folder):
    """The evaluation of a fold if it belongs to the current model, else None."""
    path = folder / "evaluation-val.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if result["model_sha256"] == training.model_digest(folder) else None


def tables(result, task):
    """The results of a cross-validation as tables: list of `keras_segen.report.tables.Table`.

    Args:
        result: dict as in `crossval.json`.
        task: a `keras_segen.tasks.Task` of its kind.
    """
    three, signed = decimals(3), decimals(3, sign=True)
    main, title = next(iter(task.fold_figures.items()))
    folds = range(1, result["folds"] + 1)

    def mean(found):
        return f"{found['mean']:.4f} ± {found['standard_deviation']:.4f}"

    found = [
        Table(
            "Models",
            [
                "Model",
                *(Column(words, str) for words in task.fold_figures.values()),
                *(Column(f"{title}, fold {fold}", three) for fold in folds),
            ],
            [
                [name, *(mean(model[key]) for key in task.fold_figures), *model[main]["by_fold"]]
                for name, model in result["models"].items()
            ],
            note="Mean and standard deviation over the folds. Each model was trained on all folds "
            "but one and measured on that one, with its last epoch: nothing was chosen on the "
            "images that were held out.",
        )
    ]
    if result["differences"]:
        rows = [
            [
                f"{row['second']} − {row['first']}",
                task.fold_figures[row["figure"]],
                Cell(row["mean"], mark="strong"),
                *(row[key] for key in ("corrected_standard_error", "standard_error", "t", "p")),
                *row["by_fold"],
            ]
            for row in result["differences"]
        ]
        columns = ["difference", Column("figure", str, numeric=False), Column("mean", signed)]
        columns += [Column("standard error", three), Column("plain", three)]
        columns += [Column("t", decimals(2)), Column("p", three)]
        columns += [Column(f"fold {fold}", signed) for fold in folds]
        note = f"The second model minus the first. {result['caution']}"
        found.append(Table("Differences, fold by fold", columns, rows, note))
    for detail, words in task.fold_details.items():
        means = [
            {each: _mean_of_known(values) for each, values in model[detail].items()}
            for model in result["models"].values()
        ]
        rows = [[each, *(values[each] for values in means)] for each in means[0]]
        columns = ["", *(Column(name, three) for name in result["models"])]
        found.append(Table(words, columns, rows, "Mean over the folds in which it occurs."))
    return found


def verdict(result, task):
    """What a cross-validation found, in a sentence.

    A difference counts if its p is below 0.05, divided by the number of pairs with the best model
    (Bonferroni).

    Args:
        result: dict as in `crossval.json`.
        task: a `keras_segen.tasks.Task` of its kind.
    """
    main, title = next(iter(task.fold_figures.items()))
    means = {name: model[main]["mean"] for name, model in result["models"].items()}
    best = max(means, key=means.get)
    if len(means) == 1:
        found = result["models"][best][main]
        return f"{best}: {title} {found['mean']:.3f} ± {found['standard_deviation']:.3f}."
    below, near = [], []
    for row in result["differences"]:
        if row["figure"] == main and best in (row["first"], row["second"]):
            other = row["first"] if row["second"] == best else row["second"]
            sure = row["mean"] != 0 if row["p"] is None else row["p"] < 0.05 / (len(means) - 1)
            p = "" if row["p"] is None else f", p = {row['p']:.2g}"
            (below if sure else near).append(f"{other} ({abs(row['mean']):.3f}{p})")
    words = []
    if near:
        words.append(f"{result['folds']} folds cannot tell {best} from {listing(near)} by {title}")
    if below:
        words.append(f"{best} has a higher {title} than {listing(below)}")
    return "; ".join(words) + "."


def _settings_table(result):
    """The settings of every model, as a `Table`; those that differ stand out."""
    settings = [model["experiment"] for model in result["models"].values()]
    settings = [applying(kind_of(each["model"]), each) for each in settings]
    rows, differing = [], set()
    for field in dict.fromkeys(name for each in settings for name in each):
        if field not in ("folds", "fold", "data", "seed"):
            values = [setting(each.get(field)) for each in settings]
            if len(set(values)) > 1:
                differing.add(len(rows))
            rows.append([field, *values])
    rows += [[name, *(str(result[name]) for _ in settings)] for name in ("seed", "backend")]
    columns = [Column(name, str, numeric=False) for name in result["models"]]
    return Table("Settings", ["Setting", *columns], rows, marked=differing)


def _write_rows(path, result, figures):
    rows = [["model", "fold", "held_out", *figures]]
    for name, model in result["models"].items():
        for fold, images in enumerate(result["held_out"]):
            values = [model[figure]["by_fold"][fold] for figure in figures]
            rows.append([name, fold + 1, images, *values])
    write_csv(path, rows)


def _draw(result, task):
    main, title = next(iter(task.fold_figures.items()))
    scores = {name: model[main]["by_fold"] for name, model in result["models"].items()}
    return plot.folds(scores, title)


def _page(result, task):
    """The HTML page as a str."""
    main, title = next(iter(task.fold_figures.items()))
    return html.render(
        "crossval.html.j2",
        result=result,
        verdict=verdict(result, task),
        title=title,
        scores={name: model[main] for name, model in result["models"].items()},
        chart=html.svg(_draw(result, task), f"{title} of every model on every fold"),
        tables=[*tables(result, task), _settings_table(result)],
        models=listing(result["models"]),
    )


def _mean_of_known(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
