"""A trained run put to use: figures over a split, masks for new photos."""

import csv
import datetime
import heapq
import math
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image

from keras_segen import metrics, plot
from keras_segen.report import html
from keras_segen.segmentation.evaluate import by_class, describe, figures, measure
from keras_segen.data.images import read_image, to_float
from keras_segen.data.loader import Batches
from keras_segen.tasks.registry import read
from keras_segen.files import write_atomically, write_json, write_text
from keras_segen.segmentation.predict import DEFAULT_TILE, Predictor
from keras_segen.runs.training import load_model, load_run, model_digest

# What the table of classes shows, beside the share of pixels: key -> heading.
CLASS_FIGURES = {
    "iou": "IoU",
    "dice": "Dice",
    "precision": "Precision",
    "recall": "Recall",
    "boundary_f": "Boundary F",
}


def evaluate(folder, split="test", batch_size=None):
    """Evaluates the best model of a run on a split, at the size that it was trained at.

    Writes `evaluation-SPLIT.json`, `evaluation-SPLIT.csv` (a row per class) and
    `evaluation-SPLIT.html` into the folder: all figures, the confusion matrix, the reliability
    diagram, and the images with the lowest mean IoU with truth, prediction and difference.

    All figures come from counts over all pixels of the split (see `keras_segen.metrics`); void
    pixels are left out. Logits are counted batch by batch and dropped, so that a split of any
    length fits into memory.

    Args:
        folder: the run folder.
        split: `"train"`, `"val"` or `"test"`.
        batch_size: int; None for that of the training.

    Returns:
        Dict of plain values: `mean_iou`, `mean_dice`, `mean_precision`, `mean_recall`,
        `mean_boundary_f`, `pixel_accuracy`, `expected_calibration_error`, all from 0 to 1;
        `class_iou`, `class_dice`, `class_precision`, `class_recall`, `class_boundary_f` (dicts
        of class name -> float, or None where there is nothing to measure); `class_pixels` (dict
        of class name -> true pixels); `confusion_matrix` (rows: truth, columns: prediction);
        `boundary_counts` and `calibration_bins` as in `keras_segen.metrics`; `worst` (list of
        dicts, the lowest mean IoU first, at most 24); `images`, `split`, `backend`, and
        `model_sha256` of the `model.keras` that was measured. A run of a GAN or VAE is judged in
        another way: `keras_segen.runs.judge.evaluate`.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
    """
    folder = Path(folder)
    run = load_run(folder)
    task = read(run["experiment"])
    if task.makes == "pictures":
        from keras_segen.runs import judge  # which stands on what is here

        return judge.evaluate(folder, split, batch_size=batch_size)
    model = load_model(folder)
    dataset = task.load_data(split)
    measured = measure(model, dataset, batch_size or task.batch_size)
    boundary_f = metrics.boundary_f_score(measured.boundaries)
    result = {
        "split": split,
        "images": len(dataset),
        "backend": keras.backend.backend(),
        "model_sha256": model_digest(folder),
        **figures(measured.matrix, dataset.class_names),
        "mean_boundary_f": metrics.mean_of_present(boundary_f),
        "class_boundary_f": by_class(dataset.class_names, boundary_f),
        "expected_calibration_error": metrics.expected_calibration_error(measured.bins),
        "worst": [describe(each, dataset) for each in measured.worst],
        "confusion_matrix": measured.matrix.tolist(),
        "boundary_counts": measured.boundaries.tolist(),
        "calibration_bins": measured.bins.tolist(),
    }
    write_json(folder / f"evaluation-{split}.json", result)
    _write_table(folder / f"evaluation-{split}.csv", result)
    write_text(folder / f"evaluation-{split}.html", draw_page(result, run, dataset, measured.worst))
    return result


def _write_table(path, result):
    columns = [key for key in result if key.startswith("class_")]
    with (
        write_atomically(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["class", *(key.removeprefix("class_") for key in columns)])
        for name in result["class_iou"]:
            writer.writerow([name, *(result[key][name] for key in columns)])


def draw_page(result, run, dataset, worst):
    """The HTML page as a str; pictures of the worst images are inside, at most 24 x 4."""
    names, total = dataset.class_names, sum(result["class_pixels"].values())
    rows = [
        {"name": name, "color": color, "share": result["class_pixels"][name] / max(total, 1)}
        | {key: result[f"class_{key}"][name] for key in CLASS_FIGURES}
        for name, color in zip(names, dataset.palette.tolist(), strict=True)
    ]
    gallery = []
    for entry, each in zip(result["worst"], worst, strict=True):
        image, mask = dataset[each.index]
        void, predicted = dataset.ignore_class, each.predicted.astype("int32")
        shown = {
            "image": plot.overlay(image, mask, dataset.palette, void, alpha=0.0),
            "truth": plot.overlay(image, mask, dataset.palette, void),
            "prediction": plot.overlay(image, predicted, dataset.palette),
            "wrong pixels": plot.difference(image, mask, predicted, void),
        }
        sources = {name: html.image_source(cell, 320) for name, cell in shown.items()}
        gallery.append({**entry, "pictures": sources, "shape": mask.shape})
    matrix = np.array(result["confusion_matrix"])
    charts = {
        "confusion": html.svg(plot.confusion_matrix(matrix, names), "Confusion matrix"),
        "reliability": html.svg(
            plot.reliability(result["calibration_bins"]), "Accuracy over confidence"
        ),
    }
    return html.render(
        "evaluation.html.j2",
        {},
        result=result,
        task=run["experiment"],
        rows=rows,
        figures=CLASS_FIGURES,
        charts=charts,
        gallery=gallery,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        tolerance=max(1.0, metrics.BOUNDARY_TOLERANCE * math.hypot(*dataset.image_shape[:2])),
        void=dataset.ignore_class is not None,
    )
