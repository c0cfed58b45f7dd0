"""The seam on TensorFlow: see `torch.py` for the same functions on PyTorch."""

import os

import numpy as np
import tensorflow as tf


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


def make_loader(batches):
    """Makes a `tf.data.Dataset` of the batches of a `keras_segen.data.loader.Batches`.

    Each pass over it is one epoch. An epoch counts as done when its last batch has been taken:
    an iterator that somebody opens, peeks into and drops leaves the next epoch as it was. That
    needs a pipeline that reads nothing ahead (`Batches` does, in its own thread or processes).
    """
    rest = len(batches.dataset) % batches.batch_size
    rows = batches.batch_size if rest == 0 or batches.drop_last else None
    height, width, channels = batches.dataset.image_shape

    def one_epoch():
        for step, batch in enumerate(batches.read(batches.epoch)):
            if step == len(batches) - 1:
                batches.epoch += 1
            yield batch

    loader = tf.data.Dataset.from_generator(
        one_epoch,
        output_signature=(
            tf.TensorSpec((rows, height, width, channels), tf.float32),
            tf.TensorSpec((rows, height, width), tf.int32),
        ),
    )
    loader = loader.apply(tf.data.experimental.assert_cardinality(len(batches)))
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    return loader.with_options(options)


def infer(model, images):
    """Runs the model once, for inference: NumPy images in, NumPy outputs out."""
    return np.asarray(model.predict_on_batch(images))


def save_model(model, path):
    """Saves a model as `.keras`."""
    model.save(path)


def synchronize():
    """Waits until all work given to the device is done."""
    tf.test.experimental.sync_devices()


def _threads():
    """Threads within one operation: set in the program, else in the environment, else all."""
    set_here = tf.config.threading.get_intra_op_parallelism_threads()
    return set_here or int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0)) or os.cpu_count()


def peak_device_memory():
    """Returns the peak memory of the first GPU in bytes, or None without one."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def settings():
    """Returns what affects speed and numbers here, as a dict of plain values."""
    gpus = tf.config.list_physical_devices("GPU")
    device = "CPU"
    if gpus:
        device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return {
        "framework": tf.__version__,
        "device": device,
        "mode": "eager" if tf.config.functions_run_eagerly() else "graph (tf.function)",
        "compiler": "XLA" if gpus else "none (XLA off)",
        "threads": _threads(),
        "TensorFloat-32": bool(gpus) and tf.config.experimental.tensor_float_32_execution_enabled(),
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0",
    }
