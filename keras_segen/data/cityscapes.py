"""Cityscapes: street scenes of 50 cities, 19 classes."""

import numpy as np

from keras_segen.data import images
from keras_segen.data.pairs import Pairs, check_labeled, require_files, resolved

# Label id, name, color of the 19 classes, in the order of their train ids.
CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
ALL_IDS = range(34)
FIRST_OBJECT = 11  # person: from here on objects are told apart
SOURCE = (
    "Cityscapes is fetched by hand, after registration, from https://www.cityscapes-dataset.com: "
    "unpack leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) into one "
    "folder"
)


class Cityscapes(Pairs):
    """Cityscapes with fine labels, in its 19 train classes.

    2,975 images for training and 500 for validation, 2048 x 1024. Files are those of the
    published archives:

    - `PATH/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`,
    - `PATH/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`, label ids 0 to 33,
    - `PATH/gtFine/SPLIT/CITY/NAME_gtFine_instanceIds.png`, only for `instances`: class * 1000 +
      number of an object of the eight classes from person to bicycle.

    19 of the ids are classes, in the order of the official train ids; the others become 255,
    which losses and metrics leave out. The labels of the test split are not public, so there is
    no `"test"` here: validation is what papers without a submission report.

    `groups` is the city.

    From: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", 2016.
    License: free for non-commercial use after registration; no copies.

    Args:
        path: the folder that holds `leftImg8bit` and `gtFine`.
        split: str, `"train"` or `"val"`.
        size, channels, cache: as in `keras_segen.data.Folder`.

    Raises:
        FileNotFoundError: if a folder or a mask is missing; it says where to get them.
        ValueError: for `split="test"`, or as in `keras_segen.data.Folder`.
    """

    def __init__(self, path, split="train", size=None, channels=3, cache=None):
        root = resolved(path)
        check_labeled(split, "Cityscapes'")
        for folder in (root / "leftImg8bit" / split, root / "gtFine" / split):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder. {SOURCE}")
        found = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        if not found:
            raise FileNotFoundError(
                f"{root / 'leftImg8bit' / split}: no CITY/*_leftImg8bit.png. {SOURCE}"
            )
        pairs = [(image, truth_of(root, image, "labelIds")) for image in found]
        require_files([mask for _, mask in pairs], "masks", SOURCE)
        ids, names, palette = zip(*CLASSES, strict=True)
        classes = names, palette, ids, sorted(set(ALL_IDS) - set(ids))
        self.path = root
        super().__init__(f"cityscapes:{path}", split, pairs, *classes, size, channels, cache)

    @property
    def groups(self):
        return [image.parent.name for image, _ in self.pairs]

    def item_name(self, index):
        return super().item_name(index).removesuffix("_leftImg8bit")

    @property
    def object_classes(self):
        """The eight classes from person to bicycle."""
        return tuple(range(FIRST_OBJECT, len(CLASSES)))

    def instances(self, index):
        """Returns the instance mask of item `index`.

        Returns:
            int32 `(height, width)`: 1 to n are the objects; 0 is the rest (roads, skies, groups
            that were not separated).

        Raises:
            FileNotFoundError: if the file of instance ids is missing.
        """
        numbers = super().instances(index)
        return np.searchsorted(np.union1d(0, numbers), numbers).astype(np.int32)

    def _numbers_path(self, index):
        path = truth_of(self.path, self.pairs[index][0], "instanceIds")
        require_files([path], "instance masks", SOURCE)
        return path

    def _to_numbers(self, path, index):
        pixels, _ = images.read_mask(path)
        # 24 is "persons", 24000 the first of the persons.
        return np.where(pixels < 1000, 0, pixels).astype(np.uint16)


def truth_of(root, image, kind):
    """Returns the path of the labels of an image; `kind` is `"labelIds"` or `"instanceIds"`."""
    name = image.name.replace("_leftImg8bit.png", f"_gtFine_{kind}.png")
    return root / "gtFine" / image.parent.parent.name / image.parent.name / name
