"""A run folder: trained, resumed, evaluated, put to use."""

from keras_segen import backend  # noqa: F401  (a missing framework is one line, here)

# Some functions hide the modules of their names: `runs.evaluate(...)` evaluates.
from keras_segen.runs.crossval import cross_validate
from keras_segen.runs.evaluate import evaluate
from keras_segen.runs.generate import generate
from keras_segen.runs.loaded import Run, load
from keras_segen.runs.predict import predict
from keras_segen.runs.training import load_model, load_run, read_history, resume, train

__all__ = [
    "Run",
    "cross_validate",
    "evaluate",
    "generate",
    "load",
    "load_model",
    "load_run",
    "predict",
    "read_history",
    "resume",
    "train",
]
