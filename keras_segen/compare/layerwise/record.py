"""Records what a network computes on this backend, layer by layer and step by step.

Everything is computed twice, in float32 and in float64, from the same weights and batches;
`divergence.py` explains why. float64 is only for this. A training gains nothing from it: rounding
changes far less than another seed, and float64 takes twice the memory and several times the time,
on a GPU up to 64 times.
"""

import contextlib
import inspect
import zlib

import keras
import numpy as np
from keras import ops

from keras_segen import backend
from keras_segen.compare.layerwise.divergence import HIGH, LOW, Record
from keras_segen.data.tree import checksum
from keras_segen.determinism import rng
from keras_segen.segmentation.fold import as_functional

SAMPLE = 16_384  # values kept of an array; enough to hold a fault in one value of a thousand
STEP_SAMPLE = 1_024  # of each weight, after each step
NEAREST_GATES = 1_024  # the open gates closest to closing, of each ReLU


def record(model, batches, compile_model, tell=lambda text: None):
    """Trains copies of a model for a few steps and records what each layer computed.

    The first step is recorded layer by layer: outputs in inference and in training mode,
    gradients by the weights and by the outputs, weights and statistics after the step. All steps
    have summaries. Both backends compute eagerly, one operation after the other.

    Args:
        model: a functional or sequential `keras.Model` in float32 with all its weights. It is
            not changed.
        batches: list of pairs `(images, target)`, NumPy arrays or dicts of them as target, one for
            each step.
        compile_model: `callable(model)`, compiles a copy with optimizer and loss. Called once in
            each precision; the metrics are not used.
        tell: called with a line of text before each part.

    Returns:
        A `keras_segen.compare.layerwise.divergence.Record`.

    Raises:
        ValueError: the model has random layers, which draw other numbers on each backend, or no
            graph of layers; or there are no batches.
    """
    if not batches:
        raise ValueError("There are no batches: one for each step is needed, at least one.")
    for name, layer in leaves(as_functional(model)):
        if getattr(layer, "seed_generator", None) is not None:
            raise ValueError(
                f"Layer {name!r} ({type(layer).__name__}) draws random numbers, which differ "
                "between the backends: build the model without it (dropout=0)."
            )
    found = Record(
        backend=keras.backend.backend(),
        layers=[],
        batches=[checksum(*batch) for batch in batches],
        arrays={},
    )
    for precision in (LOW, HIGH):
        with computing_in(precision):
            copy = copy_in(model, precision)
            compile_model(copy)
            if precision == HIGH:
                _make_exact(copy.optimizer)
            _follow(found, copy, batches, precision, tell)
    return found


def _make_exact(optimizer):
    """Converts an optimizer's floats to NumPy's, since TensorFlow rounds Python's to float32."""
    for name, value in list(vars(optimizer).items()):
        if type(value) is float:
            setattr(optimizer, name, np.float64(value))


@contextlib.contextmanager
def computing_in(precision):
    """Context with a default precision for Keras, such as that of learning rates and losses."""
    keras.config.dtype_policy()  # made of floatx when it is first asked for, and kept then
    before = keras.config.floatx()
    keras.config.set_floatx(precision)
    try:
        with backend.double_precision() if precision == HIGH else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_floatx(before)


def copy_in(model, precision):
    """Returns a copy of a model, with its weights, whose layers all compute in a precision."""
    pairs = []

    def copy(layer):
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = precision
        new = type(layer).from_config(config)
        pairs.append((layer, new))
        return new

    with backend.without_the_other_framework():
        model = as_functional(model)
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=precision, name=x.name), model.input
        )
        copied = keras.models.clone_model(
            model, input_tensors=inputs, clone_function=copy, recursive=True
        )
    for old, new in pairs:
        if isinstance(old, keras.Layer):
            new.set_weights(old.get_weights())
    return copied


def leaves(model, prefix=""):
    """Yields (name, layer or operation) of a network and of the networks inside it."""
    inside = model.layers if isinstance(model, keras.Sequential) else model.operations
    for operation in inside:
        name = f"{prefix}{operation.name}"
        if isinstance(operation, keras.Sequential) or hasattr(operation, "operations"):
            yield from leaves(operation, f"{name}/")
        elif not isinstance(operation, keras.layers.InputLayer):
            yield name, operation


@contextlib.contextmanager
def watching(named):
    """Collects the outputs of layers while they run: a list of (name, layer, tensor), in order."""
    seen = []

    def watched(name, layer, call):
        def replacement(*args, **kwargs):
            outputs = call(*args, **kwargs)
            calls = sum(each is layer for _, each, _ in seen)
            for tensor in keras.tree.flatten(outputs):
                if keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
                    seen.append((f"{name}:{calls}" if calls else name, layer, tensor))
                    calls += 1
            return outputs

        return replacement

    for name, layer in named:
        layer.call = watched(name, layer, layer.call)
    try:
        yield seen
    finally:
        for _, layer in named:
            del layer.call  # the class's own shows again


def _follow(found, model, batches, precision, tell):
    """Trains the model on the batches and adds what it computes to the record."""
    arrays, first = found.arrays, precision == LOW
    named = list(leaves(model))

    def keep(kind, name, value):
        arrays[f"{precision}/{kind}/{name}"] = sample(_numpy(value), name, SAMPLE)

    tell(f"every layer in inference, {precision}")
    with watching(named) as seen:
        model(batches[0][0], training=False)
    for name, _, tensor in seen:
        keep("inference", name, tensor)
    weights = {}  # each weight's id -> its name, under that of the first layer that has it
    for name, layer in named:
        for weight in getattr(layer, "weights", []):
            weights.setdefault(id(weight), _unique(f"{name}/{weight.name}", weights.values()))
    if first:
        found.layers = [_layer_record(name, layer, tensor, weights) for name, layer, tensor in seen]
    del seen

    steps = {"loss": [], "gradient_norm": [], "update_norm": [], "weights": [], "statistics": []}
    trainable = model.trainable_variables
    statistics = [
        variable
        for variable in model.non_trainable_variables
        if keras.backend.is_float_dtype(variable.dtype) and id(variable) in weights
    ]
    before = [_numpy(variable) for variable in trainable]
    for k, (images, target) in enumerate(batches):
        tell(f"step {k + 1} of {len(batches)}, {precision}")
        seen, loss, by_variables, by_tensors = _step(model, images, target, named if k == 0 else [])
        for (name, layer, tensor), gradient in zip(seen, by_tensors, strict=True):
            keep("training", name, tensor)
            if gradient is not None:
                keep("output_gradient", name, gradient)
            if first and _limit(layer) is not None:
                _keep_gates(arrays, name, layer, _numpy(tensor))
        gradients = [
            None if gradient is None else _numpy(gradient).astype("float64")
            for gradient in by_variables
        ]
        after = [_numpy(variable) for variable in trainable]
        if k == 0:
            for variable, gradient in zip(trainable, gradients, strict=True):
                if gradient is not None:
                    keep("gradient", weights[id(variable)], gradient)
            for kind, variables in (("weights", trainable), ("statistics", statistics)):
                for variable in variables:
                    keep(kind, weights[id(variable)], variable)
        steps["loss"].append(float(loss))
        steps["gradient_norm"].append(_norm(g for g in gradients if g is not None))
        moved = zip(before, after, strict=True)
        steps["update_norm"].append(_norm(y.astype("float64") - x for x, y in moved))
        for kind, variables in (("weights", trainable), ("statistics", statistics)):
            parts = [
                sample(_numpy(variable), weights[id(variable)], STEP_SAMPLE)
                for variable in variables
            ]
            if parts:
                steps[kind].append(np.concatenate(parts))
        before = after
    for kind, values in steps.items():
        if values:
            arrays[f"{precision}/steps/{kind}"] = np.stack(values)


def _step(model, images, target, named):
    """One training step; returns the outputs of the named layers, the loss and the gradients."""
    seen = []

    def loss_fn():
        with watching(named) as found:
            outputs = model(images, training=True)
        seen.extend(found)
        y = keras.tree.map_structure(ops.convert_to_tensor, target)
        loss = model.compute_loss(x=images, y=y, y_pred=outputs)
        return loss, [tensor for _, _, tensor in found]

    trainable = model.trainable_variables
    loss, tensors, by_variables, by_tensors = backend.gradients(loss_fn, trainable)
    pairs = [pair for pair in zip(by_variables, trainable, strict=True) if pair[0] is not None]
    model.optimizer.build(trainable)
    model.optimizer.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
    seen = [(name, layer, x) for (name, layer, _), x in zip(seen, tensors, strict=True)]
    return seen, loss, by_variables, by_tensors


def _layer_record(name, layer, tensor, weights):
    """The entry of a layer in a record, without its arrays."""
    # A layer that is called again has another name; its weights belong to the first.
    own = [weight for weight in getattr(layer, "weights", []) if _is_at(weights, weight, name)]
    settings, default = _layer_settings(layer)
    return {
        "name": name,
        "type": type(layer).__name__,
        "settings": settings,
        "default": default,
        "shape": [int(size) for size in tensor.shape],
        "weights": [weights[id(weight)].removeprefix(f"{name}/") for weight in own],
        "start": [zlib.crc32(np.ascontiguousarray(_numpy(weight))) for weight in own],
    }


def _is_at(weights, weight, name):
    return weights[id(weight)].rpartition("/")[0] == name


def _layer_settings(layer):
    """The plain settings of a layer: a dict, and a list of those that are defaults."""
    with backend.without_the_other_framework():
        config = layer.get_config()
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if key not in ("name", "trainable", "dtype") and _is_plain(value)
    }
    default = []
    for key, parameter in inspect.signature(type(layer).__init__).parameters.items():
        value = parameter.default
        value = list(value) if isinstance(value, tuple) else value
        if key in settings and value is not parameter.empty and settings[key] == value:
            default.append(key)
    # Defaults that are None in the signature, as Keras saves them.
    usual = {"data_format": "channels_last", "activation": "linear"}
    default += [key for key, value in usual.items() if settings.get(key) == value]
    return settings, default


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, (bool, int, float, str))


def _limit(layer):
    """The maximum of a ReLU, infinity without one; None for another layer."""
    activation = getattr(layer, "activation", None)
    if isinstance(layer, keras.layers.ReLU):
        return np.inf if layer.max_value is None else layer.max_value
    if activation is keras.activations.relu or type(layer).__name__ in ("Relu", "ReLU"):
        return np.inf
    if activation is keras.activations.relu6 or type(layer).__name__ == "Relu6":
        return 6.0
    return None


def _keep_gates(arrays, name, layer, outputs):
    """Records which gates of a ReLU are open, and how far the nearest are from closing."""
    outputs = outputs.ravel()
    margins = np.minimum(outputs, _limit(layer) - outputs)
    opened = np.flatnonzero(margins > 0)
    if len(opened) > NEAREST_GATES:
        nearest = np.argpartition(margins[opened], NEAREST_GATES)[:NEAREST_GATES]
        near = np.sort(opened[nearest])
    else:
        near = opened
    arrays[f"{LOW}/gates/{name}"] = np.packbits(margins > 0)
    arrays[f"{LOW}/near/{name}"] = near
    arrays[f"{LOW}/margin/{name}"] = margins[near]


def sample(array, name, count):
    """Returns at most `count` values of an array, the same places for the same name and size."""
    array = array.ravel()
    if array.size <= count:
        return array
    return array[np.sort(rng("parity", name).integers(array.size, size=count))]


def _unique(name, taken):
    return next(
        candidate
        for number in range(1, 10_000)
        if (candidate := name if number == 1 else f"{name}_{number}") not in set(taken)
    )


def _norm(arrays):
    return float(np.sqrt(sum(float(np.sum(np.square(array, dtype="float64"))) for array in arrays)))


def _numpy(value):
    return np.array(ops.convert_to_numpy(value))
