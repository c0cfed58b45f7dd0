"""The process that trains a task on one backend and records the results.

`run.py` starts it and asks for some of three phases: `train` trains, into a folder with the
backend's name, `serve` runs the models that the others trained, and `parity` records some steps
layer by layer. The folder of the comparison holds `experiment.json`; `KERAS_BACKEND` names the
backend. Keras is imported inside the functions, since the time of its import is measured.
"""

import functools
import hashlib
import importlib
import json
import time
from pathlib import Path

import numpy as np

from keras_segen import processes
from keras_segen.compare.rounds import milliseconds, steady
from keras_segen.data.loader import Batches
from keras_segen.data.tree import checksum
from keras_segen.files import write_atomically, write_json
from keras_segen.processes import tell
from keras_segen.tasks.registry import read, read_json

NUM_LOADER_BATCHES = 32


class CheckedBatches(Batches):
    """Computes a checksum of every batch that it yields; the time for it counts as waiting."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.checksums = {}

    def read(self, epoch):
        for step, batch in enumerate(super().read(epoch)):
            start = time.perf_counter()
            self.checksums[f"epoch {epoch}, step {step}"] = checksum(*batch)
            self.waited[-1] += time.perf_counter() - start
            yield batch


def parity(folder, started):
    """Records the first training steps, layer by layer, in float32 and float64: `parity.npz`."""
    import keras

    from keras_segen.compare.layerwise.record import record

    tell(phase="building")
    settings = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    task = read(settings["experiment"]).layerwise()
    data = task.load_data("train")
    model = task.build_model(data)
    source = task.training_batches(data)
    steps = range(settings["parity_steps"])
    found = record(
        model,
        [source.batch(*divmod(k, len(source))) for k in steps],  # of epoch, step
        lambda copy: task.compile(copy, data, len(source)),
        task,
        tell=lambda text: tell(phase=text),
    )
    found.save(folder / keras.backend.backend() / "parity.npz")


def train(folder, started):
    """Trains the task and writes `model.keras`, `arrays.npz` and `result.json`."""
    import keras

    from keras_segen import backend, machine
    from keras_segen.backend import faster
    from keras_segen.compare.checks import LOSS_STEPS, loss_difference
    from keras_segen.compare.clock import Recorder, loader_times
    from keras_segen.networks import build_optimizer
    from keras_segen.report.numbers import plain

    task = read_json(folder / "experiment.json")
    seconds = {"imports": time.perf_counter() - started}
    folder = folder / keras.backend.backend()

    tell(phase="building")
    mark = time.perf_counter()
    train_data, val_data = task.load_data("train"), task.load_data("val")
    model = task.build_model(train_data)
    batches = task.training_batches(train_data, kind=CheckedBatches)
    task.compile(model, train_data, len(batches))
    seconds["build"] = time.perf_counter() - mark

    weights = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
    arrays = {"first_outputs": task.outputs(model, val_data)}
    tell(phase="measuring the loader")
    loader = loader_times(task.training_batches(train_data), NUM_LOADER_BATCHES)

    tell(phase="training", steps=len(batches) * task.epochs)
    recorder = Recorder(batches, tell=tell, names=task.losses)
    mark, others = time.perf_counter(), machine.OtherPrograms()
    history = {}
    for phase in task.phases():
        if phase.first > 0:
            task.compile(model, train_data, len(batches), phase)
        build_optimizer(model)
        batches.epoch = phase.first
        epochs = model.fit(
            backend.make_loader(batches),
            validation_data=backend.make_loader(Batches(val_data, task.batch_size)),
            epochs=phase.end,
            initial_epoch=phase.first,
            shuffle=False,  # the loader has shuffled already
            callbacks=[recorder],
            verbose=0,
        ).history
        for key, values in epochs.items():
            history[key] = history.get(key, []) + values
    seconds["training"] = time.perf_counter() - mark
    busy = others.busy()
    seconds["first_step"] = recorder.seconds[0]

    tell(phase="predicting")
    arrays["last_outputs"] = task.outputs(model, val_data)
    applied, times = task.apply(model, val_data)
    arrays |= applied
    on_device = backend.peak_device_memory()
    figures = task.compared_figures(model, val_data, history)
    with write_atomically(folder / "model.keras") as temporary:
        backend.save_model(model, temporary)
    with write_atomically(folder / "arrays.npz") as temporary:
        np.savez_compressed(temporary, **arrays)

    per_epoch = len(recorder.seconds) // len(next(iter(history.values())))
    for name, losses in recorder.losses.items():  # means of steps: the running ones began anew
        losses = np.reshape(np.array(losses, "float64"), (-1, per_epoch))
        history[name] = [epoch[~np.isnan(epoch)].mean() for epoch in losses]
    seconds["total"] = time.perf_counter() - started
    result = plain(  # a training that diverges has losses that JSON cannot hold
        {
            "settings": {
                **backend.settings(),
                "layout": keras.config.image_data_format(),
                "precision": task.precision,
                **machine.versions(),
            },
            "replacements": faster.status(),
            "parameters": task.count_parameters(model),
            "weights_sha256": weights,
            "batches_crc32": batches.checksums,
            "seconds": {key: round(value, 3) for key, value in seconds.items()},
            "milliseconds": {
                "step": milliseconds(steady(recorder.seconds)),
                "wait": milliseconds(steady(recorder.waits)),
                "loader": milliseconds(loader),
                task.work[0]: milliseconds(steady(times)),
            },
            "memory_mib": {
                "peak_resident": round(machine.peak_memory() / 2**20, 1),
                "peak_device": None if on_device is None else round(on_device / 2**20, 1),
            },
            "others_busy": round(busy, 2),
            "losses": recorder.losses,
            "steps_per_epoch": per_epoch,
            "history": {key: [float(v) for v in values] for key, values in history.items()},
            "metrics": figures,
        }
    )
    tell(phase="measuring what a rounding does")
    # The steps whose batches are known: those of whole epochs, or of the first one's begin.
    steps = LOSS_STEPS if per_epoch == len(batches) else per_epoch
    nudged = nudged_losses(task, train_data, min(steps, LOSS_STEPS, len(recorder.seconds)))
    result["rounding"] = plain(loss_difference(recorder.losses, nudged))
    write_json(folder / "result.json", result)


def nudged_losses(task, train_data, steps):
    """Trains some steps from weights that are each changed by one rounding, up or down.

    Returns:
        Dict as `clock.Recorder.losses`.
    """
    import keras

    from keras_segen.determinism import rng
    from keras_segen.networks import build_optimizer

    model = task.build_model(train_data)
    generator = rng("nudge", task.seed)
    for weight in model.trainable_variables:
        value = keras.ops.convert_to_numpy(weight)
        nudge = generator.choice([-1, 1], value.shape) * np.float32(2**-23)
        weight.assign((value * (1 + nudge)).astype("float32"))
    batches = task.training_batches(train_data)
    task.compile(model, train_data, len(batches))
    build_optimizer(model)
    losses = {name: [] for name in task.losses}
    for step in range(steps):
        model.reset_metrics()
        model.train_on_batch(*batches.batch(*divmod(step, len(batches))))
        for metric in model.metrics:
            if metric.name in losses:
                known = float(keras.ops.convert_to_numpy(metric.count)) > 0
                value = float(keras.ops.convert_to_numpy(metric.result()))
                losses[metric.name].append(value if known else None)
    return losses


def serve(folder, started):
    """Loads the models that the other backends saved and predicts the same images with them."""
    import keras

    from keras_segen.runs.training import load_model

    task = read_json(folder / "experiment.json")
    val_data = task.load_data("val")
    here = keras.backend.backend()
    for path in sorted(folder.glob("*/model.keras")):
        trained_on = path.parent.name
        if trained_on == here:
            continue
        tell(phase=f"running the model that {trained_on} trained")
        model = load_model(path.parent)
        arrays, _ = task.apply(model, val_data)
        arrays["last_outputs"] = task.outputs(model, val_data)
        with write_atomically(folder / here / f"serving-{trained_on}.npz") as temporary:
            np.savez_compressed(temporary, **arrays)


@functools.cache  # a process may be asked for several phases
def prepare(threads):
    """Imports Keras, with so many threads and with what is replaced in it."""
    from keras_segen import backend
    from keras_segen.backend import faster

    backend.limit_threads(threads)
    faster.apply_by_default()


def answer(phase, folder, threads):
    """Runs a phase in a folder; names that Keras counts begin anew, as in a new process."""
    import keras

    prepare(threads)
    keras.utils.clear_session()
    folder = Path(folder)
    settings = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    for module in settings["modules"]:
        importlib.import_module(module)  # registers layers of the user's own
    phase(folder, started)
    return {}


if __name__ == "__main__":
    started = time.perf_counter()
    phases = {"parity": parity, "train": train, "serve": serve}
    processes.serve({name: functools.partial(answer, phase) for name, phase in phases.items()})
