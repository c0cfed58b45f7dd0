"""Losses of segmentation: from class ids and logits to one number per batch.

All take the masks as class ids and the model's logits, leave out the pixels of `ignore_class`,
and compute in float32 whatever the model computes in (in float64 if that is float64). Add and scale
them as numbers:
`CrossEntropy() + 0.5 * Dice()`.

| | logits with a channel per class | logits of one channel, masks 0 and 1 |
|---|---|---|
| `CrossEntropy` | of the softmax | |
| `BinaryCrossEntropy` | | of the sigmoid |
| `Focal` | of the softmax | of the sigmoid |
| `Dice`, `Jaccard`, `Tversky`, `FocalTversky` | mean over classes | of class 1 |
| `Lovasz` | of the softmax, mean over classes | hinge, of class 1 |

One channel holds the logit `z` of class 1. Its sigmoid is the softmax of the two logits (0, z), so
that both columns share their formulas.
"""

from keras_segen.losses.base import SegmentationLoss, SumOfLosses, labels_and_valid, pixel_weights
from keras_segen.losses.overlap import Dice, FocalTversky, Jaccard, Lovasz, Tversky
from keras_segen.losses.pixels import BinaryCrossEntropy, CrossEntropy, Focal

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Dice",
    "Focal",
    "FocalTversky",
    "Jaccard",
    "Lovasz",
    "SegmentationLoss",
    "SumOfLosses",
    "Tversky",
    "labels_and_valid",
    "pixel_weights",
]
