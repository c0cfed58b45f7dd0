"""Minimizing one player of two, gradients of gradients, and random numbers inside a graph."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.backend.philox import philox


def small_network(seed, units=4):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(units, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    ks.initialize(model, seed)
    return model


def built(optimizer, model):
    optimizer.build(model.trainable_variables)
    return optimizer


def values(variables):
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


def assert_same_bits(before, variables):
    for old, new in zip(before, values(variables), strict=True):
        np.testing.assert_array_equal(old, new)


X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def squares(model):
    outputs = model(ops.convert_to_tensor(X), training=True)
    return ops.mean(ops.square(outputs)), {"outputs": outputs}


def test_minimize_does_what_fit_does():
    one, two = small_network(0), small_network(0)
    one.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    losses = [one.train_on_batch(X, np.zeros((8, 1), "float32")) for _ in range(3)]
    optimizer = built(keras.optimizers.Adam(0.01), two)
    for expected in losses:
        loss, _ = backend.minimize(lambda: squares(two), two.trainable_variables, optimizer)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_minimize_moves_only_what_it_is_given():
    first, second = small_network(0), small_network(1)
    optimizers = [built(keras.optimizers.Adam(0.01), model) for model in (first, second)]

    def loss_fn():
        loss, _ = squares(first)
        with keras.StatelessScope():
            return loss + squares(second)[0], None

    before = values(second.variables + optimizers[1].variables)
    kernels = [v for v in first.trainable_variables if v.name == "kernel"]
    moved = values(kernels)
    backend.minimize(loss_fn, first.trainable_variables, optimizers[0])
    assert_same_bits(before, second.variables + optimizers[1].variables)
    for old, new in zip(moved, values(kernels), strict=True):
        assert np.abs(old - new).max() > 0


def test_results_come_without_gradients():
    model = small_network(0)
    optimizer = built(keras.optimizers.SGD(0.1), model)
    loss, results = backend.minimize(lambda: squares(model), model.trainable_variables, optimizer)
    assert np.asarray(results["outputs"]).shape == (8, 1)
    assert float(loss) == pytest.approx(float(np.mean(np.asarray(results["outputs"]) ** 2)))


def test_a_minimization_inside_another_is_the_one_before_it():
    """The inner one moves its variables; the outer loss sees them moved."""
    inner = keras.Variable([1.0])
    outer = keras.Variable([1.0])
    inner_optimizer = keras.optimizers.SGD(0.5)
    outer_optimizer = keras.optimizers.SGD(0.5)
    inner_optimizer.build([inner])
    outer_optimizer.build([outer])

    def outer_loss():
        known = outer * 2.0

        def inner_loss():
            return ops.sum(ops.stop_gradient(known) * inner), None  # gradient 2

        backend.minimize(inner_loss, [inner], inner_optimizer)
        return ops.sum(known * inner + inner), None

    loss, _ = backend.minimize(outer_loss, [outer], outer_optimizer)
    assert float(inner.numpy()[0]) == pytest.approx(1 - 0.5 * 2)
    assert float(loss) == pytest.approx(2 * 0 + 0)
    assert float(outer.numpy()[0]) == pytest.approx(1 - 0.5 * 2 * 0)


def test_gradients_are_accumulated():
    one, two = small_network(0), small_network(0)
    once = built(keras.optimizers.SGD(0.1), one)
    half = built(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), two)
    backend.minimize(lambda: squares(one), one.trainable_variables, once)
    before = values(two.trainable_variables)
    backend.minimize(lambda: squares(two), two.trainable_variables, half)
    assert_same_bits(before, two.trainable_variables)
    backend.minimize(lambda: squares(two), two.trainable_variables, half)
    for a, b in zip(values(one.trainable_variables), values(two.trainable_variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_loss_is_scaled_and_an_overflow_skips_the_step():
    one, two = small_network(0), small_network(0)
    plain = built(keras.optimizers.SGD(0.1), one)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0)
    built(scaled, two)
    backend.minimize(lambda: squares(one), one.trainable_variables, plain)
    backend.minimize(lambda: squares(two), two.trainable_variables, scaled)
    for a, b in zip(values(one.trainable_variables), values(two.trainable_variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)

    before = values(two.trainable_variables)
    backend.minimize(
        lambda: (squares(two)[0] * float("inf"), None), two.trainable_variables, scaled
    )
    assert_same_bits(before, two.trainable_variables)
    assert float(ops.convert_to_numpy(scaled.dynamic_scale)) == 512


def test_input_gradient_and_its_gradient_are_those_of_the_formula():
    """f = (w x)**3: df/dx = 3 w**3 x**2, and d(df/dx)/dw = 9 w**2 x**2."""
    weight = keras.Variable([2.0])
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([weight])
    x = ops.convert_to_tensor(np.array([[1.0], [3.0]], "float32"))

    def loss_fn():
        outputs, gradient = backend.input_gradient(lambda x: (weight * x) ** 3, x)
        return ops.sum(gradient), {"outputs": outputs, "gradient": gradient}

    _, results = backend.minimize(loss_fn, [weight], optimizer)
    np.testing.assert_allclose(np.asarray(results["outputs"]), [[8], [216]], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(results["gradient"]), [[24], [216]], rtol=1e-6)
    assert float(weight.numpy()[0]) == pytest.approx(2 - 9 * 4 * (1 + 9), rel=1e-6)


def test_philox_gives_the_published_numbers():
    """Known answers of Random123, the authors' library."""
    ones = 2**64 - 1
    expected = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    np.testing.assert_array_equal(philox(ones, (ones, ones), 1)[0], expected)
    counter = 0x243F6A88 | 0x85A308D3 << 32, 0x13198A2E | 0x03707344 << 32
    expected = [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    np.testing.assert_array_equal(philox(0xA4093822 | 0x299F31D0 << 32, counter, 1)[0], expected)


def test_uniform_is_philox_on_every_framework():
    key = 0x0123456789ABCDEF
    found = ops.convert_to_numpy(backend.uniform(key, 5, 2, (3, 8)))
    bits = philox(key, (4, 5), 6).reshape(3, 8)
    np.testing.assert_array_equal(found, ((bits & 0x7FFFFF) + 0.5) / 2**23)
    assert found.dtype == np.float32


def test_uniform_does_not_depend_on_how_the_rows_are_cut():
    whole = ops.convert_to_numpy(backend.uniform(7, 0, 0, (10, 12)))
    pieces = [ops.convert_to_numpy(backend.uniform(7, 0, at, (5, 12))) for at in (0, 5)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    other = ops.convert_to_numpy(backend.uniform(7, 1, 0, (10, 12)))
    assert not np.isin(other, whole).any()


class Adder(keras.Model):
    """Adds to its images what `uniform` draws in a compiled step."""

    def __init__(self):
        super().__init__()
        self.step = self.add_weight(shape=(), dtype="int64", initializer="zeros", trainable=False)
        self.built = True

    def call(self, x):
        return x

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.step.assign_add(1)
        return x + backend.uniform(2**63, self.step, 0, (ops.shape(x)[0], 4))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_uniform_in_a_compiled_step_draws_the_same_bits(jit_compile):
    model = Adder()
    # Keras turns XLA on for TensorFlow on a GPU; torch has none.
    model.compile(jit_compile=jit_compile and keras.backend.backend() == "tensorflow")
    found = model.predict(np.zeros((5, 4), "float32"), batch_size=3, verbose=0)
    first = ops.convert_to_numpy(backend.uniform(2**63, 1, 0, (3, 4)))
    second = ops.convert_to_numpy(backend.uniform(2**63, 2, 0, (2, 4)))
    np.testing.assert_array_equal(found, np.concatenate([first, second]))
