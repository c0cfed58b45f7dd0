"""InceptionV3 for the FID: the network against Keras' own, the names of its weights, its pixels."""

import re

import keras
import numpy as np
import pytest

from keras_segen import backend
from keras_segen.determinism import rng
from keras_segen.generation import load_extractor
from keras_segen.generation.extractors import FidExtractor, resize_from_corners
from keras_segen.generation.inception_v3 import fill, inception_v3

# The names in the published file, in the order in which Keras numbers the layers of its own.
FIVE = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
SEVEN = "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 "
SEVEN += "branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool"
WIDE = "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 "
WIDE += "branch3x3dbl_3a branch3x3dbl_3b branch_pool"
BLOCKS = dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), FIVE)
BLOCKS |= {"Mixed_6a": "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"}
BLOCKS |= dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), SEVEN)
BLOCKS |= {
    "Mixed_7a": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
}
BLOCKS |= dict.fromkeys(("Mixed_7b", "Mixed_7c"), WIDE)
NAMES = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
NAMES += [f"{block}.{branch}" for block, branches in BLOCKS.items() for branch in branches.split()]


def in_order(model, kind):
    """The layers of a kind in the order in which they were made: conv2d, conv2d_1, …"""
    found = [layer for layer in model.layers if type(layer) is kind]
    return sorted(found, key=lambda layer: int((re.search(r"_(\d+)$", layer.name) or [0, 0])[1]))


def random_weights(theirs):
    """Gives Keras' network random weights, and returns the same as the published file has them."""
    state = {}
    convs = in_order(theirs, keras.layers.Conv2D)
    norms = in_order(theirs, keras.layers.BatchNormalization)
    for name, conv, norm in zip(NAMES, convs, norms, strict=True):
        generator = rng("inception", name)
        shape = tuple(conv.kernel.shape)
        kernel = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:3]))
        beta, mean = generator.normal(0, 0.1, (2, shape[3]))
        gamma, variance = generator.uniform(0.7, 1.4, (2, shape[3]))
        conv.set_weights([kernel])
        # Theirs has no gamma: a smaller variance does the same.
        norm.set_weights([beta, mean, (variance + 1e-3) / gamma**2 - 1e-3])
        state[f"{name}.conv.weight"] = kernel.transpose(3, 2, 0, 1)
        values = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
        state |= {f"{name}.bn.{key}": value for key, value in values.items()}
    return state


@pytest.mark.once
def test_the_network_is_that_of_keras_but_for_the_last_pool():
    size = (139, 139, 3)  # at which the smallest features are 3 x 3
    theirs = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=size)
    state = random_weights(theirs)
    ours = inception_v3()
    assert sum(int(np.prod(x.shape)) for x in ours.trainable_variables) == 21_785_568
    fill(ours, state)

    images = rng("images").random((2, *size), "float32")
    seen = images * np.float32(255 / 128) - 1
    found = backend.infer(
        keras.Model(
            ours.input,
            [ours.get_layer(name).output for name in ("Mixed_5b", "Mixed_7b", "Mixed_7c")]
            + [ours.output],
        ),
        images,
    )
    expected = backend.infer(
        keras.Model(
            theirs.input,
            [theirs.get_layer(name).output for name in ("mixed0", "mixed9", "mixed10")],
        ),
        seen,
    )
    for x, y in zip(found[:2], expected[:2], strict=True):
        assert np.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, atol=1e-3 * np.abs(y).max())
    last, theirs_last = found[2], expected[2]
    pooled = slice(1856, 2048)
    np.testing.assert_allclose(
        last[..., :1856], theirs_last[..., :1856], atol=1e-3 * np.abs(theirs_last).max()
    )
    assert np.abs(last[..., pooled] - theirs_last[..., pooled]).max() > 0.1
    np.testing.assert_allclose(found[3], last.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)

    del state["Mixed_7c.branch_pool.bn.bias"]
    with pytest.raises(ValueError, match="has no Mixed_7c_branch_pool_bn_bias: it does not fit"):
        fill(ours, state)


def test_pixels_are_taken_from_corners():
    row = np.array([0.0, 8, 4], "float32").reshape(1, 3, 1)
    found = resize_from_corners(row, (1, 6))
    assert found.dtype == np.float32
    assert found.ravel().tolist() == [0, 4, 8, 6, 4, 4]
    assert resize_from_corners(row.reshape(3, 1, 1), (2, 1)).ravel().tolist() == [0, 6]
    image = rng("image").random((5, 7, 3), "float32")
    np.testing.assert_array_equal(resize_from_corners(image, (5, 7)), image)


def test_only_the_published_weights_make_an_fid(tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    with pytest.raises(FileNotFoundError, match="6726825d.pth: no such file; expected pt_inc"):
        load_extractor(f"inception_v3:{path}")
    path.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="has a SHA-256 of 53959fa1…; expected 6726825d…"):
        load_extractor(f"inception_v3:{path}")


def test_an_fid_extractor_sees_whole_numbers():
    extractor = object.__new__(FidExtractor)  # without the published weights
    extractor.size = (299, 299)
    assert extractor.distance_name == "FID"
    image = rng("image").random((32, 32, 1), "float32")
    whole = np.rint(image * 255).astype("uint8")
    found = extractor.prepare(image)
    assert found.shape == (299, 299, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found, extractor.prepare(whole))
    np.testing.assert_allclose(found[0, 0] * 255, whole[0, 0].repeat(3), rtol=1e-6)
