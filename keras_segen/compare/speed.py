"""What a step costs: the clock around `fit`, and the share of the loader."""

import time

import keras
import numpy as np
import psutil

from keras_segen import backend, determinism, machine, segmentation
from keras_segen.data.loader import Batches
from keras_segen.training import load_model

WARM_UP = 3


def spread(seconds):
    """Summarises durations: dict of median, 10th and 90th percentile in ms, and their count."""
    low, median, high = np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90])
    return {
        "median": round(float(median), 3),
        "p10": round(float(low), 3),
        "p90": round(float(high), 3),
        "count": len(seconds),
    }


def steady(seconds):
    """Leaves out the first steps, which trace, compile and warm up."""
    return seconds[WARM_UP:] or seconds


class Recorder(keras.callbacks.Callback):
    """Writes down the losses and the time of every step of `fit`.

    A step lasts from the end of the one before to its own end, the device waited for, less the
    time that it waited for its batch. So it means the same on a backend that fetches the batch
    inside the step and on one that fetches it before.

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
            if metric.name in self.losses:  # a running mean: begun anew, it is that of one step
                known = float(keras.ops.convert_to_numpy(metric.count)) > 0
                self.losses[metric.name].append(float(logs[metric.name]) if known else None)
                metric.reset_state()
        last = {name: values[-1] for name, values in self.losses.items()}
        self.tell(step=len(self.seconds), losses=last)
        self.started = time.perf_counter()


def loader_times(batches, count):
    """Measures how long batches take that nobody works beside: list of seconds per batch."""
    seconds = []
    reading = batches.read(epoch=0)
    for _ in range(min(count, len(batches))):
        start = time.perf_counter()
        next(reading)
        seconds.append(time.perf_counter() - start)
    reading.close()
    return seconds


class InMemory(Batches):
    """The batches of the first epoch, made at once and handed out again and again."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.stored = list(super().read(epoch=0))

    def read(self, epoch):
        for batch in self.stored:
            self.waited.append(0.0)
            yield batch


def loader_ratio(experiment, epochs=3, tell=lambda text: None):
    """Measures what feeding costs: epochs of `fit` from the loader, and from memory.

    The same model trains on the same batches, once prepared by the loader while it trains and
    once held in memory. The epochs come in pairs, the loader first in every second one, and the
    median over the pairs is told: a machine that slows down for a while harms both.

    Args:
        experiment: a `keras_segen.experiment.Experiment`.
        epochs: int, epochs of each kind that are measured, after one that warms up.
        tell: called with a line of text after each epoch.

    Returns:
        Dict with `loader_seconds` and `memory_seconds` (lists of float, one per epoch), `ratios`
        (list of float, one per pair) and `ratio`, their median.
    """
    dataset = experiment.load_data("train")
    model = experiment.build_model(dataset)
    batches = experiment.training_batches(dataset)
    experiment.compile(model, dataset, len(batches))
    sources = {
        "memory": experiment.training_batches(dataset, kind=InMemory),
        "loader": batches,
    }
    loaders = {kind: backend.make_loader(source) for kind, source in sources.items()}
    seconds = {kind: [] for kind in sources}
    model.fit(loaders["memory"], shuffle=False, verbose=0)
    tell("warmed up for one epoch")
    for pair in range(epochs):
        for kind in ("loader", "memory") if pair % 2 else ("memory", "loader"):
            sources[kind].epoch = 0
            backend.synchronize()
            start = time.perf_counter()
            model.fit(loaders[kind], shuffle=False, verbose=0)
            backend.synchronize()
            seconds[kind].append(time.perf_counter() - start)
            tell(f"{kind}: {seconds[kind][-1]:.1f} s")
    ratios = [a / b for a, b in zip(seconds["loader"], seconds["memory"], strict=True)]
    return {
        "loader_seconds": seconds["loader"],
        "memory_seconds": seconds["memory"],
        "ratios": ratios,
        "ratio": float(np.median(ratios)),
    }


def model_to_predict(run=None):
    """Returns the best model of a run folder, or a small U-Net for 6 classes."""
    if run is not None:
        return load_model(run)
    model = segmentation.unet((None, None, 3), num_classes=6, filters=(16, 32, 64))
    determinism.initialize(model, seed=0)
    return model


def folding_ratio(model, tile, rounds=10):
    """Measures what folding batch normalization saves: one tile, plain and folded in turn.

    Args:
        model: a segmentation model.
        tile: int, height and width of the images, as `keras_segen.segmentation.Predictor` takes.
        rounds: int, measured steps of each, after one that warms up.

    Returns:
        Dict with `plain_ms` and `folded_ms` (medians per tile) and `ratio`, folded over plain.
    """
    image = determinism.rng("bench").random((tile, tile, model.input_shape[3]), dtype="float32")
    predictors = {
        fold: segmentation.Predictor(model, tile, batch_size=1, fold=fold) for fold in (False, True)
    }
    seconds = {fold: [] for fold in predictors}
    for predictor in predictors.values():
        backend.infer(predictor.network, image[None])
    for _ in range(rounds):
        for fold, predictor in predictors.items():
            start = time.perf_counter()
            backend.infer(predictor.network, image[None])
            seconds[fold].append(time.perf_counter() - start)
    plain, folded = (1e3 * float(np.median(seconds[fold])) for fold in (False, True))
    return {"plain_ms": plain, "folded_ms": folded, "ratio": folded / plain}


def prediction_memory(model, sides, tile, tell=lambda text: None):
    """Measures the peak memory of predicting square images, one larger than the other.

    Args:
        model: a segmentation model.
        sides: ints, ascending: height and width of the images, uint8.
        tile: int, as `keras_segen.segmentation.Predictor` takes.
        tell: called with a line of text before each image.

    Returns:
        List of dicts, one per image: `side`, `seconds`, and in bytes `arrays` (the image and its
        class ids), `growth` (the process's peak resident memory less what it had before the
        first image, the network loaded and warmed up) and `beyond`, what of it is beyond the
        arrays.

    Raises:
        ValueError: if the sides do not ascend: the peak of a process never falls.
    """
    if list(sides) != sorted(set(sides)):
        raise ValueError(f"sizes are {sides}, expected ascending ones, such as (1000, 2000).")
    predictor = segmentation.Predictor(model, tile)
    small = np.zeros((tile, 4 * tile, predictor.channels), "uint8")
    predictor.predict(small)
    before = psutil.Process().memory_info().rss
    rows = []
    for side in sides:
        tell(f"{side} x {side} …")
        shape = (side, side, predictor.channels)
        image = determinism.rng("bench", side).integers(0, 256, shape, dtype="uint8")
        start = time.perf_counter()
        result = predictor.predict(image)
        seconds = time.perf_counter() - start
        growth = max(0, machine.peak_memory() - before)
        arrays = image.nbytes + result.nbytes
        rows.append(
            {
                "side": side,
                "seconds": seconds,
                "arrays": arrays,
                "growth": growth,
                "beyond": max(0, growth - arrays),
            }
        )
        del image, result
    return rows
