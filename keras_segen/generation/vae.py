"""VAE: an encoder from images to a latent space, and a decoder back.

The encoder maps each image to a normal distribution of codes; from a code drawn from it, the
decoder must reconstruct the image. A second term, the KL divergence, keeps these distributions
close to a standard normal, so that a code drawn from that one decodes to a new image. Minus the sum
of the two terms is a lower bound (ELBO) on the log-likelihood of the images.

Reference: Kingma, Welling (2014), "Auto-encoding variational Bayes",
https://arxiv.org/abs/1312.6114. beta: Higgins et al. (2017), "beta-VAE". The bound by importance
weights: Burda, Grosse, Salakhutdinov (2016), https://arxiv.org/abs/1509.00519. The learned noise:
Rybkin, Daniilidis, Levine (2021), "sigma-VAE", https://arxiv.org/abs/2006.13202

Differs from the paper: convolutions; the Gaussian decoder gives means only, and one standard
deviation for all pixels is learned. With classes, only the decoder gets the label: the bound holds
for any encoder, and an image shows its class.
"""

import math

import keras
import numpy as np
from keras import layers, ops

from keras_segen import backend
from keras_segen.choices import LIKELIHOODS
from keras_segen.determinism import rng
from keras_segen.generation.latent import LatentModel
from keras_segen.layers import check_image_shape, codes_with_class

LEVELS = 256  # of a pixel, as a file stores it


@keras.saving.register_keras_serializable(package="keras_segen")
class VAE(LatentModel):
    """An encoder and a decoder, trained by `fit` to compress images to short codes.

    `fit` takes images, float in [0, 1] or uint8, as arrays or in batches, with labels if there are
    classes; `compile(optimizer)` is all it needs. The history has

        loss                  reconstruction + beta * kl
        elbo                  -(reconstruction + kl): a lower bound on the log-likelihood
        reconstruction        -log p(image | code)
        kl                    from the encoder's distribution to the standard normal
        bits_per_dimension    minus the bound, per number in the image, in bits

    in nats per image, averaged over the images. In `evaluate` and validation the noise in
    an image's code depends on its position only, not on the batches.

    Likelihoods of a number x in [0, 1]:

        "bernoulli"   x is the probability of white. The decoder gives logits. Strictly, a
                      likelihood for black and white only; gray images cost at least their
                      entropy.
        "gaussian"    normal, cut into the 256 levels of a pixel: density / 256. The decoder gives
                      means in [-1, 1] for [0, 1]; the standard deviation is one learned number,
                      at least 1/256, the distance between levels.

    Args:
        encoder: a `keras.Model` from images `(batch, …)` in [-1, 1] to a list of two tensors
            `(batch, latent_dim)`: mean and log of the variance of the codes.
        decoder: a `keras.Model` from codes `(batch, latent_dim)` to logits or means `(batch, …)`;
            with classes from `[codes, labels]`.
        likelihood: str, `"bernoulli"` or `"gaussian"`.
        beta: float, weight of the second term; 1 for the bound, more for simpler codes.
        num_classes: int or None.
        seed: int, for the codes in training.

    Raises:
        ValueError: when the networks do not fit together, or a value is out of range.

    Example:

    >>> shape, filters = (8, 8, 1), (4, 8)
    >>> vae = VAE(vae_encoder(shape, 2, filters), vae_decoder(shape, 2, filters))
    >>> vae.compile("adam")
    >>> sorted(vae.train_on_batch(keras.ops.ones((4, 8, 8, 1)), return_dict=True))
    ['bits_per_dimension', 'elbo', 'kl', 'loss', 'reconstruction']
    >>> vae.generate(3).shape
    (3, 8, 8, 1)
    """

    NETWORKS = ("encoder", "decoder")
    SETTINGS = ("likelihood", "beta", "num_classes", "seed", "name")

    def __init__(
        self,
        encoder,
        decoder,
        likelihood="bernoulli",
        beta=1.0,
        num_classes=None,
        seed=0,
        name="vae",
    ):
        super().__init__(decoder, num_classes, seed, name)
        codes = [tuple(x.shape[1:]) for x in encoder.outputs]
        if codes != [(self.latent_dim,)] * 2:
            raise ValueError(
                f"The decoder takes codes of {self.latent_dim} numbers; expected an encoder with "
                f"two outputs (batch, {self.latent_dim}), mean and log of the variance, found "
                f"{[tuple(x.shape) for x in encoder.outputs]}."
            )
        if len(encoder.inputs) != 1 or tuple(encoder.inputs[0].shape[1:]) != self.image_shape:
            raise ValueError(
                f"The decoder makes images {self.image_shape}; expected an encoder of one input "
                f"of this shape, found {[tuple(x.shape[1:]) for x in encoder.inputs]}."
            )
        if likelihood not in LIKELIHOODS:
            expected = ", ".join(map(repr, LIKELIHOODS))
            raise ValueError(f"likelihood is {likelihood!r}, expected one of {expected}.")
        if beta < 0:
            raise ValueError(f"beta is {beta}, expected 0 or more.")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.beta = beta
        if likelihood == "gaussian":
            self.log_deviation_initializer = keras.initializers.Constant(math.log(0.25))
            self.log_deviation = self.add_weight(
                shape=(), initializer=self.log_deviation_initializer, name="log_deviation"
            )
        self.trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("elbo", "reconstruction", "kl", "bits_per_dimension")
        }
        self.built = True

    def call(self, images, training=False):
        """Encodes images in [0, 1] or uint8: mean and log variance, `(batch, latent_dim)` each."""
        mean, log_variance = self.encoder(self.check_images(images), training=training)
        return ops.cast(mean, self.float_dtype), ops.cast(log_variance, self.float_dtype)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch; `y_pred` is what `call` returned."""
        images = self.as_floats(x)  # `call` saw that they are in [0, 1]
        labels = self.check_labels(y)
        mean, log_variance = y_pred
        seen = None if training else self.trackers["elbo"].count
        normal = self.random_codes(ops.shape(images)[0], seen)
        if training:
            self.step.assign_add(1)
        # Reparametrization: the gradient reaches mean and variance.
        codes = mean + ops.exp(log_variance / 2) * normal  # (b, latent_dim)
        outputs = self.decoder(self.join(codes, labels), training=training)  # (b, h, w, channels)

        reconstruction = -self.log_likelihood(images, outputs)  # (b,)
        kl = ops.sum(ops.square(mean) + ops.exp(log_variance) - 1 - log_variance, axis=1) / 2
        elbo = -(reconstruction + kl)
        values = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl}
        values["bits_per_dimension"] = self.bits_per_dimension(elbo)
        for name, value in values.items():
            self.trackers[name].update_state(value)
        loss = ops.mean(reconstruction + self.beta * kl) + sum(self.losses)
        return backend.share_of_replica(loss)

    def log_likelihood(self, images, outputs):
        """Log-likelihood of images, given the decoder's outputs: nats `(batch,)`.

        Args:
            images: float32 `(batch, …)` in [0, 1].
            outputs: the decoder's outputs for them, `(batch, …)`.
        """
        x = ops.reshape(images, (-1, math.prod(self.image_shape)))
        outputs = ops.reshape(outputs, (-1, math.prod(self.image_shape)))
        outputs = ops.cast(outputs, self.float_dtype)
        if self.likelihood == "bernoulli":
            return -ops.sum(ops.binary_crossentropy(x, outputs, from_logits=True), axis=1)
        log_deviation = ops.maximum(self.log_deviation, -math.log(LEVELS))
        distance = (x - (outputs + 1) / 2) / ops.exp(log_deviation)
        constant = log_deviation + math.log(2 * math.pi) / 2
        return ops.sum(-ops.square(distance) / 2 - constant, axis=1)

    def bits_per_dimension(self, log_likelihood):
        """Converts nats per image to bits per number of an image of 256 levels."""
        bits = -log_likelihood / (math.prod(self.image_shape) * math.log(2))
        return bits + math.log2(LEVELS) if self.likelihood == "gaussian" else bits

    def importance_weighted_bound(self, images, labels=None, num_samples=64, seed=0, batch_size=64):
        """Computes a tighter bound on the log-likelihood of images, from several codes each.

        With codes z drawn from the encoder's q, it is the log of the mean of p(x, z) / q(z | x):
        with one sample the ELBO; with more samples it approaches the log-likelihood.

        Args:
            images: float in [0, 1] or uint8 `(count, …)`.
            labels: integers `(count,)`, if there are classes.
            num_samples: int, codes per image.
            seed: int, for the codes.
            batch_size: int, images at once.

        Returns:
            float64 array `(count,)`, nats per image; `bits_per_dimension` converts it.

        Raises:
            ValueError: when images or labels do not fit.
        """
        bounds = np.empty(len(images))
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            floats = self.as_floats(images[part])
            given = self.check_labels(None if labels is None else labels[part])
            if given is not None:
                given = ops.convert_to_numpy(given)
            mean, log_variance = self._encode(self.check_images(floats))
            weights = []
            generator = rng("importance weights", seed, start)
            for _ in range(num_samples):
                normal = generator.standard_normal(mean.shape)
                codes = (mean + np.exp(log_variance / 2) * normal).astype("float32")
                outputs = backend.infer(self.decoder, self.join(codes, given))
                log_p = ops.convert_to_numpy(self.log_likelihood(floats, outputs))
                # log p(z) - log q(z | x); the constants cancel.
                log_ratio = (normal**2 + log_variance - codes.astype("float64") ** 2).sum(1) / 2
                weights.append(log_p.astype("float64") + log_ratio)
            weights = np.stack(weights)  # (num_samples, batch)
            largest = weights.max(axis=0)
            bounds[part] = largest + np.log(np.exp(weights - largest).mean(axis=0))
        return bounds

    def encode(self, images, batch_size=64):
        """Returns the mean codes of images: float32 array `(count, latent_dim)`."""
        codes = np.empty((len(images), self.latent_dim), "float32")
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            codes[part], _ = self._encode(self.check_images(images[part]))
        return codes

    def kl_per_dimension(self, images, batch_size=64):
        """Computes the KL divergence of each dimension of the codes of images.

        Args:
            images: float in [0, 1] or uint8 `(count, …)`.
            batch_size: int, images at once.

        Returns:
            float64 array `(latent_dim,)`, nats, averaged over the images; the sum is `kl`.
        """
        total = np.zeros(self.latent_dim)
        for start in range(0, len(images), batch_size):
            mean, log_variance = self._encode(self.check_images(images[start : start + batch_size]))
            total += (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=0) / 2
        return total / len(images)

    def reconstruct(self, images, labels=None, batch_size=64):
        """Encodes images and decodes them again: float32 array `(count, …)` in [0, 1]."""
        return self.in_batches(
            "reconstructed", np.asarray(images), labels, batch_size, prepare=self.check_images
        )

    def reconstructed(self, inputs, training=False):
        """`reconstruct` for tensors: images in [-1, 1], or `[images, labels]`, to [0, 1]."""
        images, labels = (inputs, None) if self.num_classes is None else inputs
        mean, _ = self.encoder(images, training=training)
        return self.decoded(self.join(mean, labels), training)

    def _encode(self, images):
        """Mean and log variance of the codes, float64 `(batch, latent_dim)`, in NumPy."""
        return [x.astype("float64") for x in backend.infer(self.encoder, images)]

    def decoded(self, inputs, training=False):
        outputs = ops.cast(self.decoder(inputs, training=training), "float32")
        if self.likelihood == "bernoulli":
            return ops.sigmoid(outputs)
        return ops.clip((outputs + 1) / 2, 0, 1)


def vae_encoder(image_shape, latent_dim=64, filters=(32, 64, 128)):
    """Builds a convolutional encoder.

    Args:
        image_shape: tuple `(height, width, channels)`; height and width are multiples of
            `2 ** len(filters)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints, channels at half the image's size, a quarter of it, ….

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)`, float32 in [-1, 1], to a
        list of mean and log of the variance, float32 `(batch, latent_dim)` each.

    Raises:
        ValueError: when height or width cannot be halved that often, or a number is not positive.

    Example:

    >>> vae_encoder((32, 32, 3), latent_dim=8).output_shape
    [(None, 8), (None, 8)]
    """
    check_image_shape(image_shape, filters, latent_dim)
    images = x = keras.Input(image_shape, name="images")  # (b, h, w, channels)
    for level, level_filters in enumerate(filters):
        x = layers.Conv2D(
            level_filters,
            4,
            strides=2,
            padding="same",
            activation="swish",
            kernel_initializer="he_normal",
            name=f"down{level}",
        )(x)  # (b, h/2, w/2, filters[0]), (b, h/4, w/4, filters[1]), …
    x = layers.Flatten(name="features")(x)
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(x)  # (b, latent_dim)
    log_variance = layers.Dense(
        latent_dim, dtype="float32", kernel_initializer="zeros", name="log_variance"
    )(x)  # (b, latent_dim)
    return keras.Model(images, [mean, log_variance], name="vae_encoder")


def vae_decoder(image_shape, latent_dim=64, filters=(32, 64, 128), num_classes=None):
    """Builds a convolutional decoder, the mirror image of `vae_encoder`.

    Args:
        image_shape: tuple `(height, width, channels)`, as in `vae_encoder`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints, channels at half the image's size, a quarter of it, ….
        num_classes: int or None. With classes, the decoder gets the label too: a learned vector
            of `latent_dim` numbers is appended to the code.

    Returns:
        A `keras.Model` from codes `(batch, latent_dim)`, or from `[codes, labels]` with labels
        int32 `(batch,)`, to logits or means `(batch, height, width, channels)`, float32.

    Raises:
        ValueError: as `vae_encoder`.

    Example:

    >>> vae_decoder((32, 32, 3), latent_dim=8).output_shape
    (None, 32, 32, 3)
    """
    height, width = check_image_shape(image_shape, filters, latent_dim, num_classes)
    inputs, x = codes_with_class(latent_dim, num_classes)  # (b, latent_dim), or twice as many
    x = layers.Dense(height * width * filters[-1], activation="swish", name="start")(x)
    x = layers.Reshape((height, width, filters[-1]), name="start_reshape")(x)
    for level in reversed(range(len(filters))):
        x = layers.Conv2DTranspose(
            filters[level],
            4,
            strides=2,
            padding="same",
            activation="swish",
            kernel_initializer="he_normal",
            name=f"up{level}",
        )(x)  # …, (b, h/2, w/2, filters[1]), (b, h, w, filters[0])
    outputs = layers.Conv2D(image_shape[2], 3, padding="same", dtype="float32", name="images")(x)
    return keras.Model(inputs, outputs, name="vae_decoder")
