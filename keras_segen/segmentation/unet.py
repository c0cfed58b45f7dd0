"""U-Net: a network that looks at an image at several sizes and labels every pixel.

On the way down, each level halves the size and doubles the channels: the network sees more
context but loses position. On the way up, each level doubles the size and concatenates the
features that the way down had at that size (the skip), which restores sharp edges. A 1x1
convolution turns the channels of each pixel into one score per class.

Reference: Ronneberger, Fischer, Brox (2015), "U-Net: Convolutional Networks for Biomedical Image
Segmentation", https://arxiv.org/abs/1505.04597

Differs from the paper: 'same' padding, so that the output is as large as the input and skips need
no cropping; batch normalization after each 3x3 convolution, which then needs no bias; dropout, "at
the end of the contracting path", only on request. An encoder, if given, replaces the way down; the
skip at the full size is then the image itself.
"""

import keras
from keras import layers

from keras_segen.layers import CropLike, check_arguments, check_encoder, drop
from keras_segen.networks import Network


def unet(input_shape, num_classes, filters=(64, 128, 256, 512, 1024), dropout=0.0, encoder=None):
    """Builds a U-Net with batch normalization (Ronneberger et al., 2015).

    Args:
        input_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** (len(filters) - 1)`, or None for images of any such size. With an encoder, any
            size will do.
        num_classes: int, channels of the output.
        filters: tuple of ints, channels per level, from the full size down; its length is the
            number of levels, at least 2. With an encoder: channels of the way up, from the full
            size down, one for each halving by the encoder.
        dropout: float, the share of values dropped in training at the bottom and at the level
            above it.
        encoder: a `keras.Model` from images to a list of features at strides 2, 4, 8, …, such as
            `encoders.efficientnet_lite0()`, or None. It becomes one layer of the network, under
            its own name.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [0, 1], to
        logits `(batch, height, width, num_classes)`, float32.

    Raises:
        ValueError: when height or width cannot be halved `len(filters) - 1` times, when there
            are fewer than two levels, when a number is not positive, when `dropout` is not below
            1, or when the encoder does not fit the images or `filters`.

    Example:

    >>> unet((64, 64, 3), num_classes=2, filters=(8, 16)).output_shape
    (None, 64, 64, 2)
    """
    check_arguments(input_shape, num_classes, filters, any_size=encoder is not None)
    images = keras.Input(input_shape, name="images")  # (b, h, w, channels)

    # Down: each level leaves a skip; x is the bottom, after n halvings, with the most channels.
    if encoder is None:
        *skips, x = way_down(images, filters, dropout)  # x: (b, h/2^n, w/2^n, filters[n])
    else:
        check_encoder(encoder, input_shape, len(filters))
        *skips, last, x = [images, *encoder(images)]  # x: (b, h/2^n, w/2^n, the encoder's)
        skips.append(drop(last, dropout, name=f"skip{len(skips)}"))
        x = drop(x, dropout, name="bottom")

    # Up: the same sizes in reverse, each with its skip; s is 2^level.
    for level in reversed(range(len(skips))):
        x = upconv(x, filters[level], name=f"up{level}")  # (b, h/s, w/s, filters[level])
        if encoder is not None:  # odd sizes were rounded up
            x = CropLike(name=f"up{level}_crop")([x, skips[level]])
        x = layers.Concatenate(name=f"up{level}_skip")([skips[level], x])  # + the skip's channels
        x = double_conv(x, filters[level], name=f"up{level}")  # (b, h/s, w/s, filters[level])

    logits = layers.Conv2D(  # float32 also under mixed precision
        num_classes, 1, kernel_initializer="he_normal", dtype="float32", name="logits"
    )(x)  # (b, h, w, num_classes)
    model = Network(images, logits, name="unet")
    model.multiple = 2 ** (len(filters) - 1) if encoder is None else 1
    return model


def way_down(images, filters, dropout):
    """The features of each level, from the full size to the bottom; s is 2^level."""
    outputs = []
    x = images
    for level, level_filters in enumerate(filters):
        bottom = level == len(filters) - 1
        name = "bottom" if bottom else f"down{level}"
        x = double_conv(x, level_filters, name=name)  # (b, h/s, w/s, filters[level])
        if level >= len(filters) - 2:
            x = drop(x, dropout, name=name)
        outputs.append(x)
        if not bottom:
            x = layers.MaxPooling2D(2, name=f"{name}_pool")(x)  # (b, h/2s, w/2s, filters[level])
    return outputs


def double_conv(x, filters, name):
    """Twice: 3x3 convolution, batch normalization, ReLU. (b, h, w, …) to (b, h, w, filters)."""
    for i in (1, 2):
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,  # the normalization's beta does its work
            kernel_initializer="he_normal",
            name=f"{name}_conv{i}",
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm{i}")(x)
        x = layers.ReLU(name=f"{name}_relu{i}")(x)
    return x


def upconv(x, filters, name):
    """A 2x2 transposed convolution: (b, h, w, …) to (b, 2h, 2w, filters)."""
    return layers.Conv2DTranspose(
        filters, 2, strides=2, kernel_initializer="he_normal", name=f"{name}_upconv"
    )(x)
