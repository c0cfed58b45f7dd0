"""The model of a run, judged on a split of its data set."""

from pathlib import Path

import keras

from keras_segen.runs.training import load_model, model_digest, open_run
from keras_segen.tasks.registry import check_options


def evaluate(folder, split="test", *, batch_size=None, extractor=None, count=None, seed=None):
    """Judges the model that a run keeps, on a split, and writes what was found into the folder.

    Writes `evaluation-SPLIT.json` (all figures), `evaluation-SPLIT.csv` (the first table) and
    `evaluation-SPLIT.html`.

    Args:
        folder: the run folder.
        split: `"train"`, `"val"` or `"test"`.
        batch_size, extractor, count, seed: as the task's `evaluate` takes them; None for what it
            takes by itself. Each task has some of them.

    Returns:
        A `keras_segen.report.evaluation.Evaluation`. Beside what the task found its `figures` have
        `split`, `backend` and `model_sha256`, the digest of the `model.keras` that was judged.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
        ValueError: the task has no such option, or finds something wrong with it.
    """
    folder = Path(folder)
    options = {"batch_size": batch_size, "extractor": extractor, "count": count, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    task, _ = open_run(folder)
    check_options(task, "evaluate", options)
    found = task.evaluate(load_model(folder), task.load_data(split), **options)
    found.subject = f"{task.model} on {task.data}, {split}"
    own = {
        "split": split,
        "backend": keras.backend.backend(),
        "model_sha256": model_digest(folder),
    }
    found.figures = {**own, **found.figures}
    found.settings = {
        **task.to_dict(),
        "evaluated on": own["backend"],
        "SHA-256 of model.keras": own["model_sha256"],
    }
    found.write(folder, f"evaluation-{split}")
    return found
