"""A user's own network from a `.keras` file: loaded, looked at, trained like the others."""

import zipfile

import keras
import numpy as np
import pytest

import keras_segen as ks
from keras_segen.data import ArrayFiles, write_arrays
from keras_segen.networks import load_keras_file
from keras_segen.segmentation import check_network, load_network
from keras_segen.tasks.registry import kind_of, read
from keras_segen.tasks.segmentation import SegmentationTask


def network(num_classes=6, shape=(None, None, 3), activation=None, size=1):
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(3, 3, padding="same", strides=size, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Conv2D(num_classes, 1, activation=activation)(x))


def shapes(split="train", length=4):
    return ks.data.Shapes(split, size=16, length=length)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mine.keras"
    model = network()
    model.save(path)
    return path, model.get_weights()


def test_an_experiment_starts_from_the_weights_of_a_file(saved):
    path, weights = saved
    task = SegmentationTask(model=str(path), seed=5)
    assert kind_of(str(path)) is SegmentationTask and read(task.to_dict()) == task
    model = task.build_model(shapes())
    for found, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    task.compile(model, shapes(), 1)
    before = [w.copy() for w in model.get_weights()]
    model.train_on_batch(*task.training_batches(shapes()).batch(0, 0))
    assert all((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    "fields", [{"filters": (4, 8)}, {"encoder": "vgg16"}, {"dropout": 0.1}, {"stride": 16}]
)
def test_what_only_a_builder_can_give_is_refused(saved, fields):
    with pytest.raises(ValueError, match="mine.keras is a whole network.*leave it out"):
        SegmentationTask(model=str(saved[0]), **fields)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 5}, r"makes \(1, 16, 16, 5\).*logits \(1, 16, 16, 6\): one channel"),
        ({"size": 2}, r"makes \(1, 8, 8, 6\)"),
        (
            {"shape": (None, None, 1)},
            r"takes \(None, None, 1\), and the images of shapes are \(16,",
        ),
        ({"shape": (8, 8, 3)}, r"takes \(8, 8, 3\), and the images of shapes are \(16, 16, 3\)"),
        ({"activation": "softmax"}, "gives probabilities; expected logits"),
    ],
)
def test_a_network_that_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        check_network(network(**options), shapes(), 6, "mine")


def test_probabilities_of_one_class_and_numbers_that_are_none():
    with pytest.raises(ValueError, match="gives probabilities"):
        check_network(network(1, activation="sigmoid"), shapes(), 1)
    model = network()
    model.layers[-1].bias.assign(np.full(6, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        check_network(model, shapes(), 6)
    check_network(network(), shapes(), 6)
    two = network()
    with pytest.raises(ValueError, match="2 outputs"):
        check_network(keras.Model(two.input, [two.output, two.output]), shapes(), 6)
    with pytest.raises(ValueError, match=r"takes \(None, None, 3\), \(None, None, 3\)"):
        other = network()
        check_network(keras.Model([two.input, other.input], two.output), shapes(), 6)


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.keras does not exist"):
        load_network(tmp_path / "gone.keras", shapes(), 6)
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(ValueError, match="text.keras cannot be loaded. Found: "):
        load_network(tmp_path / "text.keras", shapes(), 6)


def test_code_in_a_file_is_not_run(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Lambda(lambda x: x * 2)(inputs)
    keras.Model(inputs, keras.layers.Conv2D(6, 1)(x)).save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match="cannot be loaded.*Lambda layers not allowed"):
        load_network(tmp_path / "lambda.keras", shapes(), 6)


@pytest.mark.parametrize("ignore_class", [None, -1, 255])
def test_written_arrays_read_as_the_data_set_they_were(tmp_path, ignore_class):
    masks = np.random.default_rng(0).integers(3, size=(12, 5, 4))
    if ignore_class is not None:
        masks[:, 0] = ignore_class
    images = np.random.default_rng(1).random((12, 5, 4, 3))
    names, palette = ("a", "b", "ü, c"), [[1, 2, 3], [4, 5, 6], [0, 0, 0]]
    given = ks.data.arrays(images, masks, names, ignore_class, palette)
    write_arrays(tmp_path, given, given)
    for split in ("train", "val"):
        found = ArrayFiles(tmp_path, split)
        assert len(found) == 12 and found.class_names == names
        np.testing.assert_array_equal(found.palette, palette)
        for i in range(12):
            image, mask = given[i]
            np.testing.assert_array_equal(found[i][0], image)
            if ignore_class is not None:
                mask = np.where(mask == ignore_class, found.ignore_class, mask)
            np.testing.assert_array_equal(found[i][1], mask)
    write_arrays(tmp_path, given)  # a tenth is held out
    assert [len(ArrayFiles(tmp_path, split)) for split in ("train", "val")] == [11, 1]


def test_splits_that_do_not_fit_together_are_not_written(tmp_path):
    one = ks.data.arrays(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), int), ("a", "b"))
    other = ks.data.arrays(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), int), ("a", "c"))
    with pytest.raises(ValueError, match="class_names of the validation split is .*'c'"):
        write_arrays(tmp_path / "new", one, other)
    with pytest.raises(ValueError, match="found 3; expected a data set"):
        write_arrays(tmp_path / "new", 3)
    assert not (tmp_path / "new").exists()


def rewritten(path, out, old, new):
    """A copy of a `.keras` file with another text in its `config.json`."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                assert old.encode() in content
                content = content.replace(old.encode(), new.encode())
            copy.writestr(name, content)
    return out


def test_a_file_that_declares_more_weights_than_it_holds_is_refused(saved, tmp_path):
    path = rewritten(saved[0], tmp_path / "huge.keras", '"filters": 3,', '"filters": 9000000000,')
    with pytest.raises(ValueError, match=r"huge.keras declares weights of 905.\d GiB, .* 0.0 MiB"):
        load_network(path, shapes(), 6)
    assert keras.layers.Dense(2).add_weight(shape=(2,)).shape == (2,)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged.keras cannot be loaded. Found: .*Expected a model saved by Keras 3"),
        (b"PK\5\6" + bytes(18), "damaged.keras cannot be loaded. Found: "),
        (b"text", "damaged.keras cannot be loaded. Found: "),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path, content, message):
    path = tmp_path / "damaged.keras"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_keras_file(path)
    assert "\n" not in str(caught.value)
