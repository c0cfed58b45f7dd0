"""VAEs: the bound against what is known exactly, the same steps on every backend, learning."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.generation import VAE, vae_decoder, vae_encoder

POINTS = np.random.default_rng(0).random((20, 6)).astype("float32")
LABELS = np.arange(20) % 3


def point_vae(num_classes=None, **options):
    """A VAE of six numbers, with smooth activations."""
    points = keras.Input((6,))
    x = layers.Dense(8, activation="tanh")(points)
    encoder = keras.Model(points, [layers.Dense(2)(x), layers.Dense(2)(x)])
    codes = keras.Input((2,))
    inputs, x = codes, codes
    if num_classes:
        labels = keras.Input((), dtype="int32")
        inputs = [codes, labels]
        x = layers.Concatenate()([codes, layers.Embedding(num_classes, 2)(labels)])
    x = layers.Dense(8, activation="tanh")(x)
    decoder = keras.Model(inputs, layers.Dense(6)(x))
    vae = VAE(encoder, decoder, num_classes=num_classes, **options)
    ks.initialize(vae, seed=0)
    return vae


class Linear:
    """A Gaussian VAE whose likelihood is known: images of 3 numbers, codes of 2.

    In [-1, 1] an image is y = W z + b + noise of deviation 2 s, so that y is normal with mean b
    and covariance W W' + 4 s**2. The columns of W are orthogonal, so that the codes of an image
    are independent, as the encoder has it.
    """

    W = np.array([[0.5, 0.2], [0.4, -0.1], [0.2, -0.3]])
    b = np.array([0.1, -0.2, 0.0])
    s = 0.1

    @classmethod
    def vae(cls, width=1.0):
        """The encoder is exact if `width`, a factor on its deviations, is 1."""
        assert abs(cls.W[:, 0] @ cls.W[:, 1]) < 1e-12
        variance = 1 / (1 + (cls.W**2).sum(0) / (4 * cls.s**2))
        gain = cls.W / (4 * cls.s**2) * variance  # (3, 2)
        points = keras.Input((3,))
        mean, log_variance = layers.Dense(2), layers.Dense(2)
        encoder = keras.Model(points, [mean(points), log_variance(points)])
        mean.set_weights([gain, -cls.b @ gain])
        log_variance.set_weights([np.zeros((3, 2)), np.log(variance * width**2)])
        codes = keras.Input((2,))
        linear = layers.Dense(3)
        decoder = keras.Model(codes, linear(codes))
        linear.set_weights([cls.W.T, cls.b])
        vae = VAE(encoder, decoder, likelihood="gaussian")
        vae.log_deviation.assign(math.log(cls.s))
        return vae

    @classmethod
    def images(cls, count):
        generator = np.random.default_rng(0)
        y = generator.standard_normal((count, 2)) @ cls.W.T + cls.b
        images = (y + 2 * cls.s * generator.standard_normal((count, 3)) + 1) / 2
        return images[(images.min(1) >= 0) & (images.max(1) <= 1)].astype("float32")

    @classmethod
    def log_likelihood(cls, images):
        covariance = cls.W @ cls.W.T / 4 + cls.s**2 * np.eye(3)
        distance = images - (cls.b + 1) / 2
        mahalanobis = (distance @ np.linalg.inv(covariance) * distance).sum(1)
        return -(mahalanobis + np.linalg.slogdet(2 * math.pi * covariance)[1]) / 2


def test_with_the_exact_encoder_every_bound_is_the_likelihood():
    images = Linear.images(50)
    expected = Linear.log_likelihood(images)
    vae = Linear.vae()
    for num_samples in (1, 3):
        found = vae.importance_weighted_bound(images, num_samples=num_samples, batch_size=16)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    vae.compile()
    repeated = np.repeat(images, 400, axis=0)
    elbo = float(vae.evaluate(repeated, batch_size=4096, verbose=0, return_dict=True)["elbo"])
    assert elbo == pytest.approx(expected.mean(), abs=0.02)


def test_with_another_encoder_more_samples_come_closer_to_the_likelihood():
    images = Linear.images(200)
    exact = Linear.log_likelihood(images).mean()
    vae = Linear.vae(width=2.0)
    one, ten, many = (
        vae.importance_weighted_bound(images, num_samples=n, batch_size=200).mean()
        for n in (1, 10, 400)
    )
    assert one < ten - 0.1 < many - 0.1
    assert many == pytest.approx(exact, abs=0.02)
    # The ELBO, with its second term exact, is what one sample gives on average: below by the
    # divergence between the encoder and the truth, 2 * (log(1/2) + (4 - 1) / 2) here.
    vae.compile()
    repeated = np.repeat(images, 100, axis=0)
    elbo = float(vae.evaluate(repeated, batch_size=4096, verbose=0, return_dict=True)["elbo"])
    assert elbo == pytest.approx(exact - (3 - 2 * math.log(2)), abs=0.03)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_terms_are_those_of_the_paper(likelihood):
    vae = point_vae(likelihood=likelihood, beta=3.0)
    vae.compile(run_eagerly=True)
    logs = vae.test_on_batch(POINTS, return_dict=True)
    mean, log_variance = (ops.convert_to_numpy(x) for x in vae(POINTS))
    kl = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1) / 2
    normal = ks.generation.noise.normal(("codes of tests", 0), 0, (20, 2))
    codes = mean + np.exp(log_variance / 2) * ops.convert_to_numpy(normal)
    outputs = backend.infer(vae.decoder, codes)
    if likelihood == "bernoulli":
        p = 1 / (1 + np.exp(-outputs))
        nats = -(POINTS * np.log(p) + (1 - POINTS) * np.log(1 - p)).sum(1)
        levels = 1
    else:
        s = 0.25
        nats = ((POINTS - (outputs + 1) / 2) ** 2 / (2 * s**2)).sum(1)
        nats += 6 * math.log(s * math.sqrt(2 * math.pi))
        levels = 256
    expected = {
        "kl": kl.mean(),
        "reconstruction": nats.mean(),
        "elbo": -(nats + kl).mean(),
        "loss": (nats + 3 * kl).mean(),
        "bits_per_dimension": (nats + kl).mean() / 6 / math.log(2) + math.log2(levels),
    }
    assert set(logs) == set(expected)
    for name, value in expected.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-4), name


def test_the_learned_deviation_stops_at_one_level():
    vae = point_vae(likelihood="gaussian")
    images, means = ops.convert_to_tensor(POINTS), ops.convert_to_tensor(2 * POINTS - 1)
    found = []
    for deviation in (1 / 256, 1e-9):
        vae.log_deviation.assign(math.log(deviation))
        found.append(ops.convert_to_numpy(vae.log_likelihood(images, means)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    expected = 6 * math.log(256 / math.sqrt(2 * math.pi))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "likelihood, expected",
    [
        ("bernoulli", [89.30298, 88.06152, 86.41440, 83.13972, 82.66279]),
        ("gaussian", [55.11959, 49.51205, 43.71274, 34.03589, 27.68646]),
    ],
)
def test_twenty_steps_are_the_same_on_every_backend(likelihood, expected):
    encoder = vae_encoder((8, 8, 2), latent_dim=3, filters=(4, 8))
    decoder = vae_decoder((8, 8, 2), latent_dim=3, filters=(4, 8))
    vae = VAE(encoder, decoder, likelihood)
    ks.initialize(vae, seed=0)
    vae.compile(keras.optimizers.Adam(5e-3))
    images = np.random.default_rng(0).random((20, 6, 8, 8, 2)).astype("float32") ** 2
    found = []
    for batch in images:
        vae.reset_metrics()
        found.append(float(vae.train_on_batch(batch, return_dict=True)["loss"]))
    np.testing.assert_allclose([found[i] for i in (0, 4, 9, 14, 19)], expected, rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_small_set_is_learned(likelihood):
    """Four points, two of each of two classes."""
    targets = np.array([[0.9] * 3 + [0.1] * 3, [0.1] * 3 + [0.9] * 3], "float32")
    targets = np.concatenate([targets, targets[:, ::-1] ** 2])
    labels = np.array([0, 0, 1, 1])
    vae = point_vae(num_classes=2, likelihood=likelihood)
    vae.compile(keras.optimizers.Adam(0.03))
    which = np.arange(32) % 4
    before = float(vae.test_on_batch(targets[which], labels[which], return_dict=True)["elbo"])
    for _ in range(120):
        vae.train_on_batch(targets[which], labels[which])
    vae.reset_metrics()
    after = float(vae.test_on_batch(targets[which], labels[which], return_dict=True)["elbo"])
    assert after > before + 1
    found = vae.reconstruct(targets, labels)
    assert np.abs(found - targets).max() < 0.2
    assert vae.generate(5).shape == (5, 6)


def test_a_saved_vae_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, first = (point_vae(3, likelihood="gaussian", beta=2.0) for _ in range(2))
    for vae, epochs in ((whole, 3), (first, 2)):
        vae.compile(keras.optimizers.SGD(0.01, momentum=0.9))
        vae.fit(POINTS, LABELS, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    backend.save_model(first, tmp_path / "vae.keras")
    second = keras.models.load_model(tmp_path / "vae.keras", safe_mode=True)
    assert second.beta == 2.0 and second.likelihood == "gaussian"
    second.fit(POINTS, LABELS, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for x, y in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole.generate(4), second.generate(4), rtol=1e-5)


def test_evaluation_is_repeatable_and_does_not_depend_on_the_batches():
    vae = point_vae()
    vae.compile()
    found = [
        vae.evaluate(POINTS, batch_size=size, verbose=0, return_dict=True) for size in (20, 7, 7)
    ]
    for name in ("elbo", "reconstruction", "kl", "bits_per_dimension", "loss"):
        for other in found[1:]:
            assert float(found[0][name]) == pytest.approx(float(other[name]), rel=1e-5), name


def test_codes_and_images_both_ways():
    vae = point_vae(likelihood="gaussian")
    codes = vae.encode(POINTS, batch_size=8)
    assert codes.shape == (20, 2) and codes.dtype == np.float32
    np.testing.assert_allclose(codes, ops.convert_to_numpy(vae(POINTS)[0]), rtol=1e-5, atol=1e-6)
    expected = np.clip((backend.infer(vae.decoder, codes) + 1) / 2, 0, 1)
    np.testing.assert_allclose(vae.reconstruct(POINTS), expected, rtol=1e-5, atol=1e-6)
    images = vae.interpolate(codes[:2], codes[2:4], num_steps=3)
    assert images.shape == (2, 3, 6)
    np.testing.assert_allclose(images[:, 0], expected[:2], rtol=1e-5, atol=1e-6)
    bytes_ = np.random.default_rng(1).integers(0, 256, (3, 6)).astype("uint8")
    np.testing.assert_allclose(
        vae.encode(bytes_), vae.encode((bytes_ / 255).astype("float32")), rtol=1e-5, atol=1e-6
    )


def test_the_bound_of_a_class_uses_its_decoder():
    vae = point_vae(num_classes=3)
    found = [
        vae.importance_weighted_bound(POINTS[:4], labels=[label] * 4, num_samples=2)
        for label in (0, 1)
    ]
    assert np.abs(found[0] - found[1]).min() > 1e-3
    with pytest.raises(ValueError, match="needs the labels"):
        vae.importance_weighted_bound(POINTS[:4])


def test_networks_that_do_not_fit_are_refused():
    vae = point_vae()
    with pytest.raises(ValueError, match="likelihood is 'laplace', expected one of 'bernoulli'"):
        VAE(vae.encoder, vae.decoder, "laplace")
    with pytest.raises(ValueError, match="beta is -1"):
        VAE(vae.encoder, vae.decoder, beta=-1)
    with pytest.raises(ValueError, match="two outputs"):
        VAE(keras.Sequential([keras.Input((6,)), layers.Dense(2)]), vae.decoder)
    with pytest.raises(ValueError, match=r"makes images \(6,\); expected an encoder"):
        VAE(vae_encoder((8, 8, 1), 2, (4,)), vae.decoder)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        vae.encode(POINTS + 1)


def test_the_builders_fit_together_at_every_size():
    for size in (28, 32, 64):
        filters = (4, 8)
        vae = VAE(
            vae_encoder((size, size, 3), 5, filters),
            vae_decoder((size, size, 3), 5, filters, num_classes=2),
            num_classes=2,
        )
        assert vae.latent_dim == 5 and vae.image_shape == (size, size, 3)
        assert vae.generate(2).shape == (2, size, size, 3)
    with pytest.raises(ValueError, match="multiples of 8; found image_shape=\\(28, 28, 1\\)"):
        vae_encoder((28, 28, 1))
