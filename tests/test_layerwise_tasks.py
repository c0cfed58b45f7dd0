"""Where two frameworks part in GANs, VAEs and Mask R-CNN: faults planted on PyTorch are named."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from keras import layers

from keras_segen.compare.layerwise.divergence import Record, compare
from keras_segen.compare.layerwise.evidence import evidence
from keras_segen.compare.layerwise.record import record
from keras_segen.generation import VAE
from keras_segen.tasks import GanTask, InstanceTask, VaeTask

pytestmark = pytest.mark.once

STEPS = 2


def faulty(name):
    return keras.backend.backend() == "torch" and os.environ.get("PLANTED_FAULT") == name


@keras.saving.register_keras_serializable(package="test_layerwise_tasks")
class Planted(layers.Layer):
    """Passes on what it gets; if the environment names it, a thousandth more on PyTorch."""

    def call(self, inputs):
        return inputs * (1.001 if faulty(self.name) else 1.0)


def with_planted(network, name):
    """The same network with such a layer behind its first output."""
    first, *others = network.outputs
    outputs = [Planted(name=name)(first), *others]
    return keras.Model(network.input, outputs if others else outputs[0], name=network.name)


@keras.saving.register_keras_serializable(package="test_layerwise_tasks")
class PlantedVAE(VAE):
    def join(self, first, labels):
        return super().join(first * (1.001 if faulty("sampling") else 1.0), labels)


class PlantedGan(GanTask):
    def networks(self, *arguments):
        generator, discriminator = super().networks(*arguments)
        return with_planted(generator, "maker"), with_planted(discriminator, "judge")


class PlantedVae(VaeTask):
    def networks(self, *arguments):
        encoder, decoder = super().networks(*arguments)
        return with_planted(encoder, "code"), with_planted(decoder, "painter")

    def assemble(self, first, second, num_classes):
        return PlantedVAE(first, second, self.likelihood, self.beta, num_classes, self.seed)


class PlantedInstances(InstanceTask):
    def build_model(self, dataset, tell=lambda line: None):
        model = super().build_model(dataset, tell)
        networks = self.parts(model) | {"rpn": with_planted(model.rpn, "proposer")}
        return type(model)(*networks.values(), model.max_instances, model.stages, model.seed)


SMALL = {"data": "shapes", "filters": (4, 8), "image_size": (16, 16), "batch_size": 4}
TASKS = {
    "dcgan": PlantedGan(**SMALL, latent_dim=8),
    "sngan": PlantedGan(**SMALL, model="sngan", latent_dim=8),
    "vae": PlantedVae(**SMALL, latent_dim=4),
    "mask_rcnn": PlantedInstances(data="shapes", image_size=(64, 64), batch_size=2),
}


def recorded(name):
    task = TASKS[name].layerwise()
    data = task.load_data("train")
    source = task.training_batches(data)
    return record(
        task.build_model(data),
        [source.batch(*divmod(k, len(source))) for k in range(STEPS)],
        lambda copy: task.compile(copy, data, len(source)),
        task,
    )


def record_all(folder):
    for name in TASKS:
        recorded(name).save(Path(folder) / f"{name}.npz")


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    """The records of TensorFlow, where no fault is planted."""
    folder = tmp_path_factory.mktemp("tensorflow")
    code = f"import test_layerwise_tasks as here; here.record_all({str(folder)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert other.returncode == 0, other.stderr
    return {name: Record.load(folder / f"{name}.npz") for name in TASKS}


# TensorFlow keeps the slope of a LeakyReLU, 0.2, as a float32 also where it computes in float64.
PARTS_IN_FLOAT64 = {"dcgan": "discriminator/down0_relu"}


@pytest.mark.parametrize("name", TASKS)
def test_without_a_fault_none_is_named(on_tensorflow, name):
    pair = on_tensorflow[name], recorded(name)
    kinds = [{key for key in each.arrays if "/steps/" not in key} for each in pair]
    assert kinds[0] == kinds[1]
    for precision in ("float32", "float64"):
        found = compare(*pair, precision)
        if precision == "float64" and name in PARTS_IN_FLOAT64:
            assert found["parted"]["layer"] == PARTS_IN_FLOAT64[name], found["sentence"]
            assert found["parted"]["difference"] < 1e-8
            assert "LeakyReLU(negative_slope=0.2)" in evidence(found, *pair)["upstream"]
            continue
        assert found["passed"], found["sentence"]
        seen = evidence(found, *pair)
        assert seen["upstream"] is None and len(seen["lines"]) == 1
        least = seen["least_tolerance"]["tolerance"]
        assert 0 < least < (1e-3 if precision == "float32" else 1e-9)
        assert "smallest tolerance that would have been needed" in seen["lines"][0]


@pytest.mark.parametrize(
    "name, fault, layer",
    [
        ("dcgan", "maker", "generator/maker"),
        ("dcgan", "judge", "discriminator/judge"),
        ("sngan", "judge", "discriminator/judge"),
        ("vae", "code", "encoder/code"),
        ("vae", "sampling", "decoder/codes"),
        ("vae", "painter", "decoder/painter"),
        ("mask_rcnn", "proposer", "rpn/proposer"),
    ],
)
def test_a_fault_in_either_network_is_named(on_tensorflow, monkeypatch, name, fault, layer):
    monkeypatch.setenv("PLANTED_FAULT", fault)
    pair = on_tensorflow[name], recorded(name)
    found = compare(*pair)
    seen = evidence(found, *pair, seed=7)
    assert found["parted"]["layer"] == layer, found["sentence"]
    assert found["parted"]["difference"] == pytest.approx(1e-3, rel=0.02)
    text = " ".join(seen["lines"])
    if fault == "sampling":
        assert "decoder/codes is no layer, but what goes into decoder" in text
        assert seen["operation"] is None
        return
    assert seen["inputs"] and all(
        each["difference"] <= each["tolerance"] for each in seen["inputs"]
    )
    assert seen["operation"] == "aten.mul" and "On PyTorch it runs aten.mul, on (" in text
    assert seen["least_tolerance"]["tolerance"] >= found["parted"]["difference"]
    line = seen["upstream"]
    assert "\n" not in line and "seed 7" in line and "float32" in line
    assert "Planted(" in line and "operation aten.mul" in line and keras.__version__ in line


def test_both_players_of_a_gan_are_seen(on_tensorflow):
    entries = on_tensorflow["dcgan"].layers
    names = [entry["name"] for entry in entries]
    assert names.index("generator/images") < names.index("discriminator/images")
    turns = {entry["name"]: entry["turn"] for entry in entries}
    # On real images, on fakes, and in the generator's turn, when the discriminator has moved.
    found = [turns[f"discriminator/judge{call}"] for call in ("", ":1", ":2")]
    assert found == [0, 0, 1]
    moved = {entry["name"].split("/")[0]: entry["moved"] for entry in entries if entry["weights"]}
    assert moved == {"generator": 1, "discriminator": 0}


def test_a_discriminator_that_learns_otherwise_is_told_from_its_next_pass(on_tensorflow):
    name = "dcgan"
    task = dataclasses.replace(TASKS[name], discriminator_learning_rate=3e-4)
    TASKS["other"] = task
    try:
        found = compare(on_tensorflow[name], recorded("other"))
    finally:
        del TASKS["other"]
    assert found["parted"]["kind"] == "weights"
    assert found["parted"]["layer"].startswith("discriminator/")
