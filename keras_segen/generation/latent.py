"""Models that decode a code to an image: what GAN and VAE share."""

import keras
import numpy as np
from keras import ops

from keras_segen import backend
from keras_segen.determinism import rng
from keras_segen.generation import noise
from keras_segen.networks import Composite


class LatentModel(Composite):
    """Decodes codes, vectors of `latent_dim` standard normal numbers, to images.

    Users see images as float32 in [0, 1] or as uint8; the networks see [-1, 1].

    Args:
        decoder: a `keras.Model` from codes `(batch, latent_dim)` to images `(batch, …)` in
            [-1, 1]; with `num_classes` from `[codes, labels]`, labels int32 `(batch,)`.
        num_classes: int or None, the number of classes of a conditional model.
        seed: int, for the noise in training.

    Attributes:
        latent_dim: int.
        image_shape: tuple, shape of an image.
        step: int64 variable, the number of training steps taken.

    Raises:
        ValueError: when the decoder takes other inputs.
    """

    def __init__(self, decoder, num_classes, seed, name):
        super().__init__(name=name)
        expected = "codes (batch, latent_dim)"
        if num_classes is not None:
            expected = "[codes (batch, latent_dim), labels (batch,)]"
        check_inputs(decoder, expected, conditional=num_classes is not None)
        self.latent_dim = decoder.inputs[0].shape[-1]
        self.image_shape = tuple(decoder.output_shape[1:])
        self.num_classes = num_classes
        self.seed = seed
        self.step_initializer = "zeros"
        self.step = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, name="step"
        )

    @property
    def float_dtype(self):
        """What losses are computed in: float32, or float64 where a comparison copies the model."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    def random_codes(self, count, seen=None):
        """Draws the codes of a batch: a standard normal tensor `(count, latent_dim)`.

        Args:
            count: integer, a number or a tensor.
            seen: None in training, where they depend on the step; else the number of images that
                this evaluation has seen before.
        """
        name, step, first_row = "codes", self.step, 0
        if seen is not None:
            name, step, first_row = "codes of tests", 0, seen
        shape = (count, self.latent_dim)
        return noise.normal((name, self.seed), step, shape, first_row, self.float_dtype)

    def decoded(self, inputs, training=False):
        """Decodes codes, or `[codes, labels]`, to images in [0, 1]: tensors to a float32 tensor."""
        raise NotImplementedError

    def join(self, first, labels):
        """Returns the input of a network: `first`, or `[first, labels]` if there are classes."""
        return first if self.num_classes is None else [first, labels]

    def check_images(self, images):
        """Checks images and scales them to [-1, 1], as the networks take them.

        Args:
            images: float in [0, 1] or uint8 `(batch, …)`.

        Returns:
            float32 in [-1, 1].

        Raises:
            ValueError: when shape, type or range do not fit. (For the range in a compiled
                TensorFlow graph: `tf.errors.InvalidArgumentError`.)
        """
        images = self.as_floats(images)
        place = np if isinstance(images, np.ndarray) else ops
        in_range = place.logical_and(place.min(images) >= 0, place.max(images) <= 1)
        backend.check(
            ops.convert_to_tensor(in_range),
            "Images are floats in [0, 1] or uint8 in 0..255; found floats outside [0, 1]. "
            "Divide by 255, or undo a scaling to [-1, 1].",
        )
        return ops.convert_to_tensor(2 * images - 1)

    def as_floats(self, images):
        """Converts images to float32 in [0, 1]; checks shape and type as `check_images` does.

        NumPy arrays stay NumPy arrays: several times as fast as eager TensorFlow.
        """
        array = isinstance(images, np.ndarray)
        images = images if array else ops.convert_to_tensor(images)
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"{self.name} makes images of shape {self.image_shape}; found a batch of shape "
                f"{tuple(images.shape)}."
            )
        found = keras.backend.standardize_dtype(images.dtype)
        if found != "uint8" and "float" not in found:
            raise ValueError(f"Images are floats in [0, 1] or uint8; found {found}.")
        dtype = self.float_dtype
        floats = images.astype(dtype, copy=False) if array else ops.cast(images, dtype)
        return floats / 255 if found == "uint8" else floats

    def check_labels(self, labels):
        """Checks labels `(batch,)` as `check_images` does: int32, or None without classes."""
        if self.num_classes is None:
            return None
        if labels is None:
            raise ValueError(
                f"{self.name} has {self.num_classes} classes and needs the labels of the images, "
                "such as fit(images, labels)."
            )
        labels = ops.convert_to_tensor(labels)
        if "int" not in keras.backend.standardize_dtype(labels.dtype):
            raise ValueError(f"Labels are integers (batch,); found {labels.dtype}.")
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        backend.check(
            ops.logical_and(ops.min(labels) >= 0, ops.max(labels) < self.num_classes),
            f"Labels must be in 0..{self.num_classes - 1}; found others.",
        )
        return labels

    def decode(self, codes, labels=None, batch_size=64):
        """Decodes codes to images.

        Args:
            codes: float array `(count, latent_dim)`.
            labels: integers `(count,)`, or one for all; needed if there are classes.
            batch_size: int, how many are decoded at once.

        Returns:
            float32 array `(count, …)` in [0, 1].

        Raises:
            ValueError: when codes or labels do not fit.
        """
        codes = np.asarray(codes, "float32")
        if codes.ndim != 2 or codes.shape[1] != self.latent_dim:
            raise ValueError(
                f"Codes have the shape (count, {self.latent_dim}); found {codes.shape}."
            )
        return self.in_batches("decoded", codes, labels, batch_size)

    def in_batches(self, method, inputs, labels, batch_size, prepare=lambda batch: batch):
        """Makes images by a method of the model, a batch at a time.

        Args:
            method: name of one that takes what `join` returns, and makes images in [0, 1].
            inputs: array `(count, …)`.
            labels: as in `decode`.
            batch_size: int.
            prepare: called with each batch of inputs.

        Returns:
            float32 array `(count, …)` in [0, 1].

        Raises:
            ValueError: when the labels do not fit.
        """
        if self.num_classes is not None:
            if labels is None:
                raise ValueError(f"The model has {self.num_classes} classes: choose with labels=….")
            labels = np.broadcast_to(np.asarray(labels), (len(inputs),)).astype("int32")
            if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
                raise ValueError(
                    f"Labels must be in 0..{self.num_classes - 1}; found {np.unique(labels)}."
                )
        elif labels is not None:
            raise ValueError(f"{self.name} was built without num_classes and takes no labels.")

        def make(part):
            batch = prepare(inputs[part]), labels if labels is None else labels[part]
            return backend.infer(self, self.join(*batch), method)

        if 0 < len(inputs) <= batch_size:
            return make(slice(None))
        images = np.empty((len(inputs), *self.image_shape), "float32")
        for start in range(0, len(inputs), batch_size):
            part = slice(start, start + batch_size)
            images[part] = make(part)
        return images

    def generate(self, count, labels=None, seed=0, batch_size=64):
        """Makes new images.

        Args:
            count: int.
            labels: integers `(count,)`, or one for all. If there are classes, None gives them in
                turn: 0, 1, 2, ….
            seed: int; image k of a seed is the same for every `count` and `batch_size`.
            batch_size: int, how many are made at once.

        Returns:
            float32 array `(count, …)` in [0, 1].
        """
        if labels is None and self.num_classes is not None:
            labels = np.arange(count) % self.num_classes
        return self.decode(self.draw_codes(count, seed), labels, batch_size)

    def draw_codes(self, count, seed=0):
        """Draws the codes that `generate` uses: float32 `(count, latent_dim)`."""
        return rng("generate", seed).standard_normal((count, self.latent_dim)).astype("float32")

    def interpolate(self, first, second, num_steps=8, labels=None):
        """Decodes codes between two given ones.

        Interpolation is spherical: the direction turns at a constant rate, and the length changes
        linearly. A straight line would pass through codes shorter than any that were drawn.

        Args:
            first, second: codes, float arrays `(count, latent_dim)`.
            num_steps: int, images per pair, both ends included; at least 2.
            labels: integers `(count,)`, or one for all; needed if there are classes.

        Returns:
            float32 array `(count, num_steps, …)` in [0, 1].

        Raises:
            ValueError: when codes or labels do not fit.
        """
        first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
        if first.shape != second.shape or num_steps < 2:
            raise ValueError(
                "interpolate() needs two arrays of codes of the same shape and num_steps of at "
                f"least 2; found {first.shape}, {second.shape} and num_steps={num_steps}."
            )
        share = np.linspace(0, 1, num_steps)[None, :, None]  # (1, num_steps, 1)
        codes = great_circle(first[:, None], second[:, None], share)
        if labels is not None:
            labels = np.repeat(np.broadcast_to(labels, (len(first),)), num_steps)
        images = self.decode(codes.reshape(-1, self.latent_dim), labels)
        return images.reshape(len(first), num_steps, *self.image_shape)


def great_circle(first, second, share):
    """Spherical interpolation: arrays `(…, dim)`, `share` in [0, 1], 0 at `first`."""
    lengths = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second)]
    a, b = first / np.maximum(lengths[0], 1e-12), second / np.maximum(lengths[1], 1e-12)
    angle = np.arccos(np.clip((a * b).sum(-1, keepdims=True), -1, 1))
    straight = np.sin(angle) < 1e-6  # same or opposite direction: no unique great circle
    divisor = np.where(straight, 1, np.sin(angle))
    turned = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / divisor
    turned = turned * ((1 - share) * lengths[0] + share * lengths[1])
    return np.where(straight, (1 - share) * first + share * second, turned)


def check_inputs(network, expected, conditional):
    """Checks that a network takes one input, or two if it is conditional.

    Raises:
        ValueError: when it does not, or is not built.
    """
    if not network.built:
        raise ValueError(f"{network.name!r} is not built: start it with a keras.Input.")
    shapes = [tuple(x.shape) for x in network.inputs]
    if len(shapes) != 1 + conditional or (conditional and len(shapes[1]) != 1):
        raise ValueError(
            f"Expected {network.name!r} to take {expected}; it takes "
            f"{shapes[0] if len(shapes) == 1 else shapes}. num_classes is for networks that take "
            "labels, and must be given to them and here."
        )
