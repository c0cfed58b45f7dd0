"""Looking at generators: the right images in the right places, and the right measures."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

import keras_segen as ks
from keras_segen import plot, runs
from keras_segen.files import write_json
from keras_segen.generation import GAN, VAE, dcgan_discriminator, dcgan_generator, explore
from keras_segen.runs import load_model

pytestmark = pytest.mark.once

SHAPE, NAMES = (8, 8, 1), ("disc", "box", "star")


def gan(num_classes=None):
    generator = dcgan_generator(SHAPE, 6, (4,), num_classes)
    discriminator = dcgan_discriminator(SHAPE, (4,), num_classes)
    model = GAN(generator, discriminator, num_classes)
    # Weights of N(0, 0.02) give grey images: these ones tell codes apart.
    for weight in model.ema_generator.trainable_weights:
        numbers = ks.determinism.rng("looking", weight.name, len(weight.shape))
        weight.assign(0.5 * numbers.standard_normal(weight.shape))
    return model


def vae(kls):
    """Its encoder says as much about the numbers of a code as `kls`, whatever the images are.

    The mean of each is that of the image, in [-1, 1], times a factor.
    """
    images = keras.Input(SHAPE)
    x = layers.Flatten()(images)
    mean, log_variance = layers.Dense(len(kls)), layers.Dense(len(kls))
    encoder = keras.Model(images, [mean(x), log_variance(x)])
    size = int(np.prod(SHAPE))
    mean.set_weights([np.ones((size, 1)) * np.sqrt(2 * np.array(kls)) / size, np.zeros(len(kls))])
    log_variance.set_weights([np.zeros((size, len(kls))), np.zeros(len(kls))])
    codes = keras.Input((len(kls),))
    decoder = keras.Model(codes, layers.Reshape(SHAPE)(layers.Dense(size)(codes)))
    ks.initialize(decoder, seed=0)
    return VAE(encoder, decoder)


def drawn(figure):
    """The images of a grid as they were put in, `(count, height, width)` in [0, 1]."""
    return np.stack([image.get_array()[..., 0] / 255.0 for image in figure.axes[0].images])


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def assert_drawn(figure, images):
    np.testing.assert_allclose(drawn(figure), images[..., 0], atol=0.6 / 255)


def columns(figure):
    return len({image.get_extent()[0] for image in figure.axes[0].images})


def test_samples_are_those_of_generate():
    model = gan()
    figure = explore.samples(model, count=5, seed=3)
    assert_drawn(figure, model.generate(5, seed=3))
    assert drawn(figure).std(axis=0).mean() > 0.05  # they differ at all
    assert np.abs(drawn(explore.samples(model, count=5, seed=4)) - drawn(figure)).max() > 0.1


def test_samples_of_a_seed_are_the_same_on_every_backend():
    found = drawn(explore.samples(gan(), count=3, seed=1)).mean(axis=(1, 2))
    np.testing.assert_allclose(found, [0.63578, 0.59651, 0.56936], atol=2e-3)


def test_samples_of_classes_stand_in_a_column_each():
    model = gan(num_classes=3)
    figure = explore.samples(model, count=6, class_names=NAMES)
    assert columns(figure) == 3 and texts(figure) == [*NAMES, *NAMES]
    assert_drawn(figure, model.generate(6, labels=np.array([0, 1, 2, 0, 1, 2])))
    assert texts(explore.samples(model, count=3)) == ["class 0", "class 1", "class 2"]
    figure = explore.samples(model, count=4, label=2, class_names=NAMES)
    assert_drawn(figure, model.generate(4, labels=2))
    assert texts(figure) == []


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_way_goes_from_sample_to_sample(num_classes):
    model = gan(num_classes)
    figure = explore.interpolation(model, rows=2, num_steps=5, seed=1)
    assert columns(figure) == 5
    labels = None if num_classes is None else np.array([0, 0, 1, 1])
    ends = model.generate(4, labels=labels, seed=1)
    np.testing.assert_allclose(drawn(figure)[[0, 4, 5, 9]], ends[..., 0], atol=0.6 / 255)
    assert [text for text in texts(figure) if text] == [f"sample {k}" for k in range(4)]
    steps = np.abs(np.diff(drawn(figure)[:5], axis=0)).mean(axis=(1, 2))
    assert steps.min() > 0.1 * steps.max()  # all the way, not at one place


def test_a_vae_is_traversed_by_what_its_encoder_says():
    model = vae([0.5, 0.0, 2.0, 1.0])
    images = np.ones((3, *SHAPE), "float32")
    images[1:] = 0  # -1 to the networks: as far from 0
    np.testing.assert_allclose(model.kl_per_dimension(images, 2), [0.5, 0, 2, 1], atol=1e-5)
    figure = explore.traversal(model, images, rows=3, num_steps=4)
    values = ["-1.0", "+1.0", "+3.0"]
    expected = [["z2: KL 2.00", *values], ["z3: KL 1.00", *values], ["z0: KL 0.50", *values]]
    assert texts(figure) == sum(expected, [])
    codes = np.tile(np.sqrt(2 * np.array([0.5, 0, 2, 1])), (3, 4, 1))  # of the first image
    for row, dimension in enumerate((2, 3, 0)):
        codes[row, :, dimension] = (-3, -1, 1, 3)
    assert_drawn(figure, model.decode(codes.reshape(12, 4)))


def test_the_kl_of_a_code_is_the_sum_over_its_numbers():
    model = vae([0.5, 0.0, 2.0])
    weights = model.encoder.get_weights()
    weights[-1][:] = (-1.0, 0.5, 0.0)  # log of the variance
    model.encoder.set_weights(weights)
    model.compile()
    images = ks.determinism.rng("looking").random((7, *SHAPE), "float32")
    kl = model.evaluate(images, verbose=0, return_dict=True)["kl"]
    assert model.kl_per_dimension(images, 3).sum() == pytest.approx(kl, rel=1e-5)


def test_a_gan_is_traversed_by_what_changes_the_image_most():
    model = gan()
    kernel = model.ema_generator.get_layer("start").kernel
    kernel.assign(np.array(keras.ops.convert_to_numpy(kernel)) * [[0], [1], [4], [0], [0.2], [2]])
    figure = explore.traversal(model, rows=9, num_steps=3, seed=2)
    first = texts(figure)[::3]
    assert [text.split(":")[0] for text in first[:4]] == ["z2", "z5", "z1", "z4"]
    assert sorted(first[4:]) == ["z0: change 0.00", "z3: change 0.00"]
    code = model.draw_codes(1, seed=2)[0]
    codes = np.tile(code, (3, 1))
    codes[:, 2] = (-3, 0, 3)
    np.testing.assert_allclose(drawn(figure)[:3], model.decode(codes)[..., 0], atol=0.6 / 255)
    with pytest.raises(ValueError, match="gan has no encoder"):
        explore.traversal(model, np.zeros((2, *SHAPE)))


def test_copies_are_told_from_new_images():
    model = gan()
    reals = np.concatenate([model.generate(20, seed=5), model.generate(64, seed=0)])
    held_out = ks.data.Shapes("test", size=8, length=10, channels=1)
    figure = explore.neighbors(model, reals, held_out, rows=3)
    generated, nearest = figure.axes[0].images[:2]
    np.testing.assert_array_equal(generated.get_array(), nearest.get_array())
    above = figure.get_suptitle().splitlines()
    assert above[0].startswith("Distance by pixels to the nearest of 84 real images")
    assert above[1] == "64 samples: 0, 0.00"
    assert above[2].startswith("10 new real images: ")
    assert float(above[2].split()[-1]) > 0.5
    images = np.stack([held_out[index][0] for index in range(10)])
    assert explore.neighbors(model, reals, images, rows=1).get_suptitle() == "\n".join(above)
    with pytest.raises(ValueError, match="1 to 32 samples can be drawn beside real ones; not 33"):
        explore.neighbors(model, reals, rows=33)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("samples", {"count": 401}, "1 to 400 images; these would be 401"),
        ("samples", {"count": 0}, "1 to 400 images; these would be 0"),
        ("samples", {"count": 2, "label": 0}, "takes no labels"),
        ("interpolation", {"rows": 81, "num_steps": 5}, "these would be 405"),
        ("interpolation", {"num_steps": 1}, "num_steps of at least 2"),
        ("traversal", {"rows": 0}, "at least 1 row and 2 steps; found 0 rows and 7 steps"),
        ("traversal", {"num_steps": 1}, "found 8 rows and 1 steps"),
    ],
)
def test_what_cannot_be_drawn_is_said(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(explore, function)(gan(), **arguments)


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory):
    """Runs of one epoch: a VAE, and a GAN that is told the class; and what a segmenter leaves."""
    root = tmp_path_factory.mktemp("looking")
    for number in range(30):
        folder = root / "pictures" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = ks.determinism.rng("pictures", number).integers(0, 255, (8, 8, 3), "uint8")
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    options = {"image_size": (8, 8), "filters": (4,), "latent_dim": 5, "epochs": 1, "seed": 0}
    make = ks.tasks
    for name, task in {
        "vae": make.VaeTask(data="shapes", channels=1, **options),
        "gan": make.GanTask(
            data=f"images:{root / 'pictures'}", conditional=True, batch_size=8, **options
        ),
    }.items():
        ks.runs.train(task, root / name, verbose=0)
    images = keras.Input((8, 8, 3))
    (root / "unet").mkdir()
    keras.Model(images, layers.Conv2D(2, 1)(images)).save(root / "unet" / "model.keras")
    write_json(
        root / "unet" / "run.json", {"experiment": {"model": "unet"}, "data": {}, "starts": []}
    )
    return root


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_samples_of_a_run_are_those_of_its_model(run_folders, tmp_path):
    said = runs.generate(
        run_folders / "gan", tmp_path / "a.png", count=6, seed=3, class_name="star"
    )
    assert said == f"6 samples of {run_folders / 'gan'} (seed 3) in {tmp_path / 'a.png'}"
    model = load_model(run_folders / "gan")
    classes = sorted(NAMES)  # those of a folder of pictures are sorted
    expected = model.generate(6, labels=classes.index("star"), seed=3)
    plot.save(plot.images(expected), tmp_path / "b.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    runs.generate(run_folders / "gan", tmp_path / "c.png", count=6, seed=3, class_name="box")
    assert np.abs(pixels(tmp_path / "c.png") - pixels(tmp_path / "a.png")).max() > 0


def test_samples_as_files_have_their_own_size_and_the_name_of_their_class(run_folders, tmp_path):
    runs.generate(run_folders / "gan", count=70, separate=tmp_path / "files", seed=1)
    model = load_model(run_folders / "gan")
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names[:4] == [f"{k:05d}_{sorted(NAMES)[k % 3]}.png" for k in range(4)]
    expected = model.generate(70, seed=1)
    assert len(names) == len(expected)
    for k in (0, 69):
        np.testing.assert_allclose(
            pixels(tmp_path / "files" / names[k]), expected[k] * 255, atol=0.51
        )
    runs.generate(run_folders / "vae", count=1, separate=tmp_path / "grey")
    with Image.open(tmp_path / "grey" / "00000.png") as image:
        assert image.mode == "L" and image.size == (8, 8)


@pytest.mark.parametrize(
    ("run", "options", "said"),
    [
        ("vae", {}, "64 samples of"),
        ("vae", {"interpolate": 3, "count": 2}, "2 ways between samples of"),
        ("vae", {"traverse": 3, "count": 4}, "4 of 5 directions of"),
        ("gan", {"traverse": 3}, "5 of 5 directions of"),
        ("vae", {"nearest": True, "count": 2}, "nearest of 512 real images"),
        ("gan", {"nearest": True, "count": 2, "split": "test"}, "nearest of 3 real images"),
    ],
)
def test_every_picture_of_a_run(run_folders, tmp_path, run, options, said):
    out = tmp_path / "out.png"
    assert said in runs.generate(run_folders / run, out, **options)
    assert pixels(out).std() > 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("gan", {"class_name": "cow"}, "no class is named 'cow'; expected one of box, disc, star"),
        ("vae", {"class_name": "disc"}, "trained without classes.*leave out the class 'disc'"),
        ("unet", {}, "unet labels the pixels of photos and makes no images: use .* predict"),
        ("vae", {"interpolate": 3, "nearest": True}, "interpolate and nearest are different"),
        ("vae", {"split": "test"}, "split and extractor say what the nearest images are"),
        ("vae", {"separate": "x", "traverse": 3}, "traverse and separate are different"),
        ("vae", {"count": 0}, "1 to 400 images; these would be 0"),
        ("vae", {"out": "a.jpg"}, "must end in .png. Found: a.jpg"),
    ],
)
def test_what_a_run_cannot_give_is_said_and_nothing_is_written(
    run_folders, tmp_path, run, options, message
):
    with pytest.raises(ValueError, match=message):
        runs.generate(run_folders / run, **{"out": tmp_path / "out.png"} | options)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        runs.generate(tmp_path, tmp_path / "out.png")


def test_the_command_says_what_it_made(run_folders, tmp_path):
    command = [sys.executable, "-m", "keras_segen", "generate", str(run_folders / "gan")]
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([*command, "--class", "star", "--count", "2"], env=environment, **options)
    assert done.stdout.strip() == f"2 samples of {run_folders / 'gan'} (seed 0) in samples.png"
    assert (tmp_path / "samples.png").exists()
