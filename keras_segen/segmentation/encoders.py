"""Pretrained encoders: images to features at five sizes, for `unet` and `fcn`.

Each is a function that builds a `keras.Model` from images `(batch, height, width, 3)`, float32 in
[0, 1], of any size, to a list of five tensors at strides 2, 4, 8, 16 and 32; at stride s their
size is `(ceil(height / s), ceil(width / s))`. The preprocessing that the published weights expect
is inside. `ENCODERS` lists them by name; the name is also that of the model.
"""

from keras_segen.segmentation.efficientnet_lite0 import efficientnet_lite0

ENCODERS = {"efficientnet_lite0": efficientnet_lite0}
