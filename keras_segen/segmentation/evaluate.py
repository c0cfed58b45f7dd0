"""A network that labels pixels, judged over a data set: counts, figures, the worst images."""

import heapq
from typing import NamedTuple

import numpy as np

from keras_segen import backend, metrics
from keras_segen.data.loader import Batches


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
