"""The seam on PyTorch: see `tensorflow.py` for the same functions on TensorFlow."""

import contextlib

import keras
import numpy as np
import torch
from keras.src.backend.common import dtypes as keras_dtypes
from keras.src.utils.module_utils import tensorflow as tensorflow_if_imported
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from keras_segen.backend import faster
from keras_segen.backend.philox import philox


def check(condition, message):
    """Raises a ValueError if `condition`, a boolean tensor without dimensions, is false.

    On a GPU the check is queued with the other work, so that nothing waits for it; the error is
    then CUDA's own.
    """
    if condition.device.type == "meta":  # Keras infers shapes: there are no values
        return
    if condition.device.type == "cuda":
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise ValueError(message)


def bincount(bins, num_bins, weights=None):
    """Counts how often each bin occurs, or sums integer weights by bin: int64 `(num_bins,)`."""
    if weights is None:
        return torch.bincount(bins, minlength=num_bins)
    # Not `torch.bincount`: it sums weights as float64, which Apple's GPUs do not have.
    totals = torch.zeros(num_bins, dtype=torch.int64, device=bins.device)
    return totals.index_add_(0, bins, weights)


def share_of_replica(loss):
    """Returns the loss: here one process sees the whole batch."""
    return loss


def minimize(loss_fn, variables, optimizer):
    """Takes one optimizer step on some variables; all others stay unchanged.

    Args:
        loss_fn: `callable() -> (loss, results)`: a tensor without dimensions, and any structure
            of tensors for the caller. It may itself minimize something else.
        variables: list of `keras.Variable`, those to update.
        optimizer: a built `keras.optimizers.Optimizer`; it may scale the loss, accumulate
            gradients or clip them.

    Returns:
        What `loss_fn` returned, before the step, without its gradients.
    """
    loss, results = loss_fn()
    # Not `backward()`: that also fills the gradients of the variables that stay.
    gradients = torch.autograd.grad(
        optimizer.scale_loss(loss), [variable.value for variable in variables], allow_unused=True
    )
    with torch.no_grad():
        optimizer.apply(list(gradients), variables)
    return keras.tree.map_structure(torch.detach, (loss, results), none_is_leaf=False)


@contextlib.contextmanager
def operations():
    """Lists the operations that PyTorch runs, but for those that only look at memory otherwise.

    Each is run once more on the processor, in float64 and on the same inputs: an operation whose
    result lies further from that than rounding explains is at fault itself.

    Yields:
        List of dicts: `name`, such as `"aten.convolution"`; `shape`, of its largest float output;
        `norms`, the sum of that output's absolute values and the root of the sum of their squares,
        which do not depend on the order of the axes; `rounding`, the root mean square of its
        difference from float64, relative to the output in float64, or None where it is not known.
    """
    with _Operations() as mode:
        yield mode.seen


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        exact = tree_map(_in_float64, (args, kwargs))  # before, since it may change its inputs
        outputs = function(*args, **kwargs)
        floats = [x for x in tree_leaves(outputs) if _is_float(x) and x.numel()]
        if floats and not function.is_view and str(function.overloadpacket) not in _MOVES:
            largest = max(floats, key=torch.numel)
            self.seen.append(
                {
                    "name": str(function.overloadpacket),
                    "shape": list(largest.shape),
                    "norms": [float(torch.linalg.vector_norm(_wide(largest), p)) for p in (1, 2)],
                    "rounding": _rounding(function, exact, outputs, largest),
                }
            )
        return outputs


_MOVES = ("aten._to_copy", "aten.alias", "aten.clone", "aten.copy_", "aten.detach", "aten.empty")


def _is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _wide(x):
    return x.detach().to("cpu", torch.float64)


def _in_float64(x):
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach().to("cpu", torch.float64 if x.is_floating_point() else x.dtype, copy=True)


def _rounding(function, arguments, outputs, largest):
    """How far an output of an operation is from the same in float64; None if not known."""
    index = next(i for i, x in enumerate(tree_leaves(outputs)) if x is largest)
    try:
        exact = tree_leaves(function(*arguments[0], **arguments[1]))[index]
    except (RuntimeError, NotImplementedError, TypeError):  # no such operation in float64
        return None
    if torch.Tag.nondeterministic_seeded in function.tags or exact.dtype != torch.float64:
        return None
    apart = torch.linalg.vector_norm(_wide(largest) - exact)
    size = torch.linalg.vector_norm(exact)
    return float(apart / size) if size else float(apart)


@contextlib.contextmanager
def double_precision():
    """Lets Keras compute in float64 where a layer's dtype is float64.

    On PyTorch, Keras replaces float64 by float32 in type promotion, as JAX does: a batch
    normalization in float64 computes in float32. In this context it does not.
    """
    types = keras_dtypes.BIT64_TO_BIT32_DTYPE
    before = types["float64"]
    types["float64"] = "float64"
    try:
        yield
    finally:
        types["float64"] = before


def input_gradient(fn, x):
    """Differentiates `sum(fn(x))` by `x`; the result can be differentiated again, but not by what
    made `x`.

    Arguments, results and errors are those of `slope_at`.
    """
    return slope_at(fn, x.detach().requires_grad_(True))


def slope_at(fn, x):
    """Differentiates `sum(fn(x))` by `x`; the result can be differentiated by all that it depends
    on, also by what made `x`.

    Args:
        fn: callable from a tensor to a tensor.
        x: a float tensor that depends on variables.

    Returns:
        outputs: `fn(x)`.
        gradient: a tensor of the shape of `x`.
    """
    outputs = fn(x)
    (gradient,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return outputs, gradient


def weighted_rows(rows, index, weights):
    """Adds up rows of a table, each times a weight: how pixels between others are interpolated.

    Args:
        rows: float `(n, channels)`.
        index: integers `(…, k)`, which rows.
        weights: `(…, k)`, of the type of the rows; they get no gradient.

    Returns:
        `(…, channels)`.
    """
    k = index.shape[-1]
    sums = torch.nn.functional.embedding_bag(
        index.reshape(-1, k), rows, mode="sum", per_sample_weights=weights.detach().reshape(-1, k)
    )
    return sums.reshape(*index.shape[:-1], rows.shape[1])


def uniform(key, step, first_row, shape):
    """Draws uniform random numbers that depend only on the arguments, to the bit.

    Args:
        key: int in [0, 2**64), names the stream.
        step: integer, a number or a tensor: the part of the stream.
        first_row: integer, a number or a tensor; row `r` of the result is row `first_row + r` of
            the step, however many rows are drawn at once.
        shape: `(rows, columns)`; columns is a multiple of 4, rows may be a tensor.

    Returns:
        float32 `(rows, columns)` in (0, 1): multiples of 2**-24, equal on every framework.
    """
    blocks = shape[1] // 4
    bits = philox(key, (int(first_row) * blocks, int(step)), int(shape[0]) * blocks)
    values = ((bits & 0x7FFFFF).astype("float32") + np.float32(0.5)) * np.float32(2**-23)
    return keras.ops.convert_to_tensor(values.reshape(-1, shape[1]))


class _Epochs(torch.utils.data.IterableDataset):
    """The epochs of a `Batches`, one for each iterator that is read to its end.

    Before training, Keras takes one batch to learn its shape and drops that iterator; after each
    epoch it opens one that it never reads. Neither may count. An epoch of several batches is done
    when its last batch has been taken. If it has a single batch, peeking takes all of it: then it
    is done only if the next iterator is opened, or the end reached, while this one is still held;
    Keras drops its peeking iterator before that.
    """

    def __init__(self, batches):
        self.batches = batches
        self.taken = False  # the only batch of an epoch was taken by an iterator still held

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self._finish_single()
        return self._one_epoch()

    def _finish_single(self):
        if self.taken:
            self.taken = False
            self.batches.epoch += 1

    def _one_epoch(self):
        batches = self.batches
        for step, batch in enumerate(batches.read(batches.epoch)):
            if len(batches) > 1:
                if step == len(batches) - 1:
                    batches.epoch += 1
                yield batch
                continue
            self.taken = True
            try:
                yield batch
            except GeneratorExit:
                self.taken = False
                raise
            self._finish_single()


def make_loader(batches):
    """Makes a `torch.utils.data.DataLoader` of a `keras_segen.data.loader.Batches`.

    Each pass over it is one epoch; an iterator that is opened, peeked into and dropped does not
    change the next epoch. `Batches` reads ahead itself, in its own thread or processes; it is the
    loader's attribute `batches`.
    """
    # Its own generator, since opening an iterator draws a number from it.
    loader = torch.utils.data.DataLoader(
        _Epochs(batches), batch_size=None, generator=torch.Generator()
    )
    loader.batches = batches
    return loader


def infer(model, images, method="__call__"):
    """Runs a model, or a method of it, once, for inference: NumPy images in, NumPy outputs out.

    The method takes tensors and `training`, and returns tensors.
    """
    images = keras.tree.map_structure(keras.ops.convert_to_tensor, images)
    with torch.no_grad():
        outputs = getattr(model, method)(images, training=False)
    if type(outputs) is torch.Tensor:
        return _to_numpy(outputs)
    return keras.tree.map_structure(_to_numpy, outputs)


def _to_numpy(tensor):
    """Without the copy that Keras makes; NumPy has no bfloat16, which is left to Keras."""
    if tensor.dtype == torch.bfloat16:
        return keras.ops.convert_to_numpy(tensor)
    return tensor.numpy(force=True)


@contextlib.contextmanager
def without_the_other_framework():
    """Lets Keras serialize layers (`get_config`, `save`) without importing TensorFlow.

    Keras checks whether each value that it serializes belongs to TensorFlow, and imports TensorFlow
    to check: that costs seconds, and hundreds of MB for the rest of the process. In this context
    Keras takes TensorFlow for not installed, which may be true.
    """
    lazy = tensorflow_if_imported
    before = lazy._available
    lazy._available = lazy.module is not None
    try:
        yield
    finally:
        lazy._available = before


def save_model(model, path):
    """Saves a model as `.keras`, without importing TensorFlow."""
    with without_the_other_framework():
        model.save(path)


def synchronize():
    """Waits until the device has finished all work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def peak_device_memory():
    """Returns the peak memory of the first GPU in bytes, or None without one."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None


def limit_threads(threads):
    """Limits the threads within an operation, and those for operations side by side.

    Call it once, before anything is computed: later, PyTorch does not allow the second limit.
    """
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(threads)


def settings():
    """Returns the settings that affect speed and numbers, as a dict of plain values."""
    cuda = torch.cuda.is_available()
    device = keras.ops.zeros(()).device.type
    return {
        "framework": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else device.upper(),
        "mode": "eager",
        "compiler": "none (torch.compile off)",
        "threads": torch.get_num_threads(),
        "inter-op threads": torch.get_num_interop_threads(),
        "TensorFloat-32": cuda and torch.backends.cudnn.allow_tf32,
        "oneDNN": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "replacements": faster.summary(),
    }
