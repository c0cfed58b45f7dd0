"""A trained run put to use: figures over a split, masks for new photos."""

from pathlib import Path

import cv2
import keras
import numpy as np
from PIL import Image

from keras_segen import backend, metrics, plot
from keras_segen.data.images import read_image, resize_image, to_float
from keras_segen.data.loader import Batches
from keras_segen.experiment import Experiment
from keras_segen.files import write_atomically, write_json
from keras_segen.training import load_model, load_run


def evaluate(folder, split="test", batch_size=None):
    """Evaluates the best model of a run on a split, at the size that it was trained at.

    Writes `evaluation-SPLIT.json` into the folder. All figures come from one confusion matrix
    over all pixels of the split; void pixels are left out.

    Args:
        folder: the run folder.
        split: `"train"`, `"val"` or `"test"`.
        batch_size: int; None for that of the training.

    Returns:
        Dict with `mean_iou`, `mean_dice`, `pixel_accuracy`, `class_iou` (dict of class name ->
        float, or None for a class that occurs neither in truth nor in prediction),
        `confusion_matrix` (rows: truth, columns: prediction), `images`, `split`, `backend`.
    """
    folder = Path(folder)
    experiment = Experiment.from_dict(load_run(folder)["experiment"])
    model = load_model(folder)
    dataset = experiment.load_data(split)
    matrix = confusion_matrix(model, dataset, batch_size or experiment.batch_size)
    result = {
        "split": split,
        "images": len(dataset),
        "backend": keras.backend.backend(),
        **figures(matrix, dataset.class_names),
        "confusion_matrix": matrix.astype(int).tolist(),
    }
    write_json(folder / f"evaluation-{split}.json", result)
    return result


def confusion_matrix(model, dataset, batch_size):
    """Counts pixels by true and predicted class over a data set.

    Returns:
        NumPy array `(num_classes, num_classes)`, int64: rows are the truth, columns the
        prediction.
    """
    counter = metrics.MeanIoU(dataset.num_classes, ignore_class=dataset.ignore_class)
    for images, masks in Batches(dataset, batch_size).read(epoch=0):
        counter.update_state(masks, backend.infer(model, images))
    return counter.matrix()


def figures(matrix, class_names):
    """Turns a confusion matrix into the figures that are reported, as plain values."""
    class_iou = metrics.iou_per_class(matrix)
    return {
        "mean_iou": float(metrics.mean_iou(matrix)),
        "mean_dice": float(metrics.mean_dice(matrix)),
        "pixel_accuracy": float(metrics.pixel_accuracy(matrix)),
        "class_iou": {
            name: None if np.isnan(iou) else float(iou)
            for name, iou in zip(class_names, class_iou, strict=True)
        },
    }


def predict(folder, source, out, tell=lambda path: None):
    """Writes masks for photos with the best model of a run.

    Each photo is brought to the size of the training, and the logits back to the photo's own
    size before the class is chosen. `OUT/NAME.png` holds label ids as the training masks do,
    with the colours of the classes as its palette; `OUT/overlays/NAME.png` shows the mask over
    the photo.

    Args:
        folder: the run folder.
        source: an image file or a folder of them; hidden files are left out.
        out: the folder to write to.
        tell: called with the path of each mask that was written.

    Returns:
        List of the masks' paths.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: there is no file in it, two files have one name, or one is no image.
    """
    run = load_run(folder)
    about = run["data"]
    height, width, channels = about["image_shape"]
    palette = np.array(about["palette"], "uint8")
    label_ids = np.array(about["label_ids"])
    paths = _photos(source)
    model = load_model(folder)
    written = []
    for path in paths:
        photo = read_image(path, channels)
        image = to_float(resize_image(photo, (height, width)))
        logits = backend.infer(model, image[None])[0]
        logits = cv2.resize(logits, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        classes = logits.argmax(axis=-1)
        mask_path = Path(out) / f"{path.stem}.png"
        _write_mask(mask_path, label_ids[classes], palette, label_ids)
        overlay = Image.fromarray(plot.overlay(to_float(photo), classes, palette))
        with write_atomically(Path(out) / "overlays" / f"{path.stem}.png") as temporary:
            overlay.save(temporary)
        written.append(mask_path)
        tell(mask_path)
    return written


def _photos(source):
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name an image or a folder of images.")
    if source.is_file():
        return [source]
    paths = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"{source} holds no file: name a folder of images.")
    stems = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(
                f"{path} and {stems[path.stem]} would both be written to {path.stem}.png: "
                "rename one of them."
            )
        stems[path.stem] = path
    return paths


def _write_mask(path, ids, palette, label_ids):
    """Writes label ids as a PNG: with the palette, or 16-bit grey if an id is above 255."""
    if label_ids.max() > 255:
        image = Image.fromarray(ids.astype("uint16"))
    else:
        image = Image.fromarray(ids.astype("uint8"), mode="P")
        colours = np.zeros((256, 3), "uint8")
        colours[label_ids] = palette
        image.putpalette(colours.tobytes())
    with write_atomically(path) as temporary:
        image.save(temporary)
