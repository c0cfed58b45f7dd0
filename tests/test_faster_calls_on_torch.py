"""How Keras on PyTorch goes from layer to layer, once it is made faster."""

import gc
import importlib.util
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen.layers import CropLike

if keras.backend.backend() != "torch":
    pytest.skip("on PyTorch only", allow_module_level=True)

import torch
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.models import functional as keras_functional
from keras.src.ops.symbolic_arguments import SymbolicArguments

from keras_segen import backend
from keras_segen.backend.faster import calls_on_torch
from keras_segen.backend.faster.layers_on_torch import keras_core
from keras_segen.backend.faster.probe import NotNeeded


@pytest.fixture(autouse=True)
def faster():
    ks.faster.apply()
    yield
    ks.faster.remove()


def test_variables_are_read_at_once_outside_of_scopes_only(monkeypatch):
    variable = keras.Variable([1.0, 2.0])
    asked = []
    monkeypatch.setattr(
        keras_core, "in_stateless_scope", lambda: asked.append(1) or in_stateless_scope()
    )
    assert variable.value is variable._value
    assert not asked
    with keras.StatelessScope() as scope:
        scope.add_update((variable, torch.tensor([3.0, 4.0])))
        assert variable.value.tolist() == [3.0, 4.0]
    for _ in range(2):
        with AutocastScope("float16"):
            assert variable.value.dtype == torch.float16
        keras.utils.clear_session()  # which puts another state in the place of Keras' own
    with keras.device("meta"):
        assert variable.value.device.type == "meta"
    assert len(asked) == 4
    with keras.StatelessScope():
        later = keras.Variable(lambda shape, dtype: torch.ones(shape), shape=(2,))
        with ThreadPoolExecutor() as threads:  # where there is no scope
            found = threads.submit(lambda: later.value.tolist()).result()
        assert found == later.value.tolist() == [1.0, 1.0]


def plain_model(x, **options):
    inputs = x
    x = layers.Conv2D(4, 3, padding="same", name="conv", **options)(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Concatenate(name="both")([x, inputs])
    x = layers.Dropout(0.5, seed=0, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(2, name="dense")(x))


@pytest.fixture
def checked(monkeypatch):
    """The names of the layers that were called by way of all of Keras' checks."""
    names = []
    original = keras.layers.Layer.__call__

    def call(self, *args, **kwargs):
        names.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Layer, "__call__", call)
    return names


@pytest.mark.parametrize("training", [True, False])
def test_plain_layers_are_called_directly_with_keras_results(training, checked):
    images = torch.rand(2, 6, 6, 3)

    def results():
        model = plain_model(keras.Input((6, 6, 3), name="images"))
        ks.initialize(model, seed=0)
        model(images[:1], training=False)  # the first call is always Keras'
        checked.clear()
        outputs = model(images, training=training)
        variables = [weight.value for weight in model.trainable_weights]
        gradients = torch.autograd.grad(outputs.square().sum(), variables)
        statistics = [weight.value for weight in model.non_trainable_weights]
        return list(checked), [outputs, *gradients, *statistics]

    names, ours = results()
    assert len(names) == training  # the model itself
    ks.faster.remove("layer_calls")
    names, theirs = results()
    assert len(names) == 6 + training
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def called_with_checks(checked, model, images=None, **options):
    images = torch.rand(2, 6, 6, 3) if images is None else images
    checked.clear()
    model(images, **{"training": False, **options})
    return [name for name in checked if name != model.name]


def test_what_needs_the_checks_gets_them(checked):
    class Own(layers.ReLU):
        pass

    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, Own(name="own")(layers.ReLU(name="plain")(inputs)))
    assert called_with_checks(checked, model) == ["own"]

    model = keras.Model(inputs, CropLike(name="crop")([inputs, inputs]))
    assert called_with_checks(checked, model) == []

    model = plain_model(inputs, dtype="mixed_bfloat16")
    assert "conv" in called_with_checks(checked, model)
    model = plain_model(inputs, activity_regularizer="l2")
    assert called_with_checks(checked, model) == ["conv"]
    assert len(model.losses) == 1

    model = plain_model(inputs)
    seen = []
    model.get_layer("relu").register_forward_hook(lambda *values: seen.append(values))
    assert called_with_checks(checked, model) == ["relu"]
    assert len(seen) == 1

    half = torch.rand(2, 6, 6, 3, dtype=torch.float64)
    model = keras.Model(inputs, layers.ReLU(name="relu")(inputs))
    assert called_with_checks(checked, model, half) == []  # the model casts it
    outer = keras.Sequential([keras.Input((6, 6, 3)), model])
    assert called_with_checks(checked, outer) == [model.name]  # and what is in it directly


def test_a_model_is_called_directly_for_a_prediction(checked):
    model = plain_model(keras.Input((6, 6, 3), name="images"))
    images = torch.rand(2, 6, 6, 3)
    assert not model._called
    expected = keras.layers.Layer.__call__(model, images, training=False)

    def ways(*args, **kwargs):
        checked.clear()
        torch.testing.assert_close(model(*args, **kwargs), expected, rtol=0, atol=0)
        return checked

    assert ways(images, training=False) == []
    for args, options in (
        ((images,), {}),
        ((images.double(),), {"training": False}),
        ((images.numpy(),), {"training": False}),
        ((images,), {"training": False, "mask": None}),
    ):
        assert ways(*args, **options)[0] == model.name
    with pytest.raises(ValueError, match="expected shape=.*6, 6, 3.*found shape=.*6, 5, 3"):
        model(images[:, :, :5], training=False)

    seen = []
    handle = model.register_forward_hook(lambda *values: seen.append(values))
    assert ways(images, training=False) == [model.name]
    assert len(seen) == 1
    handle.remove()
    assert ways(images, training=False) == []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *values: None)
    assert ways(images, training=False)[0] == model.name
    handle.remove()
    checked.clear()
    model(images, training=True)
    assert checked == [model.name]


def test_what_a_model_converts_is_converted():
    """Its input goes straight into the graph only as what the first layer takes."""

    def prediction(inputs, outputs, x):
        return keras.Model(inputs, outputs)(x, training=False)

    inputs = keras.Input((4, 4), name="images")
    images = torch.rand(2, 4, 4)
    doubled = 2 * images
    outputs = layers.Add()([inputs, inputs])
    for inside in (inputs, [inputs]):
        torch.testing.assert_close(prediction(inside, outputs, images), doubled)
    with pytest.warns(UserWarning, match="doesn't match the expected structure"):
        torch.testing.assert_close(prediction((inputs,), outputs, images), doubled)
    torch.testing.assert_close(prediction(inputs, outputs, images[..., None]), doubled)
    torch.testing.assert_close(prediction(inputs, [outputs], images), doubled)
    found = prediction(inputs, {"twice": outputs}, images)
    assert list(found) == ["twice"]
    found = prediction(inputs, [outputs, inputs], images)
    assert isinstance(found, list) and len(found) == 2

    labels = keras.Input((4,), dtype="int32")
    found = prediction(labels, ops.add(labels, labels), torch.full((2, 4), 1.5))
    assert found.dtype == torch.int32 and torch.all(found == 2)

    right = keras.Input((4, 4), name="right")
    with pytest.raises(ValueError, match="expects 2 named input"):
        prediction([inputs, right], layers.Add()([inputs, right]), images)


def test_a_layer_inside_of_a_layer_knows_that_it_predicts():
    class Inside(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = layers.Dropout(0.5)

        def call(self, x):
            return self.dropout(x)

    inputs = keras.Input((6,))
    model = keras.Model(inputs, Inside()(inputs))
    x = torch.ones(2, 6)
    torch.testing.assert_close(model(x, training=False), x)
    assert not torch.equal(model(x, training=True), x)


def test_masks_find_their_way_past_plain_layers(checked):
    inputs = keras.Input((6, 3))
    x = layers.Masking(name="masking")(inputs)
    x = layers.ReLU(name="relu")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D(name="mean")(x))
    sequence = torch.rand(1, 6, 3)
    sequence[:, 3:] = 0
    names = called_with_checks(checked, model, sequence)
    assert names == ["masking", "relu", "mean"]
    torch.testing.assert_close(model(sequence, training=False), sequence[:, :3].mean(1))


def branching_model():
    """Two inputs and outputs, tensors in lists, by keyword and twice, and a model inside."""
    left, right = keras.Input((6, 6, 3), name="left"), keras.Input((6, 6, 3), name="right")
    inner = keras.Model(left, [layers.Conv2D(3, 1)(left), layers.ReLU()(left)], name="inner")
    x, y = inner(right)
    twice = layers.Add()([x, x, torch.ones(2, 6, 6, 3)])
    scaled = ops.multiply(y, x2=3.0)
    both = layers.Concatenate()([twice, scaled, left])
    attended = layers.MultiHeadAttention(1, 2)(query=left, value=both, key=both)
    outputs = {"all": layers.Conv2D(2, 3)(both), "left": ops.split(attended, 3, axis=-1)[1]}
    return keras.Model([left, right], outputs, name="outer")


@pytest.mark.parametrize("training", [True, False, None])
def test_graphs_give_by_plan_what_keras_gives(training, monkeypatch):
    searched = []
    fill_in = SymbolicArguments.fill_in
    monkeypatch.setattr(
        SymbolicArguments, "fill_in", lambda *args: searched.append(args) or fill_in(*args)
    )
    images = [torch.rand(2, 6, 6, 3), torch.rand(2, 6, 6, 3)]
    model = branching_model()
    ks.initialize(model, seed=0)
    searched.clear()

    def results():
        outputs = model(images, training=training)
        variables = [weight.value for weight in model.trainable_weights]
        loss = sum(output.square().sum() for output in outputs.values())
        return [*outputs.values(), *torch.autograd.grad(loss, variables)]

    ours = [results(), results()]
    assert list(model(images)) == ["all", "left"]
    per_call = len(searched) // 3  # the addition, the multiplication and the split; the attention
    assert per_call in (3, 4) and len(searched) == 3 * per_call
    ks.faster.remove("graphs")
    theirs = results()
    assert len(searched) == 3 * per_call + 9  # each call of a layer or operation
    for found in ours:
        for each, expected in zip(found, theirs, strict=True):
            torch.testing.assert_close(each, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kept", [False, True])
def test_a_tensor_that_nothing_wants_any_more_is_let_go(kept):
    alive, outputs = [], []

    class Watch(layers.Layer):
        def call(self, x):
            alive.append(sum(output() is not None for output in outputs))
            result = x + 1.0
            outputs.append(weakref.ref(result))
            return result

    inputs = x = keras.Input((3,))
    steps = [x := Watch()(x) for _ in range(5)]
    model = keras.Model(inputs, [steps[0], x] if kept else x)
    alive.clear()
    outputs.clear()
    with torch.no_grad():
        results = model(torch.zeros(2, 3), training=False)
    first = [1.0] if kept else []
    assert [float(each[0, 0]) for each in keras.tree.flatten(results)] == [*first, 5.0]
    assert alive == ([0, 1, 2, 2, 2] if kept else [0, 1, 1, 1, 1])


def test_a_missing_tensor_is_told_by_keras():
    with pytest.raises(ValueError, match="left"):
        branching_model()({"right": torch.rand(2, 6, 6, 3)})


def test_an_optional_input_may_be_none():
    class First(layers.Layer):
        def call(self, x, y=None):
            return x if y is None else y

        def compute_output_shape(self, x_shape, y_shape=None):
            return x_shape

    left = keras.Input((3,), name="left")
    right = keras.Input((3,), name="right", optional=True)
    model = keras.Model([left, right], First()(left, right))
    x = torch.rand(2, 3)
    torch.testing.assert_close(model([x, None]), x)
    torch.testing.assert_close(model([x, x + 1]), x + 1)
    torch.testing.assert_close(model([x, None]), x)


def test_the_plan_of_a_model_goes_with_it():
    model = branching_model()
    model([torch.rand(2, 6, 6, 3)] * 2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "name, fast",
    [
        ("variables", (keras_core.Variable, "value", property(lambda self: self._value))),
        ("graphs", (SymbolicArguments, "fill_in", None)),
        ("layer_calls", (layers.ReLU, "__call__", lambda self, x: x)),
        ("model_calls", (keras_functional.Functional, "__call__", lambda self, x, **options: x)),
    ],
)
def test_a_keras_that_is_fast_itself_is_left_alone(name, fast, monkeypatch):
    ks.faster.remove()
    assert getattr(calls_on_torch, name)()
    owner, attribute, value = fast
    if name == "graphs":
        value = lambda_of_another_name
    monkeypatch.setattr(owner, attribute, value)
    with pytest.raises(NotNeeded):
        getattr(calls_on_torch, name)()


def lambda_of_another_name(arguments, found):
    return tuple(found.values()), {}


def test_variables_in_another_state_are_left_alone(monkeypatch):
    """Where a scope is no longer seen at once, a variable must not be read at once."""
    ks.faster.remove()
    name = "symbolic_device"
    monkeypatch.setattr(keras, "device", lambda _: keras.name_scope(name))
    with pytest.raises(RuntimeError, match="does not keep its torch_device where it was kept"):
        calls_on_torch.variables()


def exported(model, images):
    program = torch.export.export(model, (images,), strict=False)
    return program.module()(images)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of tracing
@pytest.mark.parametrize(
    "run",
    [
        exported,
        lambda model, images: torch.jit.trace(model, (images,), check_trace=False)(images),
        lambda model, images: model.stateless_call(
            [weight.value for weight in model.trainable_variables],
            [weight.value for weight in model.non_trainable_variables],
            images,
        )[0],
    ],
    ids=["export", "trace", "stateless"],
)
def test_models_are_traced_with_the_same_results(run):
    model = plain_model(keras.Input((6, 6, 3)))
    model.eval()
    images = torch.rand(2, 6, 6, 3)
    with torch.no_grad():
        ours = run(model, images)
        with ks.faster.stock():
            torch.testing.assert_close(ours, model(images, training=False))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_gives_the_same_results():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, activation="relu")(inputs))
    x = torch.rand(2, 4)
    with torch.no_grad():
        ours = torch.compile(model, backend="eager")(x, training=False)
        with ks.faster.stock():
            torch.testing.assert_close(ours, model(x, training=False))


def test_a_model_that_only_predicted_can_be_exported(tmp_path):
    """Keras refuses to export a model that was never called, and asks `_called` for it."""
    model = plain_model(keras.Input((6, 6, 3)))
    model.predict(torch.rand(1, 6, 6, 3), verbose=0)
    assert model._called
    loaded_path = tmp_path / "model.keras"
    backend.save_model(model, loaded_path)
    loaded = keras.models.load_model(loaded_path)
    backend.infer(loaded, torch.rand(1, 6, 6, 3).numpy())
    assert loaded._called
    if importlib.util.find_spec("onnxscript"):
        loaded.export(tmp_path / "model.onnx", format="onnx", verbose=False)


def test_a_cleared_session_and_another_device_go_on():
    keras.utils.clear_session()
    model = plain_model(keras.Input((6, 6, 3)))
    images = torch.rand(2, 6, 6, 3)
    expected = model(images, training=False)
    keras.utils.clear_session()
    torch.testing.assert_close(model(images, training=False), expected)
    with keras.device("meta"):
        model = plain_model(keras.Input((6, 6, 3)))
        outputs = model(torch.rand(2, 6, 6, 3, device="meta"), training=False)
    assert outputs.device.type == "meta" and outputs.shape == expected.shape
