"""GANs and VAEs through run folders: what they hold, how they resume, every option."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_segen import data, determinism, frameworks, generation, runs, segmentation
from keras_segen.files import write_json
from keras_segen.generation import adversarial
from keras_segen.runs import crossval, training
from keras_segen.tasks import SegmentationTask, fields, registry
from keras_segen.tasks.gan import GanTask
from keras_segen.tasks.style import StyleTask
from keras_segen.tasks.vae import VaeTask, bounds

OTHER = {"tensorflow": "torch", "torch": "tensorflow"}[keras.backend.backend()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 20 small pictures of two classes, bright and dark: 16 for training."""
    root = tmp_path_factory.mktemp("pictures")
    for name, low in (("bright", 150), ("dark", 0)):
        (root / name).mkdir()
        for k in range(10):
            values = determinism.rng(name, k).integers(low, low + 100, (8, 8, 3), dtype="uint8")
            Image.fromarray(values).save(root / name / f"{k}.png")
    return f"images:{root}"


def plan(model, pictures, **options):
    kind = registry.kind_of(model)
    values = {
        "data": pictures,
        "image_size": (8, 8),
        "filters": (4,),
        "latent_dim": 3,
        "batch_size": 4,
        "epochs": 3,
        **options,
    }
    return kind(model=model, **values)


def gan(pictures, **options):
    """Both networks with statistics, a schedule, and more steps of D than of G."""
    options = {"discriminator_steps": 3, "schedule": "cosine", "filters": (4, 4), **options}
    return plan("dcgan", pictures, **options)


def states(path, trained):
    """All that a checkpoint holds: weights, averages, steps, and what the optimizers remember."""
    train_data = trained.load_data("train")
    model = training.load_checkpoint(path, trained, train_data, trained.epochs)
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_equal_runs(a, b, trained, rtol=1e-5, atol=1e-6, last=3):
    first, second = (states(run / f"checkpoint-000{last}.keras", trained) for run in (a, b))
    assert len(first) == len(second) > 20
    for x, y in zip(first, second, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
    first, second = training.read_history(a), training.read_history(b)
    assert first.keys() == second.keys()
    for key in first.keys() - {"seconds", "peak_memory_mib"}:
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
def gan_run(pictures, tmp_path_factory):
    """An uninterrupted run of three epochs."""
    run = tmp_path_factory.mktemp("runs") / "gan"
    training.train(gan(pictures), run, verbose=0)
    return run


@pytest.fixture(scope="module")
def vae_run(pictures, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "vae"
    training.train(plan("vae", pictures), run, verbose=0)
    return run


def test_a_gans_run_folder_holds_what_it_promises(gan_run, read_json):
    names = {path.relative_to(gan_run).as_posix() for path in gan_run.rglob("*")}
    assert names == {
        *("run.json", "history.csv", "model.keras", "checkpoint-0003.keras", "curves.png"),
        *("animation.gif", "previews", "checkpoint-0003.json"),
        *(f"previews/epoch-000{epoch}.png" for epoch in (1, 2, 3)),
    }
    run = read_json(gan_run / "run.json")
    assert run["kept"] == "the last epoch's model"
    assert run["data"]["class_names"] == ["bright", "dark"] and run["data"]["train"] == 16
    assert registry.read(run["experiment"]) == gan(run["experiment"]["data"])
    history = training.read_history(gan_run)
    assert history["epoch"] == [1, 2, 3] and history["learning_rate"][-1] < 1e-6
    assert {"d_loss", "g_loss", "val_d_loss", "val_d_real_accuracy"} <= history.keys()
    with Image.open(gan_run / "previews" / "epoch-0003.png") as grid:
        assert grid.size == (82, 82)  # 8 x 8 pictures of 8 pixels, lines of 2
        last = np.asarray(grid.convert("RGB"))
    model = training.load_model(gan_run)
    made = np.rint(255 * model.generate(64)).astype("uint8")
    np.testing.assert_array_equal(last[2:10, 2:10], made[0])
    with Image.open(gan_run / "animation.gif") as film:
        assert film.n_frames == 3


def test_parameters_are_those_of_both_players(gan_run, read_json):
    model = training.load_model(gan_run)
    counted = sum(
        w.size for w in (*model.generator.get_weights(), *model.discriminator.get_weights())
    )
    assert read_json(gan_run / "run.json")["parameters"] == counted


def test_a_vae_keeps_the_epoch_with_the_best_bound(vae_run, pictures, read_json):
    run = read_json(vae_run / "run.json")
    assert run["kept"] == "the model of the epoch with the largest val_elbo"
    history = training.read_history(vae_run)
    assert history["loss"][-1] < history["loss"][0]
    model = training.load_model(vae_run)
    found = bounds(model, plan("vae", pictures).load_data("val"), batch_size=4)
    assert found["elbo"] == pytest.approx(max(history["val_elbo"]), rel=1e-5)
    assert (vae_run / "previews" / "reconstruction-0001.png").exists()
    assert (vae_run / "animation.gif").exists()


@pytest.mark.parametrize("epoch", [pytest.param(0, marks=pytest.mark.once), 2])
def test_an_interrupted_gan_resumes_to_the_same_state(gan_run, pictures, tmp_path, epoch):
    """Also in the middle of G's pause: 4 batches an epoch, and a step of G every 3."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        training.train(gan(pictures), run, callbacks=[StopInEpoch(epoch)], verbose=0)
    assert not (run / "animation.gif").exists()
    training.resume(run, verbose=0)
    assert_equal_runs(gan_run, run, gan(pictures))
    np.testing.assert_allclose(
        training.load_model(run).generate(4), training.load_model(gan_run).generate(4), atol=1e-5
    )


def test_an_interrupted_vae_resumes_to_the_same_state(vae_run, pictures, tmp_path):
    run, trained = tmp_path / "run", plan("vae", pictures)
    with pytest.raises(KeyboardInterrupt):
        training.train(trained, run, callbacks=[StopInEpoch(1)], verbose=0)
    training.resume(run, verbose=0)
    assert_equal_runs(vae_run, run, trained)


@pytest.mark.once
def test_stylegan2_resumes_in_the_middle_of_a_cycle_and_truncates(pictures, tmp_path):
    """Killed in the third of four epochs of 4 steps: between the two on R1, at steps 0 and 16."""
    trained = plan("stylegan2", pictures, filters=(4, 4), epochs=5)
    run, whole = tmp_path / "run", tmp_path / "whole"
    training.train(trained, whole, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        training.train(trained, run, callbacks=[StopInEpoch(2)], verbose=0)
    training.resume(run, verbose=0)
    assert_equal_runs(whole, run, trained, last=5)
    history = training.read_history(run)
    assert [x > 0 for x in history["r1_penalty"]] == [True, False, False, False, True]
    assert [x > 0 for x in history["path_penalty"]] == [True, False, True, False, True]

    sheets = []
    for truncation in (None, 1.0, 0.5):
        out = tmp_path / f"{truncation}.png"
        runs.generate(run, out, truncation=truncation)
        with Image.open(out) as sheet:
            sheets.append(np.asarray(sheet.convert("RGB")).astype(int))
    assert np.abs(sheets[0] - sheets[1]).max() <= 1 and np.abs(sheets[0] - sheets[2]).max() > 1
    with pytest.raises(ValueError, match="truncation is -1.0, expected at least 0"):
        runs.generate(run, out, truncation=-1.0)


@pytest.mark.once
def test_truncation_is_for_models_with_styles(gan_run, tmp_path):
    with pytest.raises(ValueError, match="truncation is for models with styles.*dcgan has none"):
        runs.generate(gan_run, tmp_path / "out.png", truncation=0.5)


@pytest.mark.skipif(OTHER not in frameworks.installed(), reason=f"{OTHER} is not installed")
def test_runs_go_on_on_the_other_backend(gan_run, vae_run, pictures, tmp_path):
    """Both optimizers' memories, the average, and the position in the noise come along."""
    plans = {"gan": gan(pictures), "vae": plan("vae", pictures)}
    for name, trained in plans.items():
        with pytest.raises(KeyboardInterrupt):
            training.train(trained, tmp_path / name, callbacks=[StopInEpoch(2)], verbose=0)
    code = (
        "import sys\n"
        "from keras_segen.runs import training\n"
        "for run in sys.argv[1:]: training.resume(run, verbose=0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / name) for name in plans)],
        env={**os.environ, "KERAS_BACKEND": OTHER},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, finished in (("gan", gan_run), ("vae", vae_run)):
        assert training.load_run(tmp_path / name)["starts"][1]["backend"] == OTHER
        assert_equal_runs(finished, tmp_path / name, plans[name], rtol=1e-3, atol=1e-4)


@pytest.mark.once
def test_resuming_a_finished_run_only_adds_a_missing_animation(gan_run):
    before = (gan_run / "checkpoint-0003.keras").read_bytes()
    (gan_run / "animation.gif").unlink()
    assert training.resume(gan_run, verbose=0)["epoch"] == [1, 2, 3]
    assert (gan_run / "animation.gif").exists()
    assert (gan_run / "checkpoint-0003.keras").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        {
            **{"model": "dcgan", "loss": "wasserstein", "gradient_penalty": 10.0},
            **{"discriminator_steps": 2, "discriminator_learning_rate": 1e-3},
            **{"conditional": True, "workers": 1},
        },
        {
            **{"model": "dcgan", "loss": "least_squares", "label_smoothing": 0.1, "r1": 0.5},
            **{"ema": 0.0, "channels": 1, "precision": "mixed_bfloat16"},
            **{"augment_discriminator": "diffaugment"},
        },
        {
            **{"model": "sngan", "conditional": True, "filters": None, "image_size": (8, 12)},
            **{"beta_1": 0.5, "beta_2": 0.99, "augment": "default"},
        },
        {
            **{"model": "stylegan2", "conditional": True, "filters": (4, 4), "schedule": "cosine"},
            **{"augment_discriminator": "diffaugment", "discriminator_learning_rate": 1e-3},
            **{"r1": 1.0, "half_life": 50.0, "style_mixing": 0.5, "precision": "mixed_float16"},
        },
        {
            **{"model": "vae", "conditional": True, "filters": None, "likelihood": "bernoulli"},
            **{"beta": 4.0, "precision": "mixed_float16", "schedule": "cosine"},
        },
    ],
    ids=str,
)
def test_every_option_trains(options, pictures, tmp_path):
    trained = plan(**{"pictures": pictures, "epochs": 1, "augment": "none", **options})
    history = training.train(trained, tmp_path / "run", verbose=0)
    losses = [history[f"{part}{name}"] for name in trained.losses for part in ("", "val_")]
    assert np.isfinite(losses).all()
    assert keras.config.dtype_policy().name == "float32"
    model = training.load_model(tmp_path / "run")
    assert model.generate(2).shape == (2, *trained.load_data("val").image_shape)
    assert (model.num_classes is not None) == trained.conditional


def test_options_reach_the_model(pictures):
    trained = gan(
        pictures, r1=0.5, label_smoothing=0.2, ema=0.9, learning_rate=1e-3, schedule="constant"
    )
    train_data = trained.load_data("train")
    model = trained.build_model(train_data)
    trained.compile(model, train_data, steps_per_epoch=4)
    assert model.rules == {
        "loss": "non_saturating",
        "r1": 0.5,
        "gradient_penalty": 0.0,
        "label_smoothing": 0.2,
        "discriminator_steps": 3,
        "r1_every": 1,
        "augment_discriminator": "none",
    }
    assert model.ema == 0.9 and model.latent_dim == 3
    for optimizer in (model.optimizer.generator, model.optimizer.discriminator):
        assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == pytest.approx(1e-3)
        assert (optimizer.beta_1, optimizer.beta_2) == (0.5, 0.999)
    # Before the first step the average is the generator itself.
    for x, y in zip(model.generator.get_weights(), model.ema_generator.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_defaults_are_the_papers():
    dcgan, sngan = GanTask(), GanTask(model="sngan")
    assert (dcgan.loss, dcgan.latent_dim, dcgan.discriminator_steps) == ("non_saturating", 100, 1)
    assert (dcgan.learning_rate, dcgan.beta_1, dcgan.beta_2) == (2e-4, 0.5, 0.999)
    assert (sngan.loss, sngan.latent_dim, sngan.discriminator_steps) == ("hinge", 128, 5)
    assert (sngan.learning_rate, sngan.beta_1, sngan.beta_2) == (2e-4, 0.0, 0.9)


@pytest.mark.parametrize("size, halvings", [(8, 1), (28, 2), (32, 3), (64, 4)])
def test_the_size_of_the_image_decides_the_depth(size, halvings):
    assert VaeTask().halvings((size, size + 4, 3)) == halvings


def test_flips_are_for_what_may_be_mirrored(pictures):
    trained = plan("vae", pictures)
    train_data = trained.load_data("train")
    assert trained.batch_options(train_data)["augment"] is data.mirror
    train_data.mirror = False
    assert trained.batch_options(train_data)["augment"] is None
    assert plan("vae", pictures, augment="none").batch_options(train_data)["augment"] is None


def test_a_gan_sees_full_batches_only(pictures):
    assert len(gan(pictures, batch_size=5).training_batches(gan(pictures).load_data("train"))) == 3
    assert (
        len(plan("vae", pictures, batch_size=5).training_batches(gan(pictures).load_data("train")))
        == 4
    )


def test_names_and_choices_are_those_of_the_models():
    """The tasks know them without importing Keras."""
    assert tuple(segmentation.MODELS) == SegmentationTask.MODELS
    assert tuple(generation.NETWORKS) == GanTask.MODELS + StyleTask.MODELS + VaeTask.MODELS
    assert tuple(adversarial.LOSSES) == fields.meaning(GanTask, "loss").choices


@pytest.mark.parametrize("model", ["dcgan", "sngan", "stylegan2", "vae"])
def test_an_experiment_goes_to_plain_values_and_back(model):
    trained = registry.kind_of(model)(model=model, filters=(8, 16), image_size=(32, 48))
    assert registry.read(trained.to_dict()) == trained


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (GanTask, {"model": "unet"}, "model is 'unet', expected one of 'dcgan', 'sngan'"),
        (GanTask, {"loss": "dice"}, "loss is 'dice', expected one of 'non_saturating'"),
        (StyleTask, {"half_life": 0.0}, "half_life is 0.0, expected more than 0"),
        (StyleTask, {"style_mixing": 1.5}, "style_mixing is 1.5, .* below 1"),
        (GanTask, {"augment_discriminator": "ada"}, "expected one of 'none', 'diffaugment'"),
        (GanTask, {"r1": -1.0}, "r1 is -1.0, expected 0 or more"),
        (GanTask, {"gradient_penalty": float("nan")}, "gradient_penalty is nan"),
        (GanTask, {"discriminator_steps": 0}, "discriminator_steps is 0, expected 1"),
        (GanTask, {"discriminator_learning_rate": 0.0}, "discriminator_learning_rate is 0.0"),
        (GanTask, {"ema": 1.0}, "ema is 1.0, expected at least 0 and below 1"),
        (GanTask, {"beta_1": -0.5}, "beta_1 is -0.5"),
        (GanTask, {"label_smoothing": 0.5}, "label_smoothing is 0.5, .* below 0.5"),
        (GanTask, {"label_smoothing": 0.1, "loss": "hinge"}, "the loss is 'hinge'"),
        (GanTask, {"early_stopping": 3}, "early_stopping is 3.*use judge=1000"),
        (GanTask, {"latent_dim": 0}, "latent_dim is 0, expected 1 or more"),
        (GanTask, {"augment": "flip=0.5"}, "augment is 'flip=0.5', expected one of"),
        (GanTask, {"channels": 4}, "channels is 4"),
        (VaeTask, {"judge": 10}, "judge is 10, expected 40 images or more"),
        (VaeTask, {"likelihood": "laplace"}, "likelihood is 'laplace'"),
        (VaeTask, {"beta": -1.0}, "beta is -1.0"),
        (VaeTask, {"schedule": "linear"}, "schedule is 'linear'"),
        (VaeTask, {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_what_data_a_model_needs_is_said(pictures, tmp_path):
    trained = plan("vae", "shapes", conditional=True)
    with pytest.raises(ValueError, match="conditional is True, but the pictures of shapes have no"):
        trained.build_model(trained.load_data("train"))
    for side in range(20, 40):
        Image.new("RGB", (side, 8)).save(tmp_path / f"{side}.png")
    trained = plan("dcgan", f"images:{tmp_path}", image_size=None)
    with pytest.raises(ValueError, match="no common size: 1 of 8x20.*--image-size 128x128"):
        trained.build_model(trained.load_data("train"))
    trained = plan("dcgan", pictures, precision="float64")
    with pytest.raises(ValueError, match="for `compare --parity`"):
        trained.build_model(trained.load_data("train"))


def test_early_stopping_goes_by_what_is_watched():
    def stops(trained, *values):
        name, _ = trained.monitor
        return training.stops_early(trained, [{name: str(value)} for value in values])

    bound = VaeTask(early_stopping=2)
    assert stops(bound, -5.0, -6.0, -7.0) and not stops(bound, -5.0, -6.0, -4.0)
    distance = GanTask(early_stopping=2, judge=40)
    assert stops(distance, 0.1, 0.2, 0.3) and not stops(distance, 0.3, 0.2, 0.1)


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory):
    """Judged after each epoch; the second makes white pictures, worse than those of the first."""
    run = tmp_path_factory.mktemp("runs") / "judged"
    trained = plan("vae", "shapes", judge=40, batch_size=64, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_SEGEN_CACHE", str(run.parent / "cache"))
        training.train(trained, run, callbacks=[SpoilSecondEpoch()], verbose=0)
    return run


class SpoilSecondEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.optimizer.learning_rate = 1e-9
            self.model.decoder.get_layer("images").bias.assign([3.0] * 3)


@pytest.mark.once
def test_a_judged_run_keeps_the_epoch_that_comes_closest(judged_run, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(judged_run.parent / "cache"))
    run = training.load_run(judged_run)
    assert run["kept"] == "the model of the epoch with the smallest val_kernel_distance"
    history = training.read_history(judged_run)
    first, second = history["val_kernel_distance"]
    assert first < second and len(history["val_frechet_distance"]) == 2
    val_data = registry.read(run["experiment"]).load_data("val")
    found = generation.evaluate(training.load_model(judged_run), val_data, count=40)
    assert found["kernel_distance"] == pytest.approx(first, rel=1e-4)


@pytest.fixture(scope="module")
def small_extractor(tmp_path_factory):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.layers.Conv2D(4, 3, name="features")(images))
    determinism.initialize(model, seed=0)
    path = tmp_path_factory.mktemp("extractor") / "small.keras"
    model.save(path)
    return path


@pytest.mark.once
def test_a_run_is_judged_on_a_split(judged_run, small_extractor, tmp_path, monkeypatch, read_json):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path))
    result = runs.evaluate(judged_run, "test", extractor=small_extractor, count=50).figures
    assert result == read_json(judged_run / "evaluation-test.json")
    assert (result["split"], result["real_images"], result["fake_images"]) == ("test", 50, 50)
    assert result["extractor"] == "small.keras"
    assert result["checkpoint"] == training.load_run(judged_run)["kept"]
    noise = result["sanity"]["real_against_noise"]["kernel_distance"]
    assert result["sanity"]["real_against_real"]["kernel_distance"] < noise
    assert result["model_sha256"] == training.model_digest(judged_run)

    both, weighted = result["bounds"], result["bounds"]["importance_weighted"]
    assert both["images"] == weighted["images"] == 128 and weighted["samples"] == 64
    assert both["elbo"] == pytest.approx(-(both["reconstruction"] + both["kl"]))
    assert weighted["elbo"] == pytest.approx(both["elbo"], rel=1e-5)
    assert weighted["bound"] > weighted["elbo"]  # the tighter of the two
    assert weighted["bits_per_dimension"] < both["bits_per_dimension"]
    dimensions = 8 * 8 * 3 * np.log(2)
    assert both["bits_per_dimension"] == pytest.approx(8 - both["elbo"] / dimensions)


def test_the_bounds_of_a_vae_with_classes_are_told_them(pictures):
    trained = plan("vae", pictures, conditional=True)
    val_data = trained.load_data("train")
    found = bounds(trained.build_model(val_data), val_data, batch_size=4)
    assert found["importance_weighted"]["images"] == 16
    assert found["importance_weighted"]["bound"] > found["elbo"]


def test_evaluating_a_run_knows_what_its_model_makes(gan_run, tmp_path):
    with pytest.raises(ValueError, match="2 reals; expected 40 or more"):
        runs.evaluate(gan_run, "test")
    run = training.load_run(gan_run)
    write_json(tmp_path / "run.json", {**run, "experiment": {"model": "unet"}})
    with pytest.raises(
        ValueError, match="count is for dcgan, sngan, stylegan2, vae, and this is a run"
    ):
        runs.evaluate(tmp_path, count=50)


def test_what_is_for_masks_says_so(gan_run, pictures, tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(ValueError, match="makes new pictures and predicts no photos"):
        runs.predict(gan_run, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="vae makes new pictures.*unet, plain_unet, fcn"):
        crossval.cross_validate({"vae": plan("vae", pictures)}, tmp_path / "out")
