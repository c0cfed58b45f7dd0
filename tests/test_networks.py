"""`fit`, `evaluate` and `predict` of our models say in one sentence what is wrong."""

import zipfile

import keras
import numpy as np
import pytest

from keras_segen import backend
from keras_segen.data import Dataset, Pictures
from keras_segen.generation import VAE, vae_decoder, vae_encoder
from keras_segen.losses import CrossEntropy
from keras_segen.segmentation import unet

IMAGES, MASKS = np.zeros((2, 8, 8, 3), "float32"), np.zeros((2, 8, 8), "int32")


class Damaged(Dataset):
    """Its third image cannot be read."""

    def __init__(self):
        super().__init__("damaged", "train", ("ground", "disc"), image_shape=(8, 8, 3))

    def __len__(self):
        return 4

    def read(self, index):
        if index == 2:
            raise OSError("images/2.png is cut short: replace it.")
        return IMAGES[0].copy(), MASKS[0].copy()


class DamagedPictures(Pictures):
    def __init__(self):
        super().__init__("damaged", "train", image_shape=(8, 8, 3))

    __len__ = Damaged.__len__

    def read(self, index):
        return Damaged.read(self, index)[0], 0


@pytest.fixture(scope="module")
def model():
    model = unet((8, 8, 3), num_classes=2, filters=(2, 4))
    model.compile("sgd", loss=CrossEntropy())
    return model


@pytest.fixture(scope="module")
def model_of_any_size():
    model = unet((None, None, 3), num_classes=2, filters=(2, 4, 8))
    model.compile("sgd", loss=CrossEntropy())
    return model


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_loaders_error_is_raised_as_it_is(model, method):
    with pytest.raises(OSError, match=r"^images/2.png is cut short: replace it.$"):
        getattr(model, method)(Damaged().batches(2), verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_model_of_the_users_own_raises_the_loaders_error_as_it_is(method):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
    model.compile("sgd", loss=CrossEntropy())
    with pytest.raises(OSError, match=r"^images/2.png is cut short: replace it.$") as caught:
        getattr(model, method)(Damaged().batches(2), verbose=0)
    assert caught.value.__cause__ is None


def test_a_loop_over_batches_raises_the_loaders_error_as_it_is():
    found = []
    with pytest.raises(OSError, match=r"^images/2.png is cut short: replace it.$"):
        for images, masks in Damaged().batches(1):
            found.append((images.shape, masks.shape))
    assert found == 2 * [((1, 8, 8, 3), (1, 8, 8))]


def test_an_error_in_validation_is_raised_as_it_is(model):
    with pytest.raises(OSError, match=r"^images/2.png is cut short"):
        model.fit(IMAGES, MASKS, validation_data=Damaged().batches(2), verbose=0)


def test_a_vae_raises_the_loaders_error_as_it_is():
    vae = VAE(vae_encoder((8, 8, 3), 2, (2,)), vae_decoder((8, 8, 3), 2, (2,)))
    vae.compile("sgd")
    with pytest.raises(OSError, match=r"^images/2.png is cut short"):
        vae.fit(DamagedPictures().batches(2), verbose=0)


def test_an_earlier_error_of_a_loader_is_not_raised_again(model):
    loader = Damaged().batches(2)
    with pytest.raises(OSError, match="cut short"):
        model.fit(loader, verbose=0)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("stopped by hand")

    with pytest.raises(RuntimeError, match="stopped by hand"):
        model.fit(loader, verbose=0, callbacks=[Stop()])


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_images_of_whole_numbers_are_refused(model, dtype):
    images = IMAGES.astype(dtype)
    for call in (model, lambda x: model.predict(x, verbose=0), lambda x: model.fit(x, MASKS)):
        with pytest.raises(ValueError, match=f"The images are {dtype}, and .* images / 255"):
            call(images)


def test_images_up_to_255_are_refused(model):
    bright = IMAGES + 255
    with pytest.raises(ValueError, match="values up to 255, and this network takes 0 to 1"):
        model.predict(bright)
    with pytest.raises(ValueError, match="values up to 255"):
        model.fit(IMAGES, MASKS, validation_data=(bright, MASKS))
    model.predict(4 * (IMAGES - 1), verbose=0)  # standardized images may be


def test_class_weight_points_to_the_loss(model):
    with pytest.raises(ValueError, match="class_weight in fit .*CrossEntropy.class_weights="):
        model.fit(IMAGES, MASKS, class_weight={0: 1.0, 1: 2.0}, verbose=0)


@pytest.mark.parametrize("method", ["fit", "predict"])
def test_a_size_that_cannot_be_halved_is_refused(model_of_any_size, method):
    odd = np.zeros((1, 10, 8, 3), "float32")
    given = (odd, odd[..., 0].astype("int32")) if method == "fit" else (odd,)
    with pytest.raises(ValueError, match=r"multiples of 4 for .*found images \(\w+, 10, 8, 3\)"):
        getattr(model_of_any_size, method)(*given, verbose=0)


def test_no_images_are_refused(model):
    for call in (model.predict, lambda x: model.fit(x, MASKS[:0])):
        with pytest.raises(ValueError, match=r"There are no images: found .* \(0, 8, 8, 3\)"):
            call(IMAGES[:0])


def test_a_file_of_a_network_needs_no_package_of_ours(model, tmp_path):
    path = tmp_path / "model.keras"
    backend.save_model(model, path)
    config = zipfile.ZipFile(path).read("config.json").decode()
    assert config.startswith('{"module": "keras.src.models.functional", "class_name": "Functional"')
    assert "keras_segen" not in config.partition('"compile_config"')[0]
    loaded = keras.models.load_model(path, compile=False)
    assert "keras_segen" not in {kind.__module__.partition(".")[0] for kind in type(loaded).mro()}
    images = np.random.default_rng(0).random((2, 8, 8, 3), "float32")
    expected = model.predict(images, verbose=0)
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), expected)
    assert keras.models.clone_model(model).output_shape == (None, 8, 8, 2)


def test_fit_makes_the_variables_of_the_optimizer_before_the_first_step():
    """TensorFlow traces a step that makes variables twice."""
    model = unet((8, 8, 3), num_classes=2, filters=(2, 4))
    model.compile("adam", loss=CrossEntropy())
    own, built = model.compute_loss, []

    def look(*args, **options):
        built.append(model.optimizer.built)
        return own(*args, **options)

    model.compute_loss = look
    model.fit(IMAGES, MASKS, batch_size=1, epochs=2, verbose=0)
    assert built and all(built)
