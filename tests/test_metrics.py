import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
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


@settings(max_examples=25)
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


@settings(max_examples=25)
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


# --- NumPy: precision, recall, confusion


def test_precision_and_recall_are_those_of_sets_of_pixels():
    masks, logits = random_batch(ignore_class=255)
    predicted, valid = logits.argmax(-1), masks != 255
    matrix = metrics.confusion_matrix(masks, predicted, 3, 255)
    for class_id in range(3):
        truth, prediction = (masks == class_id) & valid, (predicted == class_id) & valid
        hits = (truth & prediction).sum()
        assert metrics.precision_per_class(matrix)[class_id] == hits / prediction.sum()
        assert metrics.recall_per_class(matrix)[class_id] == hits / truth.sum()


def test_dice_is_the_harmonic_mean_of_precision_and_recall():
    matrix = np.random.default_rng(0).integers(1, 99, (4, 4))
    precision, recall = metrics.precision_per_class(matrix), metrics.recall_per_class(matrix)
    harmonic = 2 * precision * recall / (precision + recall)
    assert metrics.dice_per_class(matrix) == pytest.approx(harmonic)


def test_precision_and_recall_of_what_is_never_predicted_never_there_or_neither():
    matrix = np.array([[5, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(metrics.precision_per_class(matrix), [5 / 8, 0, 0, np.nan])
    np.testing.assert_array_equal(metrics.recall_per_class(matrix), [5 / 7, 0, 0, np.nan])


@pytest.mark.parametrize("ignore_class", [None, 255, 1])
def test_numpy_confusion_matrix_is_that_of_the_metric(ignore_class):
    masks, logits = random_batch(ignore_class=ignore_class)
    metric = ConfusionMatrix(3, ignore_class)
    metric.update_state(masks, logits)
    matrix = metrics.confusion_matrix(masks, metrics.class_ids(logits), 3, ignore_class)
    assert matrix.dtype == np.int64 and np.array_equal(matrix, metric.matrix())


@pytest.mark.parametrize(
    "masks, predicted, message",
    [
        ([[0, 1]], [0, 1], r"\(1, 2\) and \(2,\)"),
        ([0, 3], [0, 1], r"masks hold the id 3, which is not in 0\.\.2 nor ignore_class \(255\)"),
        ([0, 1], [0, 255], r"predictions hold the id 255, which is not in 0\.\.2\."),
        ([0.0, 1.0], [0, 1], "masks must be integers, class ids; found float64"),
    ],
)
def test_counts_reject_wrong_ids(masks, predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(masks, predicted, 3, 255)
    with pytest.raises(ValueError):
        metrics.boundary_counts([masks], [predicted], 3, 255)


def test_class_ids_and_probabilities_of_one_channel_are_those_of_two():
    one = np.array([-90.0, -1.5, 0.0, 2.0, 90.0])[:, None]
    two = np.concatenate([np.zeros_like(one), one], axis=1)
    np.testing.assert_array_equal(metrics.class_ids(one), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(metrics.class_ids(two), [0, 0, 0, 1, 1])
    shares = metrics.probabilities(one)
    assert shares.dtype == np.float32 and shares.shape == (5, 2)
    np.testing.assert_array_equal(shares, metrics.probabilities(two))
    np.testing.assert_allclose(shares[:, 1], 1 / (1 + np.exp(-one[:, 0])), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)


def test_probabilities_are_the_softmax_also_of_large_logits():
    logits = np.random.default_rng(0).normal(0, 5, (3, 4, 5))
    expected = scipy.special.softmax(logits, axis=-1)
    np.testing.assert_allclose(metrics.probabilities(logits), expected, rtol=1e-4)
    np.testing.assert_allclose(metrics.probabilities(logits + 1e4), expected, rtol=0.02)


# --- boundaries


def boundary_pixels(labels, void):
    """For each pixel by itself: has it a neighbor of another class, neither of them void?"""
    found = set()
    height, width = labels.shape
    for i, j in np.ndindex(labels.shape):
        for row, column in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            inside = 0 <= row < height and 0 <= column < width
            valid = inside and not void[i, j] and not void[row, column]
            if valid and labels[i, j] != labels[row, column]:
                found.add((i, j))
    return found


def counts_by_brute_force(truth, predicted, num_classes, ignore_class, reach):
    """Boundary counts from the distances of all pairs of pixels."""
    void = np.zeros(truth.shape, bool) if ignore_class is None else truth == ignore_class
    void_pixels = list(zip(*np.nonzero(void), strict=True))

    def near(pixel, others):
        return any((pixel[0] - i) ** 2 + (pixel[1] - j) ** 2 <= reach for i, j in others)

    counts = np.zeros((num_classes, 4), "int64")
    true_edges, predicted_edges = boundary_pixels(truth, void), boundary_pixels(predicted, void)
    for class_id in range(num_classes):
        one = [pixel for pixel in true_edges if truth[pixel] == class_id]
        other = [pixel for pixel in predicted_edges if predicted[pixel] == class_id]
        for column, (pixels, others) in enumerate(((one, other), (other, one))):
            counted = [pixel for pixel in pixels if not near(pixel, void_pixels)]
            counts[class_id, 2 * column] = len(counted)
            counts[class_id, 2 * column + 1] = sum(near(pixel, others) for pixel in counted)
    return counts


def patches(generator, shape, num_classes):
    """Class ids in patches of several pixels, so that there are boundaries and insides."""
    small = generator.integers(0, num_classes, (shape[0] // 3 + 1, shape[1] // 3 + 1))
    return np.kron(small, np.ones((3, 3), int))[: shape[0], : shape[1]]


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.sampled_from([0.0075, 0.1, 0.15, 0.3]),
    st.sampled_from([None, 255, 1]),
)
def test_boundary_counts_are_those_of_brute_force(seed, shape, tolerance, ignore_class):
    generator = np.random.default_rng(seed)
    truth, predicted = patches(generator, shape, 3), patches(generator, shape, 3)
    if ignore_class == 255:
        truth[generator.random(shape) < 0.03] = 255
    reach = max(1.0, tolerance**2 * (shape[0] ** 2 + shape[1] ** 2))
    expected = counts_by_brute_force(truth, predicted, 3, ignore_class, reach)
    found = metrics.boundary_counts(truth, predicted, 3, ignore_class, tolerance)
    np.testing.assert_array_equal(found, expected)


def test_boundaries_of_larger_images_are_those_of_scipys_distances():
    generator = np.random.default_rng(0)
    truth = (scipy.ndimage.gaussian_filter(generator.normal(size=(240, 320)), 12) > 0).astype(int)
    predicted = np.roll(truth, (2, 3), (0, 1))
    counts = metrics.boundary_counts(truth, predicted, 2)
    for class_id in range(2):
        edges = []
        for labels in (truth, predicted):
            inner = scipy.ndimage.binary_erosion(labels == class_id, border_value=1)
            edges.append((labels == class_id) & ~inner)
        for column, (one, other) in enumerate((edges, edges[::-1])):
            distance = scipy.ndimage.distance_transform_edt(~other)
            assert counts[class_id, 2 * column] == one.sum()
            near = one & (distance <= 3)  # 0.75 % of the diagonal, 400
            assert counts[class_id, 2 * column + 1] == near.sum()


def test_boundary_score_of_a_shift_is_that_of_its_pixels():
    columns = np.arange(40) + np.zeros((40, 1), int)
    for shift, expected in ((0, 1.0), (1, 1.0), (2, 0.0)):  # at least one pixel is allowed
        truth, predicted = (columns >= 20).astype(int), (columns >= 20 + shift).astype(int)
        counts = metrics.boundary_counts(truth, predicted, 2)
        np.testing.assert_array_equal(metrics.boundary_f_score(counts), [expected, expected])


def test_boundary_score_adds_up_images_and_follows_precision_and_recall():
    counts = np.array([[8, 2, 10, 5], [2, 1, 0, 0]]) + np.array([[2, 2, 0, 0], [0, 0, 0, 0]])
    precision, recall = 5 / 10, 4 / 10
    expected = 2 * precision * recall / (precision + recall)
    assert metrics.boundary_f_score(counts).tolist() == [pytest.approx(expected), 0]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_what_is_predicted_in_void_changes_no_boundary_and_no_calibration(seed):
    generator = np.random.default_rng(seed)
    truth, predicted = patches(generator, (12, 15), 3), patches(generator, (12, 15), 3)
    truth[3:5, 2:9] = 255
    other = np.where(truth == 255, generator.integers(0, 3, truth.shape), predicted)
    np.testing.assert_array_equal(
        metrics.boundary_counts(truth, predicted, 3, 255),
        metrics.boundary_counts(truth, other, 3, 255),
    )
    np.testing.assert_array_equal(
        metrics.calibration_bins(truth, metrics.probabilities(as_logits(predicted, 3)), 255),
        metrics.calibration_bins(truth, metrics.probabilities(as_logits(other, 3)), 255),
    )


def test_boundaries_against_void_do_not_count():
    truth = np.zeros((9, 30), int)
    truth[:, 12:18] = 255
    truth[:, 18:] = 1
    inside = np.where(np.arange(30) < 15, 0, 1) + np.zeros_like(truth)  # the edge lies in void
    beside = np.where(np.arange(30) < 18, 0, 1) + np.zeros_like(truth)  # on its border
    for predicted in (inside, beside):
        assert not metrics.boundary_counts(truth, predicted, 2, 255).any()
    far = np.where(np.arange(30) < 6, 0, 1) + np.zeros_like(truth)
    counts = metrics.boundary_counts(truth, far, 2, 255)
    assert counts.tolist() == [[0, 0, 9, 0], [0, 0, 9, 0]]
    assert np.isnan(metrics.boundary_f_score(counts)).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.boundary_counts(*np.zeros((2, 2, 3, 4), int), 2), r"found \(2, 3, 4\)"),
        (lambda: metrics.boundary_f_score(np.zeros((3, 3))), r"\(3, 3\)"),
        (lambda: metrics.calibration_bins([0], [[3.0, 1.0]]), "metrics.probabilities"),
        (lambda: metrics.calibration_bins([0], [[np.nan, 1.0]]), "found nan"),
    ],
)
def test_counts_of_the_wrong_things_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- calibration


def test_calibration_error_is_that_of_the_paper():
    """Equation 3 of Guo et al. 2017, bin by bin, pixel by pixel."""
    generator = np.random.default_rng(0)
    shares = generator.dirichlet([0.5] * 4, (3, 20, 20))
    masks = generator.integers(0, 4, (3, 20, 20))
    confidence, right = shares.max(-1).ravel(), (shares.argmax(-1) == masks).ravel()
    error = 0
    for m in range(1, 16):
        members = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if members.any():
            gap = abs(right[members].mean() - confidence[members].mean())
            error += members.sum() / len(confidence) * gap
    bins = metrics.calibration_bins(masks, shares)
    assert bins[:, 0].sum() == 1200 and bins[:, 1].sum() == right.sum()
    assert metrics.expected_calibration_error(bins) == pytest.approx(error, abs=1e-6)


def test_calibration_does_not_depend_on_how_batches_were_cut():
    generator = np.random.default_rng(1)
    shares = metrics.probabilities(generator.normal(0, 3, (8, 5, 7, 3)))
    masks = generator.integers(0, 3, (8, 5, 7))
    masks[:, 0] = 255
    whole = metrics.calibration_bins(masks, shares, 255)
    for size in (1, 3, 5):
        parts = [np.s_[start : start + size] for start in range(0, 8, size)]
        total = sum(metrics.calibration_bins(masks[p], shares[p], 255) for p in parts)
        np.testing.assert_array_equal(total, whole)
    assert whole[:, 0].sum() == 8 * 4 * 7


def test_calibration_error_of_the_sure_and_of_nothing():
    sure = np.array([[1.0, 0.0]] * 4)
    assert metrics.expected_calibration_error(metrics.calibration_bins([0] * 4, sure)) == 0
    assert metrics.expected_calibration_error(metrics.calibration_bins([1] * 4, sure)) == 1
    nothing = metrics.calibration_bins([255], sure[:1], ignore_class=255)
    assert metrics.expected_calibration_error(nothing) == 0
