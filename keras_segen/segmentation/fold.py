"""Batch normalization folded into the convolution before it: the same network, fewer steps.

In inference, batch normalization multiplies each channel by a constant and adds another. Kernel and
bias of the convolution before it can absorb both.
"""

import collections

import keras
import numpy as np
from keras import layers, ops

from keras_segen import backend

# Each kind of convolution: its kernel, and the kernel's axis of output channels.
_KERNELS = {
    layers.Conv2D: ("kernel", 3),
    layers.Conv2DTranspose: ("kernel", 2),
    layers.DepthwiseConv2D: ("kernel", (2, 3)),  # input channel, multiplier
    layers.SeparableConv2D: ("pointwise_kernel", 3),
}


def fold_batch_normalization(model):
    """Folds each batch normalization into the convolution that it follows.

    For inference: up to rounding, the new model computes what the old one does with
    `training=False`, in fewer steps. Training it would be training without batch normalization.

    Foldable are `Conv2D`, `Conv2DTranspose`, `DepthwiseConv2D` and `SeparableConv2D` without an
    activation whose only consumer is a `BatchNormalization` of the channels; also inside
    functional models that are layers of the model. Everything else is unchanged.

    Args:
        model: a functional or sequential `keras.Model`. It is not changed.

    Returns:
        A new functional `keras.Model` with weights of its own, not compiled. Layers keep their
        names; the folded normalizations are removed.

    Raises:
        ValueError: if the model is of another kind, whose graph is unknown.

    Example:

    >>> images = keras.Input((8, 8, 3))
    >>> x = layers.Conv2D(4, 3, use_bias=False, name="conv")(images)
    >>> model = keras.Model(images, layers.BatchNormalization(name="norm")(x))
    >>> [layer.name for layer in fold_batch_normalization(model).layers[1:]]
    ['conv']
    """
    with backend.without_the_other_framework():
        return _folded(as_functional(model))


def _folded(model):
    folds = dict(_folds(model))
    normalizations = set(folds.values())
    copies = []  # (old layer, new layer)
    gone = set()  # copies of normalizations that are folded

    def copy(layer):
        config = layer.get_config()
        if layer in folds:
            config["use_bias"] = True
        new = type(layer).from_config(config)
        if layer in normalizations:
            gone.add(new)
        else:
            copies.append((layer, new))
        return new

    def call(layer, *args, **kwargs):
        return args[0] if layer in gone else layer(*args, **kwargs)

    folded = keras.models.clone_model(
        model, clone_function=copy, call_function=call, recursive=True
    )
    for old, new in copies:
        if old in folds:
            _assign_folded(old, folds[old], new)
        elif isinstance(old, layers.Layer):
            new.set_weights(old.get_weights())
    return folded


def as_functional(model):
    """Returns the graph of a functional or sequential model as a new model, not compiled.

    Raises:
        ValueError: if there is no graph.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"Found {type(model).__name__}, whose layers cannot be seen; expected a functional "
            "keras.Model, or a keras.Sequential that starts with a keras.Input."
        )
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    # `output` keeps the keys of a dict; a sequential model has one output, and no `output`.
    outputs = model.outputs[0] if len(model.outputs) == 1 else model.output
    return keras.Model(inputs, outputs, name=model.name)


def _folds(model):
    """Yields (convolution, normalization) for each pair of a functional model to be folded."""
    config = model.get_config()
    if "layers" not in config:  # a class of its own, which describes itself in another way
        return
    calls = {layer["name"]: layer["inbound_nodes"] for layer in config["layers"]}
    readers = collections.Counter(
        history[0] for nodes in calls.values() for history in _histories(nodes)
    )
    readers.update(keras.tree.flatten(config["output_layers"])[::3])  # name, call, output
    operations = {operation.name: operation for operation in model.operations}
    for name, operation in operations.items():
        if hasattr(operation, "operations"):  # a functional model within the model
            yield from _folds(operation)
        if type(operation) is not layers.BatchNormalization or len(calls[name]) != 1:
            continue
        in_training = calls[name][0]["kwargs"].get("training")
        if in_training or operation.axis not in (-1, 3) or operation.renorm:
            continue
        before = next(_histories(calls[name]))[0]
        convolution = operations[before]
        if (
            type(convolution) in _KERNELS
            and convolution.activation is keras.activations.linear
            and convolution.data_format == "channels_last"
            and readers[before] == 1
        ):
            yield convolution, operation


def _histories(value):
    """Yields [layer, call, output] of each tensor in what `get_config` says of calls."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"]
            return
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for part in value:
        yield from _histories(part)


def _assign_folded(convolution, normalization, new):
    """Gives the new convolution the weights of the old one and its normalization."""

    def numbers(variable, missing):
        if variable is None:
            return np.float64(missing)
        return ops.convert_to_numpy(variable).astype("float64")

    attribute, axis = _KERNELS[type(convolution)]
    variance = numbers(normalization.moving_variance, None)
    # y = (x + bias - mean) * scale + beta
    scale = numbers(normalization.gamma, 1) / np.sqrt(variance + normalization.epsilon)
    shift = numbers(convolution.bias, 0) - numbers(normalization.moving_mean, None)
    kernel = numbers(getattr(convolution, attribute), None)
    shape = np.ones(4, int)
    shape[list(np.atleast_1d(axis))] = np.array(kernel.shape)[list(np.atleast_1d(axis))]
    if attribute == "pointwise_kernel":
        new.depthwise_kernel.assign(convolution.depthwise_kernel)
    getattr(new, attribute).assign((kernel * scale.reshape(shape)).astype("float32"))
    new.bias.assign((shift * scale + numbers(normalization.beta, 0)).astype("float32"))
