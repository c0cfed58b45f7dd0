"""StyleGAN2: a code becomes a style, and the style rules every layer of a picture that grows.

A *mapping* network turns the code z into a style w. The *synthesis* network starts from one
learned 4x4 picture, the same for all images, and doubles it level by level. What differs between
two images comes in at each convolution: the style says how much each input channel counts, and
fresh noise moves details, such as single hairs. Coarse layers decide on pose and shape, fine ones
on color. The discriminator goes back down in residual blocks and at its end sees how much the
images of a batch differ from each other.

Reference: Karras, Laine, Aila (2019), "A style-based generator architecture for generative
adversarial networks", https://arxiv.org/abs/1812.04948; Karras et al. (2020), "Analyzing and
improving the image quality of StyleGAN", https://arxiv.org/abs/1912.04958. Classes as in Karras et
al. (2020), "Training generative adversarial networks with limited data",
https://arxiv.org/abs/2006.06676; Miyato, Koyama (2018), https://arxiv.org/abs/1802.05637.

Differs from the paper: no kernel is made for each image. A style scales the channels that come in,
one convolution serves the whole batch, and its outputs are scaled, which is the same. The
discriminator's vector of a class is learned as it is, not by a mapping network. Images of any size
that can be halved often enough, also wide ones.
"""

import math

import keras
from keras import layers
from keras.initializers import RandomNormal

from keras_segen.generation.styled_layers import (
    EqualizedConv2D,
    EqualizedDense,
    Learned,
    MinibatchDeviation,
    MovingMean,
    StyledConv2D,
)
from keras_segen.layers import Bilinear, check_image_shape, check_positive


def stylegan2_generator(
    image_shape, latent_dim=512, filters=None, num_classes=None, mapping_layers=8
):
    """Builds the generator of StyleGAN2 (Karras et al., 2020).

    Args:
        image_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** (len(filters) - 1)`.
        latent_dim: int, numbers in a code, and in a style.
        filters: tuple of ints, channels at the image's size, at half of it, …; one less than its
            length is the number of doublings. None means the paper's: down to 4 pixels,
            32,768 / size of them but at most 512.
        num_classes: int or None. With classes, the mapping gets a learned vector of the label too.
        mapping_layers: int, dense layers from code to style; 2 are used for small images.

    Returns:
        A `keras.Model` from codes `(batch, latent_dim)`, or from `[codes, labels]` with labels
        int32 `(batch,)`, to images `(batch, height, width, channels)`, float32, most values in
        [-1, 1]. It has two networks inside: `mapping`, from the same inputs to styles
        `(batch, latent_dim)`, and `synthesis`, from `[styles, noise]`: a style for each of
        `2 * len(filters)` layers, `(batch, layers, latent_dim)`, and standard normal noise
        `(batch, pixels of all layers)`. By itself it uses one style for all layers, and the same
        noise for all images.

    Raises:
        ValueError: when height or width cannot be halved that often, or a number is not positive.

    Example:

    >>> stylegan2_generator((32, 32, 3), 8, filters=(8, 8, 8, 8)).output_shape
    (None, 32, 32, 3)
    """
    filters = default_filters(image_shape) if filters is None else filters
    check_positive("mapping_layers", mapping_layers)
    smallest = check_image_shape(
        image_shape, filters, latent_dim, num_classes, halvings=len(filters) - 1
    )
    codes = keras.Input((latent_dim,), name="codes")
    inputs = codes
    if num_classes is not None:
        inputs = [codes, keras.Input((), dtype="int32", name="labels")]
    to_style = mapping(latent_dim, num_classes, mapping_layers)
    to_image = synthesis(smallest, image_shape[2], latent_dim, filters)

    style = to_style(inputs)  # (b, latent_dim)
    styles = layers.RepeatVector(2 * len(filters), dtype="float32", name="styles")(style)
    noise = Learned((to_image.inputs[1].shape[1],), trainable=False, name="noise")(codes)
    return keras.Model(inputs, to_image([styles, noise]), name="stylegan2_generator")


def mapping(latent_dim, num_classes, mapping_layers):
    """From codes to styles: dense layers that learn a hundred times as slowly as the others."""
    codes = keras.Input((latent_dim,), name="codes")
    inputs, x = codes, normalized(codes, name="codes")
    if num_classes is not None:
        labels = keras.Input((), dtype="int32", name="labels")
        of_class = layers.Embedding(
            num_classes, latent_dim, RandomNormal(0.0, 1.0), dtype="float32", name="class_embedding"
        )(labels)
        x = [x, normalized(of_class, name="class")]
        inputs, x = [codes, labels], layers.Concatenate(dtype="float32", name="class")(x)
    for i in range(mapping_layers):
        x = EqualizedDense(latent_dim, rate=0.01, activate=True, dtype="float32", name=f"dense{i}")(
            x
        )
    return keras.Model(inputs, MovingMean(dtype="float32", name="mean")(x), name="mapping")


def synthesis(smallest, channels, latent_dim, filters):
    """From a style for each layer, and noise, to images: levels of twice the size each."""
    sizes = [tuple(side << level for side in smallest) for level in range(len(filters))][::-1]
    convs = [level for level in reversed(range(len(filters))) for _ in range(2)][1:]
    pixels = [math.prod(sizes[level]) for level in convs]  # of noise, for each convolution
    styles = keras.Input((2 * len(filters), latent_dim), name="styles")
    noise = keras.Input((sum(pixels),), name="noise")

    x = Learned((*smallest, filters[-1]), name="start")(styles)  # (b, 4, 4, filters[-1])
    image, before = None, None
    for i, level in enumerate(convs):
        double = before is not None and level != before
        number = 1 if double else 2
        x = StyledConv2D(
            filters[level],
            3,
            style=i,
            noise_from=sum(pixels[:i]),
            double=double,
            name=f"up{level}_conv{number}",
        )([x, styles, noise])  # (b, h/s, w/s, filters[level]), s is 2^level
        if number == 2:  # what this level adds to the image: skip connections of RGB
            rgb = StyledConv2D(channels, 1, style=i + 1, demodulate=False, name=f"up{level}_rgb")
            rgb = rgb([x, styles])
            image = rgb if image is None else layers.Add(name=f"up{level}")([doubled(image), rgb])
        before = level
    images = layers.Activation("linear", dtype="float32", name="images")(image)
    return keras.Model([styles, noise], images, name="synthesis")


def stylegan2_discriminator(image_shape, filters=None, num_classes=None):
    """Builds the residual discriminator of StyleGAN2 (Karras et al., 2020).

    Args:
        image_shape: tuple `(height, width, channels)`, as in `stylegan2_generator`.
        filters: tuple of ints or None, as in `stylegan2_generator`.
        num_classes: int or None. With classes, D gets the label too: the inner product of a
            learned vector with the features is added to the score (projection).

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [-1, 1], or
        from `[images, labels]` with labels int32 `(batch,)`, to scores `(batch, 1)`, float32.
        Four images, or the whole batch where 4 does not divide it, are judged together.

    Raises:
        ValueError: as `stylegan2_generator`.

    Example:

    >>> stylegan2_discriminator((32, 32, 3), filters=(8, 8, 8, 8)).output_shape
    (None, 1)
    """
    filters = default_filters(image_shape) if filters is None else filters
    check_image_shape(image_shape, filters, num_classes=num_classes, halvings=len(filters) - 1)
    images = keras.Input(image_shape, name="images")
    x = EqualizedConv2D(filters[0], 1, name="rgb")(images)  # (b, h, w, filters[0])
    for level in range(len(filters) - 1):  # (b, h/2, w/2, filters[1]), (b, h/4, w/4, filters[2]), …
        x = down_block(x, filters[level], filters[level + 1], name=f"down{level}")
    x = MinibatchDeviation(name="deviation")(x)  # (b, 4, 4, filters[-1] + 1)
    x = layers.Flatten(name="flat")(EqualizedConv2D(filters[-1], 3, name="last_conv")(x))
    features = EqualizedDense(filters[-1], activate=True, dtype="float32", name="features")(x)
    scores = EqualizedDense(1, dtype="float32", name="scores")(features)  # (b, 1)
    if num_classes is None:
        return keras.Model(images, scores, name="stylegan2_discriminator")
    labels = keras.Input((), dtype="int32", name="labels")
    direction = layers.Embedding(
        num_classes, filters[-1], RandomNormal(0.0, 1.0), dtype="float32", name="class_embedding"
    )(labels)
    match = layers.Dot(1, dtype="float32", name="class_match")([features, direction])  # (b, 1)
    match = layers.Rescaling(filters[-1] ** -0.5, dtype="float32", name="class_score")(match)
    scores = layers.Add(dtype="float32", name="class_scores")([scores, match])
    return keras.Model([images, labels], scores, name="stylegan2_discriminator")


def down_block(x, filters, next_filters, name):
    """Two convolutions beside a shortcut, halved: (b, h, w, …) to (b, h/2, w/2, next_filters)."""
    shortcut = EqualizedConv2D(
        next_filters, 1, halve=True, use_bias=False, activate=False, name=f"{name}_shortcut"
    )(x)
    x = EqualizedConv2D(filters, 3, name=f"{name}_conv1")(x)
    x = EqualizedConv2D(next_filters, 3, halve=True, name=f"{name}_conv2")(x)
    x = layers.Add(name=f"{name}_sum")([x, shortcut])  # twice the variance of either
    return layers.Rescaling(0.5**0.5, name=name)(x)


def default_filters(image_shape):
    """The channels of the paper for an image: from its size down to 4 pixels."""
    height, width = check_image_shape(image_shape, filters=(1,), halvings=0)
    size, filters = min(height, width), []
    while size >= 4 or not filters:
        filters.append(max(1, min(32_768 // size, 512)))
        size //= 2
    return tuple(filters)


def normalized(x, name):
    """Scales vectors so that the mean of their squares is 1."""
    unit = layers.UnitNormalization(dtype="float32", name=f"{name}_unit")(x)
    return layers.Rescaling(x.shape[-1] ** 0.5, dtype="float32", name=f"{name}_scaled")(unit)


def doubled(image):
    """Doubles an image with the filter [1, 3, 3, 1], which is bilinear interpolation."""
    size = image.shape[1]
    return layers.Conv2DTranspose(
        image.shape[-1],
        4,
        2,
        "same",
        use_bias=False,
        kernel_initializer=Bilinear(),
        trainable=False,
        name=f"rgb{2 * size}",
    )(image)
