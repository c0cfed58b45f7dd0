"""DCGAN: a GAN of convolutions, and the rules that make it train.

G starts from a small feature map with many channels and doubles its size layer by layer with
strided transposed convolutions; D goes back with strided convolutions. There is no pooling and no
dense layer in between. Batch normalization is everywhere but at G's output and at D's two ends.

Reference: Radford, Metz, Chintala (2016), "Unsupervised representation learning with deep
convolutional generative adversarial networks", https://arxiv.org/abs/1511.06434. Classes in D as
an inner product: Miyato, Koyama (2018), "cGANs with projection discriminator",
https://arxiv.org/abs/1802.05637

Differs from the paper: 4x4 kernels instead of 5x5, as in the authors' Torch code, since an even
kernel with stride 2 covers all pixels equally often (no checkerboard); half the channels, as in
that code; D's scores have no sigmoid, which the loss applies.
"""

import keras
from keras import layers
from keras.initializers import RandomNormal

from keras_segen.layers import check_image_shape, codes_with_class


def dcgan_generator(image_shape, latent_dim=100, filters=None, num_classes=None):
    """Builds the generator of a DCGAN (Radford et al., 2016).

    Args:
        image_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** len(filters)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints, channels at half the image's size, a quarter of it, …; its length
            is the number of doublings. None means 64, 128, 256, 512, 512, … down to at most 7x7:
            two doublings for 28 pixels, three for 32, four for 64, five for 128.
        num_classes: int or None. With classes, G gets the label too: a learned vector of
            `latent_dim` numbers is appended to the code.

    Returns:
        A `keras.Model` from codes `(batch, latent_dim)`, or from `[codes, labels]` with labels
        int32 `(batch,)`, to images `(batch, height, width, channels)`, float32 in [-1, 1].

    Raises:
        ValueError: when height or width cannot be halved that often, or a number is not positive.

    Example:

    >>> dcgan_generator((32, 32, 3)).output_shape
    (None, 32, 32, 3)
    """
    filters = default_filters(image_shape) if filters is None else filters
    height, width = check_image_shape(image_shape, filters, latent_dim, num_classes)
    inputs, x = codes_with_class(latent_dim, num_classes)  # (b, latent_dim), or twice as many

    # The smallest feature map, of height x width; n = len(filters).
    x = layers.Dense(
        height * width * filters[-1], use_bias=False, kernel_initializer=small(), name="start"
    )(x)
    x = layers.Reshape((height, width, filters[-1]), name="start_reshape")(x)
    x = layers.ReLU(name="start_relu")(normalize(x, name="start"))  # (b, h/2^n, w/2^n, filters[-1])

    # Doubled up to half the image's size; s is 2^level.
    for level in reversed(range(len(filters) - 1)):
        x = double(x, filters[level], use_bias=False, name=f"up{level}")  # (b, h/2s, w/2s, …)
        x = layers.ReLU(name=f"up{level}_relu")(normalize(x, name=f"up{level}"))

    x = double(x, image_shape[2], use_bias=True, name="image")  # (b, h, w, channels)
    images = layers.Activation("tanh", dtype="float32", name="images")(x)
    return keras.Model(inputs, images, name="dcgan_generator")


def dcgan_discriminator(image_shape, filters=None, num_classes=None):
    """Builds the discriminator of a DCGAN (Radford et al., 2016).

    Args:
        image_shape: tuple `(height, width, channels)`, as in `dcgan_generator`.
        filters: tuple of ints, channels at half the image's size, a quarter of it, …, or None,
            as in `dcgan_generator`.
        num_classes: int or None. With classes, D gets the label too: the inner product of a
            learned vector with the features is added to the score (projection).

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [-1, 1], or
        from `[images, labels]` with labels int32 `(batch,)`, to scores `(batch, 1)`, float32.

    Raises:
        ValueError: as `dcgan_generator`.

    Example:

    >>> dcgan_discriminator((32, 32, 3)).output_shape
    (None, 1)
    """
    filters = default_filters(image_shape) if filters is None else filters
    check_image_shape(image_shape, filters, num_classes=num_classes)
    images = x = keras.Input(image_shape, name="images")  # (b, h, w, channels)

    for level, level_filters in enumerate(filters):
        first = level == 0
        x = layers.Conv2D(
            level_filters,
            4,
            strides=2,
            padding="same",
            use_bias=first,
            kernel_initializer=small(),
            name=f"down{level}_conv",
        )(x)  # (b, h/2, w/2, filters[0]), (b, h/4, w/4, filters[1]), …
        if not first:
            x = normalize(x, name=f"down{level}")
        x = layers.LeakyReLU(0.2, name=f"down{level}_relu")(x)

    # The paper's last convolution, as large as the features, is a dense layer: (b, 1).
    features = layers.Flatten(name="features")(x)  # (b, d)
    scores = layers.Dense(1, kernel_initializer=small(), dtype="float32", name="scores")(features)
    if num_classes is None:
        return keras.Model(images, scores, name="dcgan_discriminator")
    labels = keras.Input((), dtype="int32", name="labels")
    direction = layers.Embedding(
        num_classes, features.shape[-1], embeddings_initializer=small(), name="class_embedding"
    )(labels)  # (b, d)
    match = layers.Dot(1, dtype="float32", name="class_match")([features, direction])  # (b, 1)
    scores = layers.Add(dtype="float32", name="class_scores")([scores, match])
    return keras.Model([images, labels], scores, name="dcgan_discriminator")


def default_filters(image_shape):
    """The channels of the paper's code for an image: down to 4x4, or to 7x7 from 28 pixels."""
    height, width = check_image_shape(image_shape, filters=(1,), halvings=0)
    size, filters = min(height, width), []
    while size > 7 or not filters:
        filters.append(min(64 * 2 ** len(filters), 512))
        size //= 2
    return tuple(filters)


def small():
    """The paper's initial weights: N(0, 0.02)."""
    return RandomNormal(0.0, 0.02)


def double(x, filters, use_bias, name):
    """A 4x4 transposed convolution: (b, h, w, …) to (b, 2h, 2w, filters)."""
    return layers.Conv2DTranspose(
        filters, 4, 2, "same", use_bias=use_bias, kernel_initializer=small(), name=f"{name}_conv"
    )(x)


def normalize(x, name):
    """Batch normalization; its scale starts at N(1, 0.02), as in the authors' code."""
    return layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer=RandomNormal(1.0, 0.02), name=f"{name}_norm"
    )(x)
