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

from keras_segen import backend, metrics, page, plot
from keras_segen.data.images import read_image, to_float
from keras_segen.data.loader import Batches
from keras_segen.experiment import read
from keras_segen.files import write_atomically, write_json, write_text
from keras_segen.segmentation.predict import DEFAULT_TILE, Predictor
from keras_segen.training import load_model, load_run, model_digest

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
        another way: `keras_segen.judging.evaluate`.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
    """
    folder = Path(folder)
    run = load_run(folder)
    experiment = read(run["experiment"])
    if experiment.makes == "pictures":
        from keras_segen import judging  # which stands on what is here

        return judging.evaluate(folder, split, batch_size=batch_size)
    model = load_model(folder)
    dataset = experiment.load_data(split)
    measured = measure(model, dataset, batch_size or experiment.batch_size)
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


class Measured(NamedTuple):
    """What `measure` counts.

    `matrix`: confusion matrix, int64 `(num_classes, num_classes)`. `boundaries`: int64
    `(num_classes, 4)`. `bins`: float64 `(15, 3)`. `worst`: list of `Worst`, the worst first.
    """

    matrix: np.ndarray
    boundaries: np.ndarray
    bins: np.ndarray
    worst: list


class Worst(NamedTuple):
    """An image with a low mean IoU: its index, its confusion matrix, its predicted class ids."""

    mean_iou: float
    index: int
    matrix: np.ndarray
    predicted: np.ndarray


def measure(model, dataset, batch_size, num_worst=24):
    """Counts all that `evaluate` reports, in one pass over a data set.

    Args:
        model: a `keras.Model` from images to logits.
        dataset: a `keras_segen.data.Dataset` with images of one size.
        batch_size: int.
        num_worst: int, how many of the images with the lowest mean IoU are kept. Images that
            are void all over are none of them.

    Returns:
        `Measured`.
    """
    num_classes, void = dataset.num_classes, dataset.ignore_class
    matrix = np.zeros((num_classes, num_classes), "int64")
    boundaries = np.zeros((num_classes, 4), "int64")
    bins = 0
    worst = []  # a heap: the best of the worst is at its front
    index = 0
    for images, masks in Batches(dataset, batch_size).read(epoch=0):
        logits = backend.infer(model, images)
        bins += metrics.calibration_bins(masks, metrics.probabilities(logits), void)
        for mask, predicted in zip(masks, metrics.class_ids(logits), strict=True):
            counts = metrics.confusion_matrix(mask, predicted, num_classes, void)
            matrix += counts
            boundaries += metrics.boundary_counts(mask, predicted, num_classes, void)
            if counts.any():
                small = predicted.astype("uint8" if num_classes <= 256 else "uint16")
                score = metrics.mean_iou(counts)
                heapq.heappush(worst, (-score, -index, Worst(score, index, counts, small)))
            if len(worst) > num_worst:
                heapq.heappop(worst)
            index += 1
    return Measured(matrix, boundaries, bins, [each for *_, each in sorted(worst, reverse=True)])


def confusion_matrix(model, dataset, batch_size):
    """Counts pixels by true and predicted class over a data set.

    Returns:
        NumPy array `(num_classes, num_classes)`, int64: rows are the truth, columns the
        prediction.
    """
    counter = metrics.MeanIoU(dataset.num_classes, ignore_class=dataset.ignore_class)
    for images, masks in Batches(dataset, batch_size).read(epoch=0):
        counter.update_state(masks, backend.infer(model, images))
    return counter.matrix()


def figures(matrix, class_names):
    """Turns a confusion matrix into the figures that are reported, as plain values."""
    dice, precision = metrics.dice_per_class(matrix), metrics.precision_per_class(matrix)
    iou, recall = metrics.iou_per_class(matrix), metrics.recall_per_class(matrix)
    return {
        "mean_iou": float(metrics.mean_iou(matrix)),
        "mean_dice": float(metrics.mean_dice(matrix)),
        "mean_precision": metrics.mean_of_present(precision),
        "mean_recall": metrics.mean_of_present(recall),
        "pixel_accuracy": float(metrics.pixel_accuracy(matrix)),
        "class_iou": by_class(class_names, iou),
        "class_dice": by_class(class_names, dice),
        "class_precision": by_class(class_names, precision),
        "class_recall": by_class(class_names, recall),
        "class_pixels": {
            name: int(pixels)
            for name, pixels in zip(class_names, np.sum(matrix, axis=1), strict=True)
        },
    }


def by_class(class_names, values):
    """Dict of class name -> float, None for NaN."""
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(class_names, values, strict=True)
    }


def describe(worst, dataset):
    """One of the worst images as plain values, with the confusion that cost it most pixels."""
    wrong = worst.matrix * (1 - np.eye(len(worst.matrix), dtype="int64"))
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    pixels = worst.matrix.sum()
    return {
        "name": dataset.item_name(worst.index),
        "mean_iou": worst.mean_iou,
        "wrong": float(wrong.sum() / pixels),
        "most": {
            "truth": dataset.class_names[truth],
            "predicted": dataset.class_names[predicted],
            "share": float(wrong.max() / pixels),
        }
        if wrong.any()
        else None,
    }


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
        sources = {name: page.image_source(cell, 320) for name, cell in shown.items()}
        gallery.append({**entry, "pictures": sources, "shape": mask.shape})
    matrix = np.array(result["confusion_matrix"])
    charts = {
        "confusion": page.svg(plot.confusion_matrix(matrix, names), "Confusion matrix"),
        "reliability": page.svg(
            plot.reliability(result["calibration_bins"]), "Accuracy over confidence"
        ),
    }
    return page.render(
        "evaluation.html.j2",
        {},
        result=result,
        experiment=run["experiment"],
        rows=rows,
        figures=CLASS_FIGURES,
        charts=charts,
        gallery=gallery,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        tolerance=max(1.0, metrics.BOUNDARY_TOLERANCE * math.hypot(*dataset.target_shape)),
        void=dataset.ignore_class is not None,
    )


def predict(
    folder,
    source,
    out,
    tell=lambda path: None,
    *,
    output="classes",
    full_size=False,
    tile=None,
    overlap=None,
    flips="none",
    scales=(1.0,),
    fold=False,
):
    """Writes masks for photos with the best model of a run.

    Each photo is brought to the size of the training, at which the network knows things, and the
    probabilities back to the photo's own size before the class is chosen. With `full_size` the
    photo is predicted at its own size, in tiles: for photos in which things are as large, in
    pixels, as in the images of the training.

    `OUT/NAME.png` holds label ids as the training masks do, with the colours of the classes as
    its palette; `OUT/overlays/NAME.png` shows the mask over the photo. Probabilities and
    entropy go to `OUT/NAME.npy`, float32; the overlay of the entropy is the entropy alone, from
    black (0) to bright yellow (log of the number of classes).

    Args:
        folder: the run folder.
        source: an image file or a folder of them; hidden files are left out.
        out: the folder to write to.
        tell: called with the path of each file that was written, overlays left out.
        output: `"classes"`, `"probabilities"` or `"entropy"`, as in
            `keras_segen.segmentation.Predictor`.
        full_size: bool, whether photos are predicted at their own size.
        tile: int or `(height, width)`, with `full_size`: size of the tiles; None is 512. The
            size of the training may be too small: near the edge of a tile a network sees no
            surroundings, and where tiles overlap little that shows as seams.
        overlap: int, with `full_size`: pixels that tiles share; None is a quarter of the tile.
        flips: str, as in `Predictor`.
        scales: tuple of floats, as in `Predictor`.
        fold: bool, as in `Predictor`.

    Returns:
        List of the paths written, overlays left out.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: there is no file in it, two files have one name, or one is no image; an
            option is out of range; or the run's model makes no masks.
    """
    if not full_size and (tile is not None or overlap is not None):
        raise ValueError(
            "tile and overlap cut photos at their own size, and these are brought to the size of "
            "the training: add full_size (--full-size), or leave both out."
        )
    run = load_run(folder)
    experiment = read(run["experiment"])
    if experiment.makes != "masks":
        raise ValueError(
            f"{folder} is a run of {experiment.model}, which makes {experiment.makes} and no "
            "masks: use keras-segen generate."
        )
    about = run["data"]
    height, width, channels = about["image_shape"]
    palette = np.array(about["palette"], "uint8")
    label_ids = np.array(about["label_ids"])
    paths = _photos(source)
    if full_size and tile is None:
        tile = DEFAULT_TILE
    predictor = Predictor(load_model(folder), tile, overlap, flips=flips, scales=scales, fold=fold)
    size = None if full_size else (height, width)
    written = []
    for path in paths:
        photo = read_image(path, channels)
        target = Path(out) / f"{path.stem}{'.png' if output == 'classes' else '.npy'}"
        if output == "classes":
            result = predictor.predict(photo, size=size)
            _write_mask(target, result, palette, label_ids)
        else:
            shape = photo.shape[:2] + (() if output == "entropy" else (predictor.num_classes,))
            with write_atomically(target) as temporary:
                result = np.lib.format.open_memmap(temporary, "w+", "float32", shape)
                predictor.predict(photo, output, out=result, size=size)
                result.flush()
                result._mmap.close()
            result = np.load(target, mmap_mode="r")
        overlay = Image.fromarray(_overlay(photo, result, output, palette))
        with write_atomically(Path(out) / "overlays" / f"{path.stem}.png") as temporary:
            overlay.save(temporary)
        written.append(target)
        tell(target)
    return written


def _overlay(photo, result, output, palette):
    """Draws a result over its photo, a few rows at a time: uint8 `(height, width, 3)`."""
    picture = np.empty((*photo.shape[:2], 3), "uint8")
    for first in range(0, len(photo), 256):
        rows = slice(first, first + 256)
        if output == "entropy":
            picture[rows] = plot.heat(result[rows], math.log(len(palette)))
        else:
            classes = result[rows] if output == "classes" else result[rows].argmax(axis=-1)
            picture[rows] = plot.overlay(to_float(photo[rows]), classes, palette)
    return picture


def _photos(source):
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name an image or a folder of images.")
    if source.is_file():
        return [source]
    paths = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"{source} holds no file: name a folder of images.")
    stems = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(
                f"{path} and {stems[path.stem]} would both be written to {path.stem}.png: "
                "rename one of them."
            )
        stems[path.stem] = path
    return paths


def _write_mask(path, classes, palette, label_ids):
    """Writes label ids as a PNG: with the palette, or 16-bit grey if an id is above 255."""
    if label_ids.max() > 255:
        image = Image.fromarray(label_ids.astype("uint16")[classes])
    else:
        image = Image.fromarray(label_ids.astype("uint8")[classes], mode="P")
        colours = np.zeros((256, 3), "uint8")
        colours[label_ids] = palette
        image.putpalette(colours.tobytes())
    with write_atomically(path) as temporary:
        image.save(temporary)
