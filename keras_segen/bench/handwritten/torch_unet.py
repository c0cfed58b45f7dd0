"""The U-Net of `segmentation/unet.py` and its training, in plain PyTorch.

Modules take the place of the functional model, and a loop that of `fit`. Keras' images are
(batch, height, width, channels), PyTorch's (batch, channels, height, width); `permute` makes one
of the other without moving a number: it is then an image in `channels_last` memory format, the
one in which PyTorch's convolutions are fastest.
"""

import torch
from torch import nn
from torch.nn import functional as F

from keras_segen.bench.handwritten.torch_training import DEVICE, Adam, load_weights, read_weights


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, batch normalization, ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Up(DoubleConv):
    """Doubles height and width, takes the skip, convolves twice."""

    def __init__(self, inputs, outputs):
        super().__init__(2 * outputs, outputs)
        self.upconv = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

    def forward(self, x, skip):
        return super().forward(torch.cat([skip, self.upconv(x)], dim=1))


class UNet(nn.Module):
    """From images `(batch, channels, height, width)` to logits `(batch, classes, height, width)`.

    `filters` are the channels of each level, from the full size down.
    """

    def __init__(self, channels, num_classes, filters):
        super().__init__()
        *levels, bottom = filters
        inputs = [channels, *levels]
        self.down = nn.ModuleList(map(DoubleConv, inputs[:-1], levels))
        self.bottom = DoubleConv(levels[-1], bottom)
        self.up = nn.ModuleList(map(Up, filters[1:], levels))
        self.logits = nn.Conv2d(filters[0], num_classes, 1)

    def forward(self, x):
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for level, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = level(x, skip)
        return self.logits(x)


class Trainer:
    """A U-Net, its optimizer and the loop.

    Args:
        weights: arrays by name, see `torch_training.py`.
        channels: int, channels of the images.
        num_classes: int.
        filters: tuple of ints.
        learning_rate: float.
        epsilon: float, Adam's.
        ignore_class: int or None, the label of the pixels that are left out.
    """

    Network = UNet

    def __init__(
        self, weights, channels, num_classes, filters, learning_rate, epsilon, ignore_class=None
    ):
        self.network = self.Network(channels, num_classes, filters)
        load_weights(self.network, weights)
        self.network.to(DEVICE, memory_format=torch.channels_last)
        self.optimizer = Adam(self.network.parameters(), learning_rate, epsilon)
        self.loss = nn.CrossEntropyLoss(ignore_index=-100 if ignore_class is None else ignore_class)

    def train(self, batches):
        """Takes one step per batch.

        Args:
            batches: iterable of `(images, masks)`: float32 `(batch, height, width, channels)` and
                int32 `(batch, height, width)`, NumPy.

        Yields:
            The loss of each step, a tuple of one tensor.
        """
        self.network.train()
        for images, masks in batches:
            images = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
            masks = torch.from_numpy(masks).to(DEVICE, torch.int64)
            loss = self.loss(self.network(images), masks)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield (loss.detach(),)

    @torch.inference_mode()
    def predict(self, images):
        """Returns the logits of images, `(batch, height, width, classes)`: NumPy to NumPy."""
        self.network.eval()
        logits = self.network(torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2))
        return logits.permute(0, 2, 3, 1).numpy(force=True)

    def weights(self):
        """Returns the weights by name."""
        return read_weights(self.network)
