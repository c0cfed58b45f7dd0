"""Evaluation of a network that finds objects: average precision, misses and false alarms."""

import dataclasses

import numpy as np

from keras_segen import plot
from keras_segen.data.instances import Instance
from keras_segen.metrics import expected_calibration_error
from keras_segen.report.evaluation import Evaluation, Shown
from keras_segen.report.numbers import plain
from keras_segen.report.tables import Column, Table, decimals
from keras_segen.segmentation import coco, partition
from keras_segen.segmentation.average_precision import (
    RECALLS,
    THRESHOLDS,
    AveragePrecision,
    overlaps,
)
from keras_segen.segmentation.detector import MIN_SCORE, Detector
from keras_segen.segmentation.evaluate import table_of_classes
from keras_segen.segmentation.partition import as_arrays, outside_void

HIT = 0.5  # IoU of masks from which on an object counts as found, for misses and false alarms
NUM_SHOWN = 8  # misses, and as many false alarms
NUM_BINS = 15
MOST_CURVES = 12  # classes with a curve of their own

# What is written under the charts.
OF_EVERY_CLASS = (
    "The surest finds first: how many of them are right (upwards) by the time that so many of the "
    "true objects are found (to the right). Right means a mask of IoU 0.5 or more. The area under "
    "a curve is the class's AP50."
)
OF_THE_MEAN = (
    "The same if right means a better mask. AP is the mean of the areas at ten thresholds, 0.50 to "
    "0.95."
)
OF_THE_SCORES = (
    "Of objects with a score of 0.8, a calibrated network has 80 % right (IoU 0.5). Bars below the "
    "diagonal: surer than it should be."
)


@dataclasses.dataclass
class Wrong:
    """A missed object, or a false alarm."""

    index: int
    instance: Instance
    other: Instance | None  # what it overlaps most
    overlap: float


def evaluate_instances(model, dataset, batch_size=16):
    """Evaluates a Mask R-CNN on a data set, as COCO does.

    The truth is whole: objects beyond the slots of the training count. Void does not: what was
    found mostly in void is left out, as are slivers under 10 pixels of the truth. A true crowd
    may be found any number of times without being counted.

    Args:
        model: a `keras_segen.segmentation.MaskRCNN`.
        dataset: a `keras_segen.data.Instances` with images of one size.
        batch_size: int.

    Returns:
        A `keras_segen.report.evaluation.Evaluation`: in a notebook it is displayed as a page with
        the figures of every class, curves of precision by recall, the calibration of the scores,
        and the worst misses and false alarms. Its `figures`: `mask_ap`, `mask_ap50`,
        `mask_ap75`, `box_ap`, `box_ap50`, `box_ap75`, all from 0 to 1; `mask` and `box`, dicts of
        all that COCO reports; `class_mask_ap`, `class_mask_ap50`, `class_box_ap` (dicts of class
        name -> float, or None for a class without objects); `recall` and `precision` of the
        objects with a score of at least 0.5, by masks of IoU 0.5, and all figures of
        `keras_segen.segmentation.partition.Partition` of these; `calibration_bins` and
        `expected_calibration_error`; `misses` and `false_alarms`, the worst ones; `objects` and
        `images`, their numbers. Its `files` are the results and the truth in COCO's JSON.
    """
    judge = Judge(dataset.class_names)
    for found, true, void in detect(model, dataset, batch_size):
        judge.add(found, true, void)
    return judge.evaluation(model.name, dataset)


def detect(model, dataset, batch_size, min_score=0.0):
    """Finds the objects of all images of a data set.

    Yields:
        `(found, true, void)` for each image: lists of `keras_segen.data.Instance`, and bool
        `(height, width)`.
    """
    detector = Detector(model, dataset.class_names, min_score)
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        images, true, void = zip(*(dataset.objects(index) for index in indices), strict=True)
        yield from zip(detector.find(np.stack(images)), true, void, strict=True)


def average_precisions(model, dataset, batch_size):
    """Computes only the average precisions of `evaluate_instances`, which is quicker.

    Args:
        model, dataset, batch_size: as in `evaluate_instances`.

    Returns:
        Dict: of its `figures` the six from `mask_ap` to `box_ap75`, and those of every class.
    """
    judge = Judge(dataset.class_names)
    for found, true, void in detect(model, dataset, batch_size):
        judge.add_to_counters(outside_void(found, void), true)
    return judge.average_precisions(judge.figures_of_coco())


class Judge:
    """Holds found objects against true ones, one image after another.

    Args:
        class_names: sequence of str, of the classes 1 to K.
    """

    def __init__(self, class_names):
        self.class_names = tuple(class_names)
        self.counters = {
            kind: AveragePrecision(len(class_names), compared)
            for kind, compared in (("mask", "masks"), ("box", "boxes"))
        }
        self.found, self.true = [], []
        self.misses, self.alarms = [], []
        self.bins = np.zeros((NUM_BINS, 3))
        self.sure = np.zeros(2, int)  # hits and false alarms of a score that is shown
        self.objects = np.zeros(len(class_names), int)
        self.partition = partition.Partition()

    def add(self, found, true, void):
        """Counts an image: lists of `keras_segen.data.Instance`, and bool `(height, width)`."""
        found = outside_void(found, void)
        self.add_to_counters(found, true)
        self._compare(len(self.found), found, true)
        shown = sorted((each for each in found if each.score >= MIN_SCORE), key=lambda o: -o.score)
        self.partition.add(shown, true, void)
        self.found.append(found)
        self.true.append(true)

    def add_to_counters(self, found, true):
        size = (found or true)[0].image_size if found or true else (1, 1)
        found, true = as_arrays(found, size), as_arrays(true, size)
        true["areas"] = true["masks"].sum(axis=(1, 2))
        for counter in self.counters.values():
            counter.add(found, true)

    def _compare(self, index, found, true):
        """Counts hits, misses and false alarms at an IoU of 0.5, the surest first."""
        size = (found or true)[0].image_size if found or true else (1, 1)
        a, b = as_arrays(found, size), as_arrays(true, size)
        overlap = overlaps(a["masks"], b["masks"], b["crowd"])
        same = a["classes"][:, None] == b["classes"]
        free = np.ones(len(true), bool)
        taken = np.zeros(len(true), bool)  # by a find whose score is shown
        for d in np.argsort(-a["scores"], kind="stable"):
            possible = np.where(same[d] & (free | b["crowd"]), overlap[d], 0)
            g = int(possible.argmax()) if len(true) else 0
            hit = len(true) > 0 and possible[g] >= HIT
            if hit and b["crowd"][g]:
                continue  # neither
            score = found[d].score
            self.bins[min(int(score * NUM_BINS), NUM_BINS - 1)] += 1, hit, score
            if score >= MIN_SCORE:
                self.sure += hit, not hit
            if hit:
                free[g] = False
                taken[g] = score >= MIN_SCORE
            elif score >= MIN_SCORE:
                self.alarms.append(wrong(index, found[d], true, overlap[d]))
        for g in np.flatnonzero(~taken & ~b["crowd"]):
            shown = [d for d in range(len(found)) if found[d].score >= MIN_SCORE]
            others = [found[d] for d in shown]
            self.misses.append(wrong(index, true[g], others, overlap[shown, g]))
        self.objects += np.bincount(b["classes"][~b["crowd"]], minlength=len(self.objects) + 1)[1:]

    def figures_of_coco(self):
        """All that COCO reports: dict of `mask` and `box`."""
        return {kind: counter.figures() for kind, counter in self.counters.items()}

    def average_precisions(self, by_kind):
        """The main figures, and those of every class, out of `figures_of_coco`."""
        main, classes = {}, {}
        for kind, figures in by_kind.items():
            for name in ("AP", "AP50", "AP75"):
                main[f"{kind}_{name.lower()}"] = figures[name]
            for name in ("AP", "AP50"):
                pairs = zip(self.class_names, figures[f"class_{name}"], strict=True)
                classes[f"class_{kind}_{name.lower()}"] = dict(pairs)
        return main | classes

    def evaluation(self, model_name, dataset):
        """The `Evaluation` of all that was added: every image of a data set, in order."""
        by_kind = self.figures_of_coco()
        precisions = self.average_precisions(by_kind)
        by_kind = {
            kind: {name: value for name, value in figures.items() if "class" not in name}
            for kind, figures in by_kind.items()
        }
        hits, alarms = self.sure.tolist()
        objects = int(self.objects.sum())
        misses = sorted(self.misses, key=lambda each: -each.instance.area)[:NUM_SHOWN]
        worst = sorted(self.alarms, key=lambda each: -each.instance.score)[:NUM_SHOWN]
        figures = {
            "images": len(self.found),
            "objects": objects,
            **precisions,
            "recall": hits / max(objects, 1),
            "precision": hits / max(hits + alarms, 1),
            **self.partition.figures(),
            **by_kind,
            "class_objects": dict(zip(self.class_names, self.objects.tolist(), strict=True)),
            "calibration_bins": self.bins.tolist(),
            "expected_calibration_error": float(expected_calibration_error(self.bins)),
            "misses": [as_values(each, dataset) for each in misses],
            "false_alarms": [as_values(each, dataset) for each in worst],
        }
        colors = [f"rgb({r}, {g}, {b})" for r, g, b in dataset.palette.tolist()]
        names = [dataset.item_name(i) for i in range(len(self.found))]
        sizes = [dataset.image_shape[:2]] * len(names)
        found = [coco.annotation(each, i) for i, some in enumerate(self.found, 1) for each in some]
        return Evaluation(
            subject=f"{model_name} on {dataset.name}, {dataset.split}",
            result=f"mask AP {figures['mask_ap']:.3f} over {len(self.found)} images",
            figures=figures,
            tables=[_table_of_classes(figures, colors), partition.table(figures)],
            sentences=[
                f"mask AP {figures['mask_ap']:.4f} (AP50 {figures['mask_ap50']:.4f}, AP75 "
                f"{figures['mask_ap75']:.4f}), box AP {figures['box_ap']:.4f}; "
                f"{len(self.found)} images of {dataset.split}.",
                f"Of {objects} objects {hits} are found with a score of at least {MIN_SCORE} and "
                f"a mask of IoU {HIT} or more (recall {figures['recall']:.3f}), beside {alarms} "
                f"false alarms (precision {figures['precision']:.3f}).",
                partition.sentence(figures),
            ],
            cards=_cards(figures) + partition.cards(figures),
            charts=self._charts(dataset),
            details=[_table_of_coco(by_kind)],
            gallery=self._gallery(misses, worst, dataset),
            legend=list(zip(self.class_names, colors, strict=True)),
            files={
                "detections": found,
                "truth": coco.document(names, sizes, self.true, self.class_names),
            },
        )

    def _charts(self, dataset):
        precision, _, _ = self.counters["mask"].curves()
        precision = precision[:, 0, -1]  # (classes, thresholds, recalls)
        known = [k for k in range(len(precision)) if not np.isnan(precision[k, 0, 0])]
        charts = []
        if known and len(known) <= MOST_CURVES:
            by_class = {self.class_names[k]: precision[k, 0] for k in known}
            figure = plot.precision_recall(RECALLS, by_class, dataset.palette[known])
            charts.append(("Precision by recall, every class", OF_EVERY_CLASS, figure))
        if known:
            mean = precision[known].mean(axis=0)
            by_threshold = {f"IoU {THRESHOLDS[t]:.2f}": mean[t] for t in range(0, 10, 2)}
            figure = plot.precision_recall(RECALLS, by_threshold)
            charts.append(("Precision by recall, mean of the classes", OF_THE_MEAN, figure))
        figure = plot.reliability(self.bins, "finds", "confidence: score of the object")
        return [*charts, ("Calibration of the scores", OF_THE_SCORES, figure)]

    def _gallery(self, misses, alarms, dataset):
        shown = []
        for kind, some in (("missed", misses), ("false alarm", alarms)):
            for each in some:
                words = as_values(each, dataset)
                image, *_ = dataset.objects(each.index)
                sure = [one for one in self.found[each.index] if one.score >= MIN_SCORE]
                pictures = {"image": plot.draw_instances(image, [], dataset.palette)}
                for name, drawn in (("truth", self.true[each.index]), ("found", sure)):
                    pictures[name] = plot.draw_instances(
                        image, drawn, dataset.palette, marked=each.instance
                    )
                shown.append(Shown(words["name"], f"{kind}: {words['what']}", pictures))
        if not shown:
            return None
        note = (
            f"The largest of {len(self.misses)} missed objects, then the surest of "
            f"{len(self.alarms)} false alarms, each with a yellow frame. Scores under {MIN_SCORE} "
            "are not drawn."
        )
        return "The worst misses and false alarms", note, shown


def wrong(index, instance, others, overlap):
    """A `Wrong`, with the one of some others that it overlaps most."""
    best = int(np.argmax(overlap)) if len(others) else None
    if best is None or overlap[best] < 0.1:
        return Wrong(index, instance, None, 0.0)
    return Wrong(index, instance, others[best], float(overlap[best]))


def as_values(each, dataset):
    """A miss or a false alarm as plain values, and in words."""
    instance, other = each.instance, each.other
    what = instance.name
    if instance.score is not None:
        what += f" of score {instance.score:.2f}"
    what += f", {instance.area} pixels"
    if other is not None:
        kind = "the found" if instance.score is None else "the true"
        what += f"; {kind} {other.name} there has IoU {each.overlap:.2f}"
    return {
        "name": dataset.item_name(each.index),
        "class": instance.name,
        "box": [float(side) for side in instance.box],
        "score": instance.score,
        "overlaps": other.name if other else None,
        "iou": each.overlap,
        "what": what,
    }


def _table_of_classes(figures, colors):
    headings = {"mask_ap": "Mask AP", "mask_ap50": "Mask AP50"}
    headings |= {"box_ap": "Box AP", "box_ap50": "Box AP50"}
    objects = Column("Objects", "{:,}".format, key="objects")
    means = [figures["objects"], *(figures[key] for key in headings)]
    note = (
        "Average precision as COCO computes it: AP over IoU 0.50 to 0.95, AP50 at 0.50. A "
        "dash for a class without objects."
    )
    return table_of_classes(figures, headings, objects, means, colors, note)


def _table_of_coco(by_kind):
    names = list(by_kind["mask"])
    rows = [[name, *(plain(by_kind[kind][name]) for kind in ("mask", "box"))] for name in names]
    return Table(
        "All that COCO reports",
        ["", Column("Masks", decimals(3)), Column("Boxes", decimals(3))],
        rows,
        note="Small is under 32 x 32 pixels, large over 96 x 96; AR1, AR10 and AR100 are the "
        "recall if so many objects of a class may be found in an image.",
    )


def _cards(figures):
    return [
        (title, "–" if np.isnan(figures[key]) else f"{figures[key]:.3f}", note)
        for title, key, note in (
            ("Mask AP", "mask_ap", "mean over IoU 0.50 to 0.95"),
            ("Mask AP50", "mask_ap50", "right from IoU 0.50 on"),
            ("Box AP", "box_ap", "mean over IoU 0.50 to 0.95"),
            ("Recall", "recall", f"of scores of at least {MIN_SCORE}, IoU {HIT}"),
            ("Precision", "precision", f"of scores of at least {MIN_SCORE}, IoU {HIT}"),
        )
    ]
