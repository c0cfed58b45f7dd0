"""A run folder: a task through `fit`, with checkpoints, previews, curves and resume.

    run.json                 every setting, versions, seed; a line for each start
    history.csv              one row per epoch
    model.keras              the best epoch's model (validation mean IoU, mask AP, ELBO or kernel
                             distance);
                             of a fold, and where none is best, the last's: run.json says which
    checkpoint-0005.keras    the last finished epoch, with the optimizer's state
    checkpoint-0005.json     what belongs to it: digests of settings, history and the file itself
    previews/epoch-0005.png  the same validation images, or images of the same codes, each epoch
    curves.png               loss and metrics over the epochs, drawn anew every ten seconds
    animation.gif            for pictures, at the end: how they formed

Every file is written under a temporary name and moved into place, the checkpoint last: whenever a
run is killed, `resume` continues after the last finished epoch.
"""

import dataclasses
import datetime
import math
import shlex
import sys
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from keras_segen import backend, machine, plot
from keras_segen import generation as _generation  # noqa: F401  (saved models hold
from keras_segen import layers as _layers  # noqa: F401  (          classes of ours)
from keras_segen.backend import faster
from keras_segen.data.loader import Batches
from keras_segen.determinism import seed_random_layers
from keras_segen.files import remove_leftovers, write_atomically, write_csv, write_json
from keras_segen.networks import build_optimizer, load_keras_file
from keras_segen.run_folder import (
    check_new,
    check_seal,
    digest,
    find_checkpoint,
    find_model,
    load_run,
    read_history,
    read_rows,
    seal,
)
from keras_segen.runs.numerics import NumericsWatch
from keras_segen.tasks.registry import read

SECONDS_TO_DRAW = 10.0  # between two drawings of the curves, apart from the last


def train(
    task, folder, tensorboard=False, callbacks=(), verbose="auto", check_numerics=False, tell=None
):
    """Trains a task into a new run folder.

    Args:
        task: a `keras_segen.tasks.Task`.
        folder: path of the run folder; it must not hold a run yet.
        tensorboard: bool, whether scalars are also written for TensorBoard, to
            `folder/tensorboard` (needs the package tensorboard).
        callbacks: further `keras.callbacks.Callback`s.
        verbose: as in `keras.Model.fit`.
        check_numerics: bool, whether the first NaN or infinity ends the training with an error
            that names the step and the layer; it takes several times as long.
        tell: called with lines about model and data; None prints them unless `verbose` is 0.

    Returns:
        The history: dict of column -> list with one float per epoch.

    Raises:
        FileExistsError: the folder holds a run already.
        ValueError: data set and task do not fit; or a loss became NaN or infinite: the epochs
            before are kept.
    """
    folder = Path(folder)
    check_new(folder)
    remove_leftovers(folder, folder / "previews")
    tell = tell or (print if verbose else lambda line: None)
    train_data, val_data = task.load_data("train"), task.load_data("val")
    model = task.build_model(train_data, tell=tell)
    _introduce(task, model, train_data, val_data, tell)
    task.compile(model, train_data, len(task.training_batches(train_data)))
    write_json(
        folder / "run.json",
        {
            "experiment": task.to_dict(),
            "data": task.describe_data(train_data, val_data),
            "parameters": task.count_parameters(model),
            "kept": task.kept,
            "machine": machine.hardware(),
            "starts": [_start(0)],
        },
    )
    callbacks = _all_callbacks(folder, callbacks, tensorboard)
    splits = train_data, val_data
    return _fit(task, folder, model, splits, 0, callbacks, verbose, check_numerics)


def resume(
    folder,
    tensorboard=False,
    callbacks=(),
    verbose="auto",
    epochs=None,
    check_numerics=False,
    tell=None,
):
    """Resumes an interrupted run after its last finished epoch, on this backend or another.

    The result is that of a run that was never interrupted, to rounding.

    Args:
        folder: path of the run folder.
        tensorboard, callbacks, verbose, check_numerics, tell: as in `train`.
        epochs: int, a new total number of epochs, also for a finished run: it is extended. A
            cosine schedule then ends after the new last epoch, so that the learning rate jumps up
            where the run continues; early stopping starts counting anew there.

    Returns:
        As `train`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the data set has changed since the run began; settings, history and checkpoint
            do not belong together; or `epochs` is not above the number of finished ones.
    """
    folder = Path(folder)
    run = load_run(folder)
    remove_leftovers(folder, folder / "previews")
    task = read(run["experiment"])
    train_data, val_data = task.load_data("train"), task.load_data("val")
    found, expected = task.describe_data(train_data, val_data), run["data"]
    for key in expected:
        if found[key] != expected[key]:
            raise ValueError(
                f"The data set changed since {folder} began: {key} was {expected[key]}, "
                f"is {found[key]}. Restore it, or train anew."
            )
    checkpoint, first_epoch = find_checkpoint(folder)
    rows = read_rows(folder)[:first_epoch]
    if checkpoint is not None:
        check_seal(checkpoint, run["experiment"], rows)
    tell = tell or (print if verbose else lambda line: None)
    if epochs is not None:
        task = _extend(folder, run, task, first_epoch, epochs, tell)
    if first_epoch >= task.epochs or stops_early(task, rows, _extended(run)):
        task.finish(folder)
        return read_history(folder)
    if checkpoint is not None:
        model = load_checkpoint(checkpoint, task, train_data, first_epoch)
    else:
        model = task.build_model(train_data)
        task.compile(model, train_data, len(task.training_batches(train_data)))
    _introduce(task, model, train_data, val_data, tell)
    run["starts"].append(_start(first_epoch))
    write_json(folder / "run.json", run)
    callbacks = _all_callbacks(folder, callbacks, tensorboard)
    splits = train_data, val_data
    return _fit(task, folder, model, splits, first_epoch, callbacks, verbose, check_numerics)


def _introduce(task, model, train_data, val_data, tell):
    """Says in two lines what is about to be trained, on what."""
    size = "x".join(map(str, train_data.image_shape))
    tell(f"Model: {Path(task.model).name}, {task.count_parameters(model):,} parameters")
    tell(f"Images: {len(train_data):,} to train, {len(val_data):,} to validate, {size}")


def _all_callbacks(folder, callbacks, tensorboard):
    return [_TensorBoard(folder / "tensorboard"), *callbacks] if tensorboard else list(callbacks)


def _extend(folder, run, task, finished, epochs, tell):
    """Records a new number of epochs in a run; returns the task for it."""
    if epochs <= finished:
        raise ValueError(
            f"epochs is {epochs}, and {folder} has finished {finished} already: name more, all in "
            "all."
        )
    before, task = task.epochs, dataclasses.replace(task, epochs=epochs)
    run["experiment"] = task.to_dict()
    run.setdefault("extended", []).append({"finished": finished, "from": before, "to": epochs})
    ends = f", which ends after epoch {epochs} now" if task.schedule != "constant" else ""
    tell(f"{epochs} epochs instead of {before}, schedule {task.schedule}{ends}.")
    return task


def _extended(run):
    """The epochs that a run had finished when it was extended last; 0 if it never was."""
    return run["extended"][-1]["finished"] if run.get("extended") else 0


def load_checkpoint(path, task, train_data, first_epoch):
    """Loads model and optimizer as they were when epoch `first_epoch` was about to begin.

    The task compiles the model again, since Keras does not save which weights do not decay.
    """
    model = load_keras_file(path)
    phase = next(phase for phase in task.phases() if first_epoch <= phase.end)
    task.compile(model, train_data, len(task.training_batches(train_data)), phase)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    return model


def open_run(folder):
    """Reads the task of a run folder: `(task, contents of its run.json)`.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    run = load_run(folder)
    return read(run["experiment"]), run


def load_model(folder):
    """Loads the model of a run folder, without its optimizer.

    Raises:
        FileNotFoundError: no epoch of the run is finished yet.
        ValueError: the file cannot be loaded.
    """
    return load_keras_file(find_model(folder))


def model_digest(folder):
    """The SHA-256 of a run's `model.keras`, hexadecimal: which model a figure belongs to."""
    return digest(Path(folder) / "model.keras")


def _start(epoch):
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "epoch": epoch,
        "backend": keras.backend.backend(),
        "command": shlex.join(["keras-segen", *sys.argv[1:]]),
        "versions": machine.versions(),
        "settings": backend.settings(),
        "replacements": faster.status(),
    }


def _fit(task, folder, model, splits, first_epoch, callbacks, verbose, check_numerics):
    """Trains a compiled model from `first_epoch` on, phase by phase."""
    train_data, val_data = splits
    keeper = _RunFolder(folder, task, val_data, first_epoch)
    callbacks = [keeper, *callbacks]  # first: it adds what it measures to what the others see
    for phase in task.phases():
        if phase.end <= first_epoch:
            continue
        batches = task.training_batches(train_data, max(first_epoch, phase.first))
        if 0 < phase.first >= first_epoch:  # not one that is resumed
            task.compile(model, train_data, len(batches), phase)
        build_optimizer(model)
        val_batches = Batches(val_data, task.batch_size)
        model.fit(
            backend.make_loader(batches),
            validation_data=backend.make_loader(val_batches),
            epochs=phase.end,
            initial_epoch=max(first_epoch, phase.first),
            shuffle=False,  # the loader has shuffled already
            callbacks=callbacks + ([NumericsWatch(batches)] if check_numerics else []),
            verbose=verbose,
        )
    task.finish(folder)
    return read_history(folder)


class _RunFolder(keras.callbacks.Callback):
    """Writes what a run folder holds after each epoch, the checkpoint last."""

    def __init__(self, folder, task, val_data, first_epoch):
        super().__init__()
        self.folder = folder
        self.seed = task.seed
        self.task = task
        self.val_data = val_data
        run = load_run(folder)
        self.extended = _extended(run)
        self.described = run["data"]
        self.rows = read_rows(folder)[:first_epoch]
        self.best = max(map(self._score, self.rows), default=-math.inf)
        self.drawn = -math.inf  # when the curves were drawn last

    def _score(self, row):
        """The score of an epoch, from its row; without a criterion, later is better."""
        name, sign = self.task.monitor or ("epoch", 1)
        return sign * float(row[name])

    def on_epoch_begin(self, epoch, logs=None):
        seed_random_layers(self.model, self.seed, epoch)
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = round(time.perf_counter() - self.started, 2)
        self._check_losses(epoch, logs)
        logs.update(self.task.measure(self.model, self.val_data))
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rows.append(
            {
                "epoch": epoch + 1,
                **{key: float(value) for key, value in logs.items()},
                "learning_rate": float(rate),
                "seconds": seconds,
                "peak_memory_mib": round(machine.peak_memory() / 2**20, 1),
            }
        )
        if self._score(self.rows[-1]) > self.best:
            self.best = self._score(self.rows[-1])
            with write_atomically(self.folder / "model.keras") as temporary:
                backend.save_model(self.model, temporary)
        columns = list(self.rows[0])
        rows = [[row[column] for column in columns] for row in self.rows]
        write_csv(self.folder / "history.csv", [columns, *rows])
        self._draw(epoch)
        checkpoint = self.folder / f"checkpoint-{epoch + 1:04d}.keras"
        with write_atomically(checkpoint) as temporary:
            backend.save_model(self.model, temporary)
            seal(checkpoint, temporary, self.task.to_dict(), self.rows, self.described)
        for old in sorted(self.folder.glob("checkpoint-*.keras"))[:-1]:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
        if stops_early(self.task, self.rows, self.extended):
            self.model.stop_training = True

    def _check_losses(self, epoch, logs):
        """Ends a training that diverged, before anything is written over."""
        for name in self.task.losses:
            if not math.isfinite(logs[name]):
                raise ValueError(
                    f"{name} is {logs[name]} in epoch {epoch + 1}: the training diverged, and "
                    f"this epoch is not kept; {self.folder} holds those before it, if any. Train "
                    "anew with a smaller --learning-rate, or with --precision float32 if it is "
                    f"another. keras-segen train --resume {self.folder} --check-numerics names "
                    "the layer and the step."
                )

    def _draw(self, epoch):
        for name, picture in self.task.draw(self.model, self.val_data).items():
            _save_picture(picture, self.folder / "previews" / f"{name}-{epoch + 1:04d}.png")
        last = epoch + 1 == self.task.epochs or stops_early(self.task, self.rows, self.extended)
        if not last and time.monotonic() - self.drawn < SECONDS_TO_DRAW:
            return
        history = {
            key: [float(row[key]) for row in self.rows]
            for key in self.rows[0]
            if key not in ("epoch", "seconds", "peak_memory_mib")
        }
        plot.save(plot.curves(history), self.folder / "curves.png")
        self.drawn = time.monotonic()


def _save_picture(picture, path):
    """Writes a figure or an image as PNG."""
    if not isinstance(picture, np.ndarray):
        plot.save(picture, path)
        return
    with write_atomically(path) as temporary:
        Image.fromarray(picture).save(temporary)


def stops_early(task, rows, extended=0):
    """Whether early stopping ends a run.

    Args:
        task: a `keras_segen.tasks.Task`.
        rows: the rows of its history.
        extended: int, epochs that were finished when the run was extended last.
    """
    if not task.early_stopping or not rows:
        return False
    name, sign = task.monitor
    best = 1 + int(np.argmax([sign * float(row[name]) for row in rows]))
    # Epochs with a frozen encoder do not count: the next phase has only begun.
    waited = len(rows) - max(best, task.phases()[-1].first, extended)
    return waited >= task.early_stopping


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
