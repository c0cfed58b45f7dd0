"""Where Keras on PyTorch takes the long way: the same results, found faster.

Each function here replaces one thing in Keras, for the whole process, and says what it costs, what
is replaced and when it is not. tests/test_keras_on_torch.py holds the results to those of Keras as
it is, and fails once a newer Keras no longer needs one of them.
"""

import functools
import weakref

import keras
import torch
from keras import ops
from keras.src.backend.common.variables import get_autocast_scope
from keras.src.backend.torch import core as keras_core
from keras.src.backend.torch import nn as keras_nn
from keras.src.backend.torch.optimizers import torch_adam
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
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

PARTS_OF_CONVOLUTIONS = (
    "_apply_same_padding",
    "_maybe_convert_to_channels_last",
    "_transpose_conv_kernel",
    "_transpose_spatial_inputs",
    "compute_conv_transpose_output_crops_for_torch",
)


def speed_up():
    """Replaces all of it, once."""
    drop_copies_around_convolutions()
    lay_kernels_out_for_convolutions()
    put_all_of_a_convolution_inside()
    add_biases_inside_of_products()
    take_softmax_over_channels_as_over_planes()
    fuse_batch_normalization()
    update_as_adam_in_fewer_passes()
    run_graphs_by_plan()
    call_plain_layers_directly()
    call_plain_models_directly()


def drop_copies_around_convolutions():
    """Keeps Keras from copying images to channels-first memory and back around each operation.

    Keras 3.15 ends the transposition before every convolution and pooling in `.contiguous()`: a
    copy to channels-first memory, which `conv` at once copies back to channels-last. In a U-Net's
    forward pass on a CPU these copies take as long as the convolutions. The bare permutation has
    the same values; PyTorch takes it as an image in channels-last memory.

    Where Keras no longer copies, or no longer has the function, nothing is replaced.
    """
    original = getattr(keras_nn, "_transpose_spatial_inputs", None)
    if original is None or not original(torch.empty(1, 2, 2, 2)).is_contiguous():
        return

    def transpose_without_copy(inputs):
        if inputs.ndim != 4 or torch.compiler.is_exporting():
            return original(inputs)
        return torch.permute(inputs, (0, 3, 1, 2))

    keras_nn._transpose_spatial_inputs = transpose_without_copy


def lay_kernels_out_for_convolutions():
    """Lets kernels lie in memory in the order in which PyTorch's convolutions want them.

    Keras 3.15 transposes a kernel (height, width, in, out) to PyTorch's order of axes and copies
    the result to channels-last memory, in every convolution of every step and prediction. If its
    numbers lie in the order (out, height, width, in) from the beginning, the transposed kernel is
    in channels-last memory already, and nothing is copied. Shape and values are the same.

    All variables of four axes are laid out so, those of optimizers too: operations on several
    tensors are fastest if these lie alike. Where Keras does not copy kernels, nothing changes.
    """
    transpose = getattr(keras_nn, "_transpose_conv_kernel", None)
    convert = getattr(keras_nn, "_maybe_convert_to_channels_last", None)
    kernel = torch.empty(2, 2, 2, 2)
    if transpose is None or convert is None:
        return
    if convert(transpose(kernel)).data_ptr() == kernel.data_ptr():
        return
    original = keras_core.Variable._initialize

    @functools.wraps(original)
    def initialize(self, value):
        original(self, value)
        if self._value.ndim == 4 and self._value is not value:  # not a parameter of somebody else
            laid_out = self._value.data.permute(3, 2, 0, 1)
            laid_out = laid_out.contiguous(memory_format=torch.channels_last)
            self._value.data = laid_out.permute(2, 3, 1, 0)

    keras_core.Variable._initialize = initialize


def put_all_of_a_convolution_inside():
    """Lets PyTorch's convolutions add their biases, leave out rims and apply ReLU in place.

    Keras 3.15 adds the bias to the output of a convolution, and takes ReLU of the sum: two more
    passes over the picture, each into new memory, where PyTorch's convolution adds the bias as it
    goes. (SiLU only works in place where no gradient is asked for, which would need a copy.)

    Of a transposed convolution with `padding="same"` Keras computes the rim as well and cuts it
    off, because PyTorch can only leave out as much on the left as on the right, or a little less
    on the right. What is left is a view with gaps, on which a batch normalization takes several
    times as long, and its gradient is copied to channels-first memory. Where PyTorch can leave
    out what Keras cuts off, it does so here.

    The values are the same. Pictures with channels first, sequences, volumes and layers with a
    `convolution_op` of their own are left to Keras, as is all of it where Keras no longer adds.
    """
    if not all(hasattr(keras_nn, name) for name in PARTS_OF_CONVOLUTIONS):
        return
    for layer, convolve in ((BaseConv, _convolve), (BaseConvTranspose, _convolve_transposed)):
        if "add" in layer.call.__code__.co_names:
            layer.call = _all_inside(layer.call, convolve)


def _all_inside(original, convolve):
    @functools.wraps(original)
    def call(self, inputs):
        x = inputs if type(inputs) is torch.Tensor else keras_core.convert_to_tensor(inputs)
        outputs = None
        if x.ndim == 4 and self.data_format == "channels_last":
            outputs = convolve(self, x)
        if outputs is None:
            return original(self, inputs)
        outputs, activation = _activated_in_place(outputs, self.activation)
        outputs = torch.permute(outputs, (0, 2, 3, 1))
        return outputs if activation is None else activation(outputs)

    return call


def _activated_in_place(outputs, activation):
    """Applies an activation where no copy is needed; else it comes back, to be applied."""
    if activation is keras.activations.relu:
        return torch.relu_(outputs), None
    if activation is keras.activations.silu and not outputs.requires_grad:
        return torch.nn.functional.silu(outputs, inplace=True), None
    return outputs, activation


def _convolve(layer, x):
    if type(layer).convolution_op is not BaseConv.convolution_op:
        return None
    x = keras_nn._transpose_spatial_inputs(x)
    padding = 0
    if layer.padding == "same":
        x, padding = keras_nn._apply_same_padding(
            x, layer.kernel_size, layer.strides, "channels_last", "conv", layer.dilation_rate
        )
    return torch.nn.functional.conv2d(
        keras_nn._maybe_convert_to_channels_last(x),
        _kernel(layer),
        _value(layer.bias),
        stride=layer.strides,
        padding=padding,
        dilation=layer.dilation_rate,
        groups=layer.groups,
    )


def _convolve_transposed(layer, x):
    crops = keras_nn.compute_conv_transpose_output_crops_for_torch(
        x.shape,
        layer.kernel.shape,
        layer.strides,
        layer.padding,
        layer.output_padding,
        layer.dilation_rate,
    )
    more_on_the_left = tuple(left - right for left, right in crops)
    if not all(
        left >= 0 and 0 <= more < step
        for (left, _), more, step in zip(crops, more_on_the_left, layer.strides, strict=True)
    ):
        return None
    return torch.nn.functional.conv_transpose2d(
        keras_nn._transpose_spatial_inputs(x),
        _kernel(layer),
        _value(layer.bias),
        stride=layer.strides,
        padding=tuple(left for left, _ in crops),
        output_padding=more_on_the_left,
        dilation=layer.dilation_rate,
    )


def _kernel(layer):
    kernel = keras_nn._transpose_conv_kernel(_value(layer.kernel))
    return keras_nn._maybe_convert_to_channels_last(kernel)


def _value(weight):
    return weight.value if isinstance(weight, keras.Variable) else weight


def add_biases_inside_of_products():
    """Lets PyTorch add the bias of a dense layer as it multiplies.

    As with convolutions, Keras 3.15 adds it apart, each through checks of types and devices that
    take longer than the product of a small layer. The values are the same to rounding. Sequences
    and other types than float32 are left to Keras, as is all of it where Keras no longer adds.
    """
    layer = keras.layers.Dense
    original = layer.call
    if "add" not in original.__code__.co_names:
        return

    @functools.wraps(original)
    def call(self, inputs, training=None):
        kernel, bias = _value(self.kernel), _value(self.bias)
        usual = type(inputs) is torch.Tensor and inputs.ndim == 2 and bias is not None
        if not usual or not inputs.dtype == kernel.dtype == bias.dtype == torch.float32:
            return original(self, inputs, training=training)
        outputs = torch.addmm(bias, inputs, kernel)
        outputs, activation = _activated_in_place(outputs, self.activation)
        return outputs if activation is None else activation(outputs)

    layer.call = call


def take_softmax_over_channels_as_over_planes():
    """Lets a softmax over the last of four axes run as one over the first after the batch.

    PyTorch works through the last axis pixel by pixel, a handful of classes each time, and
    through another axis with as many pixels at once as the processor takes: with 6 classes that
    is five times as fast on a CPU, copies to and fro included, and the softmax was most of what
    a loss costs. The values are the same to rounding.
    """
    for name in ("softmax", "log_softmax"):
        setattr(keras_nn, name, _over_planes(getattr(keras_nn, name)))


def _over_planes(original):
    @functools.wraps(original)
    def over_planes(x, axis=-1):
        x = keras_core.convert_to_tensor(x)
        if x.ndim != 4 or axis not in (-1, 3) or x.device.type != "cpu":
            return original(x, axis)
        return original(x.permute(0, 3, 1, 2), 1).permute(0, 2, 3, 1).contiguous()

    return over_planes


def fuse_batch_normalization():
    """Lets batch normalization run as PyTorch's own operation.

    Keras 3.15 composes it of means, squares, differences and products of the whole picture, each
    a pass over it, and as many on the way back: a good part of a U-Net's training step on a CPU.
    PyTorch's operation computes the same in two passes, and the variance from the differences to
    the mean instead of as E[x^2] - E[x]^2, which loses its digits where the mean is large.

    Only what is usual is replaced: float32 pictures whose last axis is normalized. Where Keras no
    longer computes the moments itself, nothing is.
    """
    layer = keras.layers.BatchNormalization
    original = layer.call
    batch_norm = torch.nn.functional.batch_norm
    if "_moments" not in original.__code__.co_names:
        return

    @functools.wraps(original)
    def call(self, inputs, training=None, mask=None):
        numbers = inputs.numel() // inputs.shape[-1] if inputs.ndim == 4 else 0
        usual = (
            numbers > 1  # one number has no variance
            and inputs.dtype == torch.float32
            and self.compute_dtype == "float32"
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and mask is None
            and not self.renorm
            and not self.synchronized
            and not torch.compiler.is_exporting()
        )
        if not usual:
            return original(self, inputs, training=training, mask=mask)
        x = torch.permute(inputs, (0, 3, 1, 2))
        weights = (self.gamma.value, self.beta.value)
        if training and self.trainable:
            # With a momentum of 1 they become the batch's own, the variance with n - 1 as divisor.
            mean, variance = inputs.new_zeros(2, inputs.shape[-1])
            x = batch_norm(x, mean, variance, *weights, True, 1.0, self.epsilon)
            variance = variance * ((numbers - 1) / numbers)
            for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        else:
            moving = (self.moving_mean.value, self.moving_variance.value)
            x = batch_norm(x, *moving, *weights, False, 0.0, self.epsilon)
        return torch.permute(x, (0, 2, 3, 1))

    layer.call = call


def update_as_adam_in_fewer_passes():
    """Lets Adam and AdamW update all weights in seven passes over them in place of ten.

    Keras 3.15 composes the update of sums, products and quotients of all weights at once, each a
    pass over memory, half of them into new memory; PyTorch has operations for several of them.
    The values are the same to rounding. On a GPU, where the rate would have to be waited for, and
    with `amsgrad`, the update is Keras', as it is where Keras uses these operations itself.
    """
    original = torch_adam.Adam._parallel_update_step
    if "_foreach_addcdiv_" in original.__code__.co_names:
        return

    @functools.wraps(original)
    def update(self, grads, variables, learning_rate):
        values = [variable.value for variable in variables]
        usual = all(value.dtype == torch.float32 for value in [*values, *grads])
        if self.amsgrad or not usual or values[0].device.type != "cpu":
            return original(self, grads, variables, learning_rate)
        places = [self._get_variable_index(variable) for variable in variables]
        means = [self._momentums[place].value for place in places]
        squares = [self._velocities[place].value for place in places]
        rate = _rate_of_adam(self, learning_rate)
        torch._foreach_lerp_(means, grads, 1 - self.beta_1)
        torch._foreach_mul_(squares, self.beta_2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - self.beta_2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, self.epsilon)
        torch._foreach_addcdiv_(values, means, roots, -rate)

    torch_adam.Adam._parallel_update_step = update


def _rate_of_adam(optimizer, learning_rate):
    """In float32, as on the other backend: in the first steps its rounding is 3e-5 of the rate."""
    step = ops.cast(optimizer.iterations + 1, "float32")
    left_1 = 1 - ops.power(ops.cast(optimizer.beta_1, "float32"), step)
    left_2 = 1 - ops.power(ops.cast(optimizer.beta_2, "float32"), step)
    return float(ops.cast(learning_rate, "float32") * ops.sqrt(left_2) / left_1)


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
    0.2 ms. The shape of the input is checked as before. Training is left to Keras, which tells the
    layers inside of other layers that it is training; that they predict is what they take for
    granted. Where Keras' functional models have a call of their own, nothing is replaced.
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
        self._assert_input_compatibility(args[0])
        return self.call(args[0], training=False)

    model.__call__ = call


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
