"""Average precision: found objects against true ones, counted as COCO counts.

For each class, the found objects of an image take, the most certain first, the true one that they
overlap most; from an overlap (IoU) of `threshold` on it is a hit. Over all images, the most
certain first again, hits and false alarms add up to a curve: precision (the share of hits so far)
by recall (the share of true objects found so far). Average precision is the mean height of that
curve at recall 0, 0.01, …, 1, where each height is the best from there on. It is computed at ten
thresholds, and for small, medium and large objects.

Reference: Lin et al. (2014), "Microsoft COCO: common objects in context",
https://arxiv.org/abs/1405.0312. The numbers are those of `pycocotools`.
"""

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
LIMITS = (1, 10, 100)  # found objects of an image and class that count
# Square pixels, both ends included.
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class AveragePrecision:
    """Counts the found and the true objects of images, one image after another.

    Args:
        num_classes: int, K; the classes are 1 to K.
        kind: str, what is compared: `"masks"` or `"boxes"`.

    Raises:
        ValueError: `kind` is neither.

    Example:

    >>> truth = {"boxes": [[0, 0, 8, 8], [8, 8, 16, 16]], "classes": [1, 1]}
    >>> found = {"boxes": [[0, 0, 8, 6]], "classes": [1], "scores": [0.9]}
    >>> counter = AveragePrecision(num_classes=1, kind="boxes")
    >>> counter.add(found, truth)
    >>> figures = counter.figures()
    >>> round(figures["AP50"], 3), round(figures["AP75"], 3), figures["AR100"]
    (0.505, 0.505, 0.3)
    """

    def __init__(self, num_classes, kind="masks"):
        if kind not in ("masks", "boxes"):
            raise ValueError(f"kind is {kind!r}, expected 'masks' or 'boxes'.")
        self.num_classes = num_classes
        self.kind = kind
        # Per class, an entry per image: scores (d,), hits and ignored ones (areas, thresholds, d)
        # and how many true objects there are (areas,).
        self.entries = [[] for _ in range(num_classes)]

    def add(self, found, truth):
        """Counts an image.

        Args:
            found: dict of arrays: "boxes" `(n, 4)`, `(x1, y1, x2, y2)`, or "masks", bool
                `(n, height, width)`; "classes", ints `(n,)`; "scores", floats `(n,)`.
            truth: dict of arrays: the same without scores, and, optional, "crowd", bool `(n,)`:
                regions of many objects, in which any number may be found without being counted;
                "areas" `(n,)`, if those by which sizes are told are not those of `kind` (COCO has
                the masks' for boxes as well).
        """
        found = {name: np.asarray(values) for name, values in found.items()}
        truth = {name: np.asarray(values) for name, values in truth.items()}
        crowd = truth.get("crowd", np.zeros(len(truth["classes"]))).astype(bool)
        true_areas = truth.get("areas", _areas(truth[self.kind]))
        for k in np.union1d(found["classes"], truth["classes"]).astype(int):
            d, g = np.flatnonzero(found["classes"] == k), truth["classes"] == k
            d = d[np.argsort(-found["scores"][d], kind="stable")][: LIMITS[-1]]
            here = found[self.kind][d]
            overlap = overlaps(here, truth[self.kind][g], crowd[g])
            ignored = crowd[g] | _outside(true_areas[g])  # (areas, g)
            hits, not_counted = match(overlap, crowd[g], ignored)
            not_counted |= ~hits & _outside(_areas(here))[:, None]
            entry = found["scores"][d], hits & ~not_counted, not_counted, (~ignored).sum(axis=1)
            self.entries[k - 1].append(entry)

    def curves(self):
        """Computes the curves of precision.

        Returns:
            precision: float64 `(classes, areas, limits, thresholds, recalls)` as in `AREAS`,
                `LIMITS`, `THRESHOLDS` and `RECALLS`; NaN for a class without true objects there.
            scores: the same shape, the score of the last object found at that point of the curve.
            recall: `(classes, areas, limits, thresholds)`, where the curve ends.
        """
        shape = (self.num_classes, len(AREAS), len(LIMITS), len(THRESHOLDS))
        precision, scores = np.full((2, *shape, len(RECALLS)), np.nan)
        recall = np.full(shape, np.nan)
        for k, entries in enumerate(self.entries):
            totals = sum(entry[3] for entry in entries)
            for m, limit in enumerate(LIMITS):
                cut = [[part[..., :limit] for part in entry[:3]] for entry in entries]
                for a in np.flatnonzero(totals):
                    certain = np.concatenate([part[0] for part in cut])
                    order = np.argsort(-certain, kind="stable")
                    hits, ignored = (
                        np.concatenate([part[i][a] for part in cut], axis=1)[:, order]
                        for i in (1, 2)
                    )
                    place = k, a, m
                    precision[place], scores[place], recall[place] = _curves(
                        hits, ~hits & ~ignored, certain[order], totals[a]
                    )
        return precision, scores, recall

    def figures(self):
        """Computes the twelve figures that COCO reports, and AP and AP50 by class.

        Returns:
            Dict of floats, NaN where there is nothing to find: "AP" (mean over the thresholds),
            "AP50", "AP75" (at one), "AP_small", "AP_medium", "AP_large"; "AR1", "AR10", "AR100"
            (recall if so many objects of a class count in an image), "AR_small", "AR_medium",
            "AR_large"; "class_AP", "class_AP50": lists of floats.
        """
        precision, _, recall = self.curves()
        everything, most, at = precision[:, 0, -1], LIMITS.index(LIMITS[-1]), list(AREAS).index
        return {
            "AP": _mean(everything),
            "AP50": _mean(everything[:, 0]),
            "AP75": _mean(everything[:, 5]),
            **{f"AP_{area}": _mean(precision[:, at(area), most]) for area in list(AREAS)[1:]},
            **{f"AR{limit}": _mean(recall[:, 0, m]) for m, limit in enumerate(LIMITS)},
            **{f"AR_{area}": _mean(recall[:, at(area), most]) for area in list(AREAS)[1:]},
            "class_AP": [_mean(values) for values in everything],
            "class_AP50": [_mean(values[0]) for values in everything],
        }


def overlaps(found, true, crowd):
    """Computes the IoU of found and true boxes `(n, 4)` or masks, bool `(n, height, width)`.

    Args:
        found, true: arrays of `d` and `g` objects.
        crowd: bool `(g,)`; with those it is the intersection over what was found.

    Returns:
        float64 `(d, g)`.
    """
    if len(found) == 0 or len(true) == 0:
        return np.zeros((len(found), len(true)))
    if found.ndim == 3:
        # In float32 numbers up to 2**24 are exact.
        d, g = (x.reshape(len(x), -1).astype("float32") for x in (found, true))
        intersection = (d @ g.T).astype("float64")
    else:
        d, g = found.astype("float64"), true.astype("float64")
        sides = np.minimum(d[:, None, 2:], g[:, 2:]) - np.maximum(d[:, None, :2], g[:, :2])
        intersection = sides.clip(0).prod(axis=-1)
    d, g = _areas(found)[:, None], _areas(true)
    union = np.where(crowd, d, d + g - intersection)
    return np.divide(intersection, union, out=np.zeros(union.shape), where=intersection > 0)


def match(overlap, crowd, ignored):
    """Gives each found object of an image and class a true one, the most certain first.

    Args:
        overlap: IoU `(d, g)`, the most certain first.
        crowd: bool `(g,)`: may be taken again and again.
        ignored: bool `(areas, g)`: taken only if no other is left, and then not counted.

    Returns:
        hits: bool `(areas, thresholds, d)`.
        not_counted: bool, the same shape, those that took an ignored one; they are among the hits.
    """
    hits = np.zeros((len(ignored), len(THRESHOLDS), len(overlap)), bool)
    not_counted = np.zeros_like(hits)
    if overlap.size == 0:
        return hits, not_counted
    free = np.ones((len(ignored), len(THRESHOLDS), len(crowd)), bool)
    ignored = np.broadcast_to(ignored[:, None], free.shape)
    needed = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for d, by_truth in enumerate(overlap):
        possible = np.where((free | crowd) & (by_truth >= needed), by_truth, -1)
        real = np.where(ignored, -1, possible)
        real_first = np.where(real.max(axis=-1, keepdims=True) >= 0, real, possible)
        # Of equal ones the last, as COCO has it.
        best = len(crowd) - 1 - real_first[..., ::-1].argmax(axis=-1)[..., None]
        hit = np.take_along_axis(real_first, best, axis=-1) >= 0
        np.put_along_axis(free, best, np.take_along_axis(free, best, axis=-1) & ~hit, axis=-1)
        hits[..., d] = hit[..., 0]
        not_counted[..., d] = (hit & np.take_along_axis(ignored, best, axis=-1))[..., 0]
    return hits, not_counted


def _curves(hits, alarms, scores, total):
    """Precision and scores `(thresholds, recalls)`, and the last recall `(thresholds,)`."""
    num_thresholds = len(hits)
    precision, at = np.zeros((2, num_thresholds, len(RECALLS)))
    last = np.zeros(num_thresholds)
    if hits.shape[1] == 0:
        return precision, at, last
    hits, alarms = np.cumsum(hits, axis=1, dtype=float), np.cumsum(alarms, axis=1, dtype=float)
    heights = hits / (hits + alarms + np.spacing(1))
    heights = np.maximum.accumulate(heights[:, ::-1], axis=1)[:, ::-1]
    for t in range(num_thresholds):
        recall = hits[t] / total
        places = np.searchsorted(recall, RECALLS)
        reached = places < len(recall)
        precision[t, reached] = heights[t, places[reached]]
        at[t, reached] = scores[places[reached]]
        last[t] = recall[-1]
    return precision, at, last


def _areas(objects):
    """Of boxes `(n, 4)` or masks `(n, height, width)`: float64 `(n,)`."""
    if objects.ndim == 3:
        return objects.sum(axis=(1, 2)).astype("float64")
    boxes = objects.reshape(-1, 4).astype("float64")
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _outside(areas):
    """Whether objects of these areas are outside of each of `AREAS`: bool `(areas, n)`."""
    low, high = np.array(list(AREAS.values())).T[..., None]
    return (areas < low) | (areas > high)


def _mean(values):
    """Mean of those that are a number; NaN if none is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
