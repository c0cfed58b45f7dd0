"""What the loops in PyTorch share: weights from Keras and back, by the names of layers, and Adam.

The modules here have the addresses of our layers: `down.0.conv1` is the layer `down0_conv1`,
`up.1.norm` is `up1_norm`. What differs is the order of the axes:

    layer                Keras                                   PyTorch
    Conv2D               kernel (height, width, in, out)         weight (out, in, height, width)
    Conv2DTranspose      kernel (height, width, out, in)         weight (in, out, height, width)
    Dense                kernel (in, out)                        weight (out, in)
    BatchNormalization   gamma, beta                             weight, bias
                         moving_mean, moving_variance            running_mean, running_var

PyTorch remembers a variance with n - 1 in the divisor where Keras has n, the number of values.
"""

import math
import re

import numpy as np
import torch
from torch import nn

# A GPU if there is one, as Keras chooses.
DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

NORMALIZATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # number of axes -> their order
TO_KERAS = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def load_weights(network, weights, prefix=""):
    """Fills a module from arrays by name, such as `"down0_conv1/kernel"`, after a prefix.

    Raises:
        KeyError: when a weight of the module is not among them.
    """
    with torch.no_grad():
        for name, tensor in named_tensors(network):
            array = np.asarray(weights[prefix + name])
            tensor.copy_(torch.from_numpy(array.transpose(TO_TORCH[array.ndim]).copy()))


def read_weights(network, prefix=""):
    """Returns the weights of a module by name, in Keras' order of axes."""
    arrays = {prefix + name: tensor.numpy(force=True) for name, tensor in named_tensors(network)}
    return {name: array.transpose(TO_KERAS[array.ndim]).copy() for name, array in arrays.items()}


def named_tensors(network):
    """Yields the weights of a module under Keras' names."""
    for address, module in network.named_modules():
        layer = re.sub(r"\.(\d+)", r"\1", address).replace(".", "_")
        names = {"weight": "kernel", "bias": "bias"}
        if isinstance(module, nn.BatchNorm2d):
            names = NORMALIZATION
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if name != "num_batches_tracked":
                yield f"{layer}/{names[name]}", tensor


class Adam(torch.optim.Adam):
    """PyTorch's Adam with epsilon at the place where Keras and TensorFlow have it.

    After t steps PyTorch divides by `sqrt(v / (1 - beta_2**t)) + epsilon`, where the others have
    epsilon under the factor: `(sqrt(v) + epsilon) / sqrt(1 - beta_2**t)`. In the first steps that
    is another number for weights whose gradient is as small as epsilon.
    """

    def __init__(self, parameters, learning_rate, epsilon, betas=(0.9, 0.999)):
        super().__init__(parameters, learning_rate, betas)
        self.epsilon = epsilon
        self.steps = 0

    def step(self):
        self.steps += 1
        for group in self.param_groups:
            group["eps"] = self.epsilon / math.sqrt(1 - group["betas"][1] ** self.steps)
        super().step()
