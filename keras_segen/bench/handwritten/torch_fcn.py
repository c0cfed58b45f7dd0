"""FCN-8s on VGG16 of `segmentation/fcn.py`, in plain PyTorch; trained as the U-Net beside it."""

from torch import nn
from torch.nn import functional as F

from keras_segen.bench.handwritten import torch_unet


class FCN(nn.Module):
    """From images `(batch, channels, height, width)` to logits `(batch, classes, height, width)`.

    `filters` are the channels of the five stages of VGG16, then those of fc6 and fc7.
    """

    def __init__(self, channels, num_classes, filters):
        super().__init__()
        a, b, c, d, e, f = filters
        self.conv1_1 = nn.Conv2d(channels, a, 3, padding=1)
        self.conv1_2 = nn.Conv2d(a, a, 3, padding=1)
        self.conv2_1 = nn.Conv2d(a, b, 3, padding=1)
        self.conv2_2 = nn.Conv2d(b, b, 3, padding=1)
        self.conv3_1 = nn.Conv2d(b, c, 3, padding=1)
        self.conv3_2 = nn.Conv2d(c, c, 3, padding=1)
        self.conv3_3 = nn.Conv2d(c, c, 3, padding=1)
        self.conv4_1 = nn.Conv2d(c, d, 3, padding=1)
        self.conv4_2 = nn.Conv2d(d, d, 3, padding=1)
        self.conv4_3 = nn.Conv2d(d, d, 3, padding=1)
        self.conv5_1 = nn.Conv2d(d, e, 3, padding=1)
        self.conv5_2 = nn.Conv2d(e, e, 3, padding=1)
        self.conv5_3 = nn.Conv2d(e, e, 3, padding=1)

        self.fc6 = nn.Conv2d(e, f, 7, padding=3)
        self.fc7 = nn.Conv2d(f, f, 1)
        self.score_fr = nn.Conv2d(f, num_classes, 1)
        self.score_pool4 = nn.Conv2d(d, num_classes, 1)
        self.score_pool3 = nn.Conv2d(c, num_classes, 1)

        self.upscore2 = enlarge(num_classes, 2)
        self.upscore_pool4 = enlarge(num_classes, 2)
        self.upscore8 = enlarge(num_classes, 8)
        self.upscore8.requires_grad_(False)  # fixed: bilinear interpolation

    def forward(self, images):
        # Five halvings; odd sizes are rounded up.
        x = F.relu(self.conv1_2(F.relu(self.conv1_1(images))))
        x = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.relu(self.conv2_2(F.relu(self.conv2_1(x))))
        x = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.relu(self.conv3_3(F.relu(self.conv3_2(F.relu(self.conv3_1(x))))))
        x = pool3 = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.relu(self.conv4_3(F.relu(self.conv4_2(F.relu(self.conv4_1(x))))))
        x = pool4 = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.relu(self.conv5_3(F.relu(self.conv5_2(F.relu(self.conv5_1(x))))))
        x = F.max_pool2d(x, 2, ceil_mode=True)

        # The classifier as convolutions; its scores, and those of finer features.
        x = self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x)))))
        x = crop(self.upscore2(x), pool4) + self.score_pool4(pool4)
        x = crop(self.upscore_pool4(x), pool3) + self.score_pool3(pool3)
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
