"""From a data set to batches: order, augmentation and stacking in NumPy, the same on any backend.

Batch k of epoch e is a pure function of (data set, seed, e, k): the order comes from
(seed, epoch), the augmentation of an item from (seed, epoch, index, and the number of its visit,
if sampling repeats it in the epoch). Workers, reading ahead and peeking into an iterator change
nothing.
"""

import collections
import concurrent.futures
import math
import multiprocessing
import os
import pickle
import threading
import time
import weakref
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np

from keras_segen.arguments import whole_number
from keras_segen.data.augment import Augment
from keras_segen.data.foreign import adapted
from keras_segen.data.imbalance import item_weights
from keras_segen.data.tree import Spec, conform, map_tree
from keras_segen.determinism import order, rng, sample

SAMPLINGS = ("uniform", "rare_classes")
PARTS = ("image", "target", "weights")  # the parts of an item


class Batches:
    """The batches of a data set, epoch after epoch.

    Args:
        dataset: a `keras_segen.data.Dataset` or `Pictures` whose items have one size.
        batch_size: int, items per batch.
        seed: int; None keeps the order of the data set and allows no augmentation.
        augment: a `keras_segen.data.Augment`; a function `(image, mask, rng)`, with `rng` a
            `numpy.random.Generator`; a function `(image, mask)`, for whose call `numpy.random`
            and `random` are seeded; or a `Compose` of Albumentations, which gets and returns the
            image as uint8 0 to 255. None for none. It changes what `dataset.read` returns, before
            `dataset.make_target`; whatever it draws is a function of (seed, epoch, index).
        workers: int; 0 prepares batches in a thread of this process, n > 0 in n processes.
            They import neither Keras nor a framework; data set and `augment` must pickle.
        drop_last: bool, whether a last batch with fewer items is left out.
        first_epoch: int, the epoch that the first pass serves; a resumed training sets it.
        sampling: str, `"uniform"`: an epoch visits every item once; or `"rare_classes"`: as many
            items, drawn by `keras_segen.data.item_weights`: those with much of rare classes more
            often, others not in every epoch.

    Attributes:
        epoch: int, the epoch that the next pass serves; the backend's loader advances it.
        waited: list of float, the seconds that the consumer waited for each batch.
        error: the exception that ended the last pass, or None. A framework may wrap it in one
            of its own.

    Raises:
        ValueError: an argument is out of range, the data set has too few items for a batch, or
            its items have no common size.
    """

    def __init__(
        self,
        dataset,
        batch_size,
        *,
        seed=None,
        augment=None,
        workers=0,
        drop_last=False,
        first_epoch=0,
        sampling="uniform",
    ):
        batch_size = whole_number("batch_size", batch_size, 1, ", 1 or more")
        workers = whole_number("workers", workers, 0, ", 0 (a thread) or more (processes)")
        first_epoch = whole_number("first_epoch", first_epoch, 0, ", 0 or more")
        if seed is not None:
            whole_number("seed", seed, -math.inf, " or None")
        if augment is not None and not isinstance(augment, Augment):
            augment = adapted(augment)
        if augment is not None and seed is None:
            raise ValueError("Augmentation needs a seed: batches(..., seed=0, augment=...).")
        if sampling not in SAMPLINGS:
            expected = " or ".join(map(repr, SAMPLINGS))
            raise ValueError(f"sampling is {sampling!r}, expected {expected}.")
        if sampling == "rare_classes" and seed is None:
            raise ValueError(
                "Sampling needs a seed: batches(..., seed=0, sampling='rare_classes')."
            )
        dataset.common_shape()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.workers = workers
        self.drop_last = drop_last
        self.epoch = first_epoch
        self.item_weights = item_weights(dataset) if sampling == "rare_classes" else None
        self.waited = []
        self.error = None
        self._pool = None
        if len(self) == 0:
            raise ValueError(
                f"No batch to give: the {dataset.split} split of {dataset.name} has "
                f"{len(dataset)} items, the batch size is {batch_size}"
                + (" and the last batch is dropped." if drop_last else ".")
            )

    def __len__(self):
        """Batches per epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def spec(self):
        """What an item of a batch is: `(Spec of its image, Spec or dict of Spec of its target)`.

        And the Spec of its sample weights, if the data set has them.
        """
        weights = self.dataset.weight_spec
        more = () if weights is None else (weights,)
        return Spec(self.dataset.image_shape, "float32"), self.dataset.target_spec, *more

    def __getstate__(self):
        return {**self.__dict__, "_pool": None, "waited": [], "error": None}

    def batch(self, epoch, step):
        """Makes one batch.

        Returns:
            `(images, target)`: float32 `(batch, height, width, channels)` in [0, 1], and what
            `dataset.target_spec` says, with the batch in front: int32 `(batch, height, width)`
            for masks. `(images, target, weights)` if the data set has sample weights.

        Raises:
            ValueError: if an item is not what `spec` says; it names the item.
        """
        here = slice(step * self.batch_size, (step + 1) * self.batch_size)
        indices = self._visited(epoch)
        if not 0 <= here.start < len(indices):
            raise IndexError(f"step is {step}, expected 0 to {len(self) - 1}.")
        visits = earlier_visits(indices)[here]
        items = [
            self._item(epoch, int(index), int(visit))
            for index, visit in zip(indices[here], visits, strict=True)
        ]
        return tuple(
            map_tree(lambda *arrays: np.stack(arrays), *parts) for parts in zip(*items, strict=True)
        )

    def _visited(self, epoch):
        """Returns the items that an epoch visits, in order: int64 `(len(dataset),)`."""
        if self.seed is None:
            return np.arange(len(self.dataset))
        if self.item_weights is None:
            return order(self.seed, epoch, len(self.dataset))
        return sample(self.seed, epoch, self.item_weights)

    def _item(self, epoch, index, visit):
        image, stored = self.dataset.read(index)
        if self.augment is not None:
            image, stored = self._augmented(image, stored, epoch, index, visit)
        name = f"Item {self.dataset.item_name(index)} of {self.dataset.name}"
        found = [image, self.dataset.make_target(stored)]
        if self.dataset.weight_spec is not None:
            found.append(self.dataset.make_weights(stored))
        return tuple(
            conform(part, spec, f"{name}: its {kind}")
            for part, spec, kind in zip(found, self.spec, PARTS[: len(found)], strict=True)
        )

    def _augmented(self, image, stored, epoch, index, visit):
        generator = rng("augment", self.seed, epoch, index, *([visit] if visit else []))
        options = {}
        if isinstance(self.augment, Augment):
            options["ignore_class"] = getattr(self.dataset, "ignore_class", None)
        augmented = self.augment(image, stored, generator, **options)
        shapes = [[np.shape(part) for part in pair] for pair in ((image, stored), augmented)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"The augmentation changed the size of {self.dataset.item_name(index)}: image "
                f"{shapes[0][0]} -> {shapes[1][0]}, mask {shapes[0][1]} -> {shapes[1][1]}. It "
                "must keep both."
            )
        return augmented

    def read(self, epoch):
        """Yields the batches of one epoch in order, preparing a few ahead."""
        self.error = None
        pool, make = self._workers()
        ahead = 2 * max(1, self.workers)
        pending = collections.deque()
        try:
            for step in range(len(self)):
                while len(pending) < ahead and step + len(pending) < len(self):
                    pending.append(pool.submit(make, epoch, step + len(pending)))
                start = time.perf_counter()
                batch = pending.popleft().result()
                self.waited.append(time.perf_counter() - start)
                yield batch
        except BrokenProcessPool as error:
            self._pool = None
            self.error = RuntimeError(
                "A data worker process died: too little memory, or the script lacks "
                "`if __name__ == '__main__':` around its work. workers=0 needs no processes."
            )
            raise self.error from error
        except Exception as error:
            self.error = error
            raise
        finally:
            for future in pending:
                future.cancel()

    def _workers(self):
        """The pool that prepares batches, started at the first use, kept between epochs."""
        if self._pool is None and self.workers == 0:
            self._pool = concurrent.futures.ThreadPoolExecutor(1, initializer=_single_threaded)
        elif self._pool is None:
            try:
                source = pickle.dumps(self)
            except Exception as error:
                raise ValueError(
                    "The data set or the augmentation cannot be sent to worker processes "
                    f"({error}): define it in a module of its own, or use workers=0."
                ) from error
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(source,),
            )
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool, (self.batch if self.workers == 0 else _worker_batch)


def earlier_visits(indices):
    """Counts, for each visit of an item, how often the item was visited before."""
    by_item = np.argsort(indices, kind="stable")
    in_order = indices[by_item]
    visits = np.empty_like(indices)
    visits[by_item] = np.arange(len(indices)) - np.searchsorted(in_order, in_order)
    return visits


def _single_threaded():
    cv2.setNumThreads(1)  # the other cores belong to the training


def _start_worker(source):
    global _worker_batches
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _single_threaded()
    _worker_batches = pickle.loads(source)  # our own bytes, made in `_workers`


def _end_with_parent():
    """Ends this process when the one that started it ends, even if it is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _worker_batch(epoch, step):
    return _worker_batches.batch(epoch, step)
