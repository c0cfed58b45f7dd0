"""Networks that label the pixels of an image: one architecture, one file.

Each is a function that builds a `keras.Model`; `MODELS` lists them by name.
"""

from keras_segen import backend  # noqa: F401  (a missing framework is one line, here)

# Each function hides the module of its name: `segmentation.unet(...)` builds.
from keras_segen.segmentation.plain_unet import plain_unet
from keras_segen.segmentation.unet import unet

MODELS = {"unet": unet, "plain_unet": plain_unet}

__all__ = ["MODELS", "plain_unet", "unet"]
