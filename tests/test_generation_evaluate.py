"""Distances between features against other implementations, extractors, evaluate, neighbors."""

import importlib
import json
import shutil

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_segen import backend, data, generation, initialize
from keras_segen.data.images import resize_image
from keras_segen.generation import distances
from keras_segen.generation.distances import (
    Moments,
    density_coverage,
    frechet_distance,
    kernel_distance,
    moments,
    precision_recall,
    unbiased_mmd,
)
from keras_segen.generation.extractors import Extractor, load_extractor

# `generation.evaluate` is the function; it hides the module of its name.
module = importlib.import_module("keras_segen.generation.evaluate")


GOLDEN = [-0.04040816, -0.02721063, 0.20372251, 0.00423989, 0.02852544, -0.02878352]
GOLDEN_LITE0 = [0.498142, -0.517900, 1.824575, 1.175475]


def draw(seed, number, dimension, shift=0.0, scale=1.0):
    rows = np.random.default_rng(seed).standard_normal((number, dimension))
    return (shift + scale * rows).astype("float32")


def random_covariance(seed, dimension):
    root = np.random.default_rng(seed).standard_normal((dimension, dimension))
    return root @ root.T / dimension


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(distances, "TILE", 7)


# --- Fréchet


def test_frechet_distance_of_two_gaussians_is_the_analytic_one():
    first = Moments(np.array([1.0, 0, 3]), np.diag([4.0, 1, 0]), 10)
    second = Moments(np.array([0.0, 2, 3]), np.diag([1.0, 9, 2]), 99)
    # 1 + 4 + 0, and (2 - 1)² + (1 - 3)² + (0 - √2)²
    assert frechet_distance(first, second) == pytest.approx(5 + 1 + 4 + 2, rel=1e-12)
    a, b = draw(0, 40000, 3), draw(1, 40000, 3, shift=1, scale=[1, 2, 3])
    assert frechet_distance(a, b) == pytest.approx(3 + 0 + 1 + 4, rel=0.03)


@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_frechet_distance_is_that_of_scipys_matrix_root(dimension):
    first = Moments(np.zeros(dimension), random_covariance(0, dimension), 9)
    second = Moments(np.arange(dimension) / 8, random_covariance(1, dimension), 9)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    expected = np.square(second.mean).sum() + np.trace(
        first.covariance + second.covariance - 2 * root.real
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_features_is_that_of_their_moments():
    a, b = draw(0, 30, 4), draw(1, 50, 4, shift=0.5)
    found = frechet_distance(a, b)
    assert found == frechet_distance(moments(a), b) == frechet_distance(moments(a), moments(b))
    root = scipy.linalg.sqrtm(np.cov(a.T.astype("float64")) @ np.cov(b.T.astype("float64"))).real
    apart = np.square(a.mean(0, "float64") - b.mean(0, "float64")).sum()
    expected = apart + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_fewer_rows_than_dimensions():
    rows = draw(0, 20, 100)
    rows -= rows.mean(axis=0)
    shift = np.linspace(0, 1, 100, dtype="float32")
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(rows, rows + shift) == pytest.approx(np.square(shift).sum(), rel=1e-5)
    spread = np.square(rows).sum() / 19  # the trace of the covariance
    assert frechet_distance(rows, 3 * rows) == pytest.approx(4 * spread, rel=1e-5)
    # In directions of their own nothing is shared: all of both remains.
    first, second = (np.concatenate(x, axis=1) for x in ((rows, 0 * rows), (0 * rows, rows)))
    assert frechet_distance(first, second) == pytest.approx(2 * spread, rel=1e-5)


def test_frechet_distance_of_sets_without_spread():
    ones = np.ones((5, 3))
    assert frechet_distance(ones, 3 * ones) == pytest.approx(12)


def test_moments_are_numpys(small_tiles):
    rows = draw(0, 50, 4, shift=1000)
    found = moments(rows)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0, dtype="float64"), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T.astype("float64")), rtol=1e-9)
    assert found.count == 50


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(2, 12), st.integers(1, 6))
def test_frechet_distance_is_symmetric_and_not_changed_by_turning(seed, n, m, dimension):
    a, b = draw(seed, n, dimension), draw(seed + 1, m, dimension, shift=1, scale=2)
    found = frechet_distance(a, b)
    assert found >= 0
    assert frechet_distance(b, a) == pytest.approx(found, rel=1e-9)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))[0]
    assert frechet_distance(a @ turn + 5, b @ turn + 5) == pytest.approx(found, rel=1e-6)


# --- kernel


def test_mmd_is_that_of_the_kernel():
    a, b = draw(0, 30, 6), draw(1, 20, 6, shift=0.5)
    x, y = a.astype("float64"), b.astype("float64")
    kernels = [
        np.array([[(np.dot(row, other) / 6 + 1) ** 3 for other in others] for row in rows])
        for rows, others in ((x, x), (y, y), (x, y))
    ]
    within_a, within_b = (k[~np.eye(len(k), dtype=bool)].mean() for k in kernels[:2])
    expected = within_a + within_b - 2 * kernels[2].mean()
    assert unbiased_mmd(a, b) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_points_is_exact():
    a, b = np.tile([1.0, 2.0], (20, 1)), np.tile([3.0, -1.0], (45, 1))
    expected = (5 / 2 + 1) ** 3 + (10 / 2 + 1) ** 3 - 2 * (1 / 2 + 1) ** 3
    assert kernel_distance(a, b) == pytest.approx((expected, 0))


def test_kernel_distance_is_zero_on_average_and_its_error_is_true():
    draws = [kernel_distance(draw(2 * i, 60, 3), draw(2 * i + 1, 60, 3)) for i in range(300)]
    means, errors = np.array(draws).T
    spread = means.std(ddof=1)
    assert abs(means.mean()) < 3 * spread / np.sqrt(300)
    assert 0.3 < (means < 0).mean() < 0.8  # no cut at 0
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(spread, rel=0.15)


def expected_kernel(a, b):
    """The mean of (x·y / d + 1)³ for x ~ N(a, 1), y ~ N(b, 1), by the moments of x·y."""
    d, a_b, squares = len(a), a @ b, a @ a + b @ b
    first, second = a_b, d + squares + a_b**2
    third = a_b**3 + 3 * a_b * squares + (3 * d + 6) * a_b
    return 1 + 3 * first / d + 3 * second / d**2 + third / d**3


@pytest.mark.parametrize("number", [20, 200])
def test_kernel_distance_is_the_analytic_one_for_any_number_of_rows(number):
    zero, shift = np.zeros(3), np.full(3, 0.5)
    expected = expected_kernel(zero, zero) + expected_kernel(shift, shift)
    expected -= 2 * expected_kernel(zero, shift)
    pairs = ((draw(2 * i, number, 3), draw(2 * i + 1, number, 3, 0.5)) for i in range(200))
    means = np.array([kernel_distance(a, b).mean for a, b in pairs])
    assert means.mean() == pytest.approx(expected, abs=3 * means.std() / np.sqrt(200))
    assert expected == pytest.approx(1.1, abs=0.5)


def test_kernel_distance_uses_every_row_and_repeats():
    a, b = draw(0, 20, 3), draw(1, 20, 3)
    found = kernel_distance(a, b)
    assert kernel_distance(a, b) == found != kernel_distance(a, b, seed=1)
    for row in range(20):
        changed = a.copy()
        changed[row] += 1
        assert kernel_distance(changed, b).mean != found.mean
    # Subsets have at most so many rows: 12 of 2 out of 24.
    assert kernel_distance(draw(0, 24, 3), draw(1, 24, 3), subset_size=2).standard_error > 0


# --- neighbors


def of_a_tree(reals, fakes, k_balls, k_density):
    """The four scores by the neighbors of SciPy's tree."""
    reals, fakes = reals.astype("float64"), fakes.astype("float64")

    def radii(rows, k):
        found, _ = scipy.spatial.cKDTree(rows).query(rows, k + 1)
        return found[:, -1]  # the first is the row itself

    apart = np.linalg.norm(reals[:, None] - fakes[None], axis=-1)
    within = apart < radii(reals, k_density)[:, None]
    return (
        (apart <= radii(reals, k_balls)[:, None]).any(axis=0).mean(),
        (apart <= radii(fakes, k_balls)[None]).any(axis=1).mean(),
        within.sum() / (k_density * len(fakes)),
        within.any(axis=1).mean(),
    )


@pytest.mark.parametrize("k_balls, k_density", [(1, 1), (3, 5), (5, 9)])
def test_neighbor_scores_are_those_of_a_tree(small_tiles, k_balls, k_density):
    reals, fakes = draw(0, 40, 3), draw(1, 25, 3, shift=0.7)
    found = precision_recall(reals, fakes, k_balls) + density_coverage(reals, fakes, k_density)
    expected = of_a_tree(reals, fakes, k_balls, k_density)
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(0.1 < value < 1.5 and value != 1 for value in found)


def test_the_distance_to_a_copy_is_exactly_zero():
    rows = draw(0, 100, 300, shift=20)
    ((_, _, squared),) = distances.squared_distances(rows, rows.copy())
    copies = np.eye(100, dtype=bool)
    assert (squared[copies] == 0).all() and (squared[~copies] > 0).all()
    apart = np.square(rows[0].astype("float64") - rows[1]).sum()
    assert squared[0, 1] == pytest.approx(apart, rel=1e-9)


def test_copies_of_all_reals_score_one():
    reals = draw(0, 60, 50, shift=20)
    assert precision_recall(reals, reals.copy()) == (1, 1)
    assert density_coverage(reals, reals.copy()) == (1, 1)


def test_fakes_far_from_all_reals_score_zero():
    reals = draw(0, 30, 4)
    assert precision_recall(reals, reals + 1000) == (0, 0)
    assert density_coverage(reals, reals + 1000) == (0, 0)


def test_a_collapsed_generator_is_precise_and_covers_little():
    reals = draw(0, 50, 6, shift=20)
    fakes = np.repeat(reals[:1], 50, axis=0)  # one real image, again and again
    precision, recall = precision_recall(reals, fakes)
    assert precision == 1 and recall == 1 / 50
    assert density_coverage(reals, fakes).coverage < 0.3


def test_one_odd_real_spoils_precision_and_not_density():
    reals = np.concatenate([np.arange(50.0)[:, None], [[1000.0]]])
    fakes = np.linspace(400, 900, 20)[:, None]  # nothing real is there
    assert precision_recall(reals, fakes).precision == 1
    assert density_coverage(reals, fakes).density == pytest.approx(1 / 5)


def test_coverage_of_one_distribution_is_what_is_expected():
    reals, fakes = draw(0, 1000, 8), draw(1, 1000, 8)
    density, coverage = density_coverage(reals, fakes)
    assert density == pytest.approx(1, abs=0.08)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.02)


@pytest.mark.parametrize(
    "function", [frechet_distance, kernel_distance, precision_recall, density_coverage]
)
@pytest.mark.parametrize(
    "first, second, message",
    [
        (np.zeros((30, 4)), np.zeros((30, 5)), "4 and of 5 dimensions; expected both from one"),
        (np.zeros((30, 2, 2)), np.zeros((30, 4)), r"\(number, dimension\); found \(30, 2, 2\)"),
        (np.zeros((30, 4)), np.zeros((1, 4)), "1 rows of features; expected "),
        (np.full((30, 4), np.nan), np.zeros((30, 4)), "NaN or infinity; expected finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(function, first, second, message):
    with pytest.raises(ValueError, match=message):
        function(first, second)


def test_numbers_out_of_range_are_refused():
    rows = np.zeros((30, 2))
    with pytest.raises(ValueError, match="neighbors is 0, expected 1 to 29"):
        precision_recall(rows, rows, neighbors=0)
    with pytest.raises(ValueError, match="30 rows of features; expected 31 or more"):
        density_coverage(rows, rows, neighbors=30)
    with pytest.raises(ValueError, match="subset_size is 1, expected 2 or more"):
        kernel_distance(rows, rows, subset_size=1)


# --- extractors


def tiny_model(size=8, pooled=False):
    images = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(6, 3, activation="tanh", name="conv")(images)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x) if pooled else x
    model = keras.Model(images, x, name="tiny")
    initialize(model, seed=0)
    return model


@pytest.fixture(scope="module")
def tiny():
    return Extractor(tiny_model())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(seed, number, size=8, channels=3):
    """Soft blobs of a random colour: float32."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices((size, size)) / size
    centre = generator.random((2, number, 1, 1))
    blob = np.exp(-8 * ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2))
    return (blob[..., None] * generator.random((number, 1, 1, channels))).astype("float32")


def test_features_are_equal_on_every_backend(tiny):
    found = tiny(pictures(0, 3, size=20))
    assert found.shape == (3, 6) and found.dtype == np.float32
    print(found[0].tolist())
    np.testing.assert_allclose(found[0], GOLDEN, rtol=1e-5)


def test_features_depend_on_what_is_seen_only(tiny):
    images = (pictures(0, 5, channels=1) * 255).round().astype("uint8")
    expected = tiny(images)
    np.testing.assert_allclose(tiny(images / 255.0), expected, rtol=1e-6)
    np.testing.assert_allclose(tiny(images[..., 0]), expected, rtol=1e-6)  # without channels
    np.testing.assert_allclose(tiny(np.repeat(images, 3, -1)), expected, rtol=1e-6)
    np.testing.assert_allclose(tiny(images, batch_size=2), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [20, 5])
def test_images_are_resized_as_data_sets_do_it(tiny, size):
    images = pictures(0, 2, size)
    resized = np.stack([resize_image(image, (8, 8)) for image in images])
    np.testing.assert_allclose(tiny(images), tiny(resized), rtol=1e-6)


def test_models_with_pooled_features_and_of_any_size(tiny):
    images = pictures(0, 2)
    np.testing.assert_allclose(Extractor(tiny_model(pooled=True))(images), tiny(images), rtol=1e-5)
    anything = Extractor(tiny_model(None), size=(8, 8))
    np.testing.assert_allclose(anything(images), tiny(images), rtol=1e-6)
    assert repr(anything) == "<tiny: 6 features of images of 8 x 8>"


def test_an_extractor_is_known_by_its_weights_and_what_it_does(tiny):
    model = tiny_model()
    again, pooled = Extractor(model), Extractor(tiny_model(pooled=True), size=(8, 8))
    assert again.sha256 == tiny.sha256 == pooled.sha256
    assert again.key == tiny.key
    model.layers[1].activation = keras.activations.relu
    assert Extractor(model).key != tiny.key
    model.layers[1].bias.assign(model.layers[1].bias + 1)
    assert Extractor(model).sha256 != tiny.sha256


def test_extractors_are_loaded_from_files(tiny, tmp_path):
    path = tmp_path / "own.keras"
    backend.save_model(tiny_model(), path)
    found = load_extractor(str(path))
    assert found.name == "own.keras" and found.distance_name == "Fréchet distance on own.keras"
    np.testing.assert_allclose(found(pictures(0, 2)), tiny(pictures(0, 2)), rtol=1e-6)
    assert load_extractor(found) is found


def test_code_in_a_file_is_not_run(tmp_path):
    images = keras.Input((8, 8, 3))
    outputs = keras.layers.Lambda(lambda x: x * 2, output_shape=(8, 8, 3))(images)
    backend.save_model(keras.Model(images, outputs), tmp_path / "bad.keras")
    with pytest.raises(ValueError, match="[Ll]ambda"):
        load_extractor(tmp_path / "bad.keras")


def test_efficientnet_lite0_gives_equal_features_on_every_backend():
    extractor = load_extractor("efficientnet_lite0")
    assert extractor.size == (224, 224) and extractor.dimension == 320
    image = data.load("shapes", "val", size=64)[0][0]
    np.testing.assert_allclose(extractor(image[None])[0, :4], GOLDEN_LITE0, atol=2e-4)


@pytest.mark.parametrize(
    "extractor, error, message",
    [
        ("inception", ValueError, "No extractor is named 'inception'; expected effi"),
        ("no/such.keras", FileNotFoundError, "no/such.keras does not exist; expected a model"),
    ],
)
def test_names_of_no_extractor_are_refused(extractor, error, message):
    with pytest.raises(error, match=message):
        load_extractor(extractor)


def test_models_that_make_no_features_are_refused():
    with pytest.raises(ValueError, match="'tiny' takes images of any size: choose one"):
        Extractor(tiny_model(None))
    with pytest.raises(ValueError, match=r"takes images of \(8, 8\); found size=\(9, 8\)"):
        Extractor(tiny_model(), size=(9, 8))
    codes = keras.Input((4,))
    with pytest.raises(ValueError, match=r"takes one input, images \(batch, height, width, 3\); "):
        Extractor(keras.Model(codes, keras.layers.Dense(2)(codes)))
    with pytest.raises(ValueError, match="none yet: it is not built"):
        Extractor(keras.Sequential([keras.layers.Dense(2)]))
    images = keras.Input((8, 8, 3))
    rows = keras.Model(images, keras.layers.Reshape((8, 24))(images), name="rows")
    with pytest.raises(ValueError, match=r"'rows' gives \(None, 8, 24\); expected features"):
        Extractor(rows)


# --- evaluate

FIGURES = {
    "frechet_distance",
    "kernel_distance",
    "kernel_standard_error",
    "precision",
    "recall",
    "density",
    "coverage",
}


def test_evaluate_tells_real_from_noise_and_says_of_what(tiny):
    result = generation.evaluate(
        pictures(1, 100), pictures(0, 120), extractor=tiny, checkpoint="best"
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    expected = {"extractor": "tiny", "features": 6, "extractor_size": [8, 8], "data": "array"}
    expected |= {"split": None, "real_images": 120, "fake_images": 100, "checkpoint": "best"}
    expected |= {"seed": 0, "backend": keras.backend.backend()}
    expected |= {"measure": "Fréchet distance on tiny", "extractor_sha256": tiny.sha256}
    assert result.items() >= expected.items()
    same, noise = (result["sanity"][f"real_against_{name}"] for name in ("real", "noise"))
    for row in (result, same, noise):
        assert row.keys() >= FIGURES
    assert (same["images"], noise["images"]) == (60, 120)
    assert same["frechet_distance"] > result["frechet_distance"] / 10  # two halves, not one twice
    # Other pictures of the same kind are as near as reals are to reals; noise is far.
    for name in ("frechet_distance", "kernel_distance"):
        assert abs(result[name]) < noise[name] / 20 and abs(same[name]) < noise[name] / 20
    assert abs(result["kernel_distance"]) < 4 * result["kernel_standard_error"]
    assert min(result["precision"], result["recall"], result["coverage"]) > 0.8
    print(noise, same, {k: result[k] for k in FIGURES})
    assert noise["recall"] == 0 and noise["coverage"] < 0.2


def test_evaluate_is_compare_features_of_the_chosen_images(tiny):
    fakes, reals = pictures(1, 50), pictures(0, 50)
    found = generation.evaluate(fakes, reals, extractor=tiny, seed=3)
    expected = generation.compare_features(tiny(reals), tiny(fakes), seed=3)
    for name in FIGURES - {"kernel_distance", "kernel_standard_error"}:  # these shuffle the rows
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def test_warnings_say_when_numbers_mislead(tiny):
    result = generation.evaluate(pictures(1, 60), pictures(0, 60), extractor=tiny)
    assert result["warnings"] == []
    few = generation.evaluate(pictures(1, 59), pictures(0, 59), extractor=tiny)["warnings"]
    assert len(few) == 1 and few[0].startswith("59 images are few for 6 features: the Fréchet")
    images = keras.Input((8, 8, 3))
    flat = Extractor(keras.Model(images, keras.layers.Flatten()(images), name="pixels"))
    rank, numbers = generation.evaluate(pictures(1, 50), pictures(0, 60), extractor=flat)[
        "warnings"
    ]
    assert "50 images are few for 192 features (their covariance has a rank of 49 at mo" in rank
    assert "Use 1920 images or more" in rank
    assert "go by the kernel distance" in rank
    assert "60 real and 50 generated images" in numbers


@pytest.mark.parametrize("limit", [("AT_ONCE", 30), ("PIXELS_AT_ONCE", 30 * 8 * 8 * 3 + 9)])
def test_generators_are_asked_in_parts_with_seeds_of_their_own(tiny, monkeypatch, limit):
    monkeypatch.setattr(module, *limit)
    asked = []

    def generator(count, seed):
        asked.append((count, seed))
        return pictures(seed, count)

    first = generation.evaluate(generator, pictures(0, 100), count=70, extractor=tiny)
    assert [count for count, _ in asked] == [30, 30, 10]
    assert len({seed for _, seed in asked}) == 3
    assert first["fake_images"] == first["real_images"] == 70
    assert generation.evaluate(generator, pictures(0, 100), 70, tiny) == first
    other = generation.evaluate(generator, pictures(0, 100), 70, tiny, seed=1)
    assert other["frechet_distance"] != first["frechet_distance"]
    assert len({seed for _, seed in asked}) == 6


def test_a_gan_is_judged_against_a_data_set(tiny):
    shape = (8, 8, 3)
    gan = generation.GAN(
        generation.dcgan_generator(shape, 4, (4, 8)),
        generation.dcgan_discriminator(shape, (4, 8)),
    )
    reals = data.load("shapes", "test", size=8)
    result = generation.evaluate(gan, reals, count=60, extractor=tiny, checkpoint="last")
    expected = {"data": "shapes", "split": "test", "real_images": 60, "fake_images": 60}
    assert result.items() >= expected.items()
    assert result["frechet_distance"] > 0


class Counting(Extractor):
    """An extractor that counts the images that it sees."""

    seen = 0

    def __call__(self, images, batch_size=16):
        self.seen += len(images)
        return super().__call__(images, batch_size)


def test_features_of_real_images_are_kept(own_cache):
    extractor, fakes, reals = Counting(tiny_model()), pictures(1, 50), pictures(0, 60)
    assert extractor.key  # has looked at an image
    extractor.seen = 0
    first = generation.evaluate(fakes, reals, extractor=extractor)
    assert extractor.seen == 50 + 60 + 60  # fakes, reals, noise
    assert generation.evaluate(fakes, reals, extractor=extractor) == first
    assert extractor.seen == 170 + 50
    changed = reals.copy()
    changed[7, 0, 0, 0] += 0.01
    generation.evaluate(fakes, changed, extractor=extractor)
    assert extractor.seen == 220 + 50 + 60
    for path in (own_cache / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert generation.evaluate(fakes, reals, extractor=extractor) == first
    assert extractor.seen == 330 + 170


def test_a_cache_that_cannot_be_written_is_a_warning(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_SEGEN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be written .* set KERAS_SEGEN_CACHE"):
        generation.evaluate(pictures(1, 50), pictures(0, 50), extractor=tiny)


def test_what_cannot_be_judged_is_refused(tiny):
    reals = pictures(0, 50)
    model = tiny_model()
    table = [
        (pictures(1, 39), reals, "39 fakes; expected 40 or more"),
        (reals, pictures(1, 10), "10 reals; expected 40 or more"),
        (pictures(1, 50, size=9), reals, r"differ in shape: \(9, 9, 3\) and \(8, 8, 3\)"),
        (lambda count, seed: reals[:3], reals, "made 3 images; expected 50"),
        (2 * reals + 1, reals, "expected 0 to 1"),
        (model, reals, "fakes: the model 'tiny' has no method generate"),
        (reals, lambda count, seed: reals, "reals is a generator; expected a data set"),
    ]
    for fakes, others, message in table:
        with pytest.raises(ValueError, match=message):
            generation.evaluate(fakes, others, extractor=tiny)


def test_data_sets_of_several_sizes_are_refused(tiny, picture_folder, tmp_path):
    other = tmp_path / "val" / "images"
    shutil.copytree(picture_folder, tmp_path, dirs_exist_ok=True)
    for path in (other / "scene0.png", tmp_path / "val" / "masks" / "scene0.png"):
        with Image.open(path) as image:
            image.crop((0, 0, 32, 20)).save(path)
    reals = data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="sizes of their own; expected one size: load them with"):
        generation.evaluate(pictures(0, 50), reals, extractor=tiny)


# --- copies


@pytest.mark.parametrize("at_once", [500, 7])
def test_nearest_neighbors_are_those_of_every_pair(monkeypatch, at_once):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    fakes, reals = pictures(1, 9), pictures(0, 30)
    found = generation.nearest_neighbors(fakes, reals, neighbors=8)
    apart = np.linalg.norm(
        fakes.reshape(9, 1, -1).astype("float64") - reals.reshape(1, 30, -1), axis=-1
    )
    expected = np.argsort(apart, axis=1)[:, :8]
    np.testing.assert_array_equal(found.indices, expected)
    np.testing.assert_allclose(found.distances, np.take_along_axis(apart, expected, 1), rtol=1e-6)
    np.testing.assert_array_equal(found.images, reals[expected])


def test_copies_are_found_at_distance_zero(tiny, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 16)
    reals = data.Shapes("train", size=16, length=40)
    copies = np.stack([reals[index][0] for index in (5, 35, 2)])
    for extractor in (None, tiny):
        found = generation.nearest_neighbors(copies, reals, extractor=extractor)
        assert found.indices.tolist() == [[5], [35], [2]]
        np.testing.assert_allclose(found.distances, 0, atol=1e-6)
        np.testing.assert_array_equal(found.images[:, 0], copies)


def test_neighbors_in_features_are_not_those_of_pixels(tiny):
    reals = pictures(0, 40)
    moved = np.roll(reals, 1, axis=2)
    by_features = generation.nearest_neighbors(moved, reals, extractor=tiny)
    apart = np.linalg.norm(tiny(moved)[:, None] - tiny(reals)[None], axis=-1)
    np.testing.assert_array_equal(by_features.indices[:, 0], apart.argmin(axis=1))
    by_pixels = generation.nearest_neighbors(moved, reals)
    assert (by_features.indices != by_pixels.indices).any()


def test_neighbors_that_cannot_be_found_are_refused():
    reals = pictures(0, 10)
    with pytest.raises(ValueError, match="neighbors is 11, expected 1 to 10, the reals"):
        generation.nearest_neighbors(reals, reals, neighbors=11)
    with pytest.raises(ValueError, match=r"differ in shape: \(8, 8, 3\) and \(9, 9, 3\)"):
        generation.nearest_neighbors(pictures(0, 3, size=9), reals)
    with pytest.raises(ValueError, match="reals is a generator"):
        generation.nearest_neighbors(reals, lambda count, seed: reals)
