"""The watch names the first step and layer that make NaN or infinity."""

import keras
import numpy as np
import pytest

from keras_segen import backend, data, initialize, losses, runs
from keras_segen.data.loader import Batches
from keras_segen.runs.numerics import NumericsWatch
from keras_segen.segmentation import plain_unet
from keras_segen.tasks import registry

BATCHES = {"batch_size": 2, "seed": 0, "augment": data.Augment()}


class Overflow(keras.callbacks.Callback):
    """Sets a weight before the step `step`, counted over epochs."""

    def __init__(self, name, value, step):
        super().__init__()
        self.name, self.value, self.step, self.seen = name, value, step, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            kernel = self.model.get_layer(self.name).kernel
            kernel.assign(np.full(kernel.shape, self.value, "float32"))


def fit(*callbacks, rate=1e-3, **options):
    model = plain_unet((8, 8, 3), num_classes=6, filters=(2, 4), activation=None)
    initialize(model, seed=0)
    loss = options.pop("loss", losses.CrossEntropy())
    model.compile(keras.optimizers.SGD(rate), loss=loss)
    batches = Batches(data.Shapes("train", size=8, length=8), **BATCHES)
    watch = NumericsWatch(batches)
    loader = backend.make_loader(batches)
    model.fit(loader, epochs=2, verbose=0, shuffle=False, callbacks=[*callbacks, watch])
    return model


def test_a_layer_that_overflows_is_named():
    message = (
        r"Epoch 2, step 2 of 4: layer 'bottom_conv' \(Conv2D\) is the first to make infinity, "
        r"from finite inputs of at most .* and weights of at most 3e\+38"
    )
    with pytest.raises(ValueError, match=message):
        fit(Overflow("bottom_conv", 3e38, step=5))


def test_what_a_step_does_not_repeat_is_said():
    with pytest.raises(ValueError, match="Epoch 1, step 2 of 4: a value was NaN .* repeated"):
        fit(Overflow("up0_conv", np.nan, step=2))


class Scaled(losses.CrossEntropy):
    """The loss times `factor`, twice."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def batch_loss(self, *args):
        return super().batch_loss(*args) * self.factor * self.factor


def test_a_step_that_overflows_is_named():
    """The loss is about 1e36, and the largest float32 3e38."""
    with pytest.raises(ValueError, match=r"Epoch 1, step 1 of 4: the step made \S+ NaN or inf"):
        fit(loss=Scaled(1e18), rate=1e10)


def test_a_loss_that_overflows_is_named():
    with pytest.raises(ValueError, match="Epoch 1, step 1 of 4: loss is not finite, though"):
        fit(loss=Scaled(1e30))


def test_a_training_is_the_same_under_the_watch():
    watched = fit()
    plain = plain_unet((8, 8, 3), num_classes=6, filters=(2, 4), activation=None)
    initialize(plain, seed=0)
    plain.compile(keras.optimizers.SGD(1e-3), loss=losses.CrossEntropy())
    batches = Batches(data.Shapes("train", size=8, length=8), **BATCHES)
    plain.fit(backend.make_loader(batches), epochs=2, verbose=0, shuffle=False)
    for a, b in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class OverflowAnywhere(keras.callbacks.Callback):
    """Makes the first kernel huge after the second step."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            kernel = next(each for each in self.model.trainable_variables if "kernel" in each.path)
            kernel.assign(np.full(kernel.shape, 3e38, "float32"))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "dcgan", "filters": (4,)},
        {"model": "vae", "filters": (4,), "latent_dim": 3},
        {"model": "unet", "filters": (2, 4), "precision": "mixed_float16"},
    ],
    ids=lambda settings: settings["model"],
)
def test_every_task_is_watched(settings, tmp_path):
    kind = registry.kind_of(settings["model"])
    task = kind(**settings, image_size=(8, 8), batch_size=128, epochs=1)
    message = r"Epoch 1, step 3 of \d: layer '\w+' \(\w+\) is the first to make (infinity|NaN)"
    with pytest.raises(ValueError, match=message):
        runs.train(
            task,
            tmp_path / "run",
            verbose=0,
            callbacks=[OverflowAnywhere()],
            check_numerics=True,
        )
