"""SNGAN: a GAN of residual networks whose discriminator has a bounded slope.

G and D are stacks of residual blocks: two 3x3 convolutions beside a shortcut. G doubles the size in
each block; D halves it in its first two. The weights of every layer of D are divided by their
largest singular value (spectral normalization): this bounds D's slope, so that G always gets a
useful gradient.

Reference: Miyato, Kataoka, Koyama, Yoshida (2018), "Spectral normalization for generative
adversarial networks", https://arxiv.org/abs/1802.05957. Classes in D as an inner product:
Miyato, Koyama (2018), https://arxiv.org/abs/1802.05637

Differs from the paper: G gets the class as a vector appended to its code, not in its batch
normalizations. Trained as there: hinge loss, Adam with beta_1 = 0, five steps of D for one of G.
"""

import keras
from keras import layers

from keras_segen.layers import SpectralNormalization, check_image_shape, codes_with_class


def sngan_generator(image_shape, latent_dim=128, filters=(256, 256, 256), num_classes=None):
    """Builds a residual generator (Miyato et al., 2018; the defaults are for CIFAR-10).

    Args:
        image_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** len(filters)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints, channels at the image's size, at half of it, …; its length is the
            number of doublings.
        num_classes: int or None. With classes, G gets the label too: a learned vector of
            `latent_dim` numbers is appended to the code.

    Returns:
        A `keras.Model` from codes `(batch, latent_dim)`, or from `[codes, labels]` with labels
        int32 `(batch,)`, to images `(batch, height, width, channels)`, float32 in [-1, 1].

    Raises:
        ValueError: when height or width cannot be halved that often, or a number is not positive.

    Example:

    >>> sngan_generator((32, 32, 3), filters=(8, 8, 8)).output_shape
    (None, 32, 32, 3)
    """
    height, width = check_image_shape(image_shape, filters, latent_dim, num_classes)
    inputs, x = codes_with_class(latent_dim, num_classes)  # (b, latent_dim), or twice as many

    # The smallest feature map: height is h/2^n, n the number of doublings.
    x = layers.Dense(height * width * filters[-1], name="start")(x)
    x = layers.Reshape((height, width, filters[-1]), name="start_reshape")(x)  # (b, h/2^n, …)

    for level in reversed(range(len(filters))):  # s is 2^level
        x = up_block(x, filters[level], name=f"up{level}")  # (b, h/s, w/s, filters[level])

    x = layers.ReLU(name="image_relu")(layers.BatchNormalization(name="image_norm")(x))
    x = layers.Conv2D(image_shape[2], 3, padding="same", name="image_conv")(x)  # (b, h, w, …)
    images = layers.Activation("tanh", dtype="float32", name="images")(x)
    return keras.Model(inputs, images, name="sngan_generator")


def sngan_discriminator(image_shape, filters=(128, 128, 128, 128), num_classes=None):
    """Builds a residual discriminator with spectral normalization (the defaults: CIFAR-10).

    Args:
        image_shape: tuple `(height, width, channels)`; height and width are multiples of 4.
        filters: tuple of ints, channels of each block, at least 2. The first two blocks halve
            the size, the others keep it.
        num_classes: int or None. With classes, D gets the label too: the inner product of a
            learned vector with the features is added to the score (projection).

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [-1, 1], or
        from `[images, labels]` with labels int32 `(batch,)`, to scores `(batch, 1)`, float32.

    Raises:
        ValueError: when height or width is not a multiple of 4, when there are fewer than two
            blocks, or when a number is not positive.

    Example:

    >>> sngan_discriminator((32, 32, 3), filters=(8, 8, 8)).output_shape
    (None, 1)
    """
    check_image_shape(image_shape, filters, num_classes=num_classes, halvings=2)
    if len(filters) < 2:
        raise ValueError(f"filters has the channels of at least two blocks; found {filters}.")
    images = x = keras.Input(image_shape, name="images")  # (b, h, w, channels)
    # Blocks: (b, h/2, w/2, filters[0]), (b, h/4, w/4, filters[1]), (b, h/4, w/4, filters[2]), …
    for level, level_filters in enumerate(filters):
        x = down_block(x, level_filters, halve=level < 2, first=level == 0, name=f"down{level}")
    x = layers.ReLU(name="features_relu")(x)
    # The sum over all positions, as their mean times their number.
    features = layers.GlobalAveragePooling2D(name="features_mean")(x)
    positions = x.shape[1] * x.shape[2]
    features = layers.Rescaling(positions, name="features")(features)  # (b, filters[-1])
    scores = spectral(layers.Dense(1, dtype="float32"), name="scores")(features)  # (b, 1)
    if num_classes is None:
        return keras.Model(images, scores, name="sngan_discriminator")
    labels = keras.Input((), dtype="int32", name="labels")
    direction = spectral(layers.Embedding(num_classes, filters[-1]), name="class_embedding")(labels)
    match = layers.Dot(1, dtype="float32", name="class_match")([features, direction])  # (b, 1)
    scores = layers.Add(dtype="float32", name="class_scores")([scores, match])
    return keras.Model([images, labels], scores, name="sngan_discriminator")


def up_block(x, filters, name):
    """Twice normalize, ReLU, convolve, beside a shortcut: (b, h, w, …) to (b, 2h, 2w, filters)."""
    shortcut = layers.UpSampling2D(2, name=f"{name}_shortcut_double")(x)
    shortcut = layers.Conv2D(filters, 1, name=f"{name}_shortcut")(shortcut)
    for i in (1, 2):
        x = layers.BatchNormalization(name=f"{name}_norm{i}")(x)
        x = layers.ReLU(name=f"{name}_relu{i}")(x)
        if i == 1:
            x = layers.UpSampling2D(2, name=f"{name}_double")(x)  # (b, 2h, 2w, …)
        x = layers.Conv2D(filters, 3, padding="same", name=f"{name}_conv{i}")(x)
    return layers.Add(name=name)([x, shortcut])


def down_block(x, filters, halve, first, name):
    """Twice ReLU and convolve, beside a shortcut, then halve: to (b, h/2, w/2, filters)."""
    shortcut = x
    if halve and first:
        shortcut = layers.AveragePooling2D(2, name=f"{name}_shortcut_halve")(shortcut)
    if halve or x.shape[-1] != filters:
        shortcut = spectral(layers.Conv2D(filters, 1), name=f"{name}_shortcut")(shortcut)
    if halve and not first:
        shortcut = layers.AveragePooling2D(2, name=f"{name}_shortcut_halve")(shortcut)
    for i in (1, 2):
        if i == 2 or not first:  # the first block sees pixels: nothing to rectify
            x = layers.ReLU(name=f"{name}_relu{i}")(x)
        x = spectral(layers.Conv2D(filters, 3, padding="same"), name=f"{name}_conv{i}")(x)
    if halve:
        x = layers.AveragePooling2D(2, name=f"{name}_halve")(x)
    return layers.Add(name=name)([x, shortcut])


def spectral(layer, name):
    return SpectralNormalization(layer, name=name, dtype=layer.dtype_policy)
