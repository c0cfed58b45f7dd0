"""A user's own network: loaded from a `.keras` file, and checked before it is trained.

Training requires one input, images in [0, 1], and one output, logits for every pixel.
"""

from pathlib import Path

import keras
import numpy as np

from keras_segen import backend
from keras_segen.networks import load_keras_file

KNOWN = ("keras", "keras_segen")  # packages whose layers every process of ours knows


def load_network(path, dataset, num_outputs):
    """Loads a network with its weights, and checks that it can be trained on a data set.

    Args:
        path: the `.keras` file. Nothing in it is executed (`safe_mode=True`); classes of its own
            must be registered (`keras.saving.register_keras_serializable`) and imported before.
        dataset: a `keras_segen.data.Dataset` whose images have one shape.
        num_outputs: int, channels that the network must give.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [0, 1], to
        logits `(batch, height, width, num_outputs)`, not compiled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be loaded, or does not fit these images and classes.
    """
    path = Path(path)
    model = load_keras_file(path)
    check_network(model, dataset, num_outputs, path.name)
    return model


def check_network(model, dataset, num_outputs, name="The model"):
    """Raises a ValueError if a network cannot be trained on a data set; runs it on one image.

    Args:
        model: the network.
        dataset, num_outputs: as for `load_network`.
        name: str, the network's name in errors.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"{name} is a {type(model).__name__}; expected a keras.Model.")
    images = dataset[0][0][None]  # (1, height, width, channels)
    inputs = getattr(model, "inputs", None) or ()  # of a class of its own nothing is known
    # Keras would take three channels for one, as three groups.
    if len(inputs) > 1 or not all(fits(each.shape[1:], images.shape[1:]) for each in inputs):
        shapes = ", ".join(str(tuple(each.shape[1:])) for each in inputs)
        raise ValueError(
            f"{name} takes {shapes}, and the images of {dataset.name} are {images.shape[1:]}; "
            "expected one input of their height, width and channels, or None for any: build it "
            "so, or load them with another image_size or channels."
        )
    try:
        logits = backend.infer(model, images)
    except Exception as error:  # each framework has its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{name} fails on the first image of {dataset.name}, {images.shape}. Found: {lines[0]}"
        ) from error
    expected = (*images.shape[:3], num_outputs)
    found = getattr(logits, "shape", None)
    if found != expected:
        found = f"{found}" if found is not None else f"{len(logits)} outputs, {type(logits)}"
        raise ValueError(
            f"{name} makes {found} of images {images.shape}; expected logits {expected}: one "
            f"channel for each class of {dataset.name}, at the images' height and width."
        )
    if not np.isfinite(logits).all():
        raise ValueError(f"{name} gives values that are not finite for the first image.")
    # Only probabilities add up to 1 in every pixel, or stay from 0 to 1 in all of them.
    softmax = num_outputs > 1 and np.allclose(logits.sum(axis=-1), 1, atol=1e-4)
    if logits.min() >= 0 and logits.max() <= 1 and (softmax or num_outputs == 1):
        raise ValueError(
            f"{name} gives probabilities; expected logits, which the losses turn into "
            "probabilities: leave out the activation of the last layer."
        )


def fits(shape, found):
    """Whether an array of the shape `found` may go where `shape` is expected; None is any."""
    return len(shape) == len(found) and all(
        side in (None, other) for side, other in zip(shape, found, strict=True)
    )


def registered_modules():
    """Returns the modules of users' registered classes that other processes can import.

    Returns:
        Names, besides Keras' and ours: a list of str.
    """
    kinds = keras.saving.get_custom_objects().values()
    modules = {getattr(kind, "__module__", "__main__") for kind in kinds}
    return sorted(name for name in modules if name.split(".")[0] not in (*KNOWN, "__main__"))


def own_modules(model):
    """Returns the modules that another process must import to load a model from its file.

    Args:
        model: a built `keras.Model`.

    Returns:
        Names of the modules, besides Keras' and ours, that layers are from: a list of str.

    Raises:
        ValueError: a layer's class is not registered, or another process cannot import it.
    """
    modules = set()
    for layer in [model, *model._flatten_layers()]:
        kind = type(layer)
        if kind.__module__.split(".")[0] in KNOWN:
            continue
        where = f"Layer {layer.name!r} is of the class {kind.__name__}, "
        if kind.__module__ == "__main__":
            raise ValueError(
                f"{where}which is defined in this notebook or script, where other processes cannot "
                "import it: put it into a file of its own, decorated with "
                "@keras.saving.register_keras_serializable(), and import it from there."
            )
        if keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is not kind:
            raise ValueError(
                f"{where}which Keras cannot load from a file: decorate it with "
                "@keras.saving.register_keras_serializable()."
            )
        modules.add(kind.__module__)
    return sorted(modules)
