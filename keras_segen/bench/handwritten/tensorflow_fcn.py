"""FCN-8s on VGG16 of `segmentation/fcn.py`, in plain TensorFlow; trained as the U-Net beside it."""

import tensorflow as tf

from keras_segen.bench.handwritten import tensorflow_unet


def fcn(variables, images):
    """From images `(batch, height, width, channels)` to logits `(batch, height, width, classes)`.

    Args:
        variables: dict of `tf.Variable` by name, such as `"conv1_1/kernel"`.
        images: float32.
    """
    # Five halvings; odd sizes are rounded up.
    pools = []
    x = images
    for stage, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, convolutions + 1):
            x = tf.nn.relu(conv(variables, x, f"conv{stage}_{i}"))
        x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        pools.append(x)

    # The classifier as convolutions; its scores, and those of finer features.
    x = tf.nn.relu(conv(variables, x, "fc6"))
    x = tf.nn.relu(conv(variables, x, "fc7"))
    x = conv(variables, x, "score_fr")
    x = enlarge(variables, x, 2, pools[3], "upscore2") + conv(variables, pools[3], "score_pool4")
    x = enlarge(variables, x, 2, pools[2], "upscore_pool4") + conv(
        variables, pools[2], "score_pool3"
    )
    return enlarge(variables, x, 8, images, "upscore8")


def conv(variables, x, name):
    """A convolution."""
    x = tf.nn.conv2d(x, variables[f"{name}/kernel"], 1, "SAME")
    return tf.nn.bias_add(x, variables[f"{name}/bias"])


def enlarge(variables, x, factor, like, name):
    """A transposed convolution that makes pictures `factor` times as large, cut as `like`."""
    batch, height, width, classes = x.shape
    shape = [batch, factor * height, factor * width, classes]
    x = tf.nn.conv2d_transpose(x, variables[f"{name}/kernel"], shape, factor, "SAME")
    return x[:, : like.shape[1], : like.shape[2]]


class Trainer(tensorflow_unet.Trainer):
    """The loop of the U-Net, on this network."""

    fixed = ("upscore8/kernel",)  # bilinear interpolation

    def network(self, images, training):
        return fcn(self.variables, images)
