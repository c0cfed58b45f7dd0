"""StyleGAN2: its blocks against NumPy, its networks and its training on both backends."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD
from scipy import signal

import keras_segen as ks
from keras_segen import backend
from keras_segen.compare.layerwise.record import computing_in
from keras_segen.generation import (
    StyleGAN,
    dcgan_generator,
    styled_layers,
    stylegan2_discriminator,
    stylegan2_generator,
)
from keras_segen.generation.adversarial import PathLength

SHAPE, FILTERS = (8, 12, 2), (3, 4)


def networks(num_classes=None):
    generator = stylegan2_generator(SHAPE, 5, FILTERS, num_classes, mapping_layers=2)
    discriminator = stylegan2_discriminator(SHAPE, FILTERS, num_classes)
    ks.initialize(generator, seed=0)
    ks.initialize(discriminator, seed=1)
    return generator, discriminator


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def blurred(x):
    """[1, 3, 3, 1] along both axes of an image `(height, width)`, in full."""
    taps = np.array([1, 3, 3, 1]) / 8
    return signal.convolve2d(x, np.outer(taps, taps))


def one_by_one(x, style, kernel, demodulate, double):
    """The textbook: a kernel for each image, and a loop over all pairs of channels."""
    results = []
    for image, s in zip(x, style, strict=True):
        own = kernel * s[:, None]
        if demodulate:
            own = own / np.sqrt(np.square(own).sum((0, 1, 2)) + 1e-8)
        maps = []
        for o in range(kernel.shape[-1]):
            total = 0
            for i in range(kernel.shape[-2]):
                if double:  # zeros in between, then the kernel, then the filter
                    apart = np.zeros((2 * image.shape[0] - 1, 2 * image.shape[1] - 1))
                    apart[::2, ::2] = image[:, :, i]
                    total += 4 * blurred(signal.convolve2d(apart, own[:, :, i, o]))[2:-2, 2:-2]
                else:
                    total += signal.correlate2d(image[:, :, i], own[:, :, i, o], "same")
            maps.append(total)
        results.append(np.stack(maps, -1))
    return np.stack(results)


@pytest.mark.parametrize(
    "kernel_size, demodulate, double", [(3, True, False), (3, True, True), (1, False, False)]
)
def test_one_convolution_equals_a_kernel_for_each_image(kernel_size, demodulate, double):
    x, styles = numbers(0, 3, 4, 6, 3), numbers(1, 3, 2, 5)
    with computing_in("float64"):
        layer = styled_layers.StyledConv2D(
            2, kernel_size, style=1, double=double, demodulate=demodulate, dtype="float64"
        )
        found = ops.convert_to_numpy(
            layer([ops.convert_to_tensor(x), ops.convert_to_tensor(styles)])
        )
    kernel, affine = (ops.convert_to_numpy(w) for w in (layer.kernel, layer.affine.kernel))
    style = styles[:, 1] @ affine / 5**0.5 + 1
    kernel = kernel / (kernel_size**2 * 3) ** 0.5
    np.testing.assert_allclose(
        found, one_by_one(x, style, kernel, demodulate, double), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_halving_filters_before_it_leaves_pixels_out(kernel_size):
    x = numbers(0, 2, 6, 8, 3)
    with computing_in("float64"):
        layer = styled_layers.EqualizedConv2D(2, kernel_size, halve=True, dtype="float64")
        found = ops.convert_to_numpy(layer(ops.convert_to_tensor(x)))
    kernel = ops.convert_to_numpy(layer.kernel) / (kernel_size**2 * 3) ** 0.5
    for n, image in enumerate(x):
        for o in range(2):
            total = 0
            for i in range(3):
                part = blurred(image[:, :, i])[1:-1, 1:-1]  # a row and a column more
                part = part if kernel_size == 3 else part[1:-1, 1:-1]
                total += signal.correlate2d(part, kernel[:, :, i, o], "valid")[::2, ::2]
            expected = np.where(total > 0, total, 0.2 * total) * 2**0.5
            # TensorFlow keeps the slope 0.2 in float32.
            np.testing.assert_allclose(found[n, :, :, o], expected, rtol=1e-7)


def test_noise_comes_in_before_the_leaky_relu_and_each_layer_has_its_own():
    layer = styled_layers.StyledConv2D(2, 1, style=0, noise_from=3)
    x, styles, noise = np.zeros((2, 2, 3, 1)), np.ones((2, 1, 4)), numbers(0, 2, 12)
    inputs = [ops.convert_to_tensor(a.astype("float32")) for a in (x, styles, noise)]
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(inputs)), 0)  # strength 0 at first
    layer.strength.assign(2.0)
    found = ops.convert_to_numpy(layer(inputs))
    mapped = 2 * noise[:, 3:9].reshape(2, 2, 3, 1)
    expected = np.where(mapped > 0, mapped, 0.2 * mapped) * 2**0.5
    np.testing.assert_allclose(found, np.repeat(expected, 2, -1), rtol=1e-5)


@pytest.mark.parametrize("batch, group", [(8, 4), (6, 6), (3, 3)])
def test_the_deviation_is_that_of_every_group(batch, group):
    x = numbers(0, batch, 2, 3, 5).astype("float32")
    found = ops.convert_to_numpy(styled_layers.MinibatchDeviation()(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(found[..., :5], x)
    for k in range(batch):
        members = x[k % (batch // group) :: batch // group]
        np.testing.assert_allclose(found[k, :, :, 5], members.std(0).mean(), rtol=1e-5)


def test_weights_start_at_one_size_and_are_scaled_in_use():
    generator, discriminator = networks()
    for network in (generator, discriminator):
        for weight in network.trainable_weights:
            if weight.name == "kernel":
                rate = 0.01 if "dense" in weight.path else 1.0
                spread = rate * ops.convert_to_numpy(weight).std()
                assert spread == pytest.approx(1, abs=3 / np.prod(weight.shape) ** 0.5)
    codes = numbers(0, 64, 5).astype("float32")
    styles = [backend.infer(generator.get_layer("mapping"), scale * codes) for scale in (1, 7)]
    np.testing.assert_allclose(*styles, rtol=1e-4, atol=1e-5)  # only a code's direction counts


@pytest.mark.once
def test_the_papers_networks_have_so_many_weights():
    """256 pixels, with the paper's filters."""
    filters = (64, 128, 256, 512, 512, 512, 512)
    for network, count in (
        (stylegan2_generator((256, 256, 3), filters=filters), 24_767_458),
        (stylegan2_discriminator((256, 256, 3), filters), 24_001_089),
    ):
        assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == count


def test_the_same_images_and_scores_on_every_backend(tmp_path):
    generator, discriminator = networks(num_classes=3)
    codes, labels = numbers(0, 4, 5).astype("float32"), np.arange(4, dtype="int32") % 3
    images = backend.infer(generator, [codes, labels])
    scores = backend.infer(discriminator, [images, labels])
    found = [images.mean(), images.std(), *images[1, 3, 4], *scores[:, 0]]
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-4)
    assert images.dtype == scores.dtype == np.float32

    backend.save_model(generator, tmp_path / "generator.keras")
    loaded = keras.models.load_model(tmp_path / "generator.keras", safe_mode=True)
    np.testing.assert_array_equal(backend.infer(loaded, [codes, labels]), images)


EXPECTED = [-0.0768926, 0.4649792, 0.1935523, -0.467159, 0.1792858, 0.171558, 0.023621, 0.112399]


def test_every_level_has_a_style_and_noise_of_its_own():
    synthesis = networks()[0].get_layer("synthesis")
    styles, noise = synthesis.inputs
    assert styles.shape[1:] == (4, 5) and noise.shape[1:] == (4 * 6 + 2 * 8 * 12,)
    for weight in synthesis.weights:
        if weight.name == "strength":
            weight.assign(1.0)
    inputs = numbers(0, 1, 4, 5).astype("float32"), numbers(1, 1, 216).astype("float32")
    image = backend.infer(synthesis, list(inputs))
    for which, places in ((0, range(4)), (1, (0, 24, 120))):
        for place in places:
            changed = [x.copy() for x in inputs]
            changed[which][:, place] += 1
            assert np.abs(backend.infer(synthesis, changed) - image).max() > 1e-3


@pytest.mark.once
@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: stylegan2_generator((30, 32, 3), filters=(4, 4, 4)), "multiples of 4"),
        (lambda: stylegan2_generator((8, 8, 3), mapping_layers=0), "mapping_layers must be a pos"),
        (lambda: stylegan2_discriminator((8, 8)), r"image_shape is \(height, width, channels\)"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def style_gan(num_classes=None, **rules):
    gan = StyleGAN(*networks(num_classes), num_classes, half_life=100.0)
    gan.compile(**{"r1_every": 4, "path_length_every": 2, **rules})
    gan.run_eagerly = True  # tracing takes longer than these steps
    return gan


IMAGES = np.random.default_rng(3).random((5, 4, *SHAPE)).astype("float32")
LABELS = np.arange(4) % 3


def values(variables):
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


def logs_of(gan, images, labels=None):
    gan.reset_metrics()
    logs = gan.train_on_batch(images, labels, return_dict=True)
    return {name: float(value) for name, value in logs.items()}


def test_five_steps_are_the_same_on_every_backend():
    """Of D and G, two on R1, three on the path length; all weights learn.

    By SGD: without momentum, Adam takes a gradient of 1e-9 for as much as any other.
    """
    gan = style_gan(3, generator_optimizer=SGD(0.01), discriminator_optimizer=SGD(0.02))
    weights = gan.generator.trainable_weights + gan.discriminator.trainable_weights
    before = values(weights)
    logs = [logs_of(gan, images, LABELS) for images in IMAGES]
    found = [logs[i][name] for i in (0, 4) for name in ("d_loss", "g_loss", "path_penalty")]
    found += [logs[i]["r1_penalty"] for i in (0, 4)]
    np.testing.assert_allclose(found, AFTER_STEPS, rtol=1e-4)
    for i, each in enumerate(logs):
        assert bool(each["r1_penalty"]) == (i % 4 == 0), i
        assert bool(each["path_penalty"]) == (i % 2 == 0), i
    steps = [
        int(ops.convert_to_numpy(x.iterations))
        for x in (gan.optimizer.discriminator, gan.optimizer.generator)
    ]
    assert steps == [5 + 2, 5 + 3]
    for weight, old, new in zip(weights, before, values(weights), strict=True):
        assert np.abs(old - new).max() > 0, weight.path


AFTER_STEPS = [1.4000943, 0.672212, 0.6047147, 1.3961496, 0.6814145, 0.2536051]
AFTER_STEPS += [0.00283592, 0.00057293]


def test_a_step_on_a_penalty_moves_one_player_by_the_penalty_alone():
    gan = style_gan(style_mixing=0.0)
    real = gan.check_images(IMAGES[0])
    gan.compile(SGD(1.0), SGD(1.0), r1=2.0, r1_every=3, path_length=0.0)
    before = values(gan.variables)
    gan.r1_step(real, None)
    ours = gan.discriminator.trainable_variables
    kept = [v for v in gan.variables if not any(v is w for w in ours)]
    moved = {id(v): old for v, old in zip(gan.variables, before, strict=True)}
    for variable in kept:
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), moved[id(variable)])
    assert max(np.abs(ops.convert_to_numpy(v) - moved[id(v)]).max() for v in ours) > 1e-3


def test_the_path_length_of_an_even_image_is_known():
    """Images that are twice the first style: the gradient is twice a direction."""
    directions = numbers(0, 5, 2, 3, 1).astype("float32")
    styles = ops.convert_to_tensor(numbers(1, 5, 4, 6).astype("float32"))
    weight = keras.Variable(2.0)

    def synthesize(styles):
        return weight * ops.reshape(styles[:, 0], (-1, 2, 3, 1))

    penalty, mean = PathLength(3.0, every=4).penalty(
        synthesize, weight * styles, ops.convert_to_tensor(directions), ops.convert_to_tensor(1.5)
    )
    lengths = 2 * np.sqrt(np.square(directions).sum((1, 2, 3)) / 6 / 4)  # 6 pixels, 4 layers
    new_mean = 1.5 + 0.01 * (lengths.mean() - 1.5)
    assert float(ops.convert_to_numpy(mean)) == pytest.approx(new_mean, rel=1e-5)
    expected = 3 * 4 * np.square(lengths - new_mean).mean()
    assert float(ops.convert_to_numpy(penalty)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.once
def test_adam_is_corrected_for_the_steps_on_penalties():
    gan = style_gan(r1_every=4, path_length=0.0)
    discriminator, generator = gan.optimizer.discriminator, gan.optimizer.generator
    assert float(ops.convert_to_numpy(discriminator.learning_rate)) == pytest.approx(2.5e-3 * 0.8)
    assert (discriminator.beta_1, discriminator.beta_2) == (0, pytest.approx(0.99**0.8))
    assert float(ops.convert_to_numpy(generator.learning_rate)) == pytest.approx(2.5e-3)
    assert (generator.beta_1, generator.beta_2) == (0, 0.99)


@pytest.mark.once
def test_the_average_has_a_half_life_in_images():
    gan = style_gan()

    def kept(step, count):
        gan.step.assign(step)
        return float(ops.convert_to_numpy(gan.share_kept(count)))

    assert kept(0, 4) == 0  # the first is the generator itself
    assert kept(10, 4) == pytest.approx(0.5 ** (4 / (0.05 * 40)))  # a twentieth of those seen
    assert kept(10_000, 4) == pytest.approx(0.5 ** (4 / 100))
    assert kept(10_000, 8) == pytest.approx(kept(10_000, 4) ** 2)


def test_styles_are_mixed_from_a_layer_on():
    gan = style_gan()
    codes = gan.random_codes(200)
    gan.style_mixing = 0.5
    styles = ops.convert_to_numpy(gan.styles(codes, None, "codes"))
    first = ops.convert_to_numpy(gan.generator.get_layer("mapping")(codes))
    own = np.abs(styles - first[:, None]).max(-1) < 1e-5  # (images, layers)
    assert own[:, 0].all() and (own[:, :-1] >= own[:, 1:]).all()
    assert own.all(1).mean() == pytest.approx(0.5, abs=0.1)
    assert {int(row.sum()) for row in own} == {1, 2, 3, 4}  # any layer may be the first to change
    mean = ops.convert_to_numpy(gan.generator.get_layer("mapping").get_layer("mean").mean)
    assert 0 < np.abs(mean).max() < 0.01  # the first step of the moving mean


def test_truncation_brings_images_closer_to_that_of_the_mean_style():
    gan = style_gan(num_classes=3)
    images = gan.generate(6, labels=1)
    network = gan.ema_generator
    expected = backend.infer(network, [gan.draw_codes(6), np.ones(6, "int32")])
    np.testing.assert_allclose(images, np.clip((expected + 1) / 2, 0, 1), atol=1e-5)
    assert images.min() >= 0 and images.max() <= 1
    network.get_layer("mapping").get_layer("mean").mean.assign(np.full(5, 0.5))
    spread = [images.std(0).mean()]
    for truncation in (0.5, 0.0):
        gan.truncation.assign(truncation)
        images = gan.generate(6, labels=1)
        spread.append(images.std(0).mean())
    assert spread[0] > spread[1] > spread[2] and spread[2] < 1e-6
    synthesis, noise = network.get_layer("synthesis"), network.get_layer("noise")
    inputs = np.full((1, 4, 5), 0.5, "float32"), ops.convert_to_numpy(noise.value)[None]
    mean_image = (backend.infer(synthesis, list(inputs)) + 1) / 2
    np.testing.assert_allclose(images[:1], np.clip(mean_image, 0, 1), atol=1e-5)


@pytest.mark.once
def test_a_saved_style_gan_goes_on_in_the_middle_of_its_cycle(tmp_path):
    whole, first = style_gan(), style_gan()
    for images in IMAGES[:1]:
        whole.train_on_batch(images), first.train_on_batch(images)
    backend.save_model(first, tmp_path / "gan.keras")
    second = keras.models.load_model(tmp_path / "gan.keras", safe_mode=True)
    assert second.rules == whole.rules and second.half_life == 100
    for images in IMAGES[1:2]:
        whole.train_on_batch(images), second.train_on_batch(images)
    for a, b in ((whole, second), (whole.optimizer, second.optimizer)):
        for x, y in zip(values(a.variables), values(b.variables), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: style_gan(path_length=-1.0), "path_length of at least 0"),
        (lambda: style_gan(r1=1.0, r1_every=0), "r1 of at least 0, in every step or fewer"),
        (lambda: style_gan(style_mixing=1.5), r"style_mixing is 1.5, expected a share in \[0, 1\]"),
        (lambda: StyleGAN(*networks(), half_life=0.0), "half_life is 0.0, expected more than 0"),
        (
            lambda: StyleGAN(dcgan_generator(SHAPE, 5, (4,)), networks()[1]),
            "has no mapping and no noise and no synthesis: expected one with styles",
        ),
    ],
)
def test_rules_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
