"""Boxes: each function against a loop in NumPy, box by box."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_segen.segmentation import boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def to_numpy(tensor):
    return ops.convert_to_numpy(tensor)


def random_boxes(generator, shape, extent=64, grid=None):
    """Corners of boxes; on a grid many of them are equal and IoUs are simple fractions."""
    corners, sides = (
        generator.uniform(0, extent * 0.8, (*shape, 2)),
        4 + generator.random((*shape, 2)) * (extent / 2),
    )
    if grid:
        corners, sides = corners // grid * grid, sides // grid * grid
    return np.concatenate([corners, corners + sides], -1).astype("float32")


def one_iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def test_iou_is_that_of_each_pair():
    generator = np.random.default_rng(0)
    first, second = random_boxes(generator, (2, 5)), random_boxes(generator, (2, 7))
    first[0, 0], second[0, 0] = 3, 3  # both empty
    expected = [[[one_iou(a, b) for b in y] for a in x] for x, y in zip(first, second, strict=True)]
    found = to_numpy(boxes.iou(*map(ops.convert_to_tensor, (first, second))))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found > 0).sum() > 10


def test_anchors_lie_around_their_pixels():
    fine, coarse = boxes.anchors((20, 30), (8, 16), (10, 24), (0.5, 2.0))
    assert fine.shape == (3 * 4 * 2, 4) and coarse.shape == (2 * 2 * 2, 4)
    for levels, stride, size, columns in ((fine, 8, 10, 4), (coarse, 16, 24, 2)):
        centers = (levels[:, :2] + levels[:, 2:]) / 2
        index = np.arange(len(levels)) // 2
        expected = (np.stack([index % columns, index // columns], -1) + 0.5) * stride
        np.testing.assert_allclose(centers, expected, atol=1e-5)
        width, height = (levels[:, 2:] - levels[:, :2]).T
        np.testing.assert_allclose(width * height, size**2, rtol=1e-5)
        np.testing.assert_allclose(height / width, np.tile((0.5, 2.0), len(levels) // 2), rtol=1e-5)


def test_decode_undoes_encode_and_cuts_at_the_border():
    generator = np.random.default_rng(0)
    box, reference = random_boxes(generator, (50,)), random_boxes(generator, (50,))
    deltas = boxes.encode(*map(ops.convert_to_tensor, (box, reference)), WEIGHTS)
    x1, y1, x2, y2 = reference.T
    np.testing.assert_allclose(
        to_numpy(deltas)[:, 0], 10 * (box[:, 0] + box[:, 2] - x1 - x2) / 2 / (x2 - x1), rtol=1e-4
    )
    np.testing.assert_allclose(
        to_numpy(deltas)[:, 3], 5 * np.log((box[:, 3] - box[:, 1]) / (y2 - y1)), atol=1e-5
    )
    for size in ((200, 200), (40, 60)):
        found = boxes.decode(deltas, ops.convert_to_tensor(reference), WEIGHTS, size)
        expected = np.minimum(box, [size[1], size[0]] * 2)
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-3)


def test_coding_stays_finite():
    nothing, box = np.zeros((1, 4), "float32"), np.float32([[1, 1, 9, 9]])
    for pair in ((nothing, box), (box, nothing), (nothing, nothing)):
        found = to_numpy(boxes.encode(*map(ops.convert_to_tensor, pair), WEIGHTS))
        assert np.isfinite(found).all()
    far = ops.convert_to_tensor(np.full((1, 4), 1e4, "float32"))
    found = to_numpy(boxes.decode(far, ops.convert_to_tensor(box), WEIGHTS, (32, 32)))
    assert np.isfinite(found).all() and found.max() <= 32


def greedy(box, scores, threshold, groups, num_before, num_after):
    """Non-maximum suppression of one image, box after box."""
    order, kept = np.argsort(-scores, kind="stable")[:num_before], []
    for i in order[scores[order] > -np.inf]:
        x1, y1, x2, y2 = box[kept].reshape(-1, 4).T
        width = (np.minimum(x2, box[i, 2]) - np.maximum(x1, box[i, 0])).clip(0)
        height = (np.minimum(y2, box[i, 3]) - np.maximum(y1, box[i, 1])).clip(0)
        area = (box[i, 2] - box[i, 0]) * (box[i, 3] - box[i, 1])
        union = (x2 - x1) * (y2 - y1) + area - width * height
        near = width * height > np.float32(threshold) * union
        if not (near & (groups[kept] == groups[i])).any():
            kept.append(int(i))
    return kept[:num_after]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([1, 7, 30]),
    num_groups=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    ties=st.booleans(),
    num_before=st.sampled_from([5, 100]),
    num_after=st.sampled_from([3, 100]),
)
def test_nms_keeps_what_the_loop_keeps(
    seed, count, num_groups, threshold, ties, num_before, num_after
):
    generator = np.random.default_rng(seed)
    box = random_boxes(generator, (2, count), grid=8 if ties else None)
    scores = generator.standard_normal((2, count)).astype("float32")
    if ties:
        scores = scores.round()
    scores[generator.random((2, count)) < 0.2] = -np.inf
    groups = generator.integers(0, num_groups, (2, count)).astype("int32")
    tensors = [ops.convert_to_tensor(x) for x in (box, scores, groups)]
    given_groups = tensors[2] if num_groups > 1 else None
    index, found = (
        to_numpy(x) for x in boxes.nms(*tensors[:2], threshold, num_before, num_after, given_groups)
    )
    for i in range(2):
        expected = greedy(box[i], scores[i], threshold, groups[i], num_before, num_after)
        assert index[i][found[i]].tolist() == expected


def test_nms_of_many_boxes_is_exact():
    generator = np.random.default_rng(0)
    box, scores = random_boxes(generator, (2, 600)), generator.standard_normal((2, 600))
    scores, groups = scores.astype("float32"), np.zeros((2, 600), "int32")
    index, found = boxes.nms(*map(ops.convert_to_tensor, (box, scores)), 0.5, 500, 100)
    different = 0
    for i in range(2):
        expected = greedy(box[i], scores[i], 0.5, groups[i], 500, 100)
        mine = to_numpy(index)[i][to_numpy(found)[i]].tolist()
        assert 50 < len(expected) <= 100
        different += sum(a != b for a, b in zip(mine, expected, strict=True))
    print(f"NMS of 2 x 500 boxes: {different} indices differ from the greedy loop's")
    assert different == 0


def test_nms_goes_through_a_chain_as_long_as_the_boxes():
    # Each box overlaps its neighbors only: every other one stays.
    starts = np.arange(12, dtype="float32") * 2
    box = np.stack([starts, 0 * starts, starts + 4, 0 * starts + 4], -1)[None]
    scores = np.arange(12, 0, -1, dtype="float32")[None]
    index, found = boxes.nms(*map(ops.convert_to_tensor, (box, scores)), 0.3, 12, 12)
    assert to_numpy(index)[to_numpy(found)].tolist() == [0, 2, 4, 6, 8, 10]


def test_highest_takes_the_first_of_equal_values():
    values = np.float32([[1, 3, 3, 2, 3, 1] * 20])
    found, index = map(to_numpy, boxes.highest(ops.convert_to_tensor(values), 90))
    expected = np.argsort(-values, kind="stable")[:, :90]
    assert index.dtype == "int32" and np.array_equal(index, expected)
    assert np.array_equal(found, np.take_along_axis(values, expected, 1))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 20),
    most=st.integers(0, 20),
    share=st.floats(0, 1),
)
def test_sample_draws_the_first_kind_then_fills_up(seed, count, most, share):
    generator = np.random.default_rng(seed)
    most = min(most, count)
    kind = generator.random((3, 20))
    first, second = kind < share / 2, kind > 0.5
    noise = generator.uniform(0.01, 0.99, (3, 20)).astype("float32")
    drawn = boxes.sample(*map(ops.convert_to_tensor, (first, second, noise)), count, most)
    for i, (index, of_first, found) in enumerate(zip(*map(to_numpy, drawn), strict=True)):
        by_lot = np.argsort(-noise[i])
        expected = [j for j in by_lot if first[i, j]][:most]
        num_first = len(expected)
        expected = (expected + [j for j in by_lot if second[i, j]])[:count]
        assert index[found].tolist() == expected
        assert of_first.tolist() == [slot < num_first for slot in range(count)]
        assert found.tolist() == [slot < len(expected) for slot in range(count)]


def random_planes(generator, height=18, width=23):
    """Squares of classes 1 to 3, numbers 1 to 6, some hidden, and void."""
    planes = np.zeros((2, height, width), "int32")
    for plane in planes:
        for number in generator.permutation(6)[: generator.integers(1, 7)] + 1:
            y, x = generator.integers(0, height - 3), generator.integers(0, width - 3)
            end_y, end_x = (start + generator.integers(1, 9) for start in (y, x))
            plane[y:end_y, x:end_x] = 256 * generator.integers(1, 4) + number
        plane[:2, :3] = boxes.VOID
    return planes


@pytest.mark.parametrize("seed", range(4))
def test_instances_have_the_boxes_of_their_pixels(seed):
    planes = random_planes(np.random.default_rng(seed))
    found, classes = map(to_numpy, boxes.instances(ops.convert_to_tensor(planes), 5))
    assert found.dtype == "float32" and classes.dtype == "int32"
    for i in range(2):
        for slot in range(5):
            rows, columns = np.nonzero((planes[i] % 256 == slot + 1) & (planes[i] > 255))
            if rows.size == 0:
                assert classes[i, slot] == 0 and not found[i, slot].any()
                continue
            expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert found[i, slot].tolist() == list(expected)
            assert classes[i, slot] == planes[i, rows[0], columns[0]] // 256
    assert classes.any()


def test_share_of_counts_pixels():
    generator = np.random.default_rng(0)
    pixels = generator.random((2, 11, 17)) < 0.3
    box = random_boxes(generator, (2, 30), extent=16).round() - 3
    box[0, 0] = 5
    for some in (box, box[:1]):
        sums = boxes.sums_above(ops.convert_to_tensor(pixels))
        found = to_numpy(boxes.share_of(sums, ops.convert_to_tensor(some)))
        for i in range(2):
            for n, (x1, y1, x2, y2) in enumerate(some[i % len(some)].clip(0).astype(int)):
                inside = pixels[i, y1:y2, x1:x2]
                expected = inside.mean() if inside.size else 0
                assert found[i, n] == pytest.approx(expected, abs=1e-6)


def test_paste_interpolates_between_the_pixels_of_the_mask():
    generator = np.random.default_rng(0)
    masks, box = generator.random((6, 7, 7)), random_boxes(generator, (6,), extent=24) - 3
    found = boxes.paste(masks, box, (20, 30))
    assert found.shape == (6, 20, 30) and found.dtype == bool
    for mask, (x1, y1, x2, y2), image in zip(masks, box, found, strict=True):
        padded = np.pad(mask, 1)
        for row, column in np.ndindex(20, 30):
            y = (row + 0.5 - y1) / (y2 - y1) * 7 + 0.5
            x = (column + 0.5 - x1) / (x2 - x1) * 7 + 0.5
            value = 0.0
            if 0 <= y < 8 and 0 <= x < 8:
                i, j = int(y), int(x)
                corners = padded[i : i + 2, j : j + 2]
                value = [1 - y + i, y - i] @ corners @ [1 - x + j, x - j]
            if abs(value - 0.5) > 1e-4:
                assert image[row, column] == (value >= 0.5)


def test_paste_of_a_full_mask_fills_its_box():
    box = np.array([[2, 3, 9, 7], [0, 0, 1, 1], [5, 5, 5, 5]])
    found = boxes.paste(np.ones((3, 28, 28)), box, (10, 12))
    for mask, (x1, y1, x2, y2) in zip(found, box, strict=True):
        expected = np.zeros((10, 12), bool)
        expected[y1:y2, x1:x2] = True
        assert np.array_equal(mask, expected)
    assert boxes.paste(np.ones((0, 28, 28)), np.ones((0, 4)), (10, 12)).shape == (0, 10, 12)
