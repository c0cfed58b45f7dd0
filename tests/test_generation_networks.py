"""Networks of GANs: sizes, weights, parity; spectral normalization; noise inside a graph."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.generation import (
    dcgan_discriminator,
    dcgan_generator,
    noise,
    sngan_discriminator,
    sngan_generator,
)
from keras_segen.layers import SpectralNormalization

SMALL = (4, 8)


def pair(kind, shape=(8, 8, 2), num_classes=None):
    if kind == "dcgan":
        return (
            dcgan_generator(shape, 5, SMALL, num_classes),
            dcgan_discriminator(shape, SMALL, num_classes),
        )
    return (
        sngan_generator(shape, 5, SMALL, num_classes),
        sngan_discriminator(shape, (4, 4, 8), num_classes),
    )


@pytest.mark.parametrize("size, levels", [(28, 2), (32, 3), (64, 4), (128, 5)])
def test_dcgan_fits_every_size_by_itself(size, levels):
    generator = dcgan_generator((size, size, 1))
    discriminator = dcgan_discriminator((size, size, 1))
    assert generator.input_shape == (None, 100)
    assert generator.output_shape == discriminator.input_shape == (None, size, size, 1)
    assert discriminator.output_shape == (None, 1)
    start = generator.get_layer("start_reshape").output.shape[1:]
    assert start == (size // 2**levels, size // 2**levels, min(64 * 2 ** (levels - 1), 512))


def test_dcgan_has_the_parameters_of_the_authors_code():
    """Known from PyTorch's port of it, which has no biases: 64 pixels, 64 channels, RGB."""

    def trainable(model):
        return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)

    assert trainable(dcgan_generator((64, 64, 3))) == 3_576_704 + 3
    assert trainable(dcgan_discriminator((64, 64, 3))) == 2_765_568 + 64 + 1


def test_dcgan_starts_at_the_paper_s_weights():
    model = dcgan_generator((32, 32, 3))
    ks.initialize(model, seed=0)
    for weight in model.trainable_weights:
        value = ops.convert_to_numpy(weight)
        if weight.name == "kernel":
            assert value.std() == pytest.approx(0.02, rel=0.05)
            assert abs(value.mean()) < 1e-3
        elif weight.name == "gamma":
            assert value.std() == pytest.approx(0.02, rel=0.3)
            assert value.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["dcgan", "sngan"])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_every_weight_learns_and_comes_back_from_disk(kind, num_classes, tmp_path):
    networks = pair(kind, num_classes=num_classes)
    gan = ks.generation.GAN(*networks, num_classes=num_classes)
    ks.initialize(gan, seed=0)
    gan.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
    images = np.random.default_rng(0).random((6, 8, 8, 2)).astype("float32")
    labels = None if num_classes is None else np.arange(6) % 3
    weights = gan.generator.trainable_weights + gan.discriminator.trainable_weights
    before = [ops.convert_to_numpy(weight).copy() for weight in weights]
    gan.train_on_batch(images, labels)
    for weight, old in zip(weights, before, strict=True):
        assert np.abs(ops.convert_to_numpy(weight) - old).max() > 0, weight.path
    backend.save_model(gan, tmp_path / "gan.keras")
    loaded = keras.models.load_model(tmp_path / "gan.keras", safe_mode=True)
    np.testing.assert_array_equal(gan.generate(3), loaded.generate(3))


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("dcgan", [0.0040022, 0.1346909, 0.109789, 0.0030253, -0.0000592, 0.0016715, -0.0315698]),
        (
            "sngan",
            [-0.0405967, 0.3154534, 0.5797096, 0.1860082, -0.0028113, -0.2137372, -0.0957449],
        ),
    ],
    ids=["dcgan", "sngan"],
)
def test_the_same_images_and_scores_on_every_backend(kind, expected):
    generator, discriminator = pair(kind, num_classes=3)
    ks.initialize(generator, seed=0)
    ks.initialize(discriminator, seed=1)
    if kind == "dcgan":  # its first weights are so small that nothing comes through
        for weight in generator.trainable_weights + discriminator.trainable_weights:
            if weight.name == "kernel":
                weight.assign(weight * 10)
    codes = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    labels = np.arange(3, dtype="int32")
    images = backend.infer(generator, [codes, labels])
    scores = backend.infer(discriminator, [images, labels])
    found = [images.mean(), images.std(), *images[1, 3, 4], *scores[:, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert images.dtype == scores.dtype == np.float32


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: dcgan_generator((30, 32, 3), filters=(4, 8)), "multiples of 4; found .*30, 32"),
        (lambda: dcgan_discriminator((32, 32)), r"image_shape is \(height, width, channels\)"),
        (lambda: dcgan_discriminator((32, 32, 3), filters=(8, 0)), "filters is a tuple of pos"),
        (lambda: sngan_generator((32, 32, 3), filters=(8,) * 6), "multiples of 64"),
        (lambda: sngan_discriminator((32, 32, 3), filters=(8,)), "at least two blocks"),
        (lambda: sngan_discriminator((30, 32, 3), filters=(8, 8)), "multiples of 4"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "layer, inputs",
    [
        (layers.Dense(6, use_bias=False), np.eye(4, dtype="float32")),
        (layers.Embedding(4, 6), np.arange(4)),
    ],
    ids=["dense", "embedding"],
)
def test_spectral_normalization_divides_by_the_largest_singular_value(layer, inputs):
    wrapped = SpectralNormalization(layer)
    wrapped.build(inputs.shape)
    kernel = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    layer.set_weights([kernel])
    before = ops.convert_to_numpy(wrapped.vector_u).copy()
    wrapped(inputs)
    np.testing.assert_array_equal(before, ops.convert_to_numpy(wrapped.vector_u))
    for _ in range(100):
        outputs = wrapped(inputs, training=True)
    expected = kernel / np.linalg.svd(kernel)[1][0]
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.get_weights()[0], kernel)  # itself left alone
    assert np.abs(before - ops.convert_to_numpy(wrapped.vector_u)).max() > 1e-3


def test_the_gradient_goes_through_the_division():
    """Growing the kernel as a whole changes nothing: the gradient along it is 0."""
    wrapped = SpectralNormalization(layers.Dense(3, use_bias=False))
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(5, 4)).astype("float32"))
    wrapped.build(x.shape)
    optimizer = keras.optimizers.SGD(1.0)
    kernel = wrapped.layer.kernel
    for _ in range(50):
        wrapped(x, training=True)
    before = ops.convert_to_numpy(kernel).copy()
    optimizer.build([kernel])
    backend.minimize(lambda: (ops.sum(wrapped(x, training=True) ** 2), None), [kernel], optimizer)
    step = ops.convert_to_numpy(kernel) - before
    assert np.abs(step).max() > 0.1
    assert abs((step * before).sum()) < 1e-3 * np.linalg.norm(step) * np.linalg.norm(before)


def test_noise_is_standard_normal():
    z = ops.convert_to_numpy(noise.normal(("test", 0), 0, (50_000, 6)))
    assert z.dtype == np.float32 and z.shape == (50_000, 6)
    assert abs(z.mean()) < 0.01 and z.std() == pytest.approx(1, abs=0.01)
    assert (z**4).mean() == pytest.approx(3, abs=0.05)
    assert np.abs(np.corrcoef(z.T) - np.eye(6)).max() < 0.02
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.05, abs=0.002)


def test_noise_is_a_function_of_key_step_and_row():
    z = ops.convert_to_numpy(noise.normal(("test", 0), 4, (9, 5)))
    expected = [-0.9937181, 0.0874514, -0.951901, 0.0501759, 0.3666715]
    np.testing.assert_allclose(z[0], expected, rtol=1e-5)
    part = ops.convert_to_numpy(noise.normal(("test", 0), 4, (3, 5), first_row=6))
    np.testing.assert_allclose(part, z[6:], rtol=1e-6)
    others = [(("test", 1), 4), (("test", 0), 5), (("other", 0), 4)]
    for key, step in others:
        other = ops.convert_to_numpy(noise.normal(key, step, (9, 5)))
        assert np.abs(other - z).min() > 0
    u = ops.convert_to_numpy(noise.uniform(("test", 0), 4, (1000, 1)))
    assert u.shape == (1000, 1) and 0 < u.min() < u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.03)
