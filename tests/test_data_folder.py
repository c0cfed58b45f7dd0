import os
import pickle
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from keras_segen import data
from keras_segen.data import cache, images
from keras_segen.data.loader import Batches
from keras_segen.palette import distinct_palette

pytestmark = pytest.mark.once

CSV = "name,red,green,blue,ignore\nsky,10,20,30,\nroad,40,50,60,\nvoid,0,0,0,yes\ncar,70,80,90,\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))


def photo(height=12, width=16, channels=3, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, (height, width, channels), dtype, True)


def labels(height=12, width=16, ids=(0, 1, 3), seed=0):
    picked = np.random.default_rng(seed).choice(ids, (height, width))
    return picked.astype(np.uint8 if max(ids) < 256 else np.uint16)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def make(root, splits=("train",), number=3, ids=(0, 1, 3), table=None):
    for split in splits:
        for i in range(number):
            seed = i + 100 * data.SPLITS.index(split)
            save(root / split / "images" / f"item{i}.png", photo(seed=seed))
            save(root / split / "masks" / f"item{i}.png", labels(ids=ids, seed=seed))
    if table is not None:
        (root / "classes.csv").write_text(table)
    return root


def folder(root, split="train", **options):
    return data.load(f"folder:{root}", split, **options)


# Reading


def test_the_order_is_that_of_the_names_without_suffix(tmp_path):
    for name in ("a", "a-b"):  # with suffix "a-b.png" comes before "a.png"
        save(tmp_path / "train/images" / f"{name}.png", photo())
        save(tmp_path / "train/masks" / f"{name}.png", labels())
    assert [folder(tmp_path).item_name(index) for index in (0, 1)] == ["a", "a-b"]


def test_items_are_paired_by_name_and_sorted(tmp_path):
    make(tmp_path, number=12)
    for name in (".hidden.png", "Thumbs.db"):
        (tmp_path / "train" / "images" / name).write_bytes(b"nothing")
        (tmp_path / "train" / "masks" / name).write_bytes(b"nothing")
    dataset = folder(tmp_path)
    assert (
        len(dataset) == 12 and dataset.item_name(1) == "item1" and dataset.item_name(2) == "item10"
    )
    image, mask = dataset[2]
    assert (image.dtype, mask.dtype) == (np.float32, np.int32)
    assert np.array_equal(image, photo(seed=10).astype(np.float32) / 255)
    assert np.array_equal(mask, np.searchsorted([0, 1, 3], labels(seed=10)))
    assert image.flags.c_contiguous and mask.flags.c_contiguous
    image += 1
    mask += 1
    assert dataset.image_shape == (12, 16, 3) and dataset.split == "train"
    assert dataset.name == f"folder:{tmp_path}"
    with pytest.raises(IndexError, match="which has 12"):
        dataset[12]
    assert folder(tmp_path, size=(6, 8), channels=1).image_shape == (6, 8, 1)


def test_a_common_size_is_that_of_all_splits(tmp_path):
    make(tmp_path, ("train", "val"))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # stored with the sides swapped
    save(tmp_path / "val/images/turned.png", photo(16, 12), exif=turned)
    save(tmp_path / "val/masks/turned.png", labels())
    save(tmp_path / "val/images/.hidden.png", photo(5, 5))
    (tmp_path / "train/images/item0.png").write_bytes(b"no image")
    dataset = folder(tmp_path)
    assert dataset.image_shape == (12, 16, 3) and dataset.sizes == {(12, 16): 6}
    assert folder(tmp_path, "val")[3][0].shape == (12, 16, 3)
    images, masks = Batches(folder(tmp_path, "val"), 4).batch(0, 0)
    assert images.shape == (4, 12, 16, 3) and masks.shape == (4, 12, 16)
    assert data.Subset(dataset, [1], "val").sizes == data.as_pictures(dataset).sizes
    assert data.as_pictures(dataset).image_shape == (12, 16, 3)


def test_sizes_are_named_where_they_differ(tmp_path):
    make(tmp_path, table=CSV)
    for name, height in (("a", 10), ("b", 11), ("c", 11), ("d", 8)):
        save(tmp_path / "test/images" / f"{name}.png", photo(height, 9))
    dataset = folder(tmp_path)
    assert dataset.image_shape is None and dataset.target_spec is None
    message = (
        r"have no common size: 3 of 12x16, 2 of 11x9, 1 of 10x9, others. "
        r".* --image-size 128x128 .*, size=\(128, 128\) in Python"
    )
    for part in (dataset, data.as_pictures(dataset), data.Subset(dataset, [0], "train")):
        with pytest.raises(ValueError, match=message):
            Batches(part, 2)
    with pytest.raises(ValueError, match=message):
        data.write_arrays(tmp_path / "arrays", dataset)


def test_links_that_lead_in_a_circle_are_named(tmp_path):
    make(tmp_path / "data")
    link = tmp_path / "data" / "train" / "images" / "loop.png"
    link.symlink_to(link.name)
    with pytest.raises(ValueError, match="loop.png: (a link that leads back|not a file)"):
        folder(tmp_path / "data")
    link.unlink()
    for name in ("classes.csv", "groups.csv"):  # neither is taken for missing
        table = tmp_path / "data" / name
        table.symlink_to(name)
        with pytest.raises((ValueError, OSError), match=name):
            folder(tmp_path / "data")
        table.unlink()
    (tmp_path / "self").symlink_to("self")
    for kind in ("folder", "images", "arrays", "camvid", "cityscapes", "voc2012", "mnist"):
        with pytest.raises((ValueError, FileNotFoundError), match="self"):
            data.load(f"{kind}:{tmp_path / 'self'}")


GRAY, RGB, RGBA = photo(channels=1)[..., 0], photo(), photo(channels=4)
GRAY16, RGB16 = photo(channels=1, dtype=np.uint16)[..., 0], photo(dtype=np.uint16)
RGBA16 = photo(channels=4, dtype=np.uint16)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("name", ["gray", "rgb", "rgba", "palette", "one bit", "gray + alpha"])
def test_eight_bit_files_are_decoded_by_content(tmp_path, file_format, name):
    picture = {
        "gray": Image.fromarray(GRAY),
        "rgb": Image.fromarray(RGB),
        "rgba": Image.fromarray(RGBA),
        "palette": Image.fromarray(GRAY % 7).convert("P"),
        "one bit": Image.fromarray(GRAY > 99),
        "gray + alpha": Image.fromarray(photo(channels=2)),
    }[name]
    if name == "palette":
        picture.putpalette(distinct_palette(256).tobytes())
    if file_format == "BMP" and name == "gray + alpha":
        pytest.skip("BMP has no gray with alpha")
    expected = {
        "gray": np.repeat(GRAY[..., None], 3, -1),
        "rgb": RGB,
        "rgba": RGBA[..., :3],
        "palette": distinct_palette(7)[GRAY % 7],
        "one bit": np.repeat(255 * (GRAY > 99).astype(np.uint8)[..., None], 3, -1),
        "gray + alpha": np.repeat(photo(channels=2)[..., :1], 3, -1),
    }[name]
    path = tmp_path / "wrong_suffix.jpg"
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    picture.save(path, file_format, **options)
    read = images.read_image(path)
    assert read.dtype == np.uint8 and np.array_equal(read, expected)
    luma = cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY)[..., None]
    gray = images.read_image(path, channels=1)
    assert gray.shape == (12, 16, 1) and np.abs(gray.astype(int) - luma).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("array", [GRAY16, RGB16, RGBA16], ids=["gray", "rgb", "rgba"])
def test_sixteen_bit_files_keep_sixteen_bits(tmp_path, suffix, array):
    path = tmp_path / f"image.{suffix}"
    order = [0, 1, 2, 3] if array.ndim == 2 else [2, 1, 0, 3][: array.shape[-1]]
    cv2.imwrite(str(path), array if array.ndim == 2 else np.ascontiguousarray(array[..., order]))
    expected = np.repeat(array[..., None], 3, -1) if array.ndim == 2 else array[..., :3]
    read = images.read_image(path)
    assert read.dtype == np.uint16 and np.array_equal(read, expected)
    assert images.read_image(path, channels=1).dtype == np.uint16
    as_float = images.to_float(read)
    assert np.array_equal(as_float, (expected / 65535).astype(np.float32))


def write_sixteen_bit_png(path, array, color_type, *chunks):
    """Writes what neither Pillow nor OpenCV can write."""

    def chunk(name, content):
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    content = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in content))


def test_sixteen_bit_gray_with_alpha_keeps_sixteen_bits(tmp_path):
    gray_alpha = photo(channels=2, dtype=np.uint16)
    write_sixteen_bit_png(tmp_path / "image.png", gray_alpha, 4)
    read = images.read_image(tmp_path / "image.png", channels=1)
    assert read.dtype == np.uint16 and np.array_equal(read[..., 0], gray_alpha[..., 0])


def test_a_sixteen_bit_color_image_that_exif_turns_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    write_sixteen_bit_png(tmp_path / "image.png", RGB16, 2, (b"eXIf", content))
    with pytest.raises(ValueError, match="image.png: a 16-bit color image with EXIF"):
        images.read_image(tmp_path / "image.png")
    write_sixteen_bit_png(tmp_path / "image.png", RGB16, 2)
    assert np.array_equal(images.read_image(tmp_path / "image.png"), RGB16)


def test_jpegs_are_read_and_turned_by_exif(tmp_path):
    smooth = cv2.resize(photo(3, 4), (32, 24))
    for kind in ("RGB", "L", "CMYK"):
        picture = Image.fromarray(smooth).convert(kind)
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        picture.save(tmp_path / "photo.png", "JPEG", exif=exif, quality=95)
        read = images.read_image(tmp_path / "photo.png")
        expected = np.rot90(np.array(picture.convert("RGB")), -1)
        assert read.shape == (32, 24, 3)
        assert np.abs(read.astype(int) - expected).mean() < 6


def test_photos_of_two_views_are_read_as_the_first(tmp_path):
    smooth, other = (cv2.resize(photo(3, 4, seed=seed), (32, 24)) for seed in (0, 1))
    views = [Image.fromarray(array) for array in (smooth, other)]
    views[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=views[1:], quality=95)
    assert np.abs(images.read_image(tmp_path / "a.jpg").astype(int) - smooth).mean() < 6


def test_gray_and_color_may_be_mixed_in_one_folder(tmp_path):
    make(tmp_path)
    save(tmp_path / "train/images/item1.png", GRAY)
    save(tmp_path / "train/images/item2.png", RGBA)
    assert [image.shape for image, _ in folder(tmp_path)] == [(12, 16, 3)] * 3
    assert [image.shape for image, _ in folder(tmp_path, channels=1)] == [(12, 16, 1)] * 3


def test_resizing_keeps_labels_and_mean_colors(tmp_path):
    save(tmp_path / "train/images/a.png", photo(40, 60))
    save(tmp_path / "train/masks/a.png", labels(40, 60, (0, 2, 5)))
    for size in ((20, 30), (80, 120), (13, 71), 32):
        image, mask = folder(tmp_path, size=size)[0]
        height, width = (size, size) if isinstance(size, int) else size
        assert image.shape == (height, width, 3) and mask.shape == (height, width)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert abs(image.mean() - photo(40, 60).mean() / 255) < 0.02
    small = folder(tmp_path, size=(10, 15))[0][0]
    blocks = photo(40, 60).reshape(10, 4, 15, 4, 3).mean((1, 3)) / 255
    assert np.abs(small - blocks).max() < 1 / 255  # area: the mean of the pixels below


def test_masks_shrink_and_grow_around_pixel_centers():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(images.resize_mask(mask, (6, 8)), mask.repeat(2, 0).repeat(2, 1))
    fine = np.arange(9 * 15).reshape(9, 15)
    assert np.array_equal(images.resize_mask(fine, (3, 5)), fine[1::3, 1::3])
    image = np.float32(mask)[..., None] / 12
    both = images.resize_image(image, (9, 12)), images.resize_mask(mask, (9, 12))
    assert np.abs(both[0][1::3, 1::3, 0] * 12 - both[1][1::3, 1::3]).max() < 1e-5


# Classes


def test_classes_csv_names_classes_and_takes_ids(tmp_path):
    make(tmp_path, ids=(0, 1, 2, 3), table=CSV)
    dataset = folder(tmp_path)
    assert dataset.class_names == ("sky", "road", "car") and dataset.label_ids == (0, 1, 3)
    assert dataset.palette.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert dataset.ignore_class == 255
    assert np.array_equal(dataset[1][1], np.array([0, 1, 255, 2])[labels(ids=(0, 1, 2, 3), seed=1)])


def test_ids_may_be_gray_sixteen_bit_or_palette_indices(tmp_path):
    ids = labels(ids=(0, 1, 2, 3))
    expected = np.array([0, 1, 255, 2])[ids]
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(photo(16, 16).tobytes())  # the palette means nothing
    for pixels in (Image.fromarray(ids), Image.fromarray(ids.astype(np.uint16)), picture):
        for suffix in ("png", "tiff"):
            root = tmp_path / f"{pixels.mode.replace(';', '')}{suffix}"
            make(root, number=1, table=CSV)
            (root / "train/masks/item0.png").unlink()
            pixels.save(root / f"train/masks/item0.{suffix}")
            assert np.array_equal(folder(root)[0][1], expected)


def test_colors_of_classes_csv_become_labels(tmp_path):
    ids = labels(ids=(0, 1, 2, 3))
    colors = np.array([[10, 20, 30], [40, 50, 60], [0, 0, 0], [70, 80, 90]], np.uint8)[ids]
    opaque = np.dstack([colors, np.full(ids.shape, 255, np.uint8)])
    for number, pixels in enumerate((colors, opaque)):
        root = make(tmp_path / str(number), number=1, table=CSV)
        save(root / "train/masks/item0.png", pixels)
        assert np.array_equal(folder(root)[0][1], np.array([0, 1, 255, 2])[ids])


def test_classes_csv_may_lack_ignore_and_have_a_byte_order_mark(tmp_path):
    table = "\ufeffname,red,green,blue\nsky,0,0,0\n\nroad, 1, 1, 1\n"
    make(tmp_path, ids=(0, 1))
    (tmp_path / "classes.csv").write_text(table, encoding="utf-8")
    dataset = folder(tmp_path)
    assert dataset.class_names == ("sky", "road") and dataset.ignore_class is None


def test_two_equal_colors_are_fine_with_ids(tmp_path):
    make(tmp_path, table=CSV.replace("40,50,60", "10,20,30"))
    assert folder(tmp_path)[0][1].max() == 2


@pytest.mark.parametrize(
    "ids, names, label_ids, ignore_class",
    [
        ((0, 255), ("background", "foreground"), (0, 255), None),
        ((0, 1), ("class 0", "class 1"), (0, 1), None),
        ((0, 7, 255), ("class 0", "class 7"), (0, 7), 255),
        ((3, 255), ("class 3",), (3,), 255),
        ((0, 1, 255, 1000), ("class 0", "class 1", "class 255", "class 1000"), None, None),
        ((255,), ("class 255",), (255,), None),
    ],
)
def test_without_classes_csv_the_ids_say_the_classes(tmp_path, ids, names, label_ids, ignore_class):
    make(tmp_path, ids=ids)
    dataset = folder(tmp_path)
    assert dataset.class_names == names and dataset.ignore_class == ignore_class
    assert dataset.label_ids == (label_ids or ids)
    back = np.full(256, -1)
    back[: len(names)] = dataset.label_ids
    back[255] = 255 if ignore_class else back[255]
    assert np.array_equal(back[dataset[0][1]], labels(ids=ids))
    assert len(np.unique(dataset.palette, axis=0)) == len(names)


def test_ids_are_counted_over_all_splits(tmp_path):
    make(tmp_path, splits=("train",), ids=(0, 1))
    make(tmp_path, splits=("test",), ids=(0, 4))
    assert folder(tmp_path, "train").label_ids == folder(tmp_path, "test").label_ids == (0, 1, 4)


def test_one_bit_masks_are_background_and_foreground(tmp_path):
    make(tmp_path, number=1)
    save(tmp_path / "train/masks/item0.png", GRAY > 99)
    dataset = folder(tmp_path)
    assert dataset.class_names == ("background", "foreground") and dataset.label_ids == (0, 255)
    assert np.array_equal(dataset[0][1], GRAY > 99)
    (tmp_path / "classes.csv").write_text(CSV)
    assert np.array_equal(folder(tmp_path)[0][1], GRAY > 99)


def test_gray_masks_saved_as_rgb_hold_ids(tmp_path):
    make(tmp_path, number=1)
    save(tmp_path / "train/masks/item0.png", np.repeat(labels()[..., None], 3, -1))
    assert np.array_equal(folder(tmp_path)[0][1], np.searchsorted([0, 1, 3], labels()))


def test_up_to_254_classes_have_distinct_colors():
    assert len(np.unique(distinct_palette(254), axis=0)) == 254


# Counts and caches


def test_pixel_counts_agree_with_the_masks_and_are_kept(tmp_path, monkeypatch):
    make(tmp_path, ids=(0, 1, 3, 255))
    for size in (None, (7, 9)):
        dataset = folder(tmp_path, size=size)
        masks = np.concatenate([mask.ravel() for _, mask in dataset])
        expected = np.bincount(masks[masks != 255], minlength=3)
        assert np.array_equal(dataset.pixel_counts(), expected)
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_mask", None)  # nothing may be read again
        again = folder(tmp_path, size=(7, 9))
        assert np.array_equal(again.pixel_counts(), expected)
    save(tmp_path / "train/masks/item0.png", np.zeros((12, 16), np.uint8))
    assert folder(tmp_path).pixel_counts()[0] > 12 * 16
    assert folder(tmp_path).pixel_counts().sum() > expected.sum()


def test_a_broken_cache_file_is_computed_again(tmp_path):
    make(tmp_path)
    expected = folder(tmp_path).pixel_counts()
    for path in (tmp_path / "cache").glob("*.json"):
        path.write_text('{"half')
    assert np.array_equal(folder(tmp_path).pixel_counts(), expected)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    make(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="could not be written .* set KERAS_SEGEN_CACHE"):
        assert len(folder(tmp_path)) == 3


def test_the_cache_folder_is_the_users_unless_said(tmp_path, monkeypatch):
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("KERAS_SEGEN_CACHE")
    assert cache.cache_folder().name == "keras_segen"


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("size", [None, (9, 10)])
def test_cached_items_are_equal_and_never_stale(tmp_path, where, size):
    make(tmp_path)
    save(tmp_path / "train/images/item1.png", GRAY16)
    plain, cached = folder(tmp_path, size=size), folder(tmp_path, size=size, cache=where)

    def check():
        for _ in range(2):
            for expected, item in zip(plain, cached, strict=True):
                for one, other in zip(expected, item, strict=True):
                    assert one.dtype == other.dtype and np.array_equal(one, other)
                    assert other.flags.writeable and other.flags.c_contiguous
                    other += 1  # a caller's changes stay with the caller

    check()
    before = plain[0][0]
    save(tmp_path / "train/images/item0.png", photo(seed=77))
    assert not np.array_equal(plain[0][0], before)
    check()
    save(tmp_path / "train/masks/item0.png", labels(seed=77))
    check()


def test_the_disk_cache_serves_other_processes_and_mends_itself(tmp_path, monkeypatch):
    make(tmp_path)
    first = [item for item in folder(tmp_path, cache="disk")]
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_image", None)
        again = folder(tmp_path, cache="disk")
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    stored = sorted((tmp_path / "cache" / "items").iterdir())
    assert len(stored) == 6 and {path.suffix for path in stored} == {".npy"}
    for path in stored:
        path.write_bytes(path.read_bytes()[:-5])
    mended = folder(tmp_path, cache="disk")
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, mended, strict=True))


def test_disk_caches_of_other_sizes_channels_and_classes_are_apart(tmp_path):
    make(tmp_path, table=CSV)
    for options in ({}, {"size": 8}, {"size": (8, 9)}, {"size": 8, "channels": 1}):
        expected = folder(tmp_path, **options)[0]
        item = folder(tmp_path, cache="disk", **options)[0]
        assert all(np.array_equal(a, b) for a, b in zip(expected, item, strict=True))
    (tmp_path / "classes.csv").write_text(CSV.replace("40,50,60,", "40,50,60,yes"))
    expected, item = folder(tmp_path)[0], folder(tmp_path, cache="disk")[0]
    assert np.array_equal(expected[1], item[1])


def test_pickles_leave_the_ram_cache_behind(tmp_path):
    make(tmp_path)
    dataset = folder(tmp_path, cache="ram")
    empty = len(pickle.dumps(dataset))
    expected = list(dataset)
    assert len(pickle.dumps(dataset)) == empty
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(expected, copy, strict=True))


# Errors: each names the file, what was found and what was expected


def test_a_missing_folder_or_split_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; expected one with train"):
        folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no folder train; it has none of train, val"):
        folder(tmp_path)
    make(tmp_path, splits=("train", "test"))
    with pytest.raises(FileNotFoundError, match="has no folder val; it has train and test"):
        folder(tmp_path, "val")
    with pytest.raises(ValueError, match=r"split is '\.\.', expected one of train, val, test"):
        folder(tmp_path, "..")
    (tmp_path / "val" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="masks: no such folder"):
        folder(tmp_path, "val")
    (tmp_path / "val" / "masks").mkdir()
    with pytest.raises(ValueError, match="val.images: no files; expected images"):
        folder(tmp_path, "val")


def test_files_that_do_not_pair_are_named(tmp_path):
    make(tmp_path)
    extra = tmp_path / "train/images/extra.png"
    save(extra, photo())
    with pytest.raises(ValueError, match=r"extra.png: no mask for this image; .*extra\.\*"):
        folder(tmp_path)
    save(tmp_path / "train/images/further.png", photo())
    with pytest.raises(ValueError, match=r"no mask for this image \(and 1 more without\)"):
        folder(tmp_path)
    extra.unlink()
    (tmp_path / "train/images/further.png").unlink()
    save(tmp_path / "train/masks/alone.png", labels())
    with pytest.raises(ValueError, match="alone.png: no image for this mask"):
        folder(tmp_path)
    (tmp_path / "train/masks/alone.png").unlink()
    save(tmp_path / "train/images/item1.bmp", photo())
    with pytest.raises(ValueError, match="item1.png: two files of one name, .*item1.bmp"):
        folder(tmp_path)
    (tmp_path / "train/images/item1.bmp").unlink()
    (tmp_path / "train/images/more").mkdir()
    with pytest.raises(ValueError, match="more: not a file; expected nothing but files"):
        folder(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path):
    inside, outside = make(tmp_path / "inside"), make(tmp_path / "outside")
    link = inside / "train/images/item0.png"
    link.unlink()
    link.symlink_to(inside / "train/images/item1.png")
    assert np.array_equal(folder(inside)[0][0], folder(inside)[1][0])
    link.unlink()
    link.symlink_to(outside / "train/images/item0.png")
    with pytest.raises(ValueError, match="item0.png: a link to .*outside.*, outside of the data"):
        folder(inside)
    link.unlink()
    os.rename(inside / "train/masks", inside / "train/other")
    (inside / "train/masks").symlink_to(outside / "train/masks")
    with pytest.raises(ValueError, match="masks: a link to"):
        folder(inside)
    os.unlink(inside / "train/masks")
    os.rename(inside / "train/other", inside / "train/masks")
    (inside / "classes.csv").symlink_to(make(outside, table=CSV) / "classes.csv")
    save(link, photo())
    with pytest.raises(ValueError, match="classes.csv: a link to"):
        folder(inside)
    (tmp_path / "short").symlink_to(outside)  # the data set itself may be reached by a link
    assert len(folder(tmp_path / "short")) == 3


def test_a_mask_of_another_size_is_named(tmp_path):
    make(tmp_path, table=CSV)
    save(tmp_path / "train/masks/item1.png", labels(16, 12))
    dataset = folder(tmp_path, size=8)
    dataset[0]
    message = "item1.png: the mask has 16 x 12 pixels, but its image .*item1.png has 12 x 16"
    with pytest.raises(ValueError, match=message):
        dataset[1]


def test_an_unknown_label_is_named(tmp_path):
    make(tmp_path, table=CSV)
    wrong = labels()
    wrong[:2, :3] = 4
    save(tmp_path / "train/masks/item2.png", wrong)
    with pytest.raises(ValueError, match="item2.png: label 4 in 6 pixels; .* ids 0 to 3"):
        folder(tmp_path)[2]
    wrong[5, 5] = 200
    save(tmp_path / "train/masks/item2.png", wrong)
    with pytest.raises(ValueError, match="label 4 in 6 pixels and 1 more unknown labels"):
        folder(tmp_path)[2]
    with pytest.raises(ValueError, match="item2.png: label 4"):
        folder(tmp_path).pixel_counts()
    for pixels in (np.full((12, 16), 70000, np.int32), np.full((12, 16), -1, np.int32)):
        (tmp_path / "train/masks/item2.png").unlink(missing_ok=True)
        save(tmp_path / "train/masks/item2.tiff", pixels)
        with pytest.raises(ValueError, match=f"labels from {pixels[0, 0]} .* expected 0 to 65535"):
            folder(tmp_path)[2]


def test_a_label_that_appeared_after_counting_is_named(tmp_path):
    make(tmp_path)
    dataset = folder(tmp_path)
    save(tmp_path / "train/masks/item0.png", np.full((12, 16), 9, np.uint8))
    with pytest.raises(ValueError, match="label 9 in 192 pixels; expected label ids 0, 1, 3$"):
        dataset[0]


def test_an_unknown_color_is_named(tmp_path):
    make(tmp_path, table=CSV)
    pixels = np.full((12, 16, 3), [10, 20, 30], np.uint8)
    pixels[3, :5] = [41, 50, 58]
    pixels[4, 0] = [255, 255, 255]
    save(tmp_path / "train/masks/item0.png", pixels)
    message = (
        r"item0.png: color \(41, 50, 58\) in 5 pixels, 6 pixels in all .* the nearest is "
        r"\(40, 50, 60\), road"
    )
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)[0]


def test_two_equal_colors_are_an_error_with_color_masks(tmp_path):
    make(tmp_path, table=CSV.replace("70,80,90", "10,20,30"))
    save(tmp_path / "train/masks/item0.png", np.full((12, 16, 3), [10, 20, 30], np.uint8))
    with pytest.raises(ValueError, match=r"classes.csv, line 5: car has the same color .* as sky"):
        folder(tmp_path)[0]


def test_color_masks_without_classes_csv_ask_for_it(tmp_path):
    make(tmp_path)
    save(tmp_path / "train/masks/item1.png", photo())
    message = "item1.png: a mask of colors, .* with the columns name,red,green,blue,ignore"
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)


def test_photos_in_place_of_masks_are_noticed(tmp_path):
    make(tmp_path)
    save(tmp_path / "train/masks/item1.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(ValueError, match="more than 254 different labels .* look like photos"):
        folder(tmp_path)
    save(tmp_path / "train/masks/item1.png", photo(12, 16), format="JPEG")
    with pytest.raises(ValueError, match="item1.png: the mask is a JPEG, which alters label ids"):
        folder(tmp_path)
    (tmp_path / "train/masks/item1.png").unlink()
    save(tmp_path / "train/masks/item1.tiff", np.zeros((12, 16), np.float32))
    with pytest.raises(ValueError, match="item1.tiff: a mask of float32 numbers; expected whole"):
        folder(tmp_path)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9])
def test_a_file_cut_short_is_named(tmp_path, file_format, share):
    make(tmp_path, table=CSV)
    path = tmp_path / "train/images/item1.png"
    save(path, photo(64, 64), format=file_format)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="item1.png: (cannot be read as|the file is empty)"):
        folder(tmp_path)[1]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_damaged_file_is_read_or_named(tmp_path, file_format):
    path = tmp_path / "image.png"
    save(path, photo(), format=file_format)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(min(len(whole), 120), size=3)] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert images.read_image(path).shape[2] == 3
            except ValueError as error:
                assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_sixteen_bit_file_cut_short_is_named(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    cv2.imwrite(str(path), photo(64, 64, dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:-3000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of the TIFF's directory, then fails
        with pytest.raises(ValueError, match=f"image.{suffix}: cannot be read as"):
            images.read_image(path)


def test_files_that_are_no_image_are_named(tmp_path):
    path = tmp_path / "a.png"
    save(path, GRAY, format="PPM")
    for content in (b"hello", path.read_bytes(), b"\x89PNG\r\n\x1a\n" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.png: cannot be read as an image, .* expected PNG"):
            images.read_image(path)
    save(tmp_path / "float.tiff", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="float.tiff: an image of float32 numbers; expected 8 or"):
        images.read_image(tmp_path / "float.tiff")
    pages = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="pages.tiff: 3 pages or frames in one file; expected one"):
        images.read_image(tmp_path / "pages.tiff")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    save(tmp_path / "big.png", photo(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="big.png: the image is too large to be read safely"):
        images.read_image(tmp_path / "big.png")


@pytest.mark.parametrize(
    "table, message",
    [
        ("", "line 1: no column name and red and green and blue; .* found nothing"),
        ("name,red,green\n", "line 1: no column blue; expected the columns name,red,green,blue"),
        (CSV.split("\n")[0], "0 classes in 0 rows; expected 1 to 254 rows"),
        ("name,red,green,blue,ignore\nvoid,0,0,0,yes\n", "0 classes in 1 rows"),
        (CSV.replace("50", "256"), "line 3: green is '256'; expected a whole number, 0 to 255"),
        (CSV.replace("50", "-1"), "line 3: green is '-1'"),
        (CSV.replace("50", "1.5"), "line 3: green is '1.5'"),
        (CSV.replace("50", ""), "line 3: green is ''"),
        (CSV.replace("car", "sky"), "line 5: the name 'sky' is also in line 2"),
        (CSV.replace("car", ""), "line 5: the class has no name"),
        (CSV.replace("yes", "perhaps"), "line 4: ignore is 'perhaps'; expected yes or nothing"),
        (CSV.replace("40,50,60,", "40,50"), "line 3: expected one value for each column"),
        (CSV.replace("40,50,60,", "40,50,60,,,9"), "line 3: expected one value for each column"),
        (CSV.replace("sky", '"sky'), "not a table in UTF-8 with commas"),
    ],
)
def test_a_wrong_classes_csv_is_named_with_its_line(tmp_path, table, message):
    make(tmp_path, table=table)
    with pytest.raises(ValueError, match="classes.csv.*" + message):
        folder(tmp_path)


def test_a_classes_csv_in_another_encoding_is_an_error(tmp_path):
    make(tmp_path)
    (tmp_path / "classes.csv").write_bytes("name,red,green,blue\nstraße,1,2,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="classes.csv: not a table in UTF-8"):
        folder(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cache": "gpu"}, "cache is 'gpu', expected None, 'ram' or 'disk'"),
        ({"channels": 4}, "channels is 4, expected 3"),
        ({"size": 0}, "size is 0, expected a number of pixels or"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, **options)
