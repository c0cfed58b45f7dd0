"""Plain U-Net: the smallest U-shaped network, as tutorials write it.

Each level has one convolution, on the way down and on the way up. The way up repeats pixels, so
that only convolutions have weights. The output is one independent probability per class (a
sigmoid), for targets with one channel per class.

Reference: "Computer Vision with Large Models in Practice: Image Segmentation and Generation", a
tutorial's `create_model`; after Ronneberger, Fischer, Brox (2015), "U-Net: Convolutional Networks
for Biomedical Image Segmentation", https://arxiv.org/abs/1505.04597

Differs from the paper: one convolution per level instead of two, 'same' padding, no transposed
convolutions, a sigmoid per class instead of a softmax over the classes. Differs from the
tutorial: nothing.
"""

import keras
from keras import layers

from keras_segen.layers import check_arguments
from keras_segen.networks import Network


def plain_unet(
    input_shape=(256, 256, 3),
    num_classes=3,
    filters=(64, 128, 256, 512, 1024),
    activation="sigmoid",
):
    """Builds the plain U-Net of a tutorial: one convolution per level, no normalization.

    The tutorial trains it by `compile(optimizer="adam", loss="binary_crossentropy")` on targets
    in [0, 1] of the output's shape. The losses and metrics of this package take class ids and
    logits: for them, build it with `activation=None`.

    Args:
        input_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** (len(filters) - 1)`, or None for images of any such size.
        num_classes: int, channels of the output.
        filters: tuple of ints, channels per level, from the full size down; its length is the
            number of levels, at least 2.
        activation: "sigmoid" for a probability per class, or None for logits.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [0, 1], to
        probabilities (or logits) `(batch, height, width, num_classes)`, float32.

    Raises:
        ValueError: when height or width cannot be halved `len(filters) - 1` times, when there
            are fewer than two levels, or when a number is not positive.

    Example:

    >>> plain_unet((64, 64, 3), num_classes=3, filters=(8, 16)).output_shape
    (None, 64, 64, 3)
    """
    check_arguments(input_shape, num_classes, filters)
    *down_filters, bottom_filters = filters
    images = keras.Input(input_shape, name="images")  # (b, h, w, channels)

    # Down: each level keeps its features for the way up; s is 2^level, n the number of halvings.
    x = images
    skips = []
    for level, level_filters in enumerate(down_filters):
        x = conv(x, level_filters, name=f"down{level}_conv")  # (b, h/s, w/s, filters[level])
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)  # (b, h/2s, w/2s, filters[level])

    x = conv(x, bottom_filters, name="bottom_conv")  # (b, h/2^n, w/2^n, filters[n])

    # Up: the same sizes in reverse, each with its skip.
    for level in reversed(range(len(down_filters))):
        x = layers.UpSampling2D(2, name=f"up{level}_repeat")(x)  # (b, h/s, w/s, filters[level+1])
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])  # + filters[level]
        x = conv(x, down_filters[level], name=f"up{level}_conv")  # (b, h/s, w/s, filters[level])

    outputs = layers.Conv2D(  # float32 also under mixed precision
        num_classes, 1, padding="same", activation=activation, dtype="float32", name="outputs"
    )(x)  # (b, h, w, num_classes)
    model = Network(images, outputs, name="plain_unet")
    model.multiple = 2 ** len(down_filters)
    return model


def conv(x, filters, name):
    """A 3x3 convolution with ReLU: (b, h, w, …) to (b, h, w, filters)."""
    return layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
