"""The seam on PyTorch: see `tensorflow.py` for the same functions on TensorFlow."""

import contextlib
import functools

import keras
import numpy as np
import torch
from keras.src.backend.common import dtypes as keras_dtypes
from keras.src.backend.common.variables import get_autocast_scope
from keras.src.backend.torch import core as keras_core
from keras.src.backend.torch import nn as keras_nn
from keras.src.models import functional as keras_functional
from keras.src.utils.module_utils import tensorflow as tensorflow_if_imported

from keras_segen.backend.philox import philox

# Where Keras' own layers are that are no more than their `call`.
PLAIN_LAYERS = tuple(
    f"keras.src.layers.{room}"
    for room in (
        "activations",
        "convolutional",
        "core.dense",
        "merging",
        "normalization.batch_normalization",
        "pooling",
        "regularization.dropout",
        "reshaping",
    )
)


def _drop_copies_around_convolutions():
    """Keeps Keras from copying images to channels-first memory and back around each operation.

    Keras 3.15 ends the transposition before every convolution and pooling in `.contiguous()`: a
    copy to channels-first memory, which `conv` at once copies back to channels-last. In a U-Net's
    forward pass on a CPU these copies take as long as the convolutions. The bare permutation has
    the same values; PyTorch takes it as an image in channels-last memory.

    Where Keras no longer copies, or no longer has the function, nothing is replaced.
    """
    original = getattr(keras_nn, "_transpose_spatial_inputs", None)
    if original is None or not original(torch.empty(1, 2, 2, 2)).is_contiguous():
        return

    def transpose_without_copy(inputs):
        if inputs.ndim != 4 or torch.compiler.is_exporting():
            return original(inputs)
        return torch.permute(inputs, (0, 3, 1, 2))

    keras_nn._transpose_spatial_inputs = transpose_without_copy


_drop_copies_around_convolutions()


def _lay_kernels_out_for_convolutions():
    """Lets kernels lie in memory in the order in which PyTorch's convolutions want them.

    Keras 3.15 transposes a kernel (height, width, in, out) to PyTorch's order of axes and copies
    the result to channels-last memory, in every convolution of every step and prediction. If its
    numbers lie in the order (out, height, width, in) from the beginning, the transposed kernel is
    in channels-last memory already, and nothing is copied. Shape and values are the same.

    All variables of four axes are laid out so, those of optimizers too: operations on several
    tensors are fastest if these lie alike. Where Keras does not copy kernels, nothing changes.
    """
    transpose = getattr(keras_nn, "_transpose_conv_kernel", None)
    convert = getattr(keras_nn, "_maybe_convert_to_channels_last", None)
    kernel = torch.empty(2, 2, 2, 2)
    if transpose is None or convert is None:
        return
    if convert(transpose(kernel)).data_ptr() == kernel.data_ptr():
        return
    original = keras_core.Variable._initialize

    @functools.wraps(original)
    def initialize(self, value):
        original(self, value)
        if self._value.ndim == 4 and self._value is not value:  # not a parameter of somebody else
            laid_out = self._value.data.permute(3, 2, 0, 1)
            laid_out = laid_out.contiguous(memory_format=torch.channels_last)
            self._value.data = laid_out.permute(2, 3, 1, 0)

    keras_core.Variable._initialize = initialize


_lay_kernels_out_for_convolutions()


def _crop_transposed_convolutions_inside():
    """Lets PyTorch's transposed convolution leave out the rim that `padding="same"` cuts off.

    Keras 3.15 computes the rim as well and cuts it off, because PyTorch can only leave out as
    much on the left as on the right, or a little less on the right. What is left is a view with
    gaps, on which a batch normalization takes several times as long, and its gradient is copied
    to channels-first memory. Where PyTorch can leave out what Keras cuts off, it does so here:
    the values are the same.

    Where Keras no longer cuts, nothing is replaced.
    """
    crops_of = getattr(keras_nn, "compute_conv_transpose_output_crops_for_torch", None)
    if crops_of is None:
        return
    original = keras_nn.conv_transpose

    @functools.wraps(original)
    def conv_transpose(
        inputs,
        kernel,
        strides=1,
        padding="valid",
        output_padding=None,
        data_format=None,
        dilation_rate=1,
    ):
        options = (strides, padding, output_padding, data_format, dilation_rate)
        x, weight = (keras_core.convert_to_tensor(tensor) for tensor in (inputs, kernel))
        layout = data_format or keras.config.image_data_format()
        if x.ndim != 4 or layout != "channels_last":
            return original(inputs, kernel, *options)
        steps = (strides, strides) if isinstance(strides, int) else tuple(strides)
        crops = crops_of(x.shape, weight.shape, steps, padding, output_padding, dilation_rate)
        more_on_the_left = tuple(left - right for left, right in crops)
        if not all(
            left >= 0 and 0 <= more < step
            for (left, _), more, step in zip(crops, more_on_the_left, steps, strict=True)
        ):
            return original(inputs, kernel, *options)
        x = torch.nn.functional.conv_transpose2d(
            keras_nn._transpose_spatial_inputs(x),
            keras_nn._transpose_conv_kernel(weight),
            stride=steps,
            padding=tuple(left for left, _ in crops),
            output_padding=more_on_the_left,
            dilation=dilation_rate,
        )
        return torch.permute(x, (0, 2, 3, 1))

    keras_nn.conv_transpose = conv_transpose


_crop_transposed_convolutions_inside()


def _take_softmax_over_channels_as_over_planes():
    """Lets a softmax over the last of four axes run as one over the first after the batch.

    PyTorch works through the last axis pixel by pixel, a handful of classes each time, and
    through another axis with as many pixels at once as the processor takes: with 6 classes that
    is five times as fast on a CPU, copies to and fro included, and the softmax was most of what
    a loss costs. The values are the same to rounding.
    """
    for name in ("softmax", "log_softmax"):
        setattr(keras_nn, name, _over_planes(getattr(keras_nn, name)))


def _over_planes(original):
    @functools.wraps(original)
    def over_planes(x, axis=-1):
        x = keras_core.convert_to_tensor(x)
        if x.ndim != 4 or axis not in (-1, 3) or x.device.type != "cpu":
            return original(x, axis)
        return original(x.permute(0, 3, 1, 2), 1).permute(0, 2, 3, 1).contiguous()

    return over_planes


_take_softmax_over_channels_as_over_planes()


def _fuse_batch_normalization():
    """Lets batch normalization run as PyTorch's own operation.

    Keras 3.15 composes it of means, squares, differences and products of the whole picture, each
    a pass over it, and as many on the way back: a good part of a U-Net's training step on a CPU.
    PyTorch's operation computes the same in two passes, and the variance from the differences to
    the mean instead of as E[x^2] - E[x]^2, which loses its digits where the mean is large.

    Only what is usual is replaced: float32 pictures whose last axis is normalized. Where Keras no
    longer computes the moments itself, nothing is.
    """
    layer = keras.layers.BatchNormalization
    original = layer.call
    batch_norm = torch.nn.functional.batch_norm
    if "_moments" not in original.__code__.co_names:
        return

    @functools.wraps(original)
    def call(self, inputs, training=None, mask=None):
        numbers = inputs.numel() // inputs.shape[-1] if inputs.ndim == 4 else 0
        usual = (
            numbers > 1  # one number has no variance
            and inputs.dtype == torch.float32
            and self.compute_dtype == "float32"
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and mask is None
            and not self.renorm
            and not self.synchronized
            and not torch.compiler.is_exporting()
        )
        if not usual:
            return original(self, inputs, training=training, mask=mask)
        x = torch.permute(inputs, (0, 3, 1, 2))
        weights = (self.gamma.value, self.beta.value)
        if training and self.trainable:
            # With a momentum of 1 they become the batch's own, the variance with n - 1 as divisor.
            mean, variance = inputs.new_zeros(2, inputs.shape[-1])
            x = batch_norm(x, mean, variance, *weights, True, 1.0, self.epsilon)
            variance = variance * ((numbers - 1) / numbers)
            for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        else:
            moving = (self.moving_mean.value, self.moving_variance.value)
            x = batch_norm(x, *moving, *weights, False, 0.0, self.epsilon)
        return torch.permute(x, (0, 2, 3, 1))

    layer.call = call


_fuse_batch_normalization()


def _call_plain_layers_directly():
    """Lets a functional model call Keras' own layers without the checks of every call.

    `Layer.__call__` looks for masks, types to convert, values to infer, symbolic tensors and
    more, anew for each layer and step: 0.1 ms each on a laptop, as long as the work itself in the
    small layers of a GAN. In a model that is built, on plain float32 tensors, nothing comes of
    it but `layer.call`. Everything else takes Keras' way: composite layers and those of users,
    mixed precision, masks, regularized activities, hooks, quantization, distribution.
    """
    if not hasattr(keras_functional, "operation_fn"):
        return
    original = keras_functional.operation_fn

    @functools.wraps(original)
    def operation_fn(operation, **context):
        way_of_keras = original(operation, **context)
        training = context.get("training")
        if training is None or len(context) > 1 or not _is_plain(operation):
            return way_of_keras
        options = {"training": training} if operation._call_has_training_arg else {}

        def call(*args, **kwargs):
            more = [name for name, value in kwargs.items() if value is not None]
            if more not in ([], ["training"]) or len(args) != 1 or not _are_plain(args[0]):
                return way_of_keras(*args, **kwargs)
            return operation.call(*args, **options)

        return call

    keras_functional.operation_fn = operation_fn


def _is_plain(operation):
    """Whether all that `operation(x)` does, here and now, is `operation.call(x)`."""
    return (
        type(operation).__module__.startswith(PLAIN_LAYERS)
        and operation.built
        and operation.compute_dtype == operation.variable_dtype == "float32"
        and operation.activity_regularizer is None
        and operation.quantization_mode is None
        and not operation._remat_mode
        and not operation._forward_hooks
        and not operation._forward_pre_hooks
        and not operation._backward_hooks
        and not operation._backward_pre_hooks
        and keras.distribution.distribution() is None
        and get_autocast_scope() is None
    )


def _are_plain(tensors):
    tensors = tensors if isinstance(tensors, list) else [tensors]
    return all(
        type(tensor) is torch.Tensor
        and tensor.dtype == torch.float32
        and not hasattr(tensor, "_keras_mask")
        for tensor in tensors
    )


_call_plain_layers_directly()


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


def minimize(loss_fn, variables, optimizer):
    """Takes one optimizer step on some variables; all others stay as they are.

    Args:
        loss_fn: `callable() -> (loss, results)`: a tensor without dimensions, and any structure
            of tensors that the caller wants to see. It may itself minimize something else.
        variables: list of `keras.Variable`, those to move.
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


def gradients(loss_fn, variables):
    """Differentiates a loss by variables, and by tensors on the way to it.

    Args:
        loss_fn: `callable() -> (loss, tensors)`: a tensor without dimensions, and a list of float
            tensors that it was computed from.
        variables: list of `keras.Variable`.

    Returns:
        loss, tensors: what `loss_fn` returned, without gradients.
        by_variables, by_tensors: lists of tensors; None where the loss does not depend on one, or
            the way to it leads through none of the variables.
    """
    loss, tensors = loss_fn()
    sources = [variable.value for variable in variables] + tensors
    on_the_way = [source for source in sources if source.requires_grad]
    found = iter(torch.autograd.grad(loss, on_the_way, allow_unused=True))
    found = [next(found) if source.requires_grad else None for source in sources]
    loss, *tensors = (tensor.detach() for tensor in (loss, *tensors))
    return loss, tensors, found[: len(variables)], found[len(variables) :]


@contextlib.contextmanager
def double_precision():
    """Lets Keras compute in float64 where a layer's dtype is float64.

    On PyTorch Keras takes float32 in place of float64 wherever it works out a common type, as JAX
    does: a batch normalization in float64 computes in float32. In this context it does not.
    """
    types = keras_dtypes.BIT64_TO_BIT32_DTYPE
    before = types["float64"]
    types["float64"] = "float64"
    try:
        yield
    finally:
        types["float64"] = before


def input_gradient(fn, x):
    """Differentiates `sum(fn(x))` by `x`; the result can be differentiated again.

    Args:
        fn: callable from a tensor to a tensor.
        x: a float tensor.

    Returns:
        outputs: `fn(x)`.
        gradient: a tensor of the shape of `x`.
    """
    x = x.detach().requires_grad_(True)
    outputs = fn(x)
    (gradient,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return outputs, gradient


def uniform(key, step, first_row, shape):
    """Draws uniform random numbers that are a function of the arguments, bit by bit.

    Args:
        key: int in [0, 2**64), names the stream.
        step: integer, a number or a tensor: which part of the stream.
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

    Before it trains, Keras takes one batch to learn its shape and drops that iterator; after
    each epoch it opens one that it never reads. Neither may count. An epoch of several batches
    is done when its last batch has been taken. If it has a single batch, a look at it takes all
    of it: then it is done only if the next iterator is opened, or the end reached, while this
    one is still held; Keras drops the one it peeked with before that.
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

    Each pass over it is one epoch; an iterator that somebody opens, peeks into and drops leaves
    the next epoch as it was. `Batches` reads ahead itself, in its own thread or processes.
    """
    # A generator of its own: opening an iterator draws a number from it.
    return torch.utils.data.DataLoader(
        _Epochs(batches), batch_size=None, generator=torch.Generator()
    )


def infer(model, images):
    """Runs the model once, for inference: NumPy images in, NumPy outputs out."""
    with torch.no_grad():
        outputs = model(images, training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


@contextlib.contextmanager
def without_the_other_framework():
    """Lets Keras describe layers (`get_config`, `save`) without importing TensorFlow.

    Keras asks of every value that it describes whether it is one of TensorFlow's, and imports
    TensorFlow to ask: seconds, and hundreds of MB for the rest of the process. In this context
    Keras takes it for not installed, as it may well be.
    """
    lazy = tensorflow_if_imported
    before = lazy._available
    lazy._available = lazy.module is not None
    try:
        yield
    finally:
        lazy._available = before


def save_model(model, path):
    """Saves a model as `.keras`, without its framework's rival."""
    with without_the_other_framework():
        model.save(path)


def synchronize():
    """Waits until all work given to the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def peak_device_memory():
    """Returns the peak memory of the first GPU in bytes, or None without one."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None


def settings():
    """Returns what affects speed and numbers here, as a dict of plain values."""
    cuda = torch.cuda.is_available()
    device = keras.ops.zeros(()).device.type
    return {
        "framework": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else device.upper(),
        "mode": "eager",
        "compiler": "none (torch.compile off)",
        "threads": torch.get_num_threads(),
        "TensorFloat-32": cuda and torch.backends.cudnn.allow_tf32,
        "oneDNN": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
    }
