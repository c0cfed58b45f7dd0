"""U-Net: a network that looks at an image at several sizes and labels every pixel.

On the way down, each level halves the image and doubles the channels: what is seen grows, where
it is gets lost. On the way up, each level doubles the size again and takes back the picture that
the way down had at that size (the skip), so that edges land where they were. The last layer
turns the channels of each pixel into one score per class.

Reference: Ronneberger, Fischer, Brox (2015), "U-Net: Convolutional Networks for Biomedical Image
Segmentation", https://arxiv.org/abs/1505.04597

Differs from the paper: convolutions pad ('same'), so that the output is as large as the input
and skips need no cropping; batch normalization after each 3x3 convolution (which then needs no
bias); dropout, "at the end of the contracting path", only on request. With an encoder, that takes
the place of the way down, and the skip at the full size is the image itself.
"""

import keras
from keras import layers

from keras_segen.layers import CropLike, check_arguments, check_dropout, check_encoder, drop


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
        dropout: float, the share of values dropped in training at the two deepest levels of the
            way down: at the bottom, and before it where the last skip leaves.
        encoder: a `keras.Model` from the images to a list of features at strides 2, 4, 8, …, such
            as `encoders.efficientnet_lite0()`, for the way down; None for convolutions. It
            becomes one layer of the network, under its own name.

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
    check_dropout(dropout)
    images = keras.Input(input_shape, name="images")

    # Down: (H, W), (H/2, W/2), … Each level keeps its picture for the way up; the last one is the
    # bottom: the smallest picture, the most channels.
    if encoder is None:
        *skips, x = way_down(images, filters, dropout)
    else:
        check_encoder(encoder, input_shape, len(filters))
        *skips, last, x = [images, *encoder(images)]
        skips.append(drop(last, dropout, name=f"skip{len(skips)}"))
        x = drop(x, dropout, name="bottom")

    # Up: the same sizes in reverse, each with its skip.
    for level in reversed(range(len(skips))):
        x = upconv(x, filters[level], name=f"up{level}")
        if encoder is not None:  # odd sizes were rounded up
            x = CropLike(name=f"up{level}_crop")([x, skips[level]])
        x = layers.Concatenate(name=f"up{level}_skip")([skips[level], x])
        x = double_conv(x, filters[level], name=f"up{level}")

    # One score per class and pixel: (H, W, num_classes), in float32 also under mixed precision.
    logits = layers.Conv2D(
        num_classes, 1, kernel_initializer="he_normal", dtype="float32", name="logits"
    )(x)
    return keras.Model(images, logits, name="unet")


def way_down(images, filters, dropout):
    """Pictures of each level, from the full size to the bottom."""
    outputs = []
    x = images
    for level, level_filters in enumerate(filters):
        bottom = level == len(filters) - 1
        name = "bottom" if bottom else f"down{level}"
        x = double_conv(x, level_filters, name=name)
        if level >= len(filters) - 2:
            x = drop(x, dropout, name=name)
        outputs.append(x)
        if not bottom:
            x = layers.MaxPooling2D(2, name=f"{name}_pool")(x)
    return outputs


def double_conv(x, filters, name):
    """Twice: 3x3 convolution, batch normalization, ReLU."""
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
    """Doubles height and width by a 2x2 transposed convolution."""
    return layers.Conv2DTranspose(
        filters, 2, strides=2, kernel_initializer="he_normal", name=f"{name}_upconv"
    )(x)
