"""Data sets of objects: planes from every source, slots, void, crowds, augmentation."""

import warnings

import numpy as np
import pytest
from objects import write_scenes
from PIL import Image

from keras_segen import data
from keras_segen.data.augment import Augment
from keras_segen.data.instances import MIN_PIXELS, NUMBERS, VOID, instance_of, to_slots
from keras_segen.data.loader import Batches

pytestmark = pytest.mark.once  # NumPy only


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))


def one_image(mask, instances, **options):
    images = np.zeros((1, *np.shape(mask)), "uint8")
    return data.arrays(images, [mask], instances=np.array([instances]), **options)


def two_squares():
    """A square of class 1, and one of class 2, on 12 x 16 pixels."""
    mask, numbers = np.zeros((2, 12, 16), int)
    mask[1:5, 2:6], numbers[1:5, 2:6] = 1, 7
    mask[6:11, 9:15], numbers[6:11, 9:15] = 2, 3
    return mask, numbers


def boxes_of(plane):
    return {
        int(value): instance_of(plane == value, 1, "").box.tolist()
        for value in np.unique(plane)
        if value > 255
    }


def test_shapes_says_which_object_each_pixel_belongs_to():
    scenes = data.Shapes("val", size=48, length=4)
    objects = data.as_instances(scenes)
    assert objects.class_names == ("disc", "box", "triangle", "star", "ring")
    for i in range(4):
        _, plane = objects[i]
        _, mask, numbers = scenes.read_instances(i)
        assert plane.dtype == np.int32
        assert np.array_equal(numbers, scenes.instances(i))
        known = plane != 255
        assert np.array_equal((plane // 256)[known], mask[known])  # void: slivers
        assert len(np.unique(plane[plane > 255])) == (np.bincount(numbers[numbers > 0]) >= 10).sum()
        assert np.array_equal(objects.read_mask(i)[mask > 0], mask[mask > 0] - 1)


def test_the_boxes_of_an_augmented_plane_are_right():
    objects = data.as_instances(one_image(*two_squares()))
    (image, plane), (_, flipped) = (
        next(Batches(objects, 1, seed=0, augment=augment).read(0))
        for augment in (None, Augment.parse("flip=1"))
    )
    assert image.shape == (1, 12, 16, 1)
    assert boxes_of(plane[0]) == {257: [2, 1, 6, 5], 514: [9, 6, 15, 11]}
    assert boxes_of(flipped[0]) == {257: [10, 1, 14, 5], 514: [1, 6, 7, 11]}
    # What a shift brings in from outside is void, and an object that left has no number.
    shift = Augment.parse("shift=1,0.5,0.5")
    (_, moved) = next(Batches(objects, 1, seed=0, augment=shift).read(0))
    assert boxes_of(moved[0]) == {257: [10, 7, 14, 11]}
    assert (moved[0][:6] == 255).all() and (moved[0][:, :8] == 255).all()


def test_of_too_many_objects_the_smallest_are_void_and_that_is_said_once():
    objects = data.as_instances(one_image(*two_squares()), max_instances=1)
    with pytest.warns(UserWarning, match="has 2 objects, and max_instances is 1: the 1 smallest"):
        _, plane = objects[0]
    assert boxes_of(plane) == {513: [9, 6, 15, 11]}
    assert (plane[1:5, 2:6] == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(objects[0][1], plane)
    _, whole, _ = objects.objects(0)  # the truth by which it is judged has both
    assert [each.name for each in whole] == ["class 1", "class 2"]


def test_slivers_crowds_and_void_are_void():
    mask, numbers = two_squares()
    mask[0, :9], numbers[0, :9] = 1, 1  # 9 pixels: a sliver
    mask[11, :], numbers[11, :] = 2, 0  # a crowd
    mask[:, 15] = 9
    objects = data.as_instances(one_image(mask, numbers, ignore_class=9))
    image, plane = objects[0]
    assert MIN_PIXELS == 10
    assert (plane[0, :9] == 255).all() and (plane[11] == 255).all() and (plane[:, 15] == 255).all()
    _, found, void = objects.objects(0)
    assert [(each.name, each.crowd, each.area) for each in found] == [
        ("class 1", False, 16),
        ("class 2", True, 15),
        ("class 2", False, 30),
    ]
    assert void[0, :9].all() and void[:, 15].all() and not void[11, :15].any()
    assert found[0].mask[1:5, 2:6].all() and found[0].mask.sum() == 16


def test_objects_of_a_plane_are_numbered_from_one():
    plane = np.repeat([0, NUMBERS + 900, 3 * NUMBERS + 5, VOID, 2 * NUMBERS], 10).reshape(5, 10)
    slots, dropped = to_slots(plane.astype("int32"), 20)
    assert slots[:, 0].tolist() == [0, 257, 3 * 256 + 2, 255, 255]
    assert dropped == 0


def test_a_folder_of_instances(tmp_path):
    root = write_scenes(tmp_path / "scenes", {"train": 3, "val": 1})
    for cache in (None, "ram", "disk"):
        objects = data.as_instances(data.load(f"folder:{root}", "train", cache=cache))
        scenes = data.as_instances(data.Shapes("train", size=48, length=3))
        for i in (0, 1, 2, 0):
            assert np.array_equal(objects[i][1], scenes[i][1])
        assert objects.label_ids == (1, 2, 3, 4, 5)
    small = data.as_instances(data.load(f"folder:{root}", "train", size=24))
    assert small[0][1].shape == (24, 24)


def test_what_is_wrong_with_a_plane_is_said_with_its_file(tmp_path):
    root = write_scenes(tmp_path / "scenes", {"train": 2})
    path = root / "train" / "instances" / "scene1.png"
    numbers = np.array(Image.open(path))
    Image.fromarray(np.minimum(numbers, 1)).save(path)
    with pytest.raises(
        ValueError, match=r"scene1.png: object 1 has pixels of disc and .*one class"
    ):
        data.as_instances(data.load(f"folder:{root}"))
    Image.fromarray(numbers[:10]).save(path)
    with pytest.raises(ValueError, match="scene1.png: the instances have 10 x 48 pixels.*48 x 48"):
        data.as_instances(data.load(f"folder:{root}"))
    Image.fromarray(np.zeros((48, 48, 3), "uint8")).save(path)
    with pytest.raises(ValueError, match="scene1.png: instances in colors; expected whole numbers"):
        data.as_instances(data.load(f"folder:{root}"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="scene1.png: no instances for this image"):
        data.as_instances(data.load(f"folder:{root}"))


def test_what_tells_no_objects_apart_is_refused():
    with pytest.raises(ValueError, match="arrays has masks of classes only"):
        data.as_instances(data.arrays(np.zeros((1, 8, 8)), np.zeros((1, 8, 8), int)))
    with pytest.raises(ValueError, match="max_instances is 255, expected 1 to 254"):
        data.as_instances(data.Shapes(), 255)


def test_arrays_of_instances(tmp_path):
    mask, numbers = two_squares()
    memory = one_image(mask, numbers)
    assert memory.object_classes == (1, 2)
    for split in ("train", "val"):
        np.save(tmp_path / f"x_{split}.npy", np.zeros((1, 12, 16), "uint8"))
        np.save(tmp_path / f"y_{split}.npy", mask[None].astype("uint8"))
        np.save(tmp_path / f"instances_{split}.npy", numbers[None].astype("uint16"))
    disk = data.load(f"arrays:{tmp_path}", "val")
    assert disk.object_classes == (1, 2)
    assert np.array_equal(data.as_instances(disk)[0][1], data.as_instances(memory)[0][1])
    with pytest.raises(ValueError, match="instances are int64 \\(1, 3\\); expected whole numbers"):
        data.arrays(np.zeros((1, 8, 8)), np.zeros((1, 8, 8), int), instances=np.zeros((1, 3), int))
    with pytest.raises(ValueError, match=r"instances\[0\]: object 1 has pixels of class 1 and"):
        one_image(mask, np.minimum(numbers, 1))
