"""The Mask R-CNN of `segmentation/mask_rcnn.py`, on its small encoder, in plain PyTorch.

Modules take the place of the functional models, and functions of batched tensors that of
torchvision's loops over images: shapes are static, slots with flags. What is chosen but not learned
(objects, anchors, proposals, targets) is computed without gradients.

`stages` are the numbers of the network: an object with the attributes of
`segmentation.mask_rcnn.Stages`, as many strides as anchor sizes, one sample in a bin.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from keras_segen.bench.handwritten.torch_training import DEVICE, Adam, load_weights, read_weights

RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
RPN_WEIGHTS, ROI_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
LARGEST = float(np.log(1000 / 16))  # log of how much larger than its anchor a box may become
SMALLEST = 1e-3  # pixels
VOID = 255  # in planes: neither object nor background
CANDIDATES = 1000  # boxes with a class, before those that overlap are removed
MIN_SCORE = 0.05
PARTS = ("encoder", "pyramid", "rpn", "box_head", "mask_head")


class ConvNorm(nn.Module):
    """3x3 convolution, batch normalization, ReLU."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        padding = 1 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1)

    def forward(self, x):
        if self.conv.stride == (2, 2):  # Keras pads even sides at the end only
            x = F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return F.relu(self.norm(self.conv(x)))


class Stage(nn.Module):
    """Halves height and width; then a residual block."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.down = ConvNorm(inputs, outputs, stride=2)
        self.conv = ConvNorm(outputs, outputs)
        self.branch = ConvNorm(outputs, outputs)

    def forward(self, x):
        x = self.conv(self.down(x))
        return x + self.branch(x)


class Encoder(nn.Module):
    """From images to a list of features at strides 2, 4, 8, …."""

    def __init__(self, channels, filters):
        super().__init__()
        first = ConvNorm(channels, filters[0], stride=2)
        self.stage = nn.ModuleList([first, *map(Stage, filters[:-1], filters[1:])])

    def forward(self, images):
        features = [2 * images - 1]
        for stage in self.stage:
            features.append(stage(features[-1]))
        return features[1:]


class Level(nn.Conv2d):
    """A level of the pyramid: a 3x3 convolution; `lateral` brings the encoder's features to it."""

    def __init__(self, inputs, outputs):
        super().__init__(outputs, outputs, 3, padding=1)
        self.lateral = nn.Conv2d(inputs, outputs, 1)


class Pyramid(nn.Module):
    """From features, the finest first, to as many levels of equal depth."""

    def __init__(self, inputs, filters):
        super().__init__()
        self.fpn = nn.ModuleList(Level(channels, filters) for channels in inputs)

    def forward(self, features):
        levels, above = [], None
        for level, x in zip(reversed(self.fpn), reversed(features), strict=True):
            x = level.lateral(x)
            if above is not None:
                x = x + F.interpolate(above, scale_factor=2)[:, :, : x.shape[2], : x.shape[3]]
            levels.append(level(x))
            above = x
        return levels[::-1]


class RPN(nn.Module):
    """From a level to a score `(batch, n)` and a move `(batch, n, 4)` for each anchor."""

    def __init__(self, filters):
        super().__init__()
        self.conv = nn.Conv2d(filters, filters, 3, padding=1)
        self.scores = nn.Conv2d(filters, len(RATIOS), 1)
        self.deltas = nn.Conv2d(filters, 4 * len(RATIOS), 1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        scores, deltas = (
            y.permute(0, 2, 3, 1).flatten(1) for y in (self.scores(x), self.deltas(x))
        )
        return scores, deltas.unflatten(1, (-1, 4))


class BoxHead(nn.Module):
    """From `(n, 7, 7, filters)` to a logit for each class and the background, and moves."""

    def __init__(self, num_classes, filters, units):
        super().__init__()
        self.dense1 = nn.Linear(49 * filters, units)
        self.dense2 = nn.Linear(units, units)
        self.logits = nn.Linear(units, num_classes + 1)
        self.deltas = nn.Linear(units, 4 * num_classes)

    def forward(self, x):
        x = F.relu(self.dense2(F.relu(self.dense1(x.flatten(1)))))
        return self.logits(x), self.deltas(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """From `(n, 14, 14, filters)` to logits `(n, classes, 28, 28)`."""

    def __init__(self, num_classes, filters, mask_filters):
        super().__init__()
        self.conv = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1)
            for inputs, outputs in zip([filters, *mask_filters], mask_filters, strict=False)
        )
        self.upconv = nn.ConvTranspose2d(mask_filters[-1], mask_filters[-1], 2, stride=2)
        self.logits = nn.Conv2d(mask_filters[-1], num_classes, 1)

    def forward(self, x):
        x = x.permute(0, 3, 1, 2)
        for conv in self.conv:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upconv(x)))


class MaskRCNN(nn.Module):
    """The networks; what happens between them is the trainer's."""

    def __init__(self, channels, num_classes, filters, stages):
        super().__init__()
        self.places = [stride.bit_length() - 2 for stride in stages.strides]
        filters = filters[: max(self.places) + 1]
        self.encoder = Encoder(channels, filters)
        inputs = [filters[place] for place in self.places]
        self.pyramid = Pyramid(inputs, stages.pyramid_filters)
        self.rpn = RPN(stages.pyramid_filters)
        self.box_head = BoxHead(num_classes, stages.pyramid_filters, stages.box_units)
        self.mask_head = MaskHead(num_classes, stages.pyramid_filters, stages.mask_filters)

    def forward(self, images):
        """Images to levels, scores and moves, three lists."""
        features = self.encoder(images)
        levels = self.pyramid([features[place] for place in self.places])
        scores, deltas = zip(*map(self.rpn, levels), strict=True)
        return levels, scores, deltas


class Trainer:
    """A Mask R-CNN, its optimizer and the loop.

    Args:
        weights: arrays by name, see `torch_training.py`; before each name one of `PARTS`.
        image_shape: tuple `(height, width, channels)`.
        num_classes: int, without the background.
        max_instances: int, slots for the true objects of an image.
        stages: see above.
        filters: tuple of ints, of the encoder.
        learning_rate: float.
        epsilon: float, Adam's.
        draw: `callable(name, step, batch, columns) -> noise`, uniform, float32 `(batch, columns)`,
            NumPy: for the "anchors" and "proposals" that are sampled; None for PyTorch's own.
    """

    def __init__(
        self,
        weights,
        image_shape,
        num_classes,
        max_instances,
        stages,
        filters,
        learning_rate,
        epsilon,
        draw=None,
    ):
        self.network = MaskRCNN(image_shape[2], num_classes, filters, stages)
        for part in PARTS:
            load_weights(getattr(self.network, part), weights, f"{part}/")
        self.network.to(DEVICE, memory_format=torch.channels_last)
        self.optimizer = Adam(self.network.parameters(), learning_rate, epsilon)
        self.image_size = image_shape[:2]
        self.num_classes = num_classes
        self.max_instances = max_instances
        self.stages = stages
        self.draw = draw
        self.step = 0
        self.anchors = [
            anchors(self.image_size, stride, size).to(DEVICE)
            for stride, size in zip(stages.strides, stages.anchor_sizes, strict=True)
        ]
        self.all_anchors = torch.cat(self.anchors)

    def train(self, batches):
        """Takes one step per batch.

        Args:
            batches: iterable of `(images, planes)`: float32 `(batch, height, width, channels)` in
                [0, 1] and int32 `(batch, height, width)`, `256 * class + number`, NumPy.

        Yields:
            The losses of each step, a tuple of tensors: the sum, and those of the RPN's scores and
            boxes, of classes, boxes and masks.
        """
        self.network.train()
        for images, planes in batches:
            images = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
            losses = self.losses(images, torch.from_numpy(planes).to(DEVICE))
            loss = sum(losses)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            yield tuple(each.detach() for each in (loss, *losses))

    def losses(self, images, planes):
        """The five losses of a batch."""
        levels, scores, deltas = self.network(images)
        pixels = flatten(levels)
        with torch.no_grad():
            true_boxes, classes = instances(planes, self.max_instances)
            truth = true_boxes, classes, sums_above(planes == VOID)
            index, positive, sampled, target = self.anchor_targets(truth)
        scores_found = torch.cat(scores, 1).gather(1, index)
        moves = take(torch.cat(deltas, 1), index)
        number = sampled.sum().clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(
            scores_found, positive.float(), reduction="none"
        )
        rpn_class_loss = (entropy * sampled).sum() / number
        distance = F.smooth_l1_loss(moves, target, reduction="none", beta=1 / 9).sum(-1)
        rpn_box_loss = (distance * positive).sum() / number

        with torch.no_grad():
            boxes, found = self.propose(scores, deltas)
            boxes, which, classes, sampled = self.roi_targets(boxes, found, truth)
        logits, deltas = self.network.box_head(self.align(pixels, boxes, 7))
        number = sampled.sum().clamp(min=1)
        entropy = F.cross_entropy(logits, classes.flatten(), reduction="none")
        class_loss = (entropy * sampled.flatten()).sum() / number

        # The positive ones are in the first slots.
        count, most = boxes.shape[1], boxes.shape[1] // 4
        boxes, which, classes = (x[:, :most].contiguous() for x in (boxes, which, classes))
        with torch.no_grad():
            positive = classes > 0
            own = (classes - 1).clamp(min=0).flatten()
            slots = torch.arange(len(own), device=own.device)
            target = encode(take(true_boxes, which), boxes, ROI_WEIGHTS)
            masks_target = crop(planes % 256, which + 1, boxes, 28).flatten(0, 1) >= 0.5
        deltas = deltas.unflatten(0, (-1, count))[:, :most].flatten(0, 1)[slots, own]
        distance = F.smooth_l1_loss(deltas, target.flatten(0, 1), reduction="none").sum(-1)
        box_loss = (distance * positive.flatten()).sum() / number

        masks = self.network.mask_head(self.align(pixels, boxes, 14))[slots, own]
        entropy = F.binary_cross_entropy_with_logits(masks, masks_target.float(), reduction="none")
        entropy = entropy.mean((1, 2)) * positive.flatten()
        mask_loss = entropy.sum() / positive.sum().clamp(min=1)
        return rpn_class_loss, rpn_box_loss, class_loss, box_loss, mask_loss

    def anchor_targets(self, truth):
        """Which anchors the RPN learns from, which of them are positive, and their moves."""
        true_boxes, classes, void = truth
        boxes = self.all_anchors[None]
        overlap, best, which = compare(boxes, true_boxes, classes)
        favorite = ((overlap > 0) & (overlap >= overlap.amax(2, keepdim=True))).any(1)
        positive = (best >= 0.7) | favorite
        negative = (best < 0.3) & (share_of(void, boxes, self.image_size) <= 0.5) & ~positive
        count = min(self.stages.anchors_sampled, boxes.shape[1])
        noise = self.noise("anchors", *positive.shape)
        index, positive, sampled = sample(positive, negative, noise, count, count // 2)
        target = take(true_boxes, which.gather(1, index))
        return index, positive, sampled, encode(target, self.all_anchors[index], RPN_WEIGHTS)

    def roi_targets(self, boxes, found, truth):
        """Which boxes the heads learn from, whose and of which class, and which slots hold one."""
        true_boxes, true_classes, void = truth
        boxes = torch.cat([boxes, true_boxes], 1)
        found = torch.cat([found, true_classes > 0], 1)
        _, best, which = compare(boxes, true_boxes, true_classes)
        positive = found & (best >= 0.5)
        negative = found & (best < 0.5) & (share_of(void, boxes, self.image_size) <= 0.5)
        count = min(self.stages.boxes_sampled, boxes.shape[1])
        noise = self.noise("proposals", *positive.shape)
        index, positive, sampled = sample(positive, negative, noise, count, count // 4)
        which = which.gather(1, index)
        return take(boxes, index), which, true_classes.gather(1, which) * positive, sampled

    def noise(self, name, batch, columns):
        if self.draw is None:
            return torch.rand(batch, columns, device=DEVICE)
        return torch.from_numpy(self.draw(name, self.step, batch, columns)).to(DEVICE)

    def propose(self, scores, deltas):
        """The boxes of the highest scores that do not overlap: `(batch, kept, 4)` and flags."""
        before, kept = self.stages.proposals
        found, moves, references = [], [], []
        for level, level_scores, level_deltas in zip(self.anchors, scores, deltas, strict=True):
            level_scores, index = highest(level_scores, min(before, len(level)))
            short = before - index.shape[1]
            found.append(F.pad(level_scores, (0, short), value=-torch.inf))
            moves.append(F.pad(take(level_deltas, index), (0, 0, 0, short)))
            references.append(F.pad(level[index], (0, 0, 0, short)))
        scores = torch.stack(found, 1)  # (batch, levels, before)
        boxes = decode(torch.stack(moves, 1), torch.stack(references, 1), RPN_WEIGHTS)
        boxes = clip(boxes, self.image_size)
        stays = nms(boxes.flatten(0, 1), scores.flatten(0, 1), 0.7).view_as(scores)
        scores = torch.where(stays, scores, -torch.inf).flatten(1)
        scores, index = highest(scores, min(kept, len(self.all_anchors)))
        return take(boxes.flatten(1, 2), index), scores > -torch.inf

    def align(self, pixels, boxes, size):
        """ROIAlign with one sample in a bin: `(batch * n, size, size, channels)`.

        A point is the weighted sum of four rows of `pixels`: that is an embedding bag.

        Args:
            pixels: the levels' pixels, one after the other: `(batch * pixels, channels)`.
            boxes: `(batch, n, 4)`.
            size: int.
        """
        strides = self.stages.strides
        sides = [[-(-side // stride) for side in self.image_size] for stride in strides]
        starts = np.cumsum([0] + [height * width for height, width in sides])
        table = torch.tensor(
            [(*side, start) for side, start in zip(sides, starts, strict=False)], device=DEVICE
        )
        with torch.no_grad():
            # Levels on which the boxes are 7 to 14 pixels wide.
            level = 0.5 * torch.log2(area(boxes).clamp(min=1e-4) / (7 * strides[0]) ** 2) + 1e-6
            level = level.floor().clamp(0, len(strides) - 1).long()
            height, width, start = table[level].unbind(-1)
            images = torch.arange(len(boxes), device=DEVICE)[:, None]
            start = start + images * int(starts[-1])
            boxes = (
                boxes / torch.tensor(strides, device=DEVICE, dtype=boxes.dtype)[level][..., None]
            )
            points, weights = neighbors(boxes, height[..., None], width[..., None], size)
            (top, bottom), (left, right) = points
            below, beyond = weights
            rows = start[..., None] + torch.stack([top, bottom], -1).flatten(2) * width[..., None]
            rows = rows.unflatten(2, (size, 2))[..., :, None, :, None]
            index = rows + torch.stack([left, right], -1)[..., None, :, None, :]
            vertical = torch.stack([1 - below, below], -1)[..., :, None, :, None]
            weight = vertical * torch.stack([1 - beyond, beyond], -1)[..., None, :, None, :]
        aligned = F.embedding_bag(
            index.view(-1, 4), pixels, mode="sum", per_sample_weights=weight.view(-1, 4)
        )
        return aligned.view(-1, size, size, pixels.shape[1])

    @torch.inference_mode()
    def predict(self, images):
        """Finds the objects of images: NumPy to NumPy.

        Returns:
            Dict of boxes `(batch, n, 4)`, classes `(batch, n)`, 0 for an empty slot, scores
            `(batch, n)` and masks `(batch, n, 28, 28)`.
        """
        self.network.eval()
        images = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
        levels, scores, deltas = self.network(images)
        pixels = flatten(levels)
        proposals, found = self.propose(scores, deltas)
        batch, count = found.shape
        logits, deltas = self.network.box_head(self.align(pixels, proposals, 7))

        # Each proposal as each class.
        scores = logits.softmax(-1)[:, 1:].reshape(batch, count, -1)
        certain = found[..., None] & (scores > MIN_SCORE)
        scores = torch.where(certain, scores, -torch.inf).flatten(1)
        boxes = decode(deltas.unflatten(0, (batch, count)), proposals[:, :, None], ROI_WEIGHTS)
        boxes = clip(boxes, self.image_size).flatten(1, 2)
        scores, index = highest(scores, min(CANDIDATES, scores.shape[1]))
        boxes, classes = take(boxes, index), index % self.num_classes + 1
        stays = nms(boxes, scores, 0.5, classes)
        scores, index = highest(torch.where(stays, scores, -torch.inf), self.stages.detections)
        found = scores > -torch.inf
        boxes = torch.where(found[..., None], take(boxes, index), 0.0)
        classes = torch.where(found, classes.gather(1, index), 0)

        masks = self.network.mask_head(self.align(pixels, boxes, 14))
        slots = torch.arange(len(masks), device=masks.device)
        masks = masks[slots, (classes - 1).clamp(min=0).flatten()].sigmoid()
        masks = torch.where(found[..., None, None], masks.unflatten(0, found.shape), 0.0)
        results = {
            "boxes": boxes,
            "classes": classes,
            "scores": torch.where(found, scores, 0.0),
            "masks": masks,
        }
        return {name: values.numpy(force=True) for name, values in results.items()}

    def weights(self):
        """Returns the weights by name."""
        found = {}
        for part in PARTS:
            found |= read_weights(getattr(self.network, part), f"{part}/")
        return found


def anchors(image_size, stride, size):
    """Boxes `(x1, y1, x2, y2)` around each pixel of a level, of several proportions: `(n, 4)`."""
    rows, columns = (-(-side // stride) for side in image_size)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centers = (np.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride
    halves = np.array([[ratio**-0.5, ratio**0.5] for ratio in RATIOS]) / 2 * size
    boxes = np.concatenate([centers - halves, centers + halves], -1)
    return torch.from_numpy(boxes.reshape(-1, 4).astype(np.float32))


def flatten(levels):
    """The pixels of all levels, image by image: `(batch * pixels, channels)`."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in levels], 1).flatten(0, 1)


def instances(planes, slots):
    """Boxes `(batch, slots, 4)` and classes `(batch, slots)` of the objects; 0 for empty slots."""
    batch, height, width = planes.shape
    numbers = (planes % 256).long()
    rows = numbers.new_zeros((batch, height, 256), dtype=torch.uint8).scatter_(2, numbers, 1)
    columns = numbers.new_zeros((batch, width, 256), dtype=torch.uint8)
    columns.scatter_(2, numbers.transpose(1, 2), 1)
    classes = numbers.new_zeros((batch, 256))
    classes.scatter_(1, numbers.flatten(1), (planes // 256).long().flatten(1))
    rows, columns = rows[..., 1 : slots + 1], columns[..., 1 : slots + 1]
    top, bottom = rows.argmax(1), height - rows.flip(1).argmax(1)
    left, right = columns.argmax(1), width - columns.flip(1).argmax(1)
    classes = classes[:, 1 : slots + 1]
    boxes = torch.stack([left, top, right, bottom], -1) * (classes > 0)[..., None]
    return boxes.float(), classes


def take(values, index):
    """Rows `(batch, m, c)` of values `(batch, n, c)`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def highest(values, count):
    """The highest values of each row and their places; of equal ones the first comes first."""
    values, index = values.sort(dim=1, descending=True, stable=True)
    return values[:, :count], index[:, :count]


def area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection_and_union(first, second):
    """Of all pairs of `(batch, n, 4)` and `(batch, m, 4)`: `(batch, n, m)` each."""
    areas = area(first)[..., :, None] + area(second)[..., None, :]
    left, top, right, bottom = first[..., None].unbind(-2)
    x1, y1, x2, y2 = second.mT.contiguous()[..., None, :].unbind(-3)
    width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp_(min=0)
    height = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp_(min=0)
    intersection = width.mul_(height)
    return intersection, areas.sub_(intersection)


def compare(boxes, true_boxes, classes):
    """IoU `(batch, objects, n)`, -1 for empty slots; the best of each box, and whose it is."""
    intersection, union = intersection_and_union(true_boxes, boxes)
    overlap = intersection.div_(union.clamp_(min=1e-9))
    overlap.masked_fill_((classes == 0)[..., None], -1.0)
    return overlap, *overlap.max(1)


def nms(boxes, scores, threshold, groups=None):
    """Which of boxes, sorted by score, overlap none that stays before them: bool `(batch, n)`.

    Ask all boxes at once, until no answer changes; the empty slots have a score of -inf.
    """
    intersection, union = intersection_and_union(boxes, boxes)
    overlap = intersection > threshold * union
    if groups is not None:
        overlap &= groups[:, :, None] == groups[:, None, :]
    suppresses = overlap.triu(1).float()  # [i, j]: i would remove j
    stays = there = (scores > -torch.inf).float()
    while True:
        before = stays
        stays = there * (torch.bmm(stays[:, None], suppresses)[:, 0] < 0.5)
        if torch.equal(stays, before):
            return stays > 0


def sample(first, second, noise, count, most):
    """Draws `count` boxes by lot, at most `most` of the first kind, which take the first slots.

    Returns:
        Their places `(batch, count)`, which are of the first kind, and which slots hold a box.
    """
    value, index = torch.where(first, noise, -1.0).topk(most)
    filling_value, filling = torch.where(second, noise, -1.0).topk(count)
    slots = torch.arange(count, device=noise.device)[None]
    num_first = (value > 0).sum(1, keepdim=True)
    of_first = slots < num_first
    place = torch.where(of_first, slots, most + slots - num_first)
    found = torch.cat([value, filling_value], 1).gather(1, place) > 0
    return torch.cat([index, filling], 1).gather(1, place), of_first, found


def encode(boxes, references, weights):
    """Where boxes lie as seen from references: `(…, 4)`."""
    sides = (references[..., 2:] - references[..., :2]).clamp(min=SMALLEST)
    grown = (boxes[..., 2:] - boxes[..., :2]).clamp(min=SMALLEST)
    moved = boxes[..., :2] + boxes[..., 2:] - references[..., :2] - references[..., 2:]
    moves = torch.cat([moved / (2 * sides), torch.log(grown / sides)], -1)
    return moves * moves.new_tensor(weights)


def decode(deltas, references, weights):
    """The boxes of which `encode` says where they lie."""
    deltas = deltas / deltas.new_tensor(weights)
    sides = references[..., 2:] - references[..., :2]
    centers = (references[..., :2] + references[..., 2:]) / 2 + deltas[..., :2] * sides
    halves = deltas[..., 2:].clamp(max=LARGEST).exp() * sides / 2
    return torch.cat([centers - halves, centers + halves], -1)


def clip(boxes, image_size):
    """Cuts boxes at the border of the image."""
    height, width = image_size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor((width, height, width, height)))


def sums_above(pixels):
    """How many pixels above and to the left of each corner are marked: `(batch, h + 1, w + 1)`."""
    return F.pad(pixels.float().cumsum(1).cumsum(2), (1, 0, 1, 0))


def share_of(sums, boxes, image_size):
    """The share of the pixels of boxes that are marked: `(batch, n)`."""
    x1, y1, x2, y2 = clip(boxes, image_size).round().long().unbind(-1)
    image = torch.arange(len(sums), device=sums.device)[:, None]
    marked = sums[image, y2, x2] - sums[image, y1, x2] - sums[image, y2, x1] + sums[image, y1, x1]
    return marked / ((x2 - x1) * (y2 - y1)).clamp(min=1)


def neighbors(boxes, height, width, count):
    """The pixels around count x count points of boxes `(batch, n, 4)`.

    Returns:
        (top, bottom), (left, right): integers `(batch, n, count)`.
        below, beyond: how far on the way from one to the other a point lies.
    """
    steps = (torch.arange(count, device=boxes.device, dtype=torch.float64) + 0.5) / count
    steps = steps.float()
    points, weights = [], []
    for start, end, length in (
        (boxes[..., 1:2], boxes[..., 3:4], height),
        (boxes[..., 0:1], boxes[..., 2:3], width),
    ):
        places = (start + (end - start) * steps - 0.5).clamp(min=0)
        places = torch.minimum(places, torch.as_tensor(length - 1, dtype=torch.float32))
        low = places.floor()
        before = low.long()
        after = torch.minimum(before + 1, torch.as_tensor(length - 1))
        points.append((before, after))
        weights.append(places - low)
    return points, weights


def crop(planes, numbers, boxes, size):
    """The masks of objects `numbers` `(batch, n)` within boxes: `(batch, n, size, size)`."""
    batch, height, width = planes.shape
    ((top, bottom), (left, right)), (below, beyond) = neighbors(boxes, height, width, size)
    below, beyond = below[..., :, None], beyond[..., None, :]
    image = torch.arange(batch, device=planes.device)[:, None, None, None]

    def at(y, x):
        return (planes[image, y[..., :, None], x[..., None, :]] == numbers[..., None, None]).float()

    upper = at(top, left) * (1 - beyond) + at(top, right) * beyond
    lower = at(bottom, left) * (1 - beyond) + at(bottom, right) * beyond
    return upper * (1 - below) + lower * below
