"""Data sets fetched by hand, in the layouts in which they are published."""

import numpy as np
import pytest
from PIL import Image

from keras_segen import data
from keras_segen.palette import distinct_palette

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))


def photo(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


# CamVid


def make_camvid(root, layout, splits=data.SPLITS):
    images, masks = {"tutorial": ("{}", "{}annot"), "pairs": ("{}/images", "{}/masks")}[layout]
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 12
    for split in splits:
        for number, name in enumerate(("0016E5_07959", "0016E5_07961", "Seq05VD_f00000")):
            save(root / images.format(split) / f"{name}.png", photo(seed=number))
            save(root / masks.format(split) / f"{name}.png", (ids + number) % 12)
    return root, ids


@pytest.mark.parametrize("layout", ["tutorial", "pairs"])
def test_camvid_reads_both_layouts(tmp_path, layout):
    root, ids = make_camvid(tmp_path, layout)
    for split in data.SPLITS:
        dataset = data.load(f"camvid:{root}", split)
        assert len(dataset) == 3 and dataset.num_classes == 11 and dataset.ignore_class == 255
        image, mask = dataset[1]
        assert np.array_equal(image, photo(seed=1) / np.float32(255))
        truth = (ids.astype(int) + 1) % 12
        assert np.array_equal(mask, np.where(truth == 11, 255, truth))
    assert dataset.class_names[0] == "Sky" and dataset.class_names[10] == "Bicyclist"
    assert dataset.palette[3].tolist() == [128, 64, 128]  # road
    assert dataset.groups == ["0016E5", "0016E5", "Seq05VD"]
    assert dataset.item_name(2) == "Seq05VD_f00000"


def test_camvid_says_what_is_missing(tmp_path):
    root, _ = make_camvid(tmp_path, "tutorial", ["train"])
    with pytest.raises(FileNotFoundError, match="neither val/images .* nor val and valannot"):
        data.load(f"camvid:{root}", "val")
    (root / "trainannot" / "0016E5_07959.png").unlink()
    with pytest.raises(ValueError, match=r"no mask for this image; expected .*trainannot.0016"):
        data.load(f"camvid:{root}")
    save(root / "trainannot" / "0016E5_07959.png", np.full((6, 8), 12, np.uint8))
    with pytest.raises(ValueError, match="label 12 in 48 pixels; expected label ids 0 to 11"):
        data.load(f"camvid:{root}")[0]
    save(root / "trainannot" / "0016E5_07959.png", photo())
    with pytest.raises(ValueError, match="a mask of colors; expected label ids in one channel"):
        data.load(f"camvid:{root}")[0]


# Cityscapes

# What the official scripts say of the label ids 0 to 33: their train ids.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12]
TRAIN_IDS += [13, 14, 15, 255, 255, 16, 17, 18]


def make_cityscapes(root, splits=("train", "val"), cities=("aachen", "bonn")):
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 34
    for split in splits:
        for city in cities:
            for frame in range(2):
                name = f"{city}_00000{frame}_000019"
                save(
                    root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
                    photo(seed=frame),
                )
                truth = root / "gtFine" / split / city / f"{name}_gtFine"
                save(truth.with_name(f"{truth.name}_labelIds.png"), ids)
                objects = ids.astype(np.uint16)
                objects[:2] = 26001  # two cars
                objects[3, :4] = 26000
                objects[4] = 24  # people whom nobody told apart
                save(truth.with_name(f"{truth.name}_instanceIds.png"), objects)
    return root, ids


def test_cityscapes_has_the_official_classes(tmp_path):
    root, ids = make_cityscapes(tmp_path)
    dataset = data.load(f"cityscapes:{root}", "val")
    assert len(dataset) == 4 and dataset.num_classes == 19 and dataset.ignore_class == 255
    assert np.array_equal(dataset[0][1], np.array(TRAIN_IDS)[ids])
    assert dataset.class_names[:3] == ("road", "sidewalk", "building")
    assert dataset.class_names[13] == "car" and dataset.palette[13].tolist() == [0, 0, 142]
    assert dataset.label_ids[13] == 26  # what the official evaluation takes
    assert dataset.groups == ["aachen", "aachen", "bonn", "bonn"]
    assert dataset.item_name(3) == "bonn_000001_000019"
    assert len(np.unique(dataset.palette, axis=0)) == 19


def test_cityscapes_tells_objects_apart(tmp_path):
    root, _ = make_cityscapes(tmp_path)
    numbers = data.load(f"cityscapes:{root}").instances(0)
    assert numbers.dtype == np.int32
    expected = np.zeros((6, 8), int)
    expected[:2], expected[3, :4] = 2, 1
    assert np.array_equal(numbers, expected)
    small = data.load(f"cityscapes:{root}", size=(3, 4)).instances(0)
    assert np.array_equal(small, expected[1::2, 1::2])
    (root / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="instanceIds.png: no such file"):
        data.load(f"cityscapes:{root}").instances(0)


def test_cityscapes_has_objects_of_eight_classes(tmp_path):
    root, _ = make_cityscapes(tmp_path)
    ids = np.full((6, 8), 7, np.uint8)  # road
    ids[:2], ids[3], ids[4] = 26, 26, 24
    objects = ids.astype(np.uint16)
    objects[:2], objects[3, :4], objects[3, 4:] = 26001, 26000, 26  # two cars, and a group of them
    truth = root / "gtFine" / "val" / "aachen" / "aachen_000000_000019_gtFine"
    save(truth.with_name(f"{truth.name}_labelIds.png"), ids)
    save(truth.with_name(f"{truth.name}_instanceIds.png"), objects)
    dataset = data.as_instances(data.load(f"cityscapes:{root}", "val"))
    names = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert dataset.class_names == tuple(names)
    assert dataset.label_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    _, found, void = dataset.objects(0)  # the other car has 4 pixels: a sliver
    assert [(each.name, each.crowd, each.area) for each in found] == [
        ("person", True, 8),
        ("car", True, 4),
        ("car", False, 16),
    ]
    assert void[3, :4].all() and void.sum() == 4


def test_cityscapes_says_which_files_are_missing_and_where_they_are(tmp_path):
    where = "fetched by hand.*cityscapes-dataset.com.*leftImg8bit_trainvaltest.zip.*gtFine_trainv"
    with pytest.raises(FileNotFoundError, match=f"leftImg8bit.train: no such folder. .*{where}"):
        data.load(f"cityscapes:{tmp_path}")
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"gtFine.train: no such folder. .*{where}"):
        data.load(f"cityscapes:{tmp_path}")
    (tmp_path / "gtFine" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"train: no CITY/.*png. .*{where}"):
        data.load(f"cityscapes:{tmp_path}")
    root, _ = make_cityscapes(tmp_path)
    for frame in range(2):
        (root / f"gtFine/val/bonn/bonn_00000{frame}_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="bonn_000000_.*labelIds.png: .*; 2 of 4 masks are missing. Citysc"
    ):
        data.load(f"cityscapes:{root}", "val")
    with pytest.raises(ValueError, match="labels of Cityscapes' test split are not public.*'val'"):
        data.load(f"cityscapes:{root}", "test")


# PASCAL VOC


def make_voc(root):
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 22
    ids[ids == 21] = 255
    for name in ("2007_000032", "2007_000039", "2008_000001"):
        save(root / "JPEGImages" / f"{name}.jpg", photo())
        palette = Image.fromarray(ids).convert("P")
        palette.putpalette(distinct_palette(256).tobytes())
        (root / "SegmentationClass").mkdir(exist_ok=True)
        palette.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_000001\n2007_000032\n")
    (lists / "val.txt").write_text("2007_000039\n")
    return ids


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_reads_the_lists_and_the_palette_masks(tmp_path, inside):
    ids = make_voc(tmp_path / inside)
    dataset = data.load(f"voc2012:{tmp_path}")
    assert [dataset.item_name(index) for index in (0, 1)] == ["2008_000001", "2007_000032"]
    assert len(data.load(f"voc2012:{tmp_path}", "val")) == 1
    image, mask = dataset[0]
    assert image.shape == (6, 8, 3) and np.array_equal(mask, ids)
    assert dataset.num_classes == 21 and dataset.class_names[15] == "person"
    assert dataset.palette[15].tolist() == [192, 128, 128] and dataset.ignore_class == 255
    assert dataset.groups is None


def test_voc_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.txt: no such file. .*VOCtrainval_11-May"):
        data.load(f"voc2012:{tmp_path}")
    make_voc(tmp_path)
    with pytest.raises(ValueError, match="labels of VOC 2012's test split are not public"):
        data.load(f"voc2012:{tmp_path}", "test")
    (tmp_path / "SegmentationClass" / "2008_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="2008_000001.png: .*; 1 of 2 masks are missing"):
        data.load(f"voc2012:{tmp_path}")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="train.txt: no names; expected one per line"):
        data.load(f"voc2012:{tmp_path}")


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_published_data_sets_are_resized_and_cached_as_folders_are(tmp_path, where):
    root, _ = make_cityscapes(tmp_path)
    plain = data.load(f"cityscapes:{root}", size=(3, 4), channels=1)
    cached = data.load(f"cityscapes:{root}", size=(3, 4), channels=1, cache=where)
    for _ in range(2):
        for index in range(4):
            for one, other in zip(plain[index], cached[index], strict=True):
                assert np.array_equal(one, other)
    assert cached.image_shape == (3, 4, 1) and cached.target_spec.shape == (3, 4)
    assert cached.pixel_counts().sum() == sum((plain[i][1] != 255).sum() for i in range(4))


def test_groups_csv_says_which_images_belong_together(tmp_path):
    make_camvid(tmp_path, "pairs", ["train"])
    assert data.load(f"folder:{tmp_path}").groups is None
    table = tmp_path / "groups.csv"
    table.write_text("name,group\nSeq05VD_f00000,b\n0016E5_07959, a\n0016E5_07961,a\nother,c\n")
    assert data.load(f"folder:{tmp_path}").groups == ["a", "a", "b"]
    for text, message in (
        ("name,group\n0016E5_07959,a\n", r"no group for 0016E5_07961 \(of 2 images without\)"),
        ("stem,group\n0016E5_07959,a\n", "row 2: found name '' and group 'a'; expected the col"),
        ("name,group\n0016E5_07959\n", "row 2: found name '0016E5_07959' and group ''"),
        ("name,group\nx,a\nx,b\n", "row 3: x is also in group 'a'"),
        ('name,group\n"x,a\n', "not a table in UTF-8 with commas"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=f"groups.csv.*{message}"):
            data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["camvid", "camvid:", "shapes:here", "shapes:", None, 3])
def test_a_name_needs_a_path_where_the_table_has_one(name):
    with pytest.raises(ValueError, match=f"no data set is named {name!r}; expected one of shapes"):
        data.load(name)
