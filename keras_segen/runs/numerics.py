"""A watch for NaN and infinity: the first step and layer that made one.

After each step the watch looks at the losses and all weights. If one is not finite, it restores
what the model was before the step, and repeats the step on the same batch, layer by layer: batches
and random numbers are functions of seed, epoch and step. That is the same on either framework, for
any task that trains by Keras' `train_step`.
"""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from keras_segen.backend import faster


class NumericsWatch(keras.callbacks.Callback):
    """Ends a training at the first NaN or infinity, with a ValueError that says where it is from.

    It copies all weights in each step: several times slower for small models.

    Args:
        batches: a `keras_segen.data.loader.Batches`, those that `fit` gets.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.before = self._copies()

    def on_train_batch_end(self, batch, logs=None):
        after = self._copies()
        losses = [float(value) for name, value in (logs or {}).items() if name.endswith("loss")]
        if all(map(math.isfinite, losses)) and all(is_finite(value) for _, value in after):
            self.before = after
            return
        for variable, value in self.before:
            variable.assign(value)
        found = origin(self.model, self.batches.batch(self.epoch, batch))
        raise ValueError(
            f"Epoch {self.epoch + 1}, step {batch + 1} of {len(self.batches)}: {found}"
        )

    def _copies(self):
        """Pairs of each variable of the model and its optimizers, and a copy of its value."""
        held = list(vars(self.model).values())  # a GAN has two optimizers
        optimizers = [each for each in held if isinstance(each, keras.optimizers.Optimizer)]
        variables = [*self.model.variables, *(v for each in optimizers for v in each.variables)]
        return [(variable, np.array(as_array(variable))) for variable in variables]


def origin(model, batch):
    """Repeats a training step and finds what made a value that is not finite.

    Args:
        model: a compiled `keras.Model`, as it was before the step; it is trained.
        batch: `(images, target)` or `(images, target, weights)`, NumPy arrays.

    Returns:
        A sentence that names it.
    """
    culprits = []
    for name, array in zip(("images", "target", "weights")[: len(batch)], batch, strict=True):
        if not all(map(is_finite, keras.tree.flatten(array))):
            return f"the {name} of the batch hold NaN or infinity."
    tensors = keras.tree.map_structure(ops.convert_to_tensor, batch)
    model.reset_metrics()
    with faster.stock(), _watched(culprits):
        logs = model.train_step(tensors)
    if culprits:
        return culprits[0]
    wrong = [
        name
        for name, value in logs.items()
        if name.endswith("loss") and not is_finite(as_array(value))
    ]
    if wrong:
        return (
            f"{wrong[0]} is not finite, though the outputs of all layers are: the loss itself "
            "overflows, or divides by 0."
        )
    for variable in model.trainable_variables:
        if not is_finite(as_array(variable)):
            return (
                f"the step made {variable.path} NaN or infinite, from finite outputs and losses: "
                "its gradient or the optimizer overflows. Try a smaller learning rate, or clip "
                "the gradients."
            )
    return (
        "a value was NaN or infinite, and is not when the step is repeated: this device does not "
        "compute the same twice."
    )


@contextlib.contextmanager
def _watched(culprits):
    """Notes each layer or operation whose output is not finite though its inputs are."""
    way_of_keras = keras.Operation.__call__

    def call(operation, *args, **kwargs):
        outputs = way_of_keras(operation, *args, **kwargs)
        if not culprits and not _all_finite(outputs) and _all_finite((args, kwargs)):
            culprits.append(_describe(operation, (args, kwargs), outputs))
        return outputs

    keras.Operation.__call__ = call
    try:
        yield
    finally:
        keras.Operation.__call__ = way_of_keras


def _describe(operation, inputs, outputs):
    weights = getattr(operation, "weights", [])
    wrong = [weight.path for weight in weights if not is_finite(as_array(weight))]
    kind = "NaN" if any(np.isnan(array).any() for array in _arrays(outputs)) else "infinity"
    where = f"layer {operation.name!r} ({type(operation).__name__}) is the first to make {kind}"
    if wrong:
        return f"{where}: its weight {wrong[0]} is not finite."
    largest = max((float(np.abs(array).max(initial=0)) for array in _arrays(inputs)), default=0.0)
    sentence = f"{where}, from finite inputs of at most {largest:.3g}"
    if weights:
        heaviest = max(float(np.abs(as_array(weight)).max(initial=0)) for weight in weights)
        sentence += f" and weights of at most {heaviest:.3g}"
    return f"{sentence}. Try a smaller learning rate, or float32 if the precision is another."


def _all_finite(values):
    return all(map(is_finite, _arrays(values)))


def _arrays(values):
    """The float tensors in a structure, as arrays."""
    found = (value for value in keras.tree.flatten(values) if hasattr(value, "dtype"))
    return [array for array in map(as_array, found) if array.dtype.kind == "f"]


def as_array(value):
    """Returns a tensor or variable as an array; bfloat16 as float32."""
    array = ops.convert_to_numpy(value)
    return array.astype("float32") if array.dtype.kind == "V" else array


def is_finite(array):
    """Whether an array holds neither NaN nor infinity; integers never do."""
    return array.dtype.kind in "iub" or bool(np.isfinite(array.astype("float32", copy=False)).all())
