"""What to train: model, data, recipe and seed, as plain values that go to JSON and back."""

import dataclasses
import inspect
import math
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from keras_segen import data
from keras_segen.data import imbalance
from keras_segen.data.loader import SAMPLINGS, Batches
from keras_segen.report.numbers import percent, show
from keras_segen.report.tables import Column
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.masks import MaskTask
from keras_segen.tasks.task import Figure, difference_of_outputs, is_file, spread, stacked

# The terms of a loss; `cross_entropy` is the class `CrossEntropy` of `keras_segen.losses`.
LOSS_TERMS = ("cross_entropy", "binary_cross_entropy", "focal", "dice", "jaccard", "tversky")
LOSS_TERMS += ("focal_tversky", "lovasz")
WEIGHTED_LOSSES = ("cross_entropy", "binary_cross_entropy", "focal")  # by class_weights
SMOOTHED_LOSSES = ("cross_entropy", "binary_cross_entropy")  # by label_smoothing
NUM_PREVIEWS = 4
NUM_PROBES = 16  # images whose logits a comparison looks at
NUM_PICTURES = 6  # images that it draws
EQUAL_PIXELS = 0.9999  # that keep their class when a model is handed over

# Channels that a laptop trains in reasonable time, by model, without and with an encoder.
FILTERS = {
    "unet": ((16, 32, 64, 128), (16, 16, 32, 64, 96)),
    "plain_unet": ((16, 32, 64, 128), None),
    "fcn": ((16, 32, 64, 128, 128, 512), (256,)),
}


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationTask(MaskTask):
    """One training of a model that makes masks, completely described.

    The model is a name out of `keras_segen.segmentation.MODELS`, or the path of a `.keras` file,
    a network from images in [0, 1] to logits, whose weights are the start. Without `filters` it
    has those of `FILTERS`; the paper's U-Net has 64, 128, 256, 512, 1024.

    The best epoch is that of the largest mean IoU on the validation split. Epochs with a frozen
    encoder do not count for `early_stopping`; the cosine of `schedule` also ends at 0 after them.
    """

    MODELS: ClassVar[tuple] = tuple(FILTERS)
    own_sizes: ClassVar[dict] = {"shapes": 64, "cells": 96}
    does: ClassVar[str] = "labels the pixels of photos"

    section: ClassVar[str] = "Predictions"
    outputs_are: ClassVar[str] = "logits"
    compared_note: ClassVar[str] = (
        "Image, truth, what each backend's own training predicts, and where they disagree."
    )
    class_table: ClassVar[tuple] = (
        "class_iou",
        "IoU of every class, validation",
        "Intersection over union, 0 to 1; a dash where the class occurs neither in the truth nor "
        "in the prediction.",
    )
    figures: ClassVar[dict] = {
        "mean_iou": Figure("Mean IoU, validation", "0 to 1", 4, "mean IoU"),
        "mean_dice": Figure("Mean Dice, validation", "0 to 1", 4),
        "pixel_accuracy": Figure("Pixel accuracy, validation", "0 to 1", 4),
    }
    quantities: ClassVar[dict] = {
        "val_loss": "validation loss",
        "val_mean_iou": "validation mean IoU",
    }
    handed_over: ClassVar[tuple] = (
        ("largest_difference", Column("Largest difference of the logits")),
        ("equal_pixels", Column("Equal pixels", percent)),
    )
    fold_figures: ClassVar[dict] = {
        "mean_iou": "mean IoU",
        "mean_dice": "mean Dice",
        "pixel_accuracy": "pixel accuracy",
    }
    fold_details: ClassVar[dict] = {"class_iou": "IoU of every class"}

    model: str = "unet"
    batch_size: int = 16
    learning_rate: float = 1e-3
    stride: int = field(
        "The finest features that fcn labels.",
        default=8,
        choices=(8, 16, 32),
        applies=lambda settings: settings["model"] == "fcn",
    )
    dropout: float = field(
        "Share of values that unet and fcn drop in training.",
        default=0.0,
        at_least=0,
        below=1,
        applies=lambda settings: settings["model"] in ("unet", "fcn"),
    )
    loss: str = field(
        f"A sum such as cross_entropy+0.5*lovasz, of {', '.join(LOSS_TERMS)}. With "
        "binary_cross_entropy the network has one output channel, the logit of class 1 of two.",
        default="cross_entropy",
        common=True,
    )
    label_smoothing: float = field(
        "How far the targets of cross-entropy are moved off certainty.",
        default=0.0,
        at_least=0,
        below=1,
        applies=lambda settings: any(name in settings["loss"] for name in SMOOTHED_LOSSES),
    )
    class_weights: str = field(
        "For unbalanced classes: what they weigh in cross-entropy and focal, the means over "
        "pixels (`keras_segen.data.imbalance`).",
        default="none",
        choices=("none", *imbalance.CLASS_WEIGHTS),
        applies=lambda settings: any(name in settings["loss"] for name in WEIGHTED_LOSSES),
    )
    border_weight: float = field(
        "What the background between two objects weighs beside the 1 of every pixel, where they "
        "all but touch; the U-Net paper has 10. For data that tells objects apart "
        "(`keras_segen.data.BorderWeights`). 0: all pixels weigh the same.",
        default=0.0,
        at_least=0,
        common=True,
    )
    border_sigma: float = field(
        "With border_weight: how far that reaches, in pixels; sigma of the U-Net paper.",
        default=5.0,
        above=0,
        applies=lambda settings: settings["border_weight"] > 0,
    )
    sampling: str = field(
        "Which images an epoch draws; rare_classes draws images with rare classes more often.",
        default="uniform",
        choices=SAMPLINGS,
    )
    folds: int = field(
        "Folds that the training split is cut into, for a cross-validation; 0: none. Groups of "
        "the data set stay whole.",
        default=0,
    )
    fold: int = field(
        "The fold that is held out, from 1, as the validation split. Nothing is chosen on it: the "
        "last epoch's model is kept.",
        default=0,
        applies=lambda settings: settings["folds"] > 0,
    )

    def __post_init__(self):
        super().__post_init__()
        if is_file(self.model):
            self._check_file()
        if self.folds and (self.folds < 2 or not 1 <= self.fold <= self.folds):
            raise ValueError(
                f"folds is {self.folds} and fold {self.fold}, expected at least 2 folds and one "
                "of them, counted from 1."
            )
        if self.fold and not self.folds:
            raise ValueError(f"fold is {self.fold}, but folds is 0: say how many there are.")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError(
                f"weight_decay is {self.weight_decay}, but adam has none: use optimizer='adamw'."
            )
        self._check_loss()
        if self.early_stopping and self.folds:
            raise ValueError(
                f"early_stopping is {self.early_stopping}, but in cross-validation the images "
                "held out must choose nothing, the number of epochs neither: use early_stopping=0."
            )

    def _check_file(self):
        """Checks that nothing is asked of a whole network that only a builder can give."""
        for name in ("filters", "encoder", "stride", "dropout", "start_from", "precision"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) not in (default, "float64"):  # a comparison copies it in that
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but {Path(self.model).name} is a whole "
                    "network with layers and weights of its own: leave it out."
                )
        object.__setattr__(self, "model", str(Path(self.model).expanduser().resolve()))

    def _check_loss(self):
        names = {name for _, name in self.loss_terms()}
        if {"cross_entropy", "binary_cross_entropy"} <= names:
            raise ValueError(
                f"loss is {self.loss!r}: cross_entropy needs a channel per class, and "
                "binary_cross_entropy one channel; use one of the two."
            )
        for name, default, losses in (
            ("class_weights", "none", WEIGHTED_LOSSES),
            ("label_smoothing", 0, SMOOTHED_LOSSES),
        ):
            if getattr(self, name) != default and not names & set(losses):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} and acts on {', '.join(losses)}, but the "
                    f"loss is {self.loss!r}."
                )

    def loss_terms(self):
        """Returns the terms of the loss: list of pairs `(factor, name)`."""
        terms = []
        for term in self.loss.split("+"):
            factor, name = term.split("*", 1) if "*" in term else ("1", term)
            try:
                factor = float(factor)
            except ValueError:
                factor = math.nan
            if name.strip() not in LOSS_TERMS or not (math.isfinite(factor) and factor > 0):
                raise ValueError(
                    f"loss is {self.loss!r}, and its term {term!r} is none of "
                    f"{', '.join(LOSS_TERMS)}, each with or without a factor above 0, such as "
                    "'cross_entropy+0.5*lovasz'."
                )
            terms.append((factor, name.strip()))
        return terms

    @classmethod
    def takes(cls, model):
        return is_file(model) or super().takes(model)

    @classmethod
    def describe_models(cls):
        from keras_segen import segmentation

        return {
            name: inspect.getdoc(build).splitlines()[0]
            for name, build in segmentation.MODELS.items()
        }

    def load_data(self, split):
        """Loads a split of the data set: a `keras_segen.data.Dataset`."""
        if not self.folds or split not in ("train", "val"):
            return super().load_data(split)
        whole = super().load_data("train")
        fold_of_item = data.assign_folds(len(whole), self.folds, self.seed, whole.groups)
        held_out = fold_of_item == self.fold - 1
        return data.Subset(whole, np.flatnonzero(held_out if split == "val" else ~held_out), split)

    def training_batches(self, dataset, first_epoch=0, kind=Batches):
        if self.border_weight:
            dataset = data.BorderWeights(
                dataset, self.border_weight, self.border_sigma, self._weights_of_classes(dataset)
            )
        return super().training_batches(dataset, first_epoch, kind)

    def batch_options(self, dataset):
        return {"augment": data.Augment.parse(self.augment), "sampling": self.sampling}

    def describe_data(self, train_data, val_data):
        return {
            **super().describe_data(train_data, val_data),
            "ignore_class": train_data.ignore_class,
            "object_classes": [int(k) for k in train_data.object_classes],
        }

    def check_images(self, dataset):
        if not isinstance(dataset, data.Dataset):
            raise ValueError(
                f"{dataset.name} has pictures without masks, and {self.model} learns masks: use a "
                "data set with masks."
            )
        super().check_images(dataset)

    def num_outputs(self, dataset):
        """Returns the channels of the network's output: one per class, or one for two classes.

        Raises:
            ValueError: when the loss is binary and the data set has not two classes.
        """
        if "binary_cross_entropy" not in self.loss:
            return dataset.num_classes
        if dataset.num_classes != 2:
            raise ValueError(
                f"binary_cross_entropy is for two classes, and {dataset.name} has "
                f"{dataset.num_classes}: use cross_entropy."
            )
        return 1

    def build_model(self, dataset, tell=lambda line: None):
        """Builds the network for a data set and fills it from the seed, or from another run.

        A pretrained encoder keeps its weights, and so does the network of a `.keras` file.

        Args:
            dataset: a `keras_segen.data.Dataset`, for the shape of its images and its classes.
            tell: called with a line that says which weights `start_from` gave.

        Returns:
            A `keras.Model` from images `(batch, height, width, channels)` to logits
            `(batch, height, width, num_outputs)`, not compiled.

        Raises:
            ValueError: there is no such model, it does not have one of the options, the images
                have no common size, the precision is float64, `start_from` holds a network of
                another kind, or a `.keras` file none for these images and classes.
            OSError: the weights of an encoder are not here and could not be downloaded.
        """
        from keras_segen import segmentation

        own = is_file(self.model)
        if not own and self.model not in segmentation.MODELS:
            raise ValueError(
                f"There is no model {self.model!r}; there are: {', '.join(segmentation.MODELS)}."
            )
        self.check_images(dataset)
        if own:
            return segmentation.load_network(self.model, dataset, self.num_outputs(dataset))
        build = segmentation.MODELS[self.model]
        known = inspect.signature(build).parameters
        options = {}
        for option in ("stride", "dropout", "encoder"):
            default = type(self).__dataclass_fields__[option].default
            if option in known:
                options[option] = getattr(self, option)
            elif getattr(self, option) != default:
                raise ValueError(
                    f"{option} is {getattr(self, option)!r}, but {self.model} has none."
                )
        if "activation" in known:
            options["activation"] = None  # the losses take logits
        with self.dtype_policy():
            encoder = self.make_encoder()
            if "encoder" in options:
                options["encoder"] = encoder
            filters = self.filters or FILTERS[self.model][encoder is not None]
            model = build(
                dataset.image_shape, self.num_outputs(dataset), filters=filters, **options
            )
        return self.fill(model, tell)

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        """Compiles the model with the optimizer, loss and metrics of the task.

        The phase decides whether the encoder is frozen.

        Args:
            model: what `build_model` returned.
            dataset: the training split; class weights are computed from it.
            steps_per_epoch: int, for the length of the cosine schedule.
            phase: one of `phases()`; None for the first.
        """
        from keras_segen import metrics

        void = dataset.ignore_class
        model.compile(
            self.start_phase(model, steps_per_epoch, phase),
            loss=self.make_loss(dataset),
            metrics=[
                metrics.MeanIoU(dataset.num_classes, ignore_class=void),
                metrics.PixelAccuracy(dataset.num_classes, ignore_class=void),
            ],
        )

    def make_loss(self, dataset):
        """Makes the loss; class weights are computed from the data set, the training split."""
        from keras_segen import losses

        terms = []
        for factor, name in self.loss_terms():
            options = {"ignore_class": dataset.ignore_class}
            if name in SMOOTHED_LOSSES:
                options["label_smoothing"] = self.label_smoothing
            if name in WEIGHTED_LOSSES:
                options["class_weights"] = self._weights_of_classes(dataset)
            term = getattr(losses, name.title().replace("_", ""))
            terms.append((factor, term(**options)))
        if len(terms) == 1 and terms[0][0] == 1:
            return terms[0][1]
        return losses.SumOfLosses(terms)

    def _weights_of_classes(self, dataset):
        if self.class_weights == "none":
            return None
        return imbalance.CLASS_WEIGHTS[self.class_weights](dataset)

    @property
    def monitor(self):
        return None if self.folds else ("val_mean_iou", 1)

    def draw(self, model, val_data):
        """Draws some validation images with their masks, the same ones each time."""
        from keras_segen import backend, metrics, plot

        images, truth = stacked(val_data, spread(val_data, NUM_PREVIEWS))
        figure = plot.masks(
            images,
            truth,
            metrics.class_ids(backend.infer(model, images)),
            palette=val_data.palette,
            class_names=val_data.class_names,
            ignore_class=val_data.ignore_class,
        )
        return {"epoch": figure}

    def outcome(self, history):
        return f"Best validation mean IoU {max(history['val_mean_iou']):.4f}"

    def evaluate(self, model, dataset, *, batch_size=None):
        """As `keras_segen.segmentation.evaluate`; `batch_size` None is that of the training."""
        from keras_segen.segmentation.evaluate import evaluate

        return evaluate(model, dataset, batch_size or self.batch_size, self._rim_above)

    @property
    def _rim_above(self):
        """The probability above which a pixel at the rim of an object belongs to it.

        Border weights make borders too wide. Where background weighed `1 + border_weight` times as
        much as an object, this is the probability at which both would be as likely without.
        """
        return 1 / (2 + self.border_weight) if self.border_weight else None

    def predict(
        self,
        model,
        about,
        paths,
        out,
        *,
        output="classes",
        full_size=False,
        tile=None,
        overlap=None,
        flips="none",
        scales=(1.0,),
        fold=False,
    ):
        """Writes masks for photos, see `keras_segen.segmentation.label_photos`.

        And planes of objects, if the data set of the training tells objects apart.

        Each photo is resized to the size of the training images, and the probabilities are resized
        back to the photo's own size before the class is chosen.

        Args:
            output: `"classes"`, `"probabilities"` or `"entropy"`.
            full_size: bool, whether photos are predicted at their own size, in tiles: for photos
                whose objects are as large, in pixels, as in the training images.
            tile: int or `(height, width)`, with `full_size`: size of the tiles; None means 512.
                The size of the training may be too small: near its edges a tile lacks context,
                which shows as seams if tiles overlap little.
            overlap: int, with `full_size`: pixels that tiles share; None means a quarter of the
                tile.
            flips, scales, fold: as in `keras_segen.segmentation.Predictor`.

        Raises:
            ValueError: an option is out of range.
        """
        from keras_segen import segmentation
        from keras_segen.segmentation.predict import DEFAULT_TILE

        if not full_size and (tile is not None or overlap is not None):
            raise ValueError(
                "tile and overlap cut photos at their own size, but these are resized to the size "
                "of the training: add full_size (--full-size), or leave both out."
            )
        if full_size and tile is None:
            tile = DEFAULT_TILE
        predictor = segmentation.Predictor(
            model, tile, overlap, flips=flips, scales=scales, fold=fold
        )
        size = None if full_size else tuple(about["image_shape"][:2])
        palette, label_ids = np.array(about["palette"], "uint8"), np.array(about["label_ids"])
        objects = about.get("object_classes", ())  # a run of an earlier version has none
        return segmentation.label_photos(
            predictor, paths, out, palette, label_ids, output, size, objects, self._rim_above
        )

    def predict_one(self, model, about, image):
        """The class of each pixel, `(height, width)`, uint8; at the training's size inside."""
        from keras_segen import segmentation

        size = tuple(about["image_shape"][:2])
        return segmentation.Predictor(model)(self.read_one(about, image), size=size)

    def outputs(self, model, dataset):
        """Logits of some validation images."""
        from keras_segen import backend

        images, _ = stacked(dataset, range(min(NUM_PROBES, len(dataset))))
        return backend.infer(model, images)

    def apply(self, model, dataset):
        """Predicts every image: `ids`, class ids `(items, height, width)`, uint8."""
        from keras_segen import backend, metrics

        ids, seconds = [], []
        for images, _ in Batches(dataset, self.batch_size).read(epoch=0):
            start = time.perf_counter()
            logits = backend.infer(model, images)
            seconds.append(time.perf_counter() - start)
            ids.append(metrics.class_ids(logits).astype("uint8"))
        return {"ids": np.concatenate(ids)}, seconds

    def compared_figures(self, model, dataset, history):
        from keras_segen.segmentation.evaluate import confusion_matrix, figures

        matrix = confusion_matrix(model, dataset, self.batch_size)
        found = figures(matrix, dataset.class_names)
        return {**found, "class_iou": list(found["class_iou"].values())}

    def hand_over(self, own, served):
        """Compares the share of pixels that change their class with a tolerance."""
        equal = float((own["ids"] == served["ids"]).mean())
        apart, largest = difference_of_outputs(own, served)
        return {
            "largest_difference": apart,
            "largest_output": largest,
            "equal_pixels": equal,
            "measured": 1.0 - equal,
            "tolerance": 1.0 - EQUAL_PIXELS,
            "unit": "share of pixels that change",
            "note": f"logits differ by at most {show(apart, 2)} (the largest is "
            f"{show(largest, 2)})",
        }

    def draw_compared(self, dataset, arrays):
        from keras_segen import plot

        chosen = spread(dataset, NUM_PICTURES)
        images, truth = stacked(dataset, chosen)
        return plot.comparison(
            images,
            truth,
            {name: saved["ids"][chosen] for name, saved in arrays.items()},
            palette=dataset.palette,
            class_names=dataset.class_names,
            ignore_class=dataset.ignore_class,
        )

    def disagreement(self, first, second):
        pixels, total = int((first["ids"] != second["ids"]).sum()), first["ids"].size
        return {"pixels": pixels, "of": total, "share": pixels / total}

    @classmethod
    def describe_disagreement(cls, disagreement):
        pixels, total = show(disagreement["pixels"]), show(disagreement["of"])
        if not disagreement["pixels"]:
            return f"The backends give each of the {total} pixels the same class."
        return (
            f"The backends give {pixels} of {total} pixels ({percent(disagreement['share'])}) "
            "another class."
        )

    def check_layerwise(self):
        if self.dropout:
            raise ValueError(
                f"dropout is {self.dropout}, and each backend draws other values to drop: "
                "compare layer by layer with dropout=0."
            )

    def check_network(self, model, dataset, name):
        from keras_segen.segmentation import check_network

        self.check_images(dataset)
        check_network(model, dataset, self.num_outputs(dataset), name)
