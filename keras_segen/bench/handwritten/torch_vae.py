"""The VAE of `generation/vae.py`, with a Bernoulli decoder, and its training, in plain PyTorch."""

import torch
from torch import nn
from torch.nn import functional as F

from keras_segen.bench.handwritten.torch_training import DEVICE, Adam, load_weights, read_weights


class Encoder(nn.Module):
    """From images `(batch, channels, height, width)` in [-1, 1] to mean and log variance."""

    def __init__(self, image_shape, latent_dim, filters):
        super().__init__()
        height, width, channels = image_shape
        self.down = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
            for inputs, outputs in zip([channels, *filters], filters, strict=False)
        )
        numbers = (height >> len(filters)) * (width >> len(filters)) * filters[-1]
        self.mean = nn.Linear(numbers, latent_dim)
        self.log_variance = nn.Linear(numbers, latent_dim)

    def forward(self, x):
        for level in self.down:
            x = F.silu(level(x))
        x = x.permute(0, 2, 3, 1).flatten(1)  # in Keras' order
        return self.mean(x), self.log_variance(x)


class Decoder(nn.Module):
    """From codes `(batch, latent_dim)` to logits `(batch, channels, height, width)`."""

    def __init__(self, image_shape, latent_dim, filters):
        super().__init__()
        height, width, channels = image_shape
        self.smallest = (height >> len(filters), width >> len(filters), filters[-1])
        self.start = nn.Linear(latent_dim, self.smallest[0] * self.smallest[1] * filters[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
            for inputs, outputs in zip([*filters[1:], filters[-1]], filters, strict=True)
        )
        self.images = nn.Conv2d(filters[0], channels, 3, padding=1)

    def forward(self, codes):
        x = F.silu(self.start(codes)).unflatten(1, self.smallest).permute(0, 3, 1, 2)
        for level in reversed(self.up):
            x = F.silu(level(x))
        return self.images(x)


class VAE(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, image_shape, latent_dim, filters):
        super().__init__()
        self.encoder = Encoder(image_shape, latent_dim, filters)
        self.decoder = Decoder(image_shape, latent_dim, filters)


class Trainer:
    """A VAE, its optimizer and the loop.

    Args:
        weights: arrays by name, see `torch_training.py`.
        image_shape: tuple `(height, width, channels)`.
        latent_dim: int, numbers in a code.
        filters: tuple of ints.
        learning_rate: float.
        epsilon: float, Adam's.
        draw: `callable(step, batch) -> noise`, float32 `(batch, latent_dim)`, NumPy; None for
            PyTorch's own.
    """

    def __init__(
        self, weights, image_shape, latent_dim, filters, learning_rate, epsilon, draw=None
    ):
        self.network = VAE(image_shape, latent_dim, filters)
        load_weights(self.network.encoder, weights)
        load_weights(self.network.decoder, weights)
        self.network.to(DEVICE, memory_format=torch.channels_last)
        self.optimizer = Adam(self.network.parameters(), learning_rate, epsilon)
        self.draw = draw
        self.step = 0

    def train(self, batches):
        """Takes one step per batch.

        Args:
            batches: iterable of `(images, …)`: float32 `(batch, height, width, channels)` in
                [0, 1], NumPy; labels are not used.

        Yields:
            The loss of each step, the negative bound in nats, a tuple of one tensor.
        """
        for images, *_ in batches:
            images = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
            mean, log_variance = self.network.encoder(2 * images - 1)
            noise = self.noise(mean)
            logits = self.network.decoder(mean + torch.exp(log_variance / 2) * noise)

            # The reconstruction error, and the KL divergence of the codes from N(0, 1).
            reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
            loss = (reconstruction + divergence) / len(images)

            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            yield (loss.detach(),)

    def noise(self, mean):
        if self.draw is None:
            return torch.randn_like(mean)
        return torch.from_numpy(self.draw(self.step, len(mean))).to(DEVICE)

    @torch.inference_mode()
    def predict(self, images):
        """Encodes images in [0, 1] and decodes their mean codes: NumPy to NumPy."""
        images = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
        mean, _ = self.network.encoder(2 * images - 1)
        logits = self.network.decoder(mean)
        return torch.sigmoid(logits).permute(0, 2, 3, 1).numpy(force=True)

    def weights(self):
        """Returns the weights by name."""
        return read_weights(self.network.encoder) | read_weights(self.network.decoder)
