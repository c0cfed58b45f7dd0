"""Models that say in one sentence what is wrong with what `fit` and `predict` get."""

import keras
import numpy as np


class ClearErrors:
    """A mixin for models: `fit`, `evaluate` and `predict` raise the loader's own errors.

    TensorFlow wraps what a loader of ours raises, such as a ValueError that names a damaged image,
    in an error of its own with pages about its graph.
    """

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`."""
        validation = kwargs.get("validation_data")
        self.check_fit(x, kwargs)
        if isinstance(validation, tuple | list) and validation:
            self.check_arrays(validation[0])
        return raise_own_errors(super().fit, (x, validation), x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`."""
        self.check_arrays(x)
        return raise_own_errors(super().evaluate, (x,), x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`."""
        self.check_arrays(x)
        return raise_own_errors(super().predict, (x,), x, *args, **kwargs)

    def check_fit(self, x, options):
        """Checks the images and the options of `fit`."""
        self.check_arrays(x)

    def check_arrays(self, images):
        """Raises a ValueError if an array holds no images."""
        if isinstance(images, np.ndarray) and not len(images):
            raise ValueError(f"There are no images: found an array of shape {images.shape}.")


class Network(ClearErrors, keras.Model):
    """A functional model from images in [0, 1] to logits of every pixel.

    Files and copies of it are those of a model of Keras, which any program loads without this
    package.

    Attributes:
        multiple: int, what heights and widths must be multiples of.
    """

    __module__ = "keras.src.models.functional"  # what Keras writes into a file
    multiple = 1

    def __call__(self, images, *args, **kwargs):
        """As `keras.Model.__call__`, after checking the type and the size of the images."""
        self.check_images(images)
        return super().__call__(images, *args, **kwargs)

    def check_images(self, images):
        """Raises a ValueError if images are whole numbers, or of a size that cannot be halved."""
        dtype = getattr(images, "dtype", None)
        dtype = dtype and keras.backend.standardize_dtype(dtype)
        if dtype and ("int" in dtype or dtype == "bool"):
            raise ValueError(
                f"The images are {dtype}, and this network takes floats from 0 to 1: give it "
                "images / 255, or whatever their highest possible value is."
            )
        shape = getattr(images, "shape", ())
        sides = [side for side in shape[1:3] if isinstance(side, int)] if len(shape) == 4 else []
        wrong = [side for side in sides if side % self.multiple]
        if wrong:
            raise ValueError(
                f"Heights and widths must be multiples of {self.multiple} for this network, which "
                f"halves them; found images {tuple(shape)}. Pad or resize them, or predict with "
                "keras_segen.segmentation.Predictor(model), which takes any size."
            )

    def check_fit(self, x, options):
        super().check_fit(x, options)
        if options.get("class_weight") is not None:
            raise ValueError(
                "class_weight in fit is for one class per image, and a mask has one per pixel: "
                "weigh the classes in the loss, such as keras_segen.losses.CrossEntropy("
                "class_weights=(1.0, 3.0)), one number per class."
            )

    def check_arrays(self, images):
        super().check_arrays(images)
        if isinstance(images, np.ndarray) and images.ndim == 4:
            self.check_images(images)
            highest = images[:8].max()
            if highest > 16:  # not even standardized images have such values
                raise ValueError(
                    f"The images have values up to {highest:g}, and this network takes 0 to 1: "
                    "give it images / 255, or whatever their highest possible value is."
                )


Network.__name__ = Network.__qualname__ = "Functional"


def raise_own_errors(run, loaders, *args, **kwargs):
    """Calls a method that reads loaders; what our loader raised comes out as it was raised.

    Args:
        run: callable, such as `model.fit`.
        loaders: what `keras_segen.data.loader.batches` returned; other objects are ignored.
    """
    try:
        return run(*args, **kwargs)
    except Exception:
        for loader in loaders:
            error = getattr(getattr(loader, "batches", None), "error", None)
            if error is not None:
                raise error from None
        raise
