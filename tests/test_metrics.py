import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_segen import metrics
from keras_segen.losses import CrossEntropy
from keras_segen.metrics import ClassIoU, ConfusionMatrix, MeanDice, MeanIoU, PixelAccuracy

METRICS = [MeanIoU, MeanDice, PixelAccuracy]


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor))


def random_batch(seed=0, ignore_class=None, shape=(4, 5, 6), num_classes=3):
    generator = np.random.default_rng(seed)
    masks = generator.integers(0, num_classes, shape).astype("int32")
    logits = generator.standard_normal((*shape, num_classes)).astype("float32")
    logits += 2 * np.eye(num_classes, dtype="float32")[masks]
    if ignore_class is not None:
        masks[generator.random(shape) < 0.3] = ignore_class
    return masks, logits


def count(masks, predicted, num_classes=3, ignore_class=None, weights=1):
    """A confusion matrix, pixel by pixel."""
    matrix = np.zeros((num_classes, num_classes))
    weights = np.broadcast_to(weights, masks.shape)
    for pixel in np.ndindex(masks.shape):
        if masks[pixel] != ignore_class:
            matrix[masks[pixel], predicted[pixel]] += weights[pixel]
    return matrix


def scores(masks, predicted, num_classes=3, ignore_class=None):
    """Mean IoU, mean Dice and accuracy by sets of pixels."""
    valid = masks != ignore_class
    ious, dices = [], []
    for class_id in range(num_classes):
        truth, prediction = (masks == class_id) & valid, (predicted == class_id) & valid
        union = (truth | prediction).sum()
        if union > 0:
            hits = (truth & prediction).sum()
            ious.append(hits / union)
            dices.append(2 * hits / (truth.sum() + prediction.sum()))
    return np.mean(ious), np.mean(dices), (masks == predicted)[valid].mean()


def as_logits(predicted, num_classes):
    return np.eye(num_classes, dtype="float32")[np.array(predicted)]


TABLE = [
    # truth, prediction (3 classes, 255 ignored), mean IoU, mean Dice, accuracy, IoU of class 1
    ([0, 1, 2], [0, 1, 2], 1, 1, 1, 1),
    ([0, 0, 1, 1], [0, 1, 1, 1], (1 / 2 + 2 / 3) / 2, (2 / 3 + 4 / 5) / 2, 3 / 4, 2 / 3),
    ([0, 0], [1, 1], 0, 0, 0, 0),
    ([0, 0], [0, 0], 1, 1, 1, 0),
    ([0, 255, 255], [0, 1, 2], 1, 1, 1, 0),
    ([0, 0, 0, 1], [0, 0, 0, 2], 1 / 3, 1 / 3, 3 / 4, 0),
    ([255, 255], [0, 1], 0, 0, 0, 0),
]


@pytest.mark.parametrize("truth, predicted, iou, dice, accuracy, class_iou", TABLE)
def test_metrics_table(truth, predicted, iou, dice, accuracy, class_iou):
    masks, logits = np.array([[truth]]), as_logits([[predicted]], 3)
    expected = {MeanIoU: iou, MeanDice: dice, PixelAccuracy: accuracy}
    for kind, value in expected.items():
        metric = kind(3, ignore_class=255)
        metric.update_state(masks, logits)
        assert float(metric.result()) == pytest.approx(value, abs=1e-7)
    metric = ClassIoU(3, class_id=1, ignore_class=255)
    metric.update_state(masks, logits)
    assert float(metric.result()) == pytest.approx(class_iou, abs=1e-7)


@pytest.mark.parametrize("truth, predicted, iou, dice, accuracy, class_iou", TABLE)
def test_functions_on_a_matrix_table(truth, predicted, iou, dice, accuracy, class_iou):
    matrix = count(np.array(truth), np.array(predicted), ignore_class=255)
    assert metrics.mean_iou(matrix) == pytest.approx(iou)
    assert metrics.mean_dice(matrix) == pytest.approx(dice)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(accuracy)
    found = metrics.iou_per_class(matrix)
    assert found.dtype == np.float64
    occurs = np.isin([0, 1, 2], [*np.array(truth), *np.array(predicted)[np.array(truth) != 255]])
    assert np.array_equal(~np.isnan(found), occurs)
    assert np.array_equal(~np.isnan(metrics.dice_per_class(matrix)), occurs)
    assert np.nan_to_num(found)[1] == pytest.approx(class_iou)


@pytest.mark.parametrize("ignore_class", [None, 255, 1])
def test_metrics_are_those_of_sets_of_pixels(ignore_class):
    masks, logits = random_batch(ignore_class=ignore_class)
    predicted = logits.argmax(-1)
    expected = scores(masks, predicted, ignore_class=ignore_class)
    for kind, value in zip(METRICS, expected, strict=True):
        metric = kind(3, ignore_class=ignore_class)
        metric.update_state(masks, logits)
        assert float(metric.result()) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("ignore_class", [None, 255, 1])
def test_confusion_matrix_counts_pixels(ignore_class):
    masks, logits = random_batch(ignore_class=ignore_class)
    metric = ConfusionMatrix(3, ignore_class)
    metric.update_state(masks, logits)
    metric.update_state(masks[:1, ..., None], logits[:1])
    predicted = logits.argmax(-1)
    expected = count(masks, predicted, ignore_class=ignore_class)
    expected += count(masks[:1], predicted[:1], ignore_class=ignore_class)
    assert np.array_equal(metric.matrix(), expected)
    assert np.array_equal(to_numpy(metric.result()), expected)
    metric.reset_state()
    assert not metric.matrix().any()


def test_functions_give_the_numbers_of_the_metrics():
    masks, logits = random_batch(ignore_class=255)
    functions = [metrics.mean_iou, metrics.mean_dice, metrics.pixel_accuracy]
    for kind, function in zip(METRICS, functions, strict=True):
        metric = kind(3, ignore_class=255)
        metric.update_state(masks, logits)
        assert float(metric.result()) == pytest.approx(function(metric.matrix()), rel=1e-6)


# --- sample weights


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5, 6), (4, 5, 6, 1)])
def test_confusion_matrix_takes_sample_weights(shape):
    masks, logits = random_batch(ignore_class=255)
    weights = np.random.default_rng(1).random(shape).astype("float32")
    of_pixels = weights.reshape(4, 1, 1) if len(shape) < 3 else weights.reshape(masks.shape)
    metric = ConfusionMatrix(3, 255)
    metric.update_state(masks, logits, weights)
    rounded = np.round(of_pixels.astype("float64") * 65536) / 65536
    expected = count(masks, logits.argmax(-1), ignore_class=255, weights=rounded)
    assert np.array_equal(metric.matrix(), expected)


def test_weights_of_one_and_no_weights_count_the_same():
    masks, logits = random_batch()
    weighted, plain = ConfusionMatrix(3), ConfusionMatrix(3)
    weighted.update_state(masks, logits, np.ones(4, "float32"))
    plain.update_state(masks, logits)
    assert np.array_equal(weighted.matrix(), plain.matrix())


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_confusion_matrix_rejects_negative_weights(weight):
    masks, logits = random_batch()
    with pytest.raises(ValueError, match="sample_weight holds a negative number or NaN"):
        ConfusionMatrix(3).update_state(masks, logits, np.array([1, 1, weight, 1], "float32"))


# --- properties


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-80, 80), st.booleans())
def test_changing_ignored_pixels_changes_no_metric(seed, value, weighted):
    masks, logits = random_batch(seed, ignore_class=255)
    changed = logits.copy()
    changed[masks == 255, 0] = value
    weights = np.linspace(0.1, 3, masks.size, dtype="float32").reshape(masks.shape)
    for kind in METRICS:
        before, after = kind(3, ignore_class=255), kind(3, ignore_class=255)
        before.update_state(masks, logits, weights if weighted else None)
        after.update_state(masks, changed, weights if weighted else None)
        assert float(before.result()) == float(after.result())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 7), max_size=6), st.booleans())
def test_metrics_do_not_depend_on_how_batches_were_cut(seed, cuts, weighted):
    masks, logits = random_batch(seed, ignore_class=255, shape=(8, 3, 4))
    weights = np.random.default_rng(seed).random(masks.shape).astype("float32")
    for kind in METRICS:
        whole, parts = kind(3, ignore_class=255), kind(3, ignore_class=255)
        whole.update_state(masks, logits, weights if weighted else None)
        for part in np.split(np.arange(8), sorted(set(cuts))):
            part_weights = weights[part] if weighted else None
            parts.update_state(masks[part], logits[part], part_weights)
        assert np.array_equal(whole.matrix(), parts.matrix())
        assert float(whole.result()) == float(parts.result())


# --- large counts


def test_counts_are_exact_beyond_two_to_the_24th():
    metric = PixelAccuracy(2)
    metric.counts.assign(np.array([[2**24 + 1, 0], [3, 2**45]]) * 65536)
    metric.update_state(np.array([[[0, 1]]]), as_logits([[[0, 0]]], 2))
    assert metric.matrix().tolist() == [[2**24 + 2, 0], [4, 2**45]]


def test_one_batch_may_hold_more_pixels_than_float32_can_count():
    masks = np.zeros((1, 2**12 + 1, 2**12 + 1), "uint8")  # an odd number above 2**24
    logits = np.zeros((*masks.shape, 2), "float16")
    metric = ConfusionMatrix(2)
    metric.update_state(masks, logits)
    assert metric.matrix()[0, 0] == 2**24 + 2**13 + 1


def test_mean_iou_is_right_for_large_counts():
    metric = MeanIoU(2)
    metric.counts.assign(np.array([[3, 1], [0, 4]]) * 65536 * 10**9)
    assert float(metric.result()) == pytest.approx((3 / 4 + 4 / 5) / 2, rel=1e-6)


# --- inside compile


def pixel_model(dtype=None):
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Activation("linear", dtype=dtype)(inputs)
    return keras.Model(inputs, outputs)


def test_metrics_work_inside_compile():
    masks, logits = random_batch(ignore_class=255)
    model = pixel_model()
    compiled = [kind(3, ignore_class=255) for kind in METRICS]
    compiled += [ClassIoU(3, class_id, ignore_class=255) for class_id in (0, 2)]
    model.compile(loss=CrossEntropy(255), metrics=compiled)
    found = model.evaluate(logits, masks, batch_size=3, verbose=0, return_dict=True)
    matrix = count(masks, logits.argmax(-1), ignore_class=255)
    expected = dict(
        zip(
            ("mean_iou", "mean_dice", "pixel_accuracy"),
            scores(masks, logits.argmax(-1), ignore_class=255),
            strict=True,
        )
    )
    expected["iou_class_0"], _, expected["iou_class_2"] = metrics.iou_per_class(matrix)
    del found["loss"]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 5, 6)])
def test_weighted_metrics_get_the_sample_weights(shape):
    masks, logits = random_batch(ignore_class=255)
    weights = np.random.default_rng(1).random(shape).astype("float32")
    model = pixel_model()
    model.compile(
        loss=CrossEntropy(255),
        metrics=[PixelAccuracy(3, 255, name="plain")],
        weighted_metrics=[PixelAccuracy(3, 255, name="weighted")],
    )
    found = model.evaluate(
        logits, masks, sample_weight=weights, batch_size=3, verbose=0, return_dict=True
    )
    of_pixels = weights.reshape(4, 1, 1) if len(shape) == 1 else weights
    of_pixels = np.broadcast_to(of_pixels, masks.shape)[masks != 255]
    right = (masks == logits.argmax(-1))[masks != 255]
    assert found["plain"] == pytest.approx(right.mean(), rel=1e-6)
    assert found["weighted"] == pytest.approx((right * of_pixels).sum() / of_pixels.sum(), rel=1e-4)


def test_metrics_work_under_mixed_precision():
    masks, logits = random_batch()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = pixel_model("float16")
        metric = MeanIoU(3)
        model.compile(loss=CrossEntropy(), metrics=[metric], optimizer="sgd")
        found = model.evaluate(logits, masks, verbose=0, return_dict=True)["mean_iou"]
        assert keras.backend.standardize_dtype(metric.result().dtype) == "float32"
    finally:
        keras.config.set_dtype_policy("float32")
    assert found == pytest.approx(scores(masks, logits.astype("float16").argmax(-1))[0], rel=1e-6)


def test_a_compiled_model_reloads_with_its_metrics(tmp_path):
    masks, logits = random_batch(ignore_class=255)
    model = pixel_model()
    compiled = [kind(3, ignore_class=255) for kind in METRICS] + [ClassIoU(3, 2, 255, name="two")]
    model.compile(loss=CrossEntropy(255), metrics=compiled)
    before = model.evaluate(logits, masks, verbose=0, return_dict=True)
    assert len(before) == 5
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_compile_config() == model.get_compile_config()
    assert again.evaluate(logits, masks, verbose=0, return_dict=True) == before


# --- errors


@pytest.mark.parametrize("label", [3, 255, -1])
def test_metrics_reject_labels_out_of_range(label):
    masks, logits = random_batch()
    masks[1, 2, 3] = label
    for kind in METRICS:
        metric = kind(3)
        with pytest.raises(ValueError, match="not in 0..2.*ignore_class"):
            metric.update_state(masks, logits)
        assert not metric.matrix().any()


def test_evaluate_stops_at_a_label_out_of_range():
    masks, logits = random_batch(ignore_class=255)
    model = pixel_model()
    model.compile(loss=CrossEntropy(255), metrics=[MeanIoU(3)])
    # ValueError, or in a compiled TensorFlow graph its InvalidArgumentError
    with pytest.raises(Exception, match="label that is not in 0..2"):
        model.evaluate(logits, masks, verbose=0)


def test_metrics_reject_another_number_of_channels():
    masks, logits = random_batch()
    with pytest.raises(ValueError, match="num_classes=4.*3 channels"):
        MeanIoU(4).update_state(masks, logits)
    with pytest.raises(ValueError, match="num_classes=3.*1 channels"):
        MeanIoU(3).update_state(masks, logits[..., :1])


def test_one_channel_is_the_logit_of_class_1():
    masks, logits = random_batch(ignore_class=255, num_classes=2)
    one = logits[..., 1:] - logits[..., :1]
    for metric in METRICS:
        expected, found = metric(2, ignore_class=255), metric(2, ignore_class=255)
        expected.update_state(masks, logits)
        found.update_state(masks, one)
        np.testing.assert_array_equal(found.matrix(), expected.matrix())
    assert found.matrix().min() > 0


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: MeanIoU(1), "num_classes.*1"),
        (lambda: ClassIoU(3, class_id=3), r"class_id.*0\.\.2.*3"),
        (lambda: ClassIoU(3, class_id=-1), "class_id.*-1"),
        (lambda: metrics.iou_per_class(np.zeros((2, 3))), r"\(2, 3\)"),
        (lambda: metrics.pixel_accuracy(np.zeros(4)), r"\(4,\)"),
    ],
)
def test_metrics_reject_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
