"""Records what a network computes on this backend, layer by layer and step by step.

Everything is computed twice, in float32 and in float64, from the same weights and batches;
`divergence.py` explains why. float64 is only for this. A training gains nothing from it: rounding
changes far less than another seed, and float64 takes twice the memory and several times the time,
on a GPU up to 64 times.
"""

import collections
import contextlib
import dataclasses
import functools
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
from keras_segen.tasks.layerwise import Layerwise

SAMPLE = 16_384  # values kept of an array; enough to hold a fault in one value of a thousand
STEP_SAMPLE = 1_024  # of each weight, after each step
NEAREST_GATES = 1_024  # the open gates closest to closing, of each ReLU


def record(model, batches, compile_model, subject=None, tell=lambda text: None):
    """Trains copies of a model for a few steps and records what each layer computed.

    The first step is recorded layer by layer: outputs in inference and in training mode,
    gradients by the weights, weights and statistics after the step. All steps have summaries.
    Both backends compute eagerly, one operation after the other.

    Args:
        model: a `keras.Model` in float32 with all its weights. It is not changed.
        batches: list of `(images, target)`, NumPy arrays or dicts of them as target, with or
            without sample weights as a third, one for each step.
        compile_model: `callable(model)`, compiles a copy with optimizer and loss. Called once in
            each precision.
        subject: a `keras_segen.tasks.layerwise.Layerwise`, such as a task: which networks the
            model has. None for a model that is one itself.
        tell: called with a line of text before each part.

    Returns:
        A `keras_segen.compare.layerwise.divergence.Record`.

    Raises:
        ValueError: the model has random layers, which draw other numbers on each backend, or no
            graph of layers; or there are no batches.
    """
    if not batches:
        raise ValueError("There are no batches: one for each step is needed, at least one.")
    subject = subject or Layerwise()
    for part, network in subject.parts(model).items():
        for name, layer in leaves(as_functional(network), _prefix(part)):
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
        versions={
            "framework": backend.settings()["framework"],
            "device": backend.settings()["device"],
            "keras": keras.__version__,
        },
    )
    for precision in (LOW, HIGH):
        with computing_in(precision):
            copy = subject.copy_model(model, functools.partial(copy_in, precision=precision))
            compile_model(copy)
            if precision == HIGH:
                for optimizer in _optimizers(copy):
                    _make_exact(optimizer)
            _follow(found, copy, batches, precision, subject, tell)
    return found


def _prefix(part):
    return f"{part}/" if part else ""


def _optimizers(model):
    """The optimizers that move the weights of a model: its own, and those that this one holds."""
    candidates = [model.optimizer, *vars(model.optimizer).values()]
    return [each for each in candidates if isinstance(each, keras.optimizers.Optimizer)]


def _make_exact(optimizer):
    """Converts floats to NumPy's, also of a schedule: TensorFlow rounds Python's to float32."""
    for name, value in list(vars(optimizer).items()):
        if type(value) is float:
            setattr(optimizer, name, np.float64(value))
        elif isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
            _make_exact(value)


@contextlib.contextmanager
def computing_in(precision):
    """Context with a default precision for Keras, such as that of learning rates and losses."""
    policy = keras.config.dtype_policy()  # made of floatx when it is first asked for, and kept
    before = keras.config.floatx()
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    try:
        with backend.double_precision() if precision == HIGH else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def copy_in(model, precision):
    """Returns a copy of a network, with its weights, whose layers all compute in a precision."""
    pairs = []

    def copy(layer):
        new = type(layer).from_config(_config_in(precision, layer.get_config()))
        pairs.append((layer, new))
        return new

    def copy_input(x):
        dtype = precision if keras.backend.is_float_dtype(x.dtype) else x.dtype
        return keras.Input(batch_shape=x.shape, dtype=dtype, name=x.name)

    with backend.without_the_other_framework():
        model = as_functional(model)
        copied = keras.models.clone_model(
            model,
            input_tensors=keras.tree.map_structure(copy_input, model.input),
            clone_function=copy,
            recursive=True,
        )
    for old, new in pairs:
        if isinstance(old, keras.Layer):
            new.set_weights(old.get_weights())
    return copied


def _config_in(precision, config):
    """The configuration of a layer, and of a layer within it, with another dtype."""
    config = {
        key: {**value, "config": _config_in(precision, value["config"])}
        if isinstance(value, dict) and isinstance(value.get("config"), dict)
        else value
        for key, value in config.items()
    }
    return {**config, "dtype": precision} if "dtype" in config else config


def leaves(model, prefix=""):
    """Yields (name, layer or operation) of a network and of the networks inside it."""
    inside = model.layers if isinstance(model, keras.Sequential) else model.operations
    for operation in inside:
        name = f"{prefix}{operation.name}"
        if isinstance(operation, keras.Sequential) or hasattr(operation, "operations"):
            yield from leaves(operation, f"{name}/")
        elif not isinstance(operation, keras.layers.InputLayer):
            yield name, operation


@dataclasses.dataclass
class Seen:
    """One output of a layer, while a model runs.

    Args:
        name: str, with `:1` behind it for the layer's second output, and so on.
        layer: the layer or operation; for an input of one of several networks its `InputLayer`.
        values: array, what came out: a copy, since a weight that comes out moves with the step.
        sources: list of the names of what went in; None for what no layer put out.
        shapes: list of the shapes of what went in.
        turn: int, how many updates of weights came before in this step.
        operations: list of dicts as in `backend.operations`.
    """

    name: str
    layer: object
    values: np.ndarray
    sources: list
    shapes: list
    turn: int
    operations: list


@contextlib.contextmanager
def watching(networks, updates=(), with_operations=False):
    """Collects what the layers of networks put out while they run: a list of `Seen`, in order.

    Args:
        networks: dict of name -> functional `keras.Model`, as in `Layerwise.parts`.
        updates: list that has one more entry after each update of weights.
        with_operations: bool, whether to record the operations of the framework too.
    """
    seen, names, counts = [], {}, collections.Counter()
    kept = []  # tensors whose ids are in `names`
    watch_operations = backend.operations if with_operations else contextlib.nullcontext

    def add(name, layer, tensors, inputs, operations):
        inputs = [x for x in keras.tree.flatten(inputs) if hasattr(x, "dtype")]
        sources = [names.get(id(x)) for x in inputs]
        shapes = [[int(size) for size in x.shape] for x in inputs]
        for tensor in keras.tree.flatten(tensors):
            if keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
                full = f"{name}:{counts[name]}" if counts[name] else name
                counts[name] += 1
                seen.append(
                    Seen(full, layer, _numpy(tensor), sources, shapes, len(updates), operations)
                )
                names[id(tensor)] = full
                kept.append(tensor)

    def watched(name, layer, call):
        def replacement(*args, **kwargs):
            with watch_operations() as operations:
                outputs = call(*args, **kwargs)
            add(name, layer, outputs, (args, kwargs), operations or [])
            return outputs

        return replacement

    def watched_inputs(part, network, call):
        def replacement(inputs, *args, **kwargs):
            for x, place in zip(keras.tree.flatten(inputs), network.inputs, strict=True):
                if part:
                    add(f"{part}/{place.name}", network.get_layer(place.name), x, [x], [])
                else:
                    names[id(x)] = place.name
                    kept.append(x)
            return call(inputs, *args, **kwargs)

        return replacement

    replaced = []
    for part, network in networks.items():
        replaced.append((network, watched_inputs(part, network, network.call)))
        for name, layer in leaves(network, _prefix(part)):
            replaced.append((layer, watched(name, layer, layer.call)))
    for layer, call in replaced:
        layer.call = call
    try:
        yield seen
    finally:
        for layer, _ in replaced:
            del layer.call  # the class's own shows again


@contextlib.contextmanager
def watching_updates(optimizers):
    """Collects the gradients that optimizers get: a list of dicts, id of a variable -> array."""
    updates = []

    def watched(apply):
        def replacement(grads, variables=None):
            pairs = [pair for pair in zip(grads, variables, strict=True) if pair[0] is not None]
            updates.append({id(v): _numpy(gradient).astype("float64") for gradient, v in pairs})
            return apply([gradient for gradient, _ in pairs], [v for _, v in pairs])

        return replacement

    for optimizer in optimizers:
        optimizer.apply = watched(optimizer.apply)
    try:
        yield updates
    finally:
        for optimizer in optimizers:
            del optimizer.apply


def _follow(found, model, batches, precision, subject, tell):
    """Trains the model on the batches and adds what it computes to the record."""
    arrays, first = found.arrays, precision == LOW
    networks, optimizers = subject.parts(model), _optimizers(model)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)

    def keep(kind, name, value):
        arrays[f"{precision}/{kind}/{name}"] = sample(_numpy(value), name, SAMPLE)

    tell(f"every layer in inference, {precision}")
    with watching(networks) as seen:
        subject.run_layers(model, *_tensors(batches[0][:2], precision))
    for each in seen:
        keep("inference", each.name, each.values)
    del seen
    weights = _names_of_weights(model, networks)

    steps = {"loss": [], "gradient_norm": [], "update_norm": [], "weights": [], "statistics": []}
    trainable = [v for v in model.trainable_variables if id(v) in weights]
    statistics = [
        variable
        for variable in model.non_trainable_variables
        if keras.backend.is_float_dtype(variable.dtype) and id(variable) in weights
    ]
    started = {id(variable): _numpy(variable) for variable in (*trainable, *statistics)}
    before = [started[id(variable)] for variable in trainable]
    for k, batch in enumerate(batches):
        tell(f"step {k + 1} of {len(batches)}, {precision}")
        model.reset_metrics()
        with watching_updates(optimizers) as updates:
            watch = watching(networks, updates, first) if k == 0 else contextlib.nullcontext([])
            with watch as seen:
                logs = model.train_step(_tensors(batch, precision))
        gradients = {key: value for update in updates for key, value in update.items()}
        if first and k == 0:
            found.layers = [_layer_record(each, weights, started, updates) for each in seen]
            found.layers += _model_record(model, weights, started, updates)
        for each in seen:
            keep("training", each.name, each.values)
            if first and _limit(each.layer) is not None:
                _keep_gates(arrays, each.name, each.layer, each.values)
        del seen
        after = [_numpy(variable) for variable in trainable]
        if k == 0:
            for variable in trainable:
                if id(variable) in gradients:
                    keep("gradient", weights[id(variable)], gradients[id(variable)])
            for kind, variables in (("weights", trainable), ("statistics", statistics)):
                for variable in variables:
                    keep(kind, weights[id(variable)], variable)
        losses = [float(_numpy(logs[name])) for name in subject.losses if name in logs]
        steps["loss"].append(losses if len(losses) > 1 else losses[0])
        steps["gradient_norm"].append(_norm(gradients.values()))
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


def _tensors(batch, precision):
    """A batch as tensors, floats in a precision."""

    def tensor(array):
        return ops.convert_to_tensor(array, precision if array.dtype.kind == "f" else None)

    return keras.tree.map_structure(tensor, tuple(batch))


def _names_of_weights(model, networks):
    """The name of each weight, under that of the first layer that has it: dict from its id.

    Weights of the model itself, beside its networks, are under the model's name. Copies of
    networks that no step trains, such as an average, have none.
    """
    names = {}
    for part, network in networks.items():
        for name, layer in leaves(network, _prefix(part)):
            for weight in getattr(layer, "weights", []):
                names.setdefault(id(weight), _unique(f"{name}/{weight.name}", names.values()))
    for weight in _own_weights(model):
        names.setdefault(id(weight), _unique(f"{model.name}/{weight.name}", names.values()))
    return names


def _own_weights(model):
    """The float weights of a model that are in none of its layers."""
    inside = {id(weight) for layer in model.layers for weight in layer.weights}
    return [
        weight
        for weight in model.trainable_variables
        if id(weight) not in inside and keras.backend.is_float_dtype(weight.dtype)
    ]


def _layer_record(seen, weights, started, updates):
    """The entry of a layer in a record, without its arrays."""
    # A layer that is called again has another name; its weights belong to the first.
    layer, name = seen.layer, seen.name
    own = [weight for weight in getattr(layer, "weights", []) if _is_at(weights, weight, name)]
    settings, default = _layer_settings(layer)
    return {
        "name": name,
        "type": type(layer).__name__,
        "module": type(layer).__module__,
        "settings": settings,
        "default": default,
        "shape": [int(size) for size in seen.values.shape],
        "sources": seen.sources,
        "input_shapes": seen.shapes,
        "operations": seen.operations,
        "turn": seen.turn,
        "moved": _turn_of(own, updates, seen.turn),
        **_weights_record(own, name, weights, started),
    }


def _model_record(model, weights, started, updates):
    """The entry of a model for the weights that are in none of its layers: a list of one, or []."""
    own = _own_weights(model)
    if not own:
        return []
    entry = {"name": model.name, "type": type(model).__name__, "module": type(model).__module__}
    entry |= {"settings": {}, "default": [], "shape": [], "sources": [], "input_shapes": []}
    entry |= {"operations": [], "turn": 0, "moved": _turn_of(own, updates, 0)}
    return [{**entry, **_weights_record(own, model.name, weights, started)}]


def _turn_of(own, updates, otherwise):
    """How many updates came before that of some weights; `otherwise` if none moved them."""
    return next(
        (k for k, update in enumerate(updates) if any(id(weight) in update for weight in own)),
        otherwise,
    )


def _weights_record(own, name, weights, started):
    """The names of weights under an entry's name, and checksums of their values at the start."""
    return {
        "weights": [weights[id(weight)].removeprefix(f"{name}/") for weight in own],
        "start": [
            zlib.crc32(np.ascontiguousarray(started.get(id(weight), _numpy(weight))))
            for weight in own
        ],
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
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _norm(arrays):
    return float(np.sqrt(sum(float(np.sum(np.square(array, dtype="float64"))) for array in arrays)))


def _numpy(value):
    return np.array(ops.convert_to_numpy(value))
