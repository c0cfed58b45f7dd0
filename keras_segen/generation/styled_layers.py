"""The layers of StyleGAN2: equalized ones, the convolution with a style, and three small ones.

References: Karras et al. (2018), https://arxiv.org/abs/1710.10196; Karras et al. (2020),
https://arxiv.org/abs/1912.04958. What they make together: `stylegan2.py`.
"""

import math

import keras
import numpy as np
from keras import layers, ops
from keras.initializers import Constant, RandomNormal


def blur(x, padding, stride=1, gain=1.0):
    """Filters with [1, 3, 3, 1] along both axes; beyond the border, values count as 0."""
    taps = np.array([1, 3, 3, 1]) / 8
    kernel = np.tile(gain * np.outer(taps, taps)[:, :, None, None], (1, 1, x.shape[-1], 1))
    border = (padding, padding)
    x = ops.pad(x, ((0, 0), border, border, (0, 0)))
    return ops.depthwise_conv(x, ops.convert_to_tensor(kernel, x.dtype), stride, "valid")


def leaky(x):
    """A leaky ReLU that keeps the size of what comes in."""
    return ops.leaky_relu(x, 0.2) * 2**0.5


class Equalized(layers.Layer):
    """A layer whose weights start at N(0, 1) and are scaled when they are used.

    So Adam, whose steps do not depend on the size of a gradient, moves all of them equally fast
    (equalized learning rate; Karras et al., 2018, https://arxiv.org/abs/1710.10196).
    """

    def add_kernel(self, shape, rate=1.0):
        self.kernel_initializer = RandomNormal(0.0, 1 / rate)
        self.kernel = self.add_weight(
            shape=shape, initializer=self.kernel_initializer, name="kernel"
        )
        self.gain = rate / math.prod(shape[:-1]) ** 0.5

    def add_bias(self, size, start=0.0):
        self.bias_initializer = Constant(start)
        self.bias = self.add_weight(shape=(size,), initializer=self.bias_initializer, name="bias")

    def get_config(self):
        return {**super().get_config(), **{name: getattr(self, name) for name in self.SETTINGS}}


@keras.saving.register_keras_serializable(package="keras_segen")
class EqualizedDense(Equalized):
    """A dense layer; `rate` is how fast it learns, against the others; the bias begins at `start`.

    Example:

    >>> EqualizedDense(2, start=1.0)(ops.zeros((1, 3))).shape[1]
    2
    """

    SETTINGS = ("units", "rate", "start", "activate")

    def __init__(self, units, rate=1.0, start=0.0, activate=False, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rate, self.start, self.activate = units, rate, start, activate

    def build(self, input_shape):
        self.add_kernel((input_shape[-1], self.units), self.rate)
        self.add_bias(self.units, self.start / self.rate)

    def call(self, x):
        x = ops.matmul(x, self.kernel * self.gain) + self.bias * self.rate
        return leaky(x) if self.activate else x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)


@keras.saving.register_keras_serializable(package="keras_segen")
class EqualizedConv2D(Equalized):
    """A convolution of an odd kernel, 'same' padding; `halve` blurs and takes every other pixel.

    Example:

    >>> tuple(EqualizedConv2D(5, 3, halve=True)(ops.zeros((1, 4, 6, 2))).shape)
    (1, 2, 3, 5)
    """

    SETTINGS = ("filters", "kernel_size", "halve", "use_bias", "activate")

    def __init__(self, filters, kernel_size, halve=False, use_bias=True, activate=True, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.halve = filters, kernel_size, halve
        self.use_bias, self.activate = use_bias, activate

    def build(self, input_shape):
        self.add_kernel((self.kernel_size, self.kernel_size, input_shape[-1], self.filters))
        if self.use_bias:
            self.add_bias(self.filters)

    def call(self, x):
        kernel = self.kernel * self.gain
        if not self.halve:
            x = ops.conv(x, kernel, padding="same")
        elif self.kernel_size == 1:  # halved first: fewer pixels to convolve
            x = ops.conv(blur(x, padding=1, stride=2), kernel)
        else:
            x = ops.conv(blur(x, padding=self.kernel_size // 2 + 1), kernel, 2)
        x = x + self.bias if self.use_bias else x
        return leaky(x) if self.activate else x

    def compute_output_shape(self, input_shape):
        batch, *sides, _ = input_shape
        return (batch, *(side // 2 if self.halve else side for side in sides), self.filters)


@keras.saving.register_keras_serializable(package="keras_segen")
class StyledConv2D(Equalized):
    """A convolution whose kernel has a style, with noise, a bias and a leaky ReLU behind it.

    The kernel of an image is that of the layer, times the style along its input channels, and then
    scaled to length 1 for each output channel (demodulation), so that a style changes what is
    mixed, and not how strong the result is. With s the style of an image and k the kernel:

        kernel of the image = s[i] * k[y, x, i, o] / length[o]
        length[o]^2         = sum over i of s[i]^2 * (sum over y, x of k[y, x, i, o]^2)

    s belongs to the input and length to the output, so both are taken out of the convolution.

    Takes `[x, styles, noise]`: features `(batch, height, width, channels)`, styles
    `(batch, layers, latent_dim)`, noise `(batch, pixels of all layers)`. Without noise it is the
    layer to RGB: linear.

    Args:
        filters: int, channels of the result.
        kernel_size: int, odd.
        style: int, which of the styles is this layer's.
        noise_from: int, where this layer's noise begins; None for a layer without.
        double: bool, whether the result has twice the height and width.
        demodulate: bool, whether kernels get length 1.

    Example:

    >>> x, styles = ops.ones((1, 4, 6, 2)), ops.ones((1, 3, 8))
    >>> tuple(StyledConv2D(5, 3, style=2, double=True)([x, styles]).shape)
    (1, 8, 12, 5)
    """

    SETTINGS = ("filters", "kernel_size", "style", "noise_from", "double", "demodulate")

    def __init__(
        self,
        filters,
        kernel_size,
        style,
        noise_from=None,
        double=False,
        demodulate=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.style = filters, kernel_size, style
        self.noise_from, self.double, self.demodulate = noise_from, double, demodulate

    def build(self, input_shape):
        channels, styles = input_shape[0][-1], input_shape[1]
        self.add_kernel((self.kernel_size, self.kernel_size, channels, self.filters))
        self.add_bias(self.filters)
        self.affine = EqualizedDense(channels, start=1.0, dtype=self.dtype_policy, name="affine")
        self.affine.build((styles[0], styles[2]))
        if self.noise_from is not None:
            self.strength_initializer = keras.initializers.Zeros()
            self.strength = self.add_weight(
                shape=(), initializer=self.strength_initializer, name="strength"
            )

    def call(self, inputs):
        x, styles, *noise = inputs
        kernel = self.kernel * self.gain  # (k, k, channels, filters)
        style = self.affine(styles[:, self.style])  # (b, channels)
        x = x * style[:, None, None]
        if self.double:
            x = ops.conv_transpose(x, ops.transpose(kernel, (0, 1, 3, 2)), 2)  # one pixel more
            x = blur(x, padding=1, gain=4.0)
        else:
            x = ops.conv(x, kernel, padding="same")
        if self.demodulate:
            x = x * ops.cast(self.scales(style, kernel), x.dtype)[:, None, None]
        x = x + self.bias
        if not noise:
            return x
        height, width = x.shape[1:3]
        noise = noise[0][:, self.noise_from : self.noise_from + height * width]
        return leaky(x + self.strength * ops.reshape(noise, (-1, height, width, 1)))

    def scales(self, style, kernel):
        """One over the length of each image's kernels: (b, filters), at least in float32."""
        dtype = keras.backend.result_type(style.dtype, "float32")
        style, kernel = ops.cast(style, dtype), ops.cast(kernel, dtype)
        squares = ops.sum(ops.square(kernel), axis=(0, 1))  # (channels, filters)
        return ops.rsqrt(ops.matmul(ops.square(style), squares) + 1e-8)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape[0]
        factor = 2 if self.double else 1
        return (batch, factor * height, factor * width, self.filters)


@keras.saving.register_keras_serializable(package="keras_segen")
class Learned(layers.Layer):
    """The same array of weights, from N(0, 1), for every image of a batch; 'trainable' or fixed.

    Example:

    >>> tuple(Learned((4, 4, 8))(ops.zeros((2, 3))).shape)
    (2, 4, 4, 8)
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.value_initializer = RandomNormal(0.0, 1.0)

    def build(self, input_shape):
        self.value = self.add_weight(
            shape=self.shape, initializer=self.value_initializer, name="value"
        )

    def call(self, x):
        return ops.broadcast_to(self.value, (ops.shape(x)[0], *self.shape))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.shape)

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


@keras.saving.register_keras_serializable(package="keras_segen")
class MovingMean(layers.Layer):
    """Passes on what it gets, and in training remembers its mean over the last few hundred steps.

    Attributes:
        mean: weight `(size,)`; a step keeps 0.995 of it.

    Example:

    >>> layer = MovingMean()
    >>> x = layer(ops.ones((2, 1)), training=True)
    >>> round(float(ops.convert_to_numpy(layer.mean)[0]), 4)
    0.005
    """

    def build(self, input_shape):
        self.mean_initializer = keras.initializers.Zeros()
        self.mean = self.add_weight(
            shape=input_shape[-1:], initializer=self.mean_initializer, trainable=False, name="mean"
        )

    def call(self, x, training=False):
        if training:
            now = ops.mean(ops.stop_gradient(x), axis=0)
            self.mean.assign(now + 0.995 * (self.mean - now))
        return x

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="keras_segen")
class MinibatchDeviation(layers.Layer):
    """Appends a channel: how much the features differ between the images of a group.

    A G that makes the same image again and again is found out by it. A group has 4 images; a batch
    that 4 does not divide is one group.

    Reference: Karras et al. (2018), https://arxiv.org/abs/1710.10196

    Example:

    >>> x = MinibatchDeviation()(ops.reshape(ops.arange(8.0), (4, 1, 1, 2)))
    >>> [round(float(value), 3) for value in ops.convert_to_numpy(x)[0, 0, 0]]
    [0.0, 1.0, 2.236]
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, x):
        batch, (height, width, channels) = ops.shape(x)[0], x.shape[1:]
        size = 4 + (batch % 4 + 3) // 4 * (batch - 4)  # 4, or the batch where there is a rest
        wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        groups = ops.reshape(wide, (size, -1, height, width, channels))
        variance = ops.mean(ops.square(groups - ops.mean(groups, 0, keepdims=True)), 0)
        deviation = ops.mean(ops.sqrt(variance + 1e-8), axis=(1, 2, 3))  # (groups,)
        deviation = ops.reshape(deviation, (1, -1, 1, 1, 1)) + 0 * groups[..., :1]
        deviation = ops.reshape(deviation, (-1, height, width, 1))
        return ops.concatenate([x, ops.cast(deviation, x.dtype)], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] + 1)
