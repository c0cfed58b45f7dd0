"""The interface of a task: everything that commands, runs and comparisons need to know of it.

A task is plain values that can be saved as JSON. Each kind of task has its own file beside this
one, and `registry.py` lists them; `docs/architecture.md` shows how to add one. Keras is imported
inside the methods that need it.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from keras_segen import data
from keras_segen.data.loader import Batches
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.layerwise import Layerwise


@dataclasses.dataclass(frozen=True)
class Phase:
    """Epochs trained with one optimizer.

    Args:
        first: int, the first epoch, counted from 0.
        end: int, the epoch after the last one.
        frozen: bool, whether the encoder's weights are frozen.
        learning_rate: float, the initial one.
    """

    first: int
    end: int
    frozen: bool
    learning_rate: float


class Figure(NamedTuple):
    """A figure of each backend in a comparison, with its name on a page.

    `headline` is its name in the verdict; without one it is in the table only.
    """

    label: str
    unit: str
    digits: int
    headline: str = ""


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Layerwise):
    """A training, as plain values; the base of all kinds of tasks.

    A kind of task is a class for some models, `MODELS`. It defines how they are built, compiled,
    monitored, drawn, evaluated and used, and what a comparison of backends looks at.
    """

    MODELS: ClassVar[tuple] = ()
    own_sizes: ClassVar[dict] = {}  # sizes of data sets that can be drawn at any
    does: ClassVar[str] = ""  # what its models do, in words: "labels the pixels of photos"
    used_by: ClassVar[str] = ""  # the command that puts them to use: "predict"
    predicts: ClassVar[str] = "masks"  # what `predict` writes for each photo, in the plural

    # What a comparison of backends calls things, and how far their losses may differ at least.
    result: ClassVar[str] = "both came to the same result"
    section: ClassVar[str] = "Outputs"
    outputs_are: ClassVar[str] = "outputs"
    inputs_are: ClassVar[str] = "inputs"
    least_loss_tolerance: ClassVar[float] = 1e-3
    work: ClassVar[tuple] = ("predict", "Prediction per batch")  # what `apply` takes the time of
    figures: ClassVar[dict] = {}  # name, as in `compared_figures` -> Figure
    quantities: ClassVar[dict] = {}  # column of the history -> what a chart calls it
    handed_over: ClassVar[tuple] = ()  # columns of `report.tables.Column`, with the key of each

    bench_sizes: ClassVar[tuple] = ((64, 64), (128, 128))  # of images, for `bench costs`
    fold_figures: ClassVar[dict] = {}  # what folds are compared by -> its name; none: no folds
    fold_details: ClassVar[dict] = {}  # dicts of such figures -> the title of their table

    model: str = field("The model: a name that `keras-segen models` lists.", common=True)
    data: str = field(
        "Data set: a name that `keras-segen datasets` lists, such as folder:PATH.",
        default="shapes",
        common=True,
    )
    filters: tuple[int, ...] | None = field(
        "Channels per level, such as 16,32,64. Without it, what suits a laptop.",
        default=None,
        at_least=1,
        common=True,
    )
    image_size: tuple[int, int] | None = field(
        "HEIGHTxWIDTH that images are resized to, such as 176x240. Default: the data set's own.",
        default=None,
        at_least=1,
        between="x",
        common=True,
    )
    channels: int | None = field(
        "1 for gray images, 3 for RGB. Without it, the data set's own where the model allows it.",
        default=None,
        choices=(1, 3),
    )
    batch_size: int = field("Images per step.", at_least=1, common=True)
    epochs: int = field("Passes over the training split.", default=5, at_least=1, common=True)
    learning_rate: float = field("Learning rate at the start.", above=0, common=True)
    schedule: str = field(
        "The learning rate schedule; the cosine ends at 0 after the last epoch.",
        default="constant",
        choices=("constant", "cosine"),
    )
    early_stopping: int = field(
        "Stop after this many epochs without a better figure on the validation split; 0: never.",
        default=0,
        at_least=0,
    )
    augment: str = field("Random changes of the training images.", default="default", common=True)
    precision: str = field(
        "Numbers to compute with; float64 is for a comparison layer by layer (compare --parity).",
        default="float32",
        choices=("float32", "mixed_float16", "mixed_bfloat16", "float64"),
    )
    seed: int = field("For all that is random.", default=0, at_least=0, common=True)
    workers: int = field("Processes that prepare batches; 0 for a thread.", default=0, at_least=0)
    cache: str = field(
        "Where decoded images are kept.", default="none", choices=("none", "ram", "disk")
    )

    def __post_init__(self):
        fields.check(self)
        name, colon, path = self.data.partition(":")
        if path:  # so that a run resumes from anywhere
            path = Path(path).expanduser().resolve()
            object.__setattr__(self, "data", f"{name}{colon}{path}")

    @classmethod
    def takes(cls, model):
        """Whether this kind of task trains a model: a name, or the path of a file."""
        return model in cls.MODELS

    @classmethod
    def describe_models(cls):
        """One line about each model: dict of name -> str."""
        raise NotImplementedError

    @classmethod
    def default(cls, field, model):
        """The default of a field for a model."""
        return cls.__dataclass_fields__[field].default

    def phases(self):
        """Returns the phases of the training, in order: a list of `Phase`."""
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
        """Arguments of `keras_segen.data.load`: a dict."""
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
        """Arguments of `Batches` for the training: a dict."""
        raise NotImplementedError

    def describe_data(self, train_data, val_data):
        """What `run.json` records of the data set; a resumed run must find the same."""
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
            tell: called with a line about weights that do not come from the seed.

        Returns:
            A `keras.Model`, not compiled.

        Raises:
            ValueError: the data set or the model does not fit.
        """
        raise NotImplementedError

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        """Compiles the model with the optimizer, loss and metrics of the task.

        Args:
            model: what `build_model` returned.
            dataset: the training split.
            steps_per_epoch: int, for the length of the cosine schedule.
            phase: one of `phases()`; None for the first.
        """
        raise NotImplementedError

    def count_parameters(self, model):
        """Returns the number of parameters, shared ones counted once: int."""
        return model.count_params()

    def check_images(self, dataset):
        """Raises a ValueError if these images, or the precision, cannot be trained."""
        if self.precision == "float64":
            raise ValueError(
                "precision is 'float64', which is for `compare --parity`: there it tells rounding "
                "from faults. A training gains nothing from it and takes several times as long: "
                "use precision='float32'."
            )
        dataset.common_shape()

    @contextlib.contextmanager
    def dtype_policy(self):
        """Context in which layers are built with the task's precision."""
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

    # --- monitored, drawn and reported

    @property
    def losses(self):
        """Names of the losses that `fit` reports, compared step by step: tuple of str."""
        return ("loss",)

    @property
    def monitor(self):
        """The criterion of the best epoch, whose model is kept: `(column of the history, sign)`.

        Sign 1 means larger is better, -1 smaller. None keeps the last epoch's model.
        """
        raise NotImplementedError

    @property
    def kept(self):
        """The kept model, in words."""
        if self.monitor is None:
            return "the last epoch's model"
        name, sign = self.monitor
        return f"the model of the epoch with the {'largest' if sign > 0 else 'smallest'} {name}"

    def measure(self, model, val_data):
        """Measures, after an epoch, what `fit` does not: dict of column -> float."""
        return {}

    def draw(self, model, val_data):
        """Draws results of the model after an epoch.

        Returns:
            Dict from a name, `"epoch"` for the main one, to a figure or an image, uint8
            `(height, width, 3)`.
        """
        raise NotImplementedError

    def finish(self, folder):
        """Writes the last files of a finished run, replacing existing ones."""

    def outcome(self, history):
        """The result of a training, in words."""
        raise NotImplementedError

    # --- evaluated and used

    def evaluate(self, model, dataset):
        """Evaluates a trained model on a split.

        Args:
            model: the model that a run keeps.
            dataset: what `load_data` returned.

        A kind of task may add keyword options: the commands pass on those that are given, and
        refuse options that it does not have.

        Returns:
            A `keras_segen.report.evaluation.Evaluation`.
        """
        raise NotImplementedError

    def predict(self, model, about, paths, out):
        """Predicts photos and writes files, as `keras_segen.runs.predict` does.

        Args:
            model: the model that a run keeps.
            about: dict, what `describe_data` returned when the run began.
            paths: list of image files, no two with one stem.
            out: the folder to write to.

        Yields:
            The path of each file written. Options as in `evaluate`.
        """
        raise self._not_made_for("predicts no photos")

    def predict_one(self, model, about, image):
        """Predicts one image.

        Args:
            model, about: as in `predict`.
            image: path of a file, or an array as `keras_segen.runs.Run.predict` takes it.

        Returns:
            The prediction, at the image's own size.
        """
        raise self._not_made_for("predicts no photos")

    def generate(self, model, about, out, seed):
        """Makes images and writes them, as `keras_segen.runs.generate` does.

        Args:
            model, about: as in `predict`.
            out: path of the PNG to write.
            seed: int.

        Returns:
            `(what, where)`: what was made, in words, and the path. Options as in `evaluate`.
        """
        raise self._not_made_for("makes no images")

    def _not_made_for(self, what):
        return ValueError(
            f"{self.model} {self.does} and {what}: use keras-segen {self.used_by}, or name the "
            "run of another model."
        )

    def network_to_predict(self, model, batch):
        """The network that runs when a trained model is used, for timing.

        Args:
            model: what `build_model` returned.
            batch: a batch of the training, NumPy arrays.

        Returns:
            `(network, inputs)`: a `keras.Model` and what it takes.
        """
        return model, batch[0]

    # --- compared between backends

    def outputs(self, model, dataset):
        """The outputs of a model for fixed inputs: float32 array, one row per input."""
        raise NotImplementedError

    def apply(self, model, dataset):
        """Runs the model over a data set.

        Returns:
            arrays: dict of NumPy arrays, which `hand_over` and `conclude` get.
            seconds: list of float, the time of each batch.
        """
        raise NotImplementedError

    def compared_figures(self, model, dataset, history):
        """Returns the final figures: dict of name -> float, those of `figures` and others."""
        raise NotImplementedError

    def hand_over(self, own, served):
        """Compares a model's results on its own backend with those on another.

        Args:
            own, served: dicts with `last_outputs`, and the arrays of `apply`.

        Returns:
            Dict of plain values: `measured`, `tolerance`, `unit` and `note` of the check, and the
            columns of `handed_over`.
        """
        raise NotImplementedError

    def conclude(self, dataset, arrays, folder):
        """Draws the results of the backends, and measures how far they differ.

        Args:
            dataset: the validation split.
            arrays: dict of backend -> its arrays, as for `hand_over`.
            folder: `pathlib.Path` to draw into.

        Returns:
            Dict, parts of the report: `disagreement` (dict or None) and `pictures`, a list of
            dicts with `title`, `file` and `note`.
        """
        raise NotImplementedError

    @classmethod
    def describe_disagreement(cls, disagreement):
        """The disagreement that `conclude` returned, as a sentence."""
        raise NotImplementedError

    @classmethod
    def compared_tables(cls, report, columns):
        """Further tables of a report.

        Args:
            report: dict, as in `report.json`.
            columns: list of `keras_segen.report.tables.Column`, one for each backend.

        Returns:
            List of `keras_segen.report.tables.Table`.
        """
        return []

    def check_layerwise(self):
        """Raises a ValueError if the model cannot be compared layer by layer."""

    def layerwise(self):
        """The task whose steps are compared layer by layer; the comparison adds float64."""
        return dataclasses.replace(self, precision="float32")

    def check_network(self, model, dataset, name):
        """Raises a ValueError if a user's network does not fit this task."""
        raise ValueError(f"{self.model} is not trained from a network of one's own.")


def spread(dataset, count):
    """Indices of some items of a data set, evenly spread: list of int."""
    return np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()


def stacked(dataset, indices):
    """Inputs and targets of some items, which are arrays: two arrays."""
    return map(np.stack, zip(*(dataset[i] for i in indices), strict=True))


def save_compared(figure, folder, title, note):
    """Writes the picture of a comparison; returns its entry for `conclude`: a dict."""
    from keras_segen import plot

    plot.save(figure, folder / "predictions.png")
    return {"title": title, "file": "predictions.png", "note": note}


def difference_of_outputs(own, served):
    """The largest difference of two `last_outputs`, and the largest value of the first: floats."""
    a, b = (each["last_outputs"].astype("float64") for each in (own, served))
    return float(np.abs(a - b).max()), float(np.abs(a).max())


def is_file(model):
    """Whether a model is the path of a file, not the name of a builder."""
    return Path(model).suffix == ".keras"
