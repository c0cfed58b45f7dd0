"""The clock around the steps of `fit`."""

import time

import keras

from keras_segen import backend


class Recorder(keras.callbacks.Callback):
    """Records the losses and the time of every step of `fit`.

    A step lasts from the end of the previous one to its own end, including all work of the device
    but not the wait for its batch. So times are comparable between a backend that fetches the
    batch inside the step and one that fetches it before.

    Args:
        batches: the `Batches` behind the loader that `fit` reads.
        tell: called with keyword arguments `step` and `losses`, a dict, after each step.
        names: names of the losses, as `fit` reports them.

    Attributes:
        losses: dict from each name to a list, the loss of each step; None where a step did not
            compute it, as when only one player of a GAN moves.
        seconds: list of float, the time of each step.
        waits: list of float, the time that each step waited for its batch.
    """

    def __init__(self, batches, tell=lambda **values: None, names=("loss",)):
        super().__init__()
        self.batches = batches
        self.tell = tell
        self.losses = {name: [] for name in names}
        self.seconds, self.waits = [], []

    def on_epoch_begin(self, epoch, logs=None):
        backend.synchronize()
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        backend.synchronize()
        now = time.perf_counter()
        wait = self.batches.waited[-1]
        self.waits.append(wait)
        self.seconds.append(now - self.started - wait)
        for metric in self.model.metrics:
            if metric.name in self.losses:  # a running mean: reset, it is that of one step
                known = float(keras.ops.convert_to_numpy(metric.count)) > 0
                self.losses[metric.name].append(float(logs[metric.name]) if known else None)
                metric.reset_state()
        last = {name: values[-1] for name, values in self.losses.items()}
        self.tell(step=len(self.seconds), losses=last)
        self.started = time.perf_counter()


def loader_times(batches, count):
    """Measures the time of batches without a training beside: list of seconds per batch."""
    seconds = []
    reading = batches.read(epoch=0)
    for _ in range(min(count, len(batches))):
        start = time.perf_counter()
        next(reading)
        seconds.append(time.perf_counter() - start)
    reading.close()
    return seconds
