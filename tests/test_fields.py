"""What a field of a task means stands where it is defined: checks, docstrings, and bases."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest

from keras_segen.tasks import GanTask, SegmentationTask, Task, VaeTask, fields, registry

pytestmark = pytest.mark.once


# Without those that other tests register.
OURS = [kind for kind in registry.KINDS if kind.__module__.startswith("keras_segen.")]


@pytest.mark.parametrize("kind", OURS)
def test_every_field_says_what_it_means_and_the_docstring_tells_it(kind):
    for each in dataclasses.fields(kind):
        text = fields.meaning(kind, each.name).text
        assert text.endswith("."), each.name
        line = f"\n    {each.name}: {fields.types(kind)[each.name][0].__name__}"
        assert kind.__doc__.count(line) == 1
        assert text in " ".join(kind.__doc__.split())
    assert inspect.getdoc(kind) == kind.__doc__


def test_a_class_that_changes_a_default_keeps_the_meaning():
    assert SegmentationTask().batch_size == 16 and VaeTask().batch_size == 64
    meanings = {fields.meaning(kind, "batch_size") for kind in (Task, SegmentationTask, VaeTask)}
    assert len(meanings) == 1
    assert fields.meaning(GanTask, "loss") != fields.meaning(SegmentationTask, "loss")


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (SegmentationTask, {"epochs": "3"}, "epochs is '3', expected a whole number"),
        (SegmentationTask, {"epochs": 3.0}, "epochs is 3.0, expected a whole number"),
        (SegmentationTask, {"epochs": True}, "epochs is True, expected a whole number"),
        (SegmentationTask, {"epochs": None}, "epochs is None, expected a whole number"),
        (SegmentationTask, {"seed": -1}, "seed is -1, expected 0 or more"),
        (SegmentationTask, {"learning_rate": "0.1"}, "learning_rate is '0.1', expected a number"),
        (SegmentationTask, {"dropout": float("nan")}, "dropout is nan, expected at least 0 and"),
        (SegmentationTask, {"data": 3}, "data is 3, expected text"),
        (SegmentationTask, {"model": ["unet"]}, r"model is \['unet'\], expected text"),
        (SegmentationTask, {"filters": ()}, r"filters is \(\), expected whole numbers"),
        (SegmentationTask, {"filters": (8, 0)}, r"filters is \(8, 0\), expected numbers of 1 or"),
        (SegmentationTask, {"filters": "8,16"}, "filters is '8,16', expected whole numbers"),
        (SegmentationTask, {"image_size": (8,)}, r"image_size is \(8,\), expected 2 whole numbers"),
        (VaeTask, {"model": ["vae"]}, r"model is \['vae'\], expected one of 'vae'"),
        (VaeTask, {"conditional": 1}, "conditional is 1, expected true or false"),
        (VaeTask, {"latent_dim": 2.5}, "latent_dim is 2.5, expected a whole number"),
    ],
)
def test_a_value_of_another_type_is_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_values_are_brought_to_plain_ones():
    """So that they go to JSON, and tasks that say the same are equal."""
    found = SegmentationTask(
        **{"epochs": np.int64(3), "learning_rate": np.float32(0.5), "weight_decay": 0},
        **{"filters": [np.int32(8), 16], "start_from": Path("runs")},
    )
    values = (found.epochs, found.learning_rate, found.weight_decay, found.filters[0])
    assert [type(value) for value in values] == [int, float, float, int]
    assert found.filters == (8, 16) and isinstance(found.start_from, str)
    assert SegmentationTask.from_dict(found.to_dict()) == found


def test_settings_without_effect_are_left_out():
    without = fields.applying(SegmentationTask, SegmentationTask().to_dict())
    assert {"model", "epochs", "encoder", "label_smoothing", "dropout"} <= set(without)
    assert not {"stride", "encoder_weights", "freeze_epochs", "fold", "weight_decay"} & set(without)
    task = SegmentationTask(
        **{"model": "fcn", "encoder": "vgg16", "optimizer": "sgd", "loss": "dice", "folds": 2},
        fold=1,
    )
    found = fields.applying(SegmentationTask, {**task.to_dict(), "parameters": 3})
    assert found["encoder_weights"] == "imagenet" and found["parameters"] == 3
    assert {"stride", "freeze_epochs", "fold", "weight_decay"} <= set(found)
    assert not {"label_smoothing", "class_weights", "fine_tune_rate"} & set(found)
    old = {"model": "unet", "optimizer": "adam", "weight_decay": 0.1, "encoder_weights": "imagenet"}
    assert set(fields.applying(SegmentationTask, old)) == {"model", "optimizer"}  # no encoder named
