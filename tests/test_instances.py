"""Finding objects: trained, resumed, judged, used, drawn and compared."""

import contextlib
import io
import json

import keras
import numpy as np
import pytest
from objects import write_scenes
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import keras_segen as ks
from keras_segen import compare, data, plot, runs, tasks
from keras_segen.data.instances import Instance, instance_of
from keras_segen.segmentation.coco import run_lengths
from keras_segen.segmentation.detector import Detector, merge, shifted, starts
from keras_segen.segmentation.evaluate_instances import Judge

NAMES = ("disc", "box", "triangle", "star", "ring")
SMALL = {"filters": (8, 12, 16, 20), "batch_size": 4, "max_instances": 8, "epochs": 2}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("objects") / "scenes")


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects") / "run"
    runs.train(tasks.InstanceTask(data=f"folder:{scenes}", **SMALL), folder, verbose=0)
    return folder


@pytest.fixture(scope="module")
def opened_run(run):
    return ks.load(run)


def instance(top, left, bottom, right, k=1, score=0.9, size=(40, 40), crowd=False):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return instance_of(mask, k, NAMES[k - 1], score, crowd)


def opened(document):
    coco = COCO()
    coco.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


# Trained


def test_a_run_is_watched_by_average_precision_and_resumes(run):
    history = runs.read_history(run)
    assert {"val_mask_ap", "val_mask_ap50", "val_box_ap", "mask_loss", "rpn_box_loss"} <= set(
        history
    )
    assert history["loss"][1] < history["loss"][0]
    assert (run / "previews" / "epoch-0002.png").exists()
    assert runs.resume(run, verbose=0) == history


@pytest.mark.once
def test_an_interrupted_run_gives_the_same_weights(run, scenes, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    task = tasks.InstanceTask(data=f"folder:{scenes}", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        runs.train(task, tmp_path, verbose=0, callbacks=[Interrupt()])
    history = runs.resume(tmp_path, verbose=0)
    for name, values in runs.read_history(run).items():
        if name not in ("seconds", "peak_memory_mib"):
            assert history[name] == pytest.approx(values, abs=1e-5), name


@pytest.mark.once
def test_a_run_starts_from_another(run):
    told = []
    task = tasks.InstanceTask(data=f"folder:{run.parent}", start_from=str(run), **SMALL)
    objects = data.as_instances(data.Shapes("val", size=48, length=2), SMALL["max_instances"])
    model = task.build_model(objects, tell=told.append)
    kept = ks.load(run).model
    assert "layers start from" in told[0] and "new" not in told[0]
    for mine, theirs in zip(model.trainable_weights, kept.trainable_weights, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (mine, theirs)))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"encoder": "resnet50", "filters": (8, 8)},
            "filters is .8, 8., the channels of the small",
        ),
        ({"encoder": "resnet50", "channels": 1}, "takes RGB: use channels=3"),
        ({"freeze_epochs": 1}, "there is no encoder to freeze"),
        ({"freeze_epochs": 40, "encoder": "vgg16"}, "freeze_epochs is 40, expected 0 to 20"),
        ({"fine_tune_rate": 0.1}, "but freeze_epochs is 0"),
        ({"max_instances": 255}, "max_instances is 255, expected at least 1 and below 255"),
        ({"augment": "flop"}, "'flop' is not understood"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.InstanceTask(**options)


def test_as_many_objects_can_be_found_as_are_learned_from(scenes):
    for most, slots in ((8, 20), (30, 30)):
        options = {**SMALL, "max_instances": most}
        task = tasks.InstanceTask(data=f"folder:{scenes}", **options)
        dataset = task.load_data("val")
        model = task.build_model(dataset)
        found = ks.backend.infer(model, dataset[0][0][None], "detect")
        assert found["scores"].shape == (1, slots)


def test_a_pretrained_encoder_is_kept_and_frozen():
    options = {"encoder": "efficientnet_lite0", "freeze_epochs": 1, "epochs": 2}
    task = tasks.InstanceTask(image_size=(64, 64), **options)
    objects = data.as_instances(data.Shapes("val", size=64, length=2))
    model = task.build_model(objects)
    encoder = model.pyramid.get_layer("efficientnet_lite0")
    original = {weight.path: weight for weight in ks.segmentation.efficientnet_lite0().weights}
    for weight in encoder.weights:
        theirs = original[weight.path]
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (weight, theirs))), weight.path
    number = len(model.trainable_weights)
    task.compile(model, objects, 4)
    assert not encoder.trainable_weights and len(model.trainable_weights) < number
    task.compile(model, objects, 4, task.phases()[1])
    assert len(model.trainable_weights) == number
    rate = model.optimizer.learning_rate
    assert float(keras.ops.convert_to_numpy(rate)) == pytest.approx(2e-4)  # a tenth


def test_data_without_objects_is_refused(picture_folder):
    with pytest.raises(ValueError, match="does not tell one object from the next"):
        tasks.InstanceTask(data=f"folder:{picture_folder}").load_data("train")


# Judged


@pytest.mark.once
def test_an_evaluation_is_what_cocos_own_tool_computes(run):
    found = runs.evaluate(run, "test")
    figures = json.loads((run / "evaluation-test.json").read_text("utf-8"))
    assert "Precision by recall" in (run / "evaluation-test.html").read_text("utf-8")
    assert (run / "evaluation-test.csv").read_text("utf-8").startswith("class,objects,mask_ap")
    truth = opened(json.loads((run / "evaluation-test-truth.json").read_text("utf-8")))
    results = json.loads((run / "evaluation-test-detections.json").read_text("utf-8"))
    for kind, ours in (("segm", "mask"), ("bbox", "box")):
        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCOeval(truth, truth.loadRes(results), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        assert figures[f"{ours}_ap"] == pytest.approx(judge.stats[0], abs=1e-3)  # rounded boxes
        assert found.figures[ours]["AR100"] == pytest.approx(judge.stats[8], abs=1e-3)


def test_hits_misses_and_false_alarms():
    judge = Judge(NAMES)
    true = [instance(0, 0, 10, 10), instance(20, 20, 30, 30, 2), instance(0, 20, 10, 40, 3)]
    true = [Instance(**{**vars(each), "score": None}) for each in true]
    crowd = Instance(**{**vars(instance(32, 0, 40, 40, 2)), "score": None, "crowd": True})
    found = [
        instance(0, 0, 10, 9, score=0.9),  # the disc
        instance(0, 0, 10, 10, score=0.8),  # once more: a false alarm
        instance(20, 20, 30, 30, 4, score=0.7),  # the box, named a star
        instance(33, 0, 40, 10, 2, score=0.95),  # in the crowd: does not count
        instance(12, 0, 18, 8, 5, score=0.99),  # in void: does not count
        instance(0, 20, 10, 40, 3, score=0.3),  # the triangle, but not surely
    ]
    void = np.zeros((40, 40), bool)
    void[11:19] = True
    judge.add(found, [*true, crowd], void)
    objects = data.as_instances(data.Shapes("val", size=40, length=1))
    figures = judge.evaluation("mask_rcnn", objects).figures
    assert figures["objects"] == 3
    assert (figures["recall"], figures["precision"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert [(each["class"], each["overlaps"]) for each in figures["misses"]] == [
        ("triangle", None),
        ("box", "star"),
    ]
    assert [(each["class"], each["iou"]) for each in figures["false_alarms"]] == [
        ("disc", 1.0),
        ("star", 1.0),
    ]
    assert figures["class_mask_ap50"]["triangle"] == pytest.approx(1.0)
    assert np.isnan(figures["class_mask_ap50"]["ring"])


@pytest.mark.once
def test_run_lengths_are_those_of_coco():
    generator = np.random.default_rng(0)
    for shape, share in (((1, 1), 0.5), ((7, 5), 0.5), ((40, 60), 0.02), ((300, 200), 0.999)):
        mask = generator.random(shape) < share
        packed = rle.encode(np.asfortranarray(mask.astype("uint8")))
        assert run_lengths(mask) == {"size": list(shape), "counts": packed["counts"].decode()}
    assert rle.decode(run_lengths(np.ones((3, 4), bool))).all()


# Used


@pytest.mark.once
def test_photos_become_planes_overlays_and_json(run, scenes, tmp_path):
    photos = scenes / "test" / "images"
    written = runs.predict(run, photos, tmp_path, min_score=0.05)
    assert [path.name for path in written] == [f"scene{i}.png" for i in range(4)]
    document = json.loads((tmp_path / "detections.json").read_text("utf-8"))
    coco = opened(document)
    assert [each["name"] for each in document["categories"]] == list(NAMES)
    assert len(document["annotations"]) > 4
    for number, path in enumerate(written, 1):
        plane = np.array(Image.open(path))
        classes = np.array(Image.open(tmp_path / "masks" / path.name))
        assert plane.dtype == np.uint16 and plane.shape == classes.shape == (48, 48)
        found = coco.loadAnns(coco.getAnnIds([number]))
        scores = [each["score"] for each in found]
        assert scores == sorted(scores, reverse=True) and min(scores) >= 0.05
        for k, each in enumerate(found, 1):
            mask = coco.annToMask(each).astype(bool)
            assert mask.sum() == each["area"] and mask[plane == k].all()
            assert (classes[plane == k] == each["category_id"]).all()  # as in the training masks
        assert (tmp_path / "overlays" / path.name).exists()


def test_a_run_predicts_a_list_of_instances(opened_run, scenes):
    detector = Detector(opened_run.model, NAMES, min_score=0.05)
    photo = np.array(Image.open(scenes / "test" / "images" / "scene0.png"))
    large = photo.repeat(2, axis=0).repeat(3, axis=1)
    found, at_large = detector.find(photo[None] / np.float32(255))[0], detector.predict(large)
    assert at_large and all(each.mask.shape == (96, 144) for each in at_large)
    boxes = np.array([each.box * (3, 2, 3, 2) for each in found])  # those without a pixel too
    for each in at_large:
        assert np.abs(boxes - each.box).max(axis=1).min() < 0.01
    assert all(each.image_size == (48, 48) for each in detector.predict(photo))
    assert opened_run.predict(photo) == [] or opened_run.predict(photo)[0].score >= 0.5
    with pytest.raises(ValueError, match="min_score is 2, expected 0 to 1"):
        Detector(opened_run.model, NAMES, min_score=2)
    with pytest.raises(ValueError, match="2 class names for a model of 5 classes"):
        Detector(opened_run.model, ("a", "b"))
    with pytest.raises(ValueError, match="overlap is of tiles, and there are none"):
        detector.predict(photo, overlap=4)
    for overlap in (48, "4"):
        with pytest.raises(ValueError, match=f"overlap is {overlap!r}, expected 0 to 47"):
            detector.predict(photo, full_size=True, overlap=overlap)
    with pytest.raises(ValueError, match=r"shape \(0, 4, 3\), and no pixel"):
        detector.predict(photo[:0, :4])
    for score in ("0.5", None):
        with pytest.raises(ValueError, match=f"min_score is {score!r}, expected 0 to 1"):
            Detector(opened_run.model, NAMES, min_score=score)


@pytest.mark.once
def test_a_network_that_gives_nan_finds_nothing_and_says_so(run):
    model = ks.load(run).model
    for part in ("rpn", "box_head"):
        layer = getattr(model, part)
        kept = layer.get_weights()
        layer.set_weights([np.full_like(weight, np.nan) for weight in kept])
        with pytest.raises(ValueError, match="The network gives NaN or infinity: its weights or"):
            Detector(model, NAMES).predict(np.zeros((48, 48, 3), "uint8"))
        layer.set_weights(kept)


def test_a_photo_of_one_tile_is_found_as_without_tiles(opened_run, scenes):
    detector = Detector(opened_run.model, NAMES, min_score=0.05)
    photo = np.array(Image.open(scenes / "test" / "images" / "scene0.png"))
    for one, other in zip(
        detector.predict(photo), detector.predict(photo, full_size=True), strict=True
    ):
        assert np.array_equal(one.box, other.box) and np.array_equal(one.mask, other.mask)
    wide = np.concatenate([photo, photo[:, ::-1]], axis=1)[:40]
    assert all(each.image_size == (40, 96) for each in detector.predict(wide, full_size=True))


@pytest.mark.once
def test_what_two_tiles_saw_of_one_object_is_put_together():
    left, right = (0, 0, 40, 24), (0, 16, 40, 40)
    bar = [instance(10, 4, 20, 24), instance(10, 16, 20, 36, score=0.95)]
    other = instance(10, 16, 20, 30, k=2, score=0.6)  # of another class
    apart = instance(30, 30, 38, 38, score=0.5)
    merged = merge([bar[0], bar[1], other, apart], [left, right, right, right])
    assert [each.score for each in merged] == [0.95, 0.6, 0.5]
    assert merged[0].box.tolist() == [4, 10, 36, 20]
    assert np.array_equal(merged[0].mask, bar[0].mask | bar[1].mask)
    neighbor = instance(20, 16, 30, 36)  # touches it, and shares no pixel
    assert len(merge([bar[0], neighbor], [left, right])) == 2


@pytest.mark.once
def test_what_is_beyond_the_image_is_cut_off():
    assert starts(40, 40, 10) == [0] and starts(41, 40, 0) == [0, 1]
    moved = shifted(instance(10, 10, 20, 20), 5, 30, (22, 45))
    assert moved.box.tolist() == [40, 15, 45, 22] and moved.area == 5 * 7
    assert shifted(instance(10, 10, 20, 20), 5, 30, (22, 40)) is None


# Drawn


@pytest.mark.once
def test_objects_are_drawn_with_outlines_boxes_and_names():
    palette = np.array([[255, 0, 0], [0, 0, 255]])
    image = np.zeros((40, 40, 3))
    some = [instance(10, 10, 20, 20), instance(25, 5, 35, 30, k=2, score=None)]
    drawn = plot.draw_instances(image, some, palette)
    assert drawn.shape == (320, 320, 3)
    assert (drawn[8 * 15, 8 * 15] == (115, 0, 0)).all()  # tinted
    assert (drawn[8 * 19 + 6, 8 * 15] == 255).all()  # outlined
    assert (drawn[8 * 2, 8 * 2] == 0).all()
    marked = plot.draw_instances(image, [], palette, marked=some[0])
    assert (marked[8 * 10, 8 * 15] == plot.SIGNAL_COLOR).all()
    figure = plot.instances([image] * 2, [some, []], palette=palette, class_names=("a", "_b"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "_b"]
    both = {"truth": [some], "found": [[]]}
    figure = plot.instances([image], both, palette=palette, class_names=("a", "b"), titles=["x"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["truth", "found", "x", ""]
    with pytest.raises(
        ValueError, match=r"is of class 1 in an image of \(40, 40\); expected a class"
    ):
        plot.draw_instances(np.zeros((8, 8)), some[:1], palette)
    with pytest.raises(ValueError, match="has 1 items, `images` has 2"):
        plot.instances([image] * 2, [some], palette=palette, class_names=("a", "b"))


# Compared


@pytest.mark.once
def test_backends_are_compared(scenes, tmp_path):
    options = {**SMALL, "data": f"folder:{scenes}", "epochs": 1}
    report = compare.run("mask_rcnn", out=tmp_path, threads=1, seconds=0, **options)
    assert report.status == "passed", report.checks
    assert "Mask AP, validation" in report.figures.index
    assert "scores and moves of the anchors before training" in report.page
    assert (tmp_path / "predictions.png").exists()
