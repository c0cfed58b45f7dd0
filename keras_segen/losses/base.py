"""What all losses share: checks of masks, ignored pixels, weights, sums of losses."""

import keras
from keras import ops

from keras_segen import backend
from keras_segen.arguments import check_weights

# Bases of powers stay above this; about the resolution of float32 at 1.
TINY = 1e-7


class SegmentationLoss(keras.losses.Loss):
    """The base class of all losses; a loss defines `batch_loss`.

    Keras' own base class averages a loss per pixel. Here a loss sees the whole batch at once, since
    its mean is over the pixels that count.

    Under `tf.distribute` a loss sees the part of the batch on its replica, and the mean of the
    replicas' losses is minimized. That equals the loss of the whole batch if each part has as many
    pixels that count; with ignored pixels, class weights or overlap losses it does not.

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative.
        name: str.

    Raises:
        ValueError: when a class weight is no number, negative or not finite; at the first call,
            when `class_weights` has not one number per class.
    """

    def __init__(self, ignore_class=None, class_weights=None, name=None):
        super().__init__(name=name, dtype="float32")
        if class_weights is not None:
            class_weights = check_weights(class_weights)
        self.ignore_class = ignore_class
        self.class_weights = class_weights

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Returns the loss of a batch.

        Args:
            y_true: class ids, integers `(batch, height, width)` or `(batch, height, width, 1)`.
            y_pred: logits, `(batch, height, width, num_classes)`, or `(batch, height, width, 1)`
                for masks of 0 and 1.
            sample_weight: None, or a weight per image `(batch,)` or per pixel
                `(batch, height, width)`, `(batch, height, width, 1)`.

        Returns:
            A float32 tensor without dimensions; float64 for logits in float64.

        Raises:
            ValueError: when the shapes do not fit, when the masks are not integers, or when a
                mask holds a label that is neither a class nor `ignore_class`. (For a label in a
                compiled TensorFlow graph: `tf.errors.InvalidArgumentError`.)
        """
        logits = ops.convert_to_tensor(y_pred)
        if keras.backend.standardize_dtype(logits.dtype) != "float64":
            logits = ops.cast(logits, "float32")
        labels, valid = labels_and_valid(y_true, logits.shape, self.ignore_class)
        self.check_channels(logits.shape[-1])
        weights = ops.cast(valid, logits.dtype)
        if sample_weight is not None:
            weights = weights * pixel_weights(sample_weight, labels.shape, logits.dtype)
        return backend.share_of_replica(self.batch_loss(labels, valid, weights, logits))

    def check_channels(self, num_channels):
        num_classes = max(num_channels, 2)
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers, but the logits have "
                f"{num_classes} classes: give one number per class."
            )

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
        return {
            "ignore_class": self.ignore_class,
            "class_weights": self.class_weights,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_segen")
class SumOfLosses(SegmentationLoss):
    """A weighted sum of losses, such as `CrossEntropy() + 0.5 * Dice()`.

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
        load = keras.saving.deserialize_keras_object
        return cls([(weight, load(loss)) for weight, loss in config["terms"]], config["name"])


def terms_of(loss):
    return loss.terms if isinstance(loss, SumOfLosses) else [(1.0, loss)]


def two_or_more(logits):
    """Converts logits of one channel, z, to the two logits (0, z); others stay unchanged."""
    if logits.shape[-1] > 1:
        return logits
    return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)


def labels_and_valid(y_true, logits_shape, ignore_class):
    """Checks masks against the shape of their logits; splits them into labels and validity.

    Args:
        y_true: class ids, integers `(batch, height, width)` or `(batch, height, width, 1)`.
        logits_shape: `(batch, height, width, num_classes)`, with 1 channel for two classes;
            sizes may be None in a graph.
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
    dimensions_fit = len(labels.shape) == 3 and len(logits_shape) == 4
    sides = zip(labels.shape, logits_shape[:3], strict=True)
    if not dimensions_fit or any(None not in pair and pair[0] != pair[1] for pair in sides):
        raise ValueError(
            "Expected masks (batch, height, width) and logits (batch, height, width, num_classes) "
            f"of the same size; found masks {tuple(labels.shape)} and logits "
            f"{tuple(logits_shape)}."
        )
    if 0 in labels.shape:
        raise ValueError(
            f"The batch is empty: masks {tuple(labels.shape)}. A loss or metric needs one pixel."
        )
    num_classes = max(logits_shape[-1], 2)  # one channel is the logit of class 1 of two

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
    # In a graph, a lookup of the labels may run before the check; clipped labels keep it from
    # failing first, with a useless message.
    return ops.clip(labels, 0, num_classes - 1), valid


def pixel_weights(sample_weight, masks_shape, dtype="float32"):
    """Reshapes sample weights `(batch,)` or `(batch, height, width[, 1])` to 3 dimensions.

    Raises:
        ValueError: when they have another number of dimensions, or do not fit masks
            `(batch, height, width)`.
    """
    weights = ops.cast(sample_weight, dtype)
    if len(weights.shape) == 4 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    elif len(weights.shape) == 1 or (len(weights.shape) == 2 and weights.shape[1] == 1):
        weights = ops.reshape(weights, (-1, 1, 1))
    if len(weights.shape) == 3 and all(
        found in (None, 1, expected) or expected is None
        for found, expected in zip(weights.shape, masks_shape, strict=True)
    ):
        return weights
    raise ValueError(
        "sample_weight is one number per image (batch,) or per pixel (batch, height, width); "
        f"found shape {tuple(sample_weight.shape)} for masks {tuple(masks_shape)}."
    )
