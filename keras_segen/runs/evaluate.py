"""Evaluation of the model of a run on a split of its data set."""

from pathlib import Path

import keras

from keras_segen.runs.training import load_model, model_digest, open_run
from keras_segen.tasks import fields
from keras_segen.tasks.registry import check_options


def evaluate(folder, split="test", **options):
    """Evaluates the model of a run on a split, and writes the results into its folder.

    Writes `evaluation-SPLIT.json` (all figures), `evaluation-SPLIT.csv` (the first table) and
    `evaluation-SPLIT.html`.

    Args:
        folder: the run folder.
        split: `"train"`, `"val"` or `"test"`.
        **options: `batch_size`, `extractor`, `count`, `seed`, as in the task's `evaluate`; None for
            its default. Each task has some of them.

    Returns:
        A `keras_segen.report.evaluation.Evaluation`. The task's `figures` and
        `split`, `backend` and `model_sha256`, the digest of the evaluated `model.keras`.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
        ValueError: the task has no such option, or does not accept its value.
    """
    folder = Path(folder)
    task, run = open_run(folder)
    options = check_options(task, "evaluate", options)
    dataset, names = task.load_data(split), run["data"].get("class_names")
    if names is not None and list(dataset.class_names) != names:
        raise ValueError(
            f"{dataset.name} has the classes {', '.join(dataset.class_names) or '(none)'}, and "
            f"{folder} was trained on {', '.join(names) or '(none)'}: restore the data set, or "
            "train anew."
        )
    found = task.evaluate(load_model(folder), dataset, **options)
    found.subject = f"{task.model} on {task.data}, {split}"
    own = {"split": split, "backend": keras.backend.backend(), "model_sha256": model_digest(folder)}
    found.figures = {**own, **found.figures}
    found.settings = {
        **fields.applying(type(task), task.to_dict()),
        "evaluated on": own["backend"],
        "SHA-256 of model.keras": own["model_sha256"],
    }
    found.write(folder, f"evaluation-{split}")
    return found
