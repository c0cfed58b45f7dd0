"""Segmentation metrics, computed from counts that add up.

A confusion matrix counts all pixels so far by true class (row) and predicted class (column).
Intersection over union, Dice and accuracy are computed from it at the end, so nothing is averaged
over batches: the result does not depend on how a data set was split. Boundaries
(`boundary_counts`) and confidences (`calibration_bins`) are counted likewise: add up the counts
of all images, then compute the figure.

The functions on NumPy arrays (`iou_per_class(matrix)` …) compute from a saved matrix what the
Keras metrics (`MeanIoU(num_classes)` …) show during training.
"""

import cv2
import keras
import numpy as np
from keras import ops

from keras_segen import backend
from keras_segen.arguments import as_int
from keras_segen.losses import labels_and_valid, pixel_weights

# Counts are stored in units of 1/65536 of a pixel, so that sample weights too are summed as
# integers: an integer sum is exact and has no order.
UNITS = 65536

BOUNDARY_TOLERANCE = 0.0075  # of the image's diagonal: Csurka et al. 2013


@keras.saving.register_keras_serializable(package="keras_segen")
class ConfusionMatrix(keras.metrics.Metric):
    """Counts of pixels by true class (rows) and predicted class (columns).

    In `compile`, use a metric with a single number: `MeanIoU`, `MeanDice`, `PixelAccuracy`,
    `ClassIoU`. This one is for custom loops; `matrix()` returns the exact counts.

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
        if (as_int(num_classes) or 0) < 2:
            raise ValueError(
                f"num_classes must be an integer of at least 2; found {num_classes!r}."
            )
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
                one is the predicted class. For two classes also `(batch, height, width, 1)`:
                the logit of class 1, which is predicted where it is above 0.
            sample_weight: None, or a weight per image `(batch,)` or per pixel
                `(batch, height, width)`, `(batch, height, width, 1)`, not negative.

        Raises:
            ValueError: when the shapes do not fit, when the masks are not integers, when a mask
                holds a label that is neither a class nor `ignore_class`, or when a weight is
                negative or NaN. (For labels and weights in a compiled TensorFlow graph:
                `tf.errors.InvalidArgumentError`.)
        """
        y_pred = ops.convert_to_tensor(y_pred)
        one_channel = y_pred.shape[-1] == 1 and self.num_classes == 2
        if y_pred.shape[-1] != self.num_classes and not one_channel:
            raise ValueError(
                f"{self.name} was made for num_classes={self.num_classes}, but the logits have "
                f"{y_pred.shape[-1]} channels (shape {tuple(y_pred.shape)})."
            )
        labels, valid = labels_and_valid(y_true, y_pred.shape, self.ignore_class)
        predicted = y_pred[..., 0] > 0 if one_channel else ops.argmax(y_pred, axis=-1)
        predicted = ops.cast(predicted, "int32")

        # One bin per (truth, prediction), and a last one for ignored pixels.
        num_bins = self.num_classes**2
        bins = ops.where(valid, labels * self.num_classes + predicted, num_bins)
        bins = ops.reshape(bins, (-1,))
        if sample_weight is None:
            counts = backend.bincount(bins, num_bins + 1) * UNITS
        else:
            weights = pixel_weights(sample_weight, labels.shape)
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
    """Returns the right, the true and the predicted pixels of each class: int64 tensors."""
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


def precision_per_class(matrix):
    """Share of the pixels predicted as a class that are of this class, from a confusion matrix.

    0 for a class that is there and never predicted, so that it pulls the mean down.

    Args:
        matrix: array `(num_classes, num_classes)`, counts by truth (rows) and prediction
            (columns).

    Returns:
        float64 `(num_classes,)`; NaN for a class that occurs in neither truth nor prediction.

    Raises:
        ValueError: when the matrix is not square.

    Example:

    >>> precision_per_class([[1, 3, 0], [0, 1, 0], [0, 0, 0]])
    array([1.  , 0.25,  nan])
    """
    matrix = square(matrix)
    return ratio_of_occurring(np.diagonal(matrix), matrix.sum(0), matrix)


def recall_per_class(matrix):
    """Share of the pixels of a class that were predicted as such; as `precision_per_class`.

    0 for a class that is not there and was predicted.

    Example:

    >>> recall_per_class([[1, 3, 0], [0, 1, 0], [0, 0, 0]])
    array([0.25, 1.  ,  nan])
    """
    matrix = square(matrix)
    return ratio_of_occurring(np.diagonal(matrix), matrix.sum(1), matrix)


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


def ratio_of_occurring(part, whole, matrix):
    occurs = (matrix.sum(0) + matrix.sum(1)) > 0
    return np.where(occurs, np.nan_to_num(ratio_or_nan(part, whole)), np.nan)


def mean_of_present(values):
    """Mean of the values that are not NaN, a float; 0 if all are."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else 0.0


def class_ids(logits):
    """The class of every pixel: where the logit is largest; for one channel, whether it is > 0.

    Args:
        logits: array `(..., num_classes)`, or `(..., 1)`: the logit of class 1 against class 0.

    Returns:
        int32 `(...)`.

    Raises:
        ValueError: when a logit is NaN.
    """
    logits = np.asarray(logits)
    if np.isnan(logits).any():
        raise ValueError(
            "The logits hold NaN, which is no class: the network's weights or its images are not "
            "finite. keras-segen train --check-numerics names the layer that makes them."
        )
    if logits.shape[-1] == 1:
        return (logits[..., 0] > 0).astype("int32")
    return logits.argmax(axis=-1).astype("int32")


def probabilities(logits):
    """The probability of every class: the softmax; for one channel, the sigmoid and the rest.

    Args:
        logits: array `(..., num_classes)`, or `(..., 1)`: the logit of class 1 against class 0.

    Returns:
        float32 `(..., num_classes)`, two classes for one channel; the sum over them is 1.

    Example:

    >>> probabilities([[0.0, 0.0]]).tolist(), probabilities([[0.0]]).tolist()
    ([[0.5, 0.5]], [[0.5, 0.5]])
    """
    logits = np.asarray(logits, "float32")
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def confusion_matrix(masks, predicted, num_classes, ignore_class=None):
    """Counts pixels by true class (rows) and predicted class (columns), in NumPy.

    Args:
        masks: class ids, integers of any shape.
        predicted: class ids, integers of the same shape, in `0 .. num_classes - 1`.
        num_classes: int.
        ignore_class: int or None, the label of the pixels that are left out.

    Returns:
        int64 `(num_classes, num_classes)`.

    Raises:
        ValueError: when the shapes differ or an id is out of range.

    Example:

    >>> confusion_matrix([0, 1, 255], [0, 0, 0], num_classes=2, ignore_class=255)
    array([[1, 0],
           [1, 0]])
    """
    masks, predicted, valid = checked_ids(masks, predicted, num_classes, ignore_class)
    bins = masks[valid].astype("int64") * num_classes + predicted[valid]
    return np.bincount(bins, minlength=num_classes**2).reshape(num_classes, num_classes)


def boundary_counts(truth, predicted, num_classes, ignore_class=None, tolerance=BOUNDARY_TOLERANCE):
    """Counts the boundary pixels of one image, and those that match.

    A boundary pixel of a class has one of its four neighbors in another class. It is matched if
    a boundary pixel of the same class in the other mask is at most the tolerance away, in a
    straight line.

    Void has no boundary, since its edge may be the object's or the annotator's. As the true
    boundary may run anywhere inside, pixels within the tolerance of void count neither as matched
    nor as missed; pixels farther away may still match them.

    Reference: Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013, with the same tolerance. They average the score over images; here
    the pixels of all images are added up first, so that an image with three boundary pixels does
    not weigh as much as one with thousands.

    Args:
        truth: class ids, integers `(height, width)`.
        predicted: class ids, integers `(height, width)`, in `0 .. num_classes - 1`.
        num_classes: int.
        ignore_class: int or None, the label of void in `truth`.
        tolerance: float, share of the image's diagonal. It is at least one pixel, since the edge
            between two pixels belongs to both.

    Returns:
        int64 `(num_classes, 4)`: true boundary pixels, those of them that are matched,
        predicted boundary pixels, those of them that are matched. Add up those of all images
        and take `boundary_f_score`.

    Raises:
        ValueError: when the shapes are not `(height, width)` or differ, or an id is out of range.

    Example:

    >>> boundary_counts([[0, 0, 0, 1]], [[0, 0, 1, 1]], num_classes=2)
    array([[1, 1, 1, 1],
           [1, 1, 1, 1]])
    """
    truth, predicted, valid = checked_ids(truth, predicted, num_classes, ignore_class)
    if truth.ndim != 2:
        raise ValueError(
            f"Boundaries are those of one image, (height, width); found {truth.shape}. "
            "Count image by image and add up."
        )
    height, width = truth.shape
    reach = max(1.0, tolerance**2 * (height**2 + width**2))  # squared, in pixels
    true_edges, predicted_edges = edges(truth, valid), edges(predicted, valid)
    counted = ~within(~valid, reach)
    counts = np.zeros((num_classes, 4), "int64")
    for class_id in np.union1d(truth[true_edges], predicted[predicted_edges]):
        of_truth = true_edges & (truth == class_id)
        of_prediction = predicted_edges & (predicted == class_id)
        window = bounding_box(of_truth | of_prediction)  # nothing to match outside
        of_truth, of_prediction, here = of_truth[window], of_prediction[window], counted[window]
        counts[class_id] = [
            np.count_nonzero(of_truth & here),
            np.count_nonzero(of_truth & here & within(of_prediction, reach)),
            np.count_nonzero(of_prediction & here),
            np.count_nonzero(of_prediction & here & within(of_truth, reach)),
        ]
    return counts


def boundary_f_score(counts):
    """Boundary F-score (BF) of each class: harmonic mean of boundary precision and recall.

    Args:
        counts: array `(num_classes, 4)`, the sum of the `boundary_counts` of all images.

    Returns:
        float64 `(num_classes,)`; NaN for a class without true boundary. (Boundaries predicted for
        it lower the precision of the classes around it.)

    Raises:
        ValueError: when the counts have another shape.

    Example:

    >>> boundary_f_score([[10, 8, 10, 8], [4, 2, 0, 0], [0, 0, 5, 0]])
    array([0.8, 0. , nan])
    """
    counts = np.asarray(counts, "float64")
    if counts.ndim != 2 or counts.shape[1] != 4:
        raise ValueError(
            "Boundary counts have the shape (num_classes, 4), as `boundary_counts` returns them; "
            f"found {counts.shape}."
        )
    recall = np.nan_to_num(ratio_or_nan(counts[:, 1], counts[:, 0]))
    precision = np.nan_to_num(ratio_or_nan(counts[:, 3], counts[:, 2]))
    score = np.nan_to_num(ratio_or_nan(2 * precision * recall, precision + recall))
    return np.where(counts[:, 0] > 0, score, np.nan)


def edges(labels, valid):
    """Pixels that have a valid neighbor of another class above, below or beside: bool."""
    found = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[one] != labels[other]) & valid[one] & valid[other]
        found[one] |= differ
        found[other] |= differ
    return found


def bounding_box(pixels):
    """The smallest window, a pair of slices, with all the true `pixels`; there is one."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def within(pixels, reach):
    """Pixels whose squared distance to one of `pixels` is at most `reach`: bool, as `pixels`."""
    if not pixels.any():
        return np.zeros(pixels.shape, bool)
    background = (~pixels).astype("uint8")
    distance = cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(distance**2) <= reach  # a squared distance of pixels is a whole number


def calibration_bins(masks, probabilities, ignore_class=None, num_bins=15):
    """Counts pixels, and right ones, by the confidence of the prediction.

    Args:
        masks: class ids, integers of any shape.
        probabilities: array, the shape of the masks and `num_classes` behind it, in [0, 1].
        ignore_class: int or None, the label of the pixels that are left out.
        num_bins: int; bin `m` holds the confidences in `(m / num_bins, (m + 1) / num_bins]`.

    Returns:
        float64 `(num_bins, 3)`: number of pixels, how many of them were right, and the sum of
        their confidences (the probability of the predicted class). Add up those of all batches
        and take `expected_calibration_error`. Confidences are rounded to 2^-20, so that their
        sum is exact, whatever the order, up to 8·10^9 pixels.

    Raises:
        ValueError: when shapes do not fit, an id is out of range, or what should be
            probabilities is not in [0, 1].

    Example:

    >>> calibration_bins([0, 1], [[0.75, 0.25], [0.75, 0.25]], num_bins=2)
    array([[0. , 0. , 0. ],
           [2. , 1. , 1.5]])
    """
    probabilities = np.asarray(probabilities)
    if not (probabilities.min() >= 0 and probabilities.max() <= 1.0001):  # so that NaN fails too
        raise ValueError(
            f"Probabilities lie in [0, 1]; found {probabilities.min()} to {probabilities.max()}. "
            "Of logits take metrics.probabilities(logits)."
        )
    predicted = probabilities.argmax(axis=-1)
    masks, predicted, valid = checked_ids(masks, predicted, probabilities.shape[-1], ignore_class)
    confidence = probabilities.max(axis=-1)[valid].astype("float64")
    confidence = np.rint(np.minimum(confidence, 1) * 2**20) / 2**20
    bins = np.maximum(np.ceil(confidence * num_bins).astype("int64") - 1, 0)
    right = masks[valid] == predicted[valid]
    columns = (None, right, confidence)
    return np.stack([np.bincount(bins, column, num_bins) for column in columns], axis=1).astype(
        "float64"
    )


def expected_calibration_error(bins):
    """Expected calibration error, the mean difference of confidence and accuracy: a float.

    The mean over pixels of the difference, in absolute value, between the accuracy and the mean
    confidence of the pixel's bin. 0 if there are no pixels.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    Args:
        bins: array `(num_bins, 3)`, the sum of the `calibration_bins` of all batches.

    Example:

    >>> expected_calibration_error([[0, 0, 0], [4, 2, 3]])
    0.25
    """
    pixels, right, confidence = np.asarray(bins, "float64").T
    return float(np.abs(right - confidence).sum() / pixels.sum()) if pixels.any() else 0.0


def checked_ids(masks, predicted, num_classes, ignore_class):
    """Returns both as integer arrays, and where masks are valid; checks all ids."""
    masks, predicted = np.asarray(masks), np.asarray(predicted)
    if masks.shape != predicted.shape:
        raise ValueError(
            f"Expected masks and predictions of one shape; found {masks.shape} and "
            f"{predicted.shape}."
        )
    valid = np.ones(masks.shape, bool) if ignore_class is None else masks != ignore_class
    expected = f"0..{num_classes - 1}"
    or_void = "" if ignore_class is None else f" nor ignore_class ({ignore_class})"
    for name, ids, end in (("masks", masks, or_void), ("predictions", predicted, "")):
        if ids.dtype.kind not in "iu":
            raise ValueError(f"The {name} must be integers, class ids; found {ids.dtype}.")
        outside = valid & ((ids < 0) | (ids >= num_classes))
        if outside.any():
            raise ValueError(
                f"The {name} hold the id {ids[outside][0]}, which is not in {expected}{end}."
            )
    return masks, predicted, valid
