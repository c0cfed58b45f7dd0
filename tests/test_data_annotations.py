"""Annotations in COCO's and LabelMe's formats, made into masks and instances."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import skimage.draw
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from keras_segen import data
from keras_segen.data.annotations import decode_run_lengths, fill_polygon

pytestmark = pytest.mark.once  # no framework is asked

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(hnp.arrays(bool, SHAPES))
def test_run_lengths_are_decoded_as_by_pycocotools(mask):
    packed = coco.encode(np.asfortranarray(mask.astype("uint8")))["counts"].decode()
    np.testing.assert_array_equal(decode_run_lengths(packed, mask.shape), mask)
    runs = np.flatnonzero(np.diff(np.r_[False, mask.T.ravel()]))
    counts = np.diff(np.r_[0, runs, mask.size]).tolist()
    np.testing.assert_array_equal(decode_run_lengths(counts, mask.shape), mask)
    compressed = coco.frPyObjects({"counts": counts, "size": list(mask.shape)}, *mask.shape)
    np.testing.assert_array_equal(coco.decode(compressed), mask)


def test_long_run_lengths_take_several_characters():
    mask = np.zeros((900, 1100), bool)
    mask[300:880, 20:1000] = True
    packed = coco.encode(np.asfortranarray(mask.astype("uint8")))["counts"].decode()
    np.testing.assert_array_equal(decode_run_lengths(packed, mask.shape), mask)


@pytest.mark.parametrize(
    "counts, message",
    [
        ([3, 4], "add up to 7; expected 2 x 3 pixels"),
        ([3, -1, 4], "not all whole numbers"),
        ([3.0, 3.0], "not all whole numbers"),
        ("\x00", "holds no run lengths"),
        ("m", "ends within a number"),
        ("o" * 30, "holds no run lengths"),
    ],
)
def test_damaged_run_lengths_are_named(counts, message):
    with pytest.raises(ValueError, match=f"here: .*{message}"):
        decode_run_lengths(counts, (2, 3), "here")


def far_from_edges(points, shape):
    """Which pixels' centers are more than 1e-9 from every edge: bool `(height, width)`."""
    centers = np.stack(np.indices(shape)[::-1], axis=-1)[:, :, None] + 0.5  # (height, width, 1, 2)
    edges = np.roll(points, -1, axis=0) - points
    along = ((centers - points) * edges).sum(axis=-1) / np.maximum((edges**2).sum(axis=-1), 1e-30)
    nearest = points + along.clip(0, 1)[..., None] * edges
    return (np.linalg.norm(centers - nearest, axis=-1) > 1e-9).all(axis=-1)


def test_polygons_are_filled_as_by_scikit_image():
    pixels = left_out = 0

    @given(
        st.lists(st.tuples(st.floats(-5, 35), st.floats(-5, 35)), min_size=3, max_size=8),
        SHAPES,
    )
    @example([(0, 0), (0, 1), (2, 2)], (2, 2))  # centers on an edge are in or out by rounding
    def compare(points, shape):
        nonlocal pixels, left_out
        points = np.round(np.array(points), 2) + 0.003
        expected = skimage.draw.polygon2mask(shape, points[:, ::-1] - 0.5)
        compared = far_from_edges(points, shape)
        np.testing.assert_array_equal(fill_polygon(points, shape)[compared], expected[compared])
        pixels += compared.size
        left_out += (~compared).sum()

    compare()
    assert left_out < 0.01 * pixels


def test_polygons_are_about_those_of_pycocotools():
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    points = np.stack([50 + 30 * np.cos(angle), 40 + 20 * np.sin(angle)], axis=1)
    theirs = coco.decode(coco.frPyObjects([points.ravel().tolist()], 80, 100))[..., 0] > 0
    ours = fill_polygon(points, (80, 100))
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97


def photo(path, height=20, width=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, "uint8")).save(path)


def square(left, top, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def coco_file(root, **changes):
    photo(root / "photos" / "a.jpg")
    photo(root / "photos" / "sub" / "b.png")
    crowd = np.zeros((20, 30), "uint8", order="F")
    crowd[:, 24:] = 1
    run = {"counts": [60, 20, 520], "size": [20, 30]}
    packed = {"counts": coco.encode(crowd)["counts"].decode(), "size": [20, 30]}
    content = {
        "categories": [{"id": 7, "name": "tree"}, {"id": 3, "name": "car"}],
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 2, "file_name": "sub/b.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 7, "segmentation": [square(2, 2, 4)]},
            {"image_id": 1, "category_id": 7, "segmentation": [square(0, 0, 12)]},
            {"image_id": 1, "category_id": 3, "segmentation": [square(20, 0, 6)]},
            {"image_id": 1, "category_id": 7, "segmentation": run, "iscrowd": 0},
            {"image_id": 1, "category_id": 7, "segmentation": packed, "iscrowd": 1},
        ],
    }
    path = root / "all.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def test_coco_becomes_a_folder(tmp_path):
    source, out = coco_file(tmp_path), tmp_path / "out"
    found = data.import_annotations(source, out, images=tmp_path / "photos", split="train")
    assert (found.kind, found.images, found.objects) == ("COCO", 2, 4)
    assert found.class_names == ("background", "car", "tree")
    assert found.notes == ["Void, because they are crowds: 1."]
    mask = read(out / "train" / "masks" / "a.png")
    instances = read(out / "train" / "instances" / "a.png")
    assert mask.dtype == np.uint8 and instances.dtype == np.uint16
    # The smallest over the run lengths (column 3) over the large one; the crowd below all.
    assert instances[3, 2] == 2 * 256 + 1 and instances[10, 10] == 2 * 256 + 2
    assert instances[3, 3] == 2 * 256 + 1 and instances[7, 3] == 2 * 256 + 3
    assert instances[3, 25] == 1 * 256 + 1 and mask[3, 25] == 1
    assert instances[3, 26] == 0 and mask[3, 26] == 3
    assert instances[19, 15] == 0 and mask[19, 15] == 0
    np.testing.assert_array_equal(instances[instances > 255] // 256, mask[instances > 255])
    loaded = data.load(f"folder:{out}", "train")
    assert [loaded.item_name(i) for i in range(2)] == ["a", "sub_b"]
    assert loaded.class_names == found.class_names and loaded.ignore_class == 255
    assert sorted(np.unique(loaded[0][1])) == [0, 1, 2, 255]
    assert not loaded[1][1].any()


def test_a_second_split_takes_the_classes_of_the_first(tmp_path):
    out, photos = tmp_path / "out", tmp_path / "photos"
    data.import_annotations(coco_file(tmp_path), out, images=photos, split="train")
    fewer = coco_file(tmp_path, categories=[{"id": 1, "name": "tree"}], annotations=[])
    found = data.import_annotations(fewer, out, images=photos, split="val", link=True)
    assert found.class_names == ("background", "car", "tree")
    assert (out / "val" / "images" / "a.jpg").samefile(photos / "a.jpg")
    with pytest.raises(FileExistsError, match="val is there already"):
        data.import_annotations(fewer, out, images=photos, split="val")
    other = coco_file(tmp_path, categories=[{"id": 1, "name": "bus"}], annotations=[])
    with pytest.raises(ValueError, match="has no class 'bus'; it has background, car, tree"):
        data.import_annotations(other, out, images=photos, split="test")
    assert sorted(path.name for path in out.iterdir()) == ["classes.csv", "train", "val"]


def test_what_is_imported_without_a_split_can_be_split(tmp_path):
    out = tmp_path / "out"
    data.import_annotations(coco_file(tmp_path), out, images=tmp_path / "photos")
    found = data.split_folder(out, tmp_path / "ready", val=0.5, test=0)
    assert len(found["train"]) == len(found["val"]) == 1
    assert (tmp_path / "ready" / "val" / "instances").is_dir()


ENTRY = {"image_id": 1, "category_id": 7}
IMAGE = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": [{"image_id": 9}]}, r"annotations\[0\]: category_id is 'None'"),
        ({"annotations": [{**ENTRY, "image_id": 9}]}, "image_id 9 is not in the file"),
        ({"annotations": [{**ENTRY, "category_id": 9}]}, "category_id 9 is not in the file"),
        ({"annotations": [{**ENTRY, "segmentation": []}]}, "segmentation is empty"),
        ({"annotations": [{**ENTRY, "segmentation": [[1, 2]]}]}, "of at least 3 points"),
        ({"annotations": [{**ENTRY, "segmentation": [[1, 2, 3, 4, 5]]}]}, "at least 3 points"),
        ({"annotations": [{**ENTRY, "segmentation": [[float("nan")] * 6]}]}, "at least 3"),
        ({"annotations": [{**ENTRY, "segmentation": [["x"] * 6]}]}, "at least 3 points"),
        ({"annotations": [{**ENTRY, "segmentation": [[10**400] * 6]}]}, "at least 3 points"),
        ({"annotations": [{**ENTRY, "iscrowd": "yes"}]}, "iscrowd is 'yes', expected 0 or 1"),
        (
            {"annotations": [{**ENTRY, "segmentation": {"counts": [4], "size": [2, 2]}}]},
            r"size is \[2, 2\], expected that of the image, \[20, 30\]",
        ),
        ({"annotations": [{**ENTRY, "segmentation": {"size": [20, 30]}}]}, "counts is 'None'"),
        ({"annotations": [3]}, r"annotations\[0\]: image_id is 'None', expected a whole number"),
        ({"annotations": {}}, "annotations is '{}', expected a list"),
        ({"images": []}, "no images"),
        ({"images": [IMAGE, IMAGE]}, "the id 1 is there twice"),
        ({"images": [IMAGE, {**IMAGE, "id": 2}], "annotations": []}, "two images named a"),
        ({"images": [{**IMAGE, "height": "20"}]}, "height is '20', expected a whole number"),
        ({"images": [{**IMAGE, "width": 3000}], "annotations": []}, "are for 20 x 3000 pixels"),
        ({"images": [{**IMAGE, "file_name": "../all.json"}]}, "leads out of the folder"),
        ({"images": [{**IMAGE, "file_name": "/etc/passwd"}]}, "leads out of the folder"),
        ({"images": [{**IMAGE, "file_name": "c.jpg"}], "annotations": []}, "1 of 1 images are"),
        ({"images": [{**IMAGE, "file_name": ""}]}, "file_name is '', expected that of an image"),
        ({"images": [{**IMAGE, "file_name": "a\0.jpg"}]}, r"'a.x00.jpg' names no file"),
        ({"images": [{**IMAGE, "file_name": "a" * 5000}]}, r"'aaa.* names no file"),
        ({"images": [{**IMAGE, "file_name": "\ud800"}]}, "names no file"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, "expected no control characters"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, "expected no control characters"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]}, "different names"),
        ({"categories": [{"id": i, "name": str(i)} for i in range(300)]}, "at most 254"),
    ],
)
def test_wrong_entries_of_coco_are_named_and_nothing_is_written(tmp_path, changes, message):
    if "categories" in changes:
        changes["annotations"] = []
    source = coco_file(tmp_path, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.import_annotations(source, tmp_path / "out", images=tmp_path / "photos")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "photos"]


def test_an_error_within_the_masks_leaves_nothing(tmp_path):
    wrong = {**ENTRY, "segmentation": {"counts": [4, 4], "size": [20, 30]}}
    source = coco_file(tmp_path, annotations=[wrong])
    with pytest.raises(ValueError, match=r"annotations\[0\]: run lengths add up to 8"):
        data.import_annotations(source, tmp_path / "out", images=tmp_path / "photos")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "photos"]


@pytest.mark.parametrize(
    "text, message",
    [("[]", "a list; expected a JSON object"), ("{", "no JSON"), ("{}", "found nothing")],
)
def test_other_files_are_named(tmp_path, text, message):
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.import_annotations(tmp_path / "some.json", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.import_annotations(tmp_path / "no.json", tmp_path / "out")


def test_more_objects_than_numbers_are_a_crowd(tmp_path):
    photo(tmp_path / "a.png", 20, 40)
    places = [(2 * (i % 20), 2 * (i // 20)) for i in range(200)]
    squares = [square(x, y, 1) for x, y in places] + [square(x + 1, y, 1) for x, y in places]
    entries = [{"image_id": 1, "category_id": 1, "segmentation": [each]} for each in squares]
    content = {
        "categories": [{"id": 1, "name": "cell"}],
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 40}],
        "annotations": entries,
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    found = data.import_annotations(tmp_path / "all.json", tmp_path / "out")
    assert found.objects == 255
    assert found.notes == [
        "Not told apart in instances/, which holds 255 of a class in an image: 145."
    ]
    instances = read(tmp_path / "out" / "instances" / "a.png")
    assert (instances == 0).sum() == 800 - 255 and instances.max() == 256 + 255
    assert read(tmp_path / "out" / "masks" / "a.png").sum() == 400


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme_file(path, shapes, **changes):
    content = {"imagePath": "x.png", "imageHeight": 20, "imageWidth": 30, "shapes": shapes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))
    return path


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def test_labelme_becomes_a_folder(tmp_path):
    photo(tmp_path / "in" / "x.png")
    ring = np.array([[255, 255, 255], [255, 0, 255]], "uint8")
    labelme_file(
        tmp_path / "in" / "street.1.json",
        [
            shape("dog", [[0, 0], [4, 0], [4, 4], [0, 4]], group_id=1),
            shape("dog", [[6, 0], [8, 4]], "rectangle", group_id=1),
            shape("cat", [[15, 10], [15, 13]], "circle"),
            shape("dog", [[20, 2], [22, 3]], "mask", mask=encoded(ring)),
            shape("__ignore__", [[0, 16], [30, 20]], "rectangle"),
            shape("dog", [[1, 1]], "point"),
        ],
    )
    inside = np.full((20, 30, 3), 7, "uint8")
    labelme_file(
        tmp_path / "in" / "more" / "y.json",
        [shape("_background_", [[0, 0], [9, 0], [0, 9]])],
        imagePath="..\\gone.png",
        imageData=encoded(inside),
    )
    found = data.import_annotations(tmp_path / "in", tmp_path / "out", split="train")
    assert (found.kind, found.images, found.objects) == ("LabelMe", 2, 3)
    assert found.class_names == ("background", "cat", "dog")
    assert found.notes == ["Left out, because they have no area: 1 of type point."]
    instances = read(tmp_path / "out" / "train" / "instances" / "street.1.png")
    assert instances[0, 0] == instances[3, 7] == 2 * 256 + 1  # one object of two parts
    assert (instances == 1 * 256 + 1).sum() == pytest.approx(np.pi * 9, abs=4)
    assert (instances[2:4, 20:23] == [[514, 514, 514], [514, 0, 514]]).all()
    assert (instances[16:] == 0).all() and instances[15, 29] == 0
    loaded = data.load(f"folder:{tmp_path / 'out'}", "train")
    assert [loaded.item_name(i) for i in range(2)] == ["more_y", "street.1"]
    np.testing.assert_allclose(loaded[0][0], 7 / 255, rtol=1e-6)
    _, objects, void = data.as_instances(loaded).objects(1)
    assert sorted(each.name for each in objects) == ["cat", "dog"]
    assert void[16:].all() and void[2, 20]  # one of five pixels is too small


COLORS = encoded(np.full((2, 3, 3), (255, 0, 9), "uint8"))


@pytest.mark.parametrize(
    "entry, changes, message",
    [
        (shape("", [[0, 0], [4, 0], [4, 4]]), {}, r"shapes\[0\]: the label is empty"),
        (shape("a", [[0, 0]], "circle"), {}, "expected x and y of 2 points"),
        (shape("a", "no"), {}, "points is 'no', expected a list"),
        (shape("a", [[10**400, 0], [4, 0], [4, 4]]), {}, "expected x and y of at least 3 points"),
        (shape("a", [[0, 0], [4, 0], [4, 4]], ["polygon"]), {}, r"shape_type is .*expected text"),
        (shape("a\0", []), {}, "expected no control characters"),
        (shape("a", []), {"imagePath": "x\0.png"}, "names no file"),
        (shape("a", [[0, 0], [2, 2]], "mask", mask=COLORS), {}, "an image in colors; expected"),
        (shape("a", [[0, 0], [2, 2]], "mask", mask="§"), {}, "no base64"),
        (shape("a", [[0, 0], [2, 2]], "mask", mask="AAAA"), {}, "cannot be read as an image"),
        (shape("a", [[0, 0], [2, 2]], "rectangle"), {"imageHeight": 21}, "are for 21 x 30"),
        (shape("a", []), {"imagePath": "../../x.png"}, "is not in .* name the folder"),
        (shape("a", []), {"imagePath": None, "imageData": "AAAA"}, "no image"),
    ],
)
def test_wrong_entries_of_labelme_are_named(tmp_path, entry, changes, message):
    photo(tmp_path / "in" / "x.png")
    source = labelme_file(tmp_path / "in" / "x.json", [entry], **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.import_annotations(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_did(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_segen", "import-annotations", coco_file(tmp_path)]
        + ["--images", tmp_path / "photos", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "COCO: 2 images, 4 objects, 3 classes: background, car, tree" in done.stdout
    assert "Void, because they are crowds: 1." in done.stdout and "keras-segen split" in done.stdout
