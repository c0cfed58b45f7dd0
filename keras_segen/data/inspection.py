"""Looking at a data set before anything is trained: what it holds, and what is suspicious."""

import collections
import dataclasses
import hashlib

import numpy as np

from keras_segen import determinism
from keras_segen.data.augment import Augment
from keras_segen.data.dataset import Dataset, Items
from keras_segen.data.foreign import adapted
from keras_segen.data.pictures import mirror

SAMPLES = 8  # items that are shown of the first split
AUGMENTED = 4  # items that are shown as augmented
EPOCHS = 5  # how often each of them
SUSPECTS = 12  # pictures of suspicious items, at most
NAMED = 5  # items that a finding names
SIZES = 8  # sizes that are listed


def describe(*datasets, augment="default", count=None, seed=0, tell=None):
    """Describes a data set: sizes, shares of the classes, examples, and what is worth a look.

    Every item is read once. Worth a look are items that cannot be read (damaged files, unknown
    labels, masks of another size than their image), images that are there twice or in two splits
    (the decoded pixels are compared, not the files), groups in two splits, equal images with
    different masks, images of one color, masks of one class or of nothing but void, and classes
    that no mask of a split has.

    Args:
        *datasets: `Dataset` or `Pictures`, the splits of one data set.
        augment: what is previewed: a text as `Augment.parse` takes it, what `batches` takes (an
            `Augment`, a callable, a `Compose` of Albumentations), or None for none. Of pictures
            without masks `"default"` is `keras_segen.data.mirror`, where mirroring suits them.
        count: int, the most items to read of each split, evenly spread; None for all.
        seed: int, for the preview: a training with this seed sees the same.
        tell: callable, gets the number of items read so far and of all; None for nothing.

    Returns:
        A `keras_segen.report.description.Description`: its `write` writes the page, and Jupyter
        shows it.

    Raises:
        ValueError: there is no data set, one is no data set, or `augment` or `count` is none of
            these.

    Example:

    >>> from keras_segen.data import load
    >>> found = describe(load("shapes", "val", size=16), augment=None, count=4)
    >>> found.result, found.figures["splits"]["val"]["items"]
    ('128 items in val, 6 classes', 128)
    """
    if not datasets or not all(isinstance(dataset, Items) for dataset in datasets):
        raise ValueError(
            f"found {list(datasets)!r}; expected at least one data set, such as "
            "keras_segen.data.load('shapes', 'train')"
        )
    if count is not None and count < 1:
        raise ValueError(f"count is {count!r}, expected 1 or more, or None for all items")
    augment = _augmentation(augment, datasets[0])
    looks, done = [], 0
    chosen = [_spread(len(dataset), count) for dataset in datasets]
    total = sum(map(len, chosen))
    for dataset, indices in zip(datasets, chosen, strict=True):
        for index in indices:
            looks.append(_look(dataset, int(index)))
            done += 1
            if tell is not None:
                tell(done, total)
    return _describe(datasets, looks, augment, seed, total < sum(map(len, datasets)))


@dataclasses.dataclass
class _Look:
    """What one look at an item found; `error` is set if it could not be read."""

    dataset: Items
    index: int
    error: str = ""
    size: tuple = ()  # height, width
    image: bytes = b""  # a digest of the pixels
    target: bytes = b""
    counts: np.ndarray | None = None  # pixels of each class, or one for the label
    void: int = 0
    plain: bool = False  # one color

    @property
    def name(self):
        return f"{self.dataset.split}: {self.dataset.item_name(self.index)}"


@dataclasses.dataclass
class _Finding:
    text: str
    note: str
    looks: list
    details: tuple = ()  # lines in place of the items' names
    bad: bool = False


def _look(dataset, index):
    look = _Look(dataset, index)
    try:
        image, target = read_item(dataset, index)
    except (ValueError, OSError) as error:
        look.error = str(error)
        return look
    look.size = image.shape[:2]
    look.image, look.target = _digest(image), _digest(target)
    look.plain = bool((image == image[:1, :1]).all())
    if isinstance(dataset, Dataset):
        void = target == dataset.ignore_class
        look.void = int(void.sum())
        look.counts = np.bincount(target[~void].ravel(), minlength=dataset.num_classes)
    elif dataset.num_classes:
        look.counts = np.bincount([int(target)], minlength=dataset.num_classes)
    return look


def read_item(dataset, index):
    """Returns the image of item `index` and its mask, or its label if there are no masks."""
    image, stored = dataset.read(index)
    if not isinstance(dataset, Dataset) or type(dataset).read_mask is Dataset.read_mask:
        return image, stored
    return image, dataset.read_mask(index)  # what is stored may be a plane of objects


def _digest(array):
    array = np.ascontiguousarray(array)
    return hashlib.blake2b(array, digest_size=16, key=repr(array.shape).encode()).digest()


def _spread(length, count):
    """Returns at most `count` of the indices 0 to `length - 1`, evenly spread."""
    if count is None or count >= length:
        return np.arange(length)
    return np.linspace(0, length - 1, count).astype(int)


def _augmentation(augment, dataset):
    if augment == "default" and not isinstance(dataset, Dataset):
        return mirror if dataset.mirror else None
    if isinstance(augment, str):
        return Augment.parse(augment)
    return augment if augment is None or isinstance(augment, Augment) else adapted(augment)


# Findings.


def _findings(datasets, looks):
    """Returns what is worth a look, the gravest first."""
    read = [look for look in looks if not look.error]
    others = [look for look in looks if look.error]
    errors = tuple(f"{look.name}: {look.error}" for look in others)
    found = [_Finding("cannot be read", "A training would stop at these.", others, errors, True)]
    alike = collections.defaultdict(list)
    for look in read:
        alike[look.image].append(look)
    alike = [same for same in alike.values() if len(same) > 1]
    leaks = [same for same in alike if len({look.dataset.split for look in same}) > 1]
    twice = [same for same in alike if len({look.dataset.split for look in same}) == 1]
    other = [same for same in alike if len({look.target for look in same}) > 1]
    for groups, text, note, bad in (
        (leaks, "the same image in two splits", "What is measured on them is no test.", True),
        (other, "the same image, another mask or label", "At least one must be wrong.", True),
        (twice, "the same image twice in a split", "It counts twice.", False),
    ):
        lines = tuple(" = ".join(look.name for look in same) for same in groups)
        found.append(_Finding(text, note, [look for same in groups for look in same], lines, bad))
    found.append(_torn_groups(datasets, looks))
    masked = [look for look in read if isinstance(look.dataset, Dataset)]
    empty = [look for look in masked if not look.counts.any()]
    alone = [look for look in masked if (look.counts > 0).sum() == 1]
    plain = [look for look in read if look.plain]
    often = "Right where nothing else is to be seen; often a mask that nobody drew."
    found += [
        _Finding("a mask of nothing but void", "Nothing can be learned from it.", empty, bad=True),
        _Finding("a mask of one class only", often, alone),
        _Finding("an image of one color", "Often a file that was written empty.", plain),
    ]
    found = [finding for finding in found if finding.looks]
    return found + _missing_classes(datasets, read)


def _torn_groups(datasets, looks):
    """Groups such as patients with items in two splits."""
    groups = {id(dataset): dataset.groups or [None] * len(dataset) for dataset in datasets}
    splits = collections.defaultdict(set)
    for dataset in datasets:
        for group in groups[id(dataset)]:
            splits[group].add(dataset.split)
    splits.pop(None, None)  # items that are independent
    torn = {group: sorted(names) for group, names in splits.items() if len(names) > 1}
    members = [look for look in looks if groups[id(look.dataset)][look.index] in torn]
    lines = tuple(f"{group}: in {' and '.join(names)}" for group, names in torn.items())
    return _Finding(
        "of a group that is in two splits",
        "Images of one group, such as a patient, resemble each other: what is measured is no test.",
        members,
        lines,
        bad=True,
    )


def _missing_classes(datasets, read):
    found = []
    for dataset in datasets:
        counts = [look.counts for look in read if look.dataset is dataset]
        if not counts or counts[0] is None:
            continue
        missing = np.flatnonzero(np.sum(counts, axis=0) == 0)
        if len(missing):
            trained = dataset.split == "train"
            text = f"classes that nothing in {dataset.split} has"
            note = "They cannot be learned." if trained else "They cannot be measured."
            names = tuple(dataset.class_names[index] for index in missing)
            found.append(_Finding(text, note, [], names, bad=trained))
    return found


# The description.


def _describe(datasets, looks, augment, seed, partly):
    from keras_segen.report.description import Description
    from keras_segen.report.numbers import listing, plain, show

    first = datasets[0]
    findings = _findings(datasets, looks)
    splits = {dataset.split: _figures(dataset, looks) for dataset in datasets}
    samples = _choose(datasets, looks)
    counted = [f"{show(len(dataset))} items in {dataset.split}" for dataset in datasets]
    classes = f"{first.num_classes} classes" if first.num_classes else "no labels"
    sizes = collections.Counter(look.size for look in looks if not look.error)
    of_all = "" if len(sizes) == 1 else "smallest to largest, by pixels"
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    cards = [
        ("Items", show(sum(map(len, datasets))), ", ".join(counted)),
        ("Classes", show(first.num_classes), "" if first.num_classes else "without labels"),
        ("Size", " – ".join(dict.fromkeys(map(_times, by_area[:1] + by_area[-1:]))), of_all),
        ("Worth a look", show(len(findings)), "thing" if len(findings) == 1 else "things"),
    ]
    notes = []
    if partly:
        notes.append(
            f"{show(len(looks))} of {show(sum(map(len, datasets)))} items were read, evenly "
            "spread: images that are there twice may have been missed."
        )
    figures = {"data": first.name, "class_names": list(first.class_names), "splits": splits}
    figures["findings"] = [
        {"text": each.text, "items": [look.name for look in each.looks], "details": each.details}
        for each in findings
    ]
    legend = list(zip(first.class_names, _colors(first), strict=True))
    tables = [_class_table(datasets, splits)] if first.num_classes else []
    if len(sizes) > 1:
        tables.append(_size_table(datasets, looks, sizes))
    return Description(
        subject=first.name,
        result=f"{listing(counted)}, {classes}",
        figures=plain(figures),
        cards=cards,
        tables=tables,
        findings=_finding_table(findings),
        suspects=_suspects(findings),
        samples=[_shown(look, _contents(look)) for look in samples],
        augmented=[] if augment is None else _augmented(samples[:AUGMENTED], augment, seed),
        legend=legend if isinstance(first, Dataset) else [],
        notes=notes,
    )


def _figures(dataset, looks):
    """What was counted in a split: a dict of plain values."""
    mine = [look for look in looks if look.dataset is dataset and not look.error]
    sizes = collections.Counter(_times(look.size) for look in mine)
    found = {"items": len(dataset), "read": len(mine), "sizes": dict(sizes.most_common())}
    if dataset.num_classes and mine:
        counts = np.stack([look.counts for look in mine])
        pixels = sum(look.size[0] * look.size[1] for look in mine)
        found["class_shares"] = counts.sum(axis=0) / max(counts.sum(), 1)
        found["items_with_class"] = (counts > 0).sum(axis=0)
        found["void_share"] = sum(look.void for look in mine) / pixels
    return found


def _class_table(datasets, splits):
    from keras_segen.report.numbers import percent, show
    from keras_segen.report.tables import Cell, Column, Table

    first = datasets[0]
    masks = isinstance(first, Dataset)
    known = [each for each in datasets if "class_shares" in splits[each.split]]
    highest = max((max(splits[each.split]["class_shares"]) for each in known), default=0) or 1
    rows = []
    for index, color in enumerate(_colors(first)):
        cells = []
        for each in known:
            share = float(splits[each.split]["class_shares"][index])
            images = f"in {show(int(splits[each.split]['items_with_class'][index]))} images"
            mark = None if share else "bad"
            cells.append(Cell(share, (images,), mark, bar=share / highest))
        rows.append([Cell(first.class_names[index], swatch=color), *cells])
    footer = []
    if masks and first.ignore_class is not None:
        footer = [["void, of all pixels", *(splits[each.split]["void_share"] for each in known)]]
    of = "Of the labeled pixels" if masks else "Of the pictures"
    return Table(
        "Classes",
        ["class", *(Column(each.split, percent) for each in known)],
        rows,
        note=f"{of}, the share of each class. The bars are relative to the largest share.",
        footer=footer,
    )


def _size_table(datasets, looks, sizes):
    from keras_segen.report.tables import Table

    by_split = collections.Counter((look.dataset.split, look.size) for look in looks)
    listed = [size for size, _ in sizes.most_common(SIZES)]
    splits = [dataset.split for dataset in datasets]
    rows = [[_times(size), *(by_split[split, size] for split in splits)] for size in listed]
    others = set(sizes) - set(listed)
    if others:
        rest = [sum(by_split[split, size] for size in others) for split in splits]
        rows.append([f"{len(others)} other sizes", *rest])
    note = "Height x width in pixels. A training needs one: --image-size brings all of them to it."
    return Table("Sizes", ["size", *splits], rows, note=note)


def _finding_table(findings):
    from keras_segen.report.tables import Cell, Column, Table

    rows = []
    for finding in findings:
        lines = finding.details or tuple(look.name for look in finding.looks)
        more = (f"and {len(lines) - NAMED} more",) if len(lines) > NAMED else ()
        mark = "bad" if finding.bad else "careful"
        number = len(finding.looks) or len(lines)
        what = Cell(finding.text, (finding.note, *lines[:NAMED], *more))
        rows.append([what, Cell(number, mark=mark)])
    columns = [Column("What", str, numeric=False), "Items"]
    return Table("Worth a look", columns, rows) if rows else None


def _suspects(findings):
    """Pictures of some items of each finding; each item once, with all that is said of it."""
    said = collections.defaultdict(list)
    for finding in findings:
        for look in finding.looks[: max(2, SUSPECTS // len(findings))]:
            if not look.error:
                said[look.name].append((look, finding.text))
    chosen = list(said.values())[:SUSPECTS]
    return [_shown(pairs[0][0], "; ".join(text for _, text in pairs)) for pairs in chosen]


def _choose(datasets, looks):
    """Chooses items that show as many classes as possible, then some from all over."""
    mine = [look for look in looks if look.dataset is datasets[0] and not look.error]
    chosen, missing = [], set(range(datasets[0].num_classes))
    while missing and len(chosen) < SAMPLES:
        best = max(mine, key=lambda look: len(_classes(look) & missing), default=None)
        if best is None or not _classes(best) & missing:
            break
        chosen.append(best)
        missing -= _classes(best)
    taken = {look.index for look in chosen}
    rest = [look for look in mine if look.index not in taken]
    places = _spread(len(rest), SAMPLES - len(chosen)) if len(chosen) < SAMPLES else ()
    return chosen + [rest[place] for place in places]


def _classes(look):
    return set() if look.counts is None else set(np.flatnonzero(look.counts).tolist())


def _contents(look):
    """The classes of an item in words, the largest first."""
    if look.counts is None:
        return _times(look.size)
    order = np.argsort(-look.counts, kind="stable")
    names = [look.dataset.class_names[index] for index in order if look.counts[index]]
    return f"{_times(look.size)}; {', '.join(names) or 'void'}"


def _shown(look, note):
    from keras_segen.report.evaluation import Shown

    image, target = read_item(look.dataset, look.index)
    pictures = {"image": _rgb(image)}
    if isinstance(look.dataset, Dataset):
        pictures["mask"] = _drawn(look.dataset, image, target)
    return Shown(look.name, note, pictures)


def _augmented(looks, augment, seed):
    """Items as the first epochs of a training with this seed see them."""
    from keras_segen.report.evaluation import Shown

    found = []
    for look in looks:
        dataset = look.dataset
        image, target = read_item(dataset, look.index)
        options = {}
        if isinstance(augment, Augment):
            options["ignore_class"] = getattr(dataset, "ignore_class", None)
        if options and not isinstance(dataset, Dataset):
            target = np.zeros(image.shape[:2], np.int32)
        pictures = {"stored": _drawn(dataset, image, target)}
        for epoch in range(EPOCHS):
            rng = determinism.rng("augment", seed, epoch, look.index)
            changed = augment(image, target, rng, **options)
            pictures[f"epoch {epoch + 1}"] = _drawn(dataset, *changed)
        found.append(Shown(look.name, "", pictures))
    return found


def _drawn(dataset, image, target):
    """An image, with its mask over it if there is one."""
    from keras_segen import plot

    if not isinstance(dataset, Dataset):
        return _rgb(image)
    return plot.overlay(image, target, dataset.palette, dataset.ignore_class, alpha=0.45)


def _rgb(image):
    return np.rint(np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1) * 255).astype("uint8")


def _colors(dataset):
    """The colors of the classes for CSS, or None for each if there are no masks."""
    if not isinstance(dataset, Dataset):
        return [None] * dataset.num_classes
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in dataset.palette.tolist()]


def _times(size):
    return f"{size[0]}x{size[1]}"
