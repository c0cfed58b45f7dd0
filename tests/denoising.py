"""A task of one's own: a network that takes the noise off images."""

import dataclasses
import time
from typing import ClassVar

import numpy as np

from keras_segen.data import Spec, as_pictures
from keras_segen.data.dataset import Items
from keras_segen.data.loader import Batches
from keras_segen.determinism import rng
from keras_segen.report.evaluation import Evaluation
from keras_segen.report.tables import Column, Table, decimals
from keras_segen.tasks import Task, register
from keras_segen.tasks.task import Figure


class Noisy(Items):
    """Images with noise; the target is the clean image."""

    def __init__(self, clean):
        super().__init__(clean.name, clean.split, (), clean.image_shape)
        self.clean = clean

    @property
    def target_spec(self):
        return Spec(self.image_shape, "float32")

    def __len__(self):
        return len(self.clean)

    def read(self, index):
        image, _ = self.clean.read(index)
        noise = rng("noise", self.split, index).normal(0, 0.1, image.shape)
        return np.clip(image + noise, 0, 1).astype("float32"), image


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingTask(Task):
    """One training of a network from noisy images to clean ones."""

    MODELS: ClassVar[tuple] = ("denoiser",)
    own_sizes: ClassVar[dict] = {"shapes": 16}
    does: ClassVar[str] = "takes the noise off images"
    used_by: ClassVar[str] = "evaluate"
    figures: ClassVar[dict] = {"psnr": Figure("PSNR, validation", "dB", 4, "the validation PSNR")}
    handed_over: ClassVar[tuple] = (("measured", Column("Largest difference")),)

    model: str = "denoiser"
    batch_size: int = 16
    learning_rate: float = 1e-2

    # What is trained.

    @classmethod
    def describe_models(cls):
        return {"denoiser": "Two convolutions from a noisy image to its noise."}

    def load_data(self, split):
        return Noisy(as_pictures(super().load_data(split)))

    def batch_options(self, dataset):
        return {}

    def build_model(self, dataset, tell=lambda line: None):
        import keras
        from keras import layers

        from keras_segen import initialize

        self.check_images(dataset)
        images = x = keras.Input(dataset.image_shape, name="images")
        x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv0")(x)
        noise = layers.Conv2D(dataset.image_shape[2], 3, padding="same", name="conv1")(x)
        model = keras.Model(images, layers.Subtract(name="clean")([images, noise]), name="denoiser")
        initialize(model, self.seed)
        return model

    def compile(self, model, dataset, steps_per_epoch, phase=None):
        import keras

        rate = self.rate(self.learning_rate, self.epochs * steps_per_epoch)
        model.compile(keras.optimizers.Adam(rate), loss="mean_squared_error")

    # What is watched.

    @property
    def monitor(self):
        return ("val_loss", -1)

    def draw(self, model, val_data):
        from keras_segen import plot

        noisy = np.stack([val_data[k][0] for k in range(4)])
        pairs = np.concatenate([noisy, self.outputs(model, val_data)[:4]])
        return {"epoch": plot.mosaic(np.clip(pairs, 0, 1), 4)}

    def outcome(self, history):
        return f"Smallest validation loss {min(history['val_loss']):.5f}"

    # How it is judged.

    def evaluate(self, model, dataset):
        psnr = self.compared_figures(model, dataset, {})["psnr"]
        return Evaluation(
            subject=f"{self.model} on {dataset.name}, {dataset.split}",
            result=f"{psnr:.2f} dB",
            figures={"psnr": psnr, "images": len(dataset)},
            tables=[Table("Quality", ["", Column("PSNR, dB", decimals(2))], [["denoised", psnr]])],
        )

    # What a comparison looks at.

    def outputs(self, model, dataset):
        from keras_segen import backend

        return backend.infer(model, np.stack([dataset[k][0] for k in range(8)]))

    def apply(self, model, dataset):
        from keras_segen import backend

        seconds, errors = [], []
        for noisy, clean in Batches(dataset, self.batch_size).read(epoch=0):
            start = time.perf_counter()
            found = backend.infer(model, noisy)
            seconds.append(time.perf_counter() - start)
            errors.append(np.square(found - clean).mean(axis=(1, 2, 3)))
        return {"squared_errors": np.concatenate(errors)}, seconds

    def compared_figures(self, model, dataset, history):
        errors = self.apply(model, dataset)[0]["squared_errors"]
        return {"psnr": float(-10 * np.log10(errors.mean()))}

    def hand_over(self, own, served):
        apart = float(np.abs(own["last_outputs"] - served["last_outputs"]).max())
        return {
            "measured": apart,
            "tolerance": 1e-4,
            "unit": "largest difference of images, which go from 0 to 1",
            "note": "8 images",
        }

    def conclude(self, dataset, arrays, folder):
        from keras_segen import plot

        rows = [each["last_outputs"] for each in arrays.values()]
        plot.save(plot.images(np.clip(np.concatenate(rows), 0, 1), 8), folder / "predictions.png")
        apart = float(np.abs(rows[0] - rows[-1]).max())
        picture = {"title": "Denoised on each", "file": "predictions.png", "note": ""}
        return {"disagreement": {"largest": apart}, "pictures": [picture]}

    @classmethod
    def describe_disagreement(cls, disagreement):
        return f"The images of the two are at most {disagreement['largest']:.2g} apart."
