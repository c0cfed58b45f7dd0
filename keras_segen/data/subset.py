"""A part of a data set, and the folds of a cross-validation."""

import collections

import numpy as np

from keras_segen.data.dataset import Dataset, require_masks
from keras_segen.determinism import rng


class Subset(Dataset):
    """Some items of a data set, as a data set of its own; nothing is copied.

    Args:
        dataset: a `Dataset`.
        indices: sequence of int, items of it, 0 to `len - 1`; each at most once.
        split: str, `"train"`, `"val"` or `"test"`: what these items are used for.

    Raises:
        ValueError: if there is no index, one is out of range, or one comes twice.

    Example:

    >>> from keras_segen.data import load
    >>> part = Subset(load("shapes", "train", size=32), [4, 2], "val")
    >>> len(part), part.item_name(0), part[0][1].shape
    (2, 'train_00004', (32, 32))
    """

    def __init__(self, dataset, indices, split):
        require_masks(dataset)
        indices = np.array(indices, np.int64).reshape(-1)
        if not len(indices):
            raise ValueError(f"no item of {dataset.name} is in this part; expected at least one")
        if indices.min() < 0 or indices.max() >= len(dataset):
            raise ValueError(
                f"indices from {indices.min()} to {indices.max()}, expected 0 to "
                f"{len(dataset) - 1}, the items of {dataset.name}"
            )
        if len(np.unique(indices)) < len(indices):
            raise ValueError("an index comes twice, expected each item of the part once")
        self.dataset = dataset
        self.indices = indices
        super().__init__(
            dataset.name,
            split,
            dataset.class_names,
            dataset.palette,
            dataset.ignore_class,
            dataset.label_ids,
            dataset.image_shape,
        )
        self.sizes = dataset.sizes

    def __len__(self):
        return len(self.indices)

    def read(self, index):
        return self.dataset.read(int(self.indices[index]))

    @property
    def target_spec(self):
        return self.dataset.target_spec

    def make_target(self, stored):
        return self.dataset.make_target(stored)

    def read_mask(self, index):
        return self.dataset.read_mask(int(self.indices[index]))

    def item_name(self, index):
        return self.dataset.item_name(int(self.indices[self._index(index)]))

    @property
    def object_classes(self):
        return self.dataset.object_classes

    def instances(self, index):
        return self.dataset.instances(int(self.indices[self._index(index)]))

    def read_instances(self, index):
        return self.dataset.read_instances(int(self.indices[index]))

    @property
    def groups(self):
        groups = self.dataset.groups
        return None if groups is None else [groups[index] for index in self.indices]

    def _count(self):
        return self.dataset.pixel_counts_of_items()[self.indices].tolist()


def assign_folds(length, num_folds, seed, groups=None):
    """Deals the items of a data set into folds of about equal size.

    A pure function of its arguments: whatever is trained, the folds are the same. Groups
    (patients, sequences) stay whole; the largest are dealt first, each to the smallest fold.

    Args:
        length: int, number of items.
        num_folds: int, at least 2.
        seed: int.
        groups: None, or for each item the name of its group (str), or None for an item that is
            a group of its own.

    Returns:
        int64 `(length,)`: the fold of each item, 0 to `num_folds - 1`.

    Raises:
        ValueError: if there are fewer groups than folds, or not as many group names as items.

    Example:

    >>> assign_folds(6, 2, seed=0, groups=["a", "a", "a", "b", "c", None])
    array([0, 0, 0, 1, 1, 1])
    """
    if num_folds < 2:
        raise ValueError(f"num_folds is {num_folds}, expected at least 2")
    if groups is None:
        groups = [None] * length
    if len(groups) != length:
        raise ValueError(f"{len(groups)} group names for {length} items, expected one for each")
    members = collections.defaultdict(list)
    for index, group in enumerate(groups):
        members[index if group is None else group].append(index)
    if len(members) < num_folds:
        what = "items" if len(members) == length else f"groups of {length} items"
        raise ValueError(
            f"{len(members)} {what} cannot fill {num_folds} folds, expected at most "
            f"{len(members)} folds: a group is in one fold as a whole"
        )
    names = list(members)
    names = [names[place] for place in rng("folds", seed, num_folds).permutation(len(names))]
    folds, sizes = np.empty(length, np.int64), np.zeros(num_folds, np.int64)
    for name in sorted(names, key=lambda name: -len(members[name])):  # stable: shuffled else
        smallest = sizes.argmin()
        folds[members[name]] = smallest
        sizes[smallest] += len(members[name])
    return folds
