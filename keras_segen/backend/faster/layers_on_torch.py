"""Where Keras on PyTorch takes the long way in a layer: the same results, found faster."""

import functools
import math

import keras
import torch
from keras import layers, ops
from keras.src.backend.common.backend_utils import compute_conv_transpose_output_crops_for_torch
from keras.src.backend.torch.optimizers import torch_adam
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from torch.utils._python_dispatch import TorchDispatchMode

from keras_segen.backend.faster.probe import NotNeeded

try:
    from keras.src.backend.torch import core as keras_core
    from keras.src.backend.torch import nn as keras_nn
except ImportError:  # Keras 3.16
    from keras.src.backend.torch.ops import core as keras_core
    from keras.src.backend.torch.ops import nn as keras_nn

# Of the layers that are made to look at what Keras does: no number is drawn, no name counted.
PROBE = {"name": "probe", "dtype": "float32"}
ZEROS = {**PROBE, "kernel_initializer": "zeros"}


def operations(function):
    """The names of PyTorch's operations in a call, such as `convolution`, in their order."""
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            found.append(operation.overloadpacket.__name__)
            return operation(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        function()
    return found


def image_layout():
    """Keras copies images to channels-first memory around convolutions and poolings.

    Keras 3.15 ends the transposition before every convolution and pooling in `.contiguous()`: a
    copy to channels-first memory, which `conv` at once copies back to channels-last. In a U-Net's
    forward pass on a CPU these copies take as long as the convolutions. The bare permutation has
    the same values; PyTorch takes it as an image in channels-last memory. Keras 3.16 copies only
    before transposed convolutions and adaptive poolings.
    """
    original = keras_nn._transpose_spatial_inputs
    if not original(torch.empty(1, 2, 2, 2)).is_contiguous():
        raise NotNeeded("Keras does not copy images")

    @functools.wraps(original)
    def transpose(inputs, *args, **kwargs):
        if inputs.ndim != 4 or torch.compiler.is_exporting():
            return original(inputs, *args, **kwargs)
        return torch.permute(inputs, (0, 3, 1, 2))

    return [(keras_nn, "_transpose_spatial_inputs", transpose)]


def kernel_layout():
    """Keras copies the kernel of a convolution to channels-last memory in every call.

    Keras transposes a kernel (height, width, in, out) to PyTorch's order of axes and copies the
    result, in every convolution of every step and prediction. If its numbers lie in the order
    (out, height, width, in) from the beginning, the transposed kernel is in channels-last memory
    already, and nothing is copied. Shape and values are the same.

    All variables of four axes that are made from now on are laid out so, those of optimizers too:
    operations on several tensors are fastest if these lie alike. They stay valid in any Keras.
    """
    kernel = torch.empty(2, 2, 2, 2)
    copied = keras_nn._maybe_convert_to_channels_last(keras_nn._transpose_conv_kernel(kernel))
    if copied.data_ptr() == kernel.data_ptr():
        raise NotNeeded("Keras does not copy kernels")
    original = keras_core.Variable._initialize

    @functools.wraps(original)
    def initialize(self, value):
        original(self, value)
        if (
            self._value.ndim == 4
            and self._value is not value  # not a parameter of somebody else
            and keras.distribution.distribution() is None
        ):
            laid_out = self._value.data.permute(3, 2, 0, 1)
            laid_out = laid_out.contiguous(memory_format=torch.channels_last)
            self._value.data = laid_out.permute(2, 3, 1, 0)

    return [(keras_core.Variable, "_initialize", initialize)]


def convolution():
    """Keras adds the biases of a convolution, cuts off rims and takes ReLU in passes of their own.

    Each pass goes over the picture, into new memory, where PyTorch's convolution adds the bias as
    it goes. (SiLU only works in place where no gradient is asked for, which would need a copy.)

    Of a transposed convolution with `padding="same"` Keras computes the rim as well and cuts it
    off, because PyTorch can only leave out as much on the left as on the right, or a little less
    on the right. What is left is a view with gaps, on which a batch normalization takes several
    times as long, and its gradient is copied to channels-first memory. Where PyTorch can leave
    out what Keras cuts off, it does so here.

    The values are the same. Pictures with channels first, sequences, volumes, float64, exports and
    layers with a `convolution_op` of their own are left to Keras.
    """
    changes = []
    for base, kind, convolve in (
        (BaseConv, layers.Conv2D, _convolve),
        (BaseConvTranspose, layers.Conv2DTranspose, _convolve_transposed),
    ):
        layer = kind(1, 1, data_format="channels_last", **ZEROS)
        layer.build((None, 2, 2, 1))
        if "add" in operations(lambda layer=layer: layer.call(torch.ones(1, 2, 2, 1))):
            changes.append((base, "call", _all_inside(base.call, convolve)))
    if not changes:
        raise NotNeeded("Keras adds biases as it convolves")
    return changes


def _all_inside(original, convolve):
    @functools.wraps(original)
    def call(self, inputs):
        x = inputs if type(inputs) is torch.Tensor else keras_core.convert_to_tensor(inputs)
        outputs = None
        if (
            x.ndim == 4
            and self.data_format == "channels_last"
            and x.dtype != torch.float64  # of which Keras' sum is float32
            and not torch.compiler.is_exporting()
        ):
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
    x = torch.permute(x, (0, 3, 1, 2))
    padding = 0
    if layer.padding == "same":
        rims = [
            max(0, (math.ceil(size / step) - 1) * step + (kernel - 1) * dilation + 1 - size)
            for size, kernel, step, dilation in zip(
                x.shape[2:], layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
            )
        ]
        padding = [rim // 2 for rim in rims]
        if any(rim % 2 for rim in rims):
            (top, left), (height, width) = padding, rims
            x = torch.nn.functional.pad(x, (left, width - left, top, height - top))
            padding = 0
    return torch.nn.functional.conv2d(
        x.contiguous(memory_format=torch.channels_last),
        _kernel(layer),
        _value(layer.bias),
        stride=layer.strides,
        padding=padding,
        dilation=layer.dilation_rate,
        groups=layer.groups,
    )


def _convolve_transposed(layer, x):
    settings = layer.strides, layer.padding, layer.output_padding, layer.dilation_rate
    crops = compute_conv_transpose_output_crops_for_torch(x.shape, layer.kernel.shape, *settings)
    more_on_the_left = tuple(left - right for left, right in crops)
    if not all(
        left >= 0 and 0 <= more < step
        for (left, _), more, step in zip(crops, more_on_the_left, layer.strides, strict=True)
    ):
        return None
    return torch.nn.functional.conv_transpose2d(
        torch.permute(x, (0, 3, 1, 2)),
        _kernel(layer),
        _value(layer.bias),
        stride=layer.strides,
        padding=tuple(left for left, _ in crops),
        output_padding=more_on_the_left,
        dilation=layer.dilation_rate,
    )


def _kernel(layer):
    kernel = torch.permute(_value(layer.kernel), (3, 2, 0, 1))
    return kernel.contiguous(memory_format=torch.channels_last)


def _value(weight):
    return weight.value if isinstance(weight, keras.Variable) else weight


def dense():
    """Keras adds the bias of a dense layer apart from the product.

    Each goes through checks of types and devices that take longer than the product of a small
    layer. The values are the same to rounding. Sequences and other types than float32 are left to
    Keras.
    """
    layer = layers.Dense(1, **ZEROS)
    layer.build((None, 1))
    if "addmm" in operations(lambda: layer.call(torch.ones(1, 1))):
        raise NotNeeded("Keras adds the bias as it multiplies")
    original = layers.Dense.call

    @functools.wraps(original)
    def call(self, inputs, training=None):
        kernel, bias = _value(self.kernel), _value(self.bias)
        usual = type(inputs) is torch.Tensor and inputs.ndim == 2 and bias is not None
        if not usual or not inputs.dtype == kernel.dtype == bias.dtype == torch.float32:
            return original(self, inputs, training=training)
        outputs = torch.addmm(bias, inputs, kernel)
        outputs, activation = _activated_in_place(outputs, self.activation)
        return outputs if activation is None else activation(outputs)

    return [(layers.Dense, "call", call)]


def softmax():
    """Keras takes a softmax over channels pixel by pixel.

    PyTorch works through the last axis a handful of classes at a time, and through another axis
    with as many pixels at once as the processor takes: with 6 classes that is five times as fast
    on a CPU, copies to and fro included, and the softmax was most of what a loss costs. The
    values are the same to rounding.
    """
    if "permute" in operations(lambda: keras_nn.softmax(torch.ones(1, 2, 2, 2), -1)):
        raise NotNeeded("Keras takes the softmax over another axis")
    return [(keras_nn, name, _over_planes(getattr(keras_nn, name))) for name in SOFTMAXES]


SOFTMAXES = ("softmax", "log_softmax")


def _over_planes(original):
    @functools.wraps(original)
    def over_planes(x, axis=-1):
        x = keras_core.convert_to_tensor(x)
        if x.ndim != 4 or axis not in (-1, 3) or x.device.type != "cpu":
            return original(x, axis)
        return original(x.permute(0, 3, 1, 2), 1).permute(0, 2, 3, 1).contiguous()

    return over_planes


def batch_normalization():
    """Keras composes batch normalization of a dozen passes over the picture.

    Means, squares, differences and products, and as many on the way back: a good part of a U-Net's
    training step on a CPU. PyTorch's operation computes the same in two passes, and the variance
    from the differences to the mean instead of as E[x^2] - E[x]^2, which loses its digits where
    the mean is large.

    Only what is usual is replaced: float32 pictures whose last axis is normalized.
    """
    layer = layers.BatchNormalization(**PROBE)
    layer.build((None, 2, 2, 1))
    found = operations(lambda: layer.call(torch.ones(1, 2, 2, 1), training=True))
    if any("batch_norm" in name for name in found):
        raise NotNeeded("Keras normalizes in one operation")
    original = layers.BatchNormalization.call
    moments = layers.BatchNormalization._moments
    batch_norm = torch.nn.functional.batch_norm

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
            and type(self)._moments is moments
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

    return [(layers.BatchNormalization, "call", call)]


def adam():
    """Keras updates all weights as Adam and AdamW do in ten passes over them; here it is seven.

    Keras composes the update of sums, products and quotients of all weights at once, each a pass
    over memory, half of them into new memory; PyTorch has operations for several of them. The
    values are the same to rounding. On a GPU, where the rate would have to be waited for, and with
    `amsgrad`, the update is Keras'.
    """
    variable = keras.Variable(torch.ones(1), name="probe", dtype="float32")
    optimizer = keras.optimizers.Adam(name="probe")
    optimizer.build([variable])
    found = operations(lambda: optimizer._parallel_update_step([torch.ones(1)], [variable], 0.0))
    if "_foreach_addcdiv_" in found:
        raise NotNeeded("Keras updates in fewer passes")
    original = torch_adam.Adam._parallel_update_step

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

    return [(torch_adam.Adam, "_parallel_update_step", update)]


def _rate_of_adam(optimizer, learning_rate):
    """In float32, as on the other backend: in the first steps its rounding is 3e-5 of the rate."""
    step = ops.cast(optimizer.iterations + 1, "float32")
    left_1 = 1 - ops.power(ops.cast(optimizer.beta_1, "float32"), step)
    left_2 = 1 - ops.power(ops.cast(optimizer.beta_2, "float32"), step)
    return float(ops.cast(learning_rate, "float32") * ops.sqrt(left_2) / left_1)
