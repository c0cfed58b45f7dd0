"""How well an image is cut into objects: which are found, merged or split.

Pixel figures hardly see a border of two pixels; but where it is broken, two objects are one. These
figures see it:

- Adapted Rand error: of any two pixels of true objects, do they belong together? 1 - F1 of the
  pairs that do.
- Variation of information, in bits: how much of the truth the result leaves open (merged objects)
  plus how much of the result the truth leaves open (split ones).
- F1 of the objects: true and found ones match if their masks have an IoU above 0.5.

References: Arganda-Carreras et al. (2015), "Crowdsourcing the creation of image segmentation
algorithms for connectomics", https://doi.org/10.3389/fnana.2015.00142; Meilă (2007), "Comparing
clusterings: an information based distance", https://doi.org/10.1016/j.jmva.2006.11.013. The
numbers are those of scikit-image with the true background left out.
"""

import numpy as np

from keras_segen.report.tables import Column, Table, decimals

MATCH = 0.5  # IoU above which a found object is a true one: at most one can be
MOSTLY = 0.5  # of a true object's pixels, for it to lie in a found one


def adapted_rand_error(true, found):
    """Computes the adapted Rand error of found objects.

    Args:
        true: int `(height, width)`, another number for each object, 0 for background, which does
            not count.
        found: the same; what is no object there counts as one.

    Returns:
        float from 0 (the same objects) to 1; NaN if fewer than two pixels of objects are true.

    Example:

    >>> true = np.array([[1, 1, 0, 2, 2]])
    >>> adapted_rand_error(true, true), round(adapted_rand_error(true, true > 0), 3)
    (0.0, 0.5)
    """
    both, true, found = (pairs(counts) for counts in common_pixels(true, found))
    return 1 - 2 * both / (true + found) if true + found else np.nan


def variation_of_information(true, found):
    """Computes the variation of information between true and found objects, in two parts.

    Args:
        true, found: as in `adapted_rand_error`.

    Returns:
        `(split, merged)`, floats in bits, 0 or more: what is left open of the found object of a
        pixel if its true one is known, and the reverse. NaN if no object is true.

    Example:

    >>> true = np.array([[1, 1, 0, 2, 2]])
    >>> variation_of_information(true, np.ones_like(true))
    (0.0, 1.0)
    """
    both, true, found = (entropy(counts) for counts in common_pixels(true, found))
    return max(both - true, 0.0), max(both - found, 0.0)


def common_pixels(true, found):
    """Counts the pixels of true objects: by both objects, by the true one, by the found one."""
    inside = np.asarray(true) > 0
    both = np.stack([np.asarray(true)[inside], np.asarray(found)[inside]])
    return tuple(
        np.unique(numbers, axis=-1, return_counts=True)[1] for numbers in (both, both[0], both[1])
    )


def pairs(counts):
    """How many ordered pairs of two pixels so many groups of pixels have."""
    return float((counts.astype("float64") * (counts - 1)).sum())


def entropy(counts):
    """The entropy, in bits, of the group of a pixel; NaN without any."""
    if not counts.sum():
        return np.nan
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


class Partition:
    """Holds found objects against true ones, one image after another."""

    def __init__(self):
        self.images = []  # of each: adapted Rand error, both parts of the variation of information
        self.true, self.found, self.matches, self.merged = 0, 0, 0, 0

    def add(self, found, true, void):
        """Counts an image.

        Args:
            found: list of `keras_segen.data.Instance`, the surest first: it wins a pixel that
                several claim.
            true: the same. Crowds do not count, nor do the pixels that they cover.
            void: bool `(height, width)`, pixels that do not count.

        Returns:
            Set of int, places in `found`: those that merge two or more true objects.
        """
        void = void.copy()
        for each in true:
            if each.crowd:
                void |= each.mask
        singles = [each for each in true if not each.crowd]
        found_plane, true_plane = plane(found, void), plane(singles, void)
        if singles:
            error = adapted_rand_error(true_plane, found_plane)
            self.images.append((error, *variation_of_information(true_plane, found_plane)))

        common = np.zeros((len(singles) + 1, len(found) + 1), int)
        np.add.at(common, (true_plane, found_plane), 1)
        of_true, of_found = common.sum(axis=1, keepdims=True)[1:], common.sum(axis=0)[1:]
        common = common[1:, 1:]
        same = np.equal.outer(
            [each.class_id for each in singles], [each.class_id for each in found]
        )
        union = of_true + of_found - common
        self.matches += int((same & (common > MATCH * union)).sum())
        self.true += int((of_true > 0).sum())
        self.found += int((of_found > 0).sum())
        inside = common > MOSTLY * of_true
        merging = inside.sum(axis=0) > 1
        self.merged += int(inside[:, merging].sum())
        return set(np.flatnonzero(merging).tolist())

    def figures(self):
        """Computes the figures, those of images as means over the images that have objects.

        Returns:
            Dict: `adapted_rand_error`; `variation_of_information`, in bits, and its parts
            `variation_split` and `variation_merged`; `instance_f1`, `instance_precision` and
            `instance_recall`, of objects with masks of an IoU above 0.5; floats, NaN without
            objects. `true_objects`, `found_objects` and `merged_objects`, those that lie, with
            more than half of their pixels, in a found one that holds another like that: ints.
        """
        known = np.array(self.images, float).reshape(-1, 3)
        known = known[~np.isnan(known).any(axis=1)]
        error, split, merged = known.mean(axis=0) if len(known) else np.full(3, np.nan)
        return {
            "adapted_rand_error": float(error),
            "variation_of_information": float(split + merged),
            "variation_split": float(split),
            "variation_merged": float(merged),
            "instance_f1": ratio(2 * self.matches, self.true + self.found),
            "instance_precision": ratio(self.matches, self.found),
            "instance_recall": ratio(self.matches, self.true),
            "true_objects": self.true,
            "found_objects": self.found,
            "merged_objects": self.merged,
        }


def ratio(part, whole):
    return part / whole if whole else float("nan")


def plane(instances, void):
    """Numbers the objects of a list from 1, 0 where void: int `(height, width)`."""
    numbers = np.zeros(void.shape, int)
    for number in range(len(instances), 0, -1):  # the first ones last, on top
        each = instances[number - 1]
        (top, left), (rows, columns) = each.corner, each.pixels.shape
        numbers[top : top + rows, left : left + columns][each.pixels] = number
    numbers[void] = 0
    return numbers


def outside_void(found, void):
    """Leaves out what was found mostly in void pixels."""
    if not void.any():
        return found
    return [each for each in found if 2 * (each.mask & void).sum() <= each.area]


def as_arrays(instances, image_size):
    """Stacks instances: dict of `masks`, `boxes`, `classes`, `scores`, `crowd`."""
    return {
        "masks": np.array([each.mask for each in instances], bool).reshape(-1, *image_size),
        "boxes": np.array([each.box for each in instances], "float32").reshape(-1, 4),
        "classes": np.array([each.class_id for each in instances], int),
        "scores": np.array([each.score or 0.0 for each in instances], "float64"),
        "crowd": np.array([each.crowd for each in instances], bool),
    }


def table(figures):
    """The table of the figures of `Partition`, with `mask_ap` and `mask_ap50`."""
    three, whole = decimals(3), "{:,}".format
    columns = [
        Column("Adapted Rand error", three, key="adapted_rand_error"),
        Column("Variation of information", three, key="variation_of_information"),
        Column("F1", three, key="instance_f1"),
        Column("AP", three, key="mask_ap"),
        Column("AP50", three, key="mask_ap50"),
        Column("True", whole, key="true_objects"),
        Column("Found", whole, key="found_objects"),
        Column("Merged", whole, key="merged_objects"),
    ]
    values = [figures[each.key] for each in columns]
    return Table(
        "Objects",
        columns,
        [[None if np.isnan(value) else value for value in values]],
        note="Adapted Rand error and variation of information (in bits) ask whether pixels of "
        "true objects belong together; 0 is best, and they are means over the images. F1 counts "
        "objects with masks of an IoU above 0.5, AP and AP50 are COCO's. An object is merged if "
        "most of it lies in a found one that holds most of another, too.",
    )


def sentence(figures):
    """The main figures in a sentence."""
    return (
        f"Objects: adapted_rand_error {figures['adapted_rand_error']:.4f}, "
        f"variation_of_information {figures['variation_of_information']:.4f} bits, instance_f1 "
        f"{figures['instance_f1']:.4f}; {figures['merged_objects']:,} of "
        f"{figures['true_objects']:,} are merged with another."
    )


def cards(figures):
    """The main figures as cards of a page."""
    return [
        (title, "–" if np.isnan(figures[key]) else f"{figures[key]:.3f}", note)
        for title, key, note in (
            ("Adapted Rand error", "adapted_rand_error", "of objects; 0 is best"),
            ("Instance F1", "instance_f1", "of objects, masks of IoU above 0.5"),
        )
    ]
