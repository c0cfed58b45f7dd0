"""Networks that label the pixels of an image: one architecture, one file.

Each is a function that builds a `keras.Model`; `MODELS` lists them by name. `unet` and `fcn` take
a pretrained encoder, handed in: `ENCODERS` lists those that there are. `mask_rcnn` labels objects
instead of pixels.
"""

from keras_segen import backend  # noqa: F401  (a missing framework is one line, here)

# Each function hides the module of its name: `segmentation.unet(...)` builds.
from keras_segen.segmentation.average_precision import AveragePrecision
from keras_segen.segmentation.components import components
from keras_segen.segmentation.detector import Detector
from keras_segen.segmentation.efficientnet_lite0 import efficientnet_lite0
from keras_segen.segmentation.encoders import (
    ENCODERS,
    efficientnet_v2_b0,
    mobilenet_v2,
    resnet50,
    vgg16,
)
from keras_segen.segmentation.evaluate import confusion_matrix, evaluate
from keras_segen.segmentation.evaluate_instances import evaluate_instances
from keras_segen.segmentation.fcn import fcn
from keras_segen.segmentation.fold import fold_batch_normalization
from keras_segen.segmentation.keras_file import check_network, load_network
from keras_segen.segmentation.mask_rcnn import SMALL, MaskRCNN, Stages, mask_rcnn
from keras_segen.segmentation.partition import adapted_rand_error, variation_of_information
from keras_segen.segmentation.photos import find_in_photos, label_photos
from keras_segen.segmentation.plain_unet import plain_unet
from keras_segen.segmentation.predict import Predictor
from keras_segen.segmentation.transfer import take_weights, take_weights_of_run
from keras_segen.segmentation.unet import unet

MODELS = {"unet": unet, "plain_unet": plain_unet, "fcn": fcn}

__all__ = [
    "ENCODERS",
    "MODELS",
    "SMALL",
    "AveragePrecision",
    "Detector",
    "MaskRCNN",
    "Predictor",
    "Stages",
    "adapted_rand_error",
    "check_network",
    "components",
    "confusion_matrix",
    "efficientnet_lite0",
    "efficientnet_v2_b0",
    "evaluate",
    "evaluate_instances",
    "fcn",
    "find_in_photos",
    "fold_batch_normalization",
    "label_photos",
    "load_network",
    "mask_rcnn",
    "mobilenet_v2",
    "plain_unet",
    "resnet50",
    "take_weights",
    "take_weights_of_run",
    "unet",
    "variation_of_information",
    "vgg16",
]
