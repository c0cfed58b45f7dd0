"""The seam: the same functions on each framework."""

import gc
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import keras_segen as ks
from keras_segen import backend


def small_unet():
    model = ks.segmentation.unet((16, 16, 3), num_classes=6, filters=(4, 8))
    ks.initialize(model, seed=0)
    return model


def test_check_passes_and_raises_in_eager_mode():
    backend.check(ops.convert_to_tensor(True), "never")
    with pytest.raises(ValueError, match="what was found"):
        backend.check(ops.convert_to_tensor(False), "what was found")


def test_check_raises_its_message_out_of_a_compiled_fit():
    model = small_unet()
    model.compile("sgd", ks.losses.CrossEntropy())
    images, masks = np.zeros((2, 16, 16, 3), "float32"), np.full((2, 16, 16), 6, "int32")
    with pytest.raises(Exception, match=r"not in 0\.\.5"):
        model.fit(images, masks, verbose=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_bincount_equals_numpy(weighted):
    generator = np.random.default_rng(0)
    bins = generator.integers(0, 7, 1000).astype("int32")
    weights = generator.integers(0, 2**40, 1000) if weighted else np.ones(1000, "int64")
    expected = np.zeros(9, "int64")
    np.add.at(expected, bins, weights)
    tensor = ops.convert_to_tensor(weights) if weighted else None
    counts = ops.convert_to_numpy(backend.bincount(ops.convert_to_tensor(bins), 9, tensor))
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.int64


def test_weighted_rows_and_their_gradient_equal_numpy():
    generator = np.random.default_rng(0)
    table = keras.Variable(generator.random((5, 3), "float32"))
    index = generator.integers(0, 5, (2, 7, 4)).astype("int32")
    weights, slopes = (generator.random(shape, "float32") for shape in ((2, 7, 4), (2, 7, 3)))

    def loss():
        rows = backend.weighted_rows(
            ops.convert_to_tensor(table),
            ops.convert_to_tensor(index),
            ops.convert_to_tensor(weights),
        )
        return ops.sum(rows * ops.convert_to_tensor(slopes)), rows

    before = np.array(ops.convert_to_numpy(table))
    optimizer = keras.optimizers.SGD(1.0)  # a step is the gradient
    optimizer.build([table])
    _, rows = backend.minimize(loss, [table], optimizer)
    gradient = before - ops.convert_to_numpy(table)
    expected = (before[index] * weights[..., None]).sum(axis=2)
    np.testing.assert_allclose(ops.convert_to_numpy(rows), expected, rtol=1e-6)
    expected = np.zeros((5, 3), "float32")
    np.add.at(expected, index, weights[..., None] * slopes[:, :, None])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_metrics_and_losses_compile_with_xla_where_there_is_xla():
    """Keras turns XLA on for TensorFlow on a GPU; on torch this asks for nothing more."""
    jit = keras.backend.backend() == "tensorflow"
    train = ks.data.Shapes("train", size=16, length=4)
    results = []
    for jit_compile in (False, jit):
        model = small_unet()
        model.compile(
            "sgd",
            ks.losses.CrossEntropy() + ks.losses.Dice(),
            metrics=[ks.metrics.MeanIoU(6)],
            jit_compile=jit_compile,
        )
        results.append(model.fit(train.batches(4), verbose=0).history)
    assert float(results[0]["loss"][0]) == pytest.approx(float(results[1]["loss"][0]), rel=1e-5)
    assert float(results[0]["mean_iou"][0]) == pytest.approx(float(results[1]["mean_iou"][0]))


def test_infer_equals_predict():
    model = small_unet()
    images = np.random.default_rng(0).random((3, 16, 16, 3), dtype="float32")
    logits = backend.infer(model, images)
    assert isinstance(logits, np.ndarray) and logits.shape == (3, 16, 16, 6)
    np.testing.assert_allclose(logits, model.predict(images, verbose=0), rtol=1e-5, atol=1e-6)


def test_infer_runs_a_method_of_a_model():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = small_unet()

        def doubled(self, x, training):
            return {"twice": 2 * self.inner(x, training=training)}

    model = Twice()
    images = np.random.default_rng(0).random((3, 16, 16, 3), dtype="float32")
    for count in (3, 2):
        found = backend.infer(model, images[:count], "doubled")["twice"]
        np.testing.assert_allclose(found, 2 * backend.infer(model.inner, images[:count]), rtol=1e-5)
        found += 1  # nobody else's memory
    gone = weakref.ref(model.inner)
    del model
    gc.collect()
    assert gone() is None


def test_infer_gives_bfloat16_as_predict_does():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    x = np.random.default_rng(0).random((4, 3), "float32")
    found = backend.infer(model, x)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    np.testing.assert_array_equal(found, model.predict(x, verbose=0))


def test_a_run_never_imports_the_other_framework(tmp_path, picture_folder):
    other = {"tensorflow": "torch", "torch": "tensorflow"}[keras.backend.backend()]
    code = (
        "import sys\n"
        "from keras_segen import runs\nfrom keras_segen.runs import training\n"
        "from keras_segen.tasks.segmentation import SegmentationTask\n"
        f"plan = SegmentationTask(data='folder:{picture_folder}', image_size=(16, 16),"
        " filters=(4, 8), batch_size=4, epochs=1)\n"
        f"training.train(plan, '{tmp_path}/run', verbose=0)\n"
        f"runs.evaluate('{tmp_path}/run', 'val')\n"
        f"print({other!r} in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_settings_are_plain_values():
    found = backend.settings()
    assert {"framework", "device", "mode", "compiler", "threads"} <= found.keys()
    assert all(isinstance(value, (str, int, float, bool)) for value in found.values())
    assert found["threads"] >= 1


def test_the_device_can_be_waited_for_and_asked():
    backend.synchronize()
    peak = backend.peak_device_memory()
    assert peak is None or peak > 0


def test_operations_are_listed_with_what_they_computed():
    x = ops.convert_to_tensor(np.array([[3.0, -4.0]], "float32"))
    with backend.operations() as found:
        ops.relu(ops.matmul(x, ops.convert_to_tensor(np.eye(2, dtype="float32"))))
    by_name = {each["name"].lower().removeprefix("aten."): each for each in found}
    product = by_name.get("mm", by_name.get("matmul"))
    assert product["shape"] == [1, 2] and product["norms"] == pytest.approx([7, 5])
    assert by_name["relu"]["norms"] == pytest.approx([3, 3])
    count = len(found)
    ops.relu(x)
    assert len(found) == count


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="TensorFlow's are only named")
def test_the_rounding_of_an_operation_is_that_from_float64():
    x = ops.convert_to_tensor(np.full((1, 1000), 0.1, "float32"))
    with backend.operations() as found:
        ops.sum(x * x)
    product, total = found
    assert product["name"] == "aten.mul" and total["name"] == "aten.sum"
    assert 0 < product["rounding"] < 2**-23
    assert total["rounding"] is not None and total["rounding"] < 1e-6


def test_double_precision_keeps_float64_and_ends():
    before = keras.backend.result_type("float64", "float32")
    with backend.double_precision():
        assert keras.backend.result_type("float64", "float32") == "float64"
        ones = ops.ones((2,), "float64")
        assert keras.backend.standardize_dtype(ops.mean(ones / 3).dtype) == "float64"
        assert float(ops.mean(ones / 3)) == 1 / 3
    assert keras.backend.result_type("float64", "float32") == before
