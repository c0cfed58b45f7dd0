"""A run in Python: `load(folder)` opens it, `predict` and `evaluate` use it."""

import functools
from pathlib import Path

import numpy as np

from keras_segen.run_folder import read_history
from keras_segen.runs.evaluate import evaluate
from keras_segen.runs.training import load_model, open_run


class Run:
    """An open run folder: its model, its history, and predictions.

    Args:
        folder: path of the run folder.

    Attributes:
        folder: `pathlib.Path`.
        task: the `keras_segen.tasks.Task` that was trained.
        history: dict of column -> list with one float per epoch.
        class_names: tuple of str; empty if there are no classes.
        palette: uint8 `(num_classes, 3)`, RGB, or None if classes have no colors.

    Raises:
        FileNotFoundError: the folder holds no run.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.task, run = open_run(folder)
        self.about = run["data"]
        self.history = read_history(folder)
        self.class_names = tuple(self.about.get("class_names", ()))
        palette = self.about.get("palette")
        self.palette = None if palette is None else np.array(palette, "uint8")

    @functools.cached_property
    def model(self):
        """The `keras.Model` that the run keeps, without its optimizer."""
        return load_model(self.folder)

    def predict(self, image):
        """Predicts one image, as the task does.

        Args:
            image: path of a file, or an array `(height, width, channels)`, uint8 or float in
                [0, 1].

        Returns:
            For a segmentation model the class of each pixel, `(height, width)`, uint8: draw it
            with `keras_segen.plot.masks`, or use `class_names` and `palette`. For one that finds
            objects a list of `keras_segen.data.Instance`: draw it with
            `keras_segen.plot.instances`.

        Raises:
            ValueError: the model does not predict images, or not this one.
        """
        return self.task.predict_one(self.model, self.about, image)

    def evaluate(self, split="test"):
        """Evaluates the model on a split, see `keras_segen.runs.evaluate`."""
        return evaluate(self.folder, split)

    def __repr__(self):
        epochs = len(self.history.get("epoch", ()))
        return f"<run {self.folder}: {self.task.model} on {self.task.data}, {epochs} epochs>"


def load(folder):
    """Opens a run folder: a `Run`.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    return Run(folder)
