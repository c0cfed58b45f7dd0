"""What to train: model, data, recipe and seed, as plain values that go to JSON and back."""

import dataclasses
import functools
import inspect
import json
import math
from pathlib import Path

import numpy as np

from keras_segen import data
from keras_segen.data.loader import Batches

LOSSES = ("cross_entropy", "dice", "cross_entropy+dice")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine")
CLASS_WEIGHTS = ("none", "median_frequency")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training, completely described.

    Args:
        model: str, a name out of `keras_segen.segmentation.MODELS`.
        data: str, a data set as `keras_segen.data.load` takes it: `"shapes"`, `"folder:PATH"`.
        filters: tuple of int, channels per level of the network. The default is made for a
            laptop; the paper's U-Net has (64, 128, 256, 512, 1024).
        image_size: `(height, width)` that images are brought to; None for the data set's own.
        channels: int, 1 for grey images or 3 for RGB.
        batch_size: int.
        epochs: int.
        optimizer: str, one of `OPTIMIZERS`.
        learning_rate: float, at the start.
        schedule: str, one of `SCHEDULES`; the cosine ends at 0 after the last epoch.
        weight_decay: float; only for AdamW.
        loss: str, one of `LOSSES`.
        class_weights: str, one of `CLASS_WEIGHTS`; they weigh the cross-entropy.
        augment: str, as `keras_segen.data.Augment.parse` takes it: `"default"`, `"none"`, or
            steps such as `"flip=0.5 brightness=0.5,-0.2,0.2"`.
        precision: str, one of `PRECISIONS`.
        seed: int, for initial weights, order and augmentation.
        workers: int, processes that prepare batches; 0 for a thread.
        cache: str, `"none"`, `"ram"` or `"disk"`: where decoded images are kept.
        start_from: path of a run folder whose best model gives the first weights, in place of
            the seed; None for the seed.

    Raises:
        ValueError: a value is not among those allowed.
    """

    model: str = "unet"
    data: str = "shapes"
    filters: tuple = (16, 32, 64, 128)
    image_size: tuple | None = None
    channels: int = 3
    batch_size: int = 16
    epochs: int = 5
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    loss: str = "cross_entropy"
    class_weights: str = "none"
    augment: str = "default"
    precision: str = "float32"
    seed: int = 0
    workers: int = 0
    cache: str = "none"
    start_from: str | None = None

    def __post_init__(self):
        choices = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "loss": LOSSES,
            "class_weights": CLASS_WEIGHTS,
            "precision": PRECISIONS,
            "channels": (1, 3),
            "cache": ("none", "ram", "disk"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}, expected one of "
                    + ", ".join(map(repr, allowed))
                    + "."
                )
        for field in ("batch_size", "epochs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, expected 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, expected 0 or more.")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                f"weight_decay is {self.weight_decay}, but {self.optimizer} has none: "
                "use optimizer='adamw'."
            )
        if self.class_weights != "none" and self.loss == "dice":
            raise ValueError("class_weights weigh the cross-entropy, and the loss is 'dice'.")
        data.Augment.parse(self.augment)
        name, colon, path = self.data.partition(":")
        if path:  # so that a run resumes from anywhere
            path = Path(path).expanduser().resolve()
            object.__setattr__(self, "data", f"{name}{colon}{path}")
        if self.start_from is not None:
            object.__setattr__(self, "start_from", str(Path(self.start_from).resolve()))

    def to_dict(self):
        """Returns the fields as plain values for JSON."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, values):
        """Makes an experiment from `to_dict`'s values; an unknown field is an error."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ValueError(
                f"Unknown experiment field {unknown[0]!r}; known are: {', '.join(sorted(names))}."
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @classmethod
    def from_json(cls, path):
        """Reads an experiment from the `experiment` entry of a `run.json`."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file)["experiment"])

    def load_data(self, split):
        """Loads a split of the data set: a `keras_segen.data.Dataset`."""
        cache = None if self.cache == "none" else self.cache
        size = self.image_size or (64 if self.data == "shapes" else None)
        return data.load(self.data, split, size=size, channels=self.channels, cache=cache)

    def training_batches(self, dataset, first_epoch=0, kind=Batches):
        """Returns the shuffled, augmented batches of the training split, of class `kind`."""
        return kind(
            dataset,
            self.batch_size,
            seed=self.seed,
            augment=data.Augment.parse(self.augment),
            workers=self.workers,
            first_epoch=first_epoch,
        )

    def build_model(self, dataset):
        """Builds the network for a data set and fills it from the seed, or from another run.

        Returns:
            A `keras.Model` from images `(batch, height, width, channels)` to logits
            `(batch, height, width, num_classes)`, not compiled.
        """
        import keras

        from keras_segen import segmentation
        from keras_segen.determinism import initialize

        if self.model not in segmentation.MODELS:
            raise ValueError(
                f"There is no model {self.model!r}; there are: {', '.join(segmentation.MODELS)}."
            )
        if dataset.image_shape is None:
            raise ValueError(
                f"The images of {dataset.name} have no common size: give an image size."
            )
        build = segmentation.MODELS[self.model]
        if "activation" in inspect.signature(build).parameters:
            build = functools.partial(build, activation=None)  # the losses take logits
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.precision)
        try:
            model = build(dataset.image_shape, dataset.num_classes, filters=self.filters)
        finally:
            keras.config.set_dtype_policy(before)
        initialize(model, self.seed)
        if self.start_from is not None:
            self._take_weights(model)
        return model

    def _take_weights(self, model):
        """Fills a model with the best weights of the run `start_from`."""
        import keras

        path = Path(self.start_from) / "model.keras"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: start_from names no finished run.")
        trained = keras.models.load_model(path, compile=False, safe_mode=True)
        found = [tuple(weight.shape) for weight in trained.weights]
        expected = [tuple(weight.shape) for weight in model.weights]
        if found != expected:
            raise ValueError(
                f"{path} holds another network ({trained.count_params():,} parameters) than this "
                f"experiment builds ({model.count_params():,}): use its model, filters, channels "
                "and number of classes."
            )
        model.set_weights(trained.get_weights())

    def compile(self, model, dataset, steps_per_epoch):
        """Compiles the model with this experiment's optimizer, loss and metrics.

        Args:
            model: what `build_model` returned.
            dataset: the training split; class weights are computed from it.
            steps_per_epoch: int, so that the cosine knows its end.
        """
        import keras

        from keras_segen import losses, metrics

        rate = self.learning_rate
        if self.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, self.epochs * steps_per_epoch)
        if self.optimizer == "adam":
            optimizer = keras.optimizers.Adam(rate)
        elif self.optimizer == "adamw":
            optimizer = keras.optimizers.AdamW(rate, weight_decay=self.weight_decay)
        else:
            optimizer = keras.optimizers.SGD(rate, momentum=0.9)

        weights = None
        if self.class_weights == "median_frequency":
            weights = [float(w) for w in np.round(data.median_frequency_weights(dataset), 6)]
        void = dataset.ignore_class
        parts = {
            "cross_entropy": lambda: losses.CrossEntropy(ignore_class=void, class_weights=weights),
            "dice": lambda: losses.Dice(ignore_class=void),
        }
        first, *more = [parts[name]() for name in self.loss.split("+")]
        loss = sum(more, start=first)
        model.compile(
            optimizer,
            loss=loss,
            metrics=[
                metrics.MeanIoU(dataset.num_classes, ignore_class=void),
                metrics.PixelAccuracy(dataset.num_classes, ignore_class=void),
            ],
        )
