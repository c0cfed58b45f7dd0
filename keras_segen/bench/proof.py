"""Proof that a network of ours and the one written by hand compute the same."""

import math

import keras
import numpy as np

from keras_segen import backend
from keras_segen.compare.clock import Recorder

PREDICTION_TOLERANCE = 1e-4  # largest difference, of the largest value
LOSS_TOLERANCE = 1e-4  # difference of a step's loss, of the loss or of 0.1
STATISTICS_TOLERANCE = 1e-2  # of batch normalization's running averages, of the standard deviation


def weights_by_name(parts):
    """Copies weights to NumPy: dict of name, such as `"down0_conv1/kernel"`, -> array."""
    return {
        f"{prefix}{layer.name}/{weight.name}": np.array(keras.ops.convert_to_numpy(weight))
        for prefix, network in parts
        for layer in network.layers
        if not isinstance(layer, keras.Model)  # a part of its own
        for weight in layer.weights
    }


def prove(contest, dataset, batches, tell=lambda text: None):
    """Proves that our network and the native one compute the same.

    From the same weights and for the same inputs both must predict the same. Then each takes one
    step per batch: the losses of every step must be equal, and at the end the running averages of
    batch normalization; and with our trained weights both must predict the same again. Adam's
    learning rate is smaller (`contests.PROVING_RATE`), and the native side draws our noise.

    Args:
        contest: a `keras_segen.bench.contests.Contest`.
        dataset: what `contest.load_data` returned.
        batches: a `keras_segen.compare.rounds.Held`.
        tell: called with a line of text before each part.

    Returns:
        Dict of the largest differences: `predictions`, `losses`, `statistics` (None without batch
        normalization), each in the unit of its tolerance; and `steps`.

    Raises:
        ValueError: they parted; the message says where.
    """
    inputs = contest.inputs(batches)
    model = contest.build(dataset, proving=True)
    parts = contest.parts(model)
    tell("predicting from the same weights …")
    native = contest.native(dataset, weights_by_name(parts), proving=True)
    predictions = [_same_predictions(contest, model, native, inputs, "at the start")]

    tell(f"taking {len(batches)} steps each …")
    recorder = Recorder(batches, names=contest.LOSS_NAMES)
    model.fit(backend.make_loader(batches), shuffle=False, verbose=0, callbacks=[recorder])
    found = [[float(loss) for loss in losses] for losses in native.train(batches.stored)]
    ours = np.transpose([recorder.losses[name] for name in contest.LOSS_NAMES])
    losses = _same_losses(contest, ours, np.array(found))
    statistics = _same_statistics(contest, parts, native.weights())

    native = contest.native(dataset, weights_by_name(parts))
    predictions.append(_same_predictions(contest, model, native, inputs, "after training"))
    return {
        "steps": len(batches),
        "predictions": max(predictions),
        "losses": losses,
        "statistics": statistics,
    }


def _same_predictions(contest, model, native, inputs, when):
    ours, theirs = contest.predict(model, inputs), native.predict(inputs)
    if not isinstance(ours, dict):
        return _same_arrays(contest, f"prediction {when}", ours, theirs)
    theirs = contest.in_our_order(ours, theirs)
    return max(
        _same_arrays(contest, f"prediction {when}, {name},", values, theirs[name])
        for name, values in ours.items()
    )


def _same_arrays(contest, what, ours, theirs):
    if ours.shape != theirs.shape:
        raise _parted(contest, f"the shape of the {what}", ours.shape, theirs.shape)
    largest = np.abs(ours).max() or 1.0
    place = np.unravel_index(np.argmax(np.abs(ours - theirs)), ours.shape)
    difference = float(np.abs(ours - theirs).max() / largest)
    if not difference <= PREDICTION_TOLERANCE:
        raise _parted(
            contest,
            f"the {what} at {tuple(map(int, place))}",
            *(f"{x[place]:.6g}" for x in (ours, theirs)),
            f"they differ by {difference:.1e} of the largest value",
            PREDICTION_TOLERANCE,
        )
    return difference


def _same_losses(contest, ours, theirs):
    differences = np.abs(ours - theirs) / np.maximum(np.abs(ours), 0.1)
    for step, row in enumerate(differences):
        for k, name in enumerate(contest.LOSS_NAMES):
            if not row[k] <= LOSS_TOLERANCE:
                raise _parted(
                    contest,
                    f"the {name} of step {step + 1}",
                    *(f"{x[step, k]:.6f}" for x in (ours, theirs)),
                    f"a relative difference of {row[k]:.1e}",
                    LOSS_TOLERANCE,
                )
    return float(differences.max())


def _same_statistics(contest, parts, theirs):
    """Compares what batch normalization remembers; the unit is the standard deviation."""
    ours = weights_by_name(parts)
    largest = []
    for prefix, network in parts:
        for layer in network.layers:
            name = f"{prefix}{layer.name}/moving_"
            if f"{name}mean" not in theirs:
                continue
            means = ours[f"{name}mean"], theirs[f"{name}mean"]
            variances = ours[f"{name}variance"], theirs[f"{name}variance"]
            # Frameworks remember variances with n - 1 in the divisor, Keras with n.
            rounding = 1 / (contest.batch_size * math.prod(layer.output.shape[1:-1]) - 1)
            for kind, pair, unit, tolerance in (
                ("mean", means, np.sqrt(variances[0]), STATISTICS_TOLERANCE),
                ("variance", variances, variances[0], STATISTICS_TOLERANCE + rounding),
            ):
                differences = np.abs(pair[0] - pair[1]) / unit
                channel = int(np.argmax(differences))
                if not differences[channel] <= tolerance:
                    raise _parted(
                        contest,
                        f"{name}{kind} of channel {channel}",
                        *(f"{values[channel]:.6g}" for values in pair),
                        f"a difference of {differences[channel]:.1e}",
                        tolerance,
                    )
                largest.append(float(differences[channel]))
    return max(largest, default=None)


def _parted(contest, what, ours, theirs, by="", tolerance=None):
    by = f" ({by}, tolerance {tolerance:.1e})" if by else ""
    return ValueError(
        f"{contest.network} on {keras.backend.backend()}: Keras and the native network part, and "
        f"no time is shown. Found for {what}: {ours} with Keras, {theirs} native{by}."
    )
