"""U-Net: a network that looks at an image at several sizes and labels every pixel.

On the way down, each level halves the image and doubles the channels: what is seen grows, where
it is gets lost. On the way up, each level doubles the size again and takes back the picture that
the way down had at that size (the skip), so that edges land where they were. The last layer
turns the channels of each pixel into one score per class.

Reference: Ronneberger, Fischer, Brox (2015), "U-Net: Convolutional Networks for Biomedical Image
Segmentation", https://arxiv.org/abs/1505.04597

Differs from the paper: convolutions pad ('same'), so that the output is as large as the input
and skips need no cropping; batch normalization after each 3x3 convolution (which then needs no
bias); no dropout at the bottom.
"""

import keras
from keras import layers

from keras_segen.layers import check_arguments


def unet(input_shape, num_classes, filters=(64, 128, 256, 512, 1024)):
    """Builds a U-Net with batch normalization (Ronneberger et al., 2015).

    Args:
        input_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** (len(filters) - 1)`, or None for images of any such size.
        num_classes: int, channels of the output.
        filters: tuple of ints, channels per level, from the full size down; its length is the
            number of levels, at least 2.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [0, 1], to
        logits `(batch, height, width, num_classes)`, float32.

    Raises:
        ValueError: when height or width cannot be halved `len(filters) - 1` times, when there
            are fewer than two levels, or when a number is not positive.

    Example:

    >>> unet((64, 64, 3), num_classes=2, filters=(8, 16)).output_shape
    (None, 64, 64, 2)
    """
    check_arguments(input_shape, num_classes, filters)
    *down_filters, bottom_filters = filters
    images = keras.Input(input_shape, name="images")

    # Down: (H, W), (H/2, W/2), … Each level keeps its picture for the way up.
    x = images
    skips = []
    for level, level_filters in enumerate(down_filters):
        x = double_conv(x, level_filters, name=f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)

    # The bottom: the smallest picture, the most channels.
    x = double_conv(x, bottom_filters, name="bottom")

    # Up: the same sizes in reverse, each with its skip.
    for level in reversed(range(len(down_filters))):
        x = up_and_concatenate(x, skips[level], down_filters[level], name=f"up{level}")
        x = double_conv(x, down_filters[level], name=f"up{level}")

    # One score per class and pixel: (H, W, num_classes), in float32 also under mixed precision.
    logits = layers.Conv2D(
        num_classes, 1, kernel_initializer="he_normal", dtype="float32", name="logits"
    )(x)
    return keras.Model(images, logits, name="unet")


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


def up_and_concatenate(x, skip, filters, name):
    """Doubles height and width by a 2x2 transposed convolution and appends the skip's channels."""
    x = layers.Conv2DTranspose(
        filters, 2, strides=2, kernel_initializer="he_normal", name=f"{name}_upconv"
    )(x)
    return layers.Concatenate(name=f"{name}_skip")([skip, x])
