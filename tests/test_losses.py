import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from scipy.spatial import distance

from keras_segen import backend
from keras_segen.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    Focal,
    FocalTversky,
    Jaccard,
    Lovasz,
    Tversky,
)

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


def focal(masks, logits, gamma, ignore_class=None, class_weights=None, weights=1):
    probabilities = softmax(logits.astype("float64"))
    weights = np.broadcast_to(weights, masks.shape)
    total, divisor = 0.0, 0.0
    for pixel in np.ndindex(masks.shape):
        label = masks[pixel]
        if label == ignore_class:
            continue
        class_weight = 1.0 if class_weights is None else class_weights[label]
        p = probabilities[pixel][label]
        total -= class_weight * weights[pixel] * (1 - p) ** gamma * np.log(p)
        divisor += class_weight
    return total / divisor if divisor > 0 else 0.0


def mean_over_present(losses, class_weights):
    """Mean of {class: loss}, weighted; 0 for none."""
    if not losses:
        return 0.0
    weights = [1.0 if class_weights is None else class_weights[i] for i in losses]
    return np.average(list(losses.values()), weights=weights)


def tversky(
    masks, logits, alpha, beta, ignore_class=None, class_weights=None, weights=1, power=1.0
):
    """From true positives, false positives and false negatives, counted by probability."""
    probabilities = softmax(logits.astype("float64"))
    weights = np.broadcast_to(weights, masks.shape) * (masks != ignore_class)
    losses = {}
    for class_id in range(logits.shape[-1]):
        p, t = probabilities[..., class_id], masks == class_id
        if (weights * t).sum() > 0:
            hits = (weights * p * t).sum()
            false_alarms, misses = (weights * p * ~t).sum(), (weights * (1 - p) * t).sum()
            index = hits / (hits + alpha * false_alarms + beta * misses)
            losses[class_id] = (1 - index) ** power
    return mean_over_present(losses, class_weights)


def dice(masks, logits, **arguments):
    return tversky(masks, logits, 0.5, 0.5, **arguments)


def lovasz_extension(errors, truth, weights):
    """The Lovász extension of the Jaccard loss by its definition, an integral over thresholds.

    At threshold u the pixels with an error of u or more are taken for wrong; the Jaccard loss of
    that set is the number of wrong pixels over the union of truth and wrong pixels (paper, eq. 6).
    """
    total, below = 0.0, 0.0
    for level in np.unique(errors[errors > 0]):
        wrong = errors >= level
        union = weights[wrong | truth].sum()
        total += (level - below) * (weights[wrong].sum() / union if union > 0 else 0.0)
        below = level
    return total


def lovasz(masks, logits, ignore_class=None, class_weights=None, weights=1):
    probabilities = softmax(logits.astype("float64"))
    weights = np.broadcast_to(weights, masks.shape) * (masks != ignore_class)
    losses = {}
    for class_id in range(logits.shape[-1]):
        truth = masks == class_id
        if (weights * truth).sum() > 0:
            errors = np.abs(truth - probabilities[..., class_id])
            losses[class_id] = lovasz_extension(errors, truth, weights)
    return mean_over_present(losses, class_weights)


def lovasz_hinge(masks, logits, ignore_class=None, weights=1):
    weights = np.broadcast_to(weights, masks.shape) * (masks != ignore_class)
    errors = np.maximum(0, 1 - logits[..., 0].astype("float64") * np.where(masks == 1, 1, -1))
    truth = (masks == 1) & (weights > 0)
    return lovasz_extension(errors, truth, weights) if truth.any() else 0.0


CLASS_WEIGHTS = (1.0, 0.5, 3.0)

# name -> a loss that ignores 255, and its formula
FORMULAS = {
    "cross_entropy": (
        CrossEntropy(255, CLASS_WEIGHTS, 0.1),
        lambda *batch, **more: cross_entropy(*batch, 255, CLASS_WEIGHTS, 0.1, **more),
    ),
    "focal": (
        Focal(2.0, 255, CLASS_WEIGHTS),
        lambda *batch, **more: focal(*batch, 2.0, 255, CLASS_WEIGHTS, **more),
    ),
    "focal below 1": (
        Focal(0.5, 255),
        lambda *batch, **more: focal(*batch, 0.5, 255, **more),
    ),
    "dice": (
        Dice(255, CLASS_WEIGHTS),
        lambda *batch, **more: tversky(*batch, 0.5, 0.5, 255, CLASS_WEIGHTS, **more),
    ),
    "jaccard": (
        Jaccard(255),
        lambda *batch, **more: tversky(*batch, 1, 1, 255, **more),
    ),
    "tversky": (
        Tversky(0.2, 0.9, 255, CLASS_WEIGHTS),
        lambda *batch, **more: tversky(*batch, 0.2, 0.9, 255, CLASS_WEIGHTS, **more),
    ),
    "focal_tversky": (
        FocalTversky(0.3, 0.7, 4 / 3, 255),
        lambda *batch, **more: tversky(*batch, 0.3, 0.7, 255, power=0.75, **more),
    ),
    "lovasz": (
        Lovasz(255, CLASS_WEIGHTS),
        lambda *batch, **more: lovasz(*batch, 255, CLASS_WEIGHTS, **more),
    ),
}


def two_channels(logits):
    return np.concatenate([np.zeros_like(logits), logits], axis=-1)


def foreground(of_two_classes, *arguments, **keywords):
    """A formula over two classes, of class 1 alone, for logits of one channel."""

    def formula(masks, logits, weights=1):
        return of_two_classes(
            masks,
            two_channels(logits),
            *arguments,
            ignore_class=255,
            class_weights=(0.0, 1.0),
            weights=weights,
            **keywords,
        )

    # where class 1 is absent, a mean with the weights (0, 1) divides by 0
    return lambda masks, logits, weights=1: (
        formula(masks, logits, weights) if (masks == 1).any() else 0.0
    )


BINARY_FORMULAS = {
    "binary_cross_entropy": (
        BinaryCrossEntropy(255, (1.0, 3.0), 0.1),
        lambda masks, logits, weights=1: cross_entropy(
            masks, two_channels(logits), 255, (1.0, 3.0), 0.1, weights
        ),
    ),
    "focal": (
        Focal(2.0, 255, (1.0, 3.0)),
        lambda masks, logits, weights=1: focal(
            masks, two_channels(logits), 2.0, 255, (1.0, 3.0), weights
        ),
    ),
    "dice": (Dice(255), foreground(tversky, 0.5, 0.5)),
    "jaccard": (Jaccard(255), foreground(tversky, 1, 1)),
    "tversky": (Tversky(0.2, 0.9, 255), foreground(tversky, 0.2, 0.9)),
    "focal_tversky": (FocalTversky(ignore_class=255), foreground(tversky, 0.3, 0.7, power=0.75)),
    "lovasz hinge": (
        Lovasz(255),
        lambda masks, logits, weights=1: lovasz_hinge(masks, logits, 255, weights),
    ),
}

EVERY_LOSS = [loss for loss, _ in FORMULAS.values()]
EVERY_BINARY_LOSS = [loss for loss, _ in BINARY_FORMULAS.values()]


def binary_batch(seed=0, shape=SHAPE):
    masks, logits = random_batch(seed, 255, shape, num_classes=2)
    return masks, logits[..., 1:]


def named(losses):
    return pytest.mark.parametrize("loss", losses, ids=lambda loss: loss.name)


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
    """The gradient of a loss by its logits, a NumPy array."""
    _, found = backend.input_gradient(
        lambda z: loss(masks, z, sample_weight), ops.convert_to_tensor(logits)
    )
    return to_numpy(found)


def gradient_in_fit(loss, masks, logits, sample_weight=None):
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
    assert float(found) == pytest.approx(
        dice(masks, logits, ignore_class=255, weights=of_pixels), rel=1e-5
    )


@pytest.mark.parametrize("ignore_class", [None, 255])
def test_dice_is_the_formula(ignore_class):
    masks, logits = random_batch(ignore_class=ignore_class)
    loss = Dice(ignore_class)(masks, logits)
    assert float(loss) == pytest.approx(dice(masks, logits, ignore_class=ignore_class), rel=1e-5)


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


# Probabilities of class 1 in three pixels, of which the first is class 1: 0.8, 0.6, 0.1.
THREE = np.log([[[[4.0], [1.5], [1 / 9]]]])


@pytest.mark.parametrize(
    "loss, masks, logits, expected",
    [
        # half-sure of everything; pixels of the classes 0 and 1
        (Jaccard(), [0, 1], [[0, 0], [0, 0]], 2 / 3),
        (Tversky(), [0, 1], [[0, 0], [0, 0]], 0.5),
        (FocalTversky(gamma=2), [0, 1], [[0, 0], [0, 0]], np.sqrt(0.5)),
        (Lovasz(), [0, 1], [[0, 0], [0, 0]], 0.5),
        (Focal(2), [0, 1], [[0, 0], [0, 0]], np.log(2) / 4),
        (Focal(0), [0, 1], [[0, 0], [0, 0]], np.log(2)),
        (Focal(2, class_weights=(1, 3)), [0, 1, 1], [[0, 0]] * 3, np.log(2) / 4),
        # two pixels of class 0: overlap 1 and 0.5, predicted 1.5, true 2 and 1
        (Dice(), [0, 0, 1], [[0, 0]] * 3, (3 / 7 + 0.6) / 2),
        (Dice(class_weights=(3, 1)), [0, 0, 1], [[0, 0]] * 3, (9 / 7 + 0.6) / 4),
        (Jaccard(), [0, 0, 1], [[0, 0]] * 3, (0.6 + 0.75) / 2),
        (Tversky(), [0, 0, 1], [[0, 0]] * 3, (0.85 / 1.85 + 0.65 / 1.15) / 2),
        # errors of class 1 in falling order 0.6, 0.2, 0.1; each adds 1/2, 1/2, 0 to its Jaccard
        # loss. Class 0: the same errors add 1/2, 1/6, 1/3.
        (Lovasz(), [1, 0, 0], two_channels(THREE)[0, 0], (0.4 + 0.3 + 0.1 / 3 + 0.1 / 3) / 2),
        (Lovasz(class_weights=(0, 1)), [1, 0, 0], two_channels(THREE)[0, 0], 0.4),
        # all right, all wrong
        *((loss, [0, 1], [[50, 0], [0, 50]], 0.0) for loss in (Jaccard(), Tversky(), Lovasz())),
        *((loss, [0, 1], [[0, 50], [50, 0]], 1.0) for loss in (Jaccard(), Tversky(), Lovasz())),
        (FocalTversky(), [0, 1], [[50, 0], [0, 50]], 0.0),
        (FocalTversky(), [0, 1], [[0, 50], [50, 0]], 1.0),
        (Focal(), [0, 1], [[50, 0], [0, 50]], 0.0),
        (Focal(), [0, 1], [[0, 50], [50, 0]], 50.0),
        # class 1 is not in the truth: only class 0 is measured
        (Jaccard(), [0, 0], [[0, 0], [0, 0]], 0.5),
        (Lovasz(), [0, 0], [[0, 0], [0, 0]], 0.5),
        (Tversky(), [0, 0], [[0, 0], [0, 0]], 0.7 / 1.7),
        # one channel, z = 0: the class is class 1
        (BinaryCrossEntropy(), [0, 1], [[0], [0]], np.log(2)),
        (BinaryCrossEntropy(), [1, 1], [[-100], [0]], (100 + np.log(2)) / 2),
        (
            BinaryCrossEntropy(class_weights=(1, 3)),
            [0, 1],
            [[2], [0]],
            0.25 * np.log1p(np.exp(2)) + 0.75 * np.log(2),
        ),
        (Dice(), [0, 0, 1], [[0]] * 3, 0.6),
        (Jaccard(), [0, 0, 1], [[0]] * 3, 0.75),
        (Focal(), [0, 0, 1], [[0]] * 3, np.log(2) / 4),
        (Lovasz(), [1, 0], [[0.5], [-2]], 0.5),
        (Lovasz(), [1, 0], [[0.5], [0.3]], 0.5 * 1.3 + 0.5 * 0.5),
        (Lovasz(), [1, 0], [[1], [-1]], 0.0),
        *((loss, [0, 0], [[3], [3]], 0.0) for loss in (Dice(), Jaccard(), Tversky(), Lovasz())),
    ],
)
def test_values_worked_by_hand(loss, masks, logits, expected):
    found = loss(np.array([[masks]]), np.array([[logits]], "float32"))
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_are_their_formulas(name):
    loss, formula = FORMULAS[name]
    masks, logits = random_batch(ignore_class=255)
    weights = np.random.default_rng(1).random(SHAPE).astype("float32")
    assert float(loss(masks, logits)) == pytest.approx(formula(masks, logits), rel=1e-5)
    expected = formula(masks, logits, weights=weights)
    assert float(loss(masks, logits, weights)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", BINARY_FORMULAS)
def test_losses_of_one_channel_are_their_formulas(name):
    loss, formula = BINARY_FORMULAS[name]
    masks, logits = binary_batch()
    weights = np.random.default_rng(1).random(SHAPE).astype("float32")
    assert float(loss(masks, logits)) == pytest.approx(formula(masks, logits), rel=1e-5)
    expected = formula(masks, logits, weights=weights)
    assert float(loss(masks, logits, weights)) == pytest.approx(expected, rel=1e-5)


def test_one_channel_is_two_channels_of_which_the_first_is_zero():
    masks, logits = binary_batch()
    for one, two in (
        (BinaryCrossEntropy(255, (1.0, 3.0), 0.2), CrossEntropy(255, (1.0, 3.0), 0.2)),
        (Focal(1.5, 255), Focal(1.5, 255)),
        (Dice(255), Dice(255, class_weights=(0, 1))),
        (Tversky(ignore_class=255), Tversky(ignore_class=255, class_weights=(0, 1))),
    ):
        expected = float(two(masks, two_channels(logits)))
        assert float(one(masks, logits)) == pytest.approx(expected, rel=1e-6)


def test_losses_of_one_channel_agree_with_keras():
    masks, logits = random_batch(num_classes=2)
    logits = logits[..., 1:]
    truth = masks[..., None].astype("float32")
    p = 1 / (1 + np.exp(-logits))
    for ours, theirs, prediction in (
        (BinaryCrossEntropy(), keras.losses.BinaryCrossentropy(from_logits=True), logits),
        (
            BinaryCrossEntropy(label_smoothing=0.2),
            keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2),
            logits,
        ),
        (Focal(2.0), keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True), logits),
        (Dice(), keras.losses.Dice(), p),
        # Keras 3.15 weighs the misses by its alpha, whatever its documentation says
        (Tversky(0.3, 0.7), keras.losses.Tversky(alpha=0.7, beta=0.3), p),
    ):
        expected = float(theirs(truth, prediction))
        assert float(ours(masks, logits)) == pytest.approx(expected, rel=1e-5)


def test_certain_predictions_have_the_distances_of_scipy():
    masks, _ = random_batch(num_classes=3)
    predicted, _ = random_batch(1, num_classes=3)
    logits = 100 * np.eye(3, dtype="float32")[predicted]
    for loss, measure in (
        (Dice(), distance.dice),
        (Jaccard(), distance.jaccard),
        (Lovasz(), distance.jaccard),
    ):
        expected = [measure((masks == i).ravel(), (predicted == i).ravel()) for i in range(3)]
        assert float(loss(masks, logits)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_losses_of_one_family_agree():
    masks, logits = random_batch(ignore_class=255)

    def value(loss):
        return float(loss(masks, logits))

    assert value(Focal(0.0, 255)) == pytest.approx(value(CrossEntropy(255)), rel=1e-6)
    assert value(Tversky(0.5, 0.5, 255)) == pytest.approx(value(Dice(255)), rel=1e-6)
    assert value(Tversky(1, 1, 255)) == pytest.approx(value(Jaccard(255)), rel=1e-6)
    assert value(FocalTversky(gamma=1, ignore_class=255)) == pytest.approx(
        value(Tversky(ignore_class=255)), rel=1e-6
    )


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


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-80, 80))
def test_changing_ignored_pixels_changes_no_loss(seed, value):
    for losses, (masks, logits) in (
        (EVERY_LOSS, random_batch(seed, ignore_class=255)),
        (EVERY_BINARY_LOSS, binary_batch(seed)),
    ):
        changed = np.where((masks == 255)[..., None], np.float32(value), logits)
        for loss in losses:
            # equal, but for the order in which the backend sums what Lovász sorts
            expected = pytest.approx(float(loss(masks, logits)), rel=1e-6, abs=1e-7)
            assert float(loss(masks, changed)) == expected


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_pixels_changes_no_loss(seed):
    order = np.random.default_rng(seed).permutation(np.prod(SHAPE))
    for losses, (masks, logits) in (
        (EVERY_LOSS, random_batch(seed, ignore_class=255)),
        (EVERY_BINARY_LOSS, binary_batch(seed)),
    ):
        mixed_masks = masks.reshape(-1)[order].reshape(masks.shape)
        mixed_logits = logits.reshape(-1, logits.shape[-1])[order].reshape(logits.shape)
        for loss in losses:
            expected = pytest.approx(float(loss(masks, logits)), rel=1e-5, abs=1e-6)
            assert float(loss(mixed_masks, mixed_logits)) == expected


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0, 100))
def test_losses_of_overlap_are_between_0_and_1(seed, scale):
    masks, logits = random_batch(seed, ignore_class=255)
    for loss in EVERY_LOSS:
        found = float(loss(masks, np.float32(scale) * logits))
        assert found >= -1e-6
        assert found <= 1 + 1e-6 or isinstance(loss, (CrossEntropy, Focal))


@named([loss for loss in EVERY_LOSS if not isinstance(loss, (CrossEntropy, Focal))])
def test_a_weight_of_two_is_an_image_twice(loss):
    masks, logits = random_batch(ignore_class=255)
    weighted = loss(masks, logits, np.array([2.0, 1.0], "float32"))
    twice = loss(masks[[0, 0, 1]], logits[[0, 0, 1]])
    assert float(weighted) == pytest.approx(float(twice), rel=1e-5)


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
    "table, name",
    [
        pytest.param(table, name, id=f"{channels}-{name}")
        for channels, table in (("many", FORMULAS), ("one", BINARY_FORMULAS))
        for name in table
    ],
)
def test_gradient_is_that_of_the_formula(table, name):
    loss, formula = table[name]
    masks, logits = random_batch(ignore_class=255) if table is FORMULAS else binary_batch()
    weights = np.random.default_rng(1).random(SHAPE).astype("float32")
    expected = gradient_by_differences(formula, masks, logits, weights=weights)
    assert np.allclose(gradient(loss, masks, logits, weights), expected, atol=3e-6)
    assert np.abs(expected).max() > 1e-3


def test_gradient_in_fit_is_the_gradient():
    masks, logits = random_batch(ignore_class=255)
    weights = np.random.default_rng(1).random(SHAPE).astype("float32")
    loss = sum(EVERY_LOSS[1:], start=EVERY_LOSS[0])
    expected = gradient(loss, masks, logits, weights)
    np.testing.assert_allclose(gradient_in_fit(loss, masks, logits, weights), expected, atol=2e-6)


# Golden numbers that both backends must meet, from the formulas in float64: the loss of
# `smooth_batch`, the length of its gradient, and the gradient's number at [0, 1, 2, 0].
GOLDEN = {
    "cross_entropy": (1.669246, 0.1761858, 1.967004e-05),
    "focal": (1.284608, 0.2086147, 8.398968e-05),
    "focal below 1": (1.467969, 0.1563174, 0.0007251201),
    "dice": (0.6792635, 0.03965254, 0.0001942617),
    "jaccard": (0.7937926, 0.02648946, 0.0004780726),
    "tversky": (0.6877096, 0.04115818, 0.0001907353),
    "focal_tversky": (0.730821, 0.03035437, 0.0005275423),
    "lovasz": (0.7298358, 0.03420872, 0.0001043422),
    "binary_cross_entropy": (0.9289337, 0.1005989, -0.004785339),
    "lovasz hinge": (1.92628, 0.2002076, 0),
}


def smooth_batch():
    """Logits without chance and without ties, and masks with every class and void."""
    pixels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    masks = (pixels // 5 % 4).astype("int32")
    masks[masks == 3] = 255
    return masks, np.stack([2 * np.sin(pixels * (i + 0.7)) for i in range(3)], -1).astype("float32")


@pytest.mark.parametrize("name", GOLDEN)
def test_both_backends_meet_the_golden_numbers(name):
    masks, logits = smooth_batch()
    if name in BINARY_FORMULAS and name not in FORMULAS:
        loss = BINARY_FORMULAS[name][0]
        masks, logits = np.where(masks == 2, 0, masks), logits[..., 1:2]
    else:
        loss = FORMULAS[name][0]
    slope = gradient(loss, masks, logits)
    found = [float(loss(masks, logits)), np.linalg.norm(slope), slope[0, 1, 2, 0]]
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-5, atol=2e-7)


@named([*EVERY_LOSS, *EVERY_BINARY_LOSS, CrossEntropy(255) + Dice(255)])
def test_gradient_is_zero_if_every_pixel_is_ignored(loss):
    _, logits = binary_batch() if loss in EVERY_BINARY_LOSS else random_batch()
    masks = np.full(SHAPE, 255, "int32")
    assert np.array_equal(gradient(loss, masks, logits), np.zeros_like(logits))


@named([*EVERY_LOSS, *EVERY_BINARY_LOSS])
def test_extreme_logits_and_empty_masks_have_finite_losses_and_gradients(loss):
    channels = 1 if loss in EVERY_BINARY_LOSS else NUM_CLASSES
    generator = np.random.default_rng(0)
    for highest in (0, 1, max(channels - 1, 1)):  # no foreground; one class; every class
        masks = generator.integers(0, highest + 1, SHAPE).astype("int32")
        if highest == 1:
            masks[:] = 1
        right = np.eye(NUM_CLASSES)[masks] * 2 - 1 if channels > 1 else 2.0 * masks[..., None] - 1
        for logits in (1e4 * right, -1e4 * right, 0 * right, 20 * right):
            logits = logits.astype("float32")
            assert np.isfinite(float(loss(masks, logits)))
            assert np.isfinite(gradient(loss, masks, logits)).all()


def pixel_classifier(num_channels=NUM_CLASSES):
    inputs = keras.Input((None, None, 3))
    hidden = layers.Conv2D(8, 1, activation="relu")(inputs)
    return keras.Model(inputs, layers.Conv2D(num_channels, 1, dtype="float32")(hidden))


def coloured_batch():
    """Images whose pixels are coloured by class; some pixels are void."""
    masks, _ = random_batch(shape=(4, 8, 8), ignore_class=255)
    colours = np.eye(256, 3, dtype="float32")
    return colours[masks], masks


def learn(model, images, masks, steps=60):
    """Shows the same batch again and again."""
    batches = [np.concatenate([each] * steps) for each in (images, masks)]
    model.fit(*batches, batch_size=len(images), shuffle=False, verbose=0)


def learned_with(first, *others):
    """The others on one backend: that their gradients are right, also in `fit`, is seen on each."""
    return named([first, *(pytest.param(loss, marks=pytest.mark.once) for loss in others)])


@learned_with(CrossEntropy(255) + 0.5 * Lovasz(255), *EVERY_LOSS)
def test_a_tiny_fixed_set_is_learned(loss):
    keras.utils.set_random_seed(0)
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    learn(model, images, masks)
    predicted = to_numpy(model(images)).argmax(-1)
    assert (predicted == masks)[masks != 255].all()


@learned_with(*EVERY_BINARY_LOSS)
def test_a_tiny_fixed_set_is_learned_with_one_channel(loss):
    keras.utils.set_random_seed(0)
    images, masks = coloured_batch()
    masks = np.where(masks == 2, 0, masks)
    model = pixel_classifier(1)
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    learn(model, images, masks)
    predicted = to_numpy(model(images))[..., 0] > 0
    assert (predicted == masks)[masks != 255].all()


def test_losses_compile_with_xla_where_there_is_xla():
    """Keras turns XLA on for TensorFlow on a GPU; on torch this asks for nothing more."""
    jit = keras.backend.backend() == "tensorflow"
    images, masks = coloured_batch()
    three = sum(EVERY_LOSS[1:], start=EVERY_LOSS[0])
    one = sum(EVERY_BINARY_LOSS[1:], start=EVERY_BINARY_LOSS[0])
    for loss, channels, truth in ((three, 3, masks), (one, 1, np.where(masks == 2, 0, masks))):
        model = pixel_classifier(channels)
        weights, found = model.get_weights(), []
        for options in ({"run_eagerly": True, "jit_compile": False}, {"jit_compile": jit}):
            model.set_weights(weights)
            model.compile("sgd", loss=loss, **options)
            history = model.fit(images, truth, epochs=2, shuffle=False, verbose=0).history
            found.append(history["loss"])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_fit_and_evaluate_report_the_loss_of_the_formula():
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile("sgd", loss=CrossEntropy(255) + 0.5 * Dice(255))
    logits = model.predict(images, verbose=0)
    expected = cross_entropy(masks, logits, 255) + 0.5 * dice(masks, logits, ignore_class=255)
    found = model.evaluate(images, masks, batch_size=4, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)
    history = model.fit(images, masks, batch_size=4, verbose=0)
    assert history.history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_losses_compute_in_float32_under_mixed_precision():
    masks, logits = random_batch()
    for loss in EVERY_LOSS:
        result = loss(masks, logits.astype("float16"))
        assert keras.backend.standardize_dtype(result.dtype) == "float32"
        expected = float(loss(masks, logits.astype("float16").astype("float32")))
        assert float(result) == expected
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        images, masks = coloured_batch()
        model = pixel_classifier()
        model.compile("sgd", loss=sum(EVERY_LOSS[1:], start=EVERY_LOSS[0]))
        assert np.isfinite(model.fit(images, masks, verbose=0).history["loss"][0])
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(255, (1.0, 0.5, 3.0), 0.1, name="mine"),
        Dice(255),
        CrossEntropy(255) + 0.5 * Dice(255),
        *EVERY_LOSS,
        BinaryCrossEntropy(255, (1.0, 2.0), 0.1),
    ],
    ids=lambda loss: loss.name,
)
def test_a_compiled_model_reloads_with_its_loss(loss, tmp_path):
    images, masks = coloured_batch()
    binary = isinstance(loss, BinaryCrossEntropy)
    masks = np.where(masks == 2, 0, masks) if binary else masks
    model = pixel_classifier(1 if binary else NUM_CLASSES)
    model.compile("sgd", loss=loss)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == loss.get_config()
    assert again.loss.name == loss.name
    before, after = (to_numpy(m.loss(masks, m(images))) for m in (model, again))
    assert before == after > 0


def test_a_trained_model_reloads_with_what_it_evaluates_to(tmp_path):
    images, masks = coloured_batch()
    model = pixel_classifier()
    model.compile("sgd", loss=CrossEntropy(255) + 0.5 * Dice(255))
    model.fit(images, masks, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    before, after = (m.evaluate(images, masks, verbose=0) for m in (model, again))
    assert before == after


# --- errors

INVALID_ARGUMENTS = [
    (lambda: CrossEntropy(class_weights=(1.0, -1.0)), "class_weights.*-1"),
    (lambda: CrossEntropy(class_weights=(1.0, float("nan"))), "class_weights.*nan"),
    (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing.*1.0"),
    (lambda: BinaryCrossEntropy(label_smoothing=-0.1), "label_smoothing.*-0.1"),
    (lambda: Dice(class_weights=(1.0, -1.0)), "class_weights.*-1"),
    (lambda: Focal(-1.0), "gamma.*-1.0"),
    (lambda: Focal(float("nan")), "gamma.*nan"),
    (lambda: Tversky(alpha=0), "alpha must be finite and above 0; found 0"),
    (lambda: Tversky(beta=float("inf")), "beta.*inf"),
    (lambda: FocalTversky(gamma=0.0), "gamma.*0.0"),
]


@pytest.mark.parametrize("build, message", INVALID_ARGUMENTS)
def test_losses_reject_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", [CrossEntropy, Focal, Dice, Jaccard, Tversky, Lovasz])
def test_losses_reject_class_weights_of_another_length(kind):
    masks, logits = random_batch()
    with pytest.raises(ValueError, match="class_weights has 2 numbers.*3 classes"):
        kind(class_weights=(1.0, 2.0))(masks, logits)


@pytest.mark.parametrize(
    "loss, channels, message",
    [
        (CrossEntropy(), 1, "1 channel.*BinaryCrossEntropy, or .* num_classes=2"),
        (BinaryCrossEntropy(), 2, "1 channel; found 2.*CrossEntropy, or .*num_classes=1"),
        (BinaryCrossEntropy(class_weights=(1, 2, 3)), 1, "has 3 numbers.*2 classes"),
        *(
            (kind(class_weights=(1, 2)), 1, "one class to measure, so class_weights would")
            for kind in (Dice, Jaccard, Tversky, FocalTversky, Lovasz)
        ),
    ],
)
def test_losses_reject_channels_that_are_not_theirs(loss, channels, message):
    masks = np.zeros(SHAPE, "int32")
    with pytest.raises(ValueError, match=message):
        loss(masks, np.zeros((*SHAPE, channels), "float32"))


def test_one_channel_takes_masks_of_0_and_1_only():
    masks, logits = random_batch(num_classes=3)
    for loss in (BinaryCrossEntropy(), Dice(), Lovasz()):
        with pytest.raises(ValueError, match="not in 0..1"):
            loss(masks, logits[..., :1])


@pytest.mark.parametrize("label", [3, 255, -1])
def test_losses_reject_labels_out_of_range(label):
    masks, logits = random_batch()
    masks[1, 2, 3] = label
    for loss in (CrossEntropy(), Dice(), CrossEntropy(ignore_class=0)):
        with pytest.raises(ValueError, match="not in 0..2.*ignore_class"):
            loss(masks, logits)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(class_weights=(1, 2, 3), label_smoothing=0.1),
        Focal(gamma=1.5),
        Dice(class_weights=(1, 2, 3)) + 0.5 * Jaccard(),
        FocalTversky(),
        Lovasz(class_weights=(1, 2, 3)),
    ],
)
def test_losses_of_float64_logits_compute_in_float64(loss):
    masks, logits = random_batch(ignore_class=0)
    direction = np.random.default_rng(1).standard_normal(logits.shape)

    def slope(step):  # in float32 a step of 1e-9 would leave nothing but rounding
        with backend.double_precision():
            moved, there = (
                ops.convert_to_numpy(loss(masks, logits.astype("float64") + factor * direction))
                for factor in (step, -step)
            )
        assert moved.dtype == "float64"
        return (moved - there) / (2 * step)

    assert slope(1e-9) == pytest.approx(slope(1e-6), rel=1e-4)


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
