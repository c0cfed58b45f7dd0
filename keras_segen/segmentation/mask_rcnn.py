"""Mask R-CNN: finds the objects of an image, each with its box, its class and its mask.

It looks twice. A small network (RPN) slides over the features of the image and proposes boxes
that may hold an object. Then the features within each proposal are brought to one size (ROIAlign),
and two heads look at them: one names the class and corrects the box, the other draws the mask,
one for each class, so that classes do not compete for pixels.

Reference: He, Gkioxari, Dollár, Girshick (2017), "Mask R-CNN", https://arxiv.org/abs/1703.06870;
the RPN: Ren, He, Girshick, Sun (2015), "Faster R-CNN", https://arxiv.org/abs/1506.01497

Differs from the paper: static shapes, slots with flags instead of lists; as many proposals in
prediction as in training; void pixels, of which anchors and proposals are not negative; the small
encoder and the numbers of `SMALL`, which are ours.
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops
from keras.initializers import RandomNormal

from keras_segen import backend
from keras_segen.determinism import rng
from keras_segen.layers import check_arguments, check_encoder
from keras_segen.networks import Composite
from keras_segen.segmentation import boxes as box
from keras_segen.segmentation.fpn import fpn
from keras_segen.segmentation.roi_align import crop_instances, roi_align

RPN_WEIGHTS, ROI_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)  # of `boxes.encode`
RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
CANDIDATES = 1000  # boxes with a class, before those that overlap are removed
MIN_SCORE = 0.05  # of what is found


@dataclasses.dataclass(frozen=True)
class Stages:
    """The numbers of a Mask R-CNN; the defaults are the paper's, `SMALL` is for a laptop.

    Args:
        strides: tuple of ints, which features of the encoder become levels of the pyramid.
        anchor_sizes: tuple of ints, pixels, one for each level; one more adds a level of twice the
            last stride, for proposals only.
        pyramid_filters: int, channels of the levels.
        anchors_sampled: int, those that the RPN learns from in an image; at most half positive.
        proposals: `(of each level, kept)`: two ints, before and after those that overlap are
            removed.
        boxes_sampled: int, the proposals that the heads learn from in an image; at most a quarter
            positive.
        samples: int, points along a bin of ROIAlign, 1 or 2.
        box_units: int, width of the two layers of the box head.
        mask_filters: tuple of ints, channels of the convolutions of the mask head.
        detections: int, objects found in an image at most.
    """

    strides: tuple = (4, 8, 16, 32)
    anchor_sizes: tuple = (32, 64, 128, 256, 512)
    pyramid_filters: int = 256
    anchors_sampled: int = 256
    proposals: tuple = (2000, 1000)
    boxes_sampled: int = 512
    samples: int = 2
    box_units: int = 1024
    mask_filters: tuple = (256, 256, 256, 256)
    detections: int = 100


SMALL = Stages(
    strides=(4, 8, 16),
    anchor_sizes=(16, 32, 64),
    pyramid_filters=64,
    anchors_sampled=64,
    proposals=(96, 48),
    boxes_sampled=32,
    samples=1,
    box_units=192,
    mask_filters=(64, 64, 64),
    detections=20,
)


def mask_rcnn(input_shape, num_classes, max_instances=100, encoder=None, stages=SMALL, seed=0):
    """Builds a Mask R-CNN with a feature pyramid (He et al., 2017).

    Args:
        input_shape: tuple `(height, width, channels)` of ints, of any size.
        num_classes: int, K, without the background; the classes are 1 to K.
        max_instances: int, slots for the true objects of an image, at most 254.
        encoder: a `keras.Model` from the images to a list of features at strides 2, 4, 8, …, such
            as `encoders.resnet50()` for the paper's; None for a small one, not trained yet. It
            becomes one layer of `model.pyramid`, under its own name.
        stages: `Stages()` for the paper's numbers, for images of about 1000 pixels; `SMALL` for
            about 100 pixels on a laptop.
        seed: int, for the anchors and proposals sampled in training.

    Returns:
        A `MaskRCNN`.

    Raises:
        ValueError: when a number is not positive, when the encoder does not fit the images or has
            no features at the strides of `stages`, or when there are too many instances.

    Example:

    >>> model = mask_rcnn((64, 64, 3), num_classes=2, max_instances=8)
    >>> found = backend.infer(model, np.zeros((1, 64, 64, 3), "float32"), "detect")
    >>> {name: array.shape for name, array in found.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'boxes': (1, 20, 4), 'classes': (1, 20), 'scores': (1, 20), 'masks': (1, 20, 28, 28)}
    """
    filters = stages.pyramid_filters
    check_arguments(input_shape, num_classes, (filters,), any_size=True)
    images = keras.Input(input_shape, name="images")

    # Features at strides 2, 4, 8, …, those of some strides to levels of equal depth.
    if encoder is None:
        encoder = small_encoder(input_shape)
    check_encoder(encoder, input_shape, len(encoder.outputs))
    places = [stride.bit_length() - 2 for stride in stages.strides]
    if len(encoder.outputs) <= max(places):
        raise ValueError(
            f"Encoder {encoder.name!r} gives {len(encoder.outputs)} features, one for each halving "
            f"of the images; expected {max(places) + 1}, for stages.strides={stages.strides}."
        )
    # Without the layers beyond: they would learn nothing.
    used = encoder.outputs[: max(places) + 1]
    encoder = keras.Model(encoder.inputs[0], used, name=encoder.name)
    features = encoder(images)
    levels = fpn([features[place] for place in places], filters)
    if len(stages.anchor_sizes) > len(levels):  # every other pixel
        levels.append(layers.MaxPooling2D(1, strides=2, name="fpn_top")(levels[-1]))
    pyramid = keras.Model(images, levels, name="pyramid")

    heads = (
        box_head(num_classes, filters, stages.box_units),
        mask_head(num_classes, filters, stages.mask_filters),
    )
    return MaskRCNN(pyramid, rpn(filters), *heads, max_instances, stages, seed)


def small_encoder(input_shape, filters=(24, 32, 64, 96)):
    """Features at strides 2, 4, 8, …: from stride 4 on, a residual block at each.

    Args:
        input_shape: tuple `(height, width, channels)`.
        filters: tuple of ints, channels at each stride.

    Returns:
        A `keras.Model` from images to a list of tensors.
    """
    images = keras.Input(input_shape, name="images")
    x = layers.Rescaling(2.0, -1.0, name="preprocess")(images)
    features = [conv(x, filters[0], strides=2, name="stage0")]
    for stage, stage_filters in enumerate(filters[1:], start=1):
        x = conv(features[-1], stage_filters, strides=2, name=f"stage{stage}_down")
        x = conv(x, stage_filters, name=f"stage{stage}_conv")
        branch = conv(x, stage_filters, name=f"stage{stage}_branch")
        features.append(layers.Add(name=f"stage{stage}")([x, branch]))
    return keras.Model(images, features, name="small_encoder")


def conv(x, filters, strides=1, name=None):
    """3x3 convolution, batch normalization, ReLU."""
    x = layers.Conv2D(
        filters,
        3,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def rpn(filters):
    """Features of a level to a score `(batch, n)` and a move `(batch, n, 4)` for each anchor."""
    features = keras.Input((None, None, filters), name="features")
    x = relu_conv(features, filters, name="conv")
    scores = small_conv(x, len(RATIOS), name="scores")
    deltas = small_conv(x, 4 * len(RATIOS), name="deltas")
    scores = layers.Reshape((-1,), dtype="float32", name="flat_scores")(scores)
    deltas = layers.Reshape((-1, 4), dtype="float32", name="flat_deltas")(deltas)
    return keras.Model(features, [scores, deltas], name="rpn")


def relu_conv(x, filters, name):
    """3x3 convolution, ReLU."""
    return layers.Conv2D(
        filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=name
    )(x)


def small_conv(x, filters, name):
    """1x1 convolution to numbers near 0, in float32 also under mixed precision."""
    normal = RandomNormal(0.0, 0.01)
    return layers.Conv2D(filters, 1, kernel_initializer=normal, dtype="float32", name=name)(x)


def box_head(num_classes, filters, units):
    """7x7 features of a box to a logit for each class, 0 the background, and a move for each."""
    features = keras.Input((7, 7, filters), name="features")
    x = layers.Flatten(name="flatten")(features)
    for i in (1, 2):
        x = layers.Dense(
            units, activation="relu", kernel_initializer="he_normal", name=f"dense{i}"
        )(x)
    logits = layers.Dense(
        num_classes + 1, kernel_initializer=RandomNormal(0.0, 0.01), dtype="float32", name="logits"
    )(x)
    deltas = layers.Dense(
        4 * num_classes, kernel_initializer=RandomNormal(0.0, 0.001), dtype="float32", name="deltas"
    )(x)
    deltas = layers.Reshape((num_classes, 4), dtype="float32", name="class_deltas")(deltas)
    return keras.Model(features, [logits, deltas], name="box_head")


def mask_head(num_classes, filters, mask_filters):
    """14x14 features of a box to a 28x28 mask of logits for each class."""
    features = x = keras.Input((14, 14, filters), name="features")
    for i, conv_filters in enumerate(mask_filters):
        x = relu_conv(x, conv_filters, name=f"conv{i}")
    x = layers.Conv2DTranspose(
        mask_filters[-1], 2, 2, activation="relu", kernel_initializer="he_normal", name="upconv"
    )(x)
    logits = layers.Conv2D(
        num_classes, 1, kernel_initializer="he_normal", dtype="float32", name="logits"
    )(x)
    return keras.Model(features, logits, name="mask_head")


@keras.saving.register_keras_serializable(package="keras_segen")
class MaskRCNN(Composite):
    """A feature pyramid, an RPN and two heads, trained by `fit`.

    `fit` takes images, float32 in [0, 1], and planes, int32 `(batch, height, width)`, that say to
    which object each pixel belongs (see `boxes.py`); `compile(optimizer)` is all it needs. The
    history has `loss`, the sum of

        rpn_class_loss   whether an anchor holds an object: cross-entropy
        rpn_box_loss     where the object is: smooth L1, 0 for negative ones
        class_loss       which class a proposal is of: cross-entropy
        box_loss         where the object is: smooth L1, 0 for negative ones
        mask_loss        which pixels are its: cross-entropy, of the positive ones only

    each a mean over the anchors or proposals sampled in the batch.

    An anchor is positive if its IoU with an object is at least 0.7, or the highest for that
    object, negative below 0.3; a proposal positive from 0.5 on, negative below. Nothing that is
    mostly void is negative. What is sampled in training is a function of seed and step; in
    `evaluate` of the seed and the place of the image, however the batches are cut.

    Args:
        pyramid: a `keras.Model` from images to a list of features, the finest first.
        rpn: one from features to scores `(batch, n)` and moves `(batch, n, 4)` of the anchors.
        box_head: one from 7x7 features to logits `(batch, K + 1)` and moves `(batch, K, 4)`.
        mask_head: one from 14x14 features to logits `(batch, 28, 28, K)`.
        max_instances: int, slots for the true objects of an image, at most 254.
        stages: `Stages`.
        seed: int, for what is sampled in training.

    Raises:
        ValueError: when `max_instances` is out of range, or the height or width is not known.
    """

    NETWORKS = ("pyramid", "rpn", "box_head", "mask_head")
    SETTINGS = ("max_instances", "stages", "seed", "name")

    def __init__(
        self,
        pyramid,
        rpn,
        box_head,
        mask_head,
        max_instances=100,
        stages=SMALL,
        seed=0,
        name="mask_rcnn",
    ):
        super().__init__(name=name)
        if not 1 <= max_instances <= 254:
            raise ValueError(f"max_instances is {max_instances}, expected 1 to 254.")
        self.image_size = tuple(pyramid.inputs[0].shape[1:3])
        if None in self.image_size:
            raise ValueError(
                "Anchors need to know the size of the images; found height and width "
                f"{self.image_size}, expected two integers."
            )
        self.pyramid = pyramid
        self.rpn = rpn
        self.box_head = box_head
        self.mask_head = mask_head
        self.num_classes = mask_head.output_shape[-1]
        self.max_instances = max_instances
        self.stages = stages
        self.seed = seed
        strides = stages.strides
        if len(stages.anchor_sizes) > len(strides):
            strides = (*strides, 2 * strides[-1])
        self.anchors = box.anchors(self.image_size, strides, stages.anchor_sizes, RATIOS)
        self.step_initializer = "zeros"
        self.step = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, name="step"
        )
        self.trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss")
        }
        self.built = True

    def call(self, images, training=False):
        """Computes what proposals are made of: a dict of levels, scores and deltas."""
        levels = self.pyramid(images, training=training)
        scores, deltas = zip(*[self.rpn(x, training=training) for x in levels], strict=True)
        return {
            "levels": levels,
            "scores": ops.concatenate(scores, axis=1),  # (batch, anchors)
            "deltas": ops.concatenate(deltas, axis=1),  # (batch, anchors, 4)
        }

    def propose(self, scores, deltas):
        """The boxes of the highest scores that do not overlap: `(batch, kept, 4)` and flags.

        Boxes of different levels do not suppress each other.
        """
        before, kept = self.stages.proposals
        before = min(before, max(map(len, self.anchors)))
        scores, deltas = ops.stop_gradient(scores), ops.stop_gradient(deltas)
        found, moves, references = [], [], []
        start = 0
        for anchors in self.anchors:
            part = slice(start, start + len(anchors))
            start += len(anchors)
            best, index = box.highest(scores[:, part], min(before, len(anchors)))
            moved = box.take(deltas[:, part], index)
            anchors = ops.convert_to_tensor(anchors, deltas.dtype)
            anchors = ops.take(anchors, index, axis=0)
            if index.shape[1] < before:
                short = (0, 0), (0, before - index.shape[1])
                best = ops.pad(best, short, constant_values=-np.inf)
                moved, anchors = (ops.pad(x, (*short, (0, 0))) for x in (moved, anchors))
            found.append(best)
            moves.append(moved)
            references.append(anchors)
        # A row for each level of each image: (batch * levels, before, …)
        scores = ops.reshape(ops.stack(found, axis=1), (-1, before))
        moves, references = (
            ops.reshape(ops.stack(x, axis=1), (-1, before, 4)) for x in (moves, references)
        )
        boxes = box.decode(moves, references, RPN_WEIGHTS, self.image_size)
        keep = box.survivors(boxes, scores, 0.7)
        slots = len(self.anchors) * before
        scores = ops.reshape(ops.where(keep > 0.5, scores, -np.inf), (-1, slots))
        scores, index = box.highest(scores, min(kept, start))
        return box.take(ops.reshape(boxes, (-1, slots, 4)), index), scores > -np.inf

    def align(self, levels, boxes, size):
        """ROIAlign, a row for each box: `(batch * n, size, size, channels)`."""
        strides, samples = self.stages.strides, self.stages.samples
        aligned = roi_align(levels[: len(strides)], strides, boxes, size, samples)
        return ops.reshape(aligned, (-1, size, size, aligned.shape[-1]))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The sum of the five losses of a batch; `y_pred` is what `call` returned."""
        true_boxes, true_classes = box.instances(y, self.max_instances)
        true_boxes = ops.cast(true_boxes, y_pred["deltas"].dtype)
        # Nothing is negative where more than half is void.
        void = box.sums_above(y == box.VOID)
        truth = y, void, true_boxes, true_classes
        losses = self.rpn_losses(y_pred, truth, training)
        losses |= self.head_losses(y_pred, truth, training)
        for name, value in losses.items():
            self.trackers[name].update_state(value, sample_weight=ops.shape(y)[0])
        if training:
            self.step.assign_add(1)
        return sum(losses.values()) + sum(self.losses)

    def rpn_losses(self, outputs, truth, training):
        """What the RPN said about anchors, sampled at random: two losses."""
        planes, void, true_boxes, true_classes = truth
        anchors = ops.convert_to_tensor(np.concatenate(self.anchors), outputs["deltas"].dtype)
        count = min(self.stages.anchors_sampled, anchors.shape[0])
        overlap = compare(anchors[None], true_boxes, true_classes)
        best = ops.max(overlap, axis=1)
        highest = ops.max(overlap, axis=2, keepdims=True)  # of each object
        favorite = ops.any(overlap >= ops.where(highest > 0, highest, 2.0), axis=1)
        positive = ops.logical_or(best >= 0.7, favorite)
        negative = ops.logical_and(best < 0.3, box.share_of(void, anchors[None]) <= 0.5)
        negative = ops.logical_and(negative, ops.logical_not(positive))
        noise = self.noise("anchors", planes, anchors.shape[0], training)
        index, positive, sampled = box.sample(positive, negative, noise, count, count // 2)
        scores = box.take(outputs["scores"], index)
        entropy = ops.softplus(scores) - ops.where(positive, scores, 0.0)
        own = box.take(true_boxes, whose(overlap, index))
        target = box.encode(own, ops.take(anchors, index, axis=0), RPN_WEIGHTS)
        distance = smooth_l1(box.take(outputs["deltas"], index) - target, beta=1 / 9)
        return {
            "rpn_class_loss": mean_of(entropy, sampled, sampled),
            "rpn_box_loss": mean_of(distance, positive, sampled),
        }

    def head_losses(self, outputs, truth, training):
        """What the heads said about proposals and true boxes, sampled at random: three losses."""
        planes, void, true_boxes, true_classes = truth
        proposals, found = self.propose(outputs["scores"], outputs["deltas"])
        proposals = ops.concatenate([proposals, true_boxes], axis=1)
        found = ops.concatenate([found, true_classes > 0], axis=1)
        overlap = compare(proposals, true_boxes, true_classes)
        best = ops.max(overlap, axis=1)
        count = min(self.stages.boxes_sampled, proposals.shape[1])
        most = count // 4
        positive = ops.logical_and(found, best >= 0.5)
        negative = ops.logical_and(best < 0.5, box.share_of(void, proposals) <= 0.5)
        negative = ops.logical_and(found, negative)
        noise = self.noise("proposals", planes, proposals.shape[1], training)
        index, positive, sampled = box.sample(positive, negative, noise, count, most)
        boxes, which = box.take(proposals, index), whose(overlap, index)
        classes = ops.where(positive, box.take(true_classes, which), 0)

        logits, deltas = self.box_head(self.align(outputs["levels"], boxes, 7), training=training)
        logits = ops.reshape(logits, (-1, count, self.num_classes + 1))
        entropy = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)

        # The positive ones are in the first slots.
        boxes, which, classes, positive = (x[:, :most] for x in (boxes, which, classes, positive))
        own = ops.one_hot(classes - 1, self.num_classes)  # (batch, most, K)
        deltas = ops.reshape(deltas, (-1, count, self.num_classes, 4))[:, :most]
        deltas = ops.sum(deltas * own[..., None], axis=2)
        target = box.encode(box.take(true_boxes, which), boxes, ROI_WEIGHTS)
        distance = smooth_l1(deltas - target, beta=1.0)

        masks = self.mask_head(self.align(outputs["levels"], boxes, 14), training=training)
        masks = own_masks(masks, own)
        target = crop_instances(planes, which + 1, boxes, 28) >= 0.5
        mask_entropy = ops.softplus(masks) - ops.where(target, masks, 0.0)
        return {
            "class_loss": mean_of(entropy, sampled, sampled),
            "box_loss": mean_of(distance, positive, sampled),
            "mask_loss": mean_of(ops.mean(mask_entropy, axis=(2, 3)), positive, positive),
        }

    def noise(self, name, planes, columns, training):
        """Uniform numbers, a row for each image: by step in training, else by its place."""
        seen = self.trackers["rpn_class_loss"].count  # images of this evaluation so far
        step, first_row = (self.step, 0) if training else (0, seen)
        key = name, "training" if training else "evaluation", self.seed
        return lots(key, step, first_row, (ops.shape(planes)[0], columns))

    def detect(self, images, training=False):
        """Finds the objects of images; `backend.infer(model, images, "detect")` gives arrays.

        Args:
            images: float32 `(batch, height, width, channels)` in [0, 1].

        Returns:
            Dict of "boxes", float32 `(batch, n, 4)` in pixels; "classes", int32 `(batch, n)`, 1 to
            K, 0 for an empty slot; "scores", float32 `(batch, n)`, the highest first; "masks",
            float32 `(batch, n, 28, 28)`, probabilities within the box (`boxes.paste` enlarges
            them). n is `stages.detections`.

        Raises:
            ValueError: scores or moves of boxes are not finite. (In a compiled TensorFlow graph:
                `tf.errors.InvalidArgumentError`.)
        """
        outputs = self(images, training=training)
        check_finite(outputs["scores"], outputs["deltas"])
        rois, found = self.propose(outputs["scores"], outputs["deltas"])
        count, pairs = rois.shape[1], rois.shape[1] * self.num_classes
        logits, deltas = self.box_head(self.align(outputs["levels"], rois, 7), training=training)
        check_finite(logits, deltas)

        # Each proposal as each class: (batch, count * K)
        scores = ops.softmax(ops.reshape(logits, (-1, count, self.num_classes + 1)))[..., 1:]
        certain = ops.logical_and(found[..., None], scores > MIN_SCORE)
        scores = ops.reshape(ops.where(certain, scores, -np.inf), (-1, pairs))
        deltas = ops.reshape(deltas, (-1, count, self.num_classes, 4))
        boxes = box.decode(deltas, rois[:, :, None], ROI_WEIGHTS, self.image_size)
        boxes = ops.reshape(boxes, (-1, pairs, 4))
        classes = ops.convert_to_tensor(np.arange(pairs) % self.num_classes + 1, "int32")
        classes = ops.broadcast_to(classes[None], ops.shape(scores))
        index, found = box.nms(boxes, scores, 0.5, CANDIDATES, self.stages.detections, classes)
        boxes = ops.where(found[..., None], box.take(boxes, index), 0.0)
        classes = ops.where(found, box.take(classes, index), 0)

        masks = self.mask_head(self.align(outputs["levels"], boxes, 14), training=training)
        masks = ops.sigmoid(own_masks(masks, ops.one_hot(classes - 1, self.num_classes)))
        return {
            "boxes": boxes,
            "classes": classes,
            "scores": ops.where(found, box.take(scores, index), 0.0),
            "masks": ops.where(found[..., None, None], masks, 0.0),
        }

    def get_config(self):
        stages = dataclasses.asdict(self.stages).items()
        stages = {name: list(x) if isinstance(x, tuple) else x for name, x in stages}
        return {**super().get_config(), "stages": stages}

    @classmethod
    def from_config(cls, config):
        stages = config["stages"].items()
        stages = {name: tuple(x) if isinstance(x, list) else x for name, x in stages}
        return super().from_config({**config, "stages": Stages(**stages)})


def compare(boxes, true_boxes, true_classes):
    """IoU `(batch, objects, n)` of true boxes and boxes, -1 for empty slots."""
    overlap = box.iou(true_boxes, boxes)  # the long axis last: faster
    return ops.where((true_classes > 0)[..., None], overlap, -1.0)


def whose(overlap, index):
    """Which object those at `index` `(batch, m)` of the n boxes overlap most: int32."""
    overlap = ops.take_along_axis(overlap, index[:, None], axis=2)  # (batch, objects, m)
    return ops.cast(ops.argmax(overlap, axis=1), "int32")


def own_masks(masks, own):
    """Of masks `(batch * n, 28, 28, K)` those of the classes in `own`, one-hot `(batch, n, K)`."""
    masks = ops.reshape(masks, (-1, own.shape[1], 28 * 28, own.shape[2]))
    return ops.reshape(ops.matmul(masks, own[..., None]), (-1, own.shape[1], 28, 28))


def lots(key, step, first_row, shape):
    """Draws uniform random numbers by which boxes are sampled.

    Args:
        key: `(name, phase, seed)`: str, such as "anchors"; "training" or "evaluation"; int.
        step, first_row: integers, numbers or tensors, as `backend.uniform` takes them.
        shape: `(rows, columns)`.

    Returns:
        float32 `(rows, columns)` in (0, 1).
    """
    rows, columns = shape
    number = int(rng("mask r-cnn", *key).integers(2**64, dtype="uint64"))
    # The generator gives four at a time.
    return backend.uniform(number, step, first_row, (rows, -(-columns // 4) * 4))[:, :columns]


def smooth_l1(x, beta):
    """Sum over the last axis of a distance that is quadratic below `beta`, linear above."""
    x = ops.abs(x)
    return ops.sum(ops.where(x < beta, x * x / (2 * beta), x - beta / 2), axis=-1)


def mean_of(values, flags, among):
    """Sum over the slots whose flag is set, over the number of those `among`; 0 if there is none.

    All are `(batch, …)`; the slots of the whole batch count alike.
    """
    number = ops.sum(ops.cast(among, values.dtype))
    return ops.sum(ops.where(flags, values, 0.0)) / ops.maximum(number, 1.0)


def check_finite(*tensors):
    """Raises if a tensor holds NaN or infinity: its boxes would lie nowhere."""
    for tensor in tensors:
        backend.check(
            ops.all(ops.isfinite(tensor)),
            "The network gives NaN or infinity: its weights or the images are not finite. "
            "keras-segen train --check-numerics names the layer that makes them.",
        )
