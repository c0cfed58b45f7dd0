"""Where Keras on PyTorch takes the long way from layer to layer: the same calls, made faster."""

import functools
import weakref

import keras
import torch
from keras import layers
from keras.src.backend.common import global_state as keras_state
from keras.src.backend.common.variables import AutocastScope, get_autocast_scope
from keras.src.layers.layer import CallContext
from keras.src.models import functional as keras_functional
from keras.src.ops import function as keras_function
from torch.nn.modules import module as torch_module

from keras_segen.backend.faster.layers_on_torch import PROBE, keras_core
from keras_segen.backend.faster.probe import NotNeeded, python_calls

# The layers that are no more than their `call`: classes, or modules all of whose classes are.
PLAIN_LAYERS = (
    "keras.src.layers.activations",
    "keras.src.layers.convolutional",
    "keras.src.layers.core.dense",
    "keras.src.layers.merging",
    "keras.src.layers.normalization.batch_normalization",
    "keras.src.layers.pooling",
    "keras.src.layers.regularization.dropout",
    "keras.src.layers.reshaping",
    "keras_segen.layers.CropLike",
)


def variables():
    """Keras asks for four scopes, in a function each, whenever a variable gives its tensor.

    It asks whether it stands in a stateless scope, in a symbolic call or in one of another type,
    and a training step reads its variables hundreds of times. Outside of all scopes, which is
    seen at once, the value is the tensor.
    """
    probe = keras.Variable(torch.ones(1), name="probe", dtype="float32")
    if len(python_calls(lambda: probe.value)) < 5:
        raise NotNeeded("Keras reads a variable at once")
    for scope, name in (
        (keras.StatelessScope(), "stateless_scope"),
        (AutocastScope("float16"), "autocast_scope"),
        (keras.device("meta"), "torch_device"),
    ):
        with scope:
            if getattr(keras_state.GLOBAL_STATE_TRACKER, name, None) is None:
                raise RuntimeError(f"Keras does not keep its {name} where it was kept")
    original = keras_core.Variable.value

    @functools.wraps(original.fget)
    def value(self):
        here = keras_state.GLOBAL_STATE_TRACKER  # `clear_session` makes another one
        if (
            self._value is None
            or getattr(here, "stateless_scope", None) is not None
            or getattr(here, "autocast_scope", None) is not None
            or getattr(here, "torch_device", None) is not None
        ):
            return original.fget(self)
        return self._value

    return [(keras_core.Variable, "value", property(value))]


def _probe_model():
    """A functional model of one layer; the numbers in later tensors' names do not count it."""
    names = keras_state.get_global_attribute("object_name_uids")
    before = dict(names or {})
    inputs = keras.Input((1,), name="probe_input", dtype="float32")
    model = keras.Model(inputs, layers.ReLU(**PROBE)(inputs), name="probe_model")
    names = keras_state.get_global_attribute("object_name_uids")
    names.clear()
    names.update(before)
    return model


def graphs():
    """Keras works out anew in every call how the tensors of a functional model go on.

    It searches nested structures for symbolic tensors: in a small network that takes longer than
    its layers. Here it is worked out in the first call, and the others follow the plan. The
    layers are called as before, in the same order.

    Keras also keeps every tensor until the last layer is done. Here one that no later layer wants
    is let go: without gradients, which keep their own, the next layers write to the same memory.

    Symbolic calls are left to Keras.
    """
    model, x = _probe_model(), torch.ones(1, 1)
    if "fill_in" not in python_calls(lambda: model(x, training=False)):
        raise NotNeeded("Keras does not search its graphs in every call")
    original = keras_function.Function._run_through_graph
    plans = weakref.WeakKeyDictionary()

    @functools.wraps(original)
    def run(self, inputs, operation_fn=lambda operation: operation, call_fn=None):
        if call_fn is not None:
            return original(self, inputs, operation_fn, call_fn)
        if self not in plans:
            plans[self] = _plan(self)
        tensors = [inputs] if type(inputs) is torch.Tensor else keras.tree.flatten(inputs)
        found = dict(zip(map(id, self.inputs), tensors, strict=True))
        del tensors
        for operation, fill_in, names, done in plans[self]:
            args, kwargs = fill_in(found)
            outputs = operation_fn(operation)(*args, **kwargs)
            del args, kwargs
            for name in done:
                found.pop(name, None)
            if type(outputs) is torch.Tensor:
                found[names[0]] = outputs
            else:
                found.update(zip(names, keras.tree.flatten(outputs), strict=False))
        if isinstance(self._outputs_struct, keras.KerasTensor):
            return found[id(self._outputs_struct)]
        outputs = [found[id(output)] for output in self.outputs]
        return keras.tree.pack_sequence_as(self._outputs_struct, outputs)

    return [(keras_function.Function, "_run_through_graph", run)]


def _plan(graph):
    """The calls of a graph in their order: `(operation, fill_in, names of the outputs, done)`.

    `fill_in(found)` gives the arguments of the call, from the tensors that were found before it,
    by name; `done` are the names of those that nothing wants after it.
    """
    nodes = [
        node
        for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True)
        for node in nodes
        if node.operation and not node.is_input
    ]
    wanted = {id(output) for output in graph.outputs}
    plan = []
    for node in reversed(nodes):
        names = [id(output) for output in node.outputs]
        done = {id(x) for x in (*node.input_tensors, *node.outputs)} - wanted
        wanted |= done
        plan.append((node.operation, _fill_in(node.arguments), names, done))
    return plan[::-1]


def _fill_in(arguments):
    """What fills in the tensors of one call; most take one tensor, or one list of tensors."""
    args = arguments.args
    if len(args) == 1 and not arguments.kwargs:
        if isinstance(args[0], keras.KerasTensor):
            name = id(args[0])
            return lambda found: ((found[name],), {})
        if type(args[0]) is list and all(isinstance(x, keras.KerasTensor) for x in args[0]):
            names = [id(x) for x in args[0]]
            return lambda found: (([found[name] for name in names],), {})
    return arguments.fill_in


def layer_calls():
    """Keras goes through the checks of `Layer.__call__` for each of its own layers.

    It looks for masks, types to convert, values to infer, symbolic tensors and more, anew for each
    layer and step: 0.1 ms each on a laptop, as long as the work itself in the small layers of a
    GAN. In a model that is built, on plain float32 tensors, nothing comes of it but `layer.call`.
    Everything else takes Keras' way: composite layers and those of users, mixed precision, masks,
    regularized activities, hooks, quantization, distribution.
    """
    model, x = _probe_model(), torch.ones(1, 1)
    if python_calls(lambda: model(x, training=False)).count("__call__") < 3:
        raise NotNeeded("Keras calls its layers directly")

    def directly(operation, training, otherwise):
        if training is None or not _is_plain(operation):
            return otherwise
        options = {"training": training} if operation._call_has_training_arg else {}

        def call(*args, **kwargs):
            more = [name for name, value in kwargs.items() if value is not None]
            if more not in ([], ["training"]) or len(args) != 1 or not _are_plain(args[0]):
                return otherwise(*args, **kwargs)
            return operation.call(*args, **options)

        return call

    if TOLD:
        original = keras_functional.operation_fn

        @functools.wraps(original)
        def operation_fn(operation, **context):
            otherwise = original(operation, **context)
            if len(context) > 1:
                return otherwise
            return directly(operation, context.get("training"), otherwise)

        return [(keras_functional, "operation_fn", operation_fn)]

    def run(self, inputs, *args, **kwargs):
        way_of_keras = super(keras_functional.Functional, self)._run_through_graph
        context = keras_state.get_global_attribute("current_call_ctx")
        if args or kwargs or context is None or vars(context).keys() != {"entry_layer", "training"}:
            return way_of_keras(inputs, *args, **kwargs)
        training = context.training
        return way_of_keras(inputs, lambda operation: directly(operation, training, operation))

    return [(keras_functional.Functional, "_run_through_graph", run)]


# Whether a graph tells its layers that they train; in Keras 3.16 they ask the call around them.
TOLD = hasattr(keras_functional, "operation_fn")


def model_calls():
    """Keras goes through the checks of `Layer.__call__` for a functional model that predicts.

    As with its layers, what is looked for is mostly not there, and looking takes 0.2 ms. The shape
    of the input is checked as before; a single one that needs no conversion goes straight into
    the graph. Training is left to Keras, which tells the layers inside of other layers that it is
    training; that they predict is what they take for granted.
    """
    kind = keras_functional.Functional
    model, x = _probe_model(), torch.ones(1, 1)
    if len(python_calls(lambda: model(x, training=False))) < 20:
        raise NotNeeded("Keras calls a model directly")
    if "__call__" in vars(kind):
        raise RuntimeError("Keras' functional models have a call of their own")

    @functools.wraps(kind.__call__)
    def call(self, *args, **kwargs):
        if (
            type(self) is not kind
            or len(args) != 1
            or kwargs.keys() != {"training"}
            or kwargs["training"] is not False
            or not _are_plain(args[0])
            or not _needs_nothing_else(self)
            or "call" in vars(self)  # someone watches
            or keras_state.get_global_attribute("current_call_ctx") is not None
        ):
            return super(kind, self).__call__(*args, **kwargs)
        (x,) = args
        self._assert_input_compatibility(x)
        straight = type(x) is torch.Tensor and _stays_as_it_is(x, self)
        if TOLD and straight:
            outputs = self._run_through_graph(
                [x], lambda operation: keras_functional.operation_fn(operation, training=False)
            )
            return keras_functional.unpack_singleton(outputs)
        if TOLD:
            return self.call(x, training=False)
        context = CallContext(entry_layer=self)
        context.set_value("training", False)
        keras_state.set_global_attribute("current_call_ctx", context)
        try:
            if not straight:
                return self.call(x, training=False)
            return keras_functional.unpack_singleton(self._run_through_graph([x]))
        finally:
            keras_state.set_global_attribute("current_call_ctx", None)

    return [(kind, "__call__", call)]


def _stays_as_it_is(x, model):
    """Whether `x`, the only input and of float32, is what the layers of the model see."""
    return (
        isinstance(model._inputs_struct, (keras.KerasTensor, list))
        and x.ndim == len(model.inputs[0].shape)
        and model.inputs[0].dtype == "float32"
    )


def _is_plain(operation):
    """Whether all that `operation(x)` does, here and now, is `operation.call(x)`."""
    kind = type(operation)
    return f"{kind.__module__}.{kind.__name__}".startswith(PLAIN_LAYERS) and _needs_nothing_else(
        operation
    )


def _needs_nothing_else(layer):
    """Whether nobody asked for anything around the `call` of a layer, or of a model."""
    return (
        layer.built
        and layer._called  # which Keras writes down, and an export asks for
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and layer.activity_regularizer is None
        and layer.quantization_mode is None
        and not layer._remat_mode
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
        and not torch_module._has_any_global_hook()
        and keras.distribution.distribution() is None
        and get_autocast_scope() is None
    )


def _are_plain(tensors):
    tensors = tensors if isinstance(tensors, list) else [tensors]
    return all(
        type(tensor) is torch.Tensor
        and tensor.dtype == torch.float32
        and not hasattr(tensor, "_keras_mask")
        for tensor in tensors
    )
