"""One task on each backend, each in a process of its own, and what differs."""

# The function hides the module of its name: `compare.run(...)` compares.
from keras_segen.compare.api import Report, load, run

__all__ = ["Report", "load", "run"]
