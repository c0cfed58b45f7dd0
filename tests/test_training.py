"""A run folder: what it holds, how it resumes, and every option of a task."""

import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from PIL import Image

from keras_segen import backend, data, determinism, losses, runs, segmentation
from keras_segen.files import write_json
from keras_segen.machine import peak_memory
from keras_segen.runs import training
from keras_segen.tasks.segmentation import SegmentationTask
from keras_segen.tasks.task import Phase


def task(folder, **options):
    values = {
        "data": f"folder:{folder}",
        "image_size": (16, 16),
        "filters": (4, 8),
        "batch_size": 4,
        "epochs": 3,
        **options,
    }
    return SegmentationTask(**values)


def weights(path):
    return keras.models.load_model(path, compile=False).get_weights()


def assert_equal_runs(a, b):
    """Two runs ended with the same weights and the same history, to rounding."""
    for name in ("checkpoint-0003.keras", "model.keras"):
        for x, y in zip(weights(a / name), weights(b / name), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    first, second = training.read_history(a), training.read_history(b)
    for key in ("loss", "val_loss", "val_mean_iou", "learning_rate"):
        np.testing.assert_allclose(first[key], second[key], rtol=1e-4, atol=1e-6)


class StopInEpoch(keras.callbacks.Callback):
    """Interrupts the training in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch
        self.now = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(picture_folder, tmp_path_factory):
    """An uninterrupted run of three epochs."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    training.train(task(picture_folder, schedule="cosine"), run, verbose=0)
    return run


def test_run_folder_holds_what_it_promises(finished, read_json):
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*")}
    assert names == {
        "run.json",
        "history.csv",
        "model.keras",
        "checkpoint-0003.json",
        "checkpoint-0003.keras",
        "curves.png",
        "previews",
        *(f"previews/epoch-000{epoch}.png" for epoch in (1, 2, 3)),
    }
    run = read_json(finished / "run.json")
    assert run["experiment"]["seed"] == 0 and run["experiment"]["filters"] == [4, 8]
    assert run["data"]["class_names"][0] == "background" and run["data"]["label_ids"][0] == 1
    assert run["starts"][0]["versions"]["keras"] == keras.__version__
    assert run["starts"][0]["backend"] == keras.backend.backend()
    with Image.open(finished / "curves.png") as curves:
        assert curves.size[0] > 300


def test_history_has_a_row_per_epoch(finished):
    history = training.read_history(finished)
    assert history["epoch"] == [1, 2, 3]
    assert history["loss"][-1] < history["loss"][0]
    assert history["learning_rate"][-1] == pytest.approx(0, abs=1e-9)
    assert 0 < history["peak_memory_mib"][-1] <= peak_memory() / 2**20 + 0.1  # rounded


def test_model_is_that_of_the_best_epoch(finished):
    history = training.read_history(finished)
    best = int(np.argmax(history["val_mean_iou"]))
    result = runs.evaluate(finished, "val").figures
    assert result["mean_iou"] == pytest.approx(history["val_mean_iou"][best], abs=1e-6)


@pytest.mark.parametrize("epoch", [pytest.param(0, marks=pytest.mark.once), 2])
def test_an_interrupted_run_resumes_to_the_same_weights(finished, picture_folder, tmp_path, epoch):
    plan = task(picture_folder, schedule="cosine")
    with pytest.raises(KeyboardInterrupt):
        training.train(plan, tmp_path / "run", callbacks=[StopInEpoch(epoch)], verbose=0)
    (tmp_path / "run" / ".model-0a1b2c3d.keras").write_text("what a killed write leaves")
    training.resume(tmp_path / "run", verbose=0)
    assert_equal_runs(finished, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.once
def test_a_killed_run_resumes_to_the_same_weights(finished, picture_folder, tmp_path):
    run = tmp_path / "run"
    code = (
        "import sys\n"
        "from keras_segen.runs import training\n"
        "from keras_segen.tasks.segmentation import SegmentationTask\n"
        "training.train(SegmentationTask.from_json(sys.argv[1]), sys.argv[2], verbose=0)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(finished / "run.json"), str(run)])
    deadline = time.monotonic() + 120
    while not (run / "checkpoint-0001.keras").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (run / "run.json").exists()
    training.resume(run, verbose=0)
    assert_equal_runs(finished, run)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (finished / "checkpoint-0003.keras").read_bytes()
    history = training.resume(finished, verbose=0)
    assert history["epoch"] == [1, 2, 3]
    assert (finished / "checkpoint-0003.keras").read_bytes() == before


class Poison(keras.callbacks.Callback):
    """Makes the weights NaN when an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            for weight in self.model.trainable_weights:
                weight.assign(np.full(weight.shape, np.nan, "float32"))


@pytest.mark.once
def test_a_training_that_diverges_says_so_and_keeps_what_was_good(picture_folder, tmp_path):
    with pytest.raises(ValueError, match=r"loss is nan in epoch 2: .*smaller --learning-rate"):
        training.train(task(picture_folder), tmp_path / "run", callbacks=[Poison(1)], verbose=0)
    assert len(training.read_history(tmp_path / "run")["loss"]) == 1
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*.keras")] == [
        "checkpoint-0001.keras"
    ]
    assert np.isfinite(weights(tmp_path / "run" / "checkpoint-0001.keras")[0]).all()


def test_a_run_folder_is_not_overwritten(finished, picture_folder):
    with pytest.raises(FileExistsError, match="--resume"):
        training.train(task(picture_folder), finished, verbose=0)


def test_a_run_starts_from_another_ones_best_model(finished, picture_folder, tmp_path):
    plan = task(picture_folder, start_from=finished)
    dataset = plan.load_data("val")
    for x, y in zip(
        plan.build_model(dataset).get_weights(), weights(finished / "model.keras"), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    assert SegmentationTask.from_dict(plan.to_dict()) == plan
    with pytest.raises(ValueError, match="holds another network"):
        task(picture_folder, start_from=finished, filters=(6, 12)).build_model(dataset)
    told = []
    task(picture_folder, start_from=finished, filters=(4, 8, 12)).build_model(
        dataset, tell=told.append
    )
    assert told[0].startswith(f"10 layers start from {finished}")
    assert "; new: down1_conv1, " in told[0] and "; left there: bottom_conv1, " in told[0]
    with pytest.raises(FileNotFoundError, match="names no finished run"):
        task(picture_folder, start_from=tmp_path).build_model(dataset)


def test_resume_refuses_another_data_set(finished, tmp_path, read_json):
    run = read_json(finished / "run.json")
    run["data"]["train"] = 9
    write_json(tmp_path / "run.json", run)
    with pytest.raises(ValueError, match="train was 9, is 8"):
        training.resume(tmp_path)


def test_a_folder_without_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run.json"):
        training.resume(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run.json"):
        runs.evaluate(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {
            **{"model": "plain_unet", "channels": 1, "augment": "none", "seed": 4},
            **{"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4, "loss": "dice"},
        },
        {
            **{"optimizer": "adamw", "weight_decay": 0.01, "sampling": "rare_classes"},
            **{"loss": "cross_entropy+dice", "class_weights": "median_frequency", "dropout": 0.5},
            **{"label_smoothing": 0.1, "cache": "ram"},
        },
        {
            **{"loss": "focal+0.5*lovasz", "class_weights": "effective_number"},
            **{"augment": "flip=0.5 brightness=0.5,-0.2,0.2", "cache": "disk", "workers": 1},
        },
        {
            **{"loss": "tversky + 0.1*focal_tversky + 2*jaccard", "image_size": (16, 24)},
            **{"precision": "mixed_bfloat16"},
        },
        {"model": "fcn", "stride": 32, "filters": (4, 4, 4, 4, 4, 8), "dropout": 0.5},
        {
            **{"model": "fcn", "stride": 16, "filters": (4, 4, 4, 4, 4, 8)},
            **{"class_weights": "inverse_frequency"},
        },
        pytest.param(
            {"model": "fcn", "filters": (8,), "encoder": "efficientnet_lite0"},
            marks=pytest.mark.once,
        ),
    ],
    ids=str,
)
def test_every_option_trains(picture_folder, tmp_path, monkeypatch, options):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))
    history = training.train(task(picture_folder, epochs=1, **options), tmp_path / "run", verbose=0)
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["val_loss"]).all()
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("name", list(segmentation.MODELS))
def test_every_model_is_trained_on_logits(picture_folder, name):
    plan = task(picture_folder, model=name, filters=(4,) * (6 if name == "fcn" else 2))
    dataset = plan.load_data("train")
    model = plan.build_model(dataset)
    last = model.layers[-1].get_weights()
    if last:  # FCN starts with scores of zero
        model.layers[-1].set_weights([np.abs(last[0]) - 1, last[1] - 1])
        assert backend.infer(model, dataset[0][0][None]).min() < 0
    else:
        assert not backend.infer(model, dataset[0][0][None]).any()


# --- two phases: a frozen encoder, then all of the network


def small_encoder(weights="imagenet"):
    """Five convolutions in the place of EfficientNet-Lite0; the same weights at each call."""
    images = keras.Input((None, None, 3))
    features = [images]
    for _ in range(5):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(features[-1])
        features.append(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
    model = keras.Model(images, features[1:], name="efficientnet_lite0")
    determinism.initialize(model, seed=7)
    return model


def two_phases(folder, **options):
    return task(
        folder,
        **{
            "encoder": "efficientnet_lite0",
            "filters": (2, 2, 2, 2, 2),
            "epochs": 4,
            "freeze_epochs": 2,
            "schedule": "cosine",
            "dropout": 0.5,
            **options,
        },
    )


@pytest.fixture(scope="module")
def fine_tuned(picture_folder, tmp_path_factory):
    """An uninterrupted run in two phases of two epochs each; with a smaller encoder meanwhile."""
    run = tmp_path_factory.mktemp("runs") / "fine_tuned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(segmentation.ENCODERS, "efficientnet_lite0", small_encoder)
        training.train(two_phases(picture_folder), run, verbose=0)
        yield run


def kept_weights(path):
    """Which weights of the encoder are the pretrained ones still: a list of bool."""
    model = keras.models.load_model(path, compile=False)
    found = model.get_layer("efficientnet_lite0").get_weights()
    pretrained = small_encoder().get_weights()
    return [np.array_equal(x, y) for x, y in zip(pretrained, found, strict=True)]


def kept_kernels(path):
    """The same for kernels. (Some offsets have no gradient: the next normalization undoes them.)"""
    weights = small_encoder().weights
    return [kept for kept, w in zip(kept_weights(path), weights, strict=True) if w.ndim == 4]


def test_a_training_in_two_phases_has_one_history(fine_tuned):
    history = training.read_history(fine_tuned)
    assert history["epoch"] == [1, 2, 3, 4]
    # Each phase has a cosine of its own, that of the second a tenth as high.
    assert history["learning_rate"] == pytest.approx([5e-4, 0, 5e-5, 0], abs=1e-7)
    assert not any(kept_kernels(fine_tuned / "checkpoint-0004.keras"))


@pytest.mark.once
@pytest.mark.parametrize("epoch", [2, 3], ids=["border", "fine-tuning"])
def test_either_phase_resumes_to_the_same_weights(fine_tuned, picture_folder, tmp_path, epoch):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        training.train(two_phases(picture_folder), run, callbacks=[StopInEpoch(epoch)], verbose=0)
    checkpoint = run / f"checkpoint-000{epoch}.keras"
    if epoch <= 2:
        assert all(kept_weights(checkpoint))  # statistics as well
    else:
        assert not any(kept_kernels(checkpoint))
    training.resume(run, verbose=0)
    name = "checkpoint-0004.keras"
    for x, y in zip(weights(fine_tuned / name), weights(run / name), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    first, second = training.read_history(fine_tuned), training.read_history(run)
    for key in ("loss", "val_loss", "val_mean_iou", "learning_rate"):
        np.testing.assert_allclose(first[key], second[key], rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_a_saved_network_with_an_encoder_loads_in_a_new_process(fine_tuned):
    code = "import sys; from keras_segen.runs.training import load_model; load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(fine_tuned)], check=True)


def test_phases_of_an_experiment():
    assert SegmentationTask(epochs=3, learning_rate=0.1).phases() == [Phase(0, 3, False, 0.1)]
    frozen = {"encoder": "vgg16", "epochs": 3, "learning_rate": 0.5, "freeze_epochs": 1}
    assert SegmentationTask(**frozen).phases() == [Phase(0, 1, True, 0.5), Phase(1, 3, False, 0.05)]
    assert SegmentationTask(**frozen, fine_tune_rate=0.01).phases()[1] == Phase(1, 3, False, 0.01)
    assert SegmentationTask(**{**frozen, "freeze_epochs": 3}).phases() == [Phase(0, 3, True, 0.5)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "plain_unet", "dropout": 0.5}, "dropout is 0.5, but plain_unet has none"),
        ({"model": "plain_unet", "encoder": "vgg16"}, "encoder is 'vgg16', but plain_unet has"),
        ({"stride": 16}, "stride is 16, but unet has none"),
    ],
)
def test_options_that_a_model_does_not_have_are_named(picture_folder, options, message):
    plan = task(picture_folder, **options)
    with pytest.raises(ValueError, match=message):
        plan.build_model(plan.load_data("train"))


def test_optimizer_options_reach_the_optimizer(picture_folder):
    plan = task(
        picture_folder, optimizer="adamw", weight_decay=0.02, class_weights="median_frequency"
    )
    dataset = plan.load_data("train")
    model = plan.build_model(dataset)
    plan.compile(model, dataset, steps_per_epoch=2)
    assert model.optimizer.weight_decay == pytest.approx(0.02)
    assert len(model.loss.class_weights) == dataset.num_classes


def test_loss_options_reach_the_loss(picture_folder):
    plan = task(
        picture_folder,
        loss="cross_entropy+0.5*lovasz+2*focal",
        label_smoothing=0.1,
        class_weights="inverse_frequency",
    )
    dataset = plan.load_data("train")
    terms = plan.make_loss(dataset).terms
    assert [(factor, type(loss)) for factor, loss in terms] == [
        (1, losses.CrossEntropy),
        (0.5, losses.Lovasz),
        (2, losses.Focal),
    ]
    weights = tuple(data.inverse_frequency_weights(dataset).tolist())
    assert [loss.class_weights for _, loss in terms] == [weights, None, weights]
    assert terms[0][1].label_smoothing == 0.1
    assert all(loss.ignore_class == dataset.ignore_class is not None for _, loss in terms)
    assert type(task(picture_folder).make_loss(dataset)) is losses.CrossEntropy


def test_sampling_reaches_the_batches(picture_folder):
    plan = task(picture_folder, sampling="rare_classes", batch_size=8, augment="none")
    dataset = plan.load_data("train")
    images, _ = plan.training_batches(dataset).batch(0, 0)
    drawn = determinism.sample(plan.seed, 0, data.item_weights(dataset))
    np.testing.assert_array_equal(images, [dataset[i][0] for i in drawn])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_takes_from_kernels_only(picture_folder, optimizer):
    after = []
    for weight_decay in (0.0, 0.5):
        plan = task(
            picture_folder, optimizer=optimizer, weight_decay=weight_decay, learning_rate=0.01
        )
        dataset = plan.load_data("train")
        model = plan.build_model(dataset)
        before = {weight.path: np.array(weight) for weight in model.trainable_weights}
        plan.compile(model, dataset, steps_per_epoch=1)
        # The same gradients to the bit: Adam divides by them, and makes much of a last digit.
        model.optimizer.apply(
            [keras.ops.full(weight.shape, 0.1) for weight in model.trainable_weights],
            model.trainable_weights,
        )
        after.append({weight.path: np.array(weight) for weight in model.trainable_weights})
    for path, weight in before.items():
        taken = 0.01 * 0.5 * weight if weight.ndim > 1 else 0 * weight
        np.testing.assert_allclose(after[0][path] - after[1][path], taken, atol=1e-5)
    assert {weight.ndim for weight in before.values()} == {1, 4}


@pytest.mark.once
def test_a_resumed_run_decays_and_samples_as_before(picture_folder, tmp_path):
    plan = task(
        picture_folder,
        optimizer="adamw",
        weight_decay=5.0,  # large, so that a bias that decays shows
        learning_rate=0.01,
        sampling="rare_classes",
        loss="cross_entropy+dice",
        class_weights="effective_number",
    )
    training.train(plan, tmp_path / "whole", verbose=0)
    with pytest.raises(KeyboardInterrupt):
        training.train(plan, tmp_path / "parts", callbacks=[StopInEpoch(1)], verbose=0)
    training.resume(tmp_path / "parts", verbose=0)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.once
def test_early_stopping_waits_and_a_resumed_run_stops_at_the_same_epoch(picture_folder, tmp_path):
    # A rate that moves nothing, and no batch statistics that do: the first epoch stays the best.
    plan = task(picture_folder, model="plain_unet", early_stopping=2, epochs=6, learning_rate=1e-12)
    history = training.train(plan, tmp_path / "whole", verbose=0)
    assert history["epoch"] == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        training.train(plan, tmp_path / "parts", callbacks=[StopInEpoch(2)], verbose=0)
    assert training.read_history(tmp_path / "parts")["epoch"] == [1, 2]
    for _ in range(2):  # the second time there is nothing left to do
        assert training.resume(tmp_path / "parts", verbose=0)["epoch"] == [1, 2, 3]
    assert len(training.load_run(tmp_path / "parts")["starts"]) == 2


def test_early_stopping_goes_on_while_epochs_get_better():
    def stops(*values, **options):
        plan = SegmentationTask(epochs=9, early_stopping=2, **options)
        rows = [{"val_mean_iou": str(value)} for value in values]
        return training.stops_early(plan, rows)

    assert not stops()
    assert not stops(0.5, 0.4)
    assert stops(0.5, 0.4, 0.3) and stops(0.5, 0.5, 0.5)
    assert not stops(0.5, 0.4, 0.6, 0.5)
    frozen = {"encoder": "efficientnet_lite0", "freeze_epochs": 3}
    assert not stops(0.5, 0.4, 0.3, 0.2, **frozen) and stops(0.5, 0.4, 0.3, 0.2, 0.1, **frozen)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """A folder of bright discs on dark ground; masks of 0 and 255."""
    root = tmp_path_factory.mktemp("two_classes")
    y, x = np.mgrid[:16, :16]
    for split, length in (("train", 8), ("val", 4), ("test", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(length):
            disc = (x - 5 - index) ** 2 + (y - 8) ** 2 < 20
            Image.fromarray((60 + 120 * disc).astype("uint8")).save(
                root / split / "images" / f"disc{index}.png"
            )
            Image.fromarray((255 * disc).astype("uint8")).save(
                root / split / "masks" / f"disc{index}.png"
            )
    return root


@pytest.mark.once
def test_a_binary_loss_trains_a_network_of_one_channel(two_classes, tmp_path):
    plan = task(
        two_classes,
        loss="binary_cross_entropy+dice",
        class_weights="median_frequency",
        learning_rate=0.02,
        epochs=8,
        augment="none",
    )
    history = training.train(plan, tmp_path / "run", verbose=0)
    model = training.load_model(tmp_path / "run")
    assert model.output_shape[-1] == 1
    result = runs.evaluate(tmp_path / "run", "val").figures
    assert result["mean_iou"] == pytest.approx(max(history["val_mean_iou"]), abs=1e-6)
    assert result["mean_iou"] > 0.5  # all background has 0.4
    written = runs.predict(tmp_path / "run", two_classes / "test" / "images", tmp_path / "out")
    with Image.open(written[0]) as mask:
        assert set(np.unique(np.array(mask))) == {0, 255}


def test_a_binary_loss_asks_for_two_classes(picture_folder):
    plan = task(picture_folder, loss="binary_cross_entropy")
    with pytest.raises(ValueError, match="for two classes, and folder.* has 6: use cross_entropy"):
        plan.build_model(plan.load_data("train"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "lion"}, "optimizer is 'lion', expected one of 'adam', 'adamw', 'sgd'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": 0.1}, "adam has none"),
        ({"weight_decay": float("nan"), "optimizer": "sgd"}, "weight_decay is nan"),
        ({"loss": "cross"}, "its term 'cross' is none of cross_entropy, .*0.5.lovasz"),
        ({"loss": "cross_entropy+"}, "its term '' is none of"),
        ({"loss": "dice*0.5"}, "its term 'dice.0.5' is none of"),
        ({"loss": "-1*dice"}, "its term '-1.dice' is none of"),
        ({"loss": "cross_entropy+binary_cross_entropy"}, "use one of the two"),
        ({"loss": "dice+lovasz", "label_smoothing": 0.1}, "the loss is 'dice.lovasz'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"class_weights": "rare"}, "expected one of 'none', 'median_frequency', 'inverse_freq"),
        ({"sampling": "rare"}, "sampling is 'rare', expected one of 'uniform', 'rare_classes'"),
        ({"early_stopping": -1}, "early_stopping is -1"),
        ({"early_stopping": 2, "folds": 5, "fold": 1}, "cross-validation.*early_stopping=0"),
        ({"weight_decay": -0.1, "optimizer": "adamw"}, "weight_decay is -0.1"),
        ({"loss": "dice", "class_weights": "median_frequency"}, "the loss is 'dice'"),
        ({"channels": 2}, "channels is 2"),
        ({"encoder": "alexnet"}, "encoder is 'alexnet', expected one of 'none', 'vgg16'"),
        ({"encoder": "vgg16", "channels": 1}, "takes RGB: use channels=3"),
        ({"encoder_weights": "noisy"}, "encoder_weights is 'noisy'"),
        ({"stride": 4}, "stride is 4, expected one of 8, 16, 32"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"encoder": "vgg16", "freeze_epochs": 6}, "freeze_epochs is 6, expected 0 to 5"),
        ({"freeze_epochs": 1}, "no encoder to freeze"),
        (
            {"encoder": "vgg16", "freeze_epochs": 1, "encoder_weights": "none"},
            "the encoder's weights are random",
        ),
        ({"encoder": "vgg16", "fine_tune_rate": 0.1}, "but freeze_epochs is 0"),
        ({"encoder": "vgg16", "freeze_epochs": 1, "fine_tune_rate": -1.0}, "fine_tune_rate is -1"),
        ({"augment": "flop=0.5"}, "flop"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationTask(**options)


def test_experiment_goes_to_plain_values_and_back():
    plan = SegmentationTask(filters=(8, 16), image_size=(32, 48), augment="flip=0.5")
    assert SegmentationTask.from_dict(plan.to_dict()) == plan
    with pytest.raises(ValueError, match="Unknown task field 'filter'"):
        SegmentationTask.from_dict({"filter": [8]})


def test_an_unknown_model_lists_those_that_there_are(picture_folder):
    plan = task(picture_folder, model="unett")
    with pytest.raises(ValueError, match="no model 'unett'; there are: unet, plain_unet, fcn"):
        plan.build_model(plan.load_data("train"))


def test_images_without_a_common_size_ask_for_one(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "mixed")
    for kind in ("images", "masks"):
        with Image.open(folder / "train" / kind / "scene0.png") as image:
            image.crop((0, 0, 32, 20)).save(folder / "train" / kind / "scene0.png")
    with pytest.raises(ValueError, match="no common size: 15 of 32x32, 1 of 20x32.*--image-size"):
        training.train(task(folder, image_size=None), tmp_path / "run", verbose=0)


def test_a_broken_file_is_named_on_the_way_out_of_fit(picture_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(picture_folder, broken)
    image = broken / "train" / "images" / "scene3.png"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(ValueError, match="scene3.png"):
        training.train(task(broken), tmp_path / "run", verbose=0)


@pytest.mark.once
def test_evaluation_counts_every_pixel_but_void(finished, read_json):
    result = runs.evaluate(finished, "test", batch_size=3).figures
    assert result == read_json(finished / "evaluation-test.json")
    dataset = SegmentationTask.from_json(finished / "run.json").load_data("test")
    counted = sum(int((mask != dataset.ignore_class).sum()) for _, mask in dataset)
    assert np.sum(result["confusion_matrix"]) == counted < 4 * 16 * 16
    assert result["class_iou"].keys() == set(dataset.class_names)


@pytest.mark.once
def test_predicted_masks_are_masks_of_the_data_set(finished, picture_folder, tmp_path):
    written = runs.predict(finished, picture_folder / "test" / "images", tmp_path / "out")
    assert [path.name for path in written] == [f"scene{i}.png" for i in range(4)]
    dataset = SegmentationTask.from_json(finished / "run.json").load_data("val")
    with Image.open(written[0]) as mask:
        assert mask.mode == "P" and mask.size == (32, 32)
        assert set(np.unique(np.array(mask))) <= set(range(1, 7))  # label ids, void is 0
        assert mask.getpalette()[3:6] == dataset.palette[0].tolist()  # id 1 is class 0
    with Image.open(tmp_path / "out" / "overlays" / "scene0.png") as overlay:
        assert overlay.mode == "RGB" and overlay.size == (32, 32)


@pytest.mark.once
def test_prediction_needs_distinct_names(finished, tmp_path):
    for name in ("a.png", "a.bmp"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    with pytest.raises(ValueError, match="both be written to a.png"):
        runs.predict(finished, tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        runs.predict(finished, tmp_path / "nothing", tmp_path / "out")


@pytest.mark.once
def test_a_full_disk_is_an_error_and_loses_nothing(finished, picture_folder, tmp_path):
    """A limit on the size of files stands in for the disk: the checkpoint cannot be written."""
    run = tmp_path / "run"
    code = (
        "import resource, signal, sys\n"
        "from keras_segen.runs import training\n"
        "from keras_segen.tasks.segmentation import SegmentationTask\n"
        "import keras\n"
        "class FillDisk(keras.callbacks.Callback):\n"
        "    def on_epoch_begin(self, epoch, logs=None):\n"
        "        if epoch == 1:\n"
        "            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "plan = SegmentationTask.from_json(sys.argv[1])\n"
        "training.train(plan, sys.argv[2], callbacks=[FillDisk()], verbose=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished / "run.json"), str(run)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    )
    assert done.returncode != 0 and "File too large" in done.stderr
    assert not [path for path in run.rglob(".*")]
    training.resume(run, verbose=0)
    assert_equal_runs(finished, run)
