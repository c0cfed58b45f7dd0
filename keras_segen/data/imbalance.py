"""Class imbalance: class frequencies, class weights and item weights.

Class weights go to a loss: `CrossEntropy(class_weights=median_frequency_weights(dataset))`.
Item weights are for sampling: `dataset.batches(4, seed=0, sampling="rare_classes")`.

All are computed from the pixels of each class in each item, which a data set counts once; counts
of files are cached between runs.
"""

import numpy as np

from keras_segen.data.dataset import require_masks


def counts_of(dataset):
    """Returns the pixels of each class in each item, int64 `(len, num_classes)`.

    Raises:
        ValueError: if there are no masks, or a count is negative.
    """
    require_masks(dataset)
    counts = dataset.pixel_counts_of_items()
    if counts.min(initial=0) < 0:
        raise ValueError(f"{dataset.name} counts {counts.min()} pixels; expected 0 or more")
    return counts


def class_frequencies(dataset):
    """Computes the share of each class in the labeled pixels.

    Args:
        dataset: a `Dataset`, the training split.

    Returns:
        float64 `(num_classes,)` with a sum of 1, or all 0 if every pixel is ignored.

    Example:

    >>> from keras_segen.data import arrays
    >>> class_frequencies(arrays(np.zeros((1, 2, 4)), np.array([[[0, 0, 0, 0], [0, 0, 1, 1]]])))
    array([0.75, 0.25])
    """
    pixels = counts_of(dataset).sum(axis=0)
    return pixels / max(pixels.sum(), 1)


def median_frequency_weights(dataset):
    """Computes class weights that balance rare and common classes (median frequency balancing).

    The frequency of a class is its number of pixels divided by the number of labeled pixels of
    the images in which it occurs. Its weight is the median of all frequencies divided by its
    own: above 1 for rare classes, below 1 for common ones. Classes that never occur have weight
    0 and are left out of the median; ignored pixels are in no count.

    Reference: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a
    Common Multi-Scale Convolutional Architecture", 2015, section 6.3.2.

    Args:
        dataset: a `Dataset`, the training split.

    Returns:
        float32 `(num_classes,)`.
    """
    counts = counts_of(dataset)
    pixels = counts.sum(axis=0)
    pixels_of_images = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0).sum(axis=0)
    present = pixels > 0
    weights = np.zeros(dataset.num_classes, np.float32)
    if present.any():
        frequencies = pixels[present] / pixels_of_images[present]
        weights[present] = np.median(frequencies) / frequencies
    return weights


def inverse_frequency_weights(dataset):
    """Computes class weights that give every class the same sum of weights over its pixels.

    The weight of a class is `1 / (number of classes that occur * its frequency)`, so that the
    mean over all labeled pixels is 1. Classes that never occur have weight 0. Very rare classes
    get very large weights; `median_frequency_weights` and `effective_number_weights` are milder.

    Args:
        dataset: a `Dataset`, the training split.

    Returns:
        float32 `(num_classes,)`.
    """
    frequencies = class_frequencies(dataset)
    present = frequencies > 0
    weights = np.zeros(dataset.num_classes, np.float32)
    weights[present] = 1 / (present.sum() * frequencies[present])
    return weights


def effective_number_weights(dataset, beta=None):
    """Computes class weights from the effective number of pixels of each class.

    A class of n pixels counts as `(1 - beta^n) / (1 - beta)` different ones: neighbors look
    alike, so that further pixels add less and less. The weight of a class is the inverse of that
    number, scaled to a mean of 1 over the classes that occur; the others have weight 0. With
    beta = 0 all weights are equal; as beta goes to 1 they become those of the inverse frequency.

    Reference: Cui, Jia, Lin, Song, Belongie (2019), "Class-Balanced Loss Based on Effective
    Number of Samples", https://arxiv.org/abs/1901.05555. The paper counts images, with beta from
    0.9 to 0.9999; classes of millions of pixels would all weigh the same there.

    Args:
        dataset: a `Dataset`, the training split.
        beta: float in [0, 1): `(N - 1) / N` with N the number of different pixels that a class
            can have. None means the mean number of pixels of the classes that occur, so that the
            sizes of images and data set do not matter.

    Returns:
        float32 `(num_classes,)`.

    Raises:
        ValueError: when `beta` is not in [0, 1).
    """
    if beta is not None and not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}, expected a number in [0, 1).")
    pixels = counts_of(dataset).sum(axis=0)
    present = pixels > 0
    weights = np.zeros(dataset.num_classes, np.float32)
    if present.any():
        if beta is None:
            beta = 1 - 1 / pixels[present].mean()
        inverse = (1 - beta) / (1 - beta ** pixels[present].astype(np.float64))
        weights[present] = inverse / inverse.mean()
    return weights


CLASS_WEIGHTS = {
    "median_frequency": median_frequency_weights,
    "inverse_frequency": inverse_frequency_weights,
    "effective_number": effective_number_weights,
}


def item_weights(dataset):
    """Computes how often to draw items so that all classes have the same influence.

    Draw a class uniformly, then one of its pixels in the data set uniformly: the weight of an item
    is the probability that it contains the pixel, times the number of items. Items with much of a
    rare class have weights above 1. The only item with a class is drawn once in `num_classes`
    draws: for a class with very few items, class weights are better.

    Reference: Rota Bulò, Porzi, Kontschieder (2018), "In-Place Activated BatchNorm for
    Memory-Optimized Training of DNNs", https://arxiv.org/abs/1712.02616: their class-uniform
    sampling draws a class, then any image with it. In street scenes nearly every image has nearly
    every class; images differ in the number of its pixels. (Repeat factor sampling, of the LVIS
    data set, also asks only whether an image has a class.)

    Args:
        dataset: a `Dataset`, the training split.

    Returns:
        float64 `(len,)`, not negative, with a mean of 1. Items without a labeled pixel have 0;
        if there are no others, all have 1.

    Example:

    >>> from keras_segen.data import arrays
    >>> masks = np.array([[[0, 0, 0, 0]], [[0, 0, 1, 1]]])
    >>> item_weights(arrays(np.zeros((2, 1, 4)), masks)).round(3)
    array([0.667, 1.333])
    """
    counts = counts_of(dataset)
    counts = counts[:, counts.sum(axis=0) > 0]  # the classes that occur
    if counts.size == 0:
        return np.ones(len(counts))
    return len(counts) * (counts / counts.sum(axis=0)).mean(axis=1)
