import hashlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from keras_segen.determinism import initialize, order, rng


def to_numpy(variable):
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))


def numpy_weights(model):
    return [to_numpy(w) for w in model.weights]


def filled(initializer, shape, seed=0):
    """The kernel of this shape that `initialize` draws for an initializer."""
    if len(shape) == 2:
        layer = layers.Dense(shape[-1], kernel_initializer=initializer)
        model = keras.Sequential([keras.Input(shape[:1]), layer])
    else:
        layer = layers.Conv2D(shape[-1], shape[:2], kernel_initializer=initializer)
        model = keras.Sequential([keras.Input((8, 8, shape[2])), layer])
    initialize(model, seed)
    return numpy_weights(model)[0]


# --- rng and order


def test_rng_gives_the_same_numbers_for_the_same_key():
    assert rng("augment", 1, 2).integers(10**9) == rng("augment", 1, 2).integers(10**9)
    assert rng("augment", np.int64(1)).random() == rng("augment", 1).random()


def test_rng_draws_the_numbers_it_always_drew():
    assert rng("weights", 0, 0).integers(10**9, size=3).tolist() == [668231591, 50479819, 115266443]


@pytest.mark.parametrize("other", [("a", 1), ("b", 0), (0, "a"), ("a", 0, 0), ("a", "0")])
def test_rng_gives_other_numbers_for_another_key(other):
    assert rng("a", 0).random() != rng(*other).random()


@pytest.mark.parametrize("key", [(), (1.5,), ("a", None)])
def test_rng_rejects_a_key_that_is_not_made_of_strings_and_integers(key):
    with pytest.raises(TypeError, match="key"):
        rng(*key)


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 200))
def test_order_is_a_permutation_and_a_function_of_its_arguments(seed, epoch, length):
    first = order(seed, epoch, length)
    assert first.dtype == np.int64
    assert sorted(first) == list(range(length))
    assert np.array_equal(first, order(seed, epoch, length))


def test_order_differs_between_epochs_and_seeds():
    orders = [order(seed, epoch, 50).tobytes() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_rng_and_order_do_not_import_keras():
    code = (
        "import sys, keras_segen.determinism as d; d.order(0, 0, 3); "
        "assert not {'keras', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- initialize: distributions


DISTRIBUTIONS = [
    # initializer, shape, standard deviation, largest magnitude (None: unbounded)
    ("glorot_uniform", (3, 3, 40, 60), (2 / (9 * 100)) ** 0.5, (6 / (9 * 100)) ** 0.5),
    ("glorot_normal", (3, 3, 40, 60), (2 / (9 * 100)) ** 0.5, None),
    ("he_normal", (3, 3, 40, 60), (2 / 360) ** 0.5, 2 * (2 / 360) ** 0.5 / 0.87962566),
    ("he_uniform", (3, 3, 40, 60), (2 / 360) ** 0.5, (6 / 360) ** 0.5),
    ("lecun_normal", (200, 100), 200**-0.5, 2 * 200**-0.5 / 0.87962566),
    ("lecun_uniform", (200, 100), 200**-0.5, (3 / 200) ** 0.5),
    (
        keras.initializers.VarianceScaling(3.0, "fan_out", "untruncated_normal"),
        (200, 100),
        0.03**0.5,
        None,
    ),
    (keras.initializers.RandomNormal(stddev=0.3), (200, 100), 0.3, None),
    (keras.initializers.RandomUniform(-0.2, 0.2), (200, 100), 0.2 / 3**0.5, 0.2),
    (keras.initializers.TruncatedNormal(stddev=0.3), (200, 100), 0.3 * 0.87962566, 0.6),
    (
        keras.initializers.GlorotUniform(input_axes=[1], output_axes=[0]),
        (200, 100),
        (2 / 300) ** 0.5,
        (6 / 300) ** 0.5,
    ),
    (
        keras.initializers.HeNormal(input_axes=[1], output_axes=[0]),
        (200, 100),
        (2 / 100) ** 0.5,
        None,
    ),
]


@pytest.mark.parametrize("initializer, shape, std, largest", DISTRIBUTIONS)
def test_initialize_draws_the_distribution_that_the_initializer_names(
    initializer, shape, std, largest
):
    values = filled(initializer, shape)
    assert values.shape == shape
    assert abs(values.mean()) < 4 * std / values.size**0.5
    assert values.std() == pytest.approx(std, rel=0.03)
    if largest is not None:
        assert 0.95 * largest < np.abs(values).max() <= largest * 1.000001


@pytest.mark.parametrize("initializer, shape, std, largest", DISTRIBUTIONS)
def test_initialize_draws_as_keras_does(initializer, shape, std, largest):
    ours = np.sort(filled(initializer, shape).ravel())
    keras_initializer = keras.initializers.get(initializer)
    keras_initializer.seed = 1
    theirs = np.sort(keras.ops.convert_to_numpy(keras_initializer(shape)).ravel())
    quantiles = np.linspace(0.05, 0.95, 19)
    assert np.allclose(
        np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.06 * std
    )


def test_initialize_sets_mean_of_normal_initializers():
    for kind in (keras.initializers.RandomNormal, keras.initializers.TruncatedNormal):
        assert filled(kind(mean=5.0, stddev=0.1), (100, 100)).mean() == pytest.approx(5, abs=0.01)


@pytest.mark.parametrize(
    "initializer, expected",
    [
        ("zeros", np.zeros((3, 4))),
        ("ones", np.ones((3, 4))),
        (keras.initializers.Constant(0.25), np.full((3, 4), 0.25)),
        (keras.initializers.Identity(2.0), 2 * np.eye(3, 4)),
    ],
)
def test_initialize_fills_constants(initializer, expected):
    assert np.array_equal(filled(initializer, (3, 4)), expected)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 2, 3, 5), (1, 1, 3, 8)])
def test_initialize_draws_orthogonal_matrices(shape):
    matrix = filled(keras.initializers.Orthogonal(gain=2.0), shape).reshape(-1, shape[-1])
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    assert np.allclose(matrix.T @ matrix, 4 * np.eye(matrix.shape[1]), atol=1e-5)


def test_orthogonal_matrices_have_both_signs_on_the_diagonal():
    diagonals = [np.diagonal(filled("orthogonal", (4, 4), seed)) for seed in range(20)]
    assert 20 < (np.array(diagonals) > 0).sum() < 60


def test_initialize_draws_weights_without_dimensions_and_truncates_them():
    @keras.saving.register_keras_serializable("test")
    class Scale(layers.Layer):
        scale_initializer = keras.initializers.TruncatedNormal(stddev=1.0)

        def build(self, input_shape):
            self.scale = self.add_weight(shape=(), initializer=self.scale_initializer, name="scale")

        def call(self, x):
            return x * self.scale

    model = keras.Sequential([keras.Input((2,)), Scale()])
    values = []
    for seed in range(100):
        initialize(model, seed)
        values.append(float(numpy_weights(model)[0]))
    assert 1.5 < max(np.abs(values)) < 2
    assert len(set(values)) == 100


# --- initialize: every layer


def many_layers():
    """A model with one of each kind of layer that holds weights in its own way."""
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", kernel_initializer="he_normal")(images)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, padding="same", depthwise_initializer="lecun_normal")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", pointwise_initializer="orthogonal")(x)
    x = layers.PReLU(alpha_initializer=keras.initializers.Constant(0.3))(x)
    x = layers.GroupNormalization(2)(x)
    x = layers.SpectralNormalization(layers.Conv2D(4, 3, padding="same"))(x)
    x = layers.Conv2DTranspose(4, 2, strides=2)(x)
    x = layers.LayerNormalization()(x)
    x = layers.RMSNormalization()(x)
    x = layers.Reshape((256, 4))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(x)
    x = layers.Dropout(0.5)(x)
    x = layers.LSTM(3)(x)
    return keras.Model(images, layers.Dense(2, use_bias=False)(x))


def test_initialize_fills_every_kind_of_layer():
    model = many_layers()
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 77.0))
    initialize(model, 0)
    assert not any((w == 77).any() for w in numpy_weights(model))
    by_name = {}
    for weight, value in zip(model.weights, numpy_weights(model), strict=True):
        by_name.setdefault(weight.name, []).append(value)
    assert all((v == 1).all() for v in by_name["gamma"] + by_name["scale"])
    assert all((v == 1).all() for v in by_name["moving_variance"])
    assert all((v == 0).all() for v in by_name["beta"] + by_name["moving_mean"])
    assert all((v == np.float32(0.3)).all() for v in by_name["alpha"])
    assert by_name["vector_u"][0].std() == pytest.approx(0.02 * 0.88, rel=0.8)
    pointwise = by_name["pointwise_kernel"][0].reshape(4, 4)
    assert np.allclose(pointwise @ pointwise.T, np.eye(4), atol=1e-5)
    recurrent = by_name["recurrent_kernel"][0]
    assert np.allclose(recurrent @ recurrent.T, np.eye(3), atol=1e-5)


def test_initialize_opens_the_forget_gate_of_an_lstm():
    model = keras.Sequential([keras.Input((5, 2)), layers.LSTM(3)])
    initialize(model, 0)
    assert numpy_weights(model)[2].tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_initialize_counts_the_fans_of_einsum_as_keras():
    layer = layers.EinsumDense("abc,cde->abde", (None, 20, 30), kernel_initializer="he_normal")
    model = keras.Sequential([keras.Input((7, 400)), layer])
    keras_std = float(np.std(numpy_weights(model)[0]))
    initialize(model, 0)
    assert np.std(numpy_weights(model)[0]) == pytest.approx(keras_std, rel=0.02)
    assert keras_std == pytest.approx((2 / 400) ** 0.5, rel=0.02)


def test_initialize_fills_nested_models_and_shared_layers_once():
    shared = layers.Dense(3, kernel_initializer="he_normal")
    inner_input = keras.Input((3,))
    inner = keras.Model(inner_input, shared(layers.Dense(3)(inner_input)))
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(inner(shared(inputs))))
    initialize(model, 0)
    assert len(model.weights) == 4
    kernels = [w for w in numpy_weights(model) if w.ndim == 2]
    assert not np.array_equal(kernels[0], kernels[1])


def test_initialize_does_not_depend_on_what_was_built_before():
    first = many_layers()
    second = many_layers()
    assert first.weights[0].path != second.weights[0].path
    initialize(first, 3)
    initialize(second, 3)
    for a, b in zip(numpy_weights(first), numpy_weights(second), strict=True):
        assert np.array_equal(a, b)


def test_initialize_gives_other_weights_for_another_seed_and_another_position():
    assert not np.array_equal(filled("he_normal", (3, 4), 0), filled("he_normal", (3, 4), 1))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3)])
    initialize(model, 0)
    first, _, second, _ = numpy_weights(model)
    assert not np.array_equal(first, second)


def test_initialize_gives_the_same_bits_on_every_backend():
    model = many_layers()
    initialize(model, 42)
    values = b"".join(w.astype("float32").tobytes() for w in numpy_weights(model))
    assert hashlib.sha256(values).hexdigest() == (
        "865b5bfc5d190ac3a09a7425e9406af4c696bca7e14cec80a4c35465133fb8c6"
    )


def test_initialize_fills_half_precision_weights():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, dtype="float16")])
    initialize(model, 0)
    full = keras.Sequential([keras.Input((3,)), layers.Dense(4)])
    initialize(full, 0)
    assert model.weights[0].dtype == "float16"
    assert np.array_equal(numpy_weights(model)[0], numpy_weights(full)[0].astype("float16"))


def test_initialize_sets_the_state_of_dropout():
    dropouts = [layers.Dropout(0.5, seed=7), layers.Dropout(0.5, seed=7)]
    model = keras.Sequential([keras.Input((50,)), *dropouts])
    ones = np.ones((2, 50), "float32")
    initialize(model, 0)
    first = keras.ops.convert_to_numpy(model(ones, training=True))
    second = keras.ops.convert_to_numpy(model(ones, training=True))
    initialize(model, 0)
    assert np.array_equal(first, keras.ops.convert_to_numpy(model(ones, training=True)))
    assert not np.array_equal(first, second)
    states = [to_numpy(v) for v in model.variables if v.name == "seed_generator_state"]
    assert len({int(state[0]) for state in states}) == 2


def test_initialize_returns_nothing():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4)])
    assert initialize(model, 0) is None


# --- initialize: errors


def test_initialize_rejects_a_model_that_is_not_built():
    with pytest.raises(ValueError, match="not built"):
        initialize(keras.Sequential([layers.Dense(2)]), 0)


def test_initialize_rejects_a_function_as_initializer_and_changes_nothing():
    def mine(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    first = layers.Dense(4)
    model = keras.Sequential(
        [keras.Input((3,)), first, layers.Dense(2, kernel_initializer=mine, name="odd")]
    )
    before = numpy_weights(model)
    with pytest.raises(ValueError, match="mine.*kernel.*odd"):
        initialize(model, 0)
    for a, b in zip(before, numpy_weights(model), strict=True):
        assert np.array_equal(a, b)


def test_initialize_rejects_a_class_that_draws_its_own_way():
    class Mine(keras.initializers.RandomNormal):
        def __call__(self, shape, dtype=None):
            return keras.ops.ones(shape, dtype)

    with pytest.raises(ValueError, match="Mine.*kernel"):
        filled(Mine(), (3, 4))


def test_initialize_rejects_a_weight_whose_layer_keeps_no_initializer():
    class Scale(layers.Layer):
        def build(self, input_shape):
            self.factor = self.add_weight(shape=(2,), initializer="ones", name="factor")

        def call(self, x):
            return x * self.factor

    model = keras.Sequential([keras.Input((2,)), Scale(name="odd")])
    with pytest.raises(ValueError, match="factor.*odd.*Scale.*factor_initializer"):
        initialize(model, 0)
