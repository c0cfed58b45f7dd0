"""What predictions cost: the memory of large images, and what folding saves."""

import time

import numpy as np
import psutil

from keras_segen import backend, determinism, machine, segmentation
from keras_segen.compare.rounds import by_turns
from keras_segen.report.tables import Column, Table, decimals
from keras_segen.runs.training import load_model


def model_to_predict(run=None):
    """Returns the best model of a run folder, or a small U-Net for 6 classes."""
    if run is not None:
        return load_model(run)
    model = segmentation.unet((None, None, 3), num_classes=6, filters=(16, 32, 64))
    determinism.initialize(model, seed=0)
    return model


def folding_ratio(model, tile, rounds=10):
    """Measures what folding batch normalization saves: one tile, plain and folded by turns.

    Args:
        model: a segmentation model.
        tile: int, height and width of the images, as `keras_segen.segmentation.Predictor` takes.
        rounds: int, measured steps of each, after one that warms up.

    Returns:
        Dict with `plain_ms` and `folded_ms` (medians per tile) and `ratio`, folded over plain.
    """
    image = determinism.rng("bench").random((tile, tile, model.input_shape[3]), dtype="float32")
    predictors = {
        fold: segmentation.Predictor(model, tile, batch_size=1, fold=fold) for fold in (False, True)
    }
    seconds = {fold: [] for fold in predictors}
    for predictor in predictors.values():
        backend.infer(predictor.network, image[None])
    for order in by_turns(predictors, rounds):
        for fold in order:
            start = time.perf_counter()
            backend.infer(predictors[fold].network, image[None])
            seconds[fold].append(time.perf_counter() - start)
    plain, folded = (1e3 * float(np.median(seconds[fold])) for fold in (False, True))
    return {"plain_ms": plain, "folded_ms": folded, "ratio": folded / plain}


def prediction_memory(model, sides, tile, tell=lambda text: None):
    """Measures the peak memory of predicting square images, one larger than the other.

    Args:
        model: a segmentation model.
        sides: ints, ascending: height and width of the images, uint8.
        tile: int, as `keras_segen.segmentation.Predictor` takes.
        tell: called with a line of text before each image.

    Returns:
        List of dicts, one per image: `side`, `seconds`, and in bytes `arrays` (the image and its
        class ids), `growth` (the process's peak resident memory less what it had before the
        first image, the network loaded and warmed up) and `beyond`, what of it is beyond the
        arrays.

    Raises:
        ValueError: if the sides do not ascend: the peak of a process never falls.
    """
    if list(sides) != sorted(set(sides)):
        raise ValueError(f"sizes are {sides}, expected ascending ones, such as (1000, 2000).")
    predictor = segmentation.Predictor(model, tile)
    small = np.zeros((tile, 4 * tile, predictor.channels), "uint8")
    predictor.predict(small)
    before = psutil.Process().memory_info().rss
    rows = []
    for side in sides:
        tell(f"{side} x {side} …")
        shape = (side, side, predictor.channels)
        image = determinism.rng("bench", side).integers(0, 256, shape, dtype="uint8")
        start = time.perf_counter()
        result = predictor.predict(image)
        seconds = time.perf_counter() - start
        growth = max(0, machine.peak_memory() - before)
        arrays = image.nbytes + result.nbytes
        rows.append(
            {
                "side": side,
                "seconds": seconds,
                "arrays": arrays,
                "growth": growth,
                "beyond": max(0, growth - arrays),
            }
        )
        del image, result
    return rows


def table(rows):
    """What `prediction_memory` returned, as a `keras_segen.report.tables.Table`."""
    mib = ("image + result, MiB", "peak growth, MiB", "beyond them, MiB")
    return Table(
        "Memory of a prediction",
        ["image", *(Column(name, decimals(1 if name == "s" else 0)) for name in ("s", *mib))],
        [
            [
                f"{row['side']} x {row['side']}",
                row["seconds"],
                *(row[key] / 2**20 for key in ("arrays", "growth", "beyond")),
            ]
            for row in rows
        ],
    )
