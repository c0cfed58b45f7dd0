"""Losses that compare, for each class, the overlap of truth and prediction."""

import keras
from keras import ops

from keras_segen.arguments import check_number
from keras_segen.losses.base import TINY, SegmentationLoss, two_or_more


class ClassLoss(SegmentationLoss):
    """The weighted mean of the losses of all classes that occur in the truth.

    With `l` the loss of a class and `w` its weight:

        loss = sum(w * l) / sum(w)

    A class that the truth of the batch does not hold has no overlap to measure and is left out;
    probability spent on it is still missing elsewhere. If no pixel counts, the loss is 0.

    Logits of one channel have one class to measure, class 1; class weights are then not allowed.
    """

    def check_channels(self, num_channels):
        if num_channels == 1 and self.class_weights is not None:
            raise ValueError(
                "Logits of 1 channel leave one class to measure, so class_weights would change "
                "nothing: leave them out, or build the model with num_classes=2."
            )
        super().check_channels(num_channels)

    def mean_over_classes(self, losses, present):
        """Averages losses `(num_classes,)` over the classes that are present."""
        weights = ops.cast(present, losses.dtype)
        if self.class_weights is not None:
            weights = weights * ops.convert_to_tensor(self.class_weights, dtype=losses.dtype)
        total = ops.sum(weights)
        return ops.sum(weights * losses) / ops.where(total > 0, total, 1.0)


class OverlapLoss(ClassLoss):
    """Base class of losses computed from three sums over all pixels of the batch.

    With `p` the probability of a class and `t` its truth (0 or 1), each pixel times its sample
    weight and 0 if it is ignored: `overlap = sum(p * t)`, `predicted = sum(p)`, `true = sum(t)`.
    A loss defines `class_losses`, from these to a loss for each class.
    """

    def batch_loss(self, labels, valid, weights, logits):
        first = 1 if logits.shape[-1] == 1 else 0  # the first class that is measured
        logits = two_or_more(logits)
        weights = weights[..., None]
        probabilities = ops.softmax(logits, axis=-1) * weights
        truth = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        every_pixel = (0, 1, 2)
        overlap = ops.sum(probabilities * truth, axis=every_pixel)[first:]  # (num_classes,)
        predicted = ops.sum(probabilities, axis=every_pixel)[first:]
        true = ops.sum(truth * weights, axis=every_pixel)[first:]
        present = true > 0
        true = ops.where(present, true, 1.0)  # keeps divisors of absent classes from 0
        return self.mean_over_classes(self.class_losses(overlap, predicted, true), present)


@keras.saving.register_keras_serializable(package="keras_segen")
class Dice(OverlapLoss):
    """Soft Dice loss: one minus the overlap of probabilities and truth, averaged over classes.

    With `p` the softmax probability of a class and `t` its truth (0 or 1), summed over all pixels
    of the batch that are not ignored, each times its sample weight:

        dice = 2 * sum(p * t) / (sum(p) + sum(t))
        loss = 1 - mean(dice over the classes that the truth holds)

    A class that the truth of the batch does not hold has no overlap to measure and is left out;
    probability spent on it is still missing elsewhere. If no pixel counts, the loss is 0. With
    logits of one channel, `p` is the sigmoid and class 1 the only class.

    Reference: Milletari, Navab, Ahmadi (2016), "V-Net", https://arxiv.org/abs/1606.04797 (with
    squares in the divisor); Sudre et al. (2017), "Generalised Dice overlap",
    https://arxiv.org/abs/1707.03237 (with plain sums, as here).

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative, for the mean over the classes.
        name: str.

    Raises:
        ValueError: when a class weight is negative or not finite; at the first call, when
            `class_weights` has not one number per class, or the logits have one channel.

    Example:

    >>> import numpy as np
    >>> masks = np.array([[[0, 1]]])
    >>> logits = np.array([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> float(Dice()(masks, logits))
    0.5
    """

    def __init__(self, ignore_class=None, class_weights=None, name="dice"):
        super().__init__(ignore_class, class_weights, name)

    def class_losses(self, overlap, predicted, true):
        return 1 - 2 * overlap / (predicted + true)


@keras.saving.register_keras_serializable(package="keras_segen")
class Jaccard(OverlapLoss):
    """Soft Jaccard loss: one minus intersection over union, averaged over classes.

    As `Dice`, with

        jaccard = sum(p * t) / (sum(p) + sum(t) - sum(p * t))

    Reference: Rahman and Wang (2016), "Optimizing Intersection-Over-Union in Deep Neural Networks
    for Image Segmentation", ISVC.

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative, for the mean over the classes.
        name: str.

    Raises:
        ValueError: for class weights, as `Dice`.

    Example:

    >>> import numpy as np
    >>> masks = np.array([[[0, 1]]])
    >>> logits = np.array([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> round(float(Jaccard()(masks, logits)), 4)
    0.6667
    """

    def __init__(self, ignore_class=None, class_weights=None, name="jaccard"):
        super().__init__(ignore_class, class_weights, name)

    def class_losses(self, overlap, predicted, true):
        return 1 - overlap / (predicted + true - overlap)


@keras.saving.register_keras_serializable(package="keras_segen")
class Tversky(OverlapLoss):
    """Tversky loss: an overlap with separate weights for false positives and false negatives.

    As `Dice`, with

        tversky = sum(p * t) / (sum(p * t) + alpha * sum(p * (1 - t)) + beta * sum((1 - p) * t))

    averaged over classes. beta above alpha raises recall at the cost of precision. alpha = beta =
    0.5 is `Dice`, alpha = beta = 1 is `Jaccard`.

    Reference: Salehi, Erdogmus, Gholipour (2017), "Tversky loss function for image segmentation
    using 3D fully convolutional deep networks", https://arxiv.org/abs/1706.05721.

    Args:
        alpha: float above 0, the weight of false positives.
        beta: float above 0, the weight of false negatives.
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative, for the mean over the classes.
        name: str.

    Raises:
        ValueError: when `alpha` or `beta` is not finite and above 0; for class weights, as `Dice`.

    Example:

    >>> import numpy as np
    >>> masks = np.array([[[0, 1]]])
    >>> logits = np.array([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> float(Tversky(alpha=0.5, beta=0.5)(masks, logits))
    0.5
    """

    def __init__(self, alpha=0.3, beta=0.7, ignore_class=None, class_weights=None, name="tversky"):
        super().__init__(ignore_class, class_weights, name)
        for argument, value in (("alpha", alpha), ("beta", beta)):
            check_number(argument, value, above=0)
        self.alpha = alpha
        self.beta = beta

    def class_losses(self, overlap, predicted, true):
        false_positives, false_negatives = predicted - overlap, true - overlap
        return 1 - overlap / (overlap + self.alpha * false_positives + self.beta * false_negatives)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}


@keras.saving.register_keras_serializable(package="keras_segen")
class FocalTversky(Tversky):
    """Focal Tversky loss: `(1 - tversky)^(1 / gamma)` of each class, averaged over classes.

    With gamma above 1 the slope is flatter than that of `Tversky` where a class is missed, and
    steeper where it is nearly found. Below a `Tversky` loss of 1e-7 a straight line leads to 0,
    since the slope of the power has no bound there.

    Reference: Abraham and Khan (2019), "A Novel Focal Tversky Loss Function with Improved
    Attention U-Net for Lesion Segmentation", https://arxiv.org/abs/1810.07842. The paper's own
    alpha weighs the misses: its alpha = 0.7, beta = 0.3 are beta = 0.7, alpha = 0.3 here.

    Args:
        alpha: float above 0, the weight of false positives.
        beta: float above 0, the weight of false negatives.
        gamma: float above 0; the paper takes values from 1 to 3.
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative, for the mean over the classes.
        name: str.

    Raises:
        ValueError: when `alpha`, `beta` or `gamma` is not finite and above 0; for class weights,
            as `Dice`.

    Example:

    >>> import numpy as np
    >>> masks = np.array([[[0, 1]]])
    >>> logits = np.array([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> round(float(FocalTversky(alpha=0.5, beta=0.5, gamma=2.0)(masks, logits)), 4)
    0.7071
    """

    def __init__(
        self,
        alpha=0.3,
        beta=0.7,
        gamma=4 / 3,
        ignore_class=None,
        class_weights=None,
        name="focal_tversky",
    ):
        super().__init__(alpha, beta, ignore_class, class_weights, name)
        check_number("gamma", gamma, above=0)
        self.gamma = gamma

    def class_losses(self, overlap, predicted, true):
        losses = super().class_losses(overlap, predicted, true)
        exponent = 1 / self.gamma
        power = ops.maximum(losses, TINY) ** exponent
        return ops.where(losses > TINY, power, losses * TINY ** (exponent - 1))

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_segen")
class Lovasz(ClassLoss):
    """Lovász-softmax loss: a convex surrogate of one minus intersection over union.

    Pixels are sorted by their error `e = |t - p|` in a class, the worst first. What each adds
    to the Jaccard loss of the set of pixels before it, `d`, is its weight:

        loss = mean(sum(d * e) over the classes that the truth holds)

    For predictions that are certain (every p is 0 or 1) this is the Jaccard loss of the predicted
    masks itself. All pixels of the batch are sorted together. A pixel with sample weight s counts
    as s pixels; ignored pixels count as none.

    Logits of one channel: the Lovász hinge of class 1, with the errors `max(0, 1 - z * (2t - 1))`
    of the logit z. It is not bounded by 1.

    Reference: Berman, Rannen Triki, Blaschko (2018), "The Lovász-Softmax loss",
    https://arxiv.org/abs/1705.08790. The authors' code takes the hinge image by image, and in an
    image without class 1 the largest error as its loss; here classes that the truth of the batch
    does not hold are left out.

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative, for the mean over the classes.
        name: str.

    Raises:
        ValueError: for class weights, as `Dice`.

    Example:

    >>> import numpy as np
    >>> masks = np.array([[[0, 1]]])
    >>> logits = np.array([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> float(Lovasz()(masks, logits))
    0.5
    """

    def __init__(self, ignore_class=None, class_weights=None, name="lovasz"):
        super().__init__(ignore_class, class_weights, name)

    def batch_loss(self, labels, valid, weights, logits):
        num_channels = logits.shape[-1]
        weights = ops.broadcast_to(weights, ops.shape(labels))
        weights = ops.reshape(weights, (1, -1))
        labels = ops.reshape(labels, (-1,))
        scores = ops.transpose(ops.reshape(logits, (-1, num_channels)))  # (num_channels, pixels)
        if num_channels == 1:
            truth = ops.cast(labels, logits.dtype)[None]
            errors = ops.relu(1 - scores * (2 * truth - 1))
        else:
            truth = ops.transpose(ops.one_hot(labels, num_channels, dtype=logits.dtype))
            probabilities = ops.softmax(scores, axis=0)
            errors = ops.where(truth > 0, 1 - probabilities, probabilities)

        worst_first = ops.argsort(-errors, axis=-1)
        errors = ops.take_along_axis(errors, worst_first, axis=-1)
        inside = ops.take_along_axis(weights * truth, worst_first, axis=-1)
        outside = ops.take_along_axis(weights * (1 - truth), worst_first, axis=-1)
        true = ops.sum(inside, axis=-1, keepdims=True)  # (num_channels, 1)
        present = true > 0
        true = ops.where(present, true, 1.0)
        # If the first k pixels are wrong: intersection and union of truth and prediction.
        intersection = true - ops.cumsum(inside, axis=-1)
        union = true + ops.cumsum(outside, axis=-1)
        # d, rearranged: its definition is a difference of nearly equal numbers.
        added = (inside + outside * intersection / (union - outside)) / union
        return self.mean_over_classes(ops.sum(errors * added, axis=-1), present[:, 0])
