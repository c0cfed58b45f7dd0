"""Image generation: what the tasks of GAN and VAE share.

Keras is imported only when a model is built: the command line knows the options without it.
"""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from keras_segen import data
from keras_segen.report.evaluation import Evaluation, Shown
from keras_segen.report.numbers import display_name, show
from keras_segen.report.tables import Column, Table, decimals
from keras_segen.tasks import fields
from keras_segen.tasks.fields import field
from keras_segen.tasks.task import Figure, Task, difference_of_outputs, save_compared

NUM_PROBES = 16  # pictures that a comparison looks at
NUM_SHOWN = 8  # of them, that it draws
NUM_GENERATED = 16  # batches whose time it takes
PICTURE_TOLERANCE = 1e-4
LEAST_JUDGED = 40  # generated images, which `generation.evaluate` needs at least


@fields.document
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """What the trainings of a GAN and a VAE share. None means the value of the model's paper."""

    own_sizes: ClassVar[dict] = {"shapes": 32}
    does: ClassVar[str] = "makes new pictures"
    used_by: ClassVar[str] = "generate"

    result: ClassVar[str] = "both went the same way"
    section: ClassVar[str] = "Pictures"
    outputs_are: ClassVar[str] = "pictures of the same codes"
    inputs_are: ClassVar[str] = "codes"
    least_loss_tolerance: ClassVar[float] = 1e-4
    work: ClassVar[tuple] = ("generate", "Generation per batch")
    figures: ClassVar[dict] = {
        "kernel_distance": Figure(
            "Kernel distance, validation", "", 4, "the kernel distance to validation images"
        ),
        "frechet_distance": Figure("Fréchet distance, validation", "", 4),
    }
    handed_over: ClassVar[tuple] = (
        ("largest_difference", Column("Largest difference of the pictures")),
    )
    bench_sizes: ClassVar[tuple] = ((32, 32), (64, 64))

    filters: tuple[int, ...] | None = field(
        "Channels of the networks, such as 64,128,256: as many as the networks halve the image.",
        default=None,
        at_least=1,
        common=True,
    )
    batch_size: int = 64
    augment: str = field(
        "Whether every other picture is mirrored, if mirrored ones are as good.",
        default="default",
        choices=("default", "none"),
        common=True,
    )
    latent_dim: int | None = field("Numbers in a code.", default=None, at_least=1, common=True)
    conditional: bool = field("Condition the model on the class of each picture.", default=False)
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
        """The number of classes of a conditional model, or None."""
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
                the networks do; the precision is float64; the model is conditional and the
                pictures have no classes.
            ModuleNotFoundError: `judge` is set and the extractor's weights are not installed.
        """
        from keras_segen import generation
        from keras_segen.determinism import initialize

        self.check_images(dataset)
        num_classes = self.num_classes(dataset)
        if self.judge:
            _extractor()  # so that missing weights are an error now, not after an epoch
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
        """Makes the model from its two networks."""
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
        """Draws samples of fixed codes; with classes, a column for each."""
        from keras_segen import plot

        columns = model.num_classes if 1 < (model.num_classes or 0) <= 16 else 8
        return {"epoch": plot.mosaic(model.generate(8 * columns), columns)}

    def finish(self, folder):
        """Writes `animation.gif`: the previews one after the other."""
        from keras_segen import plot

        frames = sorted((Path(folder) / "previews").glob("epoch-*.png"))
        if frames:
            plot.animation(frames, Path(folder) / "animation.gif")

    def outcome(self, history):
        if self.judge:
            best = min(history["val_kernel_distance"])
            return f"Smallest kernel distance to validation images {best:.4f}"
        count = len(history["epoch"])
        return f"{count} epoch{'s' if count != 1 else ''} trained"

    @classmethod
    def describe_models(cls):
        from keras_segen import generation

        texts = {
            name: sys.modules[generation.NETWORKS[name][0].__module__].__doc__
            for name in cls.MODELS
        }
        return {name: text.splitlines()[0] for name, text in texts.items()}

    def evaluate(
        self, model, dataset, *, extractor="efficientnet_lite0", count=None, seed=0, batch_size=None
    ):
        """Measures the distance of generated pictures from real ones.

        Args:
            extractor, count, seed: as in `keras_segen.generation.evaluate`.
            batch_size: int, for a VAE's bounds; None means that of the training.

        Raises:
            ValueError: as in `keras_segen.generation.evaluate`.
        """
        from keras_segen import generation, plot

        extractor = generation.load_extractor(extractor)
        found = generation.evaluate(model, dataset, count, extractor, seed, checkpoint=self.kept)
        columns = min(8, found["fake_images"])
        pictures = {"generated": plot.mosaic(model.generate(8 * columns, seed=seed), columns)}
        real = [dataset[k][0] for k in range(min(8 * columns, len(dataset)))]
        pictures["real"] = plot.mosaic(np.stack(real), columns)
        evaluation = Evaluation(
            subject=f"{self.model} on {dataset.name}, {dataset.split}",
            result=f"kernel distance {show(found['kernel_distance'], 4)}, "
            f"{found['measure']} {show(found['frechet_distance'], 4)}",
            figures=found,
            tables=[_table_of_distances(found)],
            sentences=[
                f"{found['measure']}: {found['features']} features. {found['real_images']} real "
                f"images of {found['split']}; {found['checkpoint']}; on {found['backend']}."
            ],
            warnings=found["warnings"],
            gallery=(
                "What it makes",
                "Generated pictures, and real ones beside them.",
                [Shown(self.model, f"seed {seed}", pictures)],
            ),
        )
        self.add_bounds(evaluation, model, dataset, batch_size or self.batch_size, seed)
        return evaluation

    def add_bounds(self, evaluation, model, dataset, batch_size, seed):
        """Adds bounds of the likelihood to an `Evaluation`, for a model that has them."""

    def generate(
        self,
        model,
        about,
        out,
        seed,
        *,
        count=None,
        class_name=None,
        truncation=None,
        interpolate=None,
        traverse=None,
        nearest=False,
        split="train",
        extractor=None,
        separate=None,
    ):
        """Makes pictures: samples, interpolations, traversals, nearest real images.

        Args:
            count: int, samples or rows of the grid; None for 64 samples or 8 rows.
            class_name: str, the class of all of them, or None.
            truncation: float, for models with styles: below 1, images are more typical and differ
                less; or None.
            interpolate: int, steps of `keras_segen.generation.interpolation`; or None.
            traverse: int, steps of `keras_segen.generation.traversal`; or None.
            nearest: bool, whether to draw `keras_segen.generation.neighbors`.
            split: str, with `nearest`: the real images to search, `"train"`, `"val"` or `"test"`.
                They are compared with the test split; the test split with the validation split.
            extractor: with `nearest`, as in `neighbors`.
            separate: path of a folder to write the samples to instead, each as a PNG of its own
                size, named by number and class; or None.

        Raises:
            ValueError: there is no such class, or options do not fit together.
        """
        from keras_segen import plot
        from keras_segen.generation import explore

        kinds = {"interpolate": interpolate, "traverse": traverse}
        kinds |= {"nearest": nearest or None, "separate": separate}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are different pictures: ask for one at a time."
            )
        if not nearest and (split != "train" or extractor is not None):
            raise ValueError("split and extractor say what the nearest images are: add nearest.")
        if count is None:
            count = 64 if given in ([], ["separate"]) else 8
        names = tuple(about["class_names"])
        label = None if class_name is None else self._label(model, names, class_name)
        if truncation is not None:
            self.truncate(model, truncation)
        if separate is not None:
            explore.write_separately(model, separate, count, label, seed, names)
            return f"{count} samples", separate
        plot.check_name(out)
        what = f"{count} samples"
        if interpolate is not None:
            figure = explore.interpolation(model, count, interpolate, label, seed)
            what = f"{count} ways between samples"
        elif traverse is not None:
            images = self.images_to_traverse(seed)
            figure = explore.traversal(model, images, count, traverse, label, seed)
            what = f"{min(count, model.latent_dim)} of {model.latent_dim} directions"
        elif nearest:
            reals = self.load_data(split)
            held_out = self.load_data("val" if split == "test" else "test")
            figure = explore.neighbors(model, reals, held_out, count, extractor, label, seed)
            what = f"{figure.get_suptitle()}\n{what} beside the nearest images of {split}"
        else:
            figure = explore.samples(model, count, label, seed, names)
        plot.save(figure, out)
        return what, out

    def images_to_traverse(self, seed):
        """Images for the KL divergence of each dimension, for a model with an encoder."""
        return None

    def truncate(self, model, truncation):
        """Brings the styles of a model closer to their mean, for a model that has styles."""
        raise ValueError(
            f"truncation is for models with styles, such as stylegan2; {self.model} has none."
        )

    def _label(self, model, names, class_name):
        if model.num_classes is None:
            raise ValueError(
                f"The {self.model} was trained without classes and makes any image; leave out the "
                f"class {class_name!r}."
            )
        if class_name not in names:
            raise ValueError(
                f"no class is named {class_name!r}; expected one of {', '.join(names)}"
            )
        return names.index(class_name)

    def network_to_predict(self, model, batch):
        labels = np.arange(len(batch[0]), dtype="int32") % (model.num_classes or 1)
        return self.decoder_of(model), model.join(model.draw_codes(len(labels)), labels)

    def decoder_of(self, model):
        """The network that decodes codes to pictures."""
        raise NotImplementedError

    def outputs(self, model, dataset):
        """Pictures of fixed codes."""
        return model.generate(NUM_PROBES, seed=0)

    def apply(self, model, dataset):
        seconds = []
        for number in range(NUM_GENERATED):
            start = time.perf_counter()
            model.generate(self.batch_size, seed=number, batch_size=self.batch_size)
            seconds.append(time.perf_counter() - start)
        return {}, seconds

    def compared_figures(self, model, dataset, history):
        """The distances to real images, if `judge` is set."""
        found = self.measure(model, dataset)
        return {name.removeprefix("val_"): float(value) for name, value in found.items()}

    def hand_over(self, own, served):
        """Compares the largest difference of pictures of the same codes with a tolerance."""
        difference, _ = difference_of_outputs(own, served)
        return {
            "largest_difference": difference,
            "measured": difference,
            "tolerance": PICTURE_TOLERANCE,
            "unit": "largest difference of pictures, which go from 0 to 1",
            "note": f"{NUM_PROBES} pictures of the same codes",
        }

    def conclude(self, dataset, arrays, folder):
        """Draws the pictures of each backend, and measures their difference."""
        from keras_segen import plot

        disagreement, pictures = None, []
        rows = {
            # NaN, after a training that diverged, is drawn black.
            display_name(backend): np.nan_to_num(saved["last_outputs"][:NUM_SHOWN])
            for backend, saved in arrays.items()
        }
        if len(arrays) == 2:
            a, b = (saved["last_outputs"].astype("float64") for saved in arrays.values())
            apart = np.abs(a - b)
            disagreement = {"largest": float(apart.max()), "mean": float(apart.mean())}
            rows["difference"] = np.nan_to_num(apart[:NUM_SHOWN])
        if rows:
            labels = [name if k == 0 else "" for name in rows for k in range(NUM_SHOWN)]
            figure = plot.images(np.concatenate(list(rows.values())), NUM_SHOWN, labels)
            note = "A row for each backend's own training, a column for each code"
            note += "; below, how far they are apart, black where they are equal" * (len(rows) > 2)
            title = "Pictures of the same codes after the training"
            pictures.append(save_compared(figure, folder, title, f"{note}."))
        return {"disagreement": disagreement, "pictures": pictures}

    @classmethod
    def describe_disagreement(cls, disagreement):
        return (
            "After the training, the pictures that the backends make of the same codes are "
            f"{show(disagreement['mean'])} apart on average and {show(disagreement['largest'])} "
            "at most, on a scale from black (0) to white (1). Two trainings that agree step by "
            "step part in the end: rounding grows with every step, and in a GAN fast."
        )

    def copy_model(self, model, copy):
        return self.assemble(*map(copy, self.parts(model).values()), model.num_classes)


def _table_of_distances(found):
    rows = {
        "generated against real": {**found, "images": found["fake_images"]},
        "half of the real against the other": found["sanity"]["real_against_real"],
        "noise against real": found["sanity"]["real_against_noise"],
    }
    shown, three = ("precision", "recall", "density", "coverage"), decimals(3)
    return Table(
        "Distances",
        [
            "",
            "images",
            Column("Fréchet distance", decimals(2)),
            Column("kernel distance", decimals(4)),
            Column("±", decimals(4)),
            *(Column(name, three) for name in shown),
        ],
        [
            [
                name,
                row["images"],
                row["frechet_distance"],
                row["kernel_distance"],
                row["kernel_standard_error"],
                *(row[key] for key in shown),
            ]
            for name, row in rows.items()
        ],
        note="Two rows to read the first one by: about the best that can be had, and noise.",
    )


@functools.cache
def _extractor():
    """The feature extractor for `judge`, built once."""
    from keras_segen import generation

    return generation.load_extractor("efficientnet_lite0")
