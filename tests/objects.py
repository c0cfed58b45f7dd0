"""A folder of scenes whose objects are told apart, for tests."""

import csv

from PIL import Image

from keras_segen.data import Shapes


def write_scenes(root, lengths=None, size=48):
    """Writes scenes as `folder:ROOT` reads them; returns ROOT."""
    root.mkdir(parents=True, exist_ok=True)
    names = Shapes("val", size=8, length=1)
    with open(root / "classes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", "red", "green", "blue", "ignore"])
        for name, color in zip(names.class_names, names.palette.tolist(), strict=True):
            table.writerow([name, *color, ""])
    for split, length in (lengths or {"train": 16, "val": 4, "test": 4}).items():
        scenes = Shapes(split, size=size, length=length)
        for kind in ("images", "masks", "instances"):
            (root / split / kind).mkdir(parents=True)
        for i in range(length):
            image, mask, numbers = scenes.read_instances(i)
            for kind, pixels in (
                ("images", (image * 255).round().astype("uint8")),
                ("masks", mask.astype("uint8")),
                ("instances", numbers.astype("uint16")),
            ):
                Image.fromarray(pixels).save(root / split / kind / f"scene{i}.png")
    return root
