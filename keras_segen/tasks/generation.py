"""What to train to make pictures: the tasks of GAN and VAE.

Keras is imported by what builds a model, not before: the command line knows the options without.
"""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

from keras_segen import data
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.task import Task

LEAST_JUDGED = 40  # generated images, which `generation.evaluate` needs at least


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """What a GAN's and a VAE's training have in common; None is what the model's paper has."""

    makes: ClassVar[str] = "pictures"
    own_sizes: ClassVar[dict] = {"shapes": 32}

    filters: tuple[int, ...] | None = field(
        "Channels of the networks, such as 64,128,256: as many as the networks halve the image.",
        default=None,
        at_least=1,
        common=True,
    )
    batch_size: int = 64
    augment: str = field(
        "Whether every other picture has left and right swapped, where that is as good.",
        default="default",
        choices=("default", "none"),
        common=True,
    )
    latent_dim: int | None = field("Numbers in a code.", default=None, at_least=1, common=True)
    conditional: bool = field(
        "Tell the model the class of each picture, so that one can be asked for.", default=False
    )
    judge: int = field(
        "Generated images that are compared with as many of the validation split after each "
        "epoch; the epoch with the smallest kernel distance is kept. At least 40; 0: none.",
        default=0,
        at_least=0,
    )

    def __post_init__(self):
        fields.check_value("model", self.model, fields.Meaning(choices=self.MODELS))
        for each in dataclasses.fields(self):
            if getattr(self, each.name) is None:
                object.__setattr__(self, each.name, self.default(each.name, self.model))
        super().__post_init__()
        if 0 < self.judge < LEAST_JUDGED:
            raise ValueError(
                f"judge is {self.judge}, expected {LEAST_JUDGED} images or more, or 0 for none."
            )
        if self.early_stopping and self.monitor is None:
            raise ValueError(
                f"early_stopping is {self.early_stopping}, but a loss of {self.model} does not say "
                "which epoch is better: use judge=1000, or early_stopping=0."
            )

    def load_data(self, split):
        """Loads a split of the data set: `keras_segen.data.Pictures`; masks are left out."""
        return data.as_pictures(super().load_data(split))

    def batch_options(self, dataset):
        mirrors = self.augment == "default" and dataset.mirror
        return {"augment": data.mirror if mirrors else None}

    def num_classes(self, dataset):
        """The classes that the model is told, or None."""
        if not self.conditional:
            return None
        if not dataset.num_classes:
            raise ValueError(
                f"conditional is True, but the pictures of {dataset.name} have no classes: use "
                "conditional=False, or a data set with classes, such as folders of pictures."
            )
        return dataset.num_classes

    def halvings(self, image_shape):
        """How often the networks halve an image: down to at most 7 pixels, at least once."""
        size, count = min(image_shape[:2]), 0
        while size > 7 or not count:
            size, count = size // 2, count + 1
        return count

    def build_model(self, dataset, tell=lambda line: None):
        """Builds the model for a data set and fills it from the seed.

        Args:
            dataset: a `keras_segen.data.Pictures`, for the shape of its images and its classes.
            tell: not called: all weights are from the seed.

        Returns:
            A `keras_segen.generation.GAN` or `VAE`, not compiled.

        Raises:
            ValueError: the images have no common size, or one that cannot be halved as often as
                the networks do; the precision is float64; the pictures have no classes, and the
                model is to be told them.
            ModuleNotFoundError: the model is to be judged, and the extractor's weights are not
                installed.
        """
        from keras_segen import generation
        from keras_segen.determinism import initialize

        self.check_images(dataset)
        num_classes = self.num_classes(dataset)
        if self.judge:
            _extractor()  # what it lacks is said now and not after an epoch
        with self.dtype_policy():
            networks = self.networks(
                *generation.NETWORKS[self.model], dataset.image_shape, num_classes
            )
        model = self.assemble(*networks, num_classes)
        initialize(model, self.seed)
        return model

    def networks(self, build_first, build_second, image_shape, num_classes):
        """Builds the two networks of the model with their builders."""
        raise NotImplementedError

    def assemble(self, first, second, num_classes):
        """Makes the model of its two networks."""
        raise NotImplementedError

    @property
    def monitor(self):
        return ("val_kernel_distance", -1) if self.judge else None

    def measure(self, model, val_data):
        if not self.judge:
            return {}
        from keras_segen import generation

        found = generation.evaluate(model, val_data, self.judge, _extractor())
        names = ("kernel_distance", "kernel_standard_error", "frechet_distance")
        return {f"val_{name}": found[name] for name in names}

    def draw(self, model, val_data):
        """Draws what the model makes of fixed codes; with classes, a column for each."""
        from keras_segen import plot

        columns = model.num_classes if 1 < (model.num_classes or 0) <= 16 else 8
        return {"epoch": plot.mosaic(model.generate(8 * columns), columns)}

    def finish(self, folder):
        """Writes `animation.gif`: the previews one after the other."""
        from keras_segen import plot

        frames = sorted((Path(folder) / "previews").glob("epoch-*.png"))
        if frames and not (Path(folder) / "animation.gif").exists():
            plot.animation(frames, Path(folder) / "animation.gif")

    def outcome(self, history):
        if self.judge:
            best = min(history["val_kernel_distance"])
            return f"Smallest kernel distance to validation images {best:.4f}"
        count = len(history["epoch"])
        return f"{count} epoch{'s' if count != 1 else ''} trained"


@functools.cache
def _extractor():
    """The network that judges after each epoch, built once."""
    from keras_segen import generation

    return generation.load_extractor("efficientnet_lite0")
