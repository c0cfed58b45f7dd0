"""What Keras costs on top: our `fit` and prediction against loops written by hand.

`keras_segen.bench.handwritten` has the same networks in plain PyTorch and plain TensorFlow. Both
start from the same weights and see the same batches. First they are proven equal; only then is
the time of both taken, by turns, in one process, with the same clock: the moments at which they
take their batches. The loader has no part in it, since the batches lie in memory.

Memory is not compared: both live in one process, whose peak cannot be told apart.
"""

import dataclasses
import datetime
import importlib
import json
import math
import time
from pathlib import Path

import keras
import numpy as np

from keras_segen import backend, data, files, generation, machine
from keras_segen.backend import faster
from keras_segen.bench import earlier as earlier_results
from keras_segen.compare.clock import spread
from keras_segen.data.loader import Batches
from keras_segen.determinism import initialize, rng
from keras_segen.generation import noise
from keras_segen.tasks.segmentation import SegmentationTask

PREDICTIONS = 1e-4  # largest difference, of the largest value
LOSSES = 1e-4  # difference of a step's loss, of the loss or of 0.1
STATISTICS = 1e-2  # difference of what batch normalization remembers, of the standard deviation

# How Adam goes while the two are proven equal: in short steps, and with an epsilon at which a
# gradient that is zero but for rounding stays without effect. In long steps such gradients, and a
# GAN's two players, double a difference in the last digit with every step.
PROVING_RATE = 0.1
EPSILON, PROVING_EPSILON = 1e-7, 1e-2


class Stored(Batches):
    """The first batches of a data set, made at once and handed out again in every epoch.

    Args:
        dataset: a data set of `keras_segen.data`.
        batch_size: int.
        steps: int, how many batches; beyond the data set's end they come from further epochs.
        seed: int, for the order.

    Attributes:
        taken: list of float, the time at which each batch of the last pass was taken.

    Raises:
        ValueError: when the data set has fewer images than a batch.
    """

    def __init__(self, dataset, batch_size, steps, seed):
        if len(dataset) < batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but {dataset.name} has {len(dataset)} images: use a "
                "smaller batch."
            )
        self.steps = steps
        super().__init__(dataset, batch_size, seed=seed, drop_last=True)
        per_epoch = len(dataset) // batch_size
        self.stored = [self.batch(*divmod(step, per_epoch)) for step in range(steps)]

    def __len__(self):
        return self.steps

    def read(self, epoch):
        self.taken = taken = []
        for step, batch in enumerate(self.stored):
            if step in (1, self.steps - 1):  # where `seconds` begins and ends
                backend.synchronize()
            taken.append(time.perf_counter())
            yield batch

    def seconds(self):
        """Returns the time per step of the last pass; its first and last step do not count.

        The first one may trace, compile or open something, and what comes after the last one is
        no step any more.
        """
        if len(self.taken) != self.steps:
            raise RuntimeError(f"{len(self.taken)} of {self.steps} batches were taken.")
        return (self.taken[-1] - self.taken[1]) / (self.steps - 2)


@dataclasses.dataclass(frozen=True)
class Contest:
    """A network of ours against the native one: what both are made of.

    Args:
        network: str, one of `NETWORKS`; `contest` takes the class for it.
        data: str, a data set as `keras_segen.data.load` takes it.
        image_size: `(height, width)`; None for 128 x 128, and 32 x 32 for those that make images.
        channels: int, 1 or 3.
        batch_size: int; None for 4, and 64 for those that make images.
        filters: tuple of int, as the network takes them; None for those of `FILTERS`.
        seed: int, for weights, order and noise.

    Raises:
        ValueError: a value does not suit the network.
    """

    network: str
    data: str = "shapes"
    image_size: tuple | None = None
    channels: int = 3
    batch_size: int | None = None
    filters: tuple | None = None
    seed: int = 0

    def __post_init__(self):
        defaults = {
            "image_size": self.IMAGE_SIZE,
            "batch_size": self.BATCH_SIZE,
            "filters": FILTERS[self.network],
        }
        for field, default in defaults.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, default)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected 1 or more.")

    @property
    def image_shape(self):
        return (*self.image_size, self.channels)

    def _rate(self, proving):
        """Adam's learning rate and epsilon."""
        rate = self.LEARNING_RATE * (PROVING_RATE if proving else 1)
        return {"learning_rate": rate, "epsilon": PROVING_EPSILON if proving else EPSILON}

    def _adam(self, proving, **options):
        return keras.optimizers.Adam(**self._rate(proving), **options)

    def _trainer(self, proving, **options):
        """Makes the native trainer of the framework that runs."""
        name = f"{keras.backend.backend()}_{self.network}"
        native = importlib.import_module(f"keras_segen.bench.handwritten.{name}")
        return native.Trainer(filters=self.filters, **self._rate(proving), **options)


class Masks(Contest):
    """A network that labels pixels."""

    IMAGE_SIZE, BATCH_SIZE, LEARNING_RATE = (128, 128), 4, 1e-3
    SIDES = ("fit", "fit with metrics")
    LOSSES = ("loss",)

    def _experiment(self):
        return SegmentationTask(
            model=self.network,
            data=self.data,
            filters=self.filters,
            image_size=self.image_size,
            channels=self.channels,
            batch_size=self.batch_size,
            learning_rate=self.LEARNING_RATE,
            augment="none",
            seed=self.seed,
        )

    def load_data(self):
        return self._experiment().load_data("train")

    def build(self, dataset, side="fit", proving=False):
        """Builds our network, ready for `fit`: with the loss alone, or as `train` does.

        For a proof Adam goes in shorter steps.
        """
        task = self._experiment()
        model = task.build_model(dataset)
        if side == "fit":
            model.compile(self._adam(proving), loss=task.make_loss(dataset))
        else:
            task.compile(model, dataset, steps_per_epoch=1)
        return model

    def native(self, dataset, weights, proving=False):
        """Makes the native counterpart, which starts from these weights."""
        return self._trainer(
            proving,
            weights=weights,
            channels=self.channels,
            num_classes=dataset.num_classes,
            ignore_class=dataset.ignore_class,
        )

    def parts(self, model):
        """Lists the networks with weights: pairs of a prefix for the weights' names and one."""
        return [("", model)]

    def inputs(self, batches):
        """Returns what is predicted from: NumPy."""
        return batches.stored[0][0]

    def predict(self, model, inputs):
        """Predicts as users do: NumPy to NumPy."""
        return backend.infer(model, inputs)


class Latent(Contest):
    """A model that makes images out of codes."""

    IMAGE_SIZE, BATCH_SIZE = (32, 32), 64
    SIDES = ("fit",)

    def load_data(self):
        return data.as_pictures(
            data.load(self.data, "train", size=self.image_size, channels=self.channels)
        )

    def native(self, dataset, weights, proving=False):
        return self._trainer(
            proving,
            weights=weights,
            image_shape=self.image_shape,
            latent_dim=self.LATENT_DIM,
            draw=self._draw if proving else None,
            **self.OPTIONS,
        )

    def _draw(self, step, batch):
        """The numbers that our model draws in a step."""
        numbers = noise.normal(("codes", self.seed), step, (batch, self.LATENT_DIM))
        return keras.ops.convert_to_numpy(numbers)


class DCGAN(Latent):
    """G, D and the average of G."""

    LEARNING_RATE, LATENT_DIM = 2e-4, 100
    LOSSES = ("d_loss", "g_loss")
    OPTIONS = {"average": 0.999}

    def build(self, dataset, side="fit", proving=False):
        gan = generation.GAN(
            generation.dcgan_generator(self.image_shape, self.LATENT_DIM, self.filters),
            generation.dcgan_discriminator(self.image_shape, self.filters),
            ema=self.OPTIONS["average"],
            seed=self.seed,
        )
        initialize(gan, self.seed)
        gan.compile(*(self._adam(proving, beta_1=0.5) for _ in range(2)))
        return gan

    def parts(self, model):
        return [
            ("generator/", model.generator),
            ("discriminator/", model.discriminator),
            ("average/", model.ema_generator),
        ]

    def inputs(self, batches):
        shape = (self.batch_size, self.LATENT_DIM)
        return rng("codes to predict", self.seed).standard_normal(shape, dtype="float32")

    def predict(self, model, inputs):
        return model.decode(inputs, batch_size=len(inputs))


class VAE(Latent):
    """An encoder and a decoder."""

    LEARNING_RATE, LATENT_DIM = 1e-3, 64
    LOSSES = ("loss",)
    OPTIONS = {}

    def build(self, dataset, side="fit", proving=False):
        vae = generation.VAE(
            generation.vae_encoder(self.image_shape, self.LATENT_DIM, self.filters),
            generation.vae_decoder(self.image_shape, self.LATENT_DIM, self.filters),
            seed=self.seed,
        )
        initialize(vae, self.seed)
        vae.compile(self._adam(proving))
        return vae

    def parts(self, model):
        return [("", model.encoder), ("", model.decoder)]

    def inputs(self, batches):
        return batches.stored[0][0]

    def predict(self, model, inputs):
        return model.reconstruct(inputs, batch_size=len(inputs))


NETWORKS = {"unet": Masks, "fcn": Masks, "vae": VAE, "dcgan": DCGAN}
FILTERS = {
    "unet": (32, 64, 128, 256, 512),
    "fcn": (16, 32, 64, 128, 128, 512),
    "vae": (32, 64, 128),
    "dcgan": (64, 128, 256),
}


def contest(network, **options):
    """Makes a `Contest` of the class for a network.

    Raises:
        ValueError: there is no such network, or an option does not suit it.
    """
    if network not in NETWORKS:
        raise ValueError(f"There is no native {network!r}; there are: {', '.join(NETWORKS)}.")
    return NETWORKS[network](network, **options)


def weights_by_name(parts):
    """Copies weights to NumPy: dict of name, such as `"down0_conv1/kernel"`, -> array."""
    return {
        f"{prefix}{layer.name}/{weight.name}": np.array(keras.ops.convert_to_numpy(weight))
        for prefix, network in parts
        for layer in network.layers
        for weight in layer.weights
    }


def prove(contest, dataset, batches, tell=lambda text: None):
    """Proves that our network and the native one compute the same.

    From the same weights and for the same inputs both must predict the same. Then each takes one
    step per batch: the losses of every step must be the same, and at the end what batch
    normalization remembers; and from the weights that we have then, both must predict the same
    again. The tolerances are `PREDICTIONS`, `LOSSES` and `STATISTICS`. Adam goes in shorter
    steps (`PROVING_RATE`), and the native side draws the noise that ours draws.

    Args:
        contest: a `Contest`.
        dataset: what `contest.load_data` returned.
        batches: a `Stored`.
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
    recorder = _Losses(contest.LOSSES)
    model.fit(backend.make_loader(batches), shuffle=False, verbose=0, callbacks=[recorder])
    found = [[float(loss) for loss in losses] for losses in native.train(batches.stored)]
    losses = _same_losses(contest, np.array(recorder.found), np.array(found))
    statistics = _same_statistics(contest, parts, native.weights())

    native = contest.native(dataset, weights_by_name(parts))
    predictions.append(_same_predictions(contest, model, native, inputs, "after training"))
    return {
        "steps": len(batches),
        "predictions": max(predictions),
        "losses": losses,
        "statistics": statistics,
    }


class _Losses(keras.callbacks.Callback):
    """Writes down the losses of every step, which `fit` averages over the epoch."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append([float(logs[name]) for name in self.names])
        for metric in self.model.metrics:
            metric.reset_state()


def _same_predictions(contest, model, native, inputs, when):
    ours, theirs = contest.predict(model, inputs), native.predict(inputs)
    if ours.shape != theirs.shape:
        raise _parted(contest, f"the predictions {when}", ours.shape, theirs.shape)
    largest = np.abs(ours).max() or 1.0
    place = np.unravel_index(np.argmax(np.abs(ours - theirs)), ours.shape)
    difference = float(np.abs(ours - theirs).max() / largest)
    if not difference <= PREDICTIONS:
        raise _parted(
            contest,
            f"the prediction {when} at {tuple(map(int, place))}",
            *(f"{x[place]:.6g}" for x in (ours, theirs)),
            f"they differ by {difference:.1e} of the largest value",
            PREDICTIONS,
        )
    return difference


def _same_losses(contest, ours, theirs):
    differences = np.abs(ours - theirs) / np.maximum(np.abs(ours), 0.1)
    for step, row in enumerate(differences):
        for k, name in enumerate(contest.LOSSES):
            if not row[k] <= LOSSES:
                raise _parted(
                    contest,
                    f"the {name} of step {step + 1}",
                    *(f"{x[step, k]:.6f}" for x in (ours, theirs)),
                    f"a relative difference of {row[k]:.1e}",
                    LOSSES,
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
                ("mean", means, np.sqrt(variances[0]), STATISTICS),
                ("variance", variances, variances[0], STATISTICS + rounding),
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


def measure(contest, dataset, batches, rounds=10, tell=lambda text: None):
    """Takes the time of `fit` and of the native loop, and of predictions, by turns.

    In each round every side trains on all batches and predicts as often; every second round in
    the other order (A B, B A, …). The median over the rounds is told: a machine that slows down
    for a while harms both sides. A round before the first warms up.

    Args:
        contest: a `Contest`.
        dataset: what `contest.load_data` returned.
        batches: a `Stored`.
        rounds: int.
        tell: called with a line of text after each round.

    Returns:
        List of dicts, one for each kind of work (`"train"`, `"predict"`) and side of ours: `work`,
        `side`, `native_ms` and `ours_ms` (as `speed.spread` gives them, per step or per batch),
        `ratio` (median over the rounds of ours over native), `ratio_p10`, `ratio_p90` and
        `rounds`.
    """
    models = {side: contest.build(dataset, side) for side in contest.SIDES}
    native = contest.native(dataset, weights_by_name(contest.parts(models["fit"])))
    loader = backend.make_loader(batches)
    inputs = contest.inputs(batches)

    def train_native():
        for _ in native.train(batches.read(0)):
            pass
        return batches.seconds()

    def fit(model):
        model.fit(loader, shuffle=False, verbose=0)
        return batches.seconds()

    def predict(call):
        call()
        start = time.perf_counter()
        for _ in range(len(batches) - 2):
            call()
        return (time.perf_counter() - start) / (len(batches) - 2)

    jobs = {("train", "native"): train_native}
    for side, model in models.items():
        jobs["train", side] = lambda model=model: fit(model)
    jobs["predict", "native"] = lambda: predict(lambda: native.predict(inputs))
    jobs["predict", "infer"] = lambda: predict(lambda: contest.predict(models["fit"], inputs))

    seconds = {job: [] for job in jobs}
    for job in jobs.values():
        job()
    tell("warmed up")
    for number in range(rounds):
        order = list(jobs) if number % 2 == 0 else list(reversed(jobs))
        for job in order:
            seconds[job].append(jobs[job]())
        tell(f"round {number + 1} of {rounds}")

    rows = []
    for (work, side), ours in seconds.items():
        if side == "native":
            continue
        ratios = np.array(ours) / np.array(seconds[work, "native"])
        low, median, high = np.percentile(ratios, [10, 50, 90])
        rows.append(
            {
                "work": work,
                "side": side,
                "native_ms": spread(seconds[work, "native"]),
                "ours_ms": spread(ours),
                "ratio": round(float(median), 4),
                "ratio_p10": round(float(low), 4),
                "ratio_p90": round(float(high), 4),
            }
        )
    return rows


def run(contest, folder, steps=12, rounds=10, tell=lambda text: None):
    """Proves that both are equal, takes their times and writes the result into a folder.

    Args:
        contest: a `Contest`.
        folder: path; gets `NETWORK-BACKEND-TIME.json`. An earlier one of the same settings in it
            is what the result is compared with.
        steps: int, steps per round, at least 3: of them the first and the last are not timed.
        rounds: int, rounds that are timed.
        tell: called with a line of text now and then.

    Returns:
        Dict of plain values, as in the file: `settings`, `versions`, `time`, `proof` (what
        `prove` returned), `rows` (what `measure` returned), and `earlier`: time and ratios of the
        latest earlier result, or None.

    Raises:
        ValueError: the two parted, or an argument is out of range.
    """
    if steps < 3 or rounds < 1:
        raise ValueError(
            f"steps is {steps} and rounds {rounds}, expected at least 3 steps, of which the first "
            "and the last are not timed, and 1 round."
        )
    settings = describe(contest, steps)
    earlier = find_earlier(folder, settings)
    dataset = contest.load_data()
    batches = Stored(dataset, contest.batch_size, steps, contest.seed)
    proof = prove(contest, dataset, batches, tell)
    rows = measure(contest, dataset, batches, rounds, tell)
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "time": now.isoformat(timespec="seconds"),
        "settings": settings,
        "versions": machine.versions(),
        "replacements": faster.status(),
        "proof": proof,
        "rows": rows,
        "earlier": earlier,
    }
    name = f"{contest.network}-{keras.backend.backend()}-{now:%Y%m%dT%H%M%SZ}.json"
    files.write_json(Path(folder) / name, result)
    return result


def describe(contest, steps):
    """Returns all that a ratio depends on but the versions, as plain values."""
    here = machine.describe()
    values = {
        **dataclasses.asdict(contest),
        "learning_rate": contest.LEARNING_RATE,
        "steps": steps,
        "backend": keras.backend.backend(),
        "precision": keras.config.dtype_policy().name,
        "layout": keras.config.image_data_format(),
        **{key: value for key, value in backend.settings().items() if key != "framework"},
        **{key: here[key] for key in ("processor", "cores")},
        "freed_memory": machine.freed_memory,
    }
    return json.loads(json.dumps(values))  # lists, as in a file


def find_earlier(folder, settings):
    """Finds the latest result with the same settings in a folder.

    Returns:
        Dict with its `time`, `versions` and `ratios` by work and side, such as
        `{"train, fit": 1.05}`, or None.

    Raises:
        ValueError: a file there that has the name of a result is none.
    """
    return earlier_results.find_earlier(
        folder,
        f"{settings['network']}-{settings['backend']}-*.json",
        settings,
        lambda result: {
            "ratios": {f"{row['work']}, {row['side']}": row["ratio"] for row in result["rows"]}
        },
        "bench native",
    )
