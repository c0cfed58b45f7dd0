"""Replacing parts of Keras, and restoring them; what each does is tested in test_faster_*.py."""

import importlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.models import functional

import keras_segen as ks
from keras_segen import backend
from keras_segen.backend.faster.probe import NotNeeded
from keras_segen.cli.common import use
from keras_segen.runs import training
from keras_segen.tasks.segmentation import SegmentationTask

HERE = keras.backend.backend()
MODULE = {"tensorflow": "on_tensorflow", "torch": "layers_on_torch"}[HERE]
NAMES = [name for name in ks.faster.NAMES if name != "freed_memory"]

# Every function of Keras that is replaced.
PARTS = {
    "tensorflow": """
        keras.layers.BatchNormalization.call keras.optimizers.Adam.update_step
    """,
    "torch": """
        nn._transpose_spatial_inputs nn.softmax nn.log_softmax
        core.Variable._initialize core.Variable.value
        BaseConv.call BaseConvTranspose.call keras.layers.Dense.call
        keras.layers.BatchNormalization.call torch_adam.Adam._parallel_update_step
        function.Function._run_through_graph functional.Functional.__call__
    """,
}[HERE].split()
if HERE == "torch":
    told = hasattr(functional, "operation_fn")  # in Keras 3.15
    PARTS.append("functional.operation_fn" if told else "functional.Functional._run_through_graph")

LOOK = """
import importlib, inspect, sys
import keras
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from keras.src.models import functional
from keras.src.ops import function
if keras.backend.backend() == "torch":
    try:
        from keras.src.backend.torch import core, nn
    except ImportError:  # Keras 3.16
        from keras.src.backend.torch.ops import core, nn
    from keras.src.backend.torch.optimizers import torch_adam
def found():
    parts = [eval(part.rpartition(".")[0]) for part in PARTS]
    names = [part.rpartition(".")[2] for part in PARTS]
    return [inspect.getattr_static(part, name) for part, name in zip(parts, names)]
def unchanged():
    return [now is then for now, then in zip(found(), stock)]
stock = found()
"""


def python(code):
    return subprocess.run(
        [sys.executable, "-c", f"PARTS = {PARTS}\n{LOOK}\n{code}"], capture_output=True, text=True
    )


def test_importing_replaces_nothing_and_removing_restores_all():
    done = python(
        "import keras_segen as ks, keras_segen.losses, keras_segen.segmentation, keras_segen.runs\n"
        "import keras_segen.backend, keras_segen.runs.training, keras_segen.machine as machine\n"
        "assert all(unchanged()), unchanged()\n"
        "assert machine.freed_memory == 'as the system does'\n"
        "ks.faster.status()\n"
        "assert all(unchanged()), unchanged()\n"
        "ks.faster.apply()\n"
        "assert not any(unchanged()), unchanged()\n"
        "assert set(ks.faster.status().values()) == {'active'}, ks.faster.status()\n"
        "ks.faster.remove()\n"
        "assert all(unchanged()), unchanged()\n"
        "for layer in (keras.layers.ReLU(), keras.layers.Dense(1)):\n"
        "    assert '_1' not in layer.name\n"
        "assert keras.Input((1,)).name == 'keras_tensor'\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def restored():
    yield
    ks.faster.remove()


def active():
    return [name for name in ks.faster.active() if name != "freed_memory"]


@pytest.mark.parametrize("chosen, expected", [("1", []), ("0", NAMES)])
def test_the_commands_apply_unless_stock_is_chosen(chosen, expected, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_STOCK", chosen)
    ks.faster.apply_by_default()
    assert active() == expected


def test_applying_twice_nesting_and_any_order():
    first, second, last = NAMES[0], NAMES[1], NAMES[-1]
    call = layers.BatchNormalization.call
    ks.faster.apply(*NAMES)
    ks.faster.apply(*NAMES)
    assert active() == NAMES
    with ks.faster.stock():
        assert active() == [] and layers.BatchNormalization.call is call
        with ks.faster.stock():
            ks.faster.apply(second)
            assert active() == [second]
        assert active() == []
        ks.faster.apply(first)
    assert active() == NAMES and layers.BatchNormalization.call is not call
    ks.faster.remove(last, first)
    assert active() == NAMES[1:-1]
    ks.faster.apply(last)
    ks.faster.remove(last)
    ks.faster.remove(last)
    with pytest.raises(KeyError), ks.faster.stock():
        raise KeyError
    assert active() == NAMES[1:-1]
    ks.faster.remove()
    assert active() == [] and layers.BatchNormalization.call is call


def test_what_is_active_is_said(monkeypatch):
    monkeypatch.setattr(ks.faster.machine, "freed_memory", "as the system does")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert ks.faster.summary() == "none (Keras as it ships)"
    ks.faster.apply("adam")
    assert ks.faster.summary() == backend.settings()["replacements"] == "adam"
    assert ks.faster.status()["adam"] == "active"
    assert ks.faster.status()["batch_normalization"] == "not applied"
    ks.faster.apply()
    said = "not possible: the environment sets MALLOC_ARENA_MAX"
    assert ks.faster.status()["freed_memory"] == said
    assert ks.faster.summary() == "all but freed_memory not possible"
    assert list(ks.faster.costs()) == NAMES
    assert all(text.startswith("Keras ") for text in ks.faster.costs().values())


def test_wrong_names_are_refused():
    for change in (ks.faster.apply, ks.faster.remove):
        with pytest.raises(ValueError, match=f"'addam' is no replacement on {HERE}; .*adam"):
            change("adam", "addam")
    assert active() == []
    with pytest.raises(ValueError, match="freed_memory cannot be undone"):
        ks.faster.remove("freed_memory")


def test_what_somebody_else_replaced_is_left_alone(monkeypatch):
    kind = layers.BatchNormalization
    stock = kind.call

    def call(self, inputs, **options):
        return stock(self, inputs, **options)

    ks.faster.status()  # which looks at Keras
    with monkeypatch.context() as patch:
        patch.setattr(kind, "call", call)
        with pytest.raises(RuntimeError, match="BatchNormalization.call was replaced by somebody"):
            ks.faster.apply(*NAMES)
        assert active() == [] and kind.call is call
    ks.faster.apply(*NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "call", call)
        with pytest.raises(RuntimeError, match="BatchNormalization.call was replaced by somebody"):
            ks.faster.remove()
        assert active() == NAMES and kind.call is call


@pytest.fixture
def another_keras(monkeypatch):
    """Looks at Keras anew, before and after."""
    ks.faster._find.cache_clear()
    monkeypatch.setattr(ks.faster, "_told", set())
    yield monkeypatch
    monkeypatch.undo()
    ks.faster.remove()
    ks.faster._find.cache_clear()


def test_what_another_keras_does_not_allow_is_told_once(another_keras):
    def gone():
        raise AttributeError("Keras has no such room")

    def fast():
        raise NotNeeded("Keras is fast")

    module = importlib.import_module(f"keras_segen.backend.faster.{MODULE}")
    another_keras.setattr(module, "batch_normalization", gone)
    another_keras.setattr(module, "adam", fast)
    another_keras.setattr(keras, "__version__", "3.99.0")
    with pytest.warns(UserWarning) as told:
        ks.faster.apply()
        ks.faster.apply()
    assert [str(warning.message) for warning in told] == [
        "keras_segen.faster knows Keras 3.15, 3.16, and this is 3.99.0: what still seems slow is "
        "replaced, untested.",
        "keras_segen cannot replace batch_normalization in Keras 3.99.0: Keras has no such room",
    ]
    assert told[0].filename == told[1].filename == __file__
    assert ks.faster.status()["batch_normalization"] == "not possible: Keras has no such room"
    assert ks.faster.status()["adam"] == "not needed: Keras is fast"
    assert ks.faster.summary() == "all but batch_normalization not possible, adam not needed"


def test_an_older_keras_and_one_with_other_rooms_are_told(another_keras):
    another_keras.setattr(keras, "__version__", "3.14.1")
    assert {ks.faster.status()[name] for name in NAMES} == {
        "not possible: Keras 3.14.1 is older than 3.15"
    }
    another_keras.setattr(keras, "__version__", "3.16.0")
    another_keras.setitem(sys.modules, f"keras_segen.backend.faster.{MODULE}", None)
    ks.faster._find.cache_clear()
    said = "not possible: import of keras_segen.backend.faster"
    assert ks.faster.status()["adam"].startswith(said)


def train_and_predict(model=None):
    """Losses, weights and a prediction, after some steps of a small model."""
    generator = np.random.default_rng(0)
    images = generator.random((4, 9, 10, 3), dtype="float32")
    masks = generator.integers(0, 3, (4, 9, 10))
    if model is None:
        model = small_model()
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-3), ks.losses.CrossEntropy())
    losses = [float(model.train_on_batch(images, masks)) for _ in range(3)]
    return [losses, *model.get_weights(), model.predict(images, verbose=0)]


def small_model():
    inputs = keras.Input((9, 10, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = skip = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([skip, layers.Reshape((1, 1, 4))(x)])
    x = layers.Conv2DTranspose(3, 4, 2, padding="same")(x)
    model = keras.Model(inputs, layers.Cropping2D(((0, 1), (0, 0)))(x))
    ks.initialize(model, seed=0)
    return model


@pytest.fixture(scope="module")
def expected():
    return train_and_predict()


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


ALL_BUT_ONE = [tuple(name for name in NAMES if name != one) for one in NAMES]
SUBSETS = sorted({*((name,) for name in NAMES), *ALL_BUT_ONE, tuple(NAMES)})


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_every_part_works_by_itself_and_without_it(names, expected):
    ks.faster.apply(*names)
    assert_same(train_and_predict(), expected)


def test_models_from_before_go_on(expected):
    model = small_model()
    ks.faster.apply()
    assert_same(train_and_predict(model), expected)
    with ks.faster.stock():
        ks.initialize(model, seed=0)
        assert_same(train_and_predict(model), expected)
    model = small_model()
    ks.faster.remove()
    assert_same(train_and_predict(model), expected)


@pytest.mark.once
@pytest.mark.parametrize("stock", [False, True])
def test_a_run_writes_down_what_was_active(stock, picture_folder, tmp_path, monkeypatch, read_json):
    monkeypatch.setenv("KERAS_SEGEN_STOCK", "0")
    monkeypatch.setattr(ks.faster.machine, "freed_memory", "as the system does")
    use(None, stock)
    task = SegmentationTask(
        model="unet",
        data=f"folder:{picture_folder}",
        image_size=(16, 16),
        filters=(2, 4),
        batch_size=4,
        epochs=1,
    )
    history = training.train(task, tmp_path / "run", verbose=0)
    assert np.isfinite(history["loss"]).all()
    start = read_json(tmp_path / "run" / "run.json")["starts"][0]
    assert start["settings"]["replacements"] == ("none (Keras as it ships)" if stock else "all")
    assert set(start["replacements"].values()) == {"not applied" if stock else "active"}
