"""StyleGAN2: its blocks against NumPy, its networks on both backends."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import signal

import keras_segen as ks
from keras_segen import backend
from keras_segen.compare.layerwise.record import computing_in
from keras_segen.generation import stylegan2, stylegan2_discriminator, stylegan2_generator

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
        layer = stylegan2.StyledConv2D(
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
        layer = stylegan2.EqualizedConv2D(2, kernel_size, halve=True, dtype="float64")
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
    layer = stylegan2.StyledConv2D(2, 1, style=0, noise_from=3)
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
    found = ops.convert_to_numpy(stylegan2.MinibatchDeviation()(ops.convert_to_tensor(x)))
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
def test_the_published_networks_have_as_many_weights():
    """256 pixels: known from the authors' models."""
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
