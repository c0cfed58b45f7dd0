"""One experiment on each backend, each in a process of its own, and what differs."""

from keras_segen.compare.run import run

__all__ = ["run"]
