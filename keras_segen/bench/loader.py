"""The cost of loading: the loader against the same batches in memory."""

import time

import numpy as np

from keras_segen import backend
from keras_segen.compare.rounds import Held, by_turns


def loader_ratio(task, epochs=3, tell=lambda text: None):
    """Measures the cost of loading: epochs of `fit` from the loader, and from memory.

    The same model trains on the same batches, once prepared by the loader while it trains and
    once held in memory. The epochs come in pairs, the loader first in every second one, and the
    result is the median over the pairs: a machine that slows down for a while affects both.

    Args:
        task: a `keras_segen.tasks.SegmentationTask`.
        epochs: int, measured epochs of each kind, after one to warm up.
        tell: called with a line of text after each epoch.

    Returns:
        Dict with `loader_seconds` and `memory_seconds` (lists of float, one per epoch), `ratios`
        (list of float, one per pair) and `ratio`, their median.
    """
    dataset = task.load_data("train")
    model = task.build_model(dataset)
    batches = task.training_batches(dataset)
    task.compile(model, dataset, len(batches))
    sources = {"memory": task.training_batches(dataset, kind=Held), "loader": batches}
    loaders = {kind: backend.make_loader(source) for kind, source in sources.items()}
    seconds = {kind: [] for kind in sources}
    model.fit(loaders["memory"], shuffle=False, verbose=0)
    tell("warmed up for one epoch")
    for pair in by_turns(sources, epochs):
        for kind in pair:
            sources[kind].epoch = 0
            backend.synchronize()
            start = time.perf_counter()
            model.fit(loaders[kind], shuffle=False, verbose=0)
            backend.synchronize()
            seconds[kind].append(time.perf_counter() - start)
            tell(f"{kind}: {seconds[kind][-1]:.1f} s")
    ratios = [a / b for a, b in zip(seconds["loader"], seconds["memory"], strict=True)]
    return {
        "loader_seconds": seconds["loader"],
        "memory_seconds": seconds["memory"],
        "ratios": ratios,
        "ratio": float(np.median(ratios)),
    }
