"""The task of finding objects, each with its box, its class and its mask."""

import dataclasses
import time
from typing import ClassVar

import numpy as np

from keras_segen import data
from keras_segen.report.numbers import percent, show
from keras_segen.report.tables import Column
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.masks import MaskTask
from keras_segen.tasks.task import Figure, difference_of_outputs, spread

NUM_PREVIEWS = 8
NUM_PROBES = 4  # images whose proposals a comparison looks at
NUM_PICTURES = 4  # images that it draws
COMPARED_SCORE = 0.5  # of the objects that a comparison counts
SAME_BOX = 0.9  # IoU from which on two found boxes are the same
EQUAL_OBJECTS = 0.99  # that are found again when a model is handed over
CLIP_NORM = 5.0
LOSSES = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss")


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceTask(MaskTask):
    """One training of a model that finds objects, completely described.

    `filters` are the channels of the small encoder at strides 2, 4, 8, …; a pretrained one has
    its own. Boxes are computed from the augmented masks. The best epoch is that of the largest
    mask AP on the validation split. Epochs with a frozen encoder do not count for
    `early_stopping`; the cosine of `schedule` also ends at 0 after them.
    """

    MODELS: ClassVar[tuple] = ("mask_rcnn",)
    own_sizes: ClassVar[dict] = {"shapes": 96, "cells": 96}
    does: ClassVar[str] = "finds the objects in photos"
    predicts: ClassVar[str] = "planes of objects (and detections.json)"

    section: ClassVar[str] = "Objects"
    outputs_are: ClassVar[str] = "scores and moves of the anchors"
    compared_note: ClassVar[str] = "The truth, and what each backend's own training finds."
    class_table: ClassVar[tuple] = (
        "class_mask_ap",
        "Mask AP of every class, validation",
        "Average precision of masks, 0 to 1; a dash for a class without objects.",
    )
    figures: ClassVar[dict] = {
        "mask_ap": Figure("Mask AP, validation", "0 to 1", 4, "mask AP"),
        "mask_ap50": Figure("Mask AP50, validation", "0 to 1", 4),
        "box_ap": Figure("Box AP, validation", "0 to 1", 4),
    }
    quantities: ClassVar[dict] = {"val_loss": "validation loss"}
    handed_over: ClassVar[tuple] = (
        ("largest_difference", Column("Largest difference of the scores and moves")),
        ("found_again", Column("Objects found again", percent)),
    )

    model: str = "mask_rcnn"
    batch_size: int = 8
    epochs: int = 20
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    augment: str = "flip=0.5"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    stages: str = field(
        "The numbers of the network: small, for images of about 100 pixels on a laptop, or paper, "
        "for about 1000 pixels.",
        default="small",
        choices=("small", "paper"),
    )
    max_instances: int = field(
        "Objects of an image that are learned from at most, the largest ones; as many can be "
        "found, or more.",
        default=20,
        at_least=1,
        below=255,
    )
    warm_up: int = field(
        "Steps at the start in which the learning rate rises from 0.", default=100, at_least=0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.encoder != "none" and self.filters is not None:
            raise ValueError(
                f"filters is {self.filters}, the channels of the small encoder, but encoder is "
                f"{self.encoder!r}, which has its own: leave one of them out."
            )

    @classmethod
    def describe_models(cls):
        return {"mask_rcnn": "Finds objects: a box, a class and a mask for each (He et al., 2017)."}

    # --- what is trained

    def load_data(self, split):
        """Loads a split of the data set: a `keras_segen.data.Instances`."""
        dataset = super().load_data(split)
        if not isinstance(dataset, data.Dataset):
            raise ValueError(
                f"{dataset.name} has pictures without masks, and {self.model} learns objects: use "
                "a data set with instances."
            )
        return data.as_instances(dataset, self.max_instances)

    def batch_options(self, dataset):
        return {"augment": data.Augment.parse(self.augment)}

    def build_model(self, dataset, tell=lambda line: None):
        """Builds the network for a data set and fills it from the seed, or from another run.

        Args:
            dataset: a `keras_segen.data.Instances`.
            tell: called with a line that says which weights `start_from` gave.

        Returns:
            A `keras_segen.segmentation.MaskRCNN`, not compiled.

        Raises:
            ValueError: the images have no common size, the precision is float64, or `start_from`
                holds a network of another kind.
            OSError: the weights of an encoder are not here and could not be downloaded.
        """
        from keras_segen import segmentation
        from keras_segen.segmentation.mask_rcnn import small_encoder

        self.check_images(dataset)
        with self.dtype_policy():
            encoder = self.make_encoder()
            if self.filters is not None:
                encoder = small_encoder(dataset.image_shape, self.filters)
            model = segmentation.mask_rcnn(
                dataset.image_shape,
                dataset.num_classes,
                self.max_instances,
                encoder,
                self._stages(),
                self.seed,
            )
        return self.fill(model, tell)

    def _stages(self):
        """The numbers of the network, with room to find as many objects as are learned from."""
        from keras_segen import segmentation

        stages = segmentation.SMALL if self.stages == "small" else segmentation.Stages()
        of_each_level, kept = stages.proposals
        return dataclasses.replace(
            stages,
            proposals=(
                max(of_each_level, 4 * self.max_instances),
                max(kept, 2 * self.max_instances),
            ),
            detections=max(stages.detections, self.max_instances),
        )

    def encoder_of(self, model):
        return model.pyramid.get_layer(self.encoder)

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        """Compiles the model with the optimizer; the losses are its own.

        Args:
            model: what `build_model` returned.
            dataset: the training split.
            steps_per_epoch: int, for the length of the cosine schedule.
            phase: one of `phases()`; None for the first.
        """
        import keras

        optimizer = self.start_phase(model, steps_per_epoch, phase, global_clipnorm=CLIP_NORM)
        if self.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, auto_scale_loss=False)

    def rate(self, start, steps):
        """As `Task.rate`, from 0 in the first `warm_up` steps, at most a tenth of all."""
        import keras

        warm_up = min(self.warm_up, steps // 10)
        if not warm_up:
            return super().rate(start, steps)
        if self.schedule == "cosine":
            return keras.optimizers.schedules.CosineDecay(
                0.0, steps - warm_up, warmup_target=start, warmup_steps=warm_up
            )
        return keras.optimizers.schedules.PolynomialDecay(0.0, warm_up, start)

    # --- what is watched

    @property
    def losses(self):
        return ("loss", *LOSSES)

    @property
    def monitor(self):
        return ("val_mask_ap", 1)

    def measure(self, model, val_data):
        """The average precisions on the validation split."""
        from keras_segen.segmentation.evaluate_instances import average_precisions

        found = average_precisions(model, val_data, self.batch_size)
        # AP is not known where nothing is to be found: 0, so that epochs can be compared.
        return {
            f"val_{name}": float(np.nan_to_num(value))
            for name, value in found.items()
            if isinstance(value, float)
        }

    def draw(self, model, val_data):
        """Draws the objects found in some validation images, the same ones each time."""
        from keras_segen import plot
        from keras_segen.segmentation.detector import Detector

        images = np.stack([val_data.objects(i)[0] for i in spread(val_data, NUM_PREVIEWS)])
        figure = plot.instances(
            images,
            Detector(model, val_data.class_names).find(images),
            palette=val_data.palette,
            class_names=val_data.class_names,
        )
        return {"epoch": figure}

    def outcome(self, history):
        return f"Best validation mask AP {max(history['val_mask_ap']):.4f}"

    # --- how it is judged and used

    def evaluate(self, model, dataset, *, batch_size=None):
        """As `keras_segen.segmentation.evaluate_instances`; `batch_size` None: the training's."""
        from keras_segen.segmentation.evaluate_instances import evaluate_instances

        return evaluate_instances(model, dataset, batch_size or self.batch_size)

    def predict(self, model, about, paths, out, *, full_size=False, overlap=None, min_score=None):
        """Finds the objects of photos, see `keras_segen.segmentation.find_in_photos`.

        Args:
            full_size: bool, whether photos are looked at in tiles at their own size: for photos
                whose objects are as large, in pixels, as in the training images. Tiles have the
                size of the training images.
            overlap: int, with `full_size`: pixels that tiles share; None means a quarter of the
                shorter side of the tile.
            min_score: float, objects of lower scores are left out; None means 0.5.

        Raises:
            ValueError: an option is out of range.
        """
        from keras_segen import segmentation

        detector = self._detector(model, about, min_score)
        palette, label_ids = np.array(about["palette"], "uint8"), np.array(about["label_ids"])
        return segmentation.find_in_photos(
            detector, paths, out, palette, label_ids, full_size, overlap
        )

    def predict_one(self, model, about, image):
        """A list of `keras_segen.data.Instance`, the surest first; at the photo's own size."""
        return self._detector(model, about).predict(self.read_one(about, image))

    def _detector(self, model, about, min_score=None):
        from keras_segen.segmentation.detector import MIN_SCORE, Detector

        return Detector(model, about["class_names"], MIN_SCORE if min_score is None else min_score)

    # --- what a comparison looks at

    def outputs(self, model, dataset):
        """What the RPN says about every anchor of some images: `(images, anchors, 5)`."""
        from keras_segen import backend

        images = [dataset[i][0] for i in range(min(NUM_PROBES, len(dataset)))]
        found = backend.infer(model, np.stack(images))
        return np.concatenate([found["scores"][..., None], found["deltas"]], axis=-1)

    def apply(self, model, dataset):
        """Finds the objects of every image: arrays with a row for each image."""
        from keras_segen import backend

        seconds, found = [], []
        for start in range(0, len(dataset), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(dataset)))
            images = np.stack([dataset[i][0] for i in indices])
            begin = time.perf_counter()
            found.append(backend.infer(model, images, "detect"))
            seconds.append(time.perf_counter() - begin)
        arrays = {
            name: np.concatenate([each[name] for each in found])
            for name in ("boxes", "classes", "scores")
        }
        masks = np.concatenate([each["masks"][:NUM_PICTURES] for each in found])[:NUM_PICTURES]
        return {**arrays, "first_masks": masks}, seconds

    def compared_figures(self, model, dataset, history):
        from keras_segen.segmentation.evaluate_instances import average_precisions

        found = average_precisions(model, dataset, self.batch_size)
        by_class = list(found["class_mask_ap"].values())
        return {**{name: found[name] for name in self.figures}, "class_mask_ap": by_class}

    def hand_over(self, own, served):
        """Compares the share of objects that are not found again with a tolerance."""
        apart, largest = difference_of_outputs(own, served)
        lost, total = not_found_again(own, served)
        return {
            "largest_difference": apart,
            "found_again": 1.0 - lost / max(total, 1),
            "measured": lost / max(total, 1),
            "tolerance": 1.0 - EQUAL_OBJECTS,
            "unit": "share of objects that are not found again",
            "note": f"{total:,} objects; scores and moves of the anchors differ by at most "
            f"{show(apart, 2)} (the largest is {show(largest, 2)})",
        }

    def draw_compared(self, dataset, arrays):
        from keras_segen import plot
        from keras_segen.segmentation.detector import as_instances

        items = [dataset.objects(i) for i in range(min(NUM_PICTURES, len(dataset)))]
        groups = {"truth": [true for _, true, _ in items]}
        for name, saved in arrays.items():
            groups[name] = [
                as_instances(
                    *(saved[key][i] for key in ("boxes", "classes", "scores")),
                    saved["first_masks"][i],
                    dataset.image_shape[:2],
                    dataset.class_names,
                    COMPARED_SCORE,
                )
                for i in range(len(items))
            ]
        return plot.instances(
            [image for image, _, _ in items],
            groups,
            palette=dataset.palette,
            class_names=dataset.class_names,
        )

    def disagreement(self, first, second):
        lost, found = not_found_again(first, second)
        lost_too, found_too = not_found_again(second, first)
        return {"objects": lost + lost_too, "of": found + found_too}

    @classmethod
    def describe_disagreement(cls, disagreement):
        objects, total = show(disagreement["objects"]), show(disagreement["of"])
        if not disagreement["objects"]:
            return f"Each of the {total} objects that one backend finds, the other finds too."
        return (
            f"{objects} of the {total} objects that the two backends find (score from "
            f"{COMPARED_SCORE}) are found by one of them only."
        )

    def parts(self, model):
        names = ("pyramid", "rpn", "box_head", "mask_head")
        return {name: getattr(model, name) for name in names}

    def copy_model(self, model, copy):
        networks = map(copy, self.parts(model).values())
        return type(model)(*networks, model.max_instances, model.stages, model.seed)

    def run_layers(self, model, images, target):
        model.test_step((images, target))


def not_found_again(first, second):
    """Counts the objects of one prediction that another lacks: `(lacking, all)`.

    Args:
        first, second: dicts of `boxes` `(images, n, 4)`, `classes` and `scores` `(images, n)`.
            An object is found again if there is one of its class whose box has an IoU of at
            least 0.9 with its own; objects of scores below 0.5 do not count.
    """
    from keras_segen.segmentation.average_precision import overlaps

    lost = total = 0
    for i in range(len(first["scores"])):
        sure = (first["classes"][i] > 0) & (first["scores"][i] >= COMPARED_SCORE)
        boxes, classes = first["boxes"][i][sure], first["classes"][i][sure]
        others = second["classes"][i]
        overlap = overlaps(boxes, second["boxes"][i], np.zeros(len(others), bool))
        again = ((overlap >= SAME_BOX) & (classes[:, None] == others)).any(axis=1)
        lost, total = lost + int((~again).sum()), total + len(again)
    return lost, total
