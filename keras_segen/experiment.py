"""What to train: model, data, recipe and seed, as plain values that go to JSON and back."""

import dataclasses
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
ENCODERS = ("none", "vgg16", "resnet50", "mobilenet_v2", "efficientnet_v2_b0", "efficientnet_lite0")
ENCODER_WEIGHTS = ("imagenet", "none")
STRIDES = (8, 16, 32)

# Channels that a laptop trains in reasonable time, by model, without and with an encoder.
FILTERS = {
    "unet": ((16, 32, 64, 128), (16, 24, 40, 80, 112)),
    "plain_unet": ((16, 32, 64, 128), None),
    "fcn": ((16, 32, 64, 128, 128, 512), (256,)),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """Epochs that are trained with one optimizer.

    Args:
        first: int, the first epoch, counted from 0.
        end: int, the epoch after the last one.
        frozen: bool, whether the encoder's weights stay as they are.
        learning_rate: float, at the start.
    """

    first: int
    end: int
    frozen: bool
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training, completely described.

    Args:
        model: str, a name out of `keras_segen.segmentation.MODELS`.
        data: str, a data set as `keras_segen.data.load` takes it: `"shapes"`, `"folder:PATH"`.
        filters: tuple of int, channels as the model's `filters` argument takes them. None is made
            for a laptop: `FILTERS`; the paper's U-Net has (64, 128, 256, 512, 1024).
        encoder: str, one of `ENCODERS`: a pretrained encoder for `unet` or `fcn`.
        encoder_weights: str, one of `ENCODER_WEIGHTS`: what the encoder starts from.
        stride: int, one of `STRIDES`: the finest features that `fcn` labels.
        dropout: float, the share of values that `unet` or `fcn` drops in training.
        image_size: `(height, width)` that images are brought to; None for the data set's own.
        channels: int, 1 for grey images or 3 for RGB.
        batch_size: int.
        epochs: int.
        optimizer: str, one of `OPTIMIZERS`.
        learning_rate: float, at the start.
        freeze_epochs: int, epochs at the start in which the encoder is frozen; then all of the
            network is trained, by a new optimizer.
        fine_tune_rate: float, the learning rate after those; None for a tenth of `learning_rate`.
        schedule: str, one of `SCHEDULES`; the cosine ends at 0 after the last epoch, and also
            after the last one with a frozen encoder.
        weight_decay: float; only for AdamW.
        loss: str, one of `LOSSES`.
        class_weights: str, one of `CLASS_WEIGHTS`; they weigh the cross-entropy.
        augment: str, as `keras_segen.data.Augment.parse` takes it: `"default"`, `"none"`, or
            steps such as `"flip=0.5 brightness=0.5,-0.2,0.2"`.
        precision: str, one of `PRECISIONS`.
        seed: int, for initial weights, order and augmentation.
        workers: int, processes that prepare batches; 0 for a thread.
        cache: str, `"none"`, `"ram"` or `"disk"`: where decoded images are kept.
        start_from: path of a run folder whose best model gives the first weights of all layers
            that it has in common with this network (`segmentation.take_weights`), in place of
            the seed; None for the seed.

    Raises:
        ValueError: a value is not among those allowed.
    """

    model: str = "unet"
    data: str = "shapes"
    filters: tuple | None = None
    encoder: str = "none"
    encoder_weights: str = "imagenet"
    stride: int = 8
    dropout: float = 0.0
    image_size: tuple | None = None
    channels: int = 3
    batch_size: int = 16
    epochs: int = 5
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    freeze_epochs: int = 0
    fine_tune_rate: float | None = None
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
            "encoder": ENCODERS,
            "encoder_weights": ENCODER_WEIGHTS,
            "stride": STRIDES,
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected at least 0 and below 1.")
        self._check_encoder()
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

    def _check_encoder(self):
        """Checks what belongs to a pretrained encoder."""
        if self.encoder != "none" and self.channels != 3:
            raise ValueError(
                f"Encoder {self.encoder!r} takes RGB: use channels=3, also for grey images."
            )
        if not 0 <= self.freeze_epochs <= self.epochs:
            raise ValueError(
                f"freeze_epochs is {self.freeze_epochs}, expected 0 to {self.epochs}, the epochs."
            )
        if self.freeze_epochs and self.encoder == "none":
            raise ValueError(
                f"freeze_epochs is {self.freeze_epochs}, but there is no encoder to freeze."
            )
        if self.freeze_epochs and self.encoder_weights == "none" and self.start_from is None:
            raise ValueError(
                f"freeze_epochs is {self.freeze_epochs}, but the encoder's weights are random: use "
                "encoder_weights='imagenet' or start_from."
            )
        if self.fine_tune_rate is not None:
            if not (math.isfinite(self.fine_tune_rate) and self.fine_tune_rate > 0):
                raise ValueError(f"fine_tune_rate is {self.fine_tune_rate}, expected more than 0.")
            if not self.freeze_epochs:
                raise ValueError(
                    f"fine_tune_rate is {self.fine_tune_rate}, the learning rate after the epochs "
                    "with a frozen encoder, but freeze_epochs is 0."
                )

    def phases(self):
        """Returns the phases of the training, one after the other: a list of `Phase`."""
        rate = self.fine_tune_rate or self.learning_rate / 10
        phases = [
            Phase(0, self.freeze_epochs, True, self.learning_rate),
            Phase(
                self.freeze_epochs,
                self.epochs,
                False,
                rate if self.freeze_epochs else self.learning_rate,
            ),
        ]
        return [phase for phase in phases if phase.first < phase.end]

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

    def build_model(self, dataset, tell=lambda line: None):
        """Builds the network for a data set and fills it from the seed, or from another run.

        A pretrained encoder keeps its weights.

        Args:
            dataset: a `keras_segen.data.Dataset`, for the shape of its images and its classes.
            tell: called with a line that says which weights `start_from` gave.

        Returns:
            A `keras.Model` from images `(batch, height, width, channels)` to logits
            `(batch, height, width, num_classes)`, not compiled.

        Raises:
            ValueError: there is no such model, it does not have one of the options, the images
                have no common size, or `start_from` holds a network of another kind.
            OSError: the weights of an encoder are not here and could not be downloaded.
        """
        import keras

        from keras_segen import segmentation
        from keras_segen.determinism import initialize

        if self.model not in segmentation.MODELS:
            raise ValueError(
                f"There is no model {self.model!r}; there are: {', '.join(segmentation.MODELS)}."
            )
        if not isinstance(dataset, data.Dataset):
            raise ValueError(
                f"{dataset.name} has pictures without masks, and {self.model} learns masks: use a "
                "data set with masks."
            )
        if dataset.image_shape is None:
            raise ValueError(
                f"The images of {dataset.name} have no common size: give an image size."
            )
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
        pretrained = self.encoder_weights != "none"
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.precision)
        try:
            encoder = None
            if self.encoder != "none":
                weights = self.encoder_weights if pretrained else None
                encoder = segmentation.ENCODERS[self.encoder](weights)
            if "encoder" in options:
                options["encoder"] = encoder
            filters = self.filters or FILTERS[self.model][encoder is not None]
            model = build(dataset.image_shape, dataset.num_classes, filters=filters, **options)
        finally:
            keras.config.set_dtype_policy(before)
        initialize(model, self.seed, keep=encoder if pretrained else None)
        if self.start_from is not None:
            tell(self._take_weights(model))
        return model

    def _take_weights(self, model):
        """Fills a model with the best weights of the run `start_from`; says which, in a line."""
        import keras

        from keras_segen import segmentation

        path = Path(self.start_from) / "model.keras"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: start_from names no finished run.")
        trained = keras.models.load_model(path, compile=False, safe_mode=True)
        try:
            taken, new, unused = segmentation.take_weights(model, trained)
        except ValueError as error:
            raise ValueError(f"{path} holds another network. {error}") from None
        line = f"{len(taken)} layers start from {path}"
        if new:
            line += f"; new: {', '.join(new)}"
        if unused:
            line += f"; left there: {', '.join(unused)}"
        return line

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        """Compiles the model with this experiment's optimizer, loss and metrics.

        Its encoder is frozen or not, as the phase says; frozen, its batch normalization uses the
        pretrained statistics and leaves them.

        Args:
            model: what `build_model` returned.
            dataset: the training split; class weights are computed from it.
            steps_per_epoch: int, so that the cosine knows its end.
            phase: one of `phases()`; None for the first.
        """
        import keras

        from keras_segen import losses, metrics

        phase = phase or self.phases()[0]
        if self.encoder != "none":
            model.get_layer(self.encoder).trainable = not phase.frozen
        rate = phase.learning_rate
        if self.schedule == "cosine":
            steps = (phase.end - phase.first) * steps_per_epoch
            rate = keras.optimizers.schedules.CosineDecay(rate, steps)
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
