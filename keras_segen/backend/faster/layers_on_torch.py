"""Where Keras on PyTorch takes the long way in a layer: the same results, found faster.

Each function here replaces one thing in Keras, for the whole process, and says what it costs, what
is replaced and when it is not. tests/test_keras_on_torch.py holds the results to those of Keras as
it is, and fails once a newer Keras no longer needs one of them.
"""

import functools

import keras
import torch
from keras import ops
from keras.src.backend.torch import core as keras_core
from keras.src.backend.torch import nn as keras_nn
from keras.src.backend.torch.optimizers import torch_adam
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose

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
