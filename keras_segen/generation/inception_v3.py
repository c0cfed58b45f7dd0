"""InceptionV3 as the FID was defined on it: photos to 2048 features.

Each block applies several kernels to the same features (1x1, 3x3, 5x5, or 7x7 as 1x7 and 7x1) and
concatenates the results. The last features, averaged over all positions, are those that the FID,
the Fréchet inception distance, compares.

Reference: Szegedy et al. (2016), "Rethinking the Inception architecture for computer vision",
https://arxiv.org/abs/1512.00567; the FID: Heusel et al. (2017),
https://arxiv.org/abs/1706.08500.

Differs from the paper: the last block has max pooling instead of average pooling, as in the network
that the FID is defined on.
"""

import keras
from keras import layers

from keras_segen.torch_file import read_state_dict


def inception_v3(weights=None):
    """Builds InceptionV3 without its classifier.

    Args:
        weights: path of the published file pt_inception-2015-12-05-6726825d.pth, or None for
            random weights.

    Returns:
        A `keras.Model` from images `(batch, height, width, 3)`, float32 in [0, 1], at least
        75 x 75 (the FID's are 299 x 299), to features `(batch, 2048)`.

    Raises:
        ValueError: if the file does not hold these weights.
    """
    images = keras.Input((None, None, 3), name="images")  # sizes below: for 299 x 299
    # [0, 1] to what the published weights expect: (255 x - 128) / 128.
    x = layers.Rescaling(255 / 128, -1, name="preprocess")(images)
    x = conv(x, 32, 3, "Conv2d_1a_3x3", strides=2)  # (b, 149, 149, 32)
    x = conv(x, 32, 3, "Conv2d_2a_3x3", padding="valid")  # (b, 147, 147, 32)
    x = conv(x, 64, 3, "Conv2d_2b_3x3")  # (b, 147, 147, 64)
    x = layers.MaxPooling2D(3, 2, name="maxpool1")(x)  # (b, 73, 73, 64)
    x = conv(x, 80, 1, "Conv2d_3b_1x1")  # (b, 73, 73, 80)
    x = conv(x, 192, 3, "Conv2d_4a_3x3", padding="valid")  # (b, 71, 71, 192)
    x = layers.MaxPooling2D(3, 2, name="maxpool2")(x)  # (b, 35, 35, 192)

    x = block_5x5(x, 32, "Mixed_5b")  # (b, 35, 35, 256)
    x = block_5x5(x, 64, "Mixed_5c")  # (b, 35, 35, 288)
    x = block_5x5(x, 64, "Mixed_5d")  # (b, 35, 35, 288)
    x = shrink_3x3(x, "Mixed_6a")  # (b, 17, 17, 768)
    x = block_7x7(x, 128, "Mixed_6b")  # (b, 17, 17, 768), as the next three
    x = block_7x7(x, 160, "Mixed_6c")
    x = block_7x7(x, 160, "Mixed_6d")
    x = block_7x7(x, 192, "Mixed_6e")
    x = shrink_7x7(x, "Mixed_7a")  # (b, 8, 8, 1280)
    x = block_wide(x, layers.AveragePooling2D, "Mixed_7b")  # (b, 8, 8, 2048)
    x = block_wide(x, layers.MaxPooling2D, "Mixed_7c")  # (b, 8, 8, 2048)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)  # (b, 2048)
    model = keras.Model(images, x, name="inception_v3")
    if weights is not None:
        fill(model, read_state_dict(weights))
    return model


def block_5x5(x, pool_filters, name):
    """1x1, 5x5, two 3x3 and average pooling, concatenated: 224 + pool_filters channels."""
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
    """Halves the size: one 3x3, two 3x3 and max pooling add 480 channels to those of x."""
    once = conv(x, 384, 3, f"{name}_branch3x3", strides=2)
    twice = conv(x, 64, 1, f"{name}_branch3x3dbl_1")
    twice = conv(twice, 96, 3, f"{name}_branch3x3dbl_2")
    twice = conv(twice, 96, 3, f"{name}_branch3x3dbl_3", strides=2)
    pool = layers.MaxPooling2D(3, 2, name=f"{name}_pool")(x)
    return layers.Concatenate(name=name)([once, twice, pool])


def block_7x7(x, filters, name):
    """1x1, one 7x7, two 7x7 (as 1x7 and 7x1) and average pooling: 4 * 192 channels."""
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
    """Halves the size: 3x3, 7x7 then 3x3, and max pooling add 512 channels to those of x."""
    small = conv(x, 192, 1, f"{name}_branch3x3_1")
    small = conv(small, 320, 3, f"{name}_branch3x3_2", strides=2)
    large = conv(x, 192, 1, f"{name}_branch7x7x3_1")
    large = conv(large, 192, (1, 7), f"{name}_branch7x7x3_2")
    large = conv(large, 192, (7, 1), f"{name}_branch7x7x3_3")
    large = conv(large, 192, 3, f"{name}_branch7x7x3_4", strides=2)
    pool = layers.MaxPooling2D(3, 2, name=f"{name}_pool")(x)
    return layers.Concatenate(name=name)([small, large, pool])


def block_wide(x, pooling, name):
    """1x1, 1x3 beside 3x1, the same after a 3x3, and pooling: 320 + 4 * 384 + 192 channels."""
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
    """Convolution, batch normalization, ReLU; with strides, padding is 'valid'."""
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
    """Sets the weights of the published file.

    Args:
        model: what `inception_v3` builds.
        state: dict of PyTorch's name -> array. Our layers have the same names, "_" for ".".

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
            raise ValueError(f"The file has no {missing[0]}: it does not fit this InceptionV3.")
        values = [state[f"{layer.name}_{name}"] for name in names]
        if len(names) == 1:
            values = [values[0].transpose(2, 3, 1, 0)]  # from (output, input, height, width)
        layer.set_weights(values)
