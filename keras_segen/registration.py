"""Lets Keras load models of ours as soon as keras_segen is imported, whichever came first.

Keras finds classes of other packages only if they are registered, and a class is registered when
its module is imported. This module registers the names of our classes; the modules are imported
when Keras loads such a class. Nothing else of Keras is touched.
"""

import importlib
import importlib.abc
import importlib.util
import sys

PACKAGE = "keras_segen"
CLASSES = {
    "layers": ("Bilinear", "CropLike", "SpectralNormalization"),
    "losses": (
        "BinaryCrossEntropy",
        "CrossEntropy",
        "Dice",
        "Focal",
        "FocalTversky",
        "Jaccard",
        "Lovasz",
        "SumOfLosses",
        "Tversky",
    ),
    "metrics": ("ClassIoU", "ConfusionMatrix", "MeanDice", "MeanIoU", "PixelAccuracy"),
    "generation": ("GAN", "StyleGAN", "VAE"),
    "generation.styled_layers": (
        "EqualizedConv2D",
        "EqualizedDense",
        "Learned",
        "MinibatchDeviation",
        "MovingMean",
        "StyledConv2D",
    ),
    "segmentation.mask_rcnn": ("MaskRCNN",),
}


class Placeholder:
    """Stands for a class of ours where Keras looks for it, until its module is imported."""

    __module__ = PACKAGE

    def __init__(self, module, name):
        self.module, self.name = module, name

    def from_config(self, config):
        """Imports the module, which registers the class itself, and makes one of it."""
        return getattr(importlib.import_module(self.module), self.name).from_config(config)


def register():
    """Registers the names of our classes with Keras, which must be imported."""
    known = sys.modules["keras"].saving.get_custom_objects()
    for module, names in CLASSES.items():
        for name in names:
            known.setdefault(f"{PACKAGE}>{name}", Placeholder(f"{PACKAGE}.{module}", name))


def register_with_keras():
    """Registers our classes now, or as soon as Keras is imported."""
    if "keras" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Waits for the unchanged import of Keras, and registers our classes after it."""

    looks = False  # on behalf of which others are asked, and this one is not

    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self.looks:
            return None
        self.looks = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looks = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                sys.meta_path.remove(self)
                register()

            spec.loader.exec_module = execute_and_register
        return spec
