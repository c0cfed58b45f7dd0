"""FCN: an image classifier turned into a network that labels every pixel.

The fully connected layers of a classifier become convolutions: they slide over an image of any
size and give scores on a coarse grid, one per 32 x 32 pixels. Interpolation enlarges these scores
to the image (FCN-32s). Adding the scores of finer features, at stride 16 (FCN-16s) and 8 (FCN-8s),
sharpens the edges.

Reference: Long, Shelhamer, Darrell (2015), "Fully Convolutional Networks for Semantic
Segmentation", https://arxiv.org/abs/1411.4038; its VGG16: Simonyan, Zisserman (2015), "Very Deep
Convolutional Networks for Large-Scale Image Recognition", https://arxiv.org/abs/1409.1556

Differs from the paper: 'same' padding instead of a border of 100 pixels around the image, so that
crops need no offset; images in [0, 1] instead of 255 levels minus a mean; convolutions that are
not pretrained start as in He et al. (2015). As in the paper, the last upsampling is fixed and
those by two are learned.
"""

import keras
from keras import layers

from keras_segen.layers import Bilinear, CropLike, check_arguments, check_encoder, drop
from keras_segen.networks import Network


def fcn(
    input_shape,
    num_classes,
    stride=8,
    filters=(64, 128, 256, 512, 512, 4096),
    dropout=0.5,
    encoder=None,
):
    """Builds FCN-8s, 16s or 32s on VGG16 or on an encoder (Long et al., 2015).

    As in the paper, FCN-16s starts from a trained FCN-32s, and 8s from 16s: the layers that they
    share have the same names, and `take_weights` copies their weights.

    Args:
        input_shape: tuple `(height, width, channels)`, any size; None for images of any size.
        num_classes: int, channels of the output.
        stride: int, 8, 16 or 32: the finest features that get scores.
        filters: tuple of 6 ints: channels of the five stages of VGG16, then those of fc6 and
            fc7. With an encoder, 1 int: those of fc6 and fc7.
        dropout: float, the share of values dropped in training after fc6 and after fc7.
        encoder: a `keras.Model` from images to a list of five features at strides 2, 4, 8, 16,
            32, such as `encoders.vgg16()`, in place of VGG16's convolutions; or None. It becomes
            one layer of the network, under its own name.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [0, 1], to
        logits `(batch, height, width, num_classes)`, float32.

    Raises:
        ValueError: when `stride` is none of these, when `filters` has another length or a number is
            not positive, when `dropout` is not below 1, or when the encoder does not fit.

    Example:

    >>> fcn((50, None, 3), num_classes=2, filters=(4, 4, 4, 4, 4, 8)).output_shape
    (None, 50, None, 2)
    """
    check_arguments(input_shape, num_classes, filters, any_size=True)
    if stride not in (8, 16, 32):
        raise ValueError(f"stride is {stride}, expected 8, 16 or 32.")
    if len(filters) != (6 if encoder is None else 1):
        raise ValueError(
            "filters gives the channels of VGG16's five stages, then those of fc6 and fc7: six "
            f"positive integers; with an encoder the last one alone; found {filters}."
        )
    images = keras.Input(input_shape, name="images")  # (b, h, w, channels)

    # Features at strides 2, 4, 8, 16, 32; odd sizes are rounded up.
    if encoder is None:
        pools = vgg16_stages(images, filters[:5])  # (b, h/2, w/2, filters[0]), …
    else:
        check_encoder(encoder, input_shape, 5)
        pools = encoder(images)

    # The fully connected layers as convolutions.
    x = fc(pools[4], filters[-1], 7, dropout, name="fc6")  # (b, h/32, w/32, filters[-1])
    x = fc(x, filters[-1], 1, dropout, name="fc7")  # (b, h/32, w/32, filters[-1])
    x = score(x, num_classes, name="score_fr")  # (b, h/32, w/32, num_classes)

    # Twice as large, plus the scores of the next finer features.
    if stride <= 16:
        x = enlarge(x, 2, name="upscore2")  # (b, h/16, w/16, num_classes)
        x = fuse(x, score(pools[3], num_classes, name="score_pool4"), name="fuse_pool4")
    if stride == 8:
        x = enlarge(x, 2, name="upscore_pool4")  # (b, h/8, w/8, num_classes)
        x = fuse(x, score(pools[2], num_classes, name="score_pool3"), name="fuse_pool3")

    x = enlarge(x, stride, name=f"upscore{stride}", learned=False)
    logits = CropLike(name="logits")([x, images])  # (b, h, w, num_classes)
    return Network(images, logits, name="fcn")


def vgg16_stages(images, filters):
    """The outputs of VGG16's five poolings: (b, h/2, w/2, filters[0]) to (b, h/32, w/32, …)."""
    outputs = []
    x = images
    for stage, (convolutions, channels) in enumerate(zip((2, 2, 3, 3, 3), filters, strict=True), 1):
        for i in range(1, convolutions + 1):
            x = conv(x, channels, 3, name=f"conv{stage}_{i}")
        x = layers.MaxPooling2D(2, padding="same", name=f"pool{stage}")(x)  # halved
        outputs.append(x)
    return outputs


def conv(x, filters, kernel_size, name):
    """A convolution with ReLU."""
    return layers.Conv2D(
        filters,
        kernel_size,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name=name,
    )(x)


def fc(x, filters, kernel_size, dropout, name):
    """A fully connected layer as a convolution, with dropout."""
    return drop(conv(x, filters, kernel_size, name), dropout, name)


def score(x, num_classes, name):
    """A score per class, 0 at the start as in the paper; float32 also under mixed precision."""
    return layers.Conv2D(num_classes, 1, kernel_initializer="zeros", dtype="float32", name=name)(x)


def fuse(x, finer, name):
    """Adds enlarged scores to those of finer features."""
    x = CropLike(name=f"{name}_crop")([x, finer])
    return layers.Add(dtype="float32", name=name)([x, finer])


def enlarge(x, factor, name, learned=True):
    """Enlarges scores by a transposed convolution that starts as bilinear interpolation."""
    return layers.Conv2DTranspose(
        x.shape[-1],
        2 * factor,
        strides=factor,
        padding="same",
        use_bias=False,
        kernel_initializer=Bilinear(),
        dtype="float32",
        trainable=learned,
        name=name,
    )(x)
