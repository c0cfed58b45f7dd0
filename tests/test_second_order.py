"""The gradient of a penalty on a slope, through every layer of our networks."""

import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.compare.layerwise.record import computing_in, copy_in
from keras_segen.generation import (
    dcgan_discriminator,
    stylegan2_discriminator,
    stylegan2_generator,
)
from keras_segen.generation.adversarial import R1, GradientPenalty, PathLength
from keras_segen.generation.diffaugment import diffaugment
from keras_segen.layers import SpectralNormalization

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="PyTorch differentiates these twice"
)


def numbers(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


class KeepsGradients:
    """In place of an optimizer: moves nothing, and keeps the gradients."""

    def scale_loss(self, loss):
        return loss

    def apply(self, gradients, variables):
        self.gradients = gradients


def gradients_and_differences(penalty, variables, step=1e-5):
    """Slopes of a penalty in one direction of each variable: by gradient, and by differences."""

    def value(variable, moved):
        variable.assign(moved)
        return float(ops.convert_to_numpy(penalty()))

    kept = KeepsGradients()
    backend.minimize(lambda: (penalty(), []), variables, kept)
    pairs = []
    for index, (variable, gradient) in enumerate(zip(variables, kept.gradients, strict=True)):
        here = ops.convert_to_numpy(variable).copy()
        direction = numbers(index, here.shape)
        slope = 0.0 if gradient is None else np.sum(ops.convert_to_numpy(gradient) * direction)
        ahead, behind = (value(variable, here + s * direction) for s in (step, -step))
        variable.assign(here)
        pairs.append((float(slope), (ahead - behind) / (2 * step)))
    return np.array(pairs).T


def assert_slopes(penalty, variables, step=1e-6):
    """Holds a gradient to finite differences, all variables moved at once, in three directions."""
    kept = KeepsGradients()
    backend.minimize(lambda: (penalty(), []), variables, kept)
    here = [ops.convert_to_numpy(variable).copy() for variable in variables]
    for number in range(3):
        directions = [numbers(100 * number + i, x.shape) for i, x in enumerate(here)]
        found, values = 0.0, []
        for gradient, direction in zip(kept.gradients, directions, strict=True):
            found += np.sum(ops.convert_to_numpy(gradient) * direction)
        for sign in (1, -1):
            for variable, x, direction in zip(variables, here, directions, strict=True):
                variable.assign(x + sign * step * direction)
            values.append(float(ops.convert_to_numpy(penalty())))
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-5
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def assert_second_order(network, images, variables):
    """Holds the gradient of R1 to finite differences, in float64.

    The score is a weighted sum of the squares of what the network puts out.
    """
    images = ops.convert_to_tensor(images, "float64")
    weights = ops.convert_to_tensor(numbers(1, network(images).shape), "float64")

    def penalty():
        with keras.StatelessScope():  # what training moves, such as averages, stays
            return R1(1.0)(lambda x: weights * network(x) ** 2, images, step=0)[1]

    found, expected = gradients_and_differences(penalty, variables)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())


def network_of(layer):
    """A layer behind a curved one, so that the gradient also has to pass it."""
    images = keras.Input((4, 4, 2), dtype="float64")
    x = layers.Conv2D(4, 1, activation="tanh", dtype="float64")(images)
    network = keras.Model(images, layer(x))
    for index, weight in enumerate(network.weights):
        weight.assign(np.abs(numbers(10 + index, weight.shape)))
    return network


def exact(layer, *arguments, **named):
    return lambda: layer(*arguments, **named, dtype="float64")


def spectral(layer, *arguments):
    return SpectralNormalization(layer(*arguments, dtype="float64"), dtype="float64")


def settle(layer, kernel):
    """Gives a spectral normalization the singular vector that power iteration tends to."""
    kernel = ops.convert_to_numpy(kernel)
    layer.vector_u.assign(np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[2][:1])


LAYERS = {
    "conv": exact(layers.Conv2D, 3, 3, padding="same"),
    "conv_strided": exact(layers.Conv2D, 3, 4, strides=2, padding="same"),
    "conv_valid": exact(layers.Conv2D, 3, 3, padding="valid"),
    "conv_transpose": exact(layers.Conv2DTranspose, 3, 4, strides=2, padding="same"),
    "conv_transpose_2": exact(layers.Conv2DTranspose, 3, 2, strides=2),
    "depthwise": exact(layers.DepthwiseConv2D, 3, padding="same"),
    "depthwise_strided": exact(layers.DepthwiseConv2D, 3, strides=2, padding="same"),
    "separable": exact(layers.SeparableConv2D, 3, 3, padding="same"),
    "dense": exact(layers.Dense, 3),
    "batch_norm": exact(layers.BatchNormalization),
    "group_norm": exact(layers.GroupNormalization, 2),
    "layer_norm": exact(layers.LayerNormalization),
    "relu": exact(layers.ReLU),
    "relu6": exact(layers.ReLU, 1.0),
    "leaky_relu": exact(layers.LeakyReLU, 0.2),
    "tanh": exact(layers.Activation, "tanh"),
    "sigmoid": exact(layers.Activation, "sigmoid"),
    "swish": exact(layers.Activation, "swish"),
    "softplus": exact(layers.Activation, "softplus"),
    "average_pooling": exact(layers.AveragePooling2D, 2),
    "max_pooling": exact(layers.MaxPooling2D, 2),
    "global_average": exact(layers.GlobalAveragePooling2D),
    "upsampling": exact(layers.UpSampling2D, 2),
    "padding": exact(layers.ZeroPadding2D, ((0, 1), (1, 0))),
    "flatten": exact(layers.Flatten),
    "reshape": exact(layers.Reshape, (8, 8)),
    "rescaling": exact(layers.Rescaling, 2.0, 1.0),
    "spectral_conv": lambda: spectral(layers.Conv2D, 3, 3),
    "spectral_dense": lambda: spectral(layers.Dense, 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_a_slope_is_right_through_a_layer(name):
    with backend.double_precision():
        network = network_of(LAYERS[name]())
        if "spectral" in name:
            settle(network.layers[-1], network.layers[-1].layer.kernel)
        assert_second_order(
            lambda x: network(x, training=True),
            numbers(0, (3, 4, 4, 2)),
            network.trainable_variables,
        )


def test_the_gradient_of_a_slope_is_right_through_averages_of_batch_normalization():
    images = numbers(0, (3, 4, 4, 2))
    with backend.double_precision():
        network = network_of(layers.BatchNormalization(dtype="float64"))
        for trainable, training in ((True, False), (False, True)):
            network.layers[-1].trainable = trainable
            assert_second_order(
                lambda x, training=training: network(x, training=training),
                images,
                network.trainable_variables,
            )


def test_the_gradient_of_a_slope_is_right_where_images_meet_classes():
    """The score of a projection: an inner product with the vector of a class."""
    with backend.double_precision():
        images, labels = keras.Input((6,), dtype="float64"), keras.Input((), dtype="int32")
        features = layers.Dense(4, activation="tanh", dtype="float64")(images)
        embedding = spectral(layers.Embedding, 3, 4)
        match = layers.Dot(1, dtype="float64")([features, embedding(labels)])
        scores = layers.Add(dtype="float64")([layers.Dense(1, dtype="float64")(features), match])
        joined = layers.Concatenate(dtype="float64")([scores, features])
        network = keras.Model([images, labels], joined)
        settle(embedding, embedding.layer.embeddings)
        classes = ops.convert_to_tensor([0, 2, 1, 2], "int32")
        assert_second_order(
            lambda x: network([x, classes], training=True),
            numbers(0, (4, 6)),
            network.trainable_variables,
        )


@pytest.mark.parametrize("kind", ["r1", "gradient_penalty"])
def test_the_gradient_of_a_penalty_of_dcgan_is_right(kind):
    """Batch normalization in training, twice."""
    network = dcgan_discriminator((16, 16, 3), (4, 8, 16))
    ks.initialize(network, seed=0)
    with backend.double_precision():
        network = copy_in(network, "float64")
        real, fake = (ops.convert_to_tensor(numbers(i, (6, 16, 16, 3)), "float64") for i in (0, 1))

        def discriminate(images):
            return network(images, training=True)

        def penalty():
            with keras.StatelessScope():
                if kind == "r1":
                    return R1(1.0)(discriminate, real, step=0)[1]
                return GradientPenalty(1.0)(discriminate, real, fake, step=0)

        found, expected = gradients_and_differences(penalty, network.trainable_variables, step=1e-6)
    moved = np.abs(expected) > 1e-9
    assert moved.sum() == len(moved) - 2  # the last two shifts change no slope
    np.testing.assert_allclose(found[moved], expected[moved], rtol=1e-5)
    np.testing.assert_allclose(found[~moved], 0, atol=1e-12)


RESIZES = {
    "UpSampling2D": lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x),
    "Resizing": lambda x: layers.Resizing(6, 6)(x),
    "resize_of_ops": lambda x: ops.image.resize(x, (6, 6), antialias=True),
}


@on_tensorflow
@pytest.mark.parametrize("name", RESIZES)
def test_a_slope_through_a_resized_image_is_refused(name):
    images = keras.Input((4, 4, 2))
    network = keras.Model(images, RESIZES[name](images))
    x = numbers(0, (2, 4, 4, 2)).astype("float32")
    with pytest.raises(ValueError, match="no second derivative of a resized image") as error:
        backend.input_gradient(network, x)
    assert name == "resize_of_ops" or name in str(error.value)
    assert network(x).shape[0] == 2  # outside a penalty all is as before


@on_tensorflow
def test_tensorflow_is_left_as_it_was_however_slopes_overlap():
    """In two threads: the first to begin ends first. What others compute meanwhile is stock."""
    nn = keras.src.backend.tensorflow.nn.tf.nn
    stock = nn.moments
    begun, may_end, seen = threading.Event(), threading.Event(), []

    def first(x):
        begun.set()
        may_end.wait(10)
        return x * x

    def second(x):
        may_end.set()
        thread.join(10)
        seen.append(nn.moments)
        return x * x

    x = ops.ones((2, 2))
    thread = threading.Thread(target=backend.input_gradient, args=(first, x))
    thread.start()
    begun.wait(10)
    resized = ops.image.resize(ops.ones((1, 4, 4, 1)), (2, 2))
    backend.input_gradient(second, x)
    assert resized.shape == (1, 2, 2, 1)
    assert seen[0] is not stock and nn.moments is stock
    with pytest.raises(ZeroDivisionError):
        backend.input_gradient(lambda x: x / (1 // 0), x)
    assert nn.moments is stock


def in_float64(network):
    """A copy in float64, whose weights all have an ordinary size."""
    network = copy_in(network, "float64")
    for index, weight in enumerate(network.weights):
        weight.assign(numbers(10 + index, weight.shape))
    return network


def test_the_gradient_of_a_path_length_is_right():
    """Down to the mapping network: the slope is not cut off from what made the styles."""
    with computing_in("float64"):
        generator = in_float64(stylegan2_generator((4, 4, 2), 3, (2, 2), mapping_layers=1))
        mapping, synthesis = (generator.get_layer(name) for name in ("mapping", "synthesis"))
        shapes = (4, 3), (2, synthesis.inputs[1].shape[1]), (2, 4, 4, 2)
        codes, noise, directions = (
            ops.convert_to_tensor(numbers(i, shape)) for i, shape in enumerate(shapes)
        )
        first = ops.convert_to_tensor([[[True]] * 2 + [[False]] * 2] * 2)

        def penalty():
            w = mapping(codes)[:, None]
            styles = ops.where(first, w[:2], w[2:])  # two codes for each image
            return PathLength(2.0).penalty(
                lambda styles: synthesis([styles, noise]), styles, directions, 0.5
            )[0]

        for part in (mapping, synthesis):
            assert_slopes(penalty, part.trainable_variables)


def test_the_gradient_of_r1_is_right_through_an_augmented_batch():
    """Of StyleGAN2's discriminator, which compares the images of a batch."""
    with computing_in("float64"):
        network = in_float64(stylegan2_discriminator((4, 4, 2), (2, 2)))
        images = ops.convert_to_tensor(10 * numbers(0, (4, 4, 4, 2)))

        def penalty():
            scores, r1 = R1(1.0).penalty(
                lambda x: network(diffaugment(x, ("test", 0), step=0)), images
            )
            return r1 + 0 * ops.mean(scores)

        assert_slopes(penalty, network.trainable_variables)
