"""The seam on TensorFlow: see `torch.py` for the same functions on PyTorch."""

import contextlib
import itertools
import os
import threading
import weakref

import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops.iterator_ops import OwnedIterator  # no public way

from keras_segen.backend import faster


def check(condition, message):
    """Raises if `condition`, a boolean tensor without dimensions, is false.

    In eager mode a ValueError. In a compiled graph the check becomes part of the graph, and the
    error is TensorFlow's InvalidArgumentError with the same message (XLA drops such checks).
    """
    if tf.executing_eagerly():
        if not bool(condition):
            raise ValueError(message)
    else:
        tf.debugging.Assert(condition, [message])


def bincount(bins, num_bins, weights=None):
    """Counts how often each bin occurs, or sums integer weights by bin: int64 `(num_bins,)`.

    Not `tf.math.bincount`, which XLA cannot compile: Keras turns XLA on for models on a GPU.
    """
    if weights is None:
        weights = tf.ones_like(bins, tf.int64)
    return tf.math.unsorted_segment_sum(weights, bins, num_bins)


def share_of_replica(loss):
    """Divides a loss by the number of replicas, whose gradients Keras' optimizers sum.

    Each replica of a `tf.distribute` strategy sees a part of the batch. As for Keras' own losses,
    the mean of the replicas' losses is minimized.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return loss / replicas if replicas > 1 else loss


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
    values = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        loss, results = loss_fn()
        scaled = optimizer.scale_loss(share_of_replica(loss))
    optimizer.apply(tape.gradient(scaled, values), variables)
    return loss, results


@contextlib.contextmanager
def operations():
    """Lists the operations that TensorFlow runs eagerly, for those of PyTorch to be held against.

    Yields:
        List of dicts: `name`, such as `"Conv2D"`; `shape`, of its largest float output; `norms`,
        the sum of that output's absolute values and the root of the sum of their squares, which
        do not depend on the order of the axes; `rounding`, None.
    """
    from tensorflow.python.framework import op_callbacks  # the debugger's; there is no public way

    seen = []

    def note(op_type, inputs, attributes, outputs, op_name=None, graph=None):
        floats = [x for x in outputs if graph is None and x.dtype.is_floating]
        if floats:
            array = max((x.numpy() for x in floats), key=np.size).astype("float64")
            norms = [float(np.abs(array).sum()), float(np.sqrt(np.square(array).sum()))]
            name = op_type.decode() if isinstance(op_type, bytes) else op_type  # a graph's, bytes
            found = {"name": name, "shape": list(array.shape), "norms": norms, "rounding": None}
            seen.append(found)

    op_callbacks.add_op_callback(note)
    try:
        yield seen
    finally:
        op_callbacks.remove_op_callback(note)


@contextlib.contextmanager
def double_precision():
    """Lets Keras compute in float64 where a layer's dtype is float64, as it does here anyway."""
    yield


def input_gradient(fn, x):
    """Differentiates `sum(fn(x))` by `x`; the result can be differentiated again, but not by what
    made `x`.

    Arguments, results and errors are those of `slope_at`.
    """
    return slope_at(fn, tf.stop_gradient(x))


def slope_at(fn, x):
    """Differentiates `sum(fn(x))` by `x`; the result can be differentiated by all that it depends
    on, also by what made `x`.

    Args:
        fn: callable from a tensor to a tensor.
        x: a float tensor.

    Returns:
        outputs: `fn(x)`.
        gradient: a tensor of the shape of `x`.

    Raises:
        ValueError: when `fn` resizes images, which TensorFlow cannot differentiate twice.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        with _differentiable_twice():
            outputs = fn(x)
        total = tf.reduce_sum(outputs)
    return outputs, tape.gradient(total, x)


_lock = threading.Lock()
_here = threading.local()  # its `twice`: this thread is within `_differentiable_twice`
_within = 0  # how many threads are
_stock_moments, _stock_resize = tf.nn.moments, tf.image.resize


@contextlib.contextmanager
def _differentiable_twice():
    """Replaces, in this thread and context, what TensorFlow can differentiate only once.

    `tf.nn.moments`, which Keras' normalizations use, stops the gradient at the mean: that is right
    for the first derivative and wrong for the second. `tf.image.resize` has no second derivative;
    for bilinear interpolation TensorFlow silently omits it.
    """
    global _within
    if getattr(_here, "twice", False):
        yield
        return
    _here.twice = True
    with _lock:
        _within += 1
        tf.nn.moments, tf.image.resize = _moments, _refuse_to_resize
    try:
        yield
    finally:
        _here.twice = False
        with _lock:
            _within -= 1
            if not _within:
                tf.nn.moments, tf.image.resize = _stock_moments, _stock_resize


def _moments(x, axes, shift=None, keepdims=False, name=None):
    """`tf.nn.moments`, whose variance also depends on the mean."""
    if not getattr(_here, "twice", False):
        return _stock_moments(x, axes, shift, keepdims, name)
    wide = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(wide, mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def _refuse_to_resize(
    images, size, method="bilinear", preserve_aspect_ratio=False, antialias=False, name=None
):
    if not getattr(_here, "twice", False):
        return _stock_resize(images, size, method, preserve_aspect_ratio, antialias, name)
    raise ValueError(
        "A penalty on a network's slope (r1, gradient_penalty, path_length) differentiates twice, "
        "and TensorFlow has no second derivative of a resized image: for bilinear interpolation it "
        "would silently be left out. Enlarge with UpSampling2D(interpolation='nearest') or "
        "Conv2DTranspose, shrink with AveragePooling2D, or train on PyTorch (KERAS_BACKEND=torch)."
    )


def weighted_rows(rows, index, weights):
    """Adds up rows of a table, each times a weight: how pixels between others are interpolated.

    Args:
        rows: float `(n, channels)`.
        index: integers `(…, k)`, which rows.
        weights: `(…, k)`, of the type of the rows; they get no gradient.

    Returns:
        `(…, channels)`.
    """
    weights = tf.stop_gradient(weights)[..., None]
    return tf.add_n(
        [tf.gather(rows, index[..., i]) * weights[..., i, :] for i in range(index.shape[-1])]
    )


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
    counter = tf.stack([tf.cast(first_row, tf.int64) * (shape[1] // 4), tf.cast(step, tf.int64)])
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=tf.stack(shape),
        key=tf.constant([key], tf.uint64),
        counter=tf.cast(counter, tf.uint64),
        alg=1,  # Philox
        dtype=tf.int32,
    )
    return (tf.cast(tf.bitwise.bitwise_and(bits, 0x7FFFFF), tf.float32) + 0.5) * 2**-23


def make_loader(batches):
    """Makes a `tf.data.Dataset` of the batches of a `keras_segen.data.loader.Batches`.

    Each pass over it is one epoch. An epoch is done when its last batch has been taken: an
    iterator that is opened, peeked into and dropped does not change the next epoch. That needs a
    pipeline that does not read ahead (`Batches` does, in its own thread or processes). `Batches` is
    the loader's attribute `batches`.
    """
    return _Loader(batches)


class _Loader(tf.data.Dataset):
    """A data set whose iterators raise what `batches` raises as it was raised.

    What is made of it (`map`, `prefetch`, a distributed data set) has TensorFlow's own iterators.
    """

    def __init__(self, batches):
        rest = len(batches.dataset) % batches.batch_size
        rows = batches.batch_size if rest == 0 or batches.drop_last else None
        begun = []  # the epoch whose iterator is about to take its first batch

        pipeline = tf.data.Dataset.from_generator(
            lambda: begun.pop() if begun else _Epoch(batches),
            output_signature=tf.nest.map_structure(
                lambda spec: tf.TensorSpec((rows, *spec.shape), spec.dtype), batches.spec
            ),
        )
        pipeline = pipeline.apply(tf.data.experimental.assert_cardinality(len(batches)))
        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.inject_prefetch = False
        self._pipeline = pipeline.with_options(options)
        super().__init__(self._pipeline._variant_tensor)
        self.batches = batches
        self.begun = begun

    def _inputs(self):
        return [self._pipeline]

    @property
    def element_spec(self):
        return self._pipeline.element_spec

    def __iter__(self):
        return _Iterator(self) if tf.executing_eagerly() else super().__iter__()


class _Iterator(OwnedIterator):
    """An iterator that makes its next batch before TensorFlow asks for it.

    That is in Python's `next`, or when a graph that asks for it is called. Within the graph,
    TensorFlow would wrap an error in one of its own, with pages about itself.
    """

    def __init__(self, loader):
        super().__init__(loader)
        self._loader = loader
        self._epoch = None

    def _prepare(self):
        if self._epoch is None:
            epoch = _Epoch(self._loader.batches)
            epoch.prepare()
            self._epoch, self._loader.begun[:] = epoch, [epoch]
        else:
            self._epoch.prepare()

    def __next__(self):
        self._prepare()
        return super().__next__()

    def __tf_tracing_type__(self, context):  # called whenever a graph is
        self._prepare()
        return super().__tf_tracing_type__(context)


class _Epoch:
    """An iterator of the batches of the next epoch, which can prepare one before it is asked."""

    def __init__(self, batches):
        self._batches = self._read(batches)
        self._prepared = []

    @staticmethod
    def _read(batches):
        for step, batch in enumerate(batches.read(batches.epoch)):
            if step == len(batches) - 1:
                batches.epoch += 1
            yield batch

    def prepare(self):
        if not self._prepared:
            self._prepared.extend(itertools.islice(self._batches, 1))

    def __iter__(self):
        return self

    def __next__(self):
        return self._prepared.pop() if self._prepared else next(self._batches)


_graphs = weakref.WeakKeyDictionary()  # model -> its methods' predictions as graphs, by name


def infer(model, images, method="__call__"):
    """Runs a model, or a method of it, once, for inference: NumPy images in, NumPy outputs out.

    The method takes tensors and `training`, and returns tensors. Keras' `predict_on_batch` does
    the same with more around it, a good part of a millisecond.
    """
    graphs = _graphs.setdefault(model, {})
    if method not in graphs:
        graphs[method] = _graph(weakref.ref(model), method, model.jit_compile)
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), graphs[method](images))


def _graph(model, method, jit_compile):
    """The graph of a prediction; `model()` is the model, which the graph does not keep alive."""

    @tf.function(reduce_retracing=True, jit_compile=jit_compile, autograph=False)
    def predict(images):
        return getattr(model(), method)(images, training=False)

    return predict


@contextlib.contextmanager
def without_the_other_framework():
    """Does nothing: on TensorFlow, Keras does not import PyTorch to serialize layers."""
    yield


def save_model(model, path):
    """Saves a model as `.keras`."""
    model.save(path)


def synchronize():
    """Waits until the device has finished all work."""
    tf.test.experimental.sync_devices()


def limit_threads(threads):
    """Limits the threads within an operation, and those for operations side by side.

    Call it once, before anything is computed: then TensorFlow has started its threads.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _threads(set_here, variable):
    """Threads of one kind: set in the program, else in the environment, else one per core."""
    return set_here or int(os.environ.get(variable, 0)) or os.cpu_count()


def peak_device_memory():
    """Returns the peak memory of the first GPU in bytes, or None without one."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def settings():
    """Returns the settings that affect speed and numbers, as a dict of plain values."""
    gpus = tf.config.list_physical_devices("GPU")
    device, threading = "CPU", tf.config.threading
    if gpus:
        device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return {
        "framework": tf.__version__,
        "device": device,
        "mode": "eager" if tf.config.functions_run_eagerly() else "graph (tf.function)",
        "compiler": "XLA" if gpus else "none (XLA off)",
        "threads": _threads(threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS"),
        "inter-op threads": _threads(
            threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS"
        ),
        "TensorFloat-32": bool(gpus) and tf.config.experimental.tensor_float_32_execution_enabled(),
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0",
        "replacements": faster.summary(),
    }
