"""PASCAL VOC 2012: photos of 20 kinds of objects."""

from keras_segen.data.pairs import Pairs, check_labeled, require_files, resolved

CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
CLASSES += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
CLASSES += ("sheep", "sofa", "train", "tvmonitor")
SOURCE = (
    "PASCAL VOC 2012 is fetched by hand: VOCtrainval_11-May-2012.tar (2 GB) from "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, to be unpacked"
)


class VOC2012(Pairs):
    """PASCAL VOC 2012, semantic segmentation: 20 kinds of objects and the background.

    1,464 images for training and 1,449 for validation, of about 500 x 375. Files are those of
    the published archive:

    - `ImageSets/Segmentation/SPLIT.txt`, a name per line,
    - `JPEGImages/NAME.jpg`,
    - `SegmentationClass/NAME.png`, a palette file: 0 to 20 are the classes, 255 (borders and
      what is hard to tell) is ignored.

    The labels of the test split are not public, so there is no `"test"` here: validation is what
    papers without a submission report.

    From: Everingham et al., "The PASCAL Visual Object Classes Challenge", 2010. License: the
    photos are from Flickr, under its terms of use; for research.

    Args:
        path: the folder `VOC2012`, or one that holds it, or `VOCdevkit/VOC2012`.
        split: str, `"train"` or `"val"`.
        size, channels, cache: as in `keras_segen.data.Folder`.

    Raises:
        FileNotFoundError: if a folder or a file is missing; it says where to get them.
        ValueError: for `split="test"`, or as in `keras_segen.data.Folder`.
    """

    def __init__(self, path, split="train", size=None, channels=3, cache=None):
        check_labeled(split, "VOC 2012's")
        given = resolved(path)
        places = (given, given / "VOC2012", given / "VOCdevkit" / "VOC2012")
        lists = [place / "ImageSets" / "Segmentation" / f"{split}.txt" for place in places]
        there = [path for path in lists if path.is_file()]
        if not there:
            raise FileNotFoundError(f"{lists[0]}: no such file. {SOURCE}")
        root = there[0].parents[2]
        names = there[0].read_text(encoding="utf-8").split()
        if not names:
            raise ValueError(f"{there[0]}: no names; expected one per line")
        pairs = [
            (root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
            for name in names
        ]
        for kind, paths in zip(("images", "masks"), zip(*pairs, strict=True), strict=True):
            require_files(paths, kind, SOURCE)
        classes = CLASSES, None, range(len(CLASSES)), [255]
        super().__init__(f"voc2012:{path}", split, pairs, *classes, size, channels, cache)
