"""FCN-8s on VGG16 of `segmentation/fcn.py`, in plain PyTorch; trained as the U-Net beside it."""

from torch import nn
from torch.nn import functional as F

from keras_segen.bench.handwritten import torch_unet

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each stage


class FCN(nn.Module):
    """From images `(batch, channels, height, width)` to logits `(batch, classes, height, width)`.

    `filters` are the channels of the five stages of VGG16, then those of fc6 and fc7.
    """

    def __init__(self, channels, num_classes, filters):
        super().__init__()
        for stage, (count, outputs) in enumerate(zip(CONVOLUTIONS, filters[:5], strict=True), 1):
            for i in range(1, count + 1):
                self.add_module(f"conv{stage}_{i}", nn.Conv2d(channels, outputs, 3, padding=1))
                channels = outputs

        self.fc6 = nn.Conv2d(channels, filters[5], 7, padding=3)
        self.fc7 = nn.Conv2d(filters[5], filters[5], 1)
        self.score_fr = nn.Conv2d(filters[5], num_classes, 1)
        self.score_pool4 = nn.Conv2d(filters[3], num_classes, 1)
        self.score_pool3 = nn.Conv2d(filters[2], num_classes, 1)

        self.upscore2 = enlarge(num_classes, 2)
        self.upscore_pool4 = enlarge(num_classes, 2)
        self.upscore8 = enlarge(num_classes, 8)
        self.upscore8.requires_grad_(False)  # fixed: bilinear interpolation

    def forward(self, images):
        # Five halvings; odd sizes are rounded up.
        x, pools = images, []
        for stage, count in enumerate(CONVOLUTIONS, 1):
            for i in range(1, count + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{i}")(x))
            x = F.max_pool2d(x, 2, ceil_mode=True)
            pools.append(x)

        # The classifier as convolutions; its scores, and those of finer features.
        x = self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x)))))
        x = crop(self.upscore2(x), pools[3]) + self.score_pool4(pools[3])
        x = crop(self.upscore_pool4(x), pools[2]) + self.score_pool3(pools[2])
        return crop(self.upscore8(x), images)


def enlarge(channels, factor):
    """A transposed convolution that makes pictures `factor` times as large."""
    return nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False
    )


def crop(x, like):
    """Cuts what rounding up gave too much."""
    return x[:, :, : like.shape[2], : like.shape[3]]


class Trainer(torch_unet.Trainer):
    """The loop of the U-Net, on this network."""

    Network = FCN
