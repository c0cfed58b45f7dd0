"""FPN: features of one meaning at several sizes.

An encoder's late features know what they see, its early ones where it is. On the way from the top
down, each level doubles the one above and adds what the encoder had at that size: every level
then knows both, with the same number of channels, so that the same head can look for small
objects on the fine ones and for large objects on the coarse ones.

Reference: Lin, Dollár, Girshick, He, Hariharan, Belongie (2017), "Feature pyramid networks for
object detection", https://arxiv.org/abs/1612.03144

Differs from the paper: nothing; sizes that were rounded up when they were halved are cut.
"""

from keras import layers

from keras_segen.layers import CropLike


def fpn(features, filters=256):
    """Builds the levels of a feature pyramid over the features of an encoder.

    Args:
        features: list of tensors `(batch, height, width, channels)`, each half as large as the one
            before (rounded up).
        filters: int, channels of every level.

    Returns:
        A list of tensors `(batch, height, width, filters)`, as large as the features.

    Example:

    >>> import keras
    >>> features = [keras.Input((25, 40, 16)), keras.Input((13, 20, 32))]
    >>> [tuple(level.shape) for level in fpn(features, filters=8)]
    [(None, 25, 40, 8), (None, 13, 20, 8)]
    """
    outputs = []
    x = None
    for level in reversed(range(len(features))):
        lateral = layers.Conv2D(filters, 1, name=f"fpn{level}_lateral")(features[level])
        if x is None:
            x = lateral
        else:
            x = layers.UpSampling2D(2, name=f"fpn{level}_repeat")(x)
            x = CropLike(name=f"fpn{level}_crop")([x, lateral])
            x = layers.Add(name=f"fpn{level}_add")([lateral, x])
        # Smooths the edges of the doubled pixels.
        outputs.append(layers.Conv2D(filters, 3, padding="same", name=f"fpn{level}")(x))
    return outputs[::-1]
