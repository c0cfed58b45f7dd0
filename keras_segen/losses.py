"""Losses of segmentation: from class ids and logits to one number per batch.

Both take the masks as class ids and the model's logits, leave out the pixels of `ignore_class`,
and compute in float32 whatever the model computes in. Add and scale them as numbers:
`CrossEntropy() + 0.5 * Dice()`.
"""

import math

import keras
from keras import ops

from keras_segen import backend


class SegmentationLoss(keras.losses.Loss):
    """What the losses of this file share; a loss defines `batch_loss`.

    Keras' own base class asks for a loss per pixel and takes the mean. Here a loss sees the whole
    batch at once, since its mean is over the pixels that count.
    """

    def __init__(self, ignore_class=None, name=None):
        super().__init__(name=name, dtype="float32")
        self.ignore_class = ignore_class

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Returns the loss of a batch.

        Args:
            y_true: class ids, integers `(batch, height, width)` or `(batch, height, width, 1)`.
            y_pred: logits, `(batch, height, width, num_classes)`.
            sample_weight: None, or a weight per image `(batch,)` or per pixel
                `(batch, height, width)`, `(batch, height, width, 1)`.

        Returns:
            A float32 tensor without dimensions.

        Raises:
            ValueError: when the shapes do not fit, when the masks are not integers, or when a
                mask holds a label that is neither a class nor `ignore_class`. (For a label in a
                compiled TensorFlow graph: `tf.errors.InvalidArgumentError`.)
        """
        logits = ops.cast(y_pred, "float32")
        labels, valid = labels_and_valid(y_true, logits.shape, self.ignore_class)
        weights = ops.cast(valid, "float32")
        if sample_weight is not None:
            weights = weights * pixel_weights(sample_weight)
        return self.batch_loss(labels, valid, weights, logits)

    def __add__(self, other):
        if not isinstance(other, SegmentationLoss):
            return NotImplemented
        return SumOfLosses([*terms_of(self), *terms_of(other)])

    def __mul__(self, factor):
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return SumOfLosses([(factor * weight, loss) for weight, loss in terms_of(self)])

    __rmul__ = __mul__

    def get_config(self):
        return {"ignore_class": self.ignore_class, "name": self.name}


@keras.saving.register_keras_serializable(package="keras_segen")
class CrossEntropy(SegmentationLoss):
    """Cross-entropy of the softmax, averaged over the pixels that are not ignored.

    With `l` the loss of a pixel, `y` its class, `w` the class weights and `s` the sample weights,
    over the pixels that are not ignored:

        loss = sum(w[y] * s * l) / sum(w[y])

    as PyTorch's weighted mean. Sample weights are not in the divisor (as in Keras), so that
    doubling them doubles the loss. If every pixel is ignored, the loss is 0.

    Label smoothing is that of Keras and PyTorch: the target is `1 - label_smoothing` on the true
    class plus `label_smoothing / num_classes` on every class. The class weight is that of the
    true class for the whole of it (PyTorch weights the second part class by class).

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative, such as the inverse of the
            classes' frequency.
        label_smoothing: float in [0, 1).
        name: str.

    Raises:
        ValueError: when a class weight is negative or not finite, or `label_smoothing` is outside
            [0, 1); at the first call, when `class_weights` has not one number per class.

    Example:

    >>> import numpy as np
    >>> loss = CrossEntropy(ignore_class=255)
    >>> masks = np.array([[[0, 1, 255]]])
    >>> logits = np.array([[[[4.0, 0.0], [4.0, 0.0], [4.0, 0.0]]]])
    >>> round(float(loss(masks, logits)), 4)
    2.0181
    """

    def __init__(
        self, ignore_class=None, class_weights=None, label_smoothing=0.0, name="cross_entropy"
    ):
        super().__init__(ignore_class, name)
        if class_weights is not None:
            class_weights = tuple(float(weight) for weight in class_weights)
            if not all(math.isfinite(weight) and weight >= 0 for weight in class_weights):
                raise ValueError(
                    f"class_weights must be finite and not negative; found {class_weights}."
                )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1); found {label_smoothing}.")
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def batch_loss(self, labels, valid, weights, logits):
        num_classes = logits.shape[-1]
        # Computed here rather than by Keras' own cross-entropy, which on TensorFlow silently
        # takes back a softmax at the end of a model: the two backends would disagree.
        log_probabilities = ops.log_softmax(logits, axis=-1)
        of_true_class = ops.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
        losses = -of_true_class
        if self.label_smoothing > 0:
            smooth = -ops.mean(log_probabilities, axis=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * smooth

        total = ops.cast(valid, "float32")
        if self.class_weights is not None:
            if len(self.class_weights) != num_classes:
                raise ValueError(
                    f"class_weights has {len(self.class_weights)} numbers, but the logits have "
                    f"{num_classes} classes (shape {tuple(logits.shape)}): give one number per "
                    "class."
                )
            class_weights = ops.convert_to_tensor(self.class_weights, dtype="float32")
            of_pixels = ops.take(class_weights, labels, axis=0)
            weights = weights * of_pixels
            total = total * of_pixels
        total = ops.sum(total)
        return ops.sum(weights * losses) / ops.where(total > 0, total, 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "class_weights": self.class_weights,
            "label_smoothing": self.label_smoothing,
        }


@keras.saving.register_keras_serializable(package="keras_segen")
class Dice(SegmentationLoss):
    """Soft Dice loss: one minus the overlap of probabilities and truth, averaged over classes.

    With `p` the softmax probability of a class and `t` its truth (0 or 1), summed over all pixels
    of the batch that are not ignored, each times its sample weight:

        dice = 2 * sum(p * t) / (sum(p) + sum(t))
        loss = 1 - mean(dice over the classes that the truth holds)

    A class that the truth of the batch does not hold has no overlap to measure and is left out;
    probability spent on it is still missing elsewhere. If no pixel counts, the loss is 0.

    Reference: Milletari, Navab, Ahmadi (2016), "V-Net", https://arxiv.org/abs/1606.04797 (with
    squares in the divisor); Sudre et al. (2017), "Generalised Dice overlap",
    https://arxiv.org/abs/1707.03237 (with plain sums, as here).

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        name: str.

    Example:

    >>> import numpy as np
    >>> masks = np.array([[[0, 1]]])
    >>> logits = np.array([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> float(Dice()(masks, logits))
    0.5
    """

    def __init__(self, ignore_class=None, name="dice"):
        super().__init__(ignore_class, name)

    def batch_loss(self, labels, valid, weights, logits):
        num_classes = logits.shape[-1]
        weights = weights[..., None]
        probabilities = ops.softmax(logits, axis=-1) * weights
        truth = ops.one_hot(labels, num_classes, dtype="float32")
        every_pixel = (0, 1, 2)
        overlap = ops.sum(probabilities * truth, axis=every_pixel)  # (num_classes,)
        truth = ops.sum(truth * weights, axis=every_pixel)
        predicted = ops.sum(probabilities, axis=every_pixel)

        present = truth > 0
        dice = 2 * overlap / ops.where(present, predicted + truth, 1.0)
        present = ops.cast(present, "float32")
        return ops.sum(present * (1 - dice)) / ops.maximum(ops.sum(present), 1.0)


@keras.saving.register_keras_serializable(package="keras_segen")
class SumOfLosses(SegmentationLoss):
    """What `CrossEntropy() + 0.5 * Dice()` gives: losses, each times a number, summed.

    Args:
        terms: list of pairs `(weight, loss)`.
        name: str.
    """

    def __init__(self, terms, name="sum_of_losses"):
        super().__init__(name=name)
        self.terms = [tuple(term) for term in terms]

    def __call__(self, y_true, y_pred, sample_weight=None):
        return sum(weight * loss(y_true, y_pred, sample_weight) for weight, loss in self.terms)

    def get_config(self):
        terms = [[weight, keras.saving.serialize_keras_object(loss)] for weight, loss in self.terms]
        return {"terms": terms, "name": self.name}

    @classmethod
    def from_config(cls, config):
        terms = [
            (weight, keras.saving.deserialize_keras_object(loss))
            for weight, loss in config["terms"]
        ]
        return cls(terms, config["name"])


def terms_of(loss):
    return loss.terms if isinstance(loss, SumOfLosses) else [(1.0, loss)]


def labels_and_valid(y_true, logits_shape, ignore_class):
    """Checks masks against the shape of their logits and splits them in labels and validity.

    Args:
        y_true: class ids, integers `(batch, height, width)` or `(batch, height, width, 1)`.
        logits_shape: `(batch, height, width, num_classes)`; sizes may be None in a graph.
        ignore_class: int or None.

    Returns:
        labels: int32 `(batch, height, width)`, in `0 .. num_classes - 1`, 0 at ignored pixels.
        valid: bool `(batch, height, width)`, False at ignored pixels.

    Raises:
        ValueError: when the shapes do not fit, the masks are not integers, or a label is out of
            range (see `backend.check` for what the last one becomes in a compiled graph).
    """
    labels = ops.convert_to_tensor(y_true)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if "int" not in dtype and dtype != "bool":
        raise ValueError(
            f"Masks hold class ids and must be integers; found {dtype} of shape "
            f"{tuple(labels.shape)}. One-hot masks: use masks.argmax(-1); ids: "
            "masks.astype('int32')."
        )
    if len(labels.shape) == 4 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    shapes_fit = (
        len(labels.shape) == 3
        and len(logits_shape) == 4
        and all(
            found is None or expected is None or found == expected
            for found, expected in zip(labels.shape, logits_shape[:3], strict=True)
        )
    )
    if not shapes_fit:
        raise ValueError(
            "Expected masks (batch, height, width) and logits (batch, height, width, num_classes) "
            f"of the same size; found masks {tuple(labels.shape)} and logits "
            f"{tuple(logits_shape)}."
        )
    num_classes = logits_shape[-1]
    if num_classes < 2:
        raise ValueError(
            "The logits have 1 channel, so that their softmax is always 1. For two classes build "
            "the model with num_classes=2."
        )

    labels = ops.cast(labels, "int32")
    if ignore_class is None:
        valid = ops.ones_like(labels, dtype="bool")
    else:
        valid = labels != ignore_class
        labels = ops.where(valid, labels, 0)
    in_range = ops.logical_and(ops.min(labels) >= 0, ops.max(labels) < num_classes)
    backend.check(
        in_range,
        f"A mask holds a label that is not in 0..{num_classes - 1}, the {num_classes} classes of "
        f"the logits (ignore_class={ignore_class}). Look at the labels with "
        "numpy.unique(masks); a void label such as 255 must be given as ignore_class.",
    )
    # In a graph nothing orders the check before what uses the labels. Clipped, they cannot make
    # a lookup fail first, with a message that helps nobody.
    return ops.clip(labels, 0, num_classes - 1), valid


def pixel_weights(sample_weight):
    """Brings sample weights `(batch,)` or `(batch, height, width[, 1])` to 3 dimensions, float32.

    Raises:
        ValueError: when they have another number of dimensions.
    """
    weights = ops.cast(sample_weight, "float32")
    if len(weights.shape) == 4 and weights.shape[-1] == 1:
        return weights[..., 0]
    if len(weights.shape) == 3:
        return weights
    if len(weights.shape) == 1 or (len(weights.shape) == 2 and weights.shape[1] == 1):
        return ops.reshape(weights, (-1, 1, 1))
    raise ValueError(
        "sample_weight is one number per image (batch,) or per pixel (batch, height, width); "
        f"found shape {tuple(weights.shape)}."
    )
