"""Mask R-CNN: its losses against NumPy, the same numbers on every backend, learning."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.ndimage
from keras import layers, ops

import keras_segen as ks
from keras_segen import backend
from keras_segen.segmentation import boxes as box
from keras_segen.segmentation.average_precision import AveragePrecision
from keras_segen.segmentation.fpn import fpn
from keras_segen.segmentation.mask_rcnn import SMALL, MaskRCNN, Stages, mask_rcnn, small_encoder

TINY = dataclasses.replace(
    SMALL,
    strides=(4, 8),
    anchor_sizes=(12, 24, 48),
    pyramid_filters=8,
    proposals=(24, 16),
    boxes_sampled=16,
    box_units=32,
    mask_filters=(16,),
    detections=6,
)
LOSSES = ["rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss"]


def to_numpy(variable):
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def encoder(*channels, kernel_size=3):
    """Features at strides 2, 4, 8, …."""
    x = images = keras.Input((None, None, 3))
    features = []
    for i, filters in enumerate(channels):
        x = layers.Conv2D(filters, kernel_size, 2, padding="same", use_bias=False, name=f"conv{i}")(
            x
        )
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
        features.append(x)
    return keras.Model(images, features, name="encoder")


def scenes(count=4, height=40, width=56):
    """Bright discs and boxes on noise: images and planes, two or three objects in each."""
    generator = np.random.default_rng(0)
    images = generator.random((count, height, width, 3), dtype="float32") * 0.3
    planes = np.zeros((count, height, width), "int32")
    y, x = np.mgrid[:height, :width] + 0.5
    for image, plane in zip(images, planes, strict=True):
        for number in range(1, generator.integers(3, 5)):
            k, radius = generator.integers(1, 3), generator.integers(6, 11)
            row, column = (generator.integers(radius, side - radius) for side in (height, width))
            distance = np.abs([y - row, x - column])
            inside = (
                np.linalg.norm(distance, axis=0) < radius
                if k == 1
                else (distance.max(axis=0) < radius * 0.8)
            )
            plane[inside] = 256 * k + number
            image[inside] += np.float32((0.6, 0.1, 0.3) if k == 1 else (0.1, 0.5, 0.6))
    return images, planes


def build(stages=TINY, input_shape=(40, 56, 3)):
    body = small_encoder(input_shape, filters=(8, 12, 16, 20))
    model = mask_rcnn(input_shape, 2, max_instances=4, encoder=body, stages=stages)
    ks.initialize(model, seed=0)
    return model


def losses_of(model, images, planes, training=False):
    """The five losses of a batch, as floats, and the sum; the network itself in inference."""
    model.reset_metrics()
    outputs = model(ops.convert_to_tensor(images))
    total = model.compute_loss(None, ops.convert_to_tensor(planes), outputs, training=training)
    return {name: float(model.trackers[name].result()) for name in LOSSES} | {
        "loss": float(to_numpy(total))
    }


def detect(model, images):
    """As `backend.infer(model, images, "detect")`, without making a graph of it first."""
    found = model.detect(ops.convert_to_tensor(images))
    return {name: to_numpy(values) for name, values in found.items()}


def truth_of(plane):
    """Masks, boxes and classes of the objects of a plane."""
    values = [value for value in np.unique(plane) if value > 255]
    masks = np.array([plane == value for value in values])
    corners = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        corners.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return {"masks": masks, "boxes": np.float32(corners), "classes": np.array(values) // 256}


# initialize(model, seed=0), images and planes of `scenes()`; equal on every backend.
GOLDEN = {
    "scores": [-0.017878, -0.050236, -0.006344, -0.029186, -0.021775, -0.024948, -0.048763],
    "deltas": [-0.012038, -0.023391, -0.002902, -0.017039, -0.020066, -0.014657, -0.031687],
    "boxes": [31.94, 24.133, 43.481, 36.091, 27.9, 24.131, 39.522, 36.038],
    "losses": [0.68956, 0.02455, 1.11449, 0.12414, 0.93665, 2.88939],
}


@pytest.fixture(scope="module")
def trained():
    """A model after 60 epochs of four scenes; its history, and its weights before."""
    images, planes = scenes()
    model = build()
    before = [to_numpy(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    history = model.fit(images, planes, batch_size=4, epochs=60, verbose=0).history
    return model, history, before


def test_model_learns_a_tiny_fixed_set(trained):
    model, history, _ = trained
    assert set(history) == {"loss", *LOSSES}
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    counter = AveragePrecision(2)
    images, planes = scenes()
    found = backend.infer(model, images, "detect")
    for i, plane in enumerate(planes):
        ok = found["classes"][i] > 0
        one = {name: values[i][ok] for name, values in found.items()}
        one["masks"] = box.paste(one["masks"], one["boxes"], plane.shape)
        counter.add(one, truth_of(plane))
    assert counter.figures()["AP50"] > 0.6


def test_every_trainable_weight_moves(trained):
    model, _, before = trained
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(to_numpy(weight), old), weight.path
    assert int(model.step) == 60


def test_the_losses_add_up(trained):
    _, history, _ = trained
    total = sum(np.array(history[name]) for name in LOSSES)
    np.testing.assert_allclose(total, history["loss"], rtol=1e-5)


def test_evaluate_is_the_same_each_time(trained):
    model, _, _ = trained
    images, planes = scenes()
    first, second = (
        model.evaluate(images, planes, batch_size=4, verbose=0, return_dict=True) for _ in range(2)
    )
    assert first == second


def test_what_is_sampled_in_an_evaluation_depends_on_the_place_of_the_image_only():
    images, planes = scenes()
    model = build()
    whole = losses_of(model, images, planes)
    model.reset_metrics()
    for part in (slice(0, 1), slice(1, 4)):
        outputs = model(ops.convert_to_tensor(images[part]))
        model.compute_loss(None, ops.convert_to_tensor(planes[part]), outputs, training=False)
    for name in ("rpn_class_loss", "class_loss"):  # means over as many of each image
        assert float(model.trackers[name].result()) == pytest.approx(whole[name], rel=1e-5)
    assert losses_of(model, images, planes, training=True) != whole
    assert losses_of(model, images, planes) == whole


def test_what_is_found_is_in_order_and_within_the_image(trained):
    model, _, _ = trained
    found = detect(model, scenes()[0])
    assert {name: values.shape for name, values in found.items()} == {
        "boxes": (4, 6, 4),
        "classes": (4, 6),
        "scores": (4, 6),
        "masks": (4, 6, 28, 28),
    }
    assert found["classes"].dtype == "int32"
    there = found["classes"] > 0
    assert there.any()
    assert np.array_equal(there, found["scores"] > 0.05)
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    assert not found["boxes"][~there].any() and not found["masks"][~there].any()
    x1, y1, x2, y2 = found["boxes"][there].T
    assert (x1 >= 0).all() and (x1 < x2).all() and (x2 <= 56).all()
    assert (y1 >= 0).all() and (y1 < y2).all() and (y2 <= 40).all()
    assert found["masks"].min() >= 0 and found["masks"].max() <= 1


def test_model_saves_and_loads_equal(trained, tmp_path):
    model, _, _ = trained
    images, planes = scenes()
    backend.save_model(model, tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert isinstance(again, MaskRCNN) and again.stages == TINY and int(again.step) == 60
    expected = detect(model, images)
    for name, values in detect(again, images).items():
        assert np.array_equal(values, expected[name]), name
    assert losses_of(again, images, planes) == losses_of(model, images, planes)


def test_model_computes_the_same_on_every_backend():
    images, planes = scenes()
    model = build()
    outputs = model(images)
    found = detect(model, images)
    losses = losses_of(model, images, planes, training=True)
    for name, values in {
        "scores": to_numpy(outputs["scores"])[1, 5:400:60],
        "deltas": to_numpy(outputs["deltas"])[1, 5:400:60, 2],
        "boxes": found["boxes"][2, :2].ravel(),
        "losses": list(losses.values()),
    }.items():
        np.testing.assert_allclose(values, GOLDEN[name], rtol=2e-5, atol=1e-5, err_msg=name)


def reference_iou(first, second):
    sides = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(
        first[:, None, :2], second[:, :2]
    )
    both = sides.clip(0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (first, second)]
    return both / (areas[0][:, None] + areas[1] - both)


def reference_deltas(true, boxes, weights):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = true.T, boxes.T
    deltas = [
        ((x1 + x2) - (u1 + u2)) / 2 / (u2 - u1),
        ((y1 + y2) - (v1 + v2)) / 2 / (v2 - v1),
        np.log((x2 - x1) / (u2 - u1)),
        np.log((y2 - y1) / (v2 - v1)),
    ]
    return np.stack(deltas, -1) * weights


def reference_smooth_l1(x, beta):
    x = np.abs(x)
    return np.where(x < beta, x**2 / 2 / beta, x - beta / 2).sum(-1)


def test_the_losses_of_the_rpn_are_those_of_the_paper():
    images, planes = scenes()
    planes[0, 25:, :30] = np.where(planes[0, 25:, :30] > 0, planes[0, 25:, :30], box.VOID)
    # Every anchor that counts is sampled.
    model = build(dataclasses.replace(TINY, anchors_sampled=10_000))
    anchors = np.concatenate(model.anchors).astype("float64")
    outputs = model(images)
    scores, deltas = (to_numpy(outputs[name]).astype("float64") for name in ("scores", "deltas"))
    entropies, distances, num_void = [], [], 0
    for score, delta, plane in zip(scores, deltas, planes, strict=True):
        true = truth_of(plane)["boxes"].astype("float64")
        overlap = reference_iou(anchors, true)
        best = overlap.max(axis=1)
        positive = (best >= 0.7) | (overlap == overlap.max(axis=0)).any(axis=1)
        for n in range(len(anchors)):
            if positive[n]:
                entropies.append(np.log1p(np.exp(-score[n])))
                target = reference_deltas(true[[overlap[n].argmax()]], anchors[[n]], 1)
                distances.append(reference_smooth_l1(delta[n] - target, 1 / 9)[0])
            elif best[n] < 0.3:
                x1, y1, x2, y2 = anchors[n].round().astype(int).clip(0)
                if (plane[y1:y2, x1:x2] == box.VOID).mean() > 0.5:
                    num_void += 1
                else:
                    entropies.append(np.log1p(np.exp(score[n])))
    assert num_void > 10 and len(distances) > 8
    found = losses_of(model, images, planes)
    assert found["rpn_class_loss"] == pytest.approx(np.mean(entropies), rel=1e-4)
    expected = np.sum(distances) / len(entropies)
    assert found["rpn_box_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_losses_of_the_heads_are_those_of_the_paper():
    images, planes = scenes()
    # Every proposal is sampled.
    model = build(dataclasses.replace(TINY, boxes_sampled=10_000))
    outputs = model(images)
    proposals, there = map(to_numpy, model.propose(outputs["scores"], outputs["deltas"]))
    assert there.all()
    entropies, distances, mask_entropies, num_moved = [], [], [], 0
    for i, plane in enumerate(planes):
        truth = truth_of(plane)
        boxes = np.concatenate([proposals[i], truth["boxes"]])
        levels = [level[i : i + 1] for level in outputs["levels"]]
        small, large = (
            model.align(levels, ops.convert_to_tensor(boxes[None]), size) for size in (7, 14)
        )
        logits, deltas, masks = (
            to_numpy(x).astype("float64") for x in (*model.box_head(small), model.mask_head(large))
        )
        overlap = reference_iou(boxes.astype("float64"), truth["boxes"].astype("float64"))
        for n, which in enumerate(overlap.argmax(axis=1)):
            positive = overlap[n, which] >= 0.5
            k = truth["classes"][which] if positive else 0
            entropies.append(np.log(np.exp(logits[n]).sum()) - logits[n, k])
            if not positive:
                continue
            num_moved += n < len(proposals[i])
            target = reference_deltas(truth["boxes"][[which]], boxes[[n]], np.array([10, 10, 5, 5]))
            distances.append(reference_smooth_l1(deltas[n, k - 1] - target, 1.0)[0])
            x1, y1, x2, y2 = boxes[n]
            steps = (np.arange(28) + 0.5) / 28
            y, x = y1 + (y2 - y1) * steps - 0.5, x1 + (x2 - x1) * steps - 0.5
            grid = np.meshgrid(y, x, indexing="ij")
            mask = scipy.ndimage.map_coordinates(
                truth["masks"][which].astype("float64"), grid, order=1, mode="nearest"
            )
            logit = masks[n, ..., k - 1]
            mask_entropies.append((np.log1p(np.exp(logit)) - (mask >= 0.5) * logit).mean())
    assert num_moved > 0
    found = losses_of(model, images, planes)
    assert found["class_loss"] == pytest.approx(np.mean(entropies), rel=1e-4)
    expected = np.sum(distances) / len(entropies)
    assert found["box_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["mask_loss"] == pytest.approx(np.mean(mask_entropies), rel=1e-3)


def test_images_without_objects_teach_what_is_none_and_void_teaches_nothing():
    images, planes = scenes()
    found = losses_of(build(), images, np.zeros_like(planes))
    assert found["rpn_class_loss"] > 0.1 and found["class_loss"] > 0.1
    assert found["rpn_box_loss"] == found["box_loss"] == found["mask_loss"] == 0
    nothing = losses_of(build(), images, np.full_like(planes, box.VOID))
    assert set(nothing.values()) == {0}


def test_losses_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    images, planes = scenes()
    outputs = model(images)
    assert all(x.dtype == ops.cast(0, "bfloat16").dtype for x in outputs["levels"])
    last = [(model.rpn, "scores"), (model.rpn, "deltas"), (model.mask_head, "logits")]
    for network, name in (*last, (model.box_head, "logits"), (model.box_head, "deltas")):
        assert network.get_layer(name).compute_dtype == "float32"
    for name in ("scores", "deltas"):
        assert keras.backend.standardize_dtype(outputs[name].dtype) == "float32"
    expected = losses_of(build(), images, planes)["loss"]
    assert losses_of(model, images, planes)["loss"] == pytest.approx(expected, rel=0.05)
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True, jit_compile=False)
    before = [to_numpy(weight) for weight in model.trainable_weights]
    model.fit(images, planes, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(to_numpy(weight)).all()
        assert not np.array_equal(to_numpy(weight), old), weight.path
    for name, values in detect(model, images).items():
        assert values.dtype == ("int32" if name == "classes" else "float32"), name


def test_model_takes_any_size_and_any_encoder():
    for size in ((33, 70), (64, 64)):
        model = build(input_shape=(*size, 3))
        assert [tuple(x.shape[1:3]) for x in model.pyramid.outputs] == [
            (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16)
        ]
        found = detect(model, scenes(1, *size)[0])
        assert found["boxes"].shape == (1, 6, 4)
    inner = model.pyramid.get_layer("small_encoder")
    assert [tuple(x.shape[1:]) for x in inner.outputs] == [
        (32, 32, 8),
        (16, 16, 12),
        (8, 8, 16),
    ]


def test_model_has_the_parameters_of_the_paper():
    body = encoder(64, 256, 512, 1024, 2048, kernel_size=1)
    model = mask_rcnn((800, 1344, 3), num_classes=90, encoder=body, stages=Stages())
    # torchvision's maskrcnn_resnet50_fpn has 44,401,393, of which 23,454,912 are the body's. It
    # predicts boxes and masks for the background as well: 1024 x 4 + 4 and 256 + 1.
    expected = 44_401_393 - 23_454_912 - (1024 * 4 + 4) - (256 + 1)
    assert model.count_params() - body.count_params() - 1 == expected  # and the step
    assert sum(map(len, model.anchors)) == 3 * (200 * 336 + 100 * 168 + 50 * 84 + 25 * 42 + 13 * 21)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="'encoder' gives 2 features.*expected 4.*strides"):
        mask_rcnn((64, 64, 3), 2, encoder=encoder(4, 4))
    with pytest.raises(ValueError, match=r"'encoder' takes images .*\(64, 64, 1\)"):
        mask_rcnn((64, 64, 1), 2, encoder=encoder(4, 4, 4, 4))
    with pytest.raises(ValueError, match=r"size of the images; found .*\(None, 64\)"):
        mask_rcnn((None, 64, 3), 2)
    with pytest.raises(ValueError, match="num_classes must be a positive integer; found 0"):
        mask_rcnn((64, 64, 3), 0)
    for count in (0, 255):
        with pytest.raises(ValueError, match=f"max_instances is {count}, expected 1 to 254"):
            mask_rcnn((64, 64, 3), 2, max_instances=count)


def test_pyramid_adds_the_levels_above_doubled():
    features = [keras.Input((size, size, channels)) for size, channels in ((7, 3), (4, 5), (2, 4))]
    model = keras.Model(features, fpn(features, filters=6))
    ks.initialize(model, seed=0)
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(1, *x.shape[1:])).astype("float32") for x in features]
    outputs = [to_numpy(x) for x in model(inputs)]
    x = None
    for level in (2, 1, 0):
        lateral = inputs[level] @ to_numpy(model.get_layer(f"fpn{level}_lateral").kernel)[0, 0]
        size = lateral.shape[1]
        x = lateral if x is None else lateral + x.repeat(2, 1).repeat(2, 2)[:, :size, :size]
        expected = model.get_layer(f"fpn{level}")(ops.convert_to_tensor(x))
        np.testing.assert_allclose(outputs[level], to_numpy(expected), atol=1e-5)
