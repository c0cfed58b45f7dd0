"""Models that say in one sentence what is wrong with their file, or with what `fit` gets."""

import contextlib
import functools
import math
from pathlib import Path

import keras
import numpy as np

# The most bytes of weights that a `.keras` file may declare, beside times its own size.
WEIGHTS, TIMES = 2**26, 8


class ClearErrors:
    """A mixin for models: `fit`, `evaluate` and `predict` raise the loader's own errors.

    Any model of Keras does, with one step per execution on one device. Otherwise TensorFlow takes
    the batches within its graph, and wraps what a loader of ours raises, such as a ValueError that
    names a damaged image, in an error of its own with pages about that graph. `fit` also calls
    `build_optimizer`.
    """

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, y=None, *args, **kwargs):
        validation = kwargs.get("validation_data")
        self.check_fit(x, kwargs)
        if isinstance(validation, tuple | list) and validation:
            self.check_arrays(validation[0])
        build_optimizer(self)
        return raise_own_errors(super().fit, (x, validation), x, y, *args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, x=None, y=None, *args, **kwargs):
        self.check_arrays(x)
        return raise_own_errors(super().evaluate, (x,), x, y, *args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, x, *args, **kwargs):
        self.check_arrays(x)
        return raise_own_errors(super().predict, (x,), x, *args, **kwargs)

    def check_fit(self, x, options):
        """Checks the images and the options of `fit`."""
        self.check_arrays(x)

    def check_arrays(self, images):
        """Raises a ValueError if an array holds no images."""
        if isinstance(images, np.ndarray) and not len(images):
            raise ValueError(f"There are no images: found an array of shape {images.shape}.")


class Composite(ClearErrors, keras.Model):
    """A model made of networks and settings, all of which its file holds.

    A subclass keeps each in an attribute, and takes it as an argument of the same name.
    """

    NETWORKS = ()  # names of those that are a `keras.Model`
    SETTINGS = ("name",)  # names of the others

    def get_config(self):
        networks = [(name, getattr(self, name)) for name in self.NETWORKS]
        return {
            **{name: keras.saving.serialize_keras_object(network) for name, network in networks},
            **{name: getattr(self, name) for name in self.SETTINGS},
        }

    @classmethod
    def from_config(cls, config):
        networks = {
            name: keras.saving.deserialize_keras_object(config[name]) for name in cls.NETWORKS
        }
        return cls(**{**config, **networks})


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


def build_optimizer(model):
    """Makes the variables of a model's optimizer, unless they are there.

    Keras makes them within the first step. TensorFlow traces a step that makes variables twice, so
    that `fit` began seconds later.
    """
    if model.built and model.compiled and not model.optimizer.built:
        strategy = getattr(model, "distribute_strategy", None)  # on TensorFlow
        with strategy.scope() if strategy else contextlib.nullcontext():
            model.optimizer.build(model.trainable_variables)


def raise_own_errors(run, loaders, *args, **kwargs):
    """Calls a method that reads loaders; what our loader raised comes out as it was raised.

    Args:
        run: callable, such as `model.fit`.
        loaders: what `batches` of a data set returned; other objects are ignored.
    """
    try:
        return run(*args, **kwargs)
    except Exception:
        for loader in loaders:
            error = getattr(getattr(loader, "batches", None), "error", None)
            if error is not None:
                raise error from None
        raise


def load_keras_file(path):
    """Loads a model from a `.keras` file, without its optimizer.

    Args:
        path: the file. Nothing in it is executed (`safe_mode=True`); classes of its own must be
            registered (`keras.saving.register_keras_serializable`) and imported before.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds no model or an unknown layer, would execute code, or
            declares far more weights than it holds: they are not allocated.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a model, saved as .keras.")
    size, declared = path.stat().st_size, []
    try:
        with _declared_weights(declared, WEIGHTS + TIMES * size):
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # those for damaged files have no common type
        if sum(declared) > WEIGHTS + TIMES * size:
            raise ValueError(
                f"{path} declares weights of {sum(declared) / 2**30:,.1f} GiB, and the file has "
                f"{size / 2**20:,.1f} MiB: it is damaged, or not to be trusted. Save the model "
                "again."
            ) from None
        found = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be loaded. Found: {found} Expected a model saved by Keras 3; layers "
            "of your own are registered (keras.saving.register_keras_serializable) and imported "
            "before, Lambda layers not allowed."
        ) from error


@contextlib.contextmanager
def _declared_weights(declared, limit):
    """Notes the bytes of each weight that a layer is about to make; beyond the limit it fails."""
    way_of_keras = keras.Layer.add_weight

    def add_weight(layer, shape=None, *args, **kwargs):
        declared.append(4 * math.prod(side or 1 for side in shape or ()))
        if sum(declared) > limit:
            raise MemoryError
        return way_of_keras(layer, shape, *args, **kwargs)

    keras.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.Layer.add_weight = way_of_keras
