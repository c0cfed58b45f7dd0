"""Networks from images to features, vectors that describe the content of an image.

Images of the same kind of thing have features that are close, even if their pixels are not.
Images are resized in NumPy and OpenCV, so that they are the same on every backend.
"""

import functools
import hashlib
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_segen import backend
from keras_segen.data.arrays import check_images
from keras_segen.data.dataset import check_size
from keras_segen.data.images import resize_image, to_channels, to_float
from keras_segen.determinism import rng
from keras_segen.generation.inception_v3 import inception_v3
from keras_segen.networks import load_keras_file

# The FID's weights; PyTorch puts the start of the SHA-256 into such names.
FID_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
FID_WEIGHTS_SHA256 = "6726825d"


class Extractor:
    """Images to features: `extractor(images)`.

    Gray images are repeated to three channels. All are resized to one size as in
    `keras_segen.data`: shrunk by area, enlarged bilinearly; the aspect ratio may change.

    Args:
        model: a `keras.Model` from images `(batch, height, width, 3)`, float32 in [0, 1], to
            features `(batch, dimension)` or `(batch, height, width, dimension)`, which are
            averaged over the positions; with several outputs, the last one.
        size: int or `(height, width)` of the images that the model gets. None means the size that
            it was built for.
        name: str, its name in results; None means the model's own name.

    Attributes:
        dimension: int, the number of features.
        size: `(height, width)`.
        name: str.

    Raises:
        ValueError: if the model is of another kind, or does not take this size.

    Example:

    >>> images = keras.Input((8, 8, 3))
    >>> model = keras.Model(images, layers.Conv2D(5, 3)(images))
    >>> extractor = Extractor(model)
    >>> extractor(np.zeros((2, 28, 28, 1), "float32")).shape
    (2, 5)
    """

    def __init__(self, model, size=None, name=None):
        shapes = [tuple(x.shape) for x in model.inputs] if model.built else []
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] not in (3, None):
            raise ValueError(
                f"An extractor takes one input, images (batch, height, width, 3); {model.name!r} "
                f"takes {', '.join(map(str, shapes)) or 'none yet: it is not built'}."
            )
        own = shapes[0][1:3]
        if size is None and None in own:
            raise ValueError(
                f"{model.name!r} takes images of any size: choose one, such as size=224. Features "
                "of images of several sizes cannot be compared."
            )
        self.size = own if size is None else check_size(size)
        if any(a not in (None, b) for a, b in zip(own, self.size, strict=True)):
            raise ValueError(f"{model.name!r} takes images of {own}; found size={self.size}.")
        self.name = model.name if name is None else name
        images = keras.Input((*self.size, 3), name="images")
        outputs = keras.tree.flatten(model(images))[-1]
        if len(outputs.shape) == 4:
            outputs = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(outputs)
        if len(outputs.shape) != 2 or outputs.shape[1] is None:
            raise ValueError(
                f"{model.name!r} gives {tuple(outputs.shape)}; expected features (batch, "
                "dimension) or (batch, height, width, dimension)."
            )
        self.model = keras.Model(images, outputs, name="extractor")
        self.dimension = outputs.shape[1]

    def __call__(self, images, batch_size=16):
        """Computes the features of images.

        Args:
            images: `(number, height, width)` or `(number, height, width, channels)`, 1 or 3
                channels: float in [0, 1], uint8 or uint16.
            batch_size: int, images per call of the network. PyTorch keeps the results of all its
                layers meanwhile: 80 MB per image for EfficientNet-Lite0.

        Returns:
            float32 array `(number, dimension)`.

        Raises:
            ValueError: if they are no such images.
        """
        images = check_images(np.asarray(images))
        features = []
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size]
            prepared = np.stack([self.prepare(image) for image in part])
            features.append(backend.infer(self.model, prepared))
        return np.concatenate(features)

    def prepare(self, image):
        """Prepares one image for the model: float32 `(height, width, 3)` in [0, 1]."""
        return resize_image(to_channels(to_float(image), 3), self.size)

    @property
    def distance_name(self):
        """The name of the Fréchet distance between its features."""
        return f"Fréchet distance on {self.name}"

    @functools.cached_property
    def sha256(self):
        """A digest of the weights, hexadecimal: the same on every backend."""
        found = hashlib.sha256()
        for weight in self.model.get_weights():
            found.update(f"{weight.dtype} {weight.shape}".encode())
            found.update(np.ascontiguousarray(weight))
        return found.hexdigest()

    @functools.cached_property
    def key(self):
        """All that features depend on besides the images, for a cache: a tuple of str and int.

        What the network does is known by what it makes of a fixed image: layers have names that
        depend on what was built before them.
        """
        probe = rng("probe of an extractor").random((1, 64, 64, 3), "float32")
        made = hashlib.sha256(self(probe)).hexdigest()
        return (self.sha256, made, *self.size, keras.backend.backend())

    def __repr__(self):
        height, width = self.size
        return f"<{self.name}: {self.dimension} features of images of {height} x {width}>"


def efficientnet_lite0_features():
    """The extractor that needs no download: EfficientNet-Lite0, trained on ImageNet.

    320 features, the last before the classifier's own, of images of 224 x 224.

    Returns:
        An `Extractor`.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """
    # Imported here: generation needs nothing else of segmentation.
    from keras_segen import segmentation

    return Extractor(segmentation.efficientnet_lite0(), size=224)


class FidExtractor(Extractor):
    """The features of the FID: 2048 by InceptionV3.

    Images are rounded to 0..255 and resized to 299 x 299 as in the code published with the FID:
    bilinearly between the upper left corners of pixels, also when they shrink.

    Args:
        path: the file pt_inception-2015-12-05-6726825d.pth, the published weights; from
            https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds other weights, whose distance would not be the FID.
    """

    distance_name = "FID"

    def __init__(self, path):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected {FID_WEIGHTS}.")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(FID_WEIGHTS_SHA256):
            raise ValueError(
                f"{path} has a SHA-256 of {found[:8]}…; expected {FID_WEIGHTS_SHA256}…, that of "
                f"{FID_WEIGHTS}: with other weights the distance is not the FID."
            )
        super().__init__(inception_v3(path), size=299)

    def prepare(self, image):
        whole = np.rint(to_channels(to_float(image), 3) * 255).astype("float32")
        return resize_from_corners(whole, self.size) / np.float32(255)


def resize_from_corners(image, size):
    """Resizes `(height, width, channels)` bilinearly; new pixel i is at i times the scale."""
    for axis, length in enumerate(size):
        old = image.shape[axis]
        place = np.arange(length) * (old / length)
        before = place.astype(int)
        after = np.minimum(before + 1, old - 1)
        share = (place - before).astype("float32").reshape(-1, *[1] * (2 - axis))
        image = image.take(before, axis) * (1 - share) + image.take(after, axis) * share
    return image


EXTRACTORS = {"efficientnet_lite0": efficientnet_lite0_features}


def load_extractor(extractor):
    """Loads an extractor by its name.

    Args:
        extractor: str, a name in `EXTRACTORS`, the path of a `.keras` file, or
            `"inception_v3:PATH"` with the weights of the FID (`FidExtractor`); or a `keras.Model`;
            or an `Extractor`, which is returned unchanged.

    Returns:
        An `Extractor`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of these, or the model does not make features.
    """
    if isinstance(extractor, Extractor):
        return extractor
    if isinstance(extractor, keras.Model):
        return Extractor(extractor)
    if extractor in EXTRACTORS:
        return EXTRACTORS[extractor]()
    name, _, path = str(extractor).partition(":")
    if name == "inception_v3" and path:
        return FidExtractor(path)
    path = Path(str(extractor))
    if path.suffix != ".keras":
        raise ValueError(
            f"No extractor is named {extractor!r}; expected {', '.join(EXTRACTORS)}, "
            "inception_v3:PATH, the path of a .keras file, or a keras.Model."
        )
    return Extractor(load_keras_file(path), name=path.name)
