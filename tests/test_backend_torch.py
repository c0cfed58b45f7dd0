"""What the seam changes in Keras on PyTorch."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import keras_segen as ks
from keras_segen import backend

if keras.backend.backend() != "torch":
    pytest.skip("on PyTorch only", allow_module_level=True)

import torch
from keras.src.backend.torch import nn as keras_nn


def keras_nn_as_installed():
    spec = importlib.util.spec_from_file_location("keras_nn_as_installed", keras_nn.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installed_keras_still_copies():
    """When this fails, `backend.torch._drop_copies_around_convolutions` can be deleted."""
    transpose = keras_nn_as_installed()._transpose_spatial_inputs
    assert transpose(torch.empty(1, 2, 2, 2)).is_contiguous()


def test_images_are_transposed_without_a_copy():
    images = torch.rand(2, 4, 6, 3)
    transposed = keras_nn._transpose_spatial_inputs(images)
    assert transposed.shape == (2, 3, 4, 6)
    assert transposed.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 5, 3)])
def test_sequences_and_volumes_are_left_to_keras(shape):
    found = keras_nn._transpose_spatial_inputs(torch.rand(shape))
    assert found.is_contiguous() and found.shape[1] == 3


def every_spatial_layer():
    x = inputs = keras.Input((13, 18, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="silu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(6, 4, strides=2, padding="same", activation="silu")(x)
    x = layers.AveragePooling2D(2, padding="same")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", dilation_rate=2)(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    ks.initialize(model, seed=0)
    return model


def test_outputs_and_gradients_are_those_with_copies(monkeypatch):
    images = np.random.default_rng(0).random((2, 13, 18, 3), dtype="float32")
    model = every_spatial_layer()

    def outputs_and_gradients():
        outputs = model(images)
        variables = [weight.value for weight in model.trainable_weights]
        return [outputs, *torch.autograd.grad(outputs.square().sum(), variables)]

    found = outputs_and_gradients()
    copying = keras_nn_as_installed()._transpose_spatial_inputs
    monkeypatch.setattr(keras_nn, "_transpose_spatial_inputs", copying)
    for ours, theirs in zip(found, outputs_and_gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_keras_that_does_not_copy_is_left_alone(monkeypatch):
    def transpose(inputs):
        return torch.permute(inputs, (0, 3, 1, 2))

    monkeypatch.setattr(keras_nn, "_transpose_spatial_inputs", transpose)
    backend.torch._drop_copies_around_convolutions()
    assert keras_nn._transpose_spatial_inputs is transpose
    monkeypatch.delattr(keras_nn, "_transpose_spatial_inputs")
    backend.torch._drop_copies_around_convolutions()
    assert not hasattr(keras_nn, "_transpose_spatial_inputs")
