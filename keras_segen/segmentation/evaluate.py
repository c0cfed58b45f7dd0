"""Evaluation of a segmentation network on a data set: counts, figures, the worst images."""

import heapq
import math
from typing import NamedTuple

import numpy as np

from keras_segen import backend, metrics, plot
from keras_segen.data.instances import as_instances
from keras_segen.data.loader import Batches
from keras_segen.report.evaluation import Evaluation, Shown
from keras_segen.report.numbers import percent, plain
from keras_segen.report.tables import Cell, Column, Table, decimals
from keras_segen.segmentation import partition
from keras_segen.segmentation.average_precision import AveragePrecision
from keras_segen.segmentation.components import find_objects

# What the table of classes shows, beside the share of pixels: key -> heading.
CLASS_FIGURES = {
    "iou": "IoU",
    "dice": "Dice",
    "precision": "Precision",
    "recall": "Recall",
    "boundary_f": "Boundary F",
}
MAX_COLUMNS = 40  # of a confusion matrix in numbers
MAX_SHOWN = 24  # images on the page
# From these on, pixels look good, objects are not, and the page says so.
GOOD_PIXELS, MANY_MERGED = 0.85, 0.1


def evaluate(model, dataset, batch_size=16, rim_above=None):
    """Evaluates a segmentation network on a data set.

    All figures come from counts over all pixels (see `keras_segen.metrics`); void pixels are left
    out. Logits are dropped after each batch, so that a data set of any length fits into memory.

    Args:
        model: a `keras.Model` from images `(batch, height, width, channels)` to logits.
        dataset: a `keras_segen.data.Dataset` with images of one size.
        batch_size: int.
        rim_above: float or None, if the data set tells objects apart: the probability of objects
            above which a pixel at the rim of a found one belongs to it, too. A network that was
            trained with `border_weight` needs it, as its borders are too wide:
            `1 / (2 + border_weight)`.

    Returns:
        A `keras_segen.report.evaluation.Evaluation`: in a notebook it is displayed as a page with
        the figures of every class, the confusion matrix, the calibration, and the worst, typical
        and best images.
        Its `figures`: `mean_iou`, `mean_dice`, `mean_precision`, `mean_recall`,
        `mean_boundary_f`, `pixel_accuracy`, `expected_calibration_error`, all from 0 to 1;
        `class_iou`, `class_dice`, `class_precision`, `class_recall`, `class_boundary_f` (dicts
        of class name -> float, or None where there is nothing to measure); `class_pixels` (dict
        of class name -> true pixels); `confusion_matrix` (rows: truth, columns: prediction);
        `boundary_counts` and `calibration_bins` as in `keras_segen.metrics`; `worst` (list of
        dicts, the lowest mean IoU first, at most 24) and `images`, their number. If the data set
        tells objects apart: the connected parts of its classes of objects are held against them,
        and there are all figures of `keras_segen.segmentation.partition.Partition`, and `mask_ap`,
        `mask_ap50`, `mask_ap75` as in `evaluate_instances`, with the mean probability of an
        object's pixels as its score.
    """
    counts = count(model, dataset, batch_size, rim_above=rim_above)
    boundary_f = metrics.boundary_f_score(counts.boundaries)
    found = {
        "images": len(dataset),
        **figures(counts.matrix, dataset.class_names),
        "mean_boundary_f": metrics.mean_of_present(boundary_f),
        "class_boundary_f": by_class(dataset.class_names, boundary_f),
        "expected_calibration_error": metrics.expected_calibration_error(counts.bins),
        "worst": [as_values(each, dataset) for each in counts.worst],
        "confusion_matrix": counts.matrix.tolist(),
        "boundary_counts": counts.boundaries.tolist(),
        "calibration_bins": counts.bins.tolist(),
    }
    names = dataset.class_names
    colors = [f"rgb({r}, {g}, {b})" for r, g, b in dataset.palette.tolist()]
    tables = [_table_of_classes(found, colors, dataset.ignore_class is not None)]
    sentences = [
        f"pixel_accuracy {found['pixel_accuracy']:.4f}, expected_calibration_error "
        f"{found['expected_calibration_error']:.4f}; {len(dataset)} images of {dataset.split}."
    ]
    cards = _cards(found, dataset)
    if counts.objects is not None:
        of_objects = counts.objects.figures()
        found |= of_objects
        tables.append(partition.table(of_objects))
        sentences.append(partition.sentence(of_objects))
        cards += partition.cards(of_objects)
    return Evaluation(
        subject=f"{model.name} on {dataset.name}, {dataset.split}",
        result=f"mean IoU {found['mean_iou']:.4f} over {len(dataset)} images",
        figures=found,
        tables=tables,
        sentences=sentences,
        warnings=_warnings(found),
        cards=cards,
        charts=_charts(counts, found, names),
        details=_details(found, names),
        gallery=_gallery(counts, dataset),
        legend=list(zip(names, colors, strict=True)),
    )


class Counts(NamedTuple):
    """What `count` returns.

    `matrix`: confusion matrix, int64 `(num_classes, num_classes)`. `boundaries`: int64
    `(num_classes, 4)`. `bins`: float64 `(15, 3)`. `worst`: list of `Scored`, the worst first.
    `typical`, `best`: the same of the images in the middle, and of the best one. `objects`: an
    `Objects`, or None if the data set does not tell objects apart.
    """

    matrix: np.ndarray
    boundaries: np.ndarray
    bins: np.ndarray
    worst: list
    typical: list
    best: list
    objects: object


class Scored(NamedTuple):
    """An image by its mean IoU: its index, its confusion matrix, its predicted class ids.

    `objects`: list of the `keras_segen.data.Instance` found in it, or None.
    """

    mean_iou: float
    index: int
    matrix: np.ndarray
    predicted: np.ndarray
    objects: list | None


def count(model, dataset, batch_size, num_worst=24, rim_above=None):
    """Counts all that `evaluate` reports, in one pass over a data set.

    Args:
        model: a `keras.Model` from images to logits.
        dataset: a `keras_segen.data.Dataset` with images of one size.
        batch_size: int.
        num_worst: int, how many of the images with the lowest mean IoU are kept. Images without
            valid pixels are skipped.
        rim_above: as in `evaluate`.

    Returns:
        `Counts`.
    """
    num_classes, void = dataset.num_classes, dataset.ignore_class
    matrix = np.zeros((num_classes, num_classes), "int64")
    boundaries = np.zeros((num_classes, 4), "int64")
    bins = 0
    worst = []  # a heap: the best of the worst is at its front
    best, scores, index = [], [], 0
    objects = Objects(dataset, rim_above) if dataset.object_classes else None
    for images, masks in Batches(dataset, batch_size).read(epoch=0):
        logits = backend.infer(model, images)
        found = metrics.class_ids(logits)
        probabilities = metrics.probabilities(logits)
        bins += metrics.calibration_bins(masks, probabilities, void)
        for mask, predicted, sure in zip(masks, found, probabilities, strict=True):
            instances = None
            if objects is not None:
                instances = objects.find(predicted, sure)
                objects.add(index, instances)
            counts = metrics.confusion_matrix(mask, predicted, num_classes, void)
            matrix += counts
            boundaries += metrics.boundary_counts(mask, predicted, num_classes, void)
            if counts.any():
                small = predicted.astype("uint8" if num_classes <= 256 else "uint16")
                each = Scored(metrics.mean_iou(counts), index, counts, small, instances)
                scores.append((each.mean_iou, index))
                heapq.heappush(worst, (-each.mean_iou, -index, each))
                if not best or each.mean_iou > best[0].mean_iou:
                    best = [each]
            if len(worst) > num_worst:
                heapq.heappop(worst)
            index += 1
    worst = [each for *_, each in sorted(worst, reverse=True)]
    typical = _typical(model, dataset, batch_size, sorted(scores), [*worst, *best], objects)
    return Counts(matrix, boundaries, bins, worst, typical, best, objects)


class Objects:
    """Holds the connected parts of classes against the objects of a data set.

    Args:
        dataset: a `keras_segen.data.Dataset` with `object_classes`.
        rim_above: as in `evaluate`.
    """

    def __init__(self, dataset, rim_above=None):
        self.rim_above = rim_above
        self.truth, self.classes = as_instances(dataset), dataset.object_classes
        self.partition = partition.Partition()
        self.precision = AveragePrecision(len(self.classes), "masks")

    def find(self, classes, probabilities):
        """Returns the objects in class ids and probabilities `(height, width, …)`: list."""
        names = self.truth.class_names
        return find_objects(classes, probabilities, self.classes, names, self.rim_above)

    def add(self, index, found):
        """Counts an image: its index, and what `find` returned."""
        _, true, void = self.truth.objects(index)
        found = partition.outside_void(found, void)
        self.partition.add(found, true, void)
        self.precision.add(*(partition.as_arrays(some, void.shape) for some in (found, true)))

    def figures(self):
        """Returns the figures of the partition, and the average precision."""
        precision = self.precision.figures()
        return {
            **self.partition.figures(),
            **{f"mask_{name.lower()}": precision[name] for name in ("AP", "AP50", "AP75")},
        }


def _typical(model, dataset, batch_size, scores, known, objects):
    """The images in the middle of all: those that are not known are predicted once more."""
    middle = len(scores) // 2
    found, known = [], {each.index: each for each in known}
    for score, index in scores[max(middle - 1, 0) : middle + 1]:
        if index not in known:
            image, mask = dataset[index]
            # A batch like the others, so that no graph is traced for it.
            images = np.repeat(image[None], min(batch_size, len(dataset)), axis=0)
            logits = backend.infer(model, images)[:1]
            predicted, sure = metrics.class_ids(logits)[0], metrics.probabilities(logits)[0]
            counts = metrics.confusion_matrix(
                mask, predicted, dataset.num_classes, dataset.ignore_class
            )
            instances = None if objects is None else objects.find(predicted, sure)
            known[index] = Scored(score, index, counts, predicted, instances)
        found.append(known[index])
    return found


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
    """The reported figures of a confusion matrix, as plain values."""
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
        "class_pixels": dict(zip(class_names, np.sum(matrix, axis=1).tolist(), strict=True)),
    }


def by_class(class_names, values):
    """Dict of class name -> float, None for NaN."""
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(class_names, values, strict=True)
    }


def _table_of_classes(found, colors, void):
    total = max(sum(found["class_pixels"].values()), 1)
    pixels = Column(
        "Pixels", lambda count: "" if count is None else percent(count / total), key="pixels"
    )
    note = (
        "From the counts of all pixels of the split"
        + ("; void pixels do not count" if void else "")
        + ". A dash where there is nothing to measure: a class that occurs neither in the truth "
        "nor in the prediction, or has no boundary."
    )
    means = [None, *(found[f"mean_{key}"] for key in CLASS_FIGURES)]
    return table_of_classes(found, CLASS_FIGURES, pixels, means, colors, note)


def table_of_classes(found, headings, counted, means, colors, note):
    """Lays out the figures of every class, the first one with a bar, and their means.

    Args:
        found: dict with `class_KEY` for each key of `headings`, and for that of `counted`: dicts
            by class name.
        headings: dict of key -> heading.
        counted: `Column`, of how much there is of each class.
        means: list, the total of what was counted, then a mean for each heading.
        colors: list of CSS colors, of the classes.
        note: str.

    Returns:
        A `keras_segen.report.tables.Table`.
    """
    rows = []
    for (name, count), color in zip(found[f"class_{counted.key}"].items(), colors, strict=True):
        values = [plain(found[f"class_{key}"][name]) for key in headings]  # nan becomes None
        first = Cell(values[0], bar=values[0] or 0)
        rows.append([Cell(name, swatch=color), count, first, *values[1:]])
    of_all = [Cell(plain(mean), mark="strong") for mean in means[1:]]
    columns = [Column(heading, decimals(3), key=key) for key, heading in headings.items()]
    return Table(
        "Classes",
        [Column("Class", str, numeric=False, key="class"), counted, *columns],
        rows,
        footer=[[Cell("Mean", mark="strong"), means[0], *of_all]],
        note=note,
    )


def _cards(found, dataset):
    tolerance = max(1.0, metrics.BOUNDARY_TOLERANCE * math.hypot(*dataset.image_shape[:2]))
    return [
        (title, f"{found[key]:.3f}", note)
        for title, key, note in (
            ("Mean IoU", "mean_iou", "over the classes that occur"),
            ("Mean Dice", "mean_dice", "over the classes that occur"),
            ("Pixel accuracy", "pixel_accuracy", "share of the pixels that are right"),
            ("Mean boundary F", "mean_boundary_f", f"within {tolerance:.1f} pixels"),
            ("Calibration error", "expected_calibration_error", "0 is best; 15 bins"),
        )
    ]


def _warnings(found):
    """Says when the figures of pixels hide that objects are merged."""
    merged, true = found.get("merged_objects", 0), found.get("true_objects", 0)
    if found["pixel_accuracy"] < GOOD_PIXELS or merged < max(MANY_MERGED * true, 1):
        return []
    return [
        f"{percent(found['pixel_accuracy'])} of the pixels are right, and yet {merged:,} of "
        f"{true:,} objects are merged with another: the borders between them are broken, which "
        f"figures of pixels hide. Judge by the adapted Rand error, "
        f"{found['adapted_rand_error']:.3f}. Training with --border-weight 10 makes borders count."
    ]


def _charts(counts, found, names):
    return [
        (
            "Confusion matrix",
            "Each row is a class of the truth: the share of its pixels, in percent, that was "
            "predicted as the column's class.",
            plot.confusion_matrix(counts.matrix, names),
        ),
        (
            "Calibration",
            "A calibrated model is right for 80 % of the pixels of which it is 80 % sure. Bars "
            "below the diagonal: surer than it should be. Expected calibration error "
            f"{found['expected_calibration_error']:.3f}.",
            plot.reliability(found["calibration_bins"]),
        ),
    ]


def _details(found, names):
    """The confusion matrix as numbers, if a page can hold them."""
    if len(names) > MAX_COLUMNS:
        return []
    rows = [[name, *counts] for name, counts in zip(names, found["confusion_matrix"], strict=True)]
    return [Table("The confusion matrix in pixels", ["Truth \\ predicted", *names], rows)]


def _gallery(counts, dataset):
    """The worst, typical and best images first, then the others of the worst."""
    kinds = (("Worst", counts.worst[:2]), ("Typical", counts.typical[:1]), ("Best", counts.best))
    kinds += (("Worst", counts.worst[2:]), ("Typical", counts.typical[1:]))
    chosen = [(kind, each) for kind, found in kinds for each in found]
    once = {}
    for kind, each in chosen:
        once.setdefault(each.index, (kind, each))
    shown = [_shown(kind, each, dataset) for kind, each in list(once.values())[:MAX_SHOWN]]
    note = (
        "By the mean IoU of each image over the classes that occur in its truth or prediction. "
        "Yellow: wrong pixels."
    )
    if counts.objects is not None:
        note += " Objects have colors by chance: one color over two true objects merges them."
    if dataset.ignore_class is not None:
        note += " Stripes: void, which does not count."
    title = f"The worst, typical and best of {len(dataset)} images"
    return (title, note, shown) if shown else None


def _shown(kind, each, dataset):
    void, words = dataset.ignore_class, as_values(each, dataset)
    image, mask = dataset[each.index]
    predicted = each.predicted.astype("int32")
    note = f"mean IoU {words['mean_iou']:.3f}, {percent(words['wrong'])} of the pixels wrong"
    if words["most"]:
        note += (
            f"; most of all {words['most']['truth']} taken for {words['most']['predicted']} "
            f"({percent(words['most']['share'])})"
        )
    pictures = {
        "image": plot.overlay(image, mask, dataset.palette, void, alpha=0.0),
        "truth": plot.overlay(image, mask, dataset.palette, void),
        "prediction": plot.overlay(image, predicted, dataset.palette),
        "wrong pixels": plot.difference(image, mask, predicted, void),
    }
    if each.objects is not None:
        found = partition.plane(each.objects, np.zeros(mask.shape, bool))
        pictures["true objects"] = plot.objects(image, dataset.instances(each.index))
        pictures["found objects"] = plot.objects(image, found)
    return Shown(f"{kind}: {words['name']}", note, pictures)


def as_values(scored, dataset):
    """An image as plain values, with the confusion that cost it most pixels."""
    wrong = scored.matrix * (1 - np.eye(len(scored.matrix), dtype="int64"))
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    pixels, names = scored.matrix.sum(), dataset.class_names
    most = {"truth": names[truth], "predicted": names[predicted]}
    most["share"] = float(wrong.max() / pixels)
    return {
        "name": dataset.item_name(scored.index),
        "mean_iou": scored.mean_iou,
        "wrong": float(wrong.sum() / pixels),
        "most": most if wrong.any() else None,
    }
