"""Copies weights between networks: FCN-16s from FCN-32s, new classes on trained layers."""

from pathlib import Path

from keras_segen.networks import load_keras_file


def take_weights(model, source):
    """Copies the weights of all layers that a network shares with a trained one.

    Layers are shared if they have the same name (inside encoders: of the same name) and weights of
    equal shapes. So FCN-16s starts from FCN-32s, and a network with other classes takes over all
    but the last layer. All other weights stay unchanged.

    Args:
        model: the `keras.Model` to fill.
        source: the trained `keras.Model`; it is not changed.

    Returns:
        `(taken, new, unused)`: names of layers with weights copied from `source`, only in `model`,
        and only in `source` (also if the shapes differ).

    Raises:
        ValueError: no layer is shared.

    Example:

    >>> from keras_segen.segmentation import fcn
    >>> filters = (4, 4, 4, 4, 4, 8)
    >>> fcn32s = fcn((32, 32, 3), num_classes=2, stride=32, filters=filters)
    >>> fcn16s = fcn((32, 32, 3), num_classes=2, stride=16, filters=filters)
    >>> taken, new, unused = take_weights(fcn16s, fcn32s)
    >>> new, unused
    (['upscore2', 'score_pool4', 'upscore16'], ['upscore32'])
    """
    theirs = _layers_with_weights(source)
    taken, new = [], []
    for name, layer in _layers_with_weights(model).items():
        if name in theirs and _shapes(theirs[name]) == _shapes(layer):
            layer.set_weights(theirs[name].get_weights())
            taken.append(name)
        else:
            new.append(name)
    if not taken:
        raise ValueError(
            f"The networks have no layer in common: {source.name!r} has {_list(theirs)}; "
            f"{model.name!r} has {_list(new)}. Use the same model, filters and encoder."
        )
    return taken, new, [name for name in theirs if name not in taken]


def take_weights_of_run(model, folder):
    """Copies the best weights of a run, as `take_weights` does; returns a line about them.

    Raises:
        FileNotFoundError: the folder holds no finished epoch.
        ValueError: the run's network has no layer in common with this one.
    """
    path = Path(folder) / "model.keras"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: start_from names no finished run.")
    trained = load_keras_file(path)
    try:
        taken, new, unused = take_weights(model, trained)
    except ValueError as error:
        raise ValueError(f"{path} holds another network. {error}") from None
    line = f"{len(taken)} layers start from {path}"
    if new:
        line += f"; new: {', '.join(new)}"
    if unused:
        line += f"; left there: {', '.join(unused)}"
    return line


def _layers_with_weights(model, prefix=""):
    """The layers of a model and of the models in it: dict of name -> layer."""
    found = {}
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found |= _layers_with_weights(layer, f"{prefix}{layer.name}/")
        elif layer.weights:
            found[prefix + layer.name] = layer
    return found


def _shapes(layer):
    return [tuple(weight.shape) for weight in layer.weights]


def _list(names):
    names = list(names)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
