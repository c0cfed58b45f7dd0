"""The clock: what it counts, not how fast anything is."""

import time

import keras
import pytest

from keras_segen import backend
from keras_segen.bench import loader
from keras_segen.compare import clock, rounds
from keras_segen.compare.rounds import Held
from keras_segen.data.loader import Batches
from keras_segen.tasks.segmentation import SegmentationTask


def plan(**options):
    values = {"filters": (4, 8), "image_size": (8, 8), "batch_size": 64, "augment": "none"}
    return SegmentationTask(**{**values, **options})


def test_milliseconds_are_a_median_and_percentiles():
    found = rounds.milliseconds([0.001, 0.002, 0.003, 0.004, 0.005])
    assert found == {"median": 3.0, "p10": 1.4, "p90": 4.6, "count": 5}


def test_steady_leaves_out_the_warm_up_unless_nothing_is_left():
    assert rounds.steady([9, 9, 9, 1, 2]) == [1, 2]
    assert rounds.steady([9, 9]) == [9, 9]


def test_recorder_sees_the_loss_of_each_step():
    task = plan(model="plain_unet", epochs=2)  # no batch norm: training equals inference
    dataset = task.load_data("train")
    model = task.build_model(dataset)
    batches = task.training_batches(dataset)
    task.compile(model, dataset, len(batches))
    model.optimizer.learning_rate = 0.0
    told = []
    recorder = clock.Recorder(batches, tell=lambda **values: told.append(values["step"]))
    loader = backend.make_loader(batches)
    model.fit(loader, epochs=2, shuffle=False, verbose=0, callbacks=[recorder])
    expected = [
        float(model.loss(masks, backend.infer(model, images)))
        for epoch in range(2)
        for images, masks in Batches(dataset, 64, seed=0).read(epoch)
    ]
    assert recorder.losses["loss"] == pytest.approx(expected, rel=1e-4)
    assert told == list(range(1, len(expected) + 1))
    assert len(recorder.seconds) == len(recorder.waits) == len(expected)


class SlowBatch(Batches):
    """Keeps its taker waiting for the third batch."""

    def read(self, epoch):
        for step, batch in enumerate(super().read(epoch)):
            if step == 2:
                time.sleep(0.3)
                self.waited[-1] += 0.3
            yield batch


def test_recorder_tells_a_slow_step_from_a_slow_batch():
    class SlowStep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            time.sleep(0.3 if batch == 4 else 0)

    task = plan()
    dataset = task.load_data("train")
    model = task.build_model(dataset)
    batches = task.training_batches(dataset, kind=SlowBatch)
    task.compile(model, dataset, len(batches))
    recorder = clock.Recorder(batches)
    loader = backend.make_loader(batches)
    model.fit(loader, shuffle=False, verbose=0, callbacks=[SlowStep(), recorder])
    assert len(recorder.seconds) == 8
    assert recorder.waits[2] >= 0.3
    assert recorder.seconds[4] >= 0.3


def test_held_batches_are_the_first_epoch_each_time():
    task = plan()
    dataset = task.load_data("train")
    stored = task.training_batches(dataset, kind=Held)
    expected = list(Batches(dataset, 64, seed=0).read(0))
    for epoch in range(2):
        for (images, masks), (x, y) in zip(stored.read(epoch), expected, strict=True):
            assert (images == x).all() and (masks == y).all()


def test_loader_ratio_measures_both_kinds():
    told = []
    result = loader.loader_ratio(plan(), epochs=3, tell=told.append)
    order = [line.split(":")[0] for line in told[1:]]
    assert order == ["memory", "loader", "loader", "memory", "memory", "loader"]
    pairs = zip(result["loader_seconds"], result["memory_seconds"], strict=True)
    assert sorted(a / b for a, b in pairs)[1] == pytest.approx(result["ratio"])
