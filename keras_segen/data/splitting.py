"""One folder of images and masks, shared out among the splits."""

import csv
import errno
import os
import re
import shutil
from pathlib import Path

from keras_segen.data.dataset import SPLITS
from keras_segen.data.folder import read_groups
from keras_segen.data.pairs import inside, list_files, pair_files, resolved
from keras_segen.data.subset import shuffled_groups
from keras_segen.determinism import rng
from keras_segen.files import write_folder_atomically


def split_folder(folder, out, *, val=0.2, test=0.1, seed=0, groups=None, link=False):
    """Makes a `folder:` data set with splits out of a folder without.

    `folder` holds `images/`, `masks/` and perhaps `instances/`, files of equal names before the
    suffix, and perhaps `classes.csv` and `groups.csv`; see `keras_segen.data.Folder`. It stays as
    it is. `out` gets the same files in `train/`, `val/` and `test/`, and these tables.

    Items of a group stay together: each group is in one split as a whole, the largest are dealt
    first, each to the split that lacks most.

    Args:
        folder: path of the folder.
        out: path of the folder to make; it must not be there yet, or be empty.
        val, test: float, shares of the items; 0 makes no such split. The rest is for training.
        seed: int; another seed gives another split.
        groups: what belongs together: the path of a `.csv` file with the columns name and group;
            or a regular expression that begins every name, as `r"patient\\d+"` does: the group is
            what it matches, or what its first parenthesis matches. None takes `groups.csv` in
            the folder; if there is none, items are independent.
        link: bool, whether files are hard links to those in `folder` and take no space, in place
            of copies. What is written into one then changes the other.

    Returns:
        Dict from `"train"`, `"val"` and `"test"` to the names of the items, without suffix, and
        from `"groups"` to the number of groups, or None if items are independent.

    Raises:
        FileNotFoundError: `folder`, or `images` or `masks` in it, is not there.
        FileExistsError: `out` is there, and not empty.
        ValueError: images and masks do not pair up, a share is out of range, a name has no group,
            or there are fewer groups than splits.
    """
    root, out = resolved(folder), Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with images/ and masks/")
    there = [split for split in SPLITS if (root / split).is_dir()]
    if there:
        raise ValueError(
            f"{folder} has the folder {there[0]}, so it is split already: --data folder:{folder}"
        )
    check_new(out)
    shares = check_shares(val, test)
    pairs = pair_files(root, root / "images", root / "masks")
    kinds = {"images": [image for image, _ in pairs], "masks": [mask for _, mask in pairs]}
    names = [image.stem for image, _ in pairs]
    if (root / "instances").is_dir():
        kinds["instances"] = _instances(root, names)
    of_items = _groups(root, names, groups)
    places = assign_splits(len(names), shares, seed, of_items)
    with write_folder_atomically(out) as temporary:
        for kind, paths in kinds.items():
            for path, split in zip(paths, places, strict=True):
                place_file(path, temporary / split / kind / path.name, link)
        if os.path.lexists(root / "classes.csv"):
            place_file(inside(root, root / "classes.csv"), temporary / "classes.csv")
        if of_items is not None:
            with open(temporary / "groups.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("name", "group"), *zip(names, of_items, strict=True)])
    found = {split: [] for split in shares}
    for name, split in zip(names, places, strict=True):
        found[split].append(name)
    return found | {"groups": None if of_items is None else len(set(of_items))}


def check_new(folder):
    """Raises a FileExistsError if a folder to make is there, and not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a folder that is not")


def check_shares(val, test):
    """Returns the share of each split, those of 0 left out."""
    for name, value in (("val", val), ("test", test)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ValueError(f"{name} is {value!r}, expected a share, 0 or more and below 1")
    if not val + test < 1 or not val + test:
        raise ValueError(
            f"val {val} and test {test} leave {1 - val - test:g} for training; expected less "
            "than 1 together, and more than 0"
        )
    shares = {"train": 1 - val - test, "val": val, "test": test}
    return {split: share for split, share in shares.items() if share}


def assign_splits(length, shares, seed, groups=None):
    """Deals items to splits, groups whole: a pure function of its arguments.

    Args:
        length: int, number of items.
        shares: dict from split to its share; they add up to 1.
        seed: int.
        groups: a hashable for each item, or None for items that are independent.

    Returns:
        List of str, the split of each item. Every split has an item.

    Raises:
        ValueError: if there are fewer groups than splits.

    Example:

    >>> assign_splits(5, {"train": 0.6, "val": 0.4}, seed=0, groups="aabba")
    ['train', 'train', 'val', 'val', 'train']
    """
    members = shuffled_groups(length, groups, rng("split", seed))
    if len(members) < len(shares):
        what = "items" if groups is None else f"groups of {length} items"
        raise ValueError(
            f"{len(members)} {what} cannot be dealt to {', '.join(shares)}; expected at least "
            f"{len(shares)}"
        )
    lacking = {split: share * length for split, share in shares.items()}
    splits, empty = [None] * length, set(shares)
    for dealt, indices in enumerate(members):
        # The last groups go to splits that would have none.
        open_to = empty if len(members) - dealt == len(empty) else shares
        split = max((each for each in shares if each in open_to), key=lacking.get)
        lacking[split] -= len(indices)
        empty.discard(split)
        for index in indices:
            splits[index] = split
    return splits


def place_file(path, target, link=False):
    """Puts a copy of a file, or a hard link to it, in a place where there is none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not link:
        shutil.copy2(path, target)
        return
    try:
        os.link(path.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        raise OSError(
            f"{path} cannot be linked to {target.parent} ({error.strerror}): links need one file "
            "system that has them; copy instead"
        ) from error


def _instances(root, names):
    """Returns the files of `instances/` in the order of `names`."""
    found = list_files(root, root / "instances")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{root / 'instances' / missing[0]}.*: no such file, for {len(missing)} of "
            f"{len(names)} images; expected one for each"
        )
    return [found[name] for name in names]


def _groups(root, names, groups):
    """Returns the group of each name, or None."""
    if groups is None:
        if not os.path.lexists(root / "groups.csv"):
            return None
        return read_groups(inside(root, root / "groups.csv"), names)
    if str(groups).lower().endswith(".csv"):
        return read_groups(Path(groups), names)
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise ValueError(
            f"groups is {groups!r}: no regular expression ({error}); expected one, or a .csv file"
        ) from None
    matches = [pattern.match(name) for name in names]
    found = [match and (match[1] if pattern.groups else match[0]) for match in matches]
    alone = [name for name, group in zip(names, found, strict=True) if not group]
    if alone:
        raise ValueError(
            f"groups is {groups!r}, and the name {alone[0]!r} (of {len(alone)}) does not begin so; "
            "expected a pattern that begins every name"
        )
    return found
