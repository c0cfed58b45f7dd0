"""What users give by mistake gets one sentence: what was found, what is expected, what to do."""

import numpy as np
import pytest

from keras_segen import backend, initialize, plot
from keras_segen.data import (
    Augment,
    BorderWeights,
    Cells,
    Shapes,
    as_instances,
    border_weights,
)
from keras_segen.data.loader import Batches
from keras_segen.generation import dcgan_generator, sngan_generator, vae_encoder
from keras_segen.losses import CrossEntropy, Focal, Tversky
from keras_segen.metrics import MeanIoU, PixelAccuracy, class_ids
from keras_segen.segmentation import Predictor, components, evaluate, fcn, plain_unet, unet
from keras_segen.segmentation.detector import Detector
from keras_segen.tasks import SegmentationTask

MASKS = np.zeros((2, 4, 4), "int32")
CELLS = Cells("train", 32, length=1)
LOGITS = np.zeros((2, 4, 4, 3), "float32")


def network(size=8):
    model = unet((size, size, 3), num_classes=6, filters=(2, 4))
    initialize(model, seed=0)
    return model


def with_nan():
    model = network()
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


BAD = {
    "shape_int": (lambda: unet(64, 2), r"input_shape is \(height, .*such as.*; found 64"),
    "shape_text": (lambda: fcn("unet", 2), "input_shape.*found 'unet'"),
    "shape_texts": (lambda: plain_unet(("16", 16, 3), 2), "input_shape.*found .'16', 16"),
    "shape_floats": (lambda: unet((16.0, 16, 3), 2), "input_shape.*found .16.0"),
    "classes_text": (lambda: unet((16, 16, 3), "3"), "num_classes must be a pos.*found '3'"),
    "classes_float": (lambda: unet((16, 16, 3), 3.0), "num_classes must be a pos.*found 3.0"),
    "filters_int": (lambda: unet((16, 16, 3), 3, filters=8), "filters gives.*found 8"),
    "filters_text": (lambda: unet((16, 16, 3), 3, filters="8,16"), "filters gives.*found '8,16'"),
    "dropout": (lambda: unet((16, 16, 3), 3, dropout="a"), "dropout is 'a', expected a share"),
    "encoder": (lambda: unet((16, 16, 3), 3, encoder="vgg16"), "encoder is 'vgg16', expected"),
    "images_int": (lambda: dcgan_generator(64), "image_shape is a tuple of.*found 64"),
    "images_text": (lambda: vae_encoder("32"), "image_shape is a tuple of.*found '32'"),
    "latent_dim": (lambda: dcgan_generator((8, 8, 3), "8"), "latent_dim must be.*found '8'"),
    "labels": (lambda: sngan_generator((8, 8, 3), num_classes="3"), "num_classes must.*'3'"),
    "weights_text": (lambda: CrossEntropy(class_weights="abc"), "class_weights must.*'abc'"),
    "weights_int": (lambda: CrossEntropy(class_weights=3), "class_weights must.*found 3"),
    "weights_dict": (lambda: CrossEntropy(class_weights={0: 1.0}), "class_weights must.*0: 1.0"),
    "weights_none": (lambda: CrossEntropy(class_weights=(None, 1)), "class_weights must.*None"),
    "smoothing": (lambda: CrossEntropy(label_smoothing="a"), "label_smoothing must.*'a'"),
    "gamma": (lambda: Focal(gamma="2"), "gamma must be finite and at least 0; found '2'"),
    "alpha": (lambda: Tversky(alpha=None), "alpha must be finite and above 0; found None"),
    "no_pixels": (lambda: CrossEntropy()(MASKS[:0], LOGITS[:0]), r"batch is empty: masks \(0, 4"),
    "too_few_weights": (
        lambda: CrossEntropy()(MASKS, LOGITS, sample_weight=np.ones(3)),
        r"sample_weight is one number per image.*found shape \(3,\) for masks \(2, 4, 4\)",
    ),
    "metric_text": (lambda: MeanIoU("3"), "num_classes must be an integer.*found '3'"),
    "metric_float": (lambda: PixelAccuracy(3.5), "num_classes must be an integer.*found 3.5"),
    "seed": (lambda: initialize(network(), "a"), "seed is 'a', expected a whole number"),
    "model": (lambda: initialize("model", 0), "model is 'model', expected a keras.Model"),
    "batch_text": (lambda: Predictor(network(), batch_size="4"), "batch_size is '4', expected"),
    "batch_float": (lambda: Predictor(network(), batch_size=4.5), "batch_size is 4.5, expected"),
    "scales_text": (lambda: Predictor(network(), scales="1"), "scales is '1', expected numbers"),
    "scales_tiny": (lambda: Predictor(network(), scales=(1e-9,)), "expected numbers from 0.05"),
    "scales_huge": (
        lambda: Predictor(network(), scales=(1e9,)),
        "expected numbers from 0.05 to 20",
    ),
    "augment": (
        lambda: Batches(Shapes("train", size=8), 2, seed=0, augment=lambda image: image),
        r"augment is .*expected a keras_segen.data.Augment, a function \(image, mask\) or",
    ),
    "border_weight": (lambda: BorderWeights(CELLS, -1), "weight must be finite and at least 0"),
    "border_nan": (lambda: BorderWeights(CELLS, np.nan), "weight must be finite.*found nan"),
    "border_text": (lambda: BorderWeights(CELLS, "10"), "weight must be finite.*found '10'"),
    "border_sigma": (lambda: BorderWeights(CELLS, 1, -1), "sigma must be finite and above 0"),
    "border_classes": (
        lambda: BorderWeights(CELLS, 1, 5, (1, 2, 3)),
        "expected 2 numbers for the classes of cells",
    ),
    "border_zero": (lambda: BorderWeights(CELLS, 1, 5, (0, 1)), "that of the background above 0"),
    "border_share": (lambda: BorderWeights(CELLS, 1, 5, (-1, 1)), "class_weights must.*negative"),
    "sigma": (lambda: border_weights(np.eye(3, dtype=int), 0), "sigma must be finite and above"),
    "numbers": (lambda: border_weights(np.eye(3)), r"numbers are float64 of shape \(3, 3\)"),
    "numbers_flat": (lambda: border_weights([1, 0, 2]), r"numbers are int64 of shape \(3,\)"),
    "cells_length": (lambda: Cells(length=1.5), "length is 1.5, expected a whole number"),
    "cells_seed": (lambda: Cells(seed="a"), "seed is 'a', expected a whole number"),
    "cells_size": (lambda: Cells(size="96"), "size is '96', expected a number of pixels"),
    "elastic": (lambda: Augment.parse("elastic=1,-1,2"), "elastic goes from -1.0 to 2.0; expect"),
    "elastic_nan": (lambda: Augment.parse("elastic=1,nan,1"), r"elastic is .*nan.*; expected \("),
    "instances": (lambda: as_instances(CELLS, "3"), "max_instances is '3', expected 1 to 254"),
    "task_border": (
        lambda: SegmentationTask(data="cells", border_weight=np.inf),
        "border_weight is inf, expected 0 or more",
    ),
    "task_sigma": (
        lambda: SegmentationTask(data="cells", border_weight=1, border_sigma=0),
        "border_sigma is 0.0, expected more than 0",
    ),
    "components": (
        lambda: components(np.zeros((4, 4, 2), int), [1]),
        r"classes have shape \(4, 4, 2\), expected \(height, width\)",
    ),
    "rim": (
        lambda: components(np.zeros((4, 4), int), [1], rim=np.zeros((3, 3))),
        r"and rim the same; it has \(3, 3\)",
    ),
    "objects": (
        lambda: plot.objects(np.zeros((4, 4, 3)), np.zeros((3, 3), int)),
        r"expected whole numbers \(4, 4\), as the image",
    ),
    "objects_alpha": (
        lambda: plot.objects(np.zeros((4, 4, 3)), np.ones((4, 4), int), alpha=3),
        "`alpha` must lie in",
    ),
    "detector": (lambda: Detector("model", ("a",)), "model is 'model', expected a MaskRCNN"),
    "nan_ids": (lambda: class_ids([[np.nan, 1.0]]), "The logits hold NaN, which is no class"),
    "nan_predict": (lambda: Predictor(with_nan())(np.zeros((8, 8, 3))), "unet gives NaN or inf"),
    "nan_evaluate": (
        lambda: evaluate(with_nan(), Shapes("test", size=8, length=2)),
        "The logits hold NaN",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_gets_one_sentence(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_integers_are_numbers(tmp_path):
    shape, filters = np.array([8, 8, 3]), np.array([2, 4])
    model = unet(tuple(shape), np.int64(3), filters=tuple(filters))
    backend.save_model(model, tmp_path / "model.keras")
    assert model.output_shape == (None, 8, 8, 3)


def test_a_scale_above_the_tile_keeps_a_pixel():
    predictor = Predictor(unet((None, None, 3), 3, filters=(2, 4)), tile=8, scales=(20,))
    assert predictor(np.zeros((9, 9, 3), "uint8")).shape == (9, 9)
