"""Found and true objects in COCO's JSON, which other tools open."""

import numpy as np


def run_lengths(mask):
    """Packs a mask as COCO does: column by column, the lengths of runs, in letters.

    Args:
        mask: bool `(height, width)`.

    Returns:
        Dict of `size`, `[height, width]`, and `counts`, str.

    Example:

    >>> run_lengths(np.array([[0, 1], [0, 1], [1, 1]], bool))
    {'size': [3, 2], 'counts': '24'}
    """
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    letters = []
    for i, count in enumerate(counts):
        # Each length as its difference from the one before the last, five bits a letter.
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + 32 * more))
    return {"size": list(mask.shape), "counts": "".join(letters)}


def annotation(instance, image_id):
    """One object as a dict of plain values; `score` only if it was found."""
    left, top, right, bottom = (round(float(side), 3) for side in instance.box)
    values = {
        "image_id": image_id,
        "category_id": instance.class_id,
        "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
        "segmentation": run_lengths(instance.mask),
        "area": instance.area,
        "iscrowd": int(instance.crowd),
    }
    return values if instance.score is None else {**values, "score": round(instance.score, 5)}


def document(names, sizes, instances, class_names):
    """Images and their objects, as COCO's files of annotations have them.

    Args:
        names: list of str, of the images; their ids count from 1.
        sizes: list of `(height, width)`.
        instances: list of lists of `keras_segen.data.Instance`, for each image.
        class_names: sequence of str, of the classes 1 to K.

    Returns:
        Dict of plain values: `images`, `categories` and `annotations`.
    """
    images = [
        {"id": i, "file_name": name, "height": int(height), "width": int(width)}
        for i, (name, (height, width)) in enumerate(zip(names, sizes, strict=True), 1)
    ]
    found = [annotation(each, i) for i, some in enumerate(instances, 1) for each in some]
    return {
        "images": images,
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names, 1)],
        "annotations": [{"id": i, **values} for i, values in enumerate(found, 1)],
    }
