"""Layers and checks that several models share and Keras lacks."""

import keras
import numpy as np
from keras import layers, ops


@keras.saving.register_keras_serializable(package="keras_segen")
class CropLike(layers.Layer):
    """Crops images to the size of others: rows at the bottom, columns on the right.

    Halving an odd size rounds up, so doubling it again gives one row or column too many.

    Takes `[images, like]`, tensors `(batch, height, width, channels)`, the first at least as high
    and as wide as the second; returns the first, cropped. Sizes may be unknown until it runs.

    Example:

    >>> images, like = ops.ones((1, 6, 8, 2)), ops.ones((1, 5, 8, 3))
    >>> tuple(CropLike()([images, like]).shape)
    (1, 5, 8, 2)
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, inputs):
        images, like = inputs
        height, width = ops.shape(like)[1:3]
        return images[:, :height, :width]

    def compute_output_spec(self, inputs):
        images, like = inputs
        shape = (images.shape[0], *like.shape[1:3], images.shape[3])
        return keras.KerasTensor(shape, dtype=images.dtype)


@keras.saving.register_keras_serializable(package="keras_segen")
class Bilinear(keras.initializers.Initializer):
    """The kernel of a transposed convolution that upsamples by bilinear interpolation.

    For an even factor f: kernel size 2 f, stride f, 'same' padding; channels do not mix. Beyond the
    border values count as 0, so that half a pixel along it fades.

    Example:

    >>> Bilinear().draw(None, (4, 4, 1, 1))[:, 1, 0, 0]
    array([0.1875, 0.5625, 0.5625, 0.1875])
    """

    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor(self.draw(None, shape), dtype)

    def draw(self, generator, shape):
        """Returns the kernel `(height, width, outputs, inputs)`; the generator is not used."""
        height, width, outputs, inputs = shape
        kernel = np.outer(_tent(height), _tent(width))
        return kernel[:, :, None, None] * np.eye(outputs, inputs)


def _tent(size):
    """Weights of linear interpolation by a factor of size / 2."""
    return 1 - np.abs(np.arange(size) - (size - 1) / 2) / (size / 2)


def check_dropout(dropout):
    """Checks a share of values to drop.

    Raises:
        ValueError: when it is not at least 0 and below 1.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected a share of at least 0 and below 1.")


def drop(x, dropout, name):
    """Dropout with a random state that `initialize` sets; a `dropout` of 0 adds no layer."""
    if not dropout:
        return x
    # The seed makes Keras keep that state, on both backends; without it PyTorch has none.
    return layers.Dropout(dropout, seed=0, name=f"{name}_dropout")(x)


def check_encoder(encoder, input_shape, num_features):
    """Checks that an encoder takes the images of a network and gives as many features as it needs.

    Args:
        encoder: a `keras.Model` from images to a list of features at strides 2, 4, 8, ….
        input_shape: tuple `(height, width, channels)` of the network.
        num_features: int, how many features the network takes.

    Raises:
        ValueError: when the encoder takes other channels, or gives another number of features.
    """
    if len(encoder.outputs) != num_features:
        raise ValueError(
            f"Encoder {encoder.name!r} gives {len(encoder.outputs)} features, one for each halving "
            f"of the images; expected {num_features}."
        )
    for size, fixed in zip(input_shape, encoder.inputs[0].shape[1:], strict=True):
        if fixed is not None and size != fixed:
            raise ValueError(
                f"Encoder {encoder.name!r} takes images of shape {encoder.inputs[0].shape[1:]}; "
                f"found input_shape={tuple(input_shape)}. Gray images are read as RGB with "
                "channels=3."
            )


def check_arguments(input_shape, num_classes, filters, any_size=False):
    """Checks the arguments of a network that halves its images from level to level.

    Args:
        input_shape: tuple `(height, width, channels)`; height and width may be None (any size).
        num_classes: int, channels of the output.
        filters: tuple of ints, channels per level: between two levels the images are halved.
        any_size: bool, whether the network also takes sizes that cannot be halved so often; then
            one level is enough.

    Raises:
        ValueError: when there are fewer than two levels, when a number is not positive, or when
            height or width cannot be halved often enough, or Keras is set to channels first.

    Example:

    >>> check_arguments((64, None, 3), num_classes=2, filters=(16, 32, 64))
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Keras is set to 'channels_first', and images here are (height, width, channels): call "
            "keras.config.set_image_data_format('channels_last'), or change ~/.keras/keras.json."
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer; found {num_classes}.")
    levels = 1 if any_size else 2
    if len(filters) < levels or not all(isinstance(f, int) and f > 0 for f in filters):
        raise ValueError(
            f"filters gives the channels of each level: at least {('one', 'two')[levels - 1]} "
            f"positive integers, such as (64, 128, 256); found {filters}."
        )
    too_small = any(size is not None and size < 1 for size in input_shape)
    if len(input_shape) != 3 or input_shape[2] is None or too_small:
        raise ValueError(
            "input_shape is (height, width, channels), positive integers without the batch; "
            f"height and width may be None; found {tuple(input_shape)}."
        )
    if any_size:
        return
    multiple = 2 ** (len(filters) - 1)
    padded = [size and -(-size // multiple) * multiple for size in input_shape[:2]]
    if padded != list(input_shape[:2]):
        raise ValueError(
            f"A network of {len(filters)} levels halves its images {len(filters) - 1} times, so "
            f"height and width must be multiples of {multiple}; found input_shape="
            f"{tuple(input_shape)}. Pad the images to {(*padded, input_shape[2])}, or use fewer "
            "filters."
        )


def check_image_shape(image_shape, filters):
    """Checks the arguments of a network between images and a small feature map.

    Args:
        image_shape: tuple `(height, width, channels)` of ints.
        filters: tuple of ints, channels at half the size, a quarter of it, ….

    Returns:
        `(height, width)` of the feature map: those of the image over `2 ** len(filters)`.

    Raises:
        ValueError: when a number is not a positive integer, or height or width cannot be halved
            so often, or Keras is set to channels first.

    Example:

    >>> check_image_shape((32, 48, 3), filters=(64, 128, 256))
    (4, 6)
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Keras is set to 'channels_first', and images here are (height, width, channels): call "
            "keras.config.set_image_data_format('channels_last'), or change ~/.keras/keras.json."
        )
    for name, numbers in (("image_shape", image_shape), ("filters", filters)):
        if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"{name} is a tuple of positive integers; found {numbers}.")
    if len(image_shape) != 3:
        raise ValueError(f"image_shape is (height, width, channels); found {image_shape}.")
    multiple = 2 ** len(filters)
    if image_shape[0] % multiple or image_shape[1] % multiple:
        raise ValueError(
            f"A network with filters={tuple(filters)} halves its images {len(filters)} times, so "
            f"height and width must be multiples of {multiple}; found image_shape="
            f"{tuple(image_shape)}. Use fewer filters, or images of another size."
        )
    return image_shape[0] // multiple, image_shape[1] // multiple


@keras.saving.register_keras_serializable(package="keras_segen")
class SpectralNormalization(layers.Wrapper):
    """Divides the kernel of a layer by its largest singular value, so that its slope is at most 1.

    One power iteration per call estimates the value, from a vector that is kept between calls and
    updated in training only. The kernel itself does not change; its gradient goes through the
    division. (Keras' layer of this name overwrites the kernel in every call in training, so that
    a GAN's generator step would change the discriminator.)

    Reference: Miyato et al. (2018), "Spectral normalization for generative adversarial networks",
    https://arxiv.org/abs/1802.05957

    Args:
        layer: a `keras.layers.Layer` with a `kernel` or with `embeddings`: Conv2D, Dense,
            Embedding. The last axis of the kernel counts the outputs.

    Example:

    >>> layer = SpectralNormalization(layers.Dense(4, kernel_initializer="ones", use_bias=False))
    >>> x = ops.ones((1, 4))
    >>> for _ in range(10):
    ...     y = layer(x, training=True)
    >>> ops.convert_to_numpy(y).round(3)
    array([[1., 1., 1., 1.]], dtype=float32)
    """

    def build(self, input_shape=None):
        super().build(input_shape)
        self.vector_u_initializer = keras.initializers.RandomNormal()
        self.vector_u = self.add_weight(
            shape=(1, self._kernel().shape[-1]),
            initializer=self.vector_u_initializer,
            trainable=False,
            name="vector_u",
        )

    def call(self, inputs, training=False):
        kernel = self._kernel()
        dtype = keras.backend.result_type(kernel.dtype, "float32")
        matrix = ops.reshape(ops.cast(kernel, dtype), (-1, kernel.shape[-1]))  # (n, outputs)
        fixed = ops.stop_gradient(matrix)
        v = _unit(ops.matmul(ops.cast(self.vector_u, dtype), ops.transpose(fixed)))  # (1, n)
        u = _unit(ops.matmul(v, fixed))  # (1, outputs)
        if training:
            self.vector_u.assign(u)
        sigma = ops.sum(ops.matmul(v, matrix) * u)
        # The layer is called with this kernel in place of its own.
        values = [
            ops.cast(kernel, dtype) / sigma if variable is kernel else variable
            for variable in self.layer.trainable_variables
        ]
        outputs, _ = self.layer.stateless_call(values, self.layer.non_trainable_variables, inputs)
        return outputs

    def _kernel(self):
        kernel = getattr(self.layer, "kernel", None)
        return self.layer.embeddings if kernel is None else kernel

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


def _unit(x):
    return x / ops.maximum(ops.norm(x), 1e-12)
