"""Targets that are more than a mask: a dict of arrays, from the data set to `fit`."""

import zlib

import keras
import numpy as np
import pytest

import keras_segen as ks
from keras_segen import backend
from keras_segen.compare.child import CheckedBatches
from keras_segen.compare.layerwise.record import record
from keras_segen.data.loader import Batches
from keras_segen.data.tree import checksum, conform, map_tree

# Two epochs of batches, the same number on every backend and for any number of workers.
CHECKSUM = 2759166201


class Objects(ks.data.Shapes):
    """Scenes with three targets: the mask, how many classes are in it, the box around them."""

    @property
    def target_spec(self):
        return {
            "mask": ks.data.Spec(self.image_shape[:2], "int32"),
            "count": ks.data.Spec((1,), "float32"),
            "box": ks.data.Spec((4,), "float32"),
        }

    def make_target(self, stored):
        count = len(np.unique(stored[stored > 0]))
        return {"mask": stored, "count": np.array([count]), "box": box_of(stored)}


class Fixed(ks.data.Pictures):
    """Pictures, all of which have the target that a test gives."""

    def __init__(self, target, spec):
        super().__init__("fixed", "train", image_shape=(2, 2, 1))
        self.target, self.spec = target, spec

    target_spec = property(lambda self: self.spec)

    def __len__(self):
        return 3

    def read(self, index):
        return np.zeros((2, 2, 1), "float32"), self.target


class TwoOutputs(keras.Model):
    """Gives logits and a box; the count, which no output tells, weighs the loss of the mask."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        pixels = keras.losses.sparse_categorical_crossentropy(y["mask"], y_pred["mask"], True)
        weighted = keras.ops.mean(pixels, (1, 2)) * y["count"][:, 0]
        distance = keras.losses.mean_squared_error(y["box"], y_pred["box"])
        return keras.ops.mean(weighted + distance)


def box_of(mask):
    """The box (x1, y1, x2, y2), half-open, around what is not background; 0 to 1."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros(4)
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return np.array(corners) / len(mask)


def objects():
    return Objects("train", size=16, length=10)


def network(kind, names):
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(images)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        "mask": keras.layers.Conv2D(6, 1)(x),
        "count": keras.layers.Dense(1)(pooled),
        "box": keras.layers.Dense(4)(pooled),
    }
    model = kind(images, {name: outputs[name] for name in names})
    ks.initialize(model, seed=0)
    return model


def test_tree_batches_are_equal_on_every_backend_and_for_any_workers():
    for workers in (0, 2):
        loader = objects().batches(4, seed=3, augment=ks.data.Augment(), workers=workers)
        batches = [
            keras.tree.map_structure(keras.ops.convert_to_numpy, batch)
            for _ in range(2)
            for batch in loader
        ]
        images, target = batches[0]
        assert images.shape == (4, 16, 16, 3)
        assert {key: (value.shape, str(value.dtype)) for key, value in target.items()} == {
            "mask": ((4, 16, 16), "int32"),
            "count": ((4, 1), "float32"),
            "box": ((4, 4), "float32"),
        }
        assert zlib.crc32(repr([checksum(*batch) for batch in batches]).encode()) == CHECKSUM


def test_targets_are_made_after_the_augmentation():
    augment = ks.data.Augment(flip=1.0)
    images, target = Batches(objects(), 10, seed=0, augment=augment).batch(0, 0)
    _, plain = Batches(objects(), 10, seed=0).batch(0, 0)
    assert images.shape[0] == 10
    np.testing.assert_allclose(target["box"], [box_of(mask) for mask in target["mask"]])
    assert not np.array_equal(target["box"], plain["box"])


def test_a_functional_model_of_two_outputs_learns_from_three_targets():
    model = network(TwoOutputs, ("mask", "box"))
    model.compile(keras.optimizers.Adam(0.01))
    loader = backend.make_loader(Batches(objects(), 5, seed=0))
    history = model.fit(loader, epochs=30, shuffle=False, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    # The same number on both backends.
    assert history["loss"][0] == pytest.approx(5.281424, rel=1e-5)


def test_losses_are_found_by_the_keys_of_the_target():
    model = network(keras.Model, ("mask", "count", "box"))
    losses = {"mask": ks.losses.CrossEntropy(), "count": "mse", "box": "mse"}
    model.compile("adam", losses, metrics={"mask": [ks.metrics.MeanIoU(6)]})
    loader = backend.make_loader(Batches(objects(), 5, seed=0))
    history = model.fit(loader, epochs=15, shuffle=False, verbose=0).history
    for name in ("mask_loss", "count_loss", "box_loss"):
        assert history[name][-1] < history[name][0]
    assert history["mask_loss"][0] == pytest.approx(1.707095, rel=1e-5)


def test_a_part_has_the_targets_of_the_whole():
    part = ks.data.Subset(objects(), [7, 2], "val")
    assert part.target_spec == objects().target_spec
    (_, here), (_, there) = part[1], objects()[2]
    assert checksum(here) == checksum(there)
    ((_, target),) = Batches(part, 2).read(0)
    assert target["box"].shape == (2, 4)


def test_a_part_is_one_of_images_with_masks():
    with pytest.raises(ValueError, match="expected a data set of images with masks"):
        ks.data.Subset(ks.data.as_pictures(objects()), [0], "val")


def test_a_comparison_takes_the_checksum_of_the_whole_tree():
    batches = CheckedBatches(objects(), 4)
    taken = list(batches.read(0))
    images, target = taken[0]
    value = zlib.crc32(images)
    for key in ("box", "count", "mask"):
        value = zlib.crc32(target[key], value)
    assert batches.checksums["epoch 0, step 0"] == value


def test_the_checksum_of_images_and_masks_is_as_it_was():
    images, masks = Batches(ks.data.Shapes("train", size=16, length=4), 4).batch(0, 0)
    assert checksum(images, masks) == zlib.crc32(masks, zlib.crc32(images))
    assert checksum(images[:, ::2], masks) != checksum(images, masks)


def test_layers_are_recorded_with_a_dict_of_targets():
    batches = Batches(objects(), 5, seed=0)
    data = [batches.batch(0, step) for step in range(2)]
    losses = {"mask": ks.losses.CrossEntropy(), "count": "mse", "box": "mse"}
    model = network(keras.Model, ("mask", "count", "box"))
    found = record(model, data, lambda copy: copy.compile("sgd", losses))
    assert found.batches == [checksum(*batch) for batch in data]
    assert np.isfinite(found.arrays["float64/steps/loss"]).all()


def test_trees_are_mapped_in_the_order_of_their_keys():
    seen = []
    tree = {"y": 1, "x": {"b": 2, "a": 3}}
    doubled = map_tree(lambda leaf: seen.append(leaf) or 2 * leaf, tree)
    assert seen == [3, 2, 1] and doubled == {"x": {"a": 6, "b": 4}, "y": 2}
    other = {"x": {"a": 3, "b": 2}, "y": 1}
    assert checksum(tree) == checksum(other) != checksum({"x": {"a": 2, "b": 3}, "y": 1})


def test_numbers_become_those_of_the_spec():
    spec = {"label": ks.data.Spec((), "int32"), "box": ks.data.Spec((2,), "float32")}
    found = conform({"label": np.int64(3), "box": [1.0, 2.0]}, spec, "target")
    assert (found["label"].dtype, found["box"].dtype) == (np.int32, np.float32)


BOX = ks.data.Spec((4,), "float32")


@pytest.mark.parametrize(
    "target, spec, message",
    [
        (np.zeros(3), BOX, r"its target is float64 \(3,\); expected float32 \(4,\)"),
        (np.zeros(4), ks.data.Spec((4,), "int32"), r"float64 \(4,\); expected int32 \(4,\)"),
        ({"box": np.zeros(4)}, BOX, r"a dict of 'box'; expected float32 \(4,\)"),
        (np.zeros(4), {"box": BOX}, r"float64 \(4,\); expected a dict of 'box'"),
        (
            {"box": np.zeros(4)},
            {"box": BOX, "label": BOX},
            "a dict of 'box'; expected a dict of 'box', 'label'",
        ),
        (
            {"of": {"box": np.zeros(5)}},
            {"of": {"box": BOX}},
            r"its target\['of'\]\['box'\] is float64 \(5,\); expected float32 \(4,\)",
        ),
    ],
)
def test_an_item_that_is_not_what_the_spec_says_is_named(target, spec, message):
    with pytest.raises(ValueError, match=f"Item train_00000 of fixed: .*{message}"):
        Batches(Fixed(target, spec), 2).batch(0, 0)


def test_an_image_of_another_size_is_named():
    dataset = ks.data.Shapes("train", size=16, length=2)
    dataset.image_shape = (8, 8, 3)
    message = r"Item train_00001 of shapes: its image is float32 \(16, 16, 3\); expected .*\(8, 8"
    with pytest.raises(ValueError, match=message):
        Batches(dataset, 1).batch(0, 1)


def test_augment_does_not_take_a_label_for_a_mask():
    batches = Batches(Fixed(np.int32(0), ks.data.Spec((), "int32")), 2, seed=0)
    batches.augment = ks.data.Augment()
    with pytest.raises(ValueError, match=r"image has shape \(2, 2, 1\) and mask \(\)"):
        batches.batch(0, 0)
