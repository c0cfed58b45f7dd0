"""Layers and checks that several models share and Keras lacks."""

import keras
import numpy as np
from keras import layers, ops

from keras_segen.arguments import as_int, as_ints, as_number


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


def drop(x, dropout, name):
    """Dropout with a random state that `initialize` sets; a `dropout` of 0 adds no layer.

    Raises:
        ValueError: when `dropout` is not a number of at least 0 and below 1.
    """
    share = as_number(dropout)
    if share is None or not 0 <= share < 1:
        raise ValueError(f"dropout is {dropout!r}, expected a share of at least 0 and below 1.")
    if not share:
        return x
    # The seed makes Keras keep that state, on both backends; without it PyTorch has none.
    return layers.Dropout(dropout, seed=0, name=f"{name}_dropout")(x)


def codes_with_class(latent_dim, num_classes):
    """The inputs of a network that decodes codes, of a class if there are classes.

    Args:
        latent_dim: int, numbers in a code.
        num_classes: int or None.

    Returns:
        inputs: the codes `(batch, latent_dim)`; with classes `[codes, labels]`, labels int32
            `(batch,)`.
        x: the codes; with classes `(batch, 2 * latent_dim)`, a learned vector of the class
            appended.
    """
    codes = keras.Input((latent_dim,), name="codes")
    if num_classes is None:
        return codes, codes
    labels = keras.Input((), dtype="int32", name="labels")
    of_class = layers.Embedding(num_classes, latent_dim, name="class_embedding")(labels)
    return [codes, labels], layers.Concatenate(name="class")([codes, of_class])


def check_encoder(encoder, input_shape, num_features):
    """Checks that an encoder takes the images of a network and gives as many features as it needs.

    Args:
        encoder: a `keras.Model` from images to a list of features at strides 2, 4, 8, ….
        input_shape: tuple `(height, width, channels)` of the network.
        num_features: int, how many features the network takes.

    Raises:
        ValueError: when it is no encoder, takes other channels, or gives another number of
            features.
    """
    if not isinstance(encoder, keras.Model):
        raise ValueError(
            f"encoder is {encoder!r}, expected None or a keras.Model such as "
            "keras_segen.segmentation.encoders.efficientnet_lite0()."
        )
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
        ValueError: when there are fewer than two levels, when a number is not a positive integer,
            or when height or width cannot be halved often enough, or Keras is set to channels
            first.

    Example:

    >>> check_arguments((64, None, 3), num_classes=2, filters=(16, 32, 64))
    """
    check_channels_last()
    check_positive("num_classes", num_classes)
    levels = 1 if any_size else 2
    numbers = as_ints(filters)
    if numbers is None or len(numbers) < levels or not all(n and n > 0 for n in numbers):
        raise ValueError(
            f"filters gives the channels of each level: at least {('one', 'two')[levels - 1]} "
            f"positive integers, such as (64, 128, 256); found {filters!r}."
        )
    shape = as_ints(input_shape)
    is_shape = shape is not None and len(shape) == 3 and shape[2] is not None
    if not is_shape or not all(side is None or side > 0 for side in shape):
        raise ValueError(
            "input_shape is (height, width, channels), positive integers without the batch, such "
            f"as (64, 64, 3); height and width may be None; found {input_shape!r}."
        )
    if any_size:
        return
    multiple = 2 ** (len(numbers) - 1)
    padded = tuple(side and -(-side // multiple) * multiple for side in shape[:2])
    if padded != shape[:2]:
        raise ValueError(
            f"A network of {len(numbers)} levels halves its images {len(numbers) - 1} times, so "
            f"height and width must be multiples of {multiple}; found input_shape="
            f"{shape}. Pad the images to {(*padded, shape[2])}, or use fewer filters."
        )


def check_channels_last():
    """Raises a ValueError if Keras is set to channels first."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Keras is set to 'channels_first', and images here are (height, width, channels): call "
            "keras.config.set_image_data_format('channels_last'), or change ~/.keras/keras.json."
        )


def check_positive(name, value):
    """Raises a ValueError if an argument is not a positive integer."""
    number = as_int(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive integer; found {value!r}.")


def check_image_shape(image_shape, filters, latent_dim=1, num_classes=None, halvings=None):
    """Checks the arguments of a network between images and a small feature map.

    Args:
        image_shape: tuple `(height, width, channels)` of ints.
        filters: tuple of ints, channels at half the size, a quarter of it, ….
        latent_dim: int, numbers in a code.
        num_classes: int or None.
        halvings: int, how often the images are halved; None means once for each of `filters`.

    Returns:
        `(height, width)` of the feature map: those of the image over `2 ** halvings`.

    Raises:
        ValueError: when a number is not a positive integer, or height or width cannot be halved
            so often, or Keras is set to channels first.

    Example:

    >>> check_image_shape((32, 48, 3), filters=(64, 128, 256))
    (4, 6)
    """
    check_channels_last()
    check_positive("latent_dim", latent_dim)
    if num_classes is not None:
        check_positive("num_classes", num_classes)
    shape = as_ints(image_shape)
    for name, given, numbers in (
        ("image_shape", image_shape, shape),
        ("filters", filters, as_ints(filters)),
    ):
        if not numbers or not all(n and n > 0 for n in numbers):
            raise ValueError(f"{name} is a tuple of positive integers; found {given!r}.")
    if len(shape) != 3:
        raise ValueError(
            f"image_shape is (height, width, channels), such as (32, 32, 3); found {image_shape!r}."
        )
    halvings = len(filters) if halvings is None else halvings
    multiple = 2**halvings
    if shape[0] % multiple or shape[1] % multiple:
        raise ValueError(
            f"A network with filters={tuple(filters)} halves its images {halvings} times, so "
            f"height and width must be multiples of {multiple}; found image_shape="
            f"{shape}. Use fewer filters, or images of another size."
        )
    return shape[0] // multiple, shape[1] // multiple


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
        shape = (1, self._kernel().shape[-1])
        self.vector_u = self.add_weight(
            shape=shape, initializer=self.vector_u_initializer, trainable=False, name="vector_u"
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
