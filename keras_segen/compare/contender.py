"""The process that takes a round of steps whenever it is its backend's turn.

    python -m keras_segen.compare.contender

`turns.py` starts it and asks: `start` once; then for each batch size `open`, `take_round` as often
as it likes, and `close`. Keras is imported by the first request.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib
import time

import psutil

from keras_segen import machine
from keras_segen.compare.rounds import Held, prepare
from keras_segen.processes import serve
from keras_segen.tasks.registry import read

STEPS = 8  # in a round; the first and the last are not timed


class Side:
    """A model for training and prediction, with Keras made faster or as it ships."""

    def __init__(self, task, dataset, stock):
        from keras_segen import backend

        self.stock = stock
        with self.way():
            self.model = task.build_model(dataset)
            task.compile(self.model, dataset, STEPS)
            held = functools.partial(Held, count=2, steps=STEPS, drop_last=True)
            self.batches = task.training_batches(dataset, kind=held)
            self.loader = backend.make_loader(self.batches)
            self.network, self.inputs = task.network_to_predict(self.model, self.batches.stored[0])
        self.take_round()

    def way(self):
        """Context with the Keras of this side, for building, tracing and running alike."""
        from keras_segen.backend import faster

        return faster.stock() if self.stock else contextlib.nullcontext()

    def take_round(self):
        """Returns the seconds of a training step and of a predicted batch."""
        from keras_segen import backend

        with self.way():
            self.model.fit(self.loader, shuffle=False, verbose=0)
            began = time.perf_counter()
            for _ in range(STEPS):
                backend.infer(self.network, self.inputs)
            predict = (time.perf_counter() - began) / STEPS
        return {"train": self.batches.per_step()[0], "predict": predict}


class Handlers:
    """The answers to `turns.py`."""

    def start(self, task, modules, threads):
        from keras_segen.backend import faster

        for module in modules:
            importlib.import_module(module)
        prepare(threads)
        self.task, self.sides = read(task), {}
        model = self.task.build_model(dataset := self.task.load_data("val"))
        self.task.outputs(model, dataset)
        return {
            "first_prediction": round(time.time() - psutil.Process().create_time(), 3),
            "replaced": bool(faster.active()),
        }

    def open(self, batch_size, stock):
        task = dataclasses.replace(self.task, batch_size=batch_size)
        dataset = task.load_data("train")
        self.sides["ours"] = Side(task, dataset, stock=False)
        if stock:
            self.sides["stock"] = Side(task, dataset, stock=True)
        return {}

    def take_round(self, side):
        return self.sides[side].take_round()

    def close(self):
        import keras

        self.sides = {}
        gc.collect()
        keras.utils.clear_session()
        return {"peak_memory_mib": round(machine.peak_memory() / 2**20, 1)}


if __name__ == "__main__":
    handlers = Handlers()
    serve({name: getattr(handlers, name) for name in ("start", "open", "take_round", "close")})
