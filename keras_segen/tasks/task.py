"""What every training has in common, whether its model makes masks or pictures."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import ClassVar

from keras_segen import data
from keras_segen.data.loader import Batches

SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16", "float64")
CACHES = ("none", "ram", "disk")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, as plain values; the base of `keras_segen.tasks`'s classes.

    Each class is for some models, `MODELS`, and says how they are built, compiled, watched and
    drawn. `makes` is what these models make: `"masks"` or `"pictures"`.

    Args:
        model: str, one of `MODELS`.
        data: str, a data set as `keras_segen.data.load` takes it: `"shapes"`, `"folder:PATH"`.
        filters: tuple of int, channels as the model's `filters` argument takes them; None is made
            for a laptop.
        image_size: `(height, width)` that images are brought to; None for the data set's own.
        channels: int, 1 for grey images or 3 for RGB; None, if the class allows it, for the data
            set's own.
        batch_size: int.
        epochs: int.
        learning_rate: float, at the start.
        schedule: str, one of `SCHEDULES`; the cosine ends at 0 after the last epoch.
        early_stopping: int, the training ends after so many epochs in which what is watched on
            the validation split did not get better (`monitor`); 0 for never.
        augment: str, `"default"`, `"none"`, or what the class allows.
        precision: str, one of `PRECISIONS`; `"float64"` is for a comparison layer by layer, and
            no training takes it.
        seed: int, for all that is random.
        workers: int, processes that prepare batches; 0 for a thread.
        cache: str, one of `CACHES`: where decoded images are kept.

    Raises:
        ValueError: a value is not among those allowed.
    """

    MODELS: ClassVar[tuple] = ()
    makes: ClassVar[str] = ""
    own_sizes: ClassVar[dict] = {}  # sizes of data sets that can be drawn at any

    model: str
    data: str = "shapes"
    filters: tuple | None = None
    image_size: tuple | None = None
    channels: int | None = None
    batch_size: int
    epochs: int = 5
    learning_rate: float
    schedule: str = "constant"
    early_stopping: int = 0
    augment: str = "default"
    precision: str = "float32"
    seed: int = 0
    workers: int = 0
    cache: str = "none"

    def __post_init__(self):
        self.check_choices(schedule=SCHEDULES, precision=PRECISIONS, cache=CACHES)
        for field in ("batch_size", "epochs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, expected 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0.")
        if self.early_stopping < 0:
            raise ValueError(
                f"early_stopping is {self.early_stopping}, expected a number of epochs, or 0."
            )
        name, colon, path = self.data.partition(":")
        if path:  # so that a run resumes from anywhere
            path = Path(path).expanduser().resolve()
            object.__setattr__(self, "data", f"{name}{colon}{path}")

    def check_choices(self, **choices):
        """Raises a ValueError if a field has none of the values that are given for it."""
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}, expected one of "
                    + ", ".join(map(repr, allowed))
                    + "."
                )

    @classmethod
    def default(cls, field, model):
        """What a field is for a model if nothing is said."""
        return cls.__dataclass_fields__[field].default

    def phases(self):
        """Returns the phases of the training, one after the other: a list of `Phase`."""
        return [Phase(0, self.epochs, False, self.learning_rate)]

    def to_dict(self):
        """Returns the fields as plain values for JSON."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, values):
        """Makes a task from `to_dict`'s values; an unknown field is an error."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ValueError(
                f"Unknown task field {unknown[0]!r}; known are: {', '.join(sorted(names))}."
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @classmethod
    def from_json(cls, path):
        """Reads a task from the `task` entry of a `run.json`."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file)["experiment"])

    # --- data

    def load_data(self, split):
        """Loads a split of the data set: a `keras_segen.data.Dataset` or `Pictures`."""
        return data.load(self.data, split, **self.data_options())

    def data_options(self):
        """How images are loaded: dict of arguments of `keras_segen.data.load`."""
        return {
            "size": self.image_size or self.own_sizes.get(self.data),
            "channels": self.channels,
            "cache": None if self.cache == "none" else self.cache,
        }

    def training_batches(self, dataset, first_epoch=0, kind=Batches):
        """Returns the shuffled, augmented batches of the training split, of class `kind`."""
        return kind(
            dataset,
            self.batch_size,
            seed=self.seed,
            workers=self.workers,
            first_epoch=first_epoch,
            **self.batch_options(dataset),
        )

    def batch_options(self, dataset):
        """How the training's batches are made: dict of arguments of `Batches`."""
        raise NotImplementedError

    def describe_data(self, train_data, val_data):
        """What a run folder says of its data set, and what a resumed run must find again."""
        return {
            "name": train_data.name,
            "train": len(train_data),
            "val": len(val_data),
            "class_names": list(train_data.class_names),
            "image_shape": list(train_data.image_shape),
        }

    # --- the model

    def build_model(self, dataset, tell=lambda line: None):
        """Builds the model for a data set and fills it from the seed.

        Args:
            dataset: what `load_data` returned, for the shape of its images and its classes.
            tell: called with a line that says where weights are from, if not from the seed.

        Returns:
            A `keras.Model`, not compiled.

        Raises:
            ValueError: what the data set or the model finds wrong.
        """
        raise NotImplementedError

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        """Compiles the model as this task says.

        Args:
            model: what `build_model` returned.
            dataset: the training split.
            steps_per_epoch: int, so that the cosine knows its end.
            phase: one of `phases()`; None for the first.
        """
        raise NotImplementedError

    def count_parameters(self, model):
        """Returns the number of the model's weights, each counted once: int."""
        return model.count_params()

    def check_images(self, dataset):
        """Raises a ValueError if no training takes these images, or the precision."""
        if self.precision == "float64":
            raise ValueError(
                "precision is 'float64', which is for `compare --parity`: there it tells rounding "
                "from faults. A training gains nothing from it and takes several times as long: "
                "use precision='float32'."
            )
        dataset.common_shape()

    @contextlib.contextmanager
    def dtype_policy(self):
        """Lets layers that are built in this context have the experiment's precision."""
        import keras

        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.precision)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)

    def rate(self, start, steps):
        """The learning rate over `steps` steps, as an optimizer takes it."""
        import keras

        if self.schedule == "cosine":
            return keras.optimizers.schedules.CosineDecay(start, steps)
        return start

    # --- what is watched, drawn and said

    @property
    def losses(self):
        """Names of the losses that `fit` reports, what is compared step by step: tuple of str."""
        return ("loss",)

    @property
    def monitor(self):
        """What decides which epoch's model is kept: `(column of the history, 1 or -1)`.

        With 1 the largest is best, with -1 the smallest. None keeps the last epoch's model.
        """
        raise NotImplementedError

    @property
    def kept(self):
        """Which epoch's model is kept, in words."""
        if self.monitor is None:
            return "the last epoch's model"
        name, sign = self.monitor
        return f"the model of the epoch with the {'largest' if sign > 0 else 'smallest'} {name}"

    def measure(self, model, val_data):
        """Measures after an epoch what `fit` does not: dict of column -> float."""
        return {}

    def draw(self, model, val_data):
        """Draws what the model does after an epoch.

        Returns:
            Dict from a name, `"epoch"` for the main one, to a figure or an image, uint8
            `(height, width, 3)`.
        """
        raise NotImplementedError

    def finish(self, folder):
        """Writes what belongs at the end of a run, if it is not there yet."""

    def outcome(self, history):
        """What a training came to, in words."""
        raise NotImplementedError


def is_file(model):
    """Whether a model is named by its file, not by what builds it."""
    return Path(model).suffix == ".keras"
