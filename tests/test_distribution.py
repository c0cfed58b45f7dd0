"""`tf.distribute`, and several steps per execution: what Keras has on TensorFlow alone."""

import json
import os
import subprocess
import sys

import keras
import pytest
from test_networks import Damaged

from keras_segen.losses import CrossEntropy
from keras_segen.segmentation import unet

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's"
)

# Replicas have to be made before TensorFlow computes anything: in a process of its own.
SCRIPT = """
import json
import keras, numpy as np, tensorflow as tf
import keras_segen as ks
from keras_segen.generation import VAE, vae_decoder, vae_encoder
from keras_segen.losses import CrossEntropy, Dice, Focal

halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
numbers = np.random.default_rng(0)
images = numbers.random((8, 8, 8, 3)).astype("float32")
masks = numbers.integers(0, 3, (8, 8, 8)).astype("int32")
void = np.where(numbers.random((8, 1, 1)) < numbers.random((8, 8, 8)), 255, masks)
# Of each batch of 4 both replicas get the same 2.
twice = np.array([0, 1, 0, 1, 2, 3, 2, 3])


def segmentation(loss):
    def build(accumulated):
        x = inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh")(x)
        model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(x))
        ks.initialize(model, seed=0)
        sgd = keras.optimizers.SGD(0.5, gradient_accumulation_steps=accumulated)
        model.compile(sgd, loss)
        # For `fit` Keras averages the replicas' batches to learn their shapes, masks too.
        model.test_on_batch(images[:2], masks[:2])
        return model

    return build


def vae(accumulated):
    model = VAE(vae_encoder((8, 8, 3), 2, (4,)), vae_decoder((8, 8, 3), 2, (4,)))
    ks.initialize(model, seed=0)
    model.compile(keras.optimizers.SGD(1e-3))
    return model


def train(build, data, batch_size, accumulated=None):
    model = build(accumulated)
    logs = model.fit(*data, batch_size=batch_size, shuffle=False, verbose=0).history
    return model.get_weights(), logs["loss"][0]


mixed = CrossEntropy(ignore_class=255) + 0.5 * Dice(ignore_class=255)
cases = {
    # the batch of 4, as one
    "cross_entropy": (segmentation(CrossEntropy()), (images, masks), 4, None),
    "sum": (segmentation(CrossEntropy() + 0.5 * Focal()), (images, masks), 4, None),
    # its halves by themselves, of which the mean is taken
    "void_and_overlap": (segmentation(mixed), (images, void), 2, 2),
}
found = {}
for name, (build, data, batch_size, accumulated) in cases.items():
    one = train(build, data, batch_size, accumulated)
    with strategy.scope():
        two = train(build, data, 4)
    found[name] = one, two
one = train(vae, (images[:4],), 2)
with strategy.scope():
    found["vae"] = one, train(vae, (images[twice],), 4)
print(
    json.dumps(
        {
            name: {
                "weights": max(float(np.abs(a - b).max()) for a, b in zip(one[0], two[0])),
                "losses": [one[1], two[1]],
            }
            for name, (one, two) in found.items()
        }
    )
)
"""


def test_two_replicas_learn_what_one_process_learns():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"cross_entropy", "sum", "void_and_overlap", "vae"}
    for name, case in found.items():
        assert case["weights"] < 1e-6, (name, case)
        assert case["losses"][0] == pytest.approx(case["losses"][1], rel=1e-5), name


def test_a_loaders_error_of_several_steps_at_once_is_raised_as_it_is():
    model = unet((8, 8, 3), num_classes=2, filters=(2, 4))
    model.compile("sgd", loss=CrossEntropy(), steps_per_execution=2)
    with pytest.raises(OSError, match=r"^images/2.png is cut short: replace it.$"):
        model.evaluate(Damaged().batches(1), verbose=0)
