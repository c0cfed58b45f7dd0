"""GANs: whose turn moves what, the same steps on every backend, saving, resuming, learning."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend, frameworks
from keras_segen.generation import GAN, adversarial, noise
from keras_segen.generation.adversarial import R1, GradientPenalty
from keras_segen.layers import SpectralNormalization

OTHER = {"tensorflow": "torch", "torch": "tensorflow"}[keras.backend.backend()]


def point_networks(num_classes=None, dtype=None):
    """Networks for points of two numbers: quick to compile, with every kind of state."""
    codes = keras.Input((3,))
    inputs, x = codes, codes
    if num_classes:
        labels = keras.Input((), dtype="int32")
        inputs = [codes, labels]
        x = layers.Concatenate()([codes, layers.Embedding(num_classes, 2)(labels)])
    x = layers.BatchNormalization(momentum=0.9, dtype=dtype)(layers.Dense(8, dtype=dtype)(x))
    x = layers.Activation("tanh", dtype=dtype)(x)
    generator = keras.Model(inputs, layers.Dense(2, activation="tanh", dtype="float32")(x))

    points = keras.Input((2,))
    inputs, x = points, points
    if num_classes:
        labels = keras.Input((), dtype="int32")
        inputs = [points, labels]
        x = layers.Concatenate()([points, layers.Embedding(num_classes, 2)(labels)])
    x = SpectralNormalization(layers.Dense(8, dtype=dtype), dtype=dtype)(x)
    x = layers.BatchNormalization(momentum=0.9, dtype=dtype)(x)
    x = layers.Activation("tanh", dtype=dtype)(x)
    discriminator = keras.Model(inputs, layers.Dense(1, dtype="float32")(x))
    ks.initialize(generator, seed=0)
    ks.initialize(discriminator, seed=1)
    return generator, discriminator


def point_gan(num_classes=None, dtype=None, **rules):
    gan = GAN(*point_networks(num_classes, dtype), num_classes=num_classes)
    gan.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02), **rules)
    return gan


POINTS = np.random.default_rng(0).random((24, 2)).astype("float32")
LABELS = np.arange(24) % 3


def values(variables):
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


def assert_same_bits(before, after):
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def change(before, after):
    return max(np.abs(old - new).max() for old, new in zip(before, after, strict=True))


def picture_gan(norm=False):
    """Smooth activations: gates of a ReLU may flip on one backend and not on the other."""
    codes = keras.Input((4,))
    x = layers.Reshape((4, 4, 4))(layers.Dense(64, use_bias=False)(codes))
    x = layers.Activation("softplus")(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Conv2DTranspose(2, 4, strides=2, padding="same", activation="tanh")(x)
    generator = keras.Model(codes, x)
    images = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 4, strides=2, padding="same", activation="softplus")(images)
    x = layers.Conv2D(8, 4, strides=2, padding="same")(x)
    x = layers.BatchNormalization(momentum=0.9)(x) if norm else x
    x = layers.Activation("tanh")(x)
    discriminator = keras.Model(images, layers.Dense(1)(layers.Flatten()(x)))
    ks.initialize(generator, seed=0)
    ks.initialize(discriminator, seed=1)
    return GAN(generator, discriminator)


@pytest.mark.parametrize(
    "rules, expected",
    [
        (
            {},
            [1.4137169, 0.9029187, 1.2323482, 0.84726, 1.3023176, 0.8296253]
            + [1.2228391, 0.8205971, 1.3974048, 0.71798],
        ),
        (
            {"r1": 1.0, "label_smoothing": 0.1},
            [1.3649912, 0.9478514, 1.2248397, 0.9660895, 1.2906027, 0.9093646]
            + [1.2406175, 0.9027119, 1.3603849, 0.8192324],
        ),
        (
            {"loss": "wasserstein", "gradient_penalty": 10.0},
            [-0.0865742, 0.6242437, -0.3007086, 0.7509305, -0.0603451, 0.8429004]
            + [-0.1393064, 0.7394687, 0.4491852, 0.5491262],
        ),
        (
            {"norm": True, "r1": 0.5, "r1_every": 2, "gradient_penalty": 1.0},
            [1.1873063, 1.0750874, 1.1737700, 1.1044620, 1.0547056, 1.1759793]
            + [0.9736093, 1.1225410, 1.0902071, 1.0703672],
        ),
    ],
    ids=["plain", "r1", "wasserstein", "norm"],
)
def test_twenty_steps_are_the_same_on_every_backend(rules, expected):
    rules = dict(rules)
    gan = picture_gan(rules.pop("norm", False))
    gan.compile(keras.optimizers.Adam(2e-3, 0.5), keras.optimizers.Adam(2e-3, 0.5), **rules)
    images = np.random.default_rng(0).random((20, 6, 8, 8, 2)).astype("float32")
    found = []
    for batch in images:
        gan.reset_metrics()
        logs = gan.train_on_batch(batch, return_dict=True)
        found.append((float(logs["d_loss"]), float(logs["g_loss"])))
    assert found[0] != pytest.approx(found[19], rel=1e-2)
    found = np.ravel([found[i] for i in (0, 4, 9, 14, 19)])  # d_loss, g_loss, d_loss, …
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_each_turn_moves_its_own_player_only():
    """Two steps of D for each of G: the first step is D's alone."""
    alone, both = point_gan(discriminator_steps=2), point_gan()
    for gan in (alone, both):
        gan.run_eagerly = True

    def of_generator(gan):
        kept = [*gan.generator.variables, *gan.ema_generator.variables]
        return values([*kept, *gan.optimizer.generator.variables])

    def of_discriminator(gan):
        return values([*gan.discriminator.variables, *gan.optimizer.discriminator.variables])

    generator, discriminator = of_generator(alone), of_discriminator(alone)
    alone.train_on_batch(POINTS)
    assert_same_bits(generator, of_generator(alone))
    assert change(discriminator, of_discriminator(alone)) > 1e-3

    # A step of both leaves D where a step of D alone has left it: G's turn moved nothing of it.
    both.train_on_batch(POINTS)
    assert_same_bits(of_discriminator(alone), of_discriminator(both))
    assert change(generator, of_generator(both)) > 1e-3


def test_several_steps_of_d_for_one_of_g():
    gan = point_gan(loss="wasserstein", gradient_penalty=10.0, discriminator_steps=3)
    gan.fit(POINTS, batch_size=3, epochs=1, verbose=0)
    iterations = [
        int(ops.convert_to_numpy(optimizer.iterations))
        for optimizer in (gan.optimizer, gan.optimizer.discriminator, gan.optimizer.generator)
    ]
    assert iterations == [8, 8, 2] and int(ops.convert_to_numpy(gan.step)) == 8


@pytest.mark.parametrize("classes", [None, 3])
def test_a_saved_gan_goes_on_as_if_nothing_had_happened(tmp_path, classes):
    labels = None if classes is None else LABELS
    rules = {"loss": "hinge", "r1": 0.5, "r1_every": 2 if classes else 1}
    whole, first = point_gan(classes, **rules), point_gan(classes, **rules)
    for gan, epochs in ((whole, 3), (first, 2)):
        gan.fit(POINTS, labels, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    backend.save_model(first, tmp_path / "gan.keras")
    second = keras.models.load_model(tmp_path / "gan.keras", safe_mode=True)
    assert_same_bits(values(first.variables), values(second.variables))
    assert_same_bits(values(first.optimizer.variables), values(second.optimizer.variables))
    assert second.rules == whole.rules
    second.fit(POINTS, labels, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for a, b in (
        (whole.variables, second.variables),
        (whole.optimizer.variables, second.optimizer.variables),
    ):
        for x, y in zip(values(a), values(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole.generate(4), second.generate(4), rtol=1e-5)


CONTINUE = """
import sys, keras, numpy as np, keras_segen.generation
from keras_segen import backend
gan = keras.models.load_model(sys.argv[1], safe_mode=True)
loaded = [keras.ops.convert_to_numpy(v) for v in [*gan.variables, *gan.optimizer.variables]]
points = np.load(sys.argv[2])
logs = [gan.train_on_batch(points, return_dict=True) for _ in range(3)]
np.savez(sys.argv[3], *loaded, g=gan.generate(4), logs=[float(v) for v in logs[-1].values()])
"""


@pytest.mark.once
@pytest.mark.skipif(OTHER not in frameworks.installed(), reason=f"{OTHER} is not installed")
def test_a_gan_goes_on_on_the_other_backend(tmp_path):
    gan = point_gan(r1=0.5)
    for _ in range(3):
        gan.train_on_batch(POINTS)
    gan.reset_metrics()
    backend.save_model(gan, tmp_path / "gan.keras")
    np.save(tmp_path / "points.npy", POINTS)
    files = [str(tmp_path / name) for name in ("gan.keras", "points.npy", "there.npz")]
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, *files],
        env={**os.environ, "KERAS_BACKEND": OTHER},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = np.load(files[2])
    here = values([*gan.variables, *gan.optimizer.variables])
    assert_same_bits(here, [there[f"arr_{i}"] for i in range(len(here))])
    logs = [gan.train_on_batch(POINTS, return_dict=True) for _ in range(3)][-1]
    np.testing.assert_allclose([float(v) for v in logs.values()], there["logs"], rtol=1e-4)
    np.testing.assert_allclose(gan.generate(4), there["g"], rtol=1e-4)


def test_a_small_set_is_learned_and_classes_are_told_apart():
    """Two points, one for each class, 0.9 apart."""
    codes, labels = keras.Input((3,)), keras.Input((), dtype="int32")
    x = layers.Concatenate()([codes, layers.Embedding(2, 2)(labels)])
    x = layers.Dense(16, activation="tanh")(x)
    generator = keras.Model([codes, labels], layers.Dense(2, activation="tanh")(x))
    points, labels = keras.Input((2,)), keras.Input((), dtype="int32")
    x = layers.Concatenate()([points, layers.Embedding(2, 2)(labels)])
    for _ in range(2):
        x = layers.Dense(16, activation="softplus")(x)
    discriminator = keras.Model([points, labels], layers.Dense(1)(x))
    ks.initialize(generator, seed=0)
    ks.initialize(discriminator, seed=1)

    gan = GAN(generator, discriminator, num_classes=2, ema=0.9)
    optimizers = [keras.optimizers.Adam(0.02, beta_1=0.5, beta_2=0.9) for _ in range(2)]
    gan.compile(*optimizers, r1=3.0)
    targets = np.array([[0.2, 0.8], [0.8, 0.1]], "float32")
    labels = np.arange(32) % 2
    for _ in range(120):
        gan.train_on_batch(targets[labels], labels)
    for label in (0, 1):
        made = gan.generate(32, labels=label)
        assert np.abs(made - targets[label]).max() < 0.15


def test_the_average_starts_as_the_generator_and_follows_it():
    gan = point_gan()
    gan.train_on_batch(POINTS)
    assert_same_bits(values(gan.generator.weights), values(gan.ema_generator.weights))
    first = values(gan.ema_generator.weights)
    gan.train_on_batch(POINTS)
    second = values(gan.generator.weights)
    for average, old, new in zip(values(gan.ema_generator.weights), first, second, strict=True):
        np.testing.assert_allclose(average, new + (old - new) / 11, rtol=1e-5, atol=1e-6)
    codes = gan.draw_codes(2)
    expected = (backend.infer(gan.ema_generator, codes) + 1) / 2
    np.testing.assert_array_equal(gan.generate(2), expected)


def test_the_history_is_the_mean_over_the_images():
    """Of 5 images in batches of 4 and 1, with nothing learned in between."""
    gans = [GAN(*point_networks()) for _ in range(2)]
    for gan in gans:
        gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0))
    whole = gans[0].fit(POINTS[:5], batch_size=4, shuffle=False, verbose=0).history
    parts = []
    for part in (slice(0, 4), slice(4, 5)):
        gans[1].reset_metrics()
        parts.append(gans[1].train_on_batch(POINTS[:5][part], return_dict=True))
    assert set(whole) == {"d_loss", "g_loss", "d_real_accuracy", "d_fake_accuracy"}
    for name in whole:
        expected = (4 * float(parts[0][name]) + float(parts[1][name])) / 5
        assert float(whole[name][0]) == pytest.approx(expected, rel=1e-5), name


def test_evaluation_does_not_depend_on_the_batches():
    gan = point_gan(r1=0.1)
    gan.train_on_batch(POINTS)
    found = [gan.evaluate(POINTS, batch_size=size, verbose=0, return_dict=True) for size in (24, 7)]
    assert set(found[0]) == {"d_loss", "g_loss", "d_real_accuracy", "d_fake_accuracy"}
    for name in found[0]:
        assert float(found[0][name]) == pytest.approx(float(found[1][name]), rel=1e-5)


def test_bytes_are_the_same_images_as_floats():
    bytes_ = np.random.default_rng(1).integers(0, 256, (6, 2)).astype("uint8")
    logs = []
    for images in (bytes_, (bytes_ / 255).astype("float32")):
        gan = point_gan()
        logs.append(gan.train_on_batch(images, return_dict=True))
    for name in logs[0]:
        assert float(logs[0][name]) == pytest.approx(float(logs[1][name]), rel=1e-6)


def test_float16_scales_the_loss_of_each_player(tmp_path):
    gan = point_gan(dtype="mixed_float16")
    parts = (gan.optimizer.generator, gan.optimizer.discriminator)
    assert all(isinstance(part, keras.optimizers.LossScaleOptimizer) for part in parts)
    before = values(gan.trainable_variables)
    for _ in range(2):
        logs = gan.train_on_batch(POINTS, return_dict=True)
    assert np.isfinite([float(value) for value in logs.values()]).all()
    assert change(before, values(gan.trainable_variables)) > 1e-3
    backend.save_model(gan, tmp_path / "gan.keras")
    loaded = keras.models.load_model(tmp_path / "gan.keras", safe_mode=True)
    assert_same_bits(values(gan.optimizer.variables), values(loaded.optimizer.variables))


def test_gradients_are_accumulated_over_batches():
    gan = GAN(*point_networks())
    gan.compile(
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    )
    kept = gan.generator.trainable_variables + gan.discriminator.trainable_variables
    before = values(kept)
    gan.train_on_batch(POINTS)
    assert_same_bits(before, values(kept))
    gan.train_on_batch(POINTS)
    assert change(before, values(kept)) > 0


def test_setting_the_learning_rate_keeps_the_ratio_of_the_players():
    gan = point_gan()
    gan.optimizer.learning_rate = 0.001
    rates = [gan.optimizer.learning_rate, gan.optimizer.discriminator.learning_rate]
    np.testing.assert_allclose(values(rates), [0.001, 0.002], rtol=1e-6)


def test_a_step_compiles_with_xla_where_there_is_xla():
    """With a step that has the penalty, and the branch without it."""
    logs = []
    for compiled in (False, True):
        gan = point_gan(r1=0.1, r1_every=2)
        gan.run_eagerly = not compiled
        gan.jit_compile = compiled and keras.backend.backend() == "tensorflow"
        logs.append(gan.train_on_batch(POINTS, return_dict=True))
    for name in logs[0]:
        assert float(logs[0][name]) == pytest.approx(float(logs[1][name]), rel=1e-4)


def test_losses_are_those_of_the_papers():
    generator = np.random.default_rng(0)
    real, fake = generator.normal(size=(2, 16, 1)).astype("float32")

    def cross_entropy(scores, target):
        p = 1 / (1 + np.exp(-scores))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()

    expected = {
        "non_saturating": (
            cross_entropy(real, 0.9) + cross_entropy(fake, 0),
            cross_entropy(fake, 1),
        ),
        "hinge": (
            np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
            -fake.mean(),
        ),
        "least_squares": (
            ((real - 0.9) ** 2).mean() / 2 + (fake**2).mean() / 2,
            ((fake - 1) ** 2).mean() / 2,
        ),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
    }
    for name, (d_loss, g_loss, _) in adversarial.LOSSES.items():
        tensors = ops.convert_to_tensor(real), ops.convert_to_tensor(fake)
        assert float(d_loss(*tensors, 0.1)) == pytest.approx(expected[name][0], rel=1e-5), name
        assert float(g_loss(tensors[1])) == pytest.approx(expected[name][1], rel=1e-5), name


def test_penalties_are_those_of_a_slope_that_is_known():
    """A score of 3 x - 4 y has a gradient of length 5 everywhere."""
    direction = np.array([[3.0], [-4.0]], "float32")
    points = ops.convert_to_tensor(POINTS)

    def linear(x):
        return ops.matmul(x, ops.convert_to_tensor(direction))

    score, r1 = map(ops.convert_to_numpy, R1(2.0)(linear, points, step=0))
    np.testing.assert_allclose(score, POINTS @ direction, rtol=1e-5, atol=1e-6)
    assert float(r1) == pytest.approx(2 * 12.5)
    penalty = GradientPenalty(3.0)(linear, points, points, step=0)
    assert float(ops.convert_to_numpy(penalty)) == pytest.approx(3 * 16)
    # x**2 has the slope 2 x: at a random place between 2 and 6.
    two, six = ops.ones((3, 1)) * 2, ops.ones((3, 1)) * 6
    penalty = GradientPenalty(1.0, seed=4)(lambda x: x**2, two, six, step=5)
    shares = noise.uniform(("mixture of real and fake", 4), 5, (3, 1))
    places = 6 - 4 * ops.convert_to_numpy(shares)
    expected = np.mean((2 * places - 1) ** 2)
    assert float(ops.convert_to_numpy(penalty)) == pytest.approx(expected, rel=1e-5)


def test_a_penalty_that_is_due_in_every_second_step_counts_twice():
    def sgd():
        return [keras.optimizers.SGD(0.1) for _ in range(2)]

    def step(gan):
        gan.reset_metrics()
        logs = gan.train_on_batch(POINTS, return_dict=True)
        return float(logs.get("d_penalty", 0.0)), values(gan.discriminator.variables)

    lazy, by_hand, never = (GAN(*point_networks()) for _ in range(3))
    lazy.compile(*sgd(), r1=0.5, r1_every=2)
    never.compile(*sgd())
    never.run_eagerly = True
    for expected in (1.0, 0.0, 1.0):
        by_hand.compile(*sgd(), r1=expected)
        by_hand.run_eagerly = True
        (penalty, found), (expected_penalty, expected) = step(lazy), step(by_hand)
        assert penalty == pytest.approx(expected_penalty, rel=1e-5)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        assert change(found, step(never)[1]) > 1e-3


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.full((4, 2), 1.5, "float32"), LABELS[:4], r"outside \[0, 1\]"),
        (np.full((4, 2), -0.5, "float32"), LABELS[:4], r"outside \[0, 1\]"),
        (np.zeros((4, 2), "int32"), LABELS[:4], "floats in .* or uint8; found int32"),
        (np.zeros((4, 3), "float32"), LABELS[:4], r"shape \(2,\); found .*4, 3"),
        (POINTS[:4], None, "3 classes and needs the labels"),
        (POINTS[:4], LABELS[:4] / 2, "Labels are integers"),
        (POINTS[:4], LABELS[:4] + 1, r"in 0\.\.2"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(images, labels, message):
    gan = point_gan(num_classes=3)
    gan.run_eagerly = True
    with pytest.raises(ValueError, match=message):
        gan.train_on_batch(images, labels)


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"loss": "bce"}, "loss is 'bce', expected one of 'non_saturating', 'hinge'"),
        ({"r1": -1.0}, r"r1 of at least 0.*found R1\(weight=-1.0"),
        ({"r1": 1.0, "r1_every": 0}, "r1 .*every=0"),
        ({"gradient_penalty": -1.0}, "gradient_penalty of at least 0.*weight=-1.0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "the loss is 'hinge'"),
        ({"discriminator_steps": 0}, "discriminator_steps is 0"),
    ],
)
def test_rules_out_of_range_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        point_gan(**rules)


def test_networks_that_do_not_fit_are_refused():
    generator, discriminator = point_networks()
    with pytest.raises(ValueError, match="num_classes is for networks that take labels"):
        GAN(generator, discriminator, num_classes=3)
    with pytest.raises(ValueError, match="num_classes is for networks that take labels"):
        GAN(generator, point_networks(num_classes=3)[1])
    three = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    with pytest.raises(ValueError, match=r"one from \(3,\) to \(None, 1\)"):
        GAN(generator, three)
    with pytest.raises(ValueError, match="ema is 1"):
        GAN(generator, discriminator, ema=1)
    with pytest.raises(ValueError, match="not built"):
        GAN(keras.Sequential([layers.Dense(2)]), discriminator)


def test_generated_images_do_not_depend_on_how_many_are_made():
    gan = point_gan(num_classes=3)
    all_ = gan.generate(7, seed=5)
    np.testing.assert_allclose(all_[:4], gan.generate(4, seed=5, batch_size=3), rtol=1e-6)
    assert all_.dtype == np.float32 and all_.min() >= 0 and all_.max() <= 1
    assert np.abs(all_ - gan.generate(7, seed=6)).max() > 0
    assert all_.shape == (7, 2)
    np.testing.assert_allclose(gan.generate(7, labels=np.arange(7) % 3, seed=5), all_, rtol=1e-6)
    with pytest.raises(ValueError, match=r"in 0\.\.2; found \[3\]"):
        gan.generate(2, labels=3)
    with pytest.raises(ValueError, match="takes no labels"):
        point_gan().generate(2, labels=1)
    with pytest.raises(ValueError, match=r"\(count, 3\); found \(2, 2\)"):
        gan.decode(np.zeros((2, 2)), labels=0)


def test_the_way_between_codes_keeps_their_length():
    gan = point_gan()
    first, second = gan.draw_codes(2, seed=0), gan.draw_codes(2, seed=1)
    images = gan.interpolate(first, second, num_steps=5)
    assert images.shape == (2, 5, 2)
    np.testing.assert_allclose(images[:, 0], gan.decode(first), rtol=1e-5)
    np.testing.assert_allclose(images[:, -1], gan.decode(second), rtol=1e-5)
    way = ks.generation.latent.great_circle(
        np.array([[[3.0, 0.0]]]), np.array([[[0.0, 5.0]]]), np.array([0, 0.5, 1])[None, :, None]
    )
    np.testing.assert_allclose(way[0], [[3, 0], [4 / 2**0.5, 4 / 2**0.5], [0, 5]], atol=1e-12)
    opposite = ks.generation.latent.great_circle(
        np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]), np.array([[0.25]])
    )
    np.testing.assert_allclose(opposite, [[0.5, 0]], atol=1e-12)
    with pytest.raises(ValueError, match="num_steps of at least 2"):
        gan.interpolate(first, second, num_steps=1)
