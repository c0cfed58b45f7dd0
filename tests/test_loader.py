import json
import os
import subprocess
import sys
import zlib

import keras
import numpy as np
import psutil
import pytest

import keras_segen as ks
from keras_segen import backend
from keras_segen.data.loader import Batches


def shapes(length=10):
    return ks.data.Shapes("train", size=16, length=length)


def brighter(image, mask, rng):
    return np.clip(image + rng.uniform(0, 0.1), 0, 1).astype("float32"), mask


def shrinking(image, mask, rng):
    return image[:8], mask


class SeenBatches(Batches):
    """Notes which batches were taken from it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def read(self, epoch):
        for step, batch in enumerate(super().read(epoch)):
            self.seen.append((epoch, step))
            yield batch


def checksums(loader, epochs):
    return [
        zlib.crc32(np.asarray(masks), zlib.crc32(np.asarray(images)))
        for _ in range(epochs)
        for images, masks in loader
    ]


def network(built):
    layers = [keras.Input((16, 16, 3))] if built else []
    model = keras.Sequential([*layers, keras.layers.Conv2D(6, 3, padding="same")])
    model.compile("sgd", ks.losses.CrossEntropy(), metrics=[ks.metrics.MeanIoU(6)])
    return model


def test_loader_gives_float_images_and_int_masks():
    images, masks = next(iter(shapes().batches(4)))
    assert images.shape == (4, 16, 16, 3) and masks.shape == (4, 16, 16)
    assert keras.backend.standardize_dtype(images.dtype) == "float32"
    assert keras.backend.standardize_dtype(masks.dtype) == "int32"
    assert float(keras.ops.min(images)) >= 0 and float(keras.ops.max(images)) <= 1


def test_loader_gives_the_pure_function_of_epoch_and_step():
    options = {"seed": 3, "augment": ks.data.Augment()}
    expected = Batches(shapes(), 4, **options)
    loader = shapes().batches(4, **options)
    for epoch in range(2):
        for step, (images, masks) in enumerate(loader):
            wanted_images, wanted_masks = expected.batch(epoch, step)
            np.testing.assert_array_equal(np.asarray(images), wanted_images)
            np.testing.assert_array_equal(np.asarray(masks), wanted_masks)


def test_epochs_and_seeds_differ():
    batches = Batches(shapes(), 4, seed=0)
    assert not np.array_equal(batches.batch(0, 0)[0], batches.batch(1, 0)[0])
    assert not np.array_equal(batches.batch(0, 0)[0], Batches(shapes(), 4, seed=1).batch(0, 0)[0])


def test_loader_without_seed_keeps_the_order():
    first, second = (checksums(shapes().batches(4), 1) for _ in range(2))
    assert first == second
    images, _ = next(iter(shapes().batches(4)))
    np.testing.assert_array_equal(np.asarray(images)[1], shapes()[1][0])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers):
    options = {"seed": 5, "augment": ks.data.Augment()}
    here = checksums(shapes().batches(4, **options), epochs=3)
    there = checksums(shapes().batches(4, workers=workers, **options), epochs=3)
    assert here == there
    assert len(set(here)) == len(here)


def test_first_epoch_continues_the_sequence():
    whole = checksums(shapes().batches(4, seed=5, augment=brighter), epochs=3)
    rest = checksums(shapes().batches(4, seed=5, augment=brighter, first_epoch=1), epochs=2)
    assert whole[3:] == rest


@pytest.mark.once
def test_batches_equal_those_of_the_other_backend():
    code = (
        "import json, keras_segen as ks, numpy as np, zlib\n"
        "loader = ks.data.Shapes('train', size=16, length=10).batches("
        "4, seed=7, augment=ks.data.Augment())\n"
        "print(json.dumps([zlib.crc32(np.asarray(m), zlib.crc32(np.asarray(x)))"
        " for _ in range(3) for x, m in loader]))"
    )
    other = {"tensorflow": "torch", "torch": "tensorflow"}[keras.backend.backend()]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
        check=True,
    )
    here = checksums(shapes().batches(4, seed=7, augment=ks.data.Augment()), epochs=3)
    assert json.loads(done.stdout.splitlines()[-1]) == here


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("length", [4, 8, 10])
def test_fit_reads_each_epoch_once_and_in_order(built, length):
    batches = SeenBatches(shapes(length), 4, seed=0)
    network(built).fit(backend.make_loader(batches), epochs=3, shuffle=False, verbose=0)
    epochs = [(epoch, step) for epoch in range(3) for step in range(len(batches))]
    seen = batches.seen
    if len(seen) > len(epochs):  # Keras looked at the first batch before it began
        assert seen.pop(0) == (0, 0)
    assert seen == epochs
    assert batches.epoch == 3


def test_steps_per_epoch_go_on_through_the_data():
    batches = SeenBatches(shapes(16), 4, seed=0)
    loader = backend.make_loader(batches)
    network(True).fit(loader, epochs=4, steps_per_epoch=2, shuffle=False, verbose=0)
    assert batches.seen[-8:] == [(epoch, step) for epoch in range(2) for step in range(4)]


def test_fit_reads_from_worker_processes():
    batches = Batches(shapes(10), 4, seed=0, workers=1)
    network(True).fit(backend.make_loader(batches), epochs=2, shuffle=False, verbose=0)
    assert batches.epoch == 2


def test_a_dropped_iterator_leaves_the_epoch_as_it_was():
    batches = Batches(shapes(10), 4, seed=0)
    loader = backend.make_loader(batches)
    next(iter(loader))
    assert batches.epoch == 0
    first = checksums(loader, 1)
    assert first == checksums(shapes(10).batches(4, seed=0), 1)


def test_last_batch_is_kept_or_dropped():
    assert [len(images) for images, _ in shapes(10).batches(4)] == [4, 4, 2]
    assert [len(images) for images, _ in shapes(10).batches(4, drop_last=True)] == [4, 4]


def test_own_augmentation_is_called_with_image_mask_and_rng():
    images, _ = next(iter(shapes().batches(2, seed=0, augment=brighter)))
    plain, _ = next(iter(shapes().batches(2, seed=0)))
    difference = np.asarray(images) - np.asarray(plain)
    assert 0 < difference.max() <= 0.1 + 1e-6


def test_waiting_is_measured():
    batches = Batches(shapes(10), 4)
    list(batches.read(0))
    assert len(batches.waited) == 3 and all(seconds >= 0 for seconds in batches.waited)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 4, "workers": -1}, "workers is -1"),
        ({"batch_size": 4, "augment": brighter}, "needs a seed"),
        ({"batch_size": "4"}, "batch_size is '4', expected a whole number, 1 or more"),
        ({"batch_size": 4.0}, "batch_size is 4.0, expected a whole number"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": None}, "batch_size is None"),
        ({"batch_size": 4, "workers": 1.5}, "workers is 1.5, expected a whole number, 0"),
        ({"batch_size": 4, "seed": "0"}, "seed is '0', expected a whole number or None"),
        ({"batch_size": 4, "first_epoch": -1}, "first_epoch is -1"),
        ({"batch_size": 4, "seed": 0, "augment": "flip"}, "augment is 'flip'"),
        ({"batch_size": 40, "drop_last": True}, "10 items, the batch size is 40"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(shapes(), **options)


@pytest.mark.parametrize("step", [3, -1])
def test_a_step_beyond_the_epoch_is_named(step):
    with pytest.raises(IndexError, match=f"step is {step}, expected 0 to 2"):
        Batches(shapes(10), 4).batch(0, step)


def test_an_augmentation_that_changes_the_size_is_named():
    with pytest.raises(ValueError, match=r"train_0000\d.*\(16, 16, 3\) -> \(8, 16, 3\)"):
        Batches(shapes(), 4, seed=0, augment=shrinking).batch(0, 0)


def test_an_augmentation_that_does_not_pickle_says_so():
    nothing = lambda image, mask, rng: (image, mask)  # noqa: E731
    batches = Batches(shapes(), 4, seed=0, augment=nothing, workers=1)
    with pytest.raises(ValueError, match="module of its own, or use workers=0"):
        next(batches.read(0))


def test_workers_end_when_their_process_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from keras_segen.data import Shapes\n"
        "from keras_segen.data.loader import Batches\n"
        "if __name__ == '__main__':\n"
        "    next(Batches(Shapes('train', size=8, length=8), 2, workers=2).read(0))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=10)[1]
