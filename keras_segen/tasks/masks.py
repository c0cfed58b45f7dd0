"""Tasks that learn from masks: what labeling pixels and finding objects share.

The fields and phases of a pretrained encoder, the optimizer, and what a comparison shows.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from keras_segen import data
from keras_segen.report.numbers import display_name, show
from keras_segen.report.tables import Cell, Table
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.task import Phase, Task, save_compared


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskTask(Task):
    """What the trainings of models for pixels and for objects share."""

    used_by: ClassVar[str] = "predict"
    inputs_are: ClassVar[str] = "images"
    compared_note: ClassVar[str] = ""  # what the picture of a comparison shows
    class_table: ClassVar[tuple] = ()  # figure by class in `compared_figures`, title, note

    channels: int = 3
    augment: str = field(
        "default, none, or steps such as 'flip=0.5 brightness=0.5,-0.2,0.2', as "
        "`keras_segen.data.Augment.parse` takes them.",
        default="default",
        common=True,
    )
    encoder: str = field(
        "A pretrained encoder; plain_unet has none.",
        default="none",
        choices=(
            "none",
            "vgg16",
            "resnet50",
            "mobilenet_v2",
            "efficientnet_v2_b0",
            "efficientnet_lite0",
        ),
        common=True,
    )
    encoder_weights: str = field(
        "What the encoder starts from.",
        default="imagenet",
        choices=("imagenet", "none"),
        applies=lambda settings: settings["encoder"] != "none",
    )
    optimizer: str = field(
        "What makes steps of gradients.", default="adam", choices=("adam", "adamw", "sgd")
    )
    weight_decay: float = field(
        "Of adamw and sgd: each step takes learning rate times this of a weight away. Biases and "
        "the scales and offsets of normalization do not decay.",
        default=0.0,
        at_least=0,
        applies=lambda settings: settings["optimizer"] != "adam",
    )
    freeze_epochs: int = field(
        "Epochs at the start in which the encoder is frozen; then all of the network is trained, "
        "by a new optimizer.",
        default=0,
        applies=lambda settings: settings["encoder"] != "none",
    )
    fine_tune_rate: float | None = field(
        "Learning rate after those. Without it, a tenth of the other.",
        default=None,
        above=0,
        applies=lambda settings: settings["freeze_epochs"] > 0,
    )
    start_from: str | None = field(
        "A run folder whose best model gives the first weights of all layers that it has in "
        "common with this network. Without it, they are from the seed.",
        default=None,
    )

    def __post_init__(self):
        super().__post_init__()
        data.Augment.parse(self.augment)
        if self.encoder != "none" and self.channels != 3:
            raise ValueError(
                f"Encoder {self.encoder!r} takes RGB: use channels=3, also for gray images."
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
        if self.fine_tune_rate is not None and not self.freeze_epochs:
            raise ValueError(
                f"fine_tune_rate is {self.fine_tune_rate}, the learning rate after the epochs "
                "with a frozen encoder, but freeze_epochs is 0."
            )
        if self.start_from is not None:
            object.__setattr__(self, "start_from", str(Path(self.start_from).resolve()))

    def describe_data(self, train_data, val_data):
        return {
            **super().describe_data(train_data, val_data),
            "palette": np.asarray(train_data.palette).tolist(),
            "label_ids": [int(i) for i in train_data.label_ids],
        }

    # --- the model

    def make_encoder(self):
        """Builds the encoder that the task names, or returns None."""
        from keras_segen import segmentation

        if self.encoder == "none":
            return None
        weights = None if self.encoder_weights == "none" else self.encoder_weights
        return segmentation.ENCODERS[self.encoder](weights)

    def encoder_of(self, model):
        """The layer of a model that is its encoder."""
        return model.get_layer(self.encoder)

    def fill(self, model, tell):
        """Fills a model from the seed, or from another run; a pretrained encoder is kept."""
        from keras_segen import segmentation
        from keras_segen.determinism import initialize

        pretrained = self.encoder != "none" and self.encoder_weights != "none"
        initialize(model, self.seed, keep=self.encoder_of(model) if pretrained else None)
        if self.start_from is not None:
            tell(segmentation.take_weights_of_run(model, self.start_from))
        return model

    def phases(self):
        """Returns the phases of the training, one after the other: a list of `Phase`."""
        if not self.freeze_epochs:
            return super().phases()
        rate = self.fine_tune_rate or self.learning_rate / 10
        phases = [
            Phase(0, self.freeze_epochs, True, self.learning_rate),
            Phase(self.freeze_epochs, self.epochs, False, rate),
        ]
        return [phase for phase in phases if phase.first < phase.end]

    def start_phase(self, model, steps_per_epoch, phase, **options):
        """Freezes the encoder, or not, and makes the optimizer of a phase.

        A frozen encoder's batch normalization uses its pretrained statistics and does not update
        them.

        Args:
            model: what `build_model` returned.
            steps_per_epoch: int, for the length of the cosine schedule.
            phase: one of `phases()`; None for the first.
            **options: further arguments of the optimizer's class.
        """
        import keras

        phase = phase or self.phases()[0]
        if self.encoder != "none":
            self.encoder_of(model).trainable = not phase.frozen
        rate = self.rate(phase.learning_rate, (phase.end - phase.first) * steps_per_epoch)
        if self.optimizer == "adam":
            optimizer = keras.optimizers.Adam(rate, **options)
        elif self.optimizer == "adamw":
            optimizer = keras.optimizers.AdamW(rate, self.weight_decay, **options)
        else:
            decay = self.weight_decay or None
            optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay, **options)
        # Decay is for kernels, which have 2 axes or more: not for scales and shifts of channels.
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if v.ndim < 2])
        return optimizer

    # --- used

    def read_one(self, about, image):
        """The image for `predict_one`: an array as it is, or that of a file."""
        from keras_segen.data.images import read_image

        if isinstance(image, str | Path):
            return read_image(Path(image), about["image_shape"][2])
        return np.asarray(image)

    # --- what a comparison looks at

    def conclude(self, dataset, arrays, folder):
        """Draws the predictions of each backend, and counts where they disagree."""
        pictures = []
        if arrays:
            figure = self.draw_compared(
                dataset, {display_name(backend): saved for backend, saved in arrays.items()}
            )
            title = "The same validation images on both backends"
            pictures.append(save_compared(figure, folder, title, self.compared_note))
        return {
            "class_names": list(dataset.class_names),
            "palette": np.asarray(dataset.palette).tolist(),
            "disagreement": self.disagreement(*arrays.values()) if len(arrays) == 2 else None,
            "pictures": pictures,
        }

    def draw_compared(self, dataset, arrays):
        """Draws what `apply` returned, a dict by the framework's name: a figure."""
        raise NotImplementedError

    def disagreement(self, first, second):
        """Measures how far two results of `apply` differ: a dict, for `describe_disagreement`."""
        raise NotImplementedError

    @classmethod
    def compared_tables(cls, report, columns):
        """A figure of every class."""
        key, title, note = cls.class_table
        found = [
            (backend.get("metrics") or {}).get(key) or [] for backend in report["backends"].values()
        ]
        if not any(found):
            return []
        palette = report.get("palette") or []
        rows = []
        for number, name in enumerate(report.get("class_names") or []):
            color = f"rgb{tuple(palette[number])}" if number < len(palette) else None
            values = [each[number] if number < len(each) else None for each in found]
            rows.append([Cell(name, swatch=color), *values])
        columns = [dataclasses.replace(c, show=lambda value: show(value, 4)) for c in columns]
        return [Table(title, ["Class", *columns], rows, note)]
