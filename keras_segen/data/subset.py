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
        classes = dataset.class_names, dataset.palette, dataset.ignore_class, dataset.label_ids
        super().__init__(dataset.name, split, *classes, dataset.image_shape)
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

    @property
    def weight_spec(self):
        return self.dataset.weight_spec

    def make_weights(self, stored):
        return self.dataset.make_weights(stored)

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
    if groups is not None and len(groups) != length:
        raise ValueError(f"{len(groups)} group names for {length} items, expected one for each")
    members = shuffled_groups(length, groups, rng("folds", seed, num_folds))
    if len(members) < num_folds:
        what = "items" if len(members) == length else f"groups of {length} items"
        raise ValueError(
            f"{len(members)} {what} cannot fill {num_folds} folds, expected at most "
            f"{len(members)} folds: a group is in one fold as a whole"
        )
    folds, sizes = np.empty(length, np.int64), np.zeros(num_folds, np.int64)
    for indices in members:
        smallest = sizes.argmin()
        folds[indices] = smallest
        sizes[smallest] += len(indices)
    return folds


def shuffled_groups(length, groups, generator):
    """Returns the items of each group: lists of int, the longest first, else in random order.

    Args:
        length: int, number of items.
        groups: as in `assign_folds`.
        generator: `numpy.random.Generator`.
    """
    members = collections.defaultdict(list)
    for index, group in enumerate([None] * length if groups is None else groups):
        members[index if group is None else group].append(index)
    found = list(members.values())
    found = [found[place] for place in generator.permutation(len(found))]
    return sorted(found, key=len, reverse=True)  # keeps the order of equal ones
