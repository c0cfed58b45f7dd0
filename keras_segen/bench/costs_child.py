"""The process that measures one mode of one backend, cell by cell, on request.

    python -m keras_segen.bench.costs_child

`costs.py` starts it and asks: `start` once; then for each cell, which is one image size and batch
size, `open`, `run_round` as often as it likes, and `close`. Keras is imported by the first request,
since the time that it takes is measured.
"""

import dataclasses
import functools
import gc
import time

import numpy as np
import psutil

from keras_segen import machine
from keras_segen.compare.rounds import Held, Portion, milliseconds, now, per_step, prepare
from keras_segen.processes import serve
from keras_segen.tasks.registry import read


class Cell:
    """One model at one image size and batch size, compiled for one mode and warmed up.

    Args:
        task: a `keras_segen.tasks.task.Task`.
        mode: dict, values of `run_eagerly` and `jit_compile` as Keras' `compile` takes them.
        steps: int, steps in a round.

    Attributes:
        seconds: dict, the time to prepare: `build` (data, network, `compile`), `first_predict` and
            `first_step` of `fit`, which include tracing and compilation.
        auto: bool, the value of `jit_compile="auto"`, Keras' own default, for this model.
        works: dict from `"train"`, `"predict"` and `"load"` to a callable that runs one round and
            returns time and CPU time per step.
    """

    def __init__(self, task, mode, steps):
        from keras_segen import backend

        began = time.perf_counter()
        self.steps = steps
        dataset = task.load_data("train")
        self.model = task.build_model(dataset)
        task.compile(self.model, dataset, steps)
        self.auto = bool(self.model.jit_compile)
        set_mode(self.model, mode)
        held, portion = (
            functools.partial(kind, steps=steps, drop_last=True, **options)
            for kind, options in ((Held, {"count": 1}), (Portion, {}))
        )
        self.batches = task.training_batches(dataset, kind=held)  # one, again and again
        self.portion = task.training_batches(dataset, kind=portion)
        self.loaders = [backend.make_loader(source) for source in (self.batches, self.portion)]
        self.network, self.inputs = task.network_to_predict(self.model, self.batches.stored[0])
        if self.network is not self.model:
            set_mode(self.network, mode)
        self.works = {"train": self.train, "predict": self.predict, "load": self.load}
        self.rounds = {work: [] for work in self.works}
        self.seconds = {"build": time.perf_counter() - began}

        for name, work in (("first_predict", self.predict), ("first_step", self.train)):
            began = time.perf_counter()
            work()
            self.seconds[name] = self.first - began
        self.load()

    def train(self):
        self.model.fit(self.loaders[0], shuffle=False, verbose=0)
        self.first = self.batches.moments[1][0]
        return self.batches.per_step()

    def predict(self):
        moments = []
        for _ in range(self.steps):
            moments.append(now())
            self.network.predict_on_batch(self.inputs)  # NumPy to NumPy: it waits for the device
        self.first = moments[1][0]
        return per_step(moments)

    def load(self):
        self.portion.epoch = 0
        count_children = self.portion.workers > 0
        moments = [now(count_children)]
        moments += [now(count_children) for _ in self.loaders[1]]
        return per_step(moments)

    def run_round(self):
        """Runs one round of each work."""
        for work, run in self.works.items():
            self.rounds[work].append(run())

    def figures(self):
        """Returns what was measured: dict of plain values."""
        from keras_segen import backend

        on_device = backend.peak_device_memory()
        times = {work: np.transpose(rounds) for work, rounds in self.rounds.items()}
        return {
            **{
                work: {"ms": milliseconds(wall), "cpu_ms": milliseconds(cpu)}
                for work, (wall, cpu) in times.items()
            },
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "memory_mib": {
                "resident": round(machine.peak_memory() / 2**20, 1),
                "device": None if on_device is None else round(on_device / 2**20, 1),
            },
        }


def set_mode(model, mode):
    """Sets what Keras' `compile` calls `run_eagerly` and `jit_compile`.

    Raises:
        RuntimeError: when the model cannot be compiled so; Keras would silently not do it.
    """
    model.run_eagerly = mode["run_eagerly"]
    model.jit_compile = mode["jit_compile"]
    if model.jit_compile != mode["jit_compile"]:
        raise RuntimeError(f"{model.name} has a layer that does not support jit_compile=True.")


class Handlers:
    """The answers to `costs.py`."""

    def start(self, task, image_sizes, mode, steps, threads):
        """Imports everything needed and builds the model once for each image size."""
        import keras

        from keras_segen import backend, generation, segmentation  # noqa: F401  (what is timed)
        from keras_segen.backend import faster

        imports = time.time() - psutil.Process().create_time()
        prepare(threads)
        self.task, self.mode, self.steps = read(task), mode, steps
        for size in image_sizes:
            here = dataclasses.replace(self.task, image_size=tuple(size))
            model = here.build_model(here.load_data("train"))
            parameters = here.count_parameters(model)
        del model
        self.forget()
        settings = backend.settings()
        for name in ("mode", "compiler"):  # those of the process; ours are the model's
            settings.pop(name)
        return {
            "imports_seconds": round(imports, 3),
            "parameters": int(parameters),
            "settings": {
                **settings,
                "layout": keras.config.image_data_format(),
                "freed_memory": machine.freed_memory,
            },
            "replacements": faster.status(),
        }

    def open(self, image_size, batch_size):
        here = dataclasses.replace(self.task, image_size=tuple(image_size), batch_size=batch_size)
        self.cell = Cell(here, self.mode, self.steps)
        return {"auto": self.cell.auto, "first_step": self.cell.seconds["first_step"]}

    def run_round(self):
        self.cell.run_round()
        return {}

    def close(self):
        found = self.cell.figures() if self.cell else {}  # nothing was opened: that failed
        self.forget()
        return found

    def forget(self):
        """Frees the model and everything compiled for it."""
        import keras

        self.cell = None
        gc.collect()
        keras.utils.clear_session()


if __name__ == "__main__":
    handlers = Handlers()
    serve({name: getattr(handlers, name) for name in ("start", "open", "run_round", "close")})
