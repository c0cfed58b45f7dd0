import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from keras_segen.losses import CrossEntropy, Dice

SHAPE = (2, 4, 6)
NUM_CLASSES = 3


def random_batch(seed=0, ignore_class=None, shape=SHAPE, num_classes=NUM_CLASSES):
    generator = np.random.default_rng(seed)
    masks = generator.integers(0, num_classes, shape).astype("int32")
    if ignore_class is not None:
        masks[generator.random(shape) < 0.3] = ignore_class
    logits = 3 * generator.standard_normal((*shape, num_classes)).astype("float32")
    return masks, logits


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cross_entropy(masks, logits, ignore_class=None, class_weights=None, smoothing=0.0, weights=1):
    """The formula of the docstring, pixel by pixel in float64."""
    num_classes = logits.shape[-1]
    weights = np.broadcast_to(weights, masks.shape)
    log_probabilities = np.log(softmax(logits.astype("float64")))
    total, divisor = 0.0, 0.0
    for pixel in np.ndindex(masks.shape):
        label = masks[pixel]
        if label == ignore_class:
            continue
        target = np.full(num_classes, smoothing / num_classes)
        target[label] += 1 - smoothing
        class_weight = 1.0 if class_weights is None else class_weights[label]
        loss = -(target * log_probabilities[pixel]).sum()
        total += class_weight * weights[pixel] * loss
        divisor += class_weight
    return total / divisor if divisor > 0 else 0.0


def dice(masks, logits, ignore_class=None, weights=1):
    probabilities = softmax(logits.astype("float64"))
    weights = np.broadcast_to(weights, masks.shape) * (masks != ignore_class)
    of_classes = []
    for class_id in range(logits.shape[-1]):
        p, t = probabilities[..., class_id], masks == class_id
        if (weights * t).sum() > 0:
            overlap = 2 * (weights * p * t).sum()
            of_classes.append(overlap / ((weights * p).sum() + (weights * t).sum()))
    return 1 - np.mean(of_classes) if of_classes else 0.0


def gradient_by_differences(loss, masks, logits, **arguments):
    """Central differences of a NumPy formula, float64."""
    gradient = np.zeros(logits.shape)
    for index in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[index] = 1e-4
        up, down = loss(masks, logits + step, **arguments), loss(masks, logits - step, **arguments)
        gradient[index] = (up - down) / 2e-4
    return gradient


class Logits(keras.layers.Layer):
    """A layer whose output is its weight: the gradient of a loss can be read off an SGD step."""

    logits_initializer = "zeros"

    def __init__(self, shape):
        super().__init__()
        self.logits = self.add_weight(shape=shape, initializer="zeros", name="logits")

    def call(self, x):
        return self.logits + 0 * x[:, :, :, :1]


def to_numpy(variable):
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def gradient(loss, masks, logits, sample_weight=None):
    """Minus the change of the logits in one SGD step of length 1, through `fit`."""
    inputs = keras.Input(logits.shape[1:3] + (1,), batch_size=len(logits))
    layer = Logits(logits.shape)
    model = keras.Model(inputs, layer(inputs))
    layer.logits.assign(logits)
    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    x = np.zeros((*masks.shape[:3], 1), "float32")
    model.fit(x, masks, sample_weight=sample_weight, batch_size=len(x), shuffle=False, verbose=0)
    return logits - to_numpy(layer.logits)


# --- values


@pytest.mark.parametrize(
    "masks, logits, expected",
    [
        # one pixel per case: label, logits, loss
        ([0], [[0.0, 0.0]], np.log(2)),
        ([1], [[0.0, 0.0, 0.0, 0.0]], np.log(4)),
        ([0], [[100.0, 0.0]], 0.0),
        ([1], [[100.0, 0.0]], 100.0),
        ([0, 1], [[4.0, 0.0], [4.0, 0.0]], 2 + np.log1p(np.exp(-4.0))),
        ([0, 255], [[4.0, 0.0], [4.0, 0.0]], np.log1p(np.exp(-4.0))),
        ([255, 255], [[4.0, 0.0], [4.0, 0.0]], 0.0),
    ],
)
def test_cross_entropy_table(masks, logits, expected):
    loss = CrossEntropy(ignore_class=255)(np.array([[masks]]), np.array([[logits]], "float32"))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ignore_class", [None, 255, 0])
@pytest.mark.parametrize("class_weights", [None, (1.0, 0.5, 3.0), (0.0, 1.0, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_formula(ignore_class, class_weights, smoothing):
    masks, logits = random_batch(ignore_class=ignore_class)
    loss = CrossEntropy(ignore_class, class_weights, smoothing)
    expected = cross_entropy(masks, logits, ignore_class, class_weights, smoothing)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 4, 6), (2, 4, 6, 1)])
def test_losses_take_sample_weights_per_image_and_per_pixel(shape):
    masks, logits = random_batch(ignore_class=255)
    weights = np.random.default_rng(1).random(shape).astype("float32")
    of_pixels = weights.reshape(2, 1, 1) if len(shape) < 3 else weights.reshape(SHAPE)
    class_weights = (1.0, 0.5, 3.0)
    found = CrossEntropy(255, class_weights)(masks, logits, weights)
    expected = cross_entropy(masks, logits, 255, class_weights, weights=of_pixels)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    found = Dice(255)(masks, logits, weights)
    assert float(found) == pytest.approx(dice(masks, logits, 255, of_pixels), rel=1e-5)


@pytest.mark.parametrize("ignore_class", [None, 255])
def test_dice_is_the_formula(ignore_class):
    masks, logits = random_batch(ignore_class=ignore_class)
    loss = Dice(ignore_class)(masks, logits)
    assert float(loss) == pytest.approx(dice(masks, logits, ignore_class), rel=1e-5)


@pytest.mark.parametrize(
    "masks, logits, expected",
    [
        ([0, 1], [[50.0, 0.0], [0.0, 50.0]], 0.0),
        ([0, 1], [[0.0, 50.0], [50.0, 0.0]], 1.0),
        ([0, 1], [[0.0, 0.0], [0.0, 0.0]], 0.5),
        # class 1 is not in the truth: only class 0 is measured
        ([0, 0], [[0.0, 0.0], [0.0, 0.0]], 1 - 2 / 3),
        ([0, 255], [[50.0, 0.0], [50.0, 0.0]], 0.0),
        ([255, 255], [[4.0, 0.0], [4.0, 0.0]], 0.0),
    ],
)
def test_dice_table(masks, logits, expected):
    loss = Dice(ignore_class=255)(np.array([[masks]]), np.array([[logits]], "float32"))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_agrees_with_keras():
    masks, logits = random_batch()
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(masks, logits)
    assert float(CrossEntropy()(masks, logits)) == pytest.approx(float(theirs), rel=1e-6)


def test_label_smoothing_agrees_with_keras():
    masks, logits = random_batch()
    one_hot = np.eye(NUM_CLASSES, dtype="float32")[masks]
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    ours = CrossEntropy(label_smoothing=0.1)(masks, logits)
    assert float(ours) == pytest.approx(float(theirs(one_hot, logits)), rel=1e-6)


def test_dice_agrees_with_keras_on_probabilities():
    masks, logits = random_batch()
    one_hot = np.eye(NUM_CLASSES, dtype="float32")[masks]
    probabilities = softmax(logits)
    of_classes = [
        float(keras.losses.Dice()(one_hot[..., i : i + 1], probabilities[..., i : i + 1]))
        for i in range(NUM_CLASSES)
    ]
    assert float(Dice()(masks, logits)) == pytest.approx(np.mean(of_classes), rel=1e-5)


def test_cross_entropy_does_not_take_back_a_softmax():
    # Keras on TensorFlow finds the logits behind a softmax and reports another loss.
    masks = np.array([[[1]]])
    probabilities = ops.softmax(ops.convert_to_tensor([[[[60.0, 0.0]]]]))
    expected = np.log(1 + np.e)
    assert float(CrossEntropy()(masks, probabilities)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_losses_take_masks_of_any_integer_type_with_or_without_a_channel(dtype):
    masks, logits = random_batch(ignore_class=255)
    for loss in (CrossEntropy(255), Dice(255)):
        expected = float(loss(masks, logits))
        assert float(loss(masks.astype(dtype), logits)) == expected
        assert float(loss(masks[..., None].astype(dtype), logits)) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-80, 80))
def test_changing_ignored_pixels_changes_no_loss(seed, value):
    masks, logits = random_batch(seed, ignore_class=255)
    changed = np.where((masks == 255)[..., None], np.float32(value), logits)
    for loss in (CrossEntropy(255, (1.0, 2.0, 3.0), 0.1), Dice(255)):
        assert float(loss(masks, logits)) == float(loss(masks, changed))


# --- sums


def test_losses_add_and_scale():
    masks, logits = random_batch(ignore_class=255)
    ce, overlap = CrossEntropy(255), Dice(255)
    a, b = float(ce(masks, logits)), float(overlap(masks, logits))
    assert float((ce + 0.5 * overlap)(masks, logits)) == pytest.approx(a + 0.5 * b)
    assert float((2 * (ce * 3 + overlap))(masks, logits)) == pytest.approx(6 * a + 2 * b)
    weights = np.array([1.0, 0.0], "float32")
    weighted = float(ce(masks, logits, weights)) + float(overlap(masks, logits, weights))
    assert float((ce + overlap)(masks, logits, weights)) == pytest.approx(weighted)


def test_losses_do_not_add_to_numbers():
    with pytest.raises(TypeError):
        CrossEntropy() + 1
    with pytest.raises(TypeError):
        CrossEntropy() * "2"


# --- inside fit


@pytest.mark.parametrize(
    "loss, formula",
    [
        (CrossEntropy(255, (1.0, 0.5, 3.0), 0.1), cross_entropy),
        (Dice(255), dice),
    ],
)
def test_gradient_is_that_of_the_formula(loss, formula):
    masks, logits = random_batch(ignore_class=255)
    arguments = {"ignore_class": 255}
    if formula is cross_entropy:
        arguments |= {"class_weights": (1.0, 0.5, 3.0), "smoothing": 0.1}
    weights = np.random.default_rng(1).random(SHAPE).astype("float32")
    expected = gradient_by_differences(formula, masks, logits, weights=weights, **arguments)
    assert np.allclose(gradient(loss, masks, logits, weights), expected, atol=2e-6)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("loss", [CrossEntropy(255), Dice(255), CrossEntropy(255) + Dice(255)])
def test_gradient_is_zero_if_every_pixel_is_ignored(loss):
    _, logits = random_batch()
    masks = np.full(SHAPE, 255, "int32")
    assert np.array_equal(gradient(loss, masks, logits), np.zeros_like(logits))


def pixel_classifier():
    inputs = keras.Input((None, None, 3))
    hidden = layers.Conv2D(8, 1, activation="relu")(inputs)
    return keras.Model(inputs, layers.Conv2D(NUM_CLASSES, 1, dtype="float32")(hidden))


def coloured_batch():
    """Images whose pixels are coloured by class; some pixels are void."""
    masks, _ = random_batch(shape=(4, 8, 8), ignore_class=255)
    colours = np.eye(256, 3, dtype="float32")
    return colours[masks], masks


@pytest.mark.parametrize(
    "loss", [CrossEntropy(255), Dice(255), CrossEntropy(255) + 0.5 * Dice(255)]
)
def test_a_tiny_fixed_set_is_learned(loss):
    keras.utils.set_random_seed(0)
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    model.fit(images, masks, epochs=60, verbose=0)
    predicted = model.predict(images, verbose=0).argmax(-1)
    assert (predicted == masks)[masks != 255].all()


def test_fit_and_evaluate_report_the_loss_of_the_formula():
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile("sgd", loss=CrossEntropy(255) + 0.5 * Dice(255))
    logits = model.predict(images, verbose=0)
    expected = cross_entropy(masks, logits, 255) + 0.5 * dice(masks, logits, 255)
    found = model.evaluate(images, masks, batch_size=4, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)
    history = model.fit(images, masks, batch_size=4, verbose=0)
    assert history.history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_losses_compute_in_float32_under_mixed_precision():
    masks, logits = random_batch()
    for loss in (CrossEntropy(), Dice()):
        result = loss(masks, logits.astype("float16"))
        assert keras.backend.standardize_dtype(result.dtype) == "float32"
        expected = float(loss(masks, logits.astype("float16").astype("float32")))
        assert float(result) == expected
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        images, masks = coloured_batch()
        model = pixel_classifier()
        model.compile("sgd", loss=CrossEntropy(255) + Dice(255))
        assert np.isfinite(model.fit(images, masks, verbose=0).history["loss"][0])
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(255, (1.0, 0.5, 3.0), 0.1, name="mine"),
        Dice(255),
        CrossEntropy(255) + 0.5 * Dice(255),
    ],
)
def test_a_compiled_model_reloads_with_its_loss(loss, tmp_path):
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile("sgd", loss=loss)
    model.fit(images, masks, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == loss.get_config()
    assert again.loss.name == loss.name
    before, after = (m.evaluate(images, masks, verbose=0) for m in (model, again))
    assert before == after


# --- errors

INVALID_ARGUMENTS = [
    (lambda: CrossEntropy(class_weights=(1.0, -1.0)), "class_weights.*-1"),
    (lambda: CrossEntropy(class_weights=(1.0, float("nan"))), "class_weights.*nan"),
    (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing.*1.0"),
]


@pytest.mark.parametrize("build, message", INVALID_ARGUMENTS)
def test_cross_entropy_rejects_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_cross_entropy_rejects_class_weights_of_another_length():
    masks, logits = random_batch()
    with pytest.raises(ValueError, match="class_weights has 2 numbers.*3 classes"):
        CrossEntropy(class_weights=(1.0, 2.0))(masks, logits)


@pytest.mark.parametrize("label", [3, 255, -1])
def test_losses_reject_labels_out_of_range(label):
    masks, logits = random_batch()
    masks[1, 2, 3] = label
    for loss in (CrossEntropy(), Dice(), CrossEntropy(ignore_class=0)):
        with pytest.raises(ValueError, match="not in 0..2.*ignore_class"):
            loss(masks, logits)


def test_fit_stops_at_a_label_out_of_range():
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile("sgd", loss=CrossEntropy())
    # ValueError, or in a compiled TensorFlow graph its InvalidArgumentError
    with pytest.raises(Exception, match="label that is not in 0..2"):
        model.fit(images, masks, verbose=0)


@pytest.mark.parametrize(
    "masks, logits, message",
    [
        (np.zeros((2, 4, 6), "float32"), np.zeros((2, 4, 6, 3)), "integers; found float32"),
        (np.zeros((2, 4, 6, 3), "int32"), np.zeros((2, 4, 6, 3)), r"\(2, 4, 6, 3\)"),
        (np.zeros((2, 4, 5), "int32"), np.zeros((2, 4, 6, 3)), r"\(2, 4, 5\).*\(2, 4, 6, 3\)"),
        (np.zeros((2, 4), "int32"), np.zeros((2, 4, 3)), r"\(2, 4\).*\(2, 4, 3\)"),
    ],
)
def test_losses_reject_masks_and_logits_that_do_not_fit(masks, logits, message):
    for loss in (CrossEntropy(), Dice()):
        with pytest.raises(ValueError, match=message):
            loss(masks, logits.astype("float32"))


def test_losses_reject_sample_weights_of_another_rank():
    masks, logits = random_batch()
    with pytest.raises(ValueError, match=r"sample_weight.*\(2, 4\)"):
        CrossEntropy()(masks, logits, np.ones((2, 4), "float32"))
