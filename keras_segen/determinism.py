"""Random numbers that do not depend on the framework, the machine or earlier draws.

A Keras seed gives different numbers on each backend. Here NumPy draws every random number, from a
generator with a key that names its purpose: `rng("weights", seed, index)`. There is no shared
stream, so the order of calls, the number of workers and resumed runs change nothing.
"""

import hashlib
import math
import operator

import numpy as np

from keras_segen.arguments import whole_number


def rng(*key):
    """Returns the random generator that belongs to a key.

    Equal keys give equal numbers on every machine; different keys give unrelated numbers, even
    close ones such as `(0, 1)` and `(1, 0)`.

    Args:
        *key: strings and integers, at least one: the purpose, then the seed and counters, such as
             `rng("augment", seed, epoch, index)`.

    Returns:
        A new `numpy.random.Generator` (PCG64).

    Raises:
        TypeError: when a part of the key is neither a string nor an integer, or there is none.

    Example:

    >>> int(rng("example", 0).integers(1000)), int(rng("example", 1).integers(1000))
    (811, 313)
    """
    if not key:
        raise TypeError("rng() needs a key, such as rng('augment', seed, epoch, index).")
    parts = []
    for part in key:
        if isinstance(part, str):
            parts.append(str(part))
            continue
        try:
            parts.append(int(operator.index(part)))
        except TypeError:
            raise TypeError(
                f"A key of rng() is made of strings and integers; found {part!r} "
                f"({type(part).__name__}) in {key!r}."
            ) from None
    digest = hashlib.sha256(repr(tuple(parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def order(seed, epoch, length):
    """Returns the order in which an epoch visits the items of a data set.

    Args:
        seed: int.
        epoch: int, counted from 0.
        length: int, number of items.

    Returns:
        A permutation of `0 .. length - 1`: int64 array `(length,)`, a function of the three
        arguments only.

    Example:

    >>> order(seed=0, epoch=0, length=5)
    array([2, 1, 4, 0, 3])
    """
    return rng("order", seed, epoch).permutation(length).astype(np.int64)


def sample(seed, epoch, weights):
    """Returns the items that an epoch visits, in order, by weighted sampling.

    With n items, item i is drawn `n * weights[i] / sum(weights)` times, randomly rounded up or
    down so that there are n draws and each item's mean over the epochs is exact (systematic
    sampling). Independent draws with replacement would miss a third of the items even with equal
    weights; here equal weights visit every item once.

    Args:
        seed: int.
        epoch: int, counted from 0.
        weights: float array `(length,)`, not negative, not all 0.

    Returns:
        Item numbers: int64 array `(length,)`, a function of the three arguments only.

    Example:

    >>> sample(seed=0, epoch=0, weights=np.array([1.0, 1.0, 4.0, 1.0, 1.0]))
    array([2, 0, 4, 2, 2])
    """
    generator = rng("sample", seed, epoch)
    shuffled = generator.permutation(len(weights))
    ends = np.cumsum(weights[shuffled])
    points = (np.arange(len(weights)) + generator.random()) * (ends[-1] / len(weights))
    # Each item is an interval as long as its weight; equidistant points select items.
    drawn = np.searchsorted(ends, points, side="right").clip(max=len(weights) - 1)
    return generator.permutation(shuffled[drawn]).astype(np.int64)


def initialize(model, seed, keep=None):
    """Initializes every weight of a model by NumPy, equally on every backend.

    Each weight follows the distribution of its layer's own initializer (He, Glorot, zeros,
    orthogonal, …), drawn by NumPy instead of Keras: the same bits on TensorFlow and on PyTorch.
    All weights are overwritten, also normalization statistics and loaded weights, except those of
    `keep`.

    The key of a weight is its position in `model.weights`, not its path: an unnamed layer is called
    `conv2d_7` if seven were built before in the process, and a second copy of a model would start
    from other weights.

    The states of random layers (Dropout, …) are set as well, so that a run can be repeated; the
    masks that Keras draws from them still differ between the backends. (On PyTorch, Keras' Dropout
    uses its state only if it has a seed; otherwise it draws from PyTorch's own generator, which
    `keras.utils.set_random_seed` sets.)

    Args:
        model: a built `keras.Model`.
        seed: int.
        keep: a layer or model within `model` whose weights stay unchanged, such as a pretrained
            encoder, or None. The other weights are the same with and without it.

    Raises:
        ValueError: when the model is not built, when `keep` is not a part of it, or when a
            weight's initializer is unknown: a function, a class of one's own without a method
            `draw(generator, shape)` that returns a NumPy array, or a weight whose layer keeps no
            initializer. The message names the weight and its layer. No weight is changed then.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> initialize(model, seed=0)
    >>> keras.ops.convert_to_numpy(model(keras.ops.eye(2))).round(3)
    array([[-1.271],
           [ 0.426]], dtype=float32)
    """
    if not hasattr(model, "_flatten_layers"):
        raise ValueError(f"model is {model!r}, expected a keras.Model.")
    whole_number("seed", seed, -math.inf, "")
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built, so it has no weights yet. Start it with a "
            "keras.Input, or call it once on a batch, then initialize it."
        )
    holders = {}
    for layer in model._flatten_layers():
        for weight in layer.weights:
            holders.setdefault(id(weight), []).append(layer)

    kept = {id(weight) for weight in keep.weights} if keep is not None else set()
    if not kept <= holders.keys():
        raise ValueError(f"Layer {keep.name!r}, to be kept, is no part of model {model.name!r}.")

    values = []
    for i, weight in enumerate(model.weights):
        if id(weight) in kept:
            continue
        layers = holders[id(weight)][::-1]  # the innermost layer first
        values.append((weight, _draw_weight(rng("weights", seed, i), weight, layers)))
    for weight, value in values:
        weight.assign(value.astype("float32"))
    seed_random_layers(model, seed)


def seed_random_layers(model, *key):
    """Sets the states of all random layers of a model (Dropout, …) from a key.

    Loading a model resets them; set in each epoch, they make a resumed training draw the same
    numbers as an uninterrupted one.

    Args:
        model: a built `keras.Model`.
        *key: strings and integers, as for `rng`.
    """
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    for i, state in enumerate(states):
        # A seed and a counter. int32 on PyTorch, int64 on TensorFlow: stay below 2**31.
        first = int(rng("seed generators", *key, i).integers(2**31))
        state.assign(np.array([first, 0], "int32"))


# Weights whose initializer is not the attribute `<weight>_initializer` of their layer: under
# another name, or written in the layer's code.
_OTHER_ATTRIBUTE = {
    "recurrent_kernel": "recurrent_initializer",
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
    "kernel": "depthwise_initializer",  # DepthwiseConv1D, DepthwiseConv2D
}


def _draw_weight(generator, weight, layers):
    """Draws one weight, float64; `layers` are those that hold it, the innermost first."""
    import keras

    for layer in layers:
        initializer = _find_initializer(weight, layer)
        if initializer is None:
            continue
        initializer = keras.initializers.get(initializer)
        where = f"weight {weight.name!r} of shape {tuple(weight.shape)} in layer {layer.path!r}"
        if weight.name == "bias" and getattr(layer, "unit_forget_bias", False):
            # LSTM: gates (input, forget, cell, output), the forget gate starts open.
            units = weight.shape[0] // 4
            gate, gates = (units,), (2 * units,)
            return np.concatenate(
                [
                    _draw(generator, initializer, gate, where),
                    np.ones(gate),
                    _draw(generator, initializer, gates, where),
                ]
            )
        axes = None
        if isinstance(layer, keras.layers.EinsumDense) and weight.name == "kernel":
            axes = _einsum_axes(layer.equation)
        return _draw(generator, initializer, tuple(weight.shape), where, axes)

    layer = layers[0]
    raise ValueError(
        f"No initializer found for weight {weight.name!r} of shape {tuple(weight.shape)} in layer "
        f"{layer.path!r} ({type(layer).__name__}). Let the layer keep it in an attribute named "
        f"'{weight.name}_initializer'."
    )


def _find_initializer(weight, layer):
    import keras

    attributes = [f"{weight.name}_initializer", _OTHER_ATTRIBUTE.get(weight.name)]
    for attribute in attributes:
        if attribute and getattr(layer, attribute, None) is not None:
            return getattr(layer, attribute)
    if isinstance(layer, keras.layers.SpectralNormalization) and weight.name == "vector_u":
        return keras.initializers.TruncatedNormal(stddev=0.02)
    if isinstance(layer, keras.layers.RMSNormalization) and weight.name == "scale":
        return "ones"
    return None


def _draw(generator, initializer, shape, where, axes=None):
    """Draws what a Keras initializer draws: float64 of this shape."""
    from keras import initializers

    if hasattr(initializer, "draw"):
        return initializer.draw(generator, shape)
    ways = {
        initializers.Zeros: lambda of: np.zeros(shape),
        initializers.Ones: lambda of: np.ones(shape),
        initializers.Constant: lambda of: np.full(shape, float(of.value)),
        initializers.Identity: lambda of: of.gain * np.eye(*shape),
        initializers.RandomUniform: lambda of: generator.uniform(of.minval, of.maxval, shape),
        initializers.RandomNormal: lambda of: generator.normal(of.mean, of.stddev, shape),
        initializers.TruncatedNormal: lambda of: (
            of.mean + of.stddev * _truncated_normal(generator, shape)
        ),
        initializers.Orthogonal: lambda of: of.gain * _orthogonal(generator, shape),
        initializers.VarianceScaling: lambda of: _variance_scaling(generator, of, shape, axes),
    }
    for kind, draw in ways.items():
        if type(initializer).__call__ is kind.__call__:
            return draw(initializer)
    raise ValueError(
        f"Initializer {type(initializer).__name__} ({initializer!r}) of {where} is not one that "
        "initialize() can draw in NumPy. Use one of Keras' (RandomNormal, HeNormal, Orthogonal, "
        "Constant, …)."
    )


def _truncated_normal(generator, shape):
    """Standard normal values, those beyond 2 drawn again."""
    values = generator.standard_normal(shape)
    outside = np.abs(values) >= 2
    while outside.any():
        values[outside] = generator.standard_normal(np.count_nonzero(outside))
        outside = np.abs(values) >= 2
    return values


def _orthogonal(generator, shape):
    """A random matrix `(prod(shape[:-1]), shape[-1])` of orthogonal rows or columns."""
    if len(shape) < 2:
        raise ValueError(f"Orthogonal needs a weight of at least 2 dimensions; found {shape}.")
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diagonal(r))  # makes the distribution uniform
    return (q if rows >= columns else q.T).reshape(shape)


def _variance_scaling(generator, initializer, shape, axes):
    """Glorot, He, LeCun: a variance of scale / fan."""
    input_axes, output_axes = initializer.input_axes, initializer.output_axes
    if axes is not None and (input_axes is None or output_axes is None):
        input_axes, output_axes = axes
    fan_in, fan_out = _fans(shape, input_axes, output_axes)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    variance = initializer.scale / max(1, fan[initializer.mode])
    if initializer.distribution == "uniform":
        limit = math.sqrt(3 * variance)
        return generator.uniform(-limit, limit, shape)
    if initializer.distribution == "untruncated_normal":
        return generator.normal(0, math.sqrt(variance), shape)
    # Truncation at 2 leaves a standard deviation of 0.8796…
    stddev = math.sqrt(variance) / 0.87962566103423978
    return stddev * _truncated_normal(generator, shape)


def _fans(shape, input_axes, output_axes):
    """Numbers of values that come into and go out of a unit, as Keras counts them."""
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[i] for i in input_axes), math.prod(shape[i] for i in output_axes)
    if len(shape) == 0:
        return 1, 1
    if len(shape) == 1:
        return shape[0], shape[0]
    positions = math.prod(shape[:-2])  # of a convolution's kernel; 1 for a matrix
    return positions * shape[-2], positions * shape[-1]


def _einsum_axes(equation):
    """Input and output axes of the kernel of an `EinsumDense`, such as 'abc,cd->abd'."""
    operands, output = equation.split("->")
    _, kernel = operands.split(",")
    output_axes = [i for i, label in enumerate(kernel) if label in output]
    input_axes = [i for i, label in enumerate(kernel) if label not in output]
    return input_axes, output_axes
