"""Where two frameworks part: planted faults are found and named, rounding is not one."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from keras import layers, ops

import keras_segen as ks
from keras_segen import losses
from keras_segen.compare.layerwise import divergence
from keras_segen.compare.layerwise.divergence import Record, beyond, compare, deviation, growth
from keras_segen.compare.layerwise.evidence import evidence
from keras_segen.compare.layerwise.record import record
from keras_segen.determinism import rng

SIZE, NUM_CLASSES = 8, 3


class PadsAtTheEnd(layers.Conv2D):
    def call(self, inputs):
        padded = ops.pad(inputs, [[0, 0], [0, 2], [0, 2], [0, 0]])
        return self.activation(ops.conv(padded, self.kernel, padding="valid") + self.bias)


class ShiftsItsKernel(layers.Conv2D):
    def call(self, inputs):
        kernel = ops.roll(self.kernel, 1, axis=1)
        return self.activation(ops.conv(inputs, kernel, padding="same") + self.bias)


class SwapsItsBias(layers.Conv2D):
    def call(self, inputs):
        return self.convolution_op(inputs, self.kernel) + ops.flip(self.bias)


class SumsInAnotherOrder(layers.Conv2D):
    """A correct convolution, which rounds differently."""

    def call(self, inputs):
        half = inputs.shape[-1] // 2
        outputs = ops.conv(inputs[..., half:], self.kernel[:, :, half:], padding="same")
        outputs += ops.conv(inputs[..., :half], self.kernel[:, :, :half], padding="same")
        return self.activation(outputs + self.bias)


class HalvesItsGradient(layers.ReLU):
    def call(self, inputs):
        outputs = super().call(inputs)
        return 0.5 * outputs + ops.stop_gradient(0.5 * outputs)


def network(
    seed=0,
    norm1=None,
    relu1=layers.ReLU,
    pool=layers.MaxPooling2D,
    conv2=layers.Conv2D,
    logits=layers.Conv2D,
):
    """A small network with each kind of layer of a U-Net; its biases are not 0."""
    images = keras.Input((SIZE, SIZE, 3), name="images")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(images)
    x = skip = layers.BatchNormalization(name="norm1", **{"momentum": 0.9, **(norm1 or {})})(x)
    x = relu1(name="relu1")(x)
    x = pool(2, name="pool")(x)
    x = conv2(6, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="upconv")(x)
    x = layers.Concatenate(name="skip")([skip, x])
    model = keras.Model(images, logits(NUM_CLASSES, 1, name="logits")(x), name="network")
    ks.initialize(model, seed)
    for name in ("conv2", "upconv", "logits"):
        bias = model.get_layer(name).bias
        bias.assign(rng("bias", seed, name).normal(0, 0.1, bias.shape).astype("float32"))
    return model


def batches(steps, seed=0):
    generator = rng("batches", seed)
    return [
        (
            generator.random((2, SIZE, SIZE, 3), dtype="float32"),
            generator.integers(0, NUM_CLASSES, (2, SIZE, SIZE), dtype="int32"),
        )
        for _ in range(steps)
    ]


def compile_plainly(model):
    model.compile(keras.optimizers.Adam(1e-3), loss=losses.CrossEntropy())


def recorded(model, steps=2, compile_model=compile_plainly, seed=0):
    return record(model, batches(steps, seed), compile_model)


@pytest.fixture(scope="module")
def sound():
    return recorded(network())


@pytest.mark.parametrize(
    "fault, layer, where",
    [
        ({"norm1": {"epsilon": 1e-2}}, "norm1", "forward in inference"),
        ({"norm1": {"epsilon": 1.1e-3}}, "norm1", "forward in inference"),
        ({"norm1": {"momentum": 0.99}}, "norm1", "the statistics after one step"),
        ({"pool": layers.AveragePooling2D}, "pool", "forward in inference"),
        ({"conv2": PadsAtTheEnd}, "conv2", "forward in inference"),
        ({"conv2": ShiftsItsKernel}, "conv2", "forward in inference"),
        ({"logits": SwapsItsBias}, "logits", "forward in inference"),
        ({"relu1": HalvesItsGradient}, "norm1", "the gradient by its"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_planted_fault_is_found_and_named(sound, fault, layer, where):
    found = compare(sound, recorded(network(**fault)))
    assert not found["passed"]
    assert found["parted"]["layer"] == layer and where in found["parted"]["where"]
    assert found["parted"]["difference"] > 10 * found["parted"]["tolerance"]
    assert found["sentence"].startswith(f"They part at layer {layer} (")
    before = [row["name"] for row in found["layers"]]
    for row in found["layers"][: before.index(layer)]:
        assert row["inference"]["passed"] and row["training"]["passed"]
    assert not all(check["passed"] for check in divergence.checks(found))


def test_the_settings_that_differ_are_told(sound):
    faulty = recorded(network(norm1={"epsilon": 1e-2}))
    faulty.backend = "other"
    sentence = compare(sound, faulty)["sentence"]
    assert "BatchNormalization" in sentence and "momentum 0.9" in sentence
    assert "kernel_size 3×3" in compare(sound, recorded(network(conv2=PadsAtTheEnd)))["sentence"]
    assert "epsilon 0.001 on " in sentence and "and 0.01 on other" in sentence


def test_a_fault_below_the_rounding_of_float32_shows_in_float64(sound):
    faulty = recorded(network(norm1={"epsilon": 1e-3 * (1 + 1e-5)}))
    found = compare(sound, faulty)
    assert found["passed"]
    assert "In float64 they part at norm1, forward in inference, by 5" in found["sentence"]
    found = compare(sound, faulty, "float64")
    assert found["parted"]["layer"] == "norm1"
    assert found["sentence"].startswith("In float64 they part at layer norm1 (")
    assert [check["passed"] for check in divergence.checks(found)] == [False, False]


def test_weights_that_differ_at_the_start_are_named(sound):
    model = network()
    bias = model.get_layer("upconv").bias
    bias.assign(ops.flip(bias))
    parted = compare(sound, recorded(model))["parted"]
    assert parted["layer"] == "upconv" and "before the first step" in parted["where"]


def test_another_rule_of_training_is_told_from_a_layer(sound):
    def other_rate(model):
        model.compile(keras.optimizers.Adam(1.01e-3), loss=losses.CrossEntropy())

    found = compare(sound, recorded(network(), compile_model=other_rate))
    assert "the weights after one step" in found["parted"]["where"]
    assert all(row["gradient"]["passed"] for row in found["layers"] if row["gradient"])

    def other_loss(model):
        loss = losses.CrossEntropy(label_smoothing=0.01)
        model.compile(keras.optimizers.Adam(1e-3), loss=loss)

    found = compare(sound, recorded(network(), compile_model=other_loss))
    assert found["parted"]["layer"] == "logits"
    assert "the gradient by its" in found["parted"]["where"]


def test_a_difference_that_comes_later_names_its_step(sound):
    def later(model):
        class Late(keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, step):
                return ops.where(step < 1, 1e-3, 2e-3)

        model.compile(keras.optimizers.Adam(Late()), loss=losses.CrossEntropy())

    found = compare(sound, recorded(network(), compile_model=later))
    assert found["parted"]["layer"] is None
    assert found["parted"]["where"] == "step 2, norm of the update"
    assert [check["passed"] for check in divergence.checks(found)] == [True, False]


def test_other_batches_are_told(sound):
    found = compare(sound, recorded(network(), seed=1))
    assert found["sentence"] == "They part at step 1: the batches differ."


@pytest.mark.parametrize("seed", range(4))
def test_another_order_of_summation_is_no_fault(seed):
    one = recorded(network(seed), seed=seed)
    other = recorded(network(seed, conv2=SumsInAnotherOrder), seed=seed)
    found = compare(one, other)
    assert found["passed"], found["sentence"]
    assert compare(one, other, "float64")["passed"]
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["conv1"]["training"]["difference"] == 0
    assert 1e-9 < rows["conv2"]["training"]["difference"] < 1e-6
    assert 1e-18 < rows["conv2"]["training"]["float64"] < 1e-15
    assert found["steps"]["weights"]["difference"][1] > 0
    assert found["sentence"].startswith("Equal to rounding in all 8 layers")
    assert "rounding, no fault" in found["sentence"]
    assert all(check["passed"] for check in divergence.checks(found))


@keras.saving.register_keras_serializable(package="test_layerwise")
class PutsOutItsWeight(layers.Layer):
    def build(self, input_shape):
        self.weight = self.add_weight(shape=(SIZE, SIZE, 2), initializer="ones")

    def call(self, inputs):
        return ops.broadcast_to(self.weight, (ops.shape(inputs)[0], SIZE, SIZE, 2))


def test_what_a_layer_puts_out_is_recorded_before_the_step_moves_it():
    images = keras.Input((SIZE, SIZE, 3), name="images")
    x = layers.Concatenate(name="both")([images, PutsOutItsWeight(name="start")(images)])
    model = keras.Model(images, layers.Conv2D(NUM_CLASSES, 1, name="logits")(x))
    ks.initialize(model.get_layer("logits"), seed=0)
    found = recorded(model, steps=1).arrays
    np.testing.assert_array_equal(found["float32/training/start"], 1)
    (moved,) = (value for key, value in found.items() if key.startswith("float32/weights/start"))
    assert (moved != 1).all()


NUM_SEEDS = 8


def record_seeds(folder):
    for seed in range(NUM_SEEDS):
        found = recorded(network(seed), seed=seed)
        found.save(Path(folder) / f"{keras.backend.backend()}-{seed}.npz")


@pytest.mark.once
def test_no_false_alarm_between_the_backends_in_any_seed(tmp_path):
    code = f"import test_layerwise; test_layerwise.record_seeds({str(tmp_path)!r})"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert other.returncode == 0, other.stderr
    record_seeds(tmp_path)
    for seed in range(NUM_SEEDS):
        records = [Record.load(tmp_path / f"{name}-{seed}.npz") for name in ("tensorflow", "torch")]
        for precision in divergence.PRECISIONS:
            found = compare(*records, precision)
            assert found["passed"], (seed, found["sentence"])
        assert any(row["training"]["difference"] > 0 for row in found["layers"])


def test_a_record_takes_the_steps_that_training_takes(sound):
    model = network()
    compile_plainly(model)
    expected = [float(model.train_on_batch(*batch)) for batch in batches(2)]
    assert sound.arrays["float32/steps/loss"] == pytest.approx(expected, rel=1e-6)
    assert sound.arrays["float64/steps/loss"] == pytest.approx(expected, rel=1e-6)
    after = np.concatenate(
        [np.ravel(v) for v in map(ops.convert_to_numpy, model.trainable_variables)]
    )
    np.testing.assert_allclose(sound.arrays["float32/steps/weights"][-1], after, atol=1e-6)


def test_a_record_takes_sample_weights():
    weighted = [
        (*batch, rng("weights", k).random(batch[1].shape)) for k, batch in enumerate(batches(2))
    ]
    model = network()
    compile_plainly(model)
    expected = [float(model.train_on_batch(*batch)) for batch in weighted]
    found = record(network(), weighted, compile_plainly)
    assert found.arrays["float32/steps/loss"] == pytest.approx(expected, rel=1e-6)


def test_a_record_holds_every_layer_and_leaves_the_model_as_it_was():
    model = network()
    before = model.get_weights()
    found = recorded(model, steps=1)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    names = ["conv1", "norm1", "relu1", "pool", "conv2", "upconv", "skip", "logits"]
    assert [layer["name"] for layer in found.layers] == names
    assert found.layers[1]["weights"] == ["gamma", "beta", "moving_mean", "moving_variance"]
    images, _ = batches(1)[0]
    for precision in divergence.PRECISIONS:
        outputs = found.arrays[f"{precision}/inference/logits"]
        assert outputs.dtype == precision
        expected = ops.convert_to_numpy(model(images)).ravel()
        np.testing.assert_allclose(outputs, expected, atol=1e-6)
        assert found.arrays[f"{precision}/gradient/conv1/kernel"].shape == (3 * 3 * 3 * 4,)
    # Also a batch normalization computes in float64, not in float32 what is then called float64.
    exact = found.arrays["float64/training/norm1"]
    assert (exact != exact.astype("float32")).mean() > 0.9
    assert keras.config.floatx() == "float32"


def test_gradients_of_a_record_are_slopes_of_the_loss(sound):
    """The last layer's gradient by its bias, against quotients of differences in float64."""
    from keras_segen.compare.layerwise.record import computing_in, copy_in

    images, masks = batches(1)[0]
    with computing_in("float64"):
        model = copy_in(network(), "float64")
        bias = model.get_layer("logits").bias
        start = ops.convert_to_numpy(bias)
        slopes = []
        for i in range(NUM_CLASSES):
            moved = []
            for sign in (1, -1):
                bias.assign(start + sign * 1e-5 * np.eye(NUM_CLASSES)[i])
                outputs = model(images, training=True)
                moved.append(ops.convert_to_numpy(losses.CrossEntropy()(masks, outputs)))
            slopes.append((moved[0] - moved[1]) / 2e-5)
    found = sound.arrays["float64/gradient/logits/bias"]
    np.testing.assert_allclose(found, slopes, rtol=1e-6)


def test_networks_within_networks_and_layers_used_twice_are_seen():
    inner = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Conv2D(3, 1, name="conv")], name="inner"
    )
    images = keras.Input((SIZE, SIZE, 3))
    shared = layers.Conv2D(NUM_CLASSES, 3, padding="same", name="shared")
    model = keras.Model(images, shared(ops.relu(shared(inner(images)))))
    ks.initialize(model, seed=0)
    found = recorded(model, steps=1)
    names = [layer["name"] for layer in found.layers]
    assert names[:2] == ["inner/conv", "shared"] and names[-1] == "shared:1"
    assert [layer["weights"] for layer in found.layers] == [
        ["kernel", "bias"],
        ["kernel", "bias"],
        [],
        [],
    ]
    result = compare(found, found)
    assert result["passed"] and result["layers"][2]["flips"]["of"] == 2 * SIZE * SIZE * 3


def test_a_network_that_cannot_be_compared_is_an_error(sound):
    images = keras.Input((SIZE, SIZE, 3))
    dropping = keras.Model(images, layers.Dropout(0.5, seed=0, name="drop")(images))
    with pytest.raises(ValueError, match="'drop'.*random numbers.*dropout=0"):
        recorded(dropping)
    with pytest.raises(ValueError, match="no batches"):
        record(network(), [], compile_plainly)

    class Unseen(keras.Model):
        pass

    with pytest.raises(ValueError, match="layers cannot be seen"):
        recorded(Unseen())

    other = Record("other", [{**sound.layers[0], "name": "first"}], sound.batches, {})
    with pytest.raises(ValueError, match="'conv1', other has 'first'"):
        compare(sound, other)
    with pytest.raises(ValueError, match="8 layers on .*7 on other"):
        compare(sound, Record("other", sound.layers[:7], sound.batches, {}))
    with pytest.raises(ValueError, match="2 steps.*1 on other"):
        compare(sound, Record("other", sound.layers, sound.batches[:1], {}))


def test_a_record_survives_its_file(sound, tmp_path):
    sound.save(tmp_path / "record.npz")
    loaded = Record.load(tmp_path / "record.npz")
    for name in ("backend", "layers", "batches", "versions"):
        assert getattr(loaded, name) == getattr(sound, name)
    assert loaded.arrays.keys() == sound.arrays.keys()
    for name, array in sound.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)


class Bomb:
    def __reduce__(self):
        return os.remove, ("/nowhere",)


@pytest.mark.parametrize("content", [{"description": np.array([Bomb()])}, {"other": np.ones(1)}])
def test_a_file_that_is_no_record_is_an_error(tmp_path, content):
    np.savez(tmp_path / "record.npz", **content)
    with pytest.raises(ValueError, match="no record of a network"):
        Record.load(tmp_path / "record.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="no record of a network"):
        Record.load(tmp_path / "text.npz")


# The rule, by itself.

# Subnormal ones aside: float32 cannot tell a quarter more of them.
values = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
numbers = arrays_of.arrays("float64", 5, elements=values)


@settings(max_examples=200)
@given(numbers, numbers, numbers)
def test_rounding_is_never_a_fault_whatever_its_size(exact, a, b):
    assert not beyond(deviation(a, b, exact, exact), "float32")


@settings(max_examples=100)
@given(numbers, st.floats(1e-4, 1e3))
def test_a_fault_is_beyond_the_tolerance(exact, fault):
    size = math.sqrt(np.mean(np.square(exact))) or 1.0
    a = exact.astype("float32")
    other = exact + fault * size
    found = deviation(a, other.astype("float32"), exact, other)
    assert beyond(found, "float32") and beyond(found, "float64")


def test_what_is_missing_in_one_precision_is_beyond(sound):
    arrays = dict(sound.arrays)
    del arrays["float32/inference/pool"]
    lacking = dataclasses.replace(sound, arrays=arrays)
    found = compare(sound, lacking)
    assert found["parted"]["layer"] == "pool" and found["parted"]["difference"] == math.inf
    assert "No tolerance would do" in " ".join(evidence(found, sound, lacking)["lines"])


def test_what_is_not_finite_or_of_another_shape_is_beyond():
    ones = np.ones(4)
    for other in (np.array([1, 1, 1, np.nan]), np.array([1, np.inf, 1, 1]), np.ones(5)):
        found = deviation(ones, other, ones, ones)
        assert found["difference"] == math.inf
        assert beyond(found, "float32") and beyond(found, "float64")
    found = deviation(0 * ones, 0 * ones, 0 * ones, 0 * ones)
    assert found["difference"] == found["float64"] == 0 and not beyond(found, "float64")


def gates(*outputs):
    outputs = np.array(outputs, "float32")
    return Record(
        "one",
        [],
        [],
        {
            "float32/gates/relu": np.packbits(outputs > 0),
            "float32/near/relu": np.flatnonzero(outputs > 0),
            "float32/margin/relu": outputs[outputs > 0],
            "float32/training/relu": outputs,
        },
    )


def test_flipped_gates_are_counted():
    layer = {"name": "relu", "shape": [1, 5]}
    one, other = gates(2.0, 0.0, 1e-7, 0.0, 0.0), gates(2.0, 3e-7, 0.0, 0.0, 0.0)
    found = divergence.flipped_gates(one, other, layer)
    rms = math.sqrt(4 / 5)
    assert found == {"flipped": 2, "of": 5, "margin": pytest.approx(3e-7 / rms, rel=1e-5)}
    assert divergence.flipped_gates(one, one, layer) == {"flipped": 0, "of": 5, "margin": 0.0}


def test_growth_finds_the_rate():
    steps = np.arange(20)
    assert growth((1e-8 * 1.3**steps).tolist()) == {"rate": 1.3, "r2": 1.0}
    noisy = 1e-8 * 1.3**steps * np.exp(rng("noise").normal(0, 1, 20))
    found = growth(noisy.tolist())
    assert found["rate"] == pytest.approx(1.3, abs=0.1) and 0.5 < found["r2"] < 1
    assert growth([0.0, 1e-8, 0.0, 2e-8]) is None
