"""Networks that are measured against loops written by hand: how both are built.

`keras_segen.bench.handwritten` has the same networks in plain PyTorch and plain TensorFlow.
"""

import dataclasses
import importlib

import keras
import numpy as np

from keras_segen import backend, data, generation
from keras_segen.determinism import initialize, rng
from keras_segen.generation import noise
from keras_segen.segmentation.mask_rcnn import SMALL, lots
from keras_segen.tasks.instances import LOSSES
from keras_segen.tasks.registry import kind_of

# Adam's settings in a proof: a small learning rate, and an epsilon that suppresses gradients which
# are zero except for rounding. With a large rate such gradients, and a GAN's two players, double a
# difference in the last digit with every step.
PROVING_RATE = 0.1
EPSILON, PROVING_EPSILON = 1e-7, 1e-2


@dataclasses.dataclass(frozen=True)
class Contest:
    """A network of ours against the native one, and the arguments of both.

    Args:
        network: str, one of `NETWORKS`; `contest` takes the class for it.
        data: str, a data set as `keras_segen.data.load` takes it.
        image_size: `(height, width)`; None for that of the class.
        channels: int, 1 or 3.
        batch_size: int; None for that of the class.
        filters: tuple of int, as the network takes them; None for those of `FILTERS`.
        seed: int, for weights, order and noise.

    Raises:
        ValueError: a value does not fit the network.
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

    def _task(self):
        """The training whose data and network are measured."""
        return kind_of(self.network)(
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
        return self._task().load_data("train")

    def predict_as_keras_does(self, model, inputs):
        """Predicts with Keras' own method, if there is one: NumPy to NumPy."""
        return self.predict(model, inputs)

    def in_our_order(self, ours, theirs):
        """Returns the native predictions in the order of ours."""
        return theirs

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


class SegmentationContest(Contest):
    """A segmentation network."""

    IMAGE_SIZE, BATCH_SIZE, LEARNING_RATE = (128, 128), 4, 1e-3
    SIDES = ("fit", "fit with metrics")
    LOSS_NAMES = ("loss",)

    def build(self, dataset, side="fit", proving=False):
        """Builds our network, ready for `fit`: with the loss alone, or as `train` does.

        For a proof, Adam's learning rate is smaller.
        """
        task = self._task()
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
        """Returns the inputs of predictions: NumPy."""
        return batches.stored[0][0]

    def predict(self, model, inputs):
        """Predicts as users do: NumPy to NumPy."""
        return backend.infer(model, inputs)

    def predict_as_keras_does(self, model, inputs):
        return model.predict_on_batch(inputs)


class InstanceContest(Contest):
    """A network that finds objects."""

    IMAGE_SIZE, BATCH_SIZE, LEARNING_RATE = (96, 96), 8, 2e-3
    SIDES = ("fit",)
    LOSS_NAMES = ("loss", *LOSSES)

    def build(self, dataset, side="fit", proving=False):
        model = self._task().build_model(dataset)
        model.compile(self._adam(proving))
        return model

    def native(self, dataset, weights, proving=False):
        return self._trainer(
            proving,
            weights=weights,
            image_shape=self.image_shape,
            num_classes=dataset.num_classes,
            max_instances=dataset.max_instances,
            stages=SMALL,
            draw=self._draw if proving else None,
        )

    def _draw(self, name, step, batch, columns):
        """The numbers by which our model samples in a step."""
        numbers = lots((name, "training", self.seed), step, 0, (batch, columns))
        return keras.ops.convert_to_numpy(numbers)

    def parts(self, model):
        networks = {
            "encoder": model.pyramid.get_layer("small_encoder"),
            "pyramid": model.pyramid,
            "rpn": model.rpn,
            "box_head": model.box_head,
            "mask_head": model.mask_head,
        }
        return [(f"{name}/", network) for name, network in networks.items()]

    def inputs(self, batches):
        return batches.stored[0][0]

    def predict(self, model, inputs):
        """Finds the objects of images: dict of arrays with a row for each image."""
        return backend.infer(model, inputs, "detect")

    def in_our_order(self, ours, theirs):
        """The surest come first, and of two that are as sure either may: each finds its like."""
        order = np.zeros(ours["scores"].shape, int)
        for i, found in enumerate(order):
            unlike = 1e4 * (ours["classes"][i][:, None] != theirs["classes"][i])
            unlike = unlike + np.abs(ours["boxes"][i][:, None] - theirs["boxes"][i]).sum(-1)
            for slot in range(len(found)):
                found[slot] = np.argmin(unlike[slot])
                unlike[:, found[slot]] = np.inf
        rows = np.arange(len(order))[:, None]
        return {name: values[rows, order] for name, values in theirs.items()}


class GenerationContest(Contest):
    """A generative model."""

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


class DcganContest(GenerationContest):
    """G, D and the average of G."""

    LEARNING_RATE, LATENT_DIM = 2e-4, 100
    LOSS_NAMES = ("d_loss", "g_loss")
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


class VaeContest(GenerationContest):
    """An encoder and a decoder."""

    LEARNING_RATE, LATENT_DIM = 1e-3, 64
    LOSS_NAMES = ("loss",)
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


NETWORKS = {
    "unet": SegmentationContest,
    "fcn": SegmentationContest,
    "mask_rcnn": InstanceContest,
    "vae": VaeContest,
    "dcgan": DcganContest,
}
FILTERS = {
    "unet": (32, 64, 128, 256, 512),
    "fcn": (16, 32, 64, 128, 128, 512),
    "mask_rcnn": (24, 32, 64, 96),
    "vae": (32, 64, 128),
    "dcgan": (64, 128, 256),
}


def contest(network, **options):
    """Makes a `Contest` of the class for a network.

    Raises:
        ValueError: there is no such network, or an option does not fit it.
    """
    if network not in NETWORKS:
        raise ValueError(f"There is no native {network!r}; there are: {', '.join(NETWORKS)}.")
    return NETWORKS[network](network, **options)
