"""InceptionV3 as the FID was defined on it: photos to 2048 features.

Blocks look at the same features in several ways at once (1x1, 3x3, 5x5, or 7x7 as 1x7 and 7x1)
and lay what they find side by side. The last features, averaged over all positions, are those
between which the Fréchet distance is called FID.

Reference: Szegedy et al. (2016), "Rethinking the Inception architecture for computer vision",
https://arxiv.org/abs/1512.00567; the FID: Heusel et al. (2017),
https://arxiv.org/abs/1706.08500.

Differs from the paper: as in the network that the FID is defined on, the last block takes the
largest and not the average of its neighbors.
"""

import keras
from keras import layers

from keras_segen.torch_file import read_state_dict


def inception_v3(weights=None):
    """Builds InceptionV3 without its classifier.

    Args:
        weights: path of the published file pt_inception-2015-12-05-6726825d.pth, or None for
            weights that are yet to be trained.

    Returns:
        A `keras.Model` from images `(batch, height, width, 3)`, float32 in [0, 1], at least
        75 x 75 (the FID's are 299 x 299), to features `(batch, 2048)`.

    Raises:
        ValueError: if the file does not hold these weights.
    """
    images = keras.Input((None, None, 3), name="images")
    # [0, 1] to what the published weights expect: (255 x - 128) / 128.
    x = layers.Rescaling(255 / 128, -1, name="preprocess")(images)
    x = conv(x, 32, 3, "Conv2d_1a_3x3", strides=2)  # sizes for 299: (149, 149, 32)
    x = conv(x, 32, 3, "Conv2d_2a_3x3", padding="valid")
    x = conv(x, 64, 3, "Conv2d_2b_3x3")
    x = layers.MaxPooling2D(3, 2, name="maxpool1")(x)  # (73, 73, 64)
    x = conv(x, 80, 1, "Conv2d_3b_1x1")
    x = conv(x, 192, 3, "Conv2d_4a_3x3", padding="valid")
    x = layers.MaxPooling2D(3, 2, name="maxpool2")(x)  # (35, 35, 192)

    x = block_5x5(x, 32, "Mixed_5b")  # (35, 35, 256)
    x = block_5x5(x, 64, "Mixed_5c")  # (35, 35, 288)
    x = block_5x5(x, 64, "Mixed_5d")
    x = shrink_3x3(x, "Mixed_6a")  # (17, 17, 768)
    x = block_7x7(x, 128, "Mixed_6b")
    x = block_7x7(x, 160, "Mixed_6c")
    x = block_7x7(x, 160, "Mixed_6d")
    x = block_7x7(x, 192, "Mixed_6e")
    x = shrink_7x7(x, "Mixed_7a")  # (8, 8, 1280)
    x = block_wide(x, layers.AveragePooling2D, "Mixed_7b")  # (8, 8, 2048)
    x = block_wide(x, layers.MaxPooling2D, "Mixed_7c")
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)  # (2048,)
    model = keras.Model(images, x, name="inception_v3")
    if weights is not None:
        fill(model, read_state_dict(weights))
    return model


def block_5x5(x, pool_filters, name):
    """1x1, 5x5, twice 3x3, and the average of the neighbors, side by side."""
    small = conv(x, 64, 1, f"{name}_branch1x1")
    large = conv(x, 48, 1, f"{name}_branch5x5_1")
    large = conv(large, 64, 5, f"{name}_branch5x5_2")
    twice = conv(x, 64, 1, f"{name}_branch3x3dbl_1")
    twice = conv(twice, 96, 3, f"{name}_branch3x3dbl_2")
    twice = conv(twice, 96, 3, f"{name}_branch3x3dbl_3")
    pool = layers.AveragePooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    pool = conv(pool, pool_filters, 1, f"{name}_branch_pool")
    return layers.Concatenate(name=name)([small, large, twice, pool])


def shrink_3x3(x, name):
    """Halves the size: once 3x3, twice 3x3, and the largest of the neighbors."""
    once = conv(x, 384, 3, f"{name}_branch3x3", strides=2)
    twice = conv(x, 64, 1, f"{name}_branch3x3dbl_1")
    twice = conv(twice, 96, 3, f"{name}_branch3x3dbl_2")
    twice = conv(twice, 96, 3, f"{name}_branch3x3dbl_3", strides=2)
    pool = layers.MaxPooling2D(3, 2, name=f"{name}_pool")(x)
    return layers.Concatenate(name=name)([once, twice, pool])


def block_7x7(x, filters, name):
    """1x1, 7x7 as a row and a column, twice that, and the average of the neighbors."""
    small = conv(x, 192, 1, f"{name}_branch1x1")
    once = conv(x, filters, 1, f"{name}_branch7x7_1")
    once = conv(once, filters, (1, 7), f"{name}_branch7x7_2")
    once = conv(once, 192, (7, 1), f"{name}_branch7x7_3")
    twice = conv(x, filters, 1, f"{name}_branch7x7dbl_1")
    twice = conv(twice, filters, (7, 1), f"{name}_branch7x7dbl_2")
    twice = conv(twice, filters, (1, 7), f"{name}_branch7x7dbl_3")
    twice = conv(twice, filters, (7, 1), f"{name}_branch7x7dbl_4")
    twice = conv(twice, 192, (1, 7), f"{name}_branch7x7dbl_5")
    pool = layers.AveragePooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    pool = conv(pool, 192, 1, f"{name}_branch_pool")
    return layers.Concatenate(name=name)([small, once, twice, pool])


def shrink_7x7(x, name):
    """Halves the size: 3x3, 7x7 and then 3x3, and the largest of the neighbors."""
    small = conv(x, 192, 1, f"{name}_branch3x3_1")
    small = conv(small, 320, 3, f"{name}_branch3x3_2", strides=2)
    large = conv(x, 192, 1, f"{name}_branch7x7x3_1")
    large = conv(large, 192, (1, 7), f"{name}_branch7x7x3_2")
    large = conv(large, 192, (7, 1), f"{name}_branch7x7x3_3")
    large = conv(large, 192, 3, f"{name}_branch7x7x3_4", strides=2)
    pool = layers.MaxPooling2D(3, 2, name=f"{name}_pool")(x)
    return layers.Concatenate(name=name)([small, large, pool])


def block_wide(x, pooling, name):
    """1x1, 3x3 as a row beside a column, that behind another 3x3, and pooled neighbors."""
    small = conv(x, 320, 1, f"{name}_branch1x1")
    once = conv(x, 384, 1, f"{name}_branch3x3_1")
    row = conv(once, 384, (1, 3), f"{name}_branch3x3_2a")
    column = conv(once, 384, (3, 1), f"{name}_branch3x3_2b")
    twice = conv(x, 448, 1, f"{name}_branch3x3dbl_1")
    twice = conv(twice, 384, 3, f"{name}_branch3x3dbl_2")
    second_row = conv(twice, 384, (1, 3), f"{name}_branch3x3dbl_3a")
    second_column = conv(twice, 384, (3, 1), f"{name}_branch3x3dbl_3b")
    pool = pooling(3, 1, padding="same", name=f"{name}_pool")(x)
    pool = conv(pool, 192, 1, f"{name}_branch_pool")
    parts = [small, row, column, second_row, second_column, pool]
    return layers.Concatenate(name=name)(parts)


def conv(x, filters, kernel_size, name, strides=1, padding="same"):
    """Convolution, batch normalization, ReLU; with strides the kernel stays inside."""
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="valid" if strides > 1 else padding,
        use_bias=False,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.1),
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


# PyTorch's names of a batch normalization's weights, in Keras' order.
_NORM = ("weight", "bias", "running_mean", "running_var")


def fill(model, state):
    """Fills the network with the weights of the published file.

    Args:
        model: what `inception_v3` builds.
        state: dict of PyTorch's name -> array. The layers are named as there, with "_" for ".".

    Raises:
        ValueError: if a weight is missing or has another shape.
    """
    state = {name.replace(".", "_"): value for name, value in state.items()}
    for layer in model.layers:
        if not isinstance(layer, (layers.Conv2D, layers.BatchNormalization)):
            continue
        names = ("weight",) if isinstance(layer, layers.Conv2D) else _NORM
        missing = [f"{layer.name}_{name}" for name in names if f"{layer.name}_{name}" not in state]
        if missing:
            raise ValueError(f"The file holds no {missing[0]}, so it is not of this InceptionV3.")
        values = [state[f"{layer.name}_{name}"] for name in names]
        if len(names) == 1:
            values = [values[0].transpose(2, 3, 1, 0)]  # from (output, input, height, width)
        layer.set_weights(values)
