"""Distances between two sets of features, of real and of generated images, in NumPy.

Features are float arrays `(number, dimension)`, one row per image. Two distances compare the sets
as a whole (Fréchet, kernel). Two pairs of scores, from nearest neighbors, separate fidelity
(precision, density: do the fakes look real?) from diversity (recall, coverage: do the fakes
include all that is real?).

All sums are float64, and distances between rows are computed tile by tile: 10,000 against 10,000
rows take a few hundred MB.
"""

from typing import NamedTuple

import numpy as np

from keras_segen.determinism import rng

TILE = 2048  # rows by rows of distances that are held at once


class Moments(NamedTuple):
    """All that the Fréchet distance needs of features.

    `mean`: float64 `(dimension,)`. `covariance`: float64 `(dimension, dimension)`, divided by
    `count - 1`. `count`: int, the number of rows that they are from.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class KernelDistance(NamedTuple):
    """`mean`: float, may be slightly negative. `standard_error`: float, of this mean."""

    mean: float
    standard_error: float


class PrecisionRecall(NamedTuple):
    """Both floats in [0, 1]: the share of fakes that look real, of reals that are made."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """`density`: float, 0 or more, 1 on average if the two are alike. `coverage`: in [0, 1]."""

    density: float
    coverage: float


def moments(features):
    """Computes the mean and the covariance of features.

    Args:
        features: float array `(number, dimension)`, at least 2 rows.

    Returns:
        `Moments`.

    Raises:
        ValueError: if the features have another shape or type, or are not finite.
    """
    features = check_features(features)
    mean = features.mean(axis=0, dtype="float64")
    covariance = np.zeros((len(mean), len(mean)))
    for first in range(0, len(features), TILE):
        part = features[first : first + TILE] - mean
        covariance += part.T @ part
    return Moments(mean, covariance / (len(features) - 1), len(features))


def frechet_distance(first, second):
    """Computes the Fréchet distance between the normal distributions with the sets' moments.

    `|m1 - m2|² + trace(C1 + C2 - 2 (C1 C2)^(1/2))`, with means m and covariances C: the squared
    2-Wasserstein distance. It is 0 for equal moments. The estimate is
    biased upward, more so with fewer rows and more dimensions: compare only values from equal
    numbers of rows, and use `kernel_distance` unless there are more rows than dimensions.

    Reference: Dowson, Landau (1982), "The Fréchet distance between multivariate normal
    distributions"; for images: Heusel et al. (2017), "GANs trained by a two time-scale update
    rule converge to a local Nash equilibrium", https://arxiv.org/abs/1706.08500. Only with the
    features of the InceptionV3 published there is it the FID.

    Args:
        first, second: features `(number, dimension)`, or their `Moments`.

    Returns:
        A float, 0 or more.

    Raises:
        ValueError: if the two do not have the same dimension, or are no features.

    Example:

    >>> a, b = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]]), np.array([[3.0, 1], [3, 1]])
    >>> round(frechet_distance(a, b), 6)  # (3 - 1)² + 4/3 + 4/3: the second is a single point
    6.666667
    """
    first, second = (x if isinstance(x, Moments) else moments(x) for x in (first, second))
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"Features of {len(first.mean)} and of {len(second.mean)} dimensions; expected both "
            "from one extractor."
        )
    # With C = F Fᵀ, the trace of (C1 C2)^(1/2) is the sum of the singular values of F1ᵀ F2. The
    # eigenvalues of C1 C2 would have half the precise digits, since their roots are taken.
    shared = np.linalg.svd(_factor(first).T @ _factor(second), compute_uv=False).sum()
    of_covariances = np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    of_means = np.square(first.mean - second.mean).sum()
    return float(of_means + max(of_covariances, 0.0))  # below 0 by rounding only


def _factor(of):
    """F with `F Fᵀ = covariance`: float64 `(dimension, rank)`."""
    values, vectors = np.linalg.eigh(of.covariance)
    kept = values > values[-1] * len(values) * np.finfo("float64").eps  # the others are rounding
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(first, second, subset_size=1000, seed=0):
    """Estimates the squared maximum mean discrepancy with the kernel `(x·y / dimension + 1)³`.

    It is 0 for equal distributions and unbiased for any number of rows: with no difference, it is
    below 0 about as often as above. It is the mean of the estimates from several subsets.

    Reference: Bińkowski, Sutherland, Arbel, Gretton (2018), "Demystifying MMD GANs",
    https://arxiv.org/abs/1801.01401. Differs from the paper: the subsets share no rows, so that
    their estimates are independent and the standard error of their mean is valid; there are at
    least 10.

    Args:
        first, second: features `(number, dimension)`, at least 20 rows each.
        subset_size: int, the most rows of each set per subset; fewer if there would be fewer
            than 10 subsets.
        seed: int, for the shuffling.

    Returns:
        `KernelDistance`: the mean and its standard error (the standard deviation of the
        estimates divided by the root of their number).

    Raises:
        ValueError: if there are too few rows, the dimensions differ, or `subset_size` is below 2.

    Example:

    >>> generator = np.random.default_rng(0)
    >>> a, b = generator.normal(0, 1, (100, 4)), generator.normal(1, 1, (100, 4))
    >>> mean, standard_error = kernel_distance(a, b)
    >>> bool(mean > 5 * standard_error)
    True
    """
    first, second = check_pair(first, second, at_least=20)
    if subset_size < 2:
        raise ValueError(f"subset_size is {subset_size}, expected 2 or more.")
    num_subsets = max(10, min(len(first), len(second)) // subset_size)
    parts = [_subsets(x, num_subsets, subset_size, seed, i) for i, x in enumerate((first, second))]
    estimates = [unbiased_mmd(x, y) for x, y in zip(*parts, strict=True)]
    deviation = np.std(estimates, ddof=1)
    return KernelDistance(float(np.mean(estimates)), float(deviation / np.sqrt(num_subsets)))


def unbiased_mmd(first, second):
    """Estimates what `kernel_distance` does from all rows at once: a float, without its error.

    It holds matrices of rows by rows, and no row is compared with itself.
    """
    x, y = first.astype("float64"), second.astype("float64")
    within_x, within_y = _kernel(x, x), _kernel(y, y)
    return (
        (within_x.sum() - np.trace(within_x)) / (len(x) * (len(x) - 1))
        + (within_y.sum() - np.trace(within_y)) / (len(y) * (len(y) - 1))
        - 2 * _kernel(x, y).mean()
    )


def _subsets(features, num_subsets, subset_size, seed, which):
    """Deals shuffled rows into subsets of one size that share none."""
    size = min(len(features) // num_subsets, subset_size)
    order = rng("kernel distance", seed, which).permutation(len(features))
    return [features[order[i * size : (i + 1) * size]] for i in range(num_subsets)]


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(reals, fakes, neighbors=3):
    """Computes the share of fakes that look real, and of reals that the fakes include.

    Around each real image is a ball whose radius is the distance to its k-th nearest real
    neighbor. Precision is the share of fakes inside any ball; recall is the same with fakes and
    reals exchanged.

    Reference: Kynkäänniemi et al. (2019), "Improved precision and recall metric for assessing
    generative models", https://arxiv.org/abs/1904.06991.

    Args:
        reals, fakes: features `(number, dimension)`.
        neighbors: int, the k; fewer than there are rows.

    Returns:
        `PrecisionRecall`. Both depend on the number of rows: compare only equal numbers.

    Raises:
        ValueError: if there are too few rows, or the dimensions differ.

    Example:

    >>> line = np.arange(5.0)[:, None]
    >>> precision_recall(line, np.array([[0.5], [1.5], [2.5], [30.0]]), neighbors=1)
    PrecisionRecall(precision=0.75, recall=1.0)
    """
    reals, fakes = check_pair(reals, fakes, at_least=neighbors + 1)
    of_reals, of_fakes = neighbor_radii(reals, neighbors), neighbor_radii(fakes, neighbors)
    looks_real, is_made = np.zeros(len(fakes), bool), np.zeros(len(reals), bool)
    for rows, columns, squared in squared_distances(reals, fakes):
        looks_real[columns] |= (squared <= of_reals[rows, None]).any(axis=0)
        is_made[rows] |= (squared <= of_fakes[columns]).any(axis=1)
    return PrecisionRecall(float(looks_real.mean()), float(is_made.mean()))


def density_coverage(reals, fakes, neighbors=5):
    """Computes how densely fakes surround the reals, and the share of reals with a fake near.

    With the balls of `precision_recall`: density is the mean number of balls that contain a fake,
    divided by k; coverage is the share of balls that contain a fake. An outlier among the reals
    has a large ball, which spoils the precision but counts little here.

    Reference: Naeem, Oh, Uh, Choi, Yoo (2020), "Reliable fidelity and diversity metrics for
    generative models", https://arxiv.org/abs/2002.09797. As in the code published with it, the
    edge does not belong to the ball, so that copies of all reals have a density of 1.

    Args:
        reals, fakes: features `(number, dimension)`.
        neighbors: int, the k; fewer than there are rows of reals.

    Returns:
        `DensityCoverage`. For equal distributions, density is 1 on average, and
        coverage about `1 - 0.5**neighbors` for equal numbers of rows.

    Raises:
        ValueError: if there are too few rows, or the dimensions differ.

    Example:

    >>> line = np.arange(5.0)[:, None]
    >>> density_coverage(line, np.array([[0.5], [1.5], [2.5], [30.0]]), neighbors=1)
    DensityCoverage(density=1.5, coverage=0.8)
    """
    reals, fakes = check_pair(reals, fakes, at_least=neighbors + 1)
    radii = neighbor_radii(reals, neighbors)
    inside, covered = 0, np.zeros(len(reals), bool)
    for rows, _, squared in squared_distances(reals, fakes):
        within = squared < radii[rows, None]
        inside += int(np.count_nonzero(within))
        covered[rows] |= within.any(axis=1)
    return DensityCoverage(inside / (neighbors * len(fakes)), float(covered.mean()))


def neighbor_radii(features, neighbors):
    """Computes the squared distance of each row to its k-th nearest other row: `(number,)`."""
    if not 1 <= neighbors < len(features):
        raise ValueError(
            f"neighbors is {neighbors}, expected 1 to {len(features) - 1}, the other rows."
        )
    nearest = np.full((len(features), neighbors), np.inf)
    for rows, columns, squared in squared_distances(features, features):
        if rows == columns:
            np.fill_diagonal(squared, np.inf)  # itself
        candidates = np.concatenate([nearest[rows], squared], axis=1)
        nearest[rows] = np.partition(candidates, neighbors - 1, axis=1)[:, :neighbors]
    return nearest.max(axis=1)


def squared_distances(first, second):
    """Computes the squared Euclidean distance of each row to each, tile by tile.

    Distances below the rounding of float32 features are 0: a copy is a copy.

    Yields:
        `(rows, columns, squared)`: two slices, and float64 `(rows, columns)`, which the caller
        may change.
    """
    for top in range(0, len(first), TILE):
        rows = slice(top, min(top + TILE, len(first)))
        x = first[rows].astype("float64")
        x_squared = np.einsum("ij,ij->i", x, x)[:, None]
        for left in range(0, len(second), TILE):
            columns = slice(left, min(left + TILE, len(second)))
            y = second[columns].astype("float64")
            both = x_squared + np.einsum("ij,ij->i", y, y)
            squared = x @ y.T
            squared *= -2
            squared += both
            squared[squared < 1e-13 * both] = 0
            yield rows, columns, squared


def check_features(features, at_least=2):
    """Returns features as an array `(number, dimension)`, float32 or float64, or raises."""
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(
            f"Features have the shape (number, dimension); found {features.shape}. Images are "
            "turned into features by an Extractor."
        )
    if len(features) < at_least:
        raise ValueError(f"{len(features)} rows of features; expected {at_least} or more.")
    if features.dtype not in (np.float32, np.float64):
        features = features.astype("float64")
    if not np.isfinite(features).all():
        raise ValueError("Features hold NaN or infinity; expected finite numbers.")
    return features


def check_pair(first, second, at_least):
    """Returns both as features of one dimension, or raises."""
    first, second = check_features(first, at_least), check_features(second, at_least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"Features of {first.shape[1]} and of {second.shape[1]} dimensions; expected both "
            "from one extractor."
        )
    return first, second
