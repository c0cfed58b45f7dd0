"""Where Keras on PyTorch takes the long way from layer to layer: the same calls, made faster.

As in `keras_on_torch.py`, each function here replaces one thing in Keras, for the whole process,
and tests/test_keras_calls_on_torch.py holds the results to those of Keras as it is.
"""

import functools
import weakref

import keras
import torch
from keras.src.backend.common import global_state as keras_state
from keras.src.backend.common.variables import get_autocast_scope
from keras.src.backend.torch import core as keras_core
from keras.src.models import functional as keras_functional
from keras.src.ops import function as keras_function

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


def speed_up():
    """Replaces all of it, once."""
    read_variables_at_once()
    run_graphs_by_plan()
    call_plain_layers_directly()
    call_plain_models_directly()


def read_variables_at_once():
    """Lets a variable give its tensor without asking for every scope in a function of its own.

    Keras asks whether it stands in a stateless scope, in a symbolic call or in one of another
    type, and a training step reads its variables hundreds of times. Outside of all scopes, which
    is seen at once, the value is the tensor.
    """
    original = keras_core.Variable.value
    if "maybe_use_symbolic_tensor" not in original.fget.__code__.co_varnames:
        return

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

    keras_core.Variable.value = property(value)


def run_graphs_by_plan():
    """Lets a functional model remember how its tensors go from layer to layer.

    Keras works it out anew in every call, by searching nested structures for symbolic tensors: in
    a small network that takes longer than its layers. Here it is worked out in the first call, and
    the others follow the plan. The layers are called as before, in the same order.

    Keras also keeps every tensor until the last layer is done. Here one that no later layer wants
    is let go: without gradients, which keep their own, the next layers write to the same memory.

    Symbolic calls are left to Keras, as is all of it where Keras runs its graphs another way.
    """
    original = getattr(keras_function.Function, "_run_through_graph", None)
    if original is None or "fill_in" not in original.__code__.co_names:
        return
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

    keras_function.Function._run_through_graph = run


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


def call_plain_layers_directly():
    """Lets a functional model call Keras' own layers without the checks of every call.

    `Layer.__call__` looks for masks, types to convert, values to infer, symbolic tensors and
    more, anew for each layer and step: 0.1 ms each on a laptop, as long as the work itself in the
    small layers of a GAN. In a model that is built, on plain float32 tensors, nothing comes of
    it but `layer.call`. Everything else takes Keras' way: composite layers and those of users,
    mixed precision, masks, regularized activities, hooks, quantization, distribution.
    """
    if not hasattr(keras_functional, "operation_fn"):
        return
    original = keras_functional.operation_fn

    @functools.wraps(original)
    def operation_fn(operation, **context):
        way_of_keras = original(operation, **context)
        training = context.get("training")
        if training is None or len(context) > 1 or not _is_plain(operation):
            return way_of_keras
        options = {"training": training} if operation._call_has_training_arg else {}

        def call(*args, **kwargs):
            more = [name for name, value in kwargs.items() if value is not None]
            if more not in ([], ["training"]) or len(args) != 1 or not _are_plain(args[0]):
                return way_of_keras(*args, **kwargs)
            return operation.call(*args, **options)

        return call

    keras_functional.operation_fn = operation_fn


def call_plain_models_directly():
    """Lets a functional model be called for a prediction without most checks of every call.

    As with its layers, what `Layer.__call__` looks for is mostly not there, and looking takes
    0.2 ms. The shape of the input is checked as before; a single one that needs no conversion goes
    straight into the graph. Training is left to Keras, which tells the layers inside of other
    layers that it is training; that they predict is what they take for granted. Where Keras'
    functional models have a call of their own, nothing is replaced.
    """
    model = keras_functional.Functional
    if "__call__" in vars(model):
        return

    @functools.wraps(model.__call__)
    def call(self, *args, **kwargs):
        if (
            type(self) is not model
            or len(args) != 1
            or kwargs.keys() != {"training"}
            or kwargs["training"] is not False
            or not _are_plain(args[0])
            or not _needs_nothing_else(self)
        ):
            return super(model, self).__call__(*args, **kwargs)
        (x,) = args
        self._assert_input_compatibility(x)
        if type(x) is not torch.Tensor or not _stays_as_it_is(x, self):
            return self.call(x, training=False)
        outputs = self._run_through_graph(
            [x], lambda operation: keras_functional.operation_fn(operation, training=False)
        )
        return keras_functional.unpack_singleton(outputs)

    model.__call__ = call


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
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and layer.activity_regularizer is None
        and layer.quantization_mode is None
        and not layer._remat_mode
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
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
