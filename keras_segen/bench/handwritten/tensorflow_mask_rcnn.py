"""The Mask R-CNN of `segmentation/mask_rcnn.py`, on its small encoder, in plain TensorFlow.

Functions of variables take the place of the functional models, and a step compiled by `tf.function`
that of `fit`. Shapes are static: slots with flags. TensorFlow has kernels for two of the parts:
suppression of boxes that overlap, in all levels or classes at once, and ROIAlign.

`stages` are the numbers of the network: an object with the attributes of
`segmentation.mask_rcnn.Stages`, as many strides as anchor sizes, one sample in a bin.
"""

import numpy as np
import tensorflow as tf

from keras_segen.bench.handwritten.tensorflow_training import (
    Adam,
    batch_norm,
    make_variables,
    read_variables,
    trainable,
)

RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
RPN_WEIGHTS, ROI_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
LARGEST = float(np.log(1000 / 16))  # log of how much larger than its anchor a box may become
SMALLEST = 1e-3  # pixels
VOID = 255  # in planes: neither object nor background
MIN_SCORE = 0.05


def encoder(variables, images, depth, training):
    """From images to a list of features at strides 2, 4, 8, …, as many as `depth`."""
    x = conv_norm(variables, 2 * images - 1, "stage0", training, strides=2)
    features = [x]
    for stage in range(1, depth):
        x = conv_norm(variables, x, f"stage{stage}_down", training, strides=2)
        x = conv_norm(variables, x, f"stage{stage}_conv", training)
        x += conv_norm(variables, x, f"stage{stage}_branch", training)
        features.append(x)
    return features


def conv_norm(variables, x, name, training, strides=1):
    """3x3 convolution, batch normalization, ReLU."""
    x = tf.nn.conv2d(x, variables[f"encoder/{name}_conv/kernel"], strides, "SAME")
    return tf.nn.relu(batch_norm(variables, x, f"encoder/{name}_norm", training))


def pyramid(variables, features):
    """From features, the finest first, to as many levels of equal depth."""
    levels, above = [], None
    for level in reversed(range(len(features))):
        x = conv(variables, features[level], f"pyramid/fpn{level}_lateral")
        if above is not None:
            above = tf.repeat(tf.repeat(above, 2, axis=1), 2, axis=2)
            x += above[:, : x.shape[1], : x.shape[2]]
        levels.append(conv(variables, x, f"pyramid/fpn{level}"))
        above = x
    return levels[::-1]


def rpn(variables, level):
    """From a level to a score `(batch, n)` and a move `(batch, n, 4)` for each anchor."""
    x = tf.nn.relu(conv(variables, level, "rpn/conv"))
    scores, deltas = conv(variables, x, "rpn/scores"), conv(variables, x, "rpn/deltas")
    batch = level.shape[0]
    return tf.reshape(scores, (batch, -1)), tf.reshape(deltas, (batch, -1, 4))


def box_head(variables, x):
    """From `(n, 7, 7, filters)` to a logit for each class and the background, and moves."""
    x = tf.reshape(x, (x.shape[0], -1))
    for name in ("dense1", "dense2"):
        x = tf.nn.relu(dense(variables, x, f"box_head/{name}"))
    deltas = dense(variables, x, "box_head/deltas")
    return dense(variables, x, "box_head/logits"), tf.reshape(deltas, (x.shape[0], -1, 4))


def mask_head(variables, x, depth):
    """From `(n, 14, 14, filters)` to logits `(n, 28, 28, classes)`."""
    for i in range(depth):
        x = tf.nn.relu(conv(variables, x, f"mask_head/conv{i}"))
    kernel = variables["mask_head/upconv/kernel"]  # (2, 2, outputs, inputs)
    shape = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], kernel.shape[2])
    x = tf.nn.conv2d_transpose(x, kernel, shape, strides=2, padding="SAME")
    x = tf.nn.relu(tf.nn.bias_add(x, variables["mask_head/upconv/bias"]))
    return conv(variables, x, "mask_head/logits")


def conv(variables, x, name):
    """A convolution."""
    x = tf.nn.conv2d(x, variables[f"{name}/kernel"], 1, "SAME")
    return tf.nn.bias_add(x, variables[f"{name}/bias"])


def dense(variables, x, name):
    return tf.nn.bias_add(x @ variables[f"{name}/kernel"], variables[f"{name}/bias"])


class Trainer:
    """A Mask R-CNN, its optimizer and the loop.

    Args:
        weights: arrays by name, such as `"encoder/stage0_conv/kernel"`.
        image_shape: tuple `(height, width, channels)`.
        num_classes: int, without the background.
        max_instances: int, slots for the true objects of an image.
        stages: see above.
        filters: tuple of ints, of the encoder.
        learning_rate: float.
        epsilon: float, Adam's.
        draw: `callable(name, step, batch, columns) -> noise`, uniform, float32 `(batch, columns)`,
            NumPy: for the "anchors" and "proposals" that are sampled; None for TensorFlow's own.
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
        self.variables = make_variables(weights)
        self.trainable = trainable(self.variables)
        self.optimizer = Adam(self.trainable, learning_rate, epsilon)
        self.image_size = image_shape[:2]
        self.num_classes = num_classes
        self.max_instances = max_instances
        self.stages = stages
        self.draw = draw
        self.steps = 0
        self.anchors = [
            anchors(self.image_size, stride, size)
            for stride, size in zip(stages.strides, stages.anchor_sizes, strict=True)
        ]

    def network(self, images, training):
        """Images to levels, scores and moves, three lists."""
        places = [stride.bit_length() - 2 for stride in self.stages.strides]
        features = encoder(self.variables, images, max(places) + 1, training)
        levels = pyramid(self.variables, [features[place] for place in places])
        scores, deltas = zip(*(rpn(self.variables, level) for level in levels), strict=True)
        return levels, scores, deltas

    @tf.function
    def step(self, images, planes, anchor_noise, proposal_noise):
        true_boxes, classes = instances(planes, self.max_instances)
        truth = true_boxes, classes, sums_above(planes == VOID)
        with tf.GradientTape() as tape:
            levels, scores, deltas = self.network(images, training=True)
            losses = [
                *self.rpn_losses(scores, deltas, truth, anchor_noise),
                *self.head_losses(levels, scores, deltas, truth, planes, proposal_noise),
            ]
            loss = tf.add_n(losses)
        self.optimizer.apply(tape.gradient(loss, self.trainable))
        return loss, *losses

    def rpn_losses(self, scores, deltas, truth, noise):
        """The losses of the scores and the boxes of anchors, sampled at random."""
        true_boxes, classes, void = truth
        boxes = np.concatenate(self.anchors)
        overlap, best, which = compare(tf.constant(boxes)[None], true_boxes, classes)
        highest = tf.reduce_max(overlap, axis=2, keepdims=True)
        favorite = tf.reduce_any((overlap > 0) & (overlap >= highest), axis=1)
        positive = (best >= 0.7) | favorite
        share = share_of(void, tf.constant(boxes)[None], self.image_size)
        negative = (best < 0.3) & (share <= 0.5) & ~positive
        count = min(self.stages.anchors_sampled, len(boxes))
        index, positive, sampled = sample(positive, negative, noise, count, count // 2)

        number = tf.maximum(tf.reduce_sum(tf.cast(sampled, tf.float32)), 1)
        scores = take(tf.concat(scores, 1), index)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(positive, tf.float32), scores)
        target = encode(take(true_boxes, take(which, index)), tf.gather(boxes, index), RPN_WEIGHTS)
        distance = smooth_l1(take(tf.concat(deltas, 1), index) - target, beta=1 / 9)
        return (
            tf.reduce_sum(tf.where(sampled, entropy, 0)) / number,
            tf.reduce_sum(tf.where(positive, distance, 0)) / number,
        )

    def head_losses(self, levels, scores, deltas, truth, planes, noise):
        """The losses of classes, boxes and masks of proposals, sampled at random."""
        true_boxes, true_classes, void = truth
        boxes, found = self.propose(scores, deltas)
        boxes = tf.concat([boxes, true_boxes], 1)
        found = tf.concat([found, true_classes > 0], 1)
        _, best, which = compare(boxes, true_boxes, true_classes)
        count = min(self.stages.boxes_sampled, boxes.shape[1])
        most = count // 4
        index, positive, sampled = sample(
            found & (best >= 0.5),
            found & (best < 0.5) & (share_of(void, boxes, self.image_size) <= 0.5),
            noise,
            count,
            most,
        )
        boxes, which = take(boxes, index), take(which, index)
        classes = tf.where(positive, take(true_classes, which), 0)

        logits, deltas = box_head(self.variables, self.align(levels, boxes, 7))
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(classes, [-1]), logits)
        entropy = tf.where(tf.reshape(sampled, [-1]), entropy, 0)
        number = tf.maximum(tf.reduce_sum(tf.cast(sampled, tf.float32)), 1)

        # The positive ones are in the first slots.
        boxes, which, classes, positive = (x[:, :most] for x in (boxes, which, classes, positive))
        own = tf.maximum(classes - 1, 0)
        deltas = tf.reshape(deltas, (-1, count, self.num_classes, 4))[:, :most]
        deltas = tf.gather(deltas, own, batch_dims=2)
        target = encode(take(true_boxes, which), boxes, ROI_WEIGHTS)
        distance = tf.where(positive, smooth_l1(deltas - target, beta=1.0), 0)

        masks = mask_head(
            self.variables, self.align(levels, boxes, 14), len(self.stages.mask_filters)
        )
        masks = own_masks(masks, own)
        target = crop(planes % 256, which + 1, boxes, 28) >= 0.5
        mask_entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(target, tf.float32), masks)
        mask_entropy = tf.where(positive, tf.reduce_mean(mask_entropy, (2, 3)), 0)
        num_positive = tf.maximum(tf.reduce_sum(tf.cast(positive, tf.float32)), 1)
        return (
            tf.reduce_sum(entropy) / number,
            tf.reduce_sum(distance) / number,
            tf.reduce_sum(mask_entropy) / num_positive,
        )

    def propose(self, scores, deltas):
        """The boxes of the highest scores that do not overlap: `(batch, kept, 4)` and flags."""
        before, kept = self.stages.proposals
        boxes, found = [], []
        for level, level_scores, level_deltas in zip(self.anchors, scores, deltas, strict=True):
            level_scores, level_deltas = map(tf.stop_gradient, (level_scores, level_deltas))
            level_scores, index = tf.math.top_k(level_scores, min(before, len(level)))
            moved = decode(take(level_deltas, index), tf.gather(level, index), RPN_WEIGHTS)
            short = before - index.shape[1]
            boxes.append(tf.pad(clip(moved, self.image_size), [[0, 0], [0, short], [0, 0]]))
            found.append(tf.pad(level_scores, [[0, 0], [0, short]], constant_values=-np.inf))
        kept = min(kept, sum(map(len, self.anchors)))
        boxes, scores, _, number = tf.image.combined_non_max_suppression(
            tf.stack(boxes, 2), tf.stack(found, 2), kept, kept, 0.7, clip_boxes=False
        )
        return boxes, tf.range(kept) < number[:, None]

    def align(self, levels, boxes, size):
        """ROIAlign with one sample in a bin: `(batch * n, size, size, channels)`.

        Args:
            levels: list of `(batch, rows, columns, channels)`.
            boxes: `(batch, n, 4)`.
            size: int.
        """
        strides = self.stages.strides
        # Levels on which the boxes are 7 to 14 pixels wide.
        level = tf.math.log(tf.maximum(area(boxes), 1e-4) / (7 * strides[0]) ** 2) / np.log(4)
        level = tf.clip_by_value(tf.floor(level + 1e-6), 0, len(strides) - 1)
        level = tf.reshape(tf.cast(level, tf.int32), [-1])
        number = boxes.shape[1]
        start, end = tf.split(tf.reshape(boxes, (-1, 4)), 2, axis=1)
        half = (end - start) / (2 * size)
        # The first and the last point: (y1, x1, y2, x2) in pixels of the image.
        points = tf.concat([(start + half)[:, ::-1], (end - half)[:, ::-1]], axis=1)
        parts, places = [], []
        for i, (x, stride) in enumerate(zip(levels, strides, strict=True)):
            place = tf.where(level == i)[:, 0]
            # Beyond the features is what is at their border.
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
            last = np.float32([x.shape[1] - 1, x.shape[2] - 1] * 2)
            here = (tf.gather(points, place) / stride + 0.5) / last
            image = tf.cast(place // number, tf.int32)
            parts.append(tf.image.crop_and_resize(x, here, image, (size, size)))
            places.append(tf.cast(place, tf.int32))
        aligned = tf.dynamic_stitch(places, parts)
        return tf.ensure_shape(aligned, (boxes.shape[0] * number, size, size, x.shape[-1]))

    @tf.function
    def detect(self, images):
        levels, scores, deltas = self.network(images, training=False)
        proposals, found = self.propose(scores, deltas)
        batch, count = found.shape
        logits, deltas = box_head(self.variables, self.align(levels, proposals, 7))

        # Each proposal as each class.
        scores = tf.reshape(tf.nn.softmax(logits), (batch, count, -1))[..., 1:]
        scores = tf.where(found[..., None], scores, 0)
        deltas = tf.reshape(deltas, (batch, count, self.num_classes, 4))
        boxes = clip(decode(deltas, proposals[:, :, None], ROI_WEIGHTS), self.image_size)
        slots = self.stages.detections
        boxes, scores, classes, number = tf.image.combined_non_max_suppression(
            boxes, scores, slots, slots, 0.5, MIN_SCORE, clip_boxes=False
        )
        found = tf.range(slots) < number[:, None]
        classes = tf.cast(classes, tf.int32)
        masks = mask_head(
            self.variables, self.align(levels, boxes, 14), len(self.stages.mask_filters)
        )
        return {
            "boxes": boxes,
            "classes": tf.where(found, classes + 1, 0),
            "scores": scores,
            "masks": tf.where(found[..., None, None], tf.sigmoid(own_masks(masks, classes)), 0.0),
        }

    def train(self, batches):
        """Takes one step per batch.

        Args:
            batches: iterable of `(images, planes)`: float32 `(batch, height, width, channels)` in
                [0, 1] and int32 `(batch, height, width)`, `256 * class + number`, NumPy.

        Yields:
            The losses of each step, a tuple of tensors: the sum, and those of the RPN's scores and
            boxes, of classes, boxes and masks.
        """
        num_anchors = sum(map(len, self.anchors))
        num_proposals = min(self.stages.proposals[1], num_anchors) + self.max_instances
        for images, planes in batches:
            batch = len(images)
            yield self.step(
                tf.constant(images),
                tf.constant(planes),
                self.noise("anchors", batch, num_anchors),
                self.noise("proposals", batch, num_proposals),
            )
            self.steps += 1

    def noise(self, name, batch, columns):
        if self.draw is None:
            return tf.random.uniform((batch, columns))
        return tf.constant(self.draw(name, self.steps, batch, columns))

    def predict(self, images):
        """Finds the objects of images: NumPy to NumPy.

        Returns:
            Dict of boxes `(batch, n, 4)`, classes `(batch, n)`, 0 for an empty slot, scores
            `(batch, n)` and masks `(batch, n, 28, 28)`.
        """
        return {name: x.numpy() for name, x in self.detect(tf.constant(images)).items()}

    def weights(self):
        """Returns the weights by name."""
        return read_variables(self.variables)


def anchors(image_size, stride, size):
    """Boxes `(x1, y1, x2, y2)` around each pixel of a level, of several proportions: `(n, 4)`."""
    rows, columns = (-(-side // stride) for side in image_size)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centers = (np.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride
    halves = np.array([[ratio**-0.5, ratio**0.5] for ratio in RATIOS]) / 2 * size
    return np.concatenate([centers - halves, centers + halves], -1).reshape(-1, 4).astype("float32")


def instances(planes, slots):
    """Boxes `(batch, slots, 4)` and classes `(batch, slots)` of the objects; 0 for empty slots."""
    batch, height, width = planes.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    sides = np.stack([-x, -y, x + 1, y + 1], -1).astype("int32")
    planes = tf.reshape(planes, (batch, -1))
    values = tf.concat([tf.tile(sides, (batch, 1)), tf.reshape(planes // 256, (-1, 1))], axis=1)
    owner = planes % 256 + 256 * tf.range(batch)[:, None]
    found = tf.math.unsorted_segment_max(values, tf.reshape(owner, [-1]), 256 * batch)
    found = tf.reshape(found, (batch, 256, 5))[:, 1 : slots + 1]
    classes = tf.maximum(found[..., 4], 0)
    boxes = tf.where(classes[..., None] > 0, found[..., :4] * (-1, -1, 1, 1), 0)
    return tf.cast(boxes, tf.float32), classes


def take(values, index):
    """Those at `index` `(batch, m)` of values `(batch, n)` or `(batch, n, c)`."""
    return tf.gather(values, index, batch_dims=1)


def area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def compare(boxes, true_boxes, classes):
    """IoU `(batch, objects, n)`, -1 for empty slots; the best of each box, and whose it is."""
    left, top, right, bottom = tf.unstack(true_boxes[..., None], axis=-2)
    x1, y1, x2, y2 = tf.unstack(boxes[..., None, :, :], axis=-1)
    width = tf.nn.relu(tf.minimum(right, x2) - tf.maximum(left, x1))
    height = tf.nn.relu(tf.minimum(bottom, y2) - tf.maximum(top, y1))
    intersection = width * height
    union = area(true_boxes)[..., :, None] + area(boxes)[..., None, :] - intersection
    overlap = tf.where((classes > 0)[..., None], intersection / tf.maximum(union, 1e-9), -1)
    which = tf.argmax(overlap, axis=1, output_type=tf.int32)
    return overlap, tf.reduce_max(overlap, axis=1), which


def sample(first, second, noise, count, most):
    """Draws `count` boxes by lot, at most `most` of the first kind, which take the first slots.

    Returns:
        Their places `(batch, count)`, which are of the first kind, and which slots hold a box.
    """
    value, index = tf.math.top_k(tf.where(first, noise, -1), most)
    filling_value, filling = tf.math.top_k(tf.where(second, noise, -1), count)
    slots = tf.range(count)[None]
    num_first = tf.reduce_sum(tf.cast(value > 0, tf.int32), axis=1, keepdims=True)
    of_first = slots < num_first
    place = tf.where(of_first, slots, most + slots - num_first)
    found = take(tf.concat([value, filling_value], 1), place) > 0
    return take(tf.concat([index, filling], 1), place), of_first, found


def encode(boxes, references, weights):
    """Where boxes lie as seen from references: `(…, 4)`."""
    sides = tf.maximum(references[..., 2:] - references[..., :2], SMALLEST)
    grown = tf.maximum(boxes[..., 2:] - boxes[..., :2], SMALLEST)
    moved = boxes[..., :2] + boxes[..., 2:] - references[..., :2] - references[..., 2:]
    return tf.concat([moved / (2 * sides), tf.math.log(grown / sides)], -1) * weights


def decode(deltas, references, weights):
    """The boxes of which `encode` says where they lie."""
    deltas /= weights
    sides = references[..., 2:] - references[..., :2]
    centers = (references[..., :2] + references[..., 2:]) / 2 + deltas[..., :2] * sides
    halves = tf.exp(tf.minimum(deltas[..., 2:], LARGEST)) * sides / 2
    return tf.concat([centers - halves, centers + halves], -1)


def clip(boxes, image_size):
    """Cuts boxes at the border of the image."""
    height, width = image_size
    return tf.minimum(tf.maximum(boxes, 0), np.float32([width, height, width, height]))


def smooth_l1(x, beta):
    """Sum over the last axis of a distance that is quadratic below `beta`, linear above."""
    x = tf.abs(x)
    return tf.reduce_sum(tf.where(x < beta, x * x / (2 * beta), x - beta / 2), axis=-1)


def sums_above(pixels):
    """How many pixels above and to the left of each corner are marked: `(batch, h + 1, w + 1)`."""
    sums = tf.cumsum(tf.cumsum(tf.cast(pixels, tf.float32), axis=1), axis=2)
    return tf.pad(sums, [[0, 0], [1, 0], [1, 0]])


def share_of(sums, boxes, image_size):
    """The share of the pixels of boxes that are marked: `(batch, n)`."""
    batch, _, columns = sums.shape
    x1, y1, x2, y2 = tf.unstack(tf.cast(tf.round(clip(boxes, image_size)), tf.int32), axis=-1)
    sums = tf.reshape(sums, (batch, -1))

    def above(y, x):
        index = y * columns + x
        return take(sums, tf.broadcast_to(index, (batch, index.shape[1])))

    marked = above(y2, x2) - above(y1, x2) - above(y2, x1) + above(y1, x1)
    return marked / tf.cast(tf.maximum((x2 - x1) * (y2 - y1), 1), tf.float32)


def crop(planes, numbers, boxes, size):
    """The masks of objects `numbers` `(batch, n)` within boxes: `(batch, n, size, size)`."""
    batch, height, width = planes.shape
    steps = ((np.arange(size) + 0.5) / size).astype("float32")

    def neighbors(start, end, length):
        places = start + (end - start) * steps - 0.5
        places = tf.minimum(tf.maximum(places, 0), length - 1)
        low = tf.floor(places)
        before = tf.cast(low, tf.int32)
        return before, tf.minimum(before + 1, length - 1), places - low

    top, bottom, below = neighbors(boxes[..., 1:2], boxes[..., 3:4], height)
    left, right, beyond = neighbors(boxes[..., 0:1], boxes[..., 2:3], width)
    below, beyond = below[..., :, None], beyond[..., None, :]
    first = tf.range(batch)[:, None, None, None] * (height * width)
    planes = tf.reshape(planes, [-1])

    def at(y, x):
        found = tf.gather(planes, first + y[..., :, None] * width + x[..., None, :])
        return tf.cast(found == numbers[..., None, None], tf.float32)

    upper = at(top, left) * (1 - beyond) + at(top, right) * beyond
    lower = at(bottom, left) * (1 - beyond) + at(bottom, right) * beyond
    return upper * (1 - below) + lower * below


def own_masks(masks, own):
    """Of logits `(batch * n, 28, 28, classes)` those of the class `own` `(batch, n)` of each."""
    batch, number = own.shape
    masks = tf.transpose(masks, (0, 3, 1, 2))
    masks = tf.gather(masks, tf.reshape(own, [-1]), batch_dims=1)
    return tf.reshape(masks, (batch, number, *masks.shape[1:]))
