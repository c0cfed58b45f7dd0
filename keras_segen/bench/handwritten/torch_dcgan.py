"""The DCGAN of `generation/dcgan.py` and its training, in plain PyTorch.

The loop is that of `generation/gan.py`: D takes a step on real and fake images, G one on the same
codes, and the generator that makes images is a moving average of G.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from keras_segen.bench.handwritten.torch_training import DEVICE, Adam, load_weights, read_weights


class Double(nn.Module):
    """Doubles height and width: 4x4 transposed convolution, batch normalization, ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Halve(nn.Module):
    """Halves height and width: 4x4 convolution, batch normalization, leaky ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class Generator(nn.Module):
    """From codes `(batch, latent_dim)` to images `(batch, channels, height, width)` in [-1, 1].

    `filters` are the channels at half the image's size, a quarter of it, ….
    """

    def __init__(self, image_shape, latent_dim, filters):
        super().__init__()
        height, width, channels = image_shape
        self.smallest = (height >> len(filters), width >> len(filters), filters[-1])
        numbers = self.smallest[0] * self.smallest[1] * filters[-1]
        self.start = nn.Linear(latent_dim, numbers, bias=False)
        self.start_norm = nn.BatchNorm2d(filters[-1])
        self.up = nn.ModuleList(map(Double, filters[1:], filters[:-1]))
        self.image_conv = nn.ConvTranspose2d(filters[0], channels, 4, stride=2, padding=1)

    def forward(self, codes):
        x = self.start(codes).unflatten(1, self.smallest).permute(0, 3, 1, 2)
        x = F.relu(self.start_norm(x))
        for level in reversed(self.up):
            x = level(x)
        return torch.tanh(self.image_conv(x))


class Discriminator(nn.Module):
    """From images `(batch, channels, height, width)` in [-1, 1] to scores `(batch, 1)`."""

    def __init__(self, image_shape, filters):
        super().__init__()
        height, width, channels = image_shape
        self.down0_conv = nn.Conv2d(channels, filters[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList([nn.Identity(), *map(Halve, filters[:-1], filters[1:])])
        numbers = (height >> len(filters)) * (width >> len(filters)) * filters[-1]
        self.scores = nn.Linear(numbers, 1)

    def forward(self, images):
        x = F.leaky_relu(self.down0_conv(images), 0.2)
        for level in self.down:
            x = level(x)
        return self.scores(x.permute(0, 2, 3, 1).flatten(1))  # in Keras' order


class Trainer:
    """G, D and the average of G, two optimizers and the loop.

    Args:
        weights: arrays by name, such as `"generator/start/kernel"`; the parts are `generator`,
            `discriminator` and `average`. See `torch_training.py`.
        image_shape: tuple `(height, width, channels)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints.
        learning_rate: float.
        epsilon: float, Adam's.
        average: float, how much of the averaged generator stays in each step.
        draw: `callable(step, batch) -> codes`, float32 `(batch, latent_dim)`, NumPy; None for
            PyTorch's own.
    """

    def __init__(
        self, weights, image_shape, latent_dim, filters, learning_rate, epsilon, average, draw=None
    ):
        self.generator = Generator(image_shape, latent_dim, filters)
        self.discriminator = Discriminator(image_shape, filters)
        self.average = copy.deepcopy(self.generator)
        load_weights(self.generator, weights, prefix="generator/")
        load_weights(self.discriminator, weights, prefix="discriminator/")
        load_weights(self.average, weights, prefix="average/")
        for network in (self.generator, self.discriminator, self.average):
            network.to(DEVICE, memory_format=torch.channels_last)
        self.average.eval().requires_grad_(False)
        self.optimizer_g, self.optimizer_d = (
            Adam(network.parameters(), learning_rate, epsilon, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        )
        self.latent_dim = latent_dim
        self.keep = average
        self.draw = draw
        self.step = 0

    def train(self, batches):
        """Takes one step of D and one of G per batch.

        Args:
            batches: iterable of `(images, …)`: float32 `(batch, height, width, channels)` in
                [0, 1], NumPy; labels are not used.

        Yields:
            The loss of D and the loss of G of each step, a tuple of two tensors.
        """
        self.generator.train(), self.discriminator.train()
        for images, *_ in batches:
            real = 2 * torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2) - 1
            fake = self.generator(self.codes(len(images)))

            # D: high scores for real images, low ones for fakes. softplus(-s) is the binary
            # cross-entropy of a score s that should be high, softplus(s) of one that should not.
            d_loss = (
                F.softplus(-self.discriminator(real)).mean()
                + F.softplus(self.discriminator(fake.detach())).mean()
            )
            self.optimizer_d.zero_grad()
            d_loss.backward()
            self.optimizer_d.step()

            # G: images that the current D scores high.
            g_loss = F.softplus(-self.discriminator(fake)).mean()
            self.optimizer_g.zero_grad()
            g_loss.backward()
            self.optimizer_g.step()

            self.move_average()
            yield d_loss.detach(), g_loss.detach()

    def codes(self, batch):
        if self.draw is None:
            return torch.randn(batch, self.latent_dim, device=DEVICE)
        return torch.from_numpy(self.draw(self.step, batch)).to(DEVICE)

    @torch.no_grad()
    def move_average(self):
        """Moves the averaged generator a little toward G; faster during the first steps."""
        self.step += 1
        keep = min(self.keep, (self.step - 1) / (self.step + 9))
        now = self.generator.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():  # all but the counters of batch normalization
                value.lerp_(now[name], 1 - keep)

    @torch.inference_mode()
    def predict(self, codes):
        """Decodes codes to images in [0, 1]: NumPy to NumPy."""
        images = self.average(torch.from_numpy(codes).to(DEVICE))
        return ((images + 1) / 2).permute(0, 2, 3, 1).numpy(force=True)

    def weights(self):
        """Returns the weights of G and of its average by name.

        Not those of D: its running averages, which no score in training depends on, also move
        in G's turn here.
        """
        generator = read_weights(self.generator, prefix="generator/")
        return generator | read_weights(self.average, prefix="average/")
