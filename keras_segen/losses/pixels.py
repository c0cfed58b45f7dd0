"""Losses that are means over pixels."""

import keras
from keras import ops

from keras_segen.arguments import check_number
from keras_segen.losses.base import TINY, SegmentationLoss, two_or_more


class PixelLoss(SegmentationLoss):
    """The weighted mean over the pixels of `pixel_losses`, which a loss defines."""

    def batch_loss(self, labels, valid, weights, logits):
        # Not Keras' own cross-entropy, which on TensorFlow silently removes a softmax at the end
        # of a model: the two backends would disagree.
        log_probabilities = ops.log_softmax(two_or_more(logits), axis=-1)
        of_true_class = ops.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
        losses = self.pixel_losses(of_true_class, log_probabilities)

        total = ops.cast(valid, logits.dtype)
        if self.class_weights is not None:
            class_weights = ops.convert_to_tensor(self.class_weights, dtype=logits.dtype)
            of_pixels = ops.take(class_weights, labels, axis=0)
            weights = weights * of_pixels
            total = total * of_pixels
        total = ops.sum(total)
        return ops.sum(weights * losses) / ops.where(total > 0, total, 1.0)


@keras.saving.register_keras_serializable(package="keras_segen")
class CrossEntropy(PixelLoss):
    """Cross-entropy of the softmax, averaged over the pixels that are not ignored.

    With `l` the loss of a pixel, `y` its class, `w` the class weights and `s` the sample weights,
    over the pixels that are not ignored:

        loss = sum(w[y] * s * l) / sum(w[y])

    as PyTorch's weighted mean. Sample weights are not in the divisor (as in Keras), so that
    doubling them doubles the loss. If every pixel is ignored, the loss is 0.

    Label smoothing is that of Keras and PyTorch: the target is `1 - label_smoothing` on the true
    class plus `label_smoothing / num_classes` on every class. The weight of the true
    class multiplies both parts (PyTorch weights the second part class by class).

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
        super().__init__(ignore_class, class_weights, name)
        check_number("label_smoothing", label_smoothing, least=0, below=1)
        self.label_smoothing = label_smoothing

    def check_channels(self, num_channels):
        if num_channels == 1:
            raise ValueError(
                "The logits have 1 channel, and their softmax is always 1. Use "
                "BinaryCrossEntropy, or build the model with num_classes=2."
            )
        super().check_channels(num_channels)

    def pixel_losses(self, of_true_class, log_probabilities):
        losses = -of_true_class
        if self.label_smoothing > 0:
            smooth = -ops.mean(log_probabilities, axis=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * smooth
        return losses

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable(package="keras_segen")
class BinaryCrossEntropy(CrossEntropy):
    """Cross-entropy of the sigmoid, for masks of 0 and 1 and logits of one channel.

    Weights, mean and label smoothing are those of `CrossEntropy` with two classes.

    Args:
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or two numbers, not negative: of class 0 and of class 1.
        label_smoothing: float in [0, 1).
        name: str.

    Raises:
        ValueError: as `CrossEntropy`; at the first call, when the logits have not one channel.

    Example:

    >>> import numpy as np
    >>> loss = BinaryCrossEntropy()
    >>> round(float(loss(np.array([[[0, 1]]]), np.array([[[[-4.0], [-4.0]]]]))), 4)
    2.0181
    """

    def __init__(
        self,
        ignore_class=None,
        class_weights=None,
        label_smoothing=0.0,
        name="binary_cross_entropy",
    ):
        super().__init__(ignore_class, class_weights, label_smoothing, name)

    def check_channels(self, num_channels):
        if num_channels != 1:
            raise ValueError(
                f"BinaryCrossEntropy takes logits of 1 channel; found {num_channels}. Use "
                "CrossEntropy, or build the model with num_classes=1."
            )
        SegmentationLoss.check_channels(self, num_channels)


@keras.saving.register_keras_serializable(package="keras_segen")
class Focal(PixelLoss):
    """Focal loss: cross-entropy with less weight on pixels that are already right.

    With `p` the probability of a pixel's true class:

        l = -(1 - p)^gamma * log(p)

    averaged as in `CrossEntropy`, whose loss it is with gamma = 0. The paper's alpha are the
    class weights; the paper divides by the number of objects, here by the pixels.

    Reference: Lin, Goyal, Girshick, He, Dollar (2017), "Focal Loss for Dense Object Detection",
    https://arxiv.org/abs/1708.02002.

    Args:
        gamma: float, 0 or more.
        ignore_class: int or None, the label of the pixels that are left out.
        class_weights: None or one number per class, not negative.
        name: str.

    Raises:
        ValueError: when `gamma` is negative or not finite; for class weights as `CrossEntropy`.

    Example:

    >>> import numpy as np
    >>> loss = Focal(gamma=2.0)
    >>> round(float(loss(np.array([[[0]]]), np.array([[[[0.0, 0.0]]]]))), 4)
    0.1733
    """

    def __init__(self, gamma=2.0, ignore_class=None, class_weights=None, name="focal"):
        super().__init__(ignore_class, class_weights, name)
        check_number("gamma", gamma, least=0)
        self.gamma = gamma

    def pixel_losses(self, of_true_class, log_probabilities):
        missing = -ops.expm1(of_true_class)  # 1 - p
        # Away from 0, where a power with an exponent below 1 has no finite slope.
        return -(ops.maximum(missing, TINY) ** self.gamma) * of_true_class

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}
