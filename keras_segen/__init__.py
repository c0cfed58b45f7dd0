"""keras_segen: image segmentation and generation, each model written once in Keras 3.

The same code runs on TensorFlow and on PyTorch: `KERAS_BACKEND` chooses. Importing this package
imports neither Keras nor a framework; each name below is loaded when it is first used.
"""

import importlib

from keras_segen import frameworks, registration

__version__ = "0.2.0"

__all__ = [
    "compare",
    "data",
    "determinism",
    "faster",
    "generation",
    "initialize",
    "load",
    "losses",
    "metrics",
    "plot",
    "runs",
    "segmentation",
    "tasks",
]

# Those that import Keras: if its framework is missing, they say so in one line.
_ON_KERAS = (
    "faster",
    "generation",
    "initialize",
    "load",
    "losses",
    "metrics",
    "runs",
    "segmentation",
)
# Names that do not stand for a room of their own: where they are from.
_ELSEWHERE = {"faster": "backend", "initialize": "determinism", "load": "runs"}

frameworks.choose()
registration.register_with_keras()


def __getattr__(name):
    if name in _ON_KERAS:
        frameworks.require()
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"keras_segen.{_ELSEWHERE[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"keras_segen.{name}")
    raise AttributeError(f"module 'keras_segen' has no attribute {name!r}")


def __dir__():
    return [*__all__, "__version__"]
