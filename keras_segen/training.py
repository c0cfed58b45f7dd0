"""A run folder: an experiment through `fit`, with checkpoints, previews, curves and resume.

    run.json                 every setting, versions, seed; a line for each start
    history.csv              one row per epoch
    model.keras              the best epoch's model (validation mean IoU); of a fold, the last's
    checkpoint-0005.keras    the last finished epoch, with the optimizer's state
    previews/epoch-0005.png  the same validation images after each epoch
    curves.png               loss and metrics over the epochs

Every file is written under a temporary name and moved into place, the checkpoint last: whatever
the moment of a kill, `resume` finds the end of a finished epoch and goes on from there.
"""

import csv
import datetime
import json
import shlex
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_segen import backend, machine, metrics, plot
from keras_segen import layers as _layers  # noqa: F401  (saved models hold layers of ours)
from keras_segen.data.loader import Batches
from keras_segen.determinism import seed_random_layers
from keras_segen.experiment import Experiment
from keras_segen.files import write_atomically, write_json

MONITOR = "val_mean_iou"
NUM_PREVIEWS = 4


def train(experiment, folder, tensorboard=False, callbacks=(), verbose="auto"):
    """Trains an experiment into a new run folder.

    Args:
        experiment: a `keras_segen.experiment.Experiment`.
        folder: path of the run folder; it must not hold a run yet.
        tensorboard: bool, whether scalars are also written for TensorBoard, to
            `folder/tensorboard` (needs the package tensorboard).
        callbacks: further `keras.callbacks.Callback`s.
        verbose: as in `keras.Model.fit`.

    Returns:
        The history: dict of column -> list with one float per epoch.

    Raises:
        FileExistsError: the folder holds a run already.
        ValueError: what the data set or the experiment finds wrong.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        raise FileExistsError(
            f"{folder} holds a run already: go on with --resume {folder}, or name another folder."
        )
    train_data, val_data = experiment.load_data("train"), experiment.load_data("val")
    model = experiment.build_model(train_data, tell=print if verbose else lambda line: None)
    batches = experiment.training_batches(train_data)
    experiment.compile(model, train_data, steps_per_epoch=len(batches))
    write_json(
        folder / "run.json",
        {
            "experiment": experiment.to_dict(),
            "data": _describe_data(train_data, val_data),
            "parameters": model.count_params(),
            "machine": machine.describe(),
            "starts": [_start(0)],
        },
    )
    return _fit(experiment, folder, model, train_data, val_data, 0, tensorboard, callbacks, verbose)


def resume(folder, tensorboard=False, callbacks=(), verbose="auto"):
    """Goes on with an interrupted run from its last finished epoch, on this backend or another.

    The result is that of a run that was never interrupted, to rounding. Arguments and result
    are those of `train`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the data set is no longer the one that the run began with.
    """
    folder = Path(folder)
    run = load_run(folder)
    experiment = Experiment.from_dict(run["experiment"])
    train_data, val_data = experiment.load_data("train"), experiment.load_data("val")
    found, expected = _describe_data(train_data, val_data), run["data"]
    for key in expected:
        if found[key] != expected[key]:
            raise ValueError(
                f"The data set changed since {folder} began: {key} was {expected[key]}, "
                f"is {found[key]}. Restore it, or train anew."
            )
    checkpoints = sorted(folder.glob("checkpoint-*.keras"))
    first_epoch = int(checkpoints[-1].stem.split("-")[1]) if checkpoints else 0
    rows = _read_rows(folder)[:first_epoch]
    if first_epoch >= experiment.epochs or _stops_early(experiment, rows):
        return read_history(folder)
    if checkpoints:
        model = _load_checkpoint(checkpoints[-1], experiment, train_data, first_epoch)
    else:
        model = experiment.build_model(train_data)
        batches = experiment.training_batches(train_data)
        experiment.compile(model, train_data, steps_per_epoch=len(batches))
    run["starts"].append(_start(first_epoch))
    write_json(folder / "run.json", run)
    return _fit(
        experiment,
        folder,
        model,
        train_data,
        val_data,
        first_epoch,
        tensorboard,
        callbacks,
        verbose,
    )


def _load_checkpoint(path, experiment, train_data, first_epoch):
    """Loads model and optimizer as they were when epoch `first_epoch` was about to begin.

    The experiment compiles the model again, since Keras does not save which weights do not decay.
    """
    model = keras.models.load_model(path, compile=False, safe_mode=True)
    phase = next(phase for phase in experiment.phases() if first_epoch <= phase.end)
    steps = len(experiment.training_batches(train_data))
    experiment.compile(model, train_data, steps, phase)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    return model


def load_run(folder):
    """Reads the `run.json` of a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(folder) / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no run.json.")
    return json.loads(path.read_text(encoding="utf-8"))


def load_model(folder):
    """Loads the best model of a run folder, without its optimizer.

    Raises:
        FileNotFoundError: no epoch of the run is finished yet.
    """
    path = Path(folder) / "model.keras"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no model.keras yet: no epoch is finished.")
    return keras.models.load_model(path, compile=False, safe_mode=True)


def read_history(folder):
    """Reads `history.csv`: dict of column -> list with one float per epoch."""
    with open(Path(folder) / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else ())}


def _describe_data(train_data, val_data):
    return {
        "name": train_data.name,
        "train": len(train_data),
        "val": len(val_data),
        "class_names": list(train_data.class_names),
        "palette": np.asarray(train_data.palette).tolist(),
        "ignore_class": train_data.ignore_class,
        "label_ids": [int(i) for i in train_data.label_ids],
        "image_shape": list(train_data.image_shape),
    }


def _start(epoch):
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "epoch": epoch,
        "backend": keras.backend.backend(),
        "command": shlex.join(["keras-segen", *sys.argv[1:]]),
        "versions": machine.versions(),
        "settings": backend.settings(),
    }


def _fit(
    experiment, folder, model, train_data, val_data, first_epoch, tensorboard, callbacks, verbose
):
    """Trains a compiled model from `first_epoch` on, phase by phase."""
    keeper = _RunFolder(folder, experiment, val_data, first_epoch)
    callbacks = [keeper, *callbacks]
    if tensorboard:
        callbacks.insert(0, _TensorBoard(folder / "tensorboard"))
    for phase in experiment.phases():
        if phase.end <= first_epoch:
            continue
        batches = experiment.training_batches(train_data, max(first_epoch, phase.first))
        if 0 < phase.first >= first_epoch:  # not one that goes on
            experiment.compile(model, train_data, len(batches), phase)
        val_batches = Batches(val_data, experiment.batch_size)
        try:
            model.fit(
                backend.make_loader(batches),
                validation_data=backend.make_loader(val_batches),
                epochs=phase.end,
                initial_epoch=max(first_epoch, phase.first),
                shuffle=False,  # the loader has shuffled already
                callbacks=callbacks,
                verbose=verbose,
            )
        except Exception:
            error = batches.error or val_batches.error
            if error is not None:  # what is wrong with the data, without the framework around it
                raise error from None
            raise
    return read_history(folder)


class _RunFolder(keras.callbacks.Callback):
    """Writes what a run folder holds after each epoch, the checkpoint last."""

    def __init__(self, folder, experiment, val_data, first_epoch):
        super().__init__()
        self.folder = folder
        self.seed = experiment.seed
        self.experiment = experiment
        self.keeps_last = experiment.folds > 0  # held-out images choose nothing
        self.val_data = val_data
        self.rows = _read_rows(folder)[:first_epoch]
        self.best = max((float(row[MONITOR]) for row in self.rows), default=-1.0)
        chosen = np.linspace(0, len(val_data) - 1, min(NUM_PREVIEWS, len(val_data))).astype(int)
        items = [val_data[int(index)] for index in chosen]
        self.images = np.stack([image for image, _ in items])
        self.truth = np.stack([mask for _, mask in items])

    def on_epoch_begin(self, epoch, logs=None):
        seed_random_layers(self.model, self.seed, epoch)
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rows.append(
            {
                "epoch": epoch + 1,
                **{key: float(value) for key, value in logs.items()},
                "learning_rate": float(rate),
                "seconds": round(time.perf_counter() - self.started, 2),
                "peak_memory_mib": round(machine.peak_memory() / 2**20, 1),
            }
        )
        if self.keeps_last or logs[MONITOR] > self.best:
            self.best = logs[MONITOR]
            with write_atomically(self.folder / "model.keras") as temporary:
                backend.save_model(self.model, temporary)
        with (
            write_atomically(self.folder / "history.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        self._draw(epoch)
        with write_atomically(self.folder / f"checkpoint-{epoch + 1:04d}.keras") as temporary:
            backend.save_model(self.model, temporary)
        for old in sorted(self.folder.glob("checkpoint-*.keras"))[:-1]:
            old.unlink()
        if _stops_early(self.experiment, self.rows):
            self.model.stop_training = True

    def _draw(self, epoch):
        predictions = metrics.class_ids(backend.infer(self.model, self.images))
        figure = plot.masks(
            self.images,
            self.truth,
            predictions,
            palette=self.val_data.palette,
            class_names=self.val_data.class_names,
            ignore_class=self.val_data.ignore_class,
        )
        plot.save(figure, self.folder / "previews" / f"epoch-{epoch + 1:04d}.png")
        history = {
            key: [float(row[key]) for row in self.rows]
            for key in self.rows[0]
            if key not in ("epoch", "seconds", "peak_memory_mib")
        }
        plot.save(plot.curves(history), self.folder / "curves.png")


def _stops_early(experiment, rows):
    """Whether a run with these rows of history has waited long enough for a better epoch."""
    if not experiment.early_stopping or not rows:
        return False
    best = 1 + int(np.argmax([float(row[MONITOR]) for row in rows]))
    # Epochs with a frozen encoder are another phase: the next one has yet to show what it can.
    waited = len(rows) - max(best, experiment.phases()[-1].first)
    return waited >= experiment.early_stopping


def _read_rows(folder):
    path = folder / "history.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class _TensorBoard(keras.callbacks.Callback):
    """Scalars for TensorBoard, through its own writer: Keras' callback needs TensorFlow."""

    def __init__(self, folder):
        super().__init__()
        try:
            from tensorboard.summary import Writer
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "TensorBoard logs need a package: pip install 'keras-segen[tensorboard]'."
            ) from None
        self.writer = Writer(str(folder))

    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            self.writer.add_scalar(name, float(value), epoch + 1)
        self.writer.flush()
