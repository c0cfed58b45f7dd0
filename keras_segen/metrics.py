"""Metrics of segmentation, all from one confusion matrix.

A confusion matrix counts, over every pixel seen so far, which class was there (row) and which one
was predicted (column). Intersection over union, Dice and accuracy are read off it at the end, so
nothing is averaged over batches: the result does not depend on how a data set was cut.

The functions on NumPy arrays (`iou_per_class(matrix)` …) compute from a saved matrix what the
Keras metrics (`MeanIoU(num_classes)` …) show during training.
"""

import keras
import numpy as np
from keras import ops

from keras_segen import backend
from keras_segen.losses import labels_and_valid, pixel_weights

# Counts are stored in units of 1/65536 of a pixel, so that sample weights too are summed as
# integers: an integer sum is exact and has no order.
UNITS = 65536


@keras.saving.register_keras_serializable(package="keras_segen")
class ConfusionMatrix(keras.metrics.Metric):
    """Counts of pixels by true class (rows) and predicted class (columns).

    In `compile`, use a metric with a single number: `MeanIoU`, `MeanDice`, `PixelAccuracy`,
    `ClassIoU`. This one is for loops of one's own; `matrix()` gives the exact counts.

    The counts are 64-bit integers, exact up to 10^14 pixels. Sample weights are rounded to
    multiples of 1/65536.

    Args:
        num_classes: int, at least 2.
        ignore_class: int or None, the label of the pixels that are left out.
        name: str.
        dtype: as in every Keras metric. It does not change the counts.

    Raises:
        ValueError: when `num_classes` is less than 2.

    Example:

    >>> import numpy as np
    >>> metric = ConfusionMatrix(2, ignore_class=255)
    >>> metric.update_state(np.array([[[0, 1, 255]]]), np.array([[[[3, 1], [3, 1], [3, 1]]]]))
    >>> metric.matrix()
    array([[1., 0.],
           [1., 0.]])
    """

    def __init__(self, num_classes, ignore_class=None, name="confusion_matrix", dtype=None):
        super().__init__(name=name, dtype=dtype)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2; found {num_classes}.")
        self.num_classes = num_classes
        self.ignore_class = ignore_class
        self.counts = self.add_variable(
            shape=(num_classes, num_classes), initializer="zeros", dtype="int64", name="counts"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts the pixels of a batch.

        Args:
            y_true: class ids, integers `(batch, height, width)` or `(batch, height, width, 1)`.
            y_pred: logits or probabilities, `(batch, height, width, num_classes)`; the largest
                one is the predicted class.
            sample_weight: None, or a weight per image `(batch,)` or per pixel
                `(batch, height, width)`, `(batch, height, width, 1)`, not negative.

        Raises:
            ValueError: when the shapes do not fit, when the masks are not integers, when a mask
                holds a label that is neither a class nor `ignore_class`, or when a weight is
                negative or NaN. (For labels and weights in a compiled TensorFlow graph:
                `tf.errors.InvalidArgumentError`.)
        """
        y_pred = ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"{self.name} was made for num_classes={self.num_classes}, but the logits have "
                f"{y_pred.shape[-1]} channels (shape {tuple(y_pred.shape)})."
            )
        labels, valid = labels_and_valid(y_true, y_pred.shape, self.ignore_class)
        predicted = ops.cast(ops.argmax(y_pred, axis=-1), "int32")

        # One bin per (truth, prediction), and a last one for ignored pixels.
        num_bins = self.num_classes**2
        bins = ops.where(valid, labels * self.num_classes + predicted, num_bins)
        bins = ops.reshape(bins, (-1,))
        if sample_weight is None:
            counts = backend.bincount(bins, num_bins + 1) * UNITS
        else:
            weights = pixel_weights(sample_weight)
            backend.check(ops.all(weights >= 0), "sample_weight holds a negative number or NaN.")
            weights = ops.cast(ops.round(weights * UNITS), "int64")
            weights = ops.reshape(ops.broadcast_to(weights, ops.shape(labels)), (-1,))
            counts = backend.bincount(bins, num_bins + 1, weights)
        counts = ops.reshape(counts[:num_bins], (self.num_classes, self.num_classes))
        self.counts.assign(self.counts + counts)

    def result(self):
        """Returns the counts: float32 `(num_classes, num_classes)`, rounded; see `matrix()`."""
        return ops.cast(self.counts, "float32") / UNITS

    def matrix(self):
        """Returns the counts as a NumPy array: float64 `(num_classes, num_classes)`."""
        return ops.convert_to_numpy(ops.convert_to_tensor(self.counts)) / UNITS

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_class": self.ignore_class,
        }


@keras.saving.register_keras_serializable(package="keras_segen")
class MeanIoU(ConfusionMatrix):
    """Intersection over union, averaged over the classes that occur in truth or prediction.

    0 if no pixel was counted.

    Args:
        num_classes: int, at least 2.
        ignore_class: int or None, the label of the pixels that are left out.
        name: str.
        dtype: as in every Keras metric. It does not change the counts.

    Example:

    >>> import numpy as np
    >>> metric = MeanIoU(2)
    >>> metric.update_state(np.array([[[0, 0, 1]]]), np.array([[[[3, 1], [1, 3], [1, 3]]]]))
    >>> float(metric.result())
    0.5
    """

    def __init__(self, num_classes, ignore_class=None, name="mean_iou", dtype=None):
        super().__init__(num_classes, ignore_class, name, dtype)

    def result(self):
        hits, truth, predicted = hits_truth_predicted(self.counts)
        return mean_ratio(hits, truth + predicted - hits)


@keras.saving.register_keras_serializable(package="keras_segen")
class MeanDice(ConfusionMatrix):
    """Dice coefficient (F1), averaged over the classes that occur in truth or prediction.

    0 if no pixel was counted.

    Args:
        num_classes: int, at least 2.
        ignore_class: int or None, the label of the pixels that are left out.
        name: str.
        dtype: as in every Keras metric. It does not change the counts.
    """

    def __init__(self, num_classes, ignore_class=None, name="mean_dice", dtype=None):
        super().__init__(num_classes, ignore_class, name, dtype)

    def result(self):
        hits, truth, predicted = hits_truth_predicted(self.counts)
        return mean_ratio(2 * hits, truth + predicted)


@keras.saving.register_keras_serializable(package="keras_segen")
class PixelAccuracy(ConfusionMatrix):
    """Share of the pixels whose class was predicted. 0 if no pixel was counted.

    Args:
        num_classes: int, at least 2.
        ignore_class: int or None, the label of the pixels that are left out.
        name: str.
        dtype: as in every Keras metric. It does not change the counts.
    """

    def __init__(self, num_classes, ignore_class=None, name="pixel_accuracy", dtype=None):
        super().__init__(num_classes, ignore_class, name, dtype)

    def result(self):
        hits, truth, _ = hits_truth_predicted(self.counts)
        return mean_ratio(ops.sum(hits), ops.sum(truth))


@keras.saving.register_keras_serializable(package="keras_segen")
class ClassIoU(ConfusionMatrix):
    """Intersection over union of one class. 0 if it occurs in neither truth nor prediction.

    Args:
        num_classes: int, at least 2.
        class_id: int, the class.
        ignore_class: int or None, the label of the pixels that are left out.
        name: str or None: `iou_class_<class_id>`.
        dtype: as in every Keras metric. It does not change the counts.

    Raises:
        ValueError: when `class_id` is not in `0 .. num_classes - 1`.
    """

    def __init__(self, num_classes, class_id, ignore_class=None, name=None, dtype=None):
        super().__init__(num_classes, ignore_class, name or f"iou_class_{class_id}", dtype)
        if not 0 <= class_id < num_classes:
            raise ValueError(f"class_id must be in 0..{num_classes - 1}; found {class_id}.")
        self.class_id = class_id

    def result(self):
        hits, truth, predicted = hits_truth_predicted(self.counts)
        union = truth + predicted - hits
        return mean_ratio(hits[self.class_id], union[self.class_id])

    def get_config(self):
        return {**super().get_config(), "class_id": self.class_id}


def hits_truth_predicted(counts):
    """Returns, for each class, the pixels that were right, true and predicted: int64 tensors."""
    counts = ops.convert_to_tensor(counts)
    return ops.diagonal(counts), ops.sum(counts, axis=1), ops.sum(counts, axis=0)


def mean_ratio(part, whole):
    """Mean of `part / whole` where whole is not 0: float32 without dimensions; 0 if nowhere."""
    present = whole > 0
    ratio = ops.cast(part, "float32") / ops.cast(ops.where(present, whole, 1), "float32")
    return ops.sum(ratio) / ops.maximum(ops.sum(ops.cast(present, "float32")), 1.0)


def iou_per_class(matrix):
    """Intersection over union of each class, from a confusion matrix.

    Args:
        matrix: array `(num_classes, num_classes)`, counts by truth (rows) and prediction
            (columns).

    Returns:
        float64 `(num_classes,)`; NaN for a class that occurs in neither truth nor prediction.

    Raises:
        ValueError: when the matrix is not square.

    Example:

    >>> iou_per_class([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    array([0.5, 0.5, nan])
    """
    matrix = square(matrix)
    hits = np.diagonal(matrix)
    return ratio_or_nan(hits, matrix.sum(1) + matrix.sum(0) - hits)


def dice_per_class(matrix):
    """Dice coefficient (F1) of each class, from a confusion matrix; as `iou_per_class`.

    Example:

    >>> dice_per_class([[1, 2, 0], [0, 1, 0], [0, 0, 0]])
    array([0.5, 0.5, nan])
    """
    matrix = square(matrix)
    return ratio_or_nan(2 * np.diagonal(matrix), matrix.sum(1) + matrix.sum(0))


def mean_iou(matrix):
    """Mean of `iou_per_class` over the classes that occur, a float; 0 if none does."""
    return mean_of_present(iou_per_class(matrix))


def mean_dice(matrix):
    """Mean of `dice_per_class` over the classes that occur, a float; 0 if none does."""
    return mean_of_present(dice_per_class(matrix))


def pixel_accuracy(matrix):
    """Share of the pixels whose class was predicted, a float; 0 if there are no pixels."""
    matrix = square(matrix)
    return float(np.trace(matrix) / matrix.sum()) if matrix.any() else 0.0


def square(matrix):
    matrix = np.asarray(matrix, "float64")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"A confusion matrix has the shape (num_classes, num_classes); found {matrix.shape}."
        )
    return matrix


def ratio_or_nan(part, whole):
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def mean_of_present(values):
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else 0.0
