"""Pictures: grids and animations of images, masks over them, wrong pixels, learning curves.

Every figure function returns a `Picture`, a self-contained Matplotlib figure: no pyplot, no window,
no global state. Jupyter displays it as the last line of a cell; `save` writes it as PNG; all
methods of `matplotlib.figure.Figure` work on it.
"""

import io
import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from keras_segen.files import write_atomically
from keras_segen.palette import distinct_palette

VOID_COLORS = ((226, 226, 226), (178, 178, 178))  # diagonal stripes: no palette has them
SIGNAL_COLOR = (255, 221, 0)  # wrong pixels: bright on a dimmed image, for color-blind eyes too
NEAR_COLORS = 40  # of 255 in every channel: an eye hardly tells them apart in a small region
MAX_ROWS = 32
MAX_IMAGES = 400
INK_COLOR, RULE_COLOR = "#202124", "#dadce0"  # a page replaces them by its own: html.svg
BLUE = "#1967d2"


class Picture(Figure):
    """A Matplotlib figure that Jupyter displays.

    Jupyter shows a bare `Figure` only after `%matplotlib inline` or an import of pyplot; this
    class brings its own PNG.
    """

    def savefig(self, *args, **options):
        """As in Matplotlib; but the layout is made once, where it draws twice to make it."""
        layout = self.get_layout_engine()
        if layout:
            layout.execute(self)
            self.set_layout_engine(None)
        super().savefig(*args, **options)
        self.set_layout_engine(layout)

    def _repr_png_(self):
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def images(images, columns=None, labels=None):
    """Draws images in rows and columns.

    Args:
        images: array `(count, height, width, channels)` or a list of arrays of any sizes; 1 or 3
            channels (or none), float in [0, 1] or uint8.
        columns: int, images in a row; None for about as many rows as columns.
        labels: one str (or number) per image, written under it, or None. A long one continues
            under the images to its right.

    Returns:
        A `Picture`, row by row from the upper left.

    Raises:
        ValueError: if there are no images or more than 400, they are of another shape or type, or
            there are more or fewer labels.

    Example:

    >>> figure = images(np.zeros((6, 8, 8, 3)), columns=3)
    >>> width, height = figure.get_size_inches()
    >>> len(figure.axes[0].images), bool(width > height)
    (6, True)
    """
    images = _items(images)
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ValueError(
            f"`images` must hold 1 to {MAX_IMAGES} images. Found: {len(images)}. Pass a part, such "
            "as images[:64]."
        )
    if labels is not None and len(labels) != len(images):
        raise ValueError(
            f"`labels` has {len(labels)} items, `images` has {len(images)}; expected as many."
        )
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"`columns` must be 1 or more. Found: {columns}.")
    cells = [_image(image, f"images[{i}]") for i, image in enumerate(images)]
    columns, rows = min(columns, len(cells)), math.ceil(len(cells) / columns)

    # All lengths are inches; one pair of axes for all images is quick to draw.
    width = min(1.4, max(0.3, 9.6 / columns))
    height = width * max(cell.shape[0] / cell.shape[1] for cell in cells)
    gap, under = 0.04, 0.0 if labels is None else 0.17
    size = (columns * (width + gap) + gap, rows * (height + under + gap) + gap)
    figure = Picture(figsize=size, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    axes.set_axis_off()
    for i, cell in enumerate(cells):
        left = gap + i % columns * (width + gap)
        bottom = (i // columns + 1) * (height + under + gap) - under
        tall = width * cell.shape[0] / cell.shape[1]
        _place(axes, cell, left, bottom - tall, tall)
        if labels is not None:
            place = {"va": "top", "fontsize": 7.5, "parse_math": False}
            axes.text(left, bottom + 0.03, str(labels[i]), color=INK_COLOR, **place)
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))  # imshow has moved them
    return figure


def mosaic(images, columns=None):
    """Puts images of one size side by side, pixel for pixel, with white lines between them.

    Args:
        images: array `(count, height, width, channels)`, 1 or 3 channels (or none), float in
            [0, 1] or uint8.
        columns: int, images in a row; None for about as many rows as columns.

    Returns:
        RGB image, uint8 `(rows * (height + 2) + 2, columns * (width + 2) + 2, 3)`.

    Raises:
        ValueError: if there are no images, or they are of another shape or type.

    Example:

    >>> mosaic(np.zeros((6, 8, 8, 1)), columns=3).shape
    (22, 32, 3)
    """
    cells = np.stack([_image(image, f"images[{i}]") for i, image in enumerate(images)])
    columns = math.ceil(math.sqrt(len(cells))) if columns is None else min(columns, len(cells))
    rows, (height, width) = math.ceil(len(cells) / columns), cells.shape[1:3]
    shape = (rows * (height + 2) + 2, columns * (width + 2) + 2, 3)
    picture = np.full(shape, 255, "uint8")
    for i, cell in enumerate(cells):
        top, left = 2 + i // columns * (height + 2), 2 + i % columns * (width + 2)
        picture[top : top + height, left : left + width] = cell
    return picture


def animation(frames, path, seconds=0.25, hold=2.0):
    """Writes images as an animation that repeats forever; the file appears whole or not at all.

    Small ones are enlarged by a whole factor, to about 400 pixels, so that they can be seen.

    Args:
        frames: sequence of images of one size, each an array `(height, width, channels)`, float
            in [0, 1] or uint8, such as `mosaic` makes, or the path of a PNG.
        path: the file; its name ends in `.gif` (256 colors a frame, shown everywhere) or
            `.webp` (all colors, smaller).
        seconds: float, how long a frame is shown.
        hold: float, how long the last one is shown.

    Raises:
        ValueError: if the name ends otherwise, there are no frames, or they differ in size.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".webp"):
        raise ValueError(f"An animation's name must end in .gif or .webp. Found: {path}")
    if not len(frames):
        raise ValueError("`frames` must hold at least one image. Found: none.")
    pictures = [_frame(frame, i) for i, frame in enumerate(frames)]
    for i, picture in enumerate(pictures):
        if picture.size != pictures[0].size:
            raise ValueError(
                f"Frames of an animation have one size: frames[0] is {pictures[0].size}, "
                f"frames[{i}] is {picture.size} (width, height)."
            )
    factor = max(1, round(400 / max(pictures[0].size)))
    size = [factor * side for side in pictures[0].size]
    pictures = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
    milliseconds = [round(1000 * seconds)] * (len(pictures) - 1) + [round(1000 * hold)]
    options = {"lossless": True} if suffix == ".webp" else {"optimize": False}
    with write_atomically(path) as temporary:
        pictures[0].save(
            temporary,
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            loop=0,
            **options,
        )


def masks(
    images,
    truth=None,
    predictions=None,
    *,
    palette=None,
    class_names=None,
    ignore_class=None,
    titles=None,
):
    """Draws one row per item: image, truth, prediction and the pixels that are wrong.

    Args:
        images: array `(batch, height, width, channels)` or a list of arrays that keep their own
            sizes; 1 or 3 channels (or none), float in [0, 1] or uint8.
        truth: integer class ids `(batch, height, width)`, or None.
        predictions: integer class ids `(batch, height, width)`, or logits
            `(batch, height, width, num_classes)`, or None.
        palette: array `(num_classes, 3)`, RGB in 0..255, one color per class; None for distinct
            colors.
        class_names: names of the classes, in the order of the palette; None for their numbers.
        ignore_class: int, the label in `truth` that is ignored (drawn striped), or None.
        titles: one str per item, written under its image, or None.

    Returns:
        A `Picture`: columns image, truth, prediction and difference (those that are known), and
        a legend of the classes that occur. The share of wrong pixels among those that count is
        written under each difference.

    Raises:
        ValueError: if there is nothing to draw, if lengths or sizes don't fit together, if an id
            is outside the palette, if logits have another number of channels than there are
            classes, or if there are more than 32 items.

    Example:

    >>> images, truth = np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), "int32")
    >>> colors = np.array([[0, 0, 0], [255, 0, 0]])
    >>> figure = masks(images, truth, palette=colors, class_names=("ground", "disc"))
    >>> len(figure.axes[0].images)  # 2 rows of image and truth
    4
    """
    images, truth, predictions = _items(images), _items(truth), _items(predictions)
    _check_rows(images, {"truth": truth, "predictions": predictions, "titles": titles})
    if palette is None:
        palette = distinct_palette(
            len(class_names)
            if class_names
            else _number_of_classes(truth, predictions, ignore_class)
        )
    if class_names is None:
        class_names = [f"class {number}" for number in range(len(palette))]
    palette = _palette(palette, class_names)

    def wrong(image, ids):
        pixels = wrong_pixels(*ids, ignore_class).sum()
        counted = ids[0].size - np.count_nonzero(ids[0] == ignore_class)
        note = f"{100 * pixels / counted:.1f} % wrong" if counted else "all void"
        return difference(image, *ids, ignore_class), note

    columns = {"truth": ("truth", truth), "prediction": ("predictions", predictions)}
    last = ("difference", "wrong", wrong) if truth is not None and predictions is not None else None
    return _draw_masks(images, columns, last, palette, class_names, ignore_class, titles)


def instances(images, instances, *, palette, class_names, titles=None, columns=None):
    """Draws the objects of images: outlines, boxes, names and scores.

    Args:
        images: array `(batch, height, width, channels)` or a list of arrays that keep their own
            sizes; 1 or 3 channels (or none), float in [0, 1] or uint8.
        instances: for each image a list of `keras_segen.data.Instance`; or a dict from a title to
            such lists, a column of pictures for each: `{"truth": …, "found": …}`.
        palette: array `(num_classes, 3)`, RGB in 0..255, of the classes 1 to `num_classes`.
        class_names: names of these classes.
        titles: one str per image, written under it, or None.
        columns: int, pictures in a row, if `instances` is a list; None for up to 4.

    Returns:
        A `Picture` with a legend of the classes that occur.

    Raises:
        ValueError: if lengths or sizes don't fit together, a class is outside the palette, or
            there are more than 32 images.

    Example:

    >>> figure = instances(
    ...     np.zeros((2, 8, 8, 3)), [[], []], palette=np.array([[255, 0, 0]]), class_names=("disc",)
    ... )
    >>> len(figure.axes[0].images)
    2
    """
    palette, images = _palette(palette, class_names), _items(images)
    groups = instances if isinstance(instances, dict) else {"": instances}
    given = {f"instances[{key!r}]": some for key, some in groups.items()}
    _check_rows(images, {**given, "titles": titles})
    cells = [
        [draw_instances(image, some[i], palette) for some in groups.values()]
        for i, image in enumerate(images)
    ]
    notes = [[titles[i] if titles else ""] + [""] * (len(groups) - 1) for i in range(len(images))]
    if not isinstance(instances, dict):  # one after the other
        columns = min(columns or 4, len(cells))
        blank = np.full_like(cells[0][0], 255)
        missing = -len(cells) % columns
        flat, texts = [row[0] for row in cells] + [blank] * missing, sum(notes, []) + [""] * missing
        cells = [flat[i : i + columns] for i in range(0, len(flat), columns)]
        notes = [texts[i : i + columns] for i in range(0, len(texts), columns)]
    ids = {each.class_id - 1 for some in groups.values() for row in some for each in row}
    names = list(groups) if isinstance(instances, dict) else [""] * len(cells[0])
    return _grid(cells, names, notes, _legend(ids, palette, class_names, None, None))


def draw_instances(image, instances, palette, marked=None):
    """Draws objects over an image: their pixels tinted and outlined, boxes, names, scores.

    Args:
        image: array `(height, width, channels)`, 1 or 3 channels, float in [0, 1] or uint8.
        instances: list of `keras_segen.data.Instance`, drawn in this order from last to first.
        palette: array `(num_classes, 3)`, RGB in 0..255, of the classes 1 to `num_classes`.
        marked: an `Instance` that gets a yellow frame, or None.

    Returns:
        RGB image, uint8 `(height, width, 3)`; small images are enlarged by a whole factor, so
        that names can be read.

    Raises:
        ValueError: if an object is of another image size, or its class outside the palette.
    """
    image, palette = _image(image, "image"), _palette(palette)
    height, width = image.shape[:2]
    picture = _enlarged(image)
    factor = len(picture) // height
    for each in instances:
        if tuple(each.image_size) != (height, width) or not 1 <= each.class_id <= len(palette):
            raise ValueError(
                f"{each!r} is of class {each.class_id} in an image of {tuple(each.image_size)}; "
                f"expected a class of 1 to {len(palette)} and the image's {(height, width)}."
            )
    for each in reversed(instances):
        (top, left), (rows, columns) = each.corner, each.pixels.shape
        part = picture[
            top * factor : (top + rows) * factor, left * factor : (left + columns) * factor
        ]
        pixels = each.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        color = palette[each.class_id - 1]
        part[pixels] = _blend(part[pixels], color, 0.45)
        part[pixels & ~_inner(pixels, max(1, factor // 2))] = 255
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    size = max(10, min(drawn.size) // 40)
    font, line = ImageFont.load_default(size), max(1, size // 10)

    for each in reversed(instances):
        color = tuple(palette[each.class_id - 1].tolist())
        _outline_box(draw, each.box, factor, color, line)
        text = each.name if each.score is None else f"{each.name} {100 * each.score:.0f}"
        left, top = factor * float(each.box[0]), factor * float(each.box[1])
        over = draw.textbbox((0, 0), text, font=font)
        left = min(max(left, 0), max(drawn.width - over[2] - 2, 0))
        top = min(max(top - over[3] - 1, 0), max(drawn.height - over[3] - 1, 0))
        draw.rectangle((left, top, left + over[2] + 2, top + over[3] + 1), fill=color)
        bright = np.dot(color, (0.299, 0.587, 0.114)) > 140
        draw.text((left + 1, top), text, font=font, fill="black" if bright else "white")
    if marked is not None:
        _outline_box(draw, marked.box, factor, SIGNAL_COLOR, 3 * line)
    return np.asarray(drawn)


def draw_boxes(image, boxes, color=SIGNAL_COLOR):
    """Draws the frames of boxes over an image.

    Args:
        image: array `(height, width, channels)`, 1 or 3 channels, float in [0, 1] or uint8.
        boxes: array `(n, 4)`, `(x1, y1, x2, y2)` in pixels of the image; a later one covers an
            earlier one.
        color: RGB in 0..255.

    Returns:
        RGB image, uint8, enlarged as that of `draw_instances`.
    """
    drawn = Image.fromarray(_enlarged(_image(image, "image")))
    factor = drawn.width / np.shape(image)[1]
    for box in boxes:
        _outline_box(ImageDraw.Draw(drawn), box, factor, tuple(color), 1)
    return np.asarray(drawn)


def comparison(images, truth, predictions, *, palette, class_names, ignore_class=None):
    """Draws the same images as predicted on several backends, and where the backends disagree.

    Args:
        images: as in `masks`.
        truth: integer class ids `(batch, height, width)`, or None.
        predictions: dict from a backend's name to its class ids `(batch, height, width)`, or its
            logits `(batch, height, width, num_classes)`.
        palette: array `(num_classes, 3)`, RGB in 0..255.
        class_names: names of the classes, in the order of the palette.
        ignore_class: int, the void label in `truth`, or None.

    Returns:
        A `Picture`: columns image, truth, one per backend and, from two backends on, the pixels
        where they disagree (of all pixels, void or not), counted underneath.

    Raises:
        ValueError: as in `masks`, and if `predictions` is empty.
    """
    palette = _palette(palette, class_names)
    images, truth = _items(images), _items(truth)
    if not predictions:
        raise ValueError("`predictions` is empty; pass {backend's name: class ids}.")
    predictions = {name: _items(values) for name, values in predictions.items()}
    given = {f"predictions[{name!r}]": values for name, values in predictions.items()}
    _check_rows(images, {"truth": truth, **given})

    def apart(image, ids):
        predicted = ids[-len(predictions) :]
        pixels = np.any([other != predicted[0] for other in predicted[1:]], axis=0)
        return _marked(image, pixels), f"{pixels.sum():,} of {pixels.size:,} pixels"

    columns = {"truth": ("truth", truth)}
    columns |= {name: (f"predictions[{name!r}]", each) for name, each in predictions.items()}
    last = ("disagreement", "backends disagree", apart) if len(predictions) > 1 else None
    return _draw_masks(images, columns, last, palette, class_names, ignore_class)


def neighbors(images, nearest, distances=None):
    """Draws generated images beside their nearest real images: are they copies?

    Args:
        images: as in `masks`, the generated ones.
        nearest: array `(batch, neighbors, height, width, channels)`, real images as those of
            `keras_segen.generation.nearest_neighbors`, the nearest first.
        distances: array `(batch, neighbors)`, written under the real images, or None.

    Returns:
        A `Picture`: columns generated, nearest, 2nd, 3rd, ….

    Raises:
        ValueError: if lengths don't fit together, or there are more than 32 items.

    Example:

    >>> images = np.zeros((2, 8, 8, 1))
    >>> len(neighbors(images, np.zeros((2, 3, 8, 8, 1))).axes[0].images)
    8
    """
    images, nearest = _items(images), _items(nearest)
    _check_rows(images, {"nearest": nearest, "distances": distances})
    rows, notes = [], []
    for i, image in enumerate(images):
        reals = [_image(real, f"nearest[{i}][{j}]") for j, real in enumerate(nearest[i])]
        rows.append([_image(image, f"images[{i}]"), *reals])
        under = [""] * len(reals) if distances is None else [f"{x:.3g}" for x in distances[i]]
        notes.append(["", *under])
    names = ["generated", "nearest", "2nd", "3rd"] + [f"{n}th" for n in range(4, len(rows[0]))]
    return _grid(rows, names[: len(rows[0])], notes, [])


def curves(history):
    """Draws one small chart per quantity over the epochs, training and validation together.

    Args:
        history: dict from a quantity's name to one number per epoch, as in
            `model.fit(...).history`; `val_loss` is drawn in the chart of `loss`. None, NaN and
            infinity leave a gap. What never changes, such as a learning rate, is said in words.

    Returns:
        A `Picture`.

    Raises:
        ValueError: if `history` is empty or not a dict.

    Example:

    >>> figure = curves({"loss": [0.9, 0.5], "val_loss": [1.0, 0.7], "mean_iou": [0.2, 0.4]})
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['loss', 'mean IoU']
    """
    if not isinstance(history, dict) or not history:
        raise ValueError(
            "`history` must be a dict from a quantity's name to one number per epoch, such as "
            f"`model.fit(...).history`. Found: {type(history).__name__} {history!r:.60}."
        )
    quantities = dict.fromkeys(name.removeprefix("val_") for name in history)
    constant = {}
    for quantity in quantities:
        both = [history[key] for key in (quantity, f"val_{quantity}") if key in history]
        if len(both[0]) > 1 and np.ptp(np.concatenate([finite(each) for each in both])) == 0:
            constant[quantity] = both[0][0]
    quantities = [each for each in quantities if each not in constant] or list(constant)
    columns = min(3, len(quantities))
    rows = math.ceil(len(quantities) / columns)
    figure = _picture(4.2 * columns, 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(quantities) :]:
        axes.remove()
    styles = {
        "": {"label": "training", "color": "#5f6368", "linestyle": "--"},
        "val_": {"label": "validation", "color": "#1967d2", "linestyle": "-"},
    }
    for axes, quantity in zip(grid.flat, quantities, strict=False):
        for prefix, style in styles.items():
            if prefix + quantity in history:
                values = finite(history[prefix + quantity])
                epochs = np.arange(1, len(values) + 1)
                marker = "o" if len(values) <= 30 else None
                axes.plot(epochs, values, marker=marker, markersize=3.5, linewidth=1.7, **style)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
            axes.set_yticks([])
        axes.set_title(_title(quantity), loc="left", fontsize=11, parse_math=False)
        plain_axes(axes, "epoch", "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=7))
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=8.5)
    same = [f"{_title(key)} {value:g}" for key, value in constant.items() if key not in quantities]
    if same:
        figure.supxlabel(f"The same in every epoch: {', '.join(same)}", fontsize=9)
    return figure


def _title(quantity):
    return quantity.replace("_", " ").replace("iou", "IoU").replace(" ap", " AP")


def confusion_matrix(matrix, class_names):
    """Draws a confusion matrix: where the pixels of each class went.

    Args:
        matrix: array `(num_classes, num_classes)`, counts by truth (rows) and prediction
            (columns).
        class_names: names of the classes.

    Returns:
        A `Picture`. Each row is divided by its sum: the darker a cell, the larger the share of
        the row's class that was predicted as the column's; with numbers up to 24 classes.

    Raises:
        ValueError: if the matrix is not square, or the number of names differs.

    Example:

    >>> figure = confusion_matrix([[90, 10], [4, 4]], ("ground", "disc"))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['90', '10', '50', '50']
    """
    matrix = np.asarray(matrix, "float64")
    number = len(class_names)
    if matrix.shape != (number, number):
        raise ValueError(
            f"A confusion matrix of {number} classes has the shape ({number}, {number}). "
            f"Found: {matrix.shape}."
        )
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    side = min(max(0.42 * number, 2.0), 11.0)  # inches
    figure = _picture(side + 1.7, side + 1.4)
    axes = figure.subplots()
    cells = np.empty((number, number, 4))  # shades by alpha: they suit a dark page too
    cells[..., :3] = to_rgb(BLUE)
    cells[..., 3] = shares
    axes.imshow(cells, interpolation="nearest")
    if number <= 24:
        for (row, column), share in np.ndenumerate(shares):
            if totals[row] > 0 and share >= 0.005:
                color = "white" if share > 0.55 else INK_COLOR
                place = {"ha": "center", "va": "center", "fontsize": 8}
                axes.text(column, row, f"{100 * share:.0f}", color=color, **place)
    labels = [_short(name) for name in class_names]
    size = 9 if number <= 24 else 5
    axes.set_xticks(range(number), labels, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(number), labels)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)
    axes.set_xlabel("predicted", color=INK_COLOR, fontsize=9.5)
    axes.set_ylabel("truth", color=INK_COLOR, fontsize=9.5)
    axes.tick_params(color=RULE_COLOR, labelcolor=INK_COLOR, labelsize=size, length=2)
    axes.spines[:].set_color(RULE_COLOR)
    return figure


def reliability(
    bins, counted="pixels", confidence="confidence: probability of the predicted class"
):
    """Draws a reliability diagram: accuracy against confidence.

    Args:
        bins: array `(num_bins, 3)`, as `metrics.calibration_bins` counts them: pixels, those
            predicted right, and the sum of their confidences.
        counted: str, what they count.
        confidence: str, what the confidence is.

    Returns:
        A `Picture`: above, the accuracy of each bin of confidence and its mean confidence, with
        the diagonal where the two are equal; below, the share of the pixels in each bin.

    Raises:
        ValueError: if the bins have another shape.
    """
    bins = np.asarray(bins, "float64")
    if bins.ndim != 2 or bins.shape[1] != 3:
        raise ValueError(f"`bins` must have the shape (num_bins, 3). Found: {bins.shape}.")
    pixels, right, sure = bins[bins[:, 0] > 0].T
    left, width = np.flatnonzero(bins[:, 0] > 0) / len(bins), 1 / len(bins)
    figure = _picture(4.7, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bars = {"align": "edge", "color": BLUE}
    above.bar(left, right / pixels, 0.92 * width, label="accuracy", **bars)
    above.plot([0, 1], [0, 1], "--", color=INK_COLOR, linewidth=1, label="equal")
    dots = {"marker": "D", "markersize": 4, "linestyle": "none", "color": "#e8710a"}
    above.plot(left + width / 2, sure / pixels, label="mean confidence", **dots)
    below.bar(left, 100 * pixels / max(pixels.sum(), 1), 0.92 * width, **bars)
    above.set(xlim=(0, 1), ylim=(0, 1))
    above.legend(loc="upper left", frameon=False, labelcolor=INK_COLOR, fontsize=9)
    plain_axes(above, "", f"share of {counted} right")
    plain_axes(below, confidence, f"% of {counted}")
    return figure


def precision_recall(recalls, curves, palette=None):
    """Draws curves of precision by recall.

    Args:
        recalls: array `(n,)`, 0 to 1.
        curves: dict from a name to the precision at each recall, `(n,)`.
        palette: array `(len(curves), 3)`, RGB in 0..255, or None for shades of blue.

    Returns:
        A `Picture`; behind each name is the mean of its precision, the area under the curve.

    Raises:
        ValueError: if there is no curve, or one has another length.

    Example:

    >>> figure = precision_recall([0.0, 0.5, 1.0], {"disc": [1.0, 0.8, 0.0]})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['disc 0.600']
    """
    recalls = np.asarray(recalls, "float64")
    if not curves or any(np.shape(curve) != recalls.shape for curve in curves.values()):
        raise ValueError(
            f"`curves` must hold {len(recalls)} numbers for each name, one at each recall. Found: "
            f"{ {name: np.shape(curve) for name, curve in curves.items()} }."
        )
    if palette is None:
        shades = np.linspace(0.35, 1.0, len(curves))
        colors = [(*to_rgb(BLUE), shade) for shade in shades[::-1]]
    else:
        colors = np.asarray(palette) / 255
    figure = _picture(4.7, 3.6)
    axes = figure.subplots()
    lines = [
        axes.plot(recalls, curve, color=color, linewidth=1.7)[0]
        for (_, curve), color in zip(curves.items(), colors, strict=True)
    ]
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    plain_axes(axes, "recall: share of the true objects found", "precision: share of finds right")
    names = [f"{_short(name)} {np.mean(curve):.3f}" for name, curve in curves.items()]
    _name_lines(axes, lines, names, loc="lower left", labelcolor=INK_COLOR, fontsize=8)
    return figure


def folds(scores, quantity="mean IoU"):
    """Draws the scores of a cross-validation: models side by side, their folds joined by lines.

    Args:
        scores: dict from a model's name to one number per fold, the same folds for each.
        quantity: str, the name of the score.

    Returns:
        A `Picture`: a dot per fold, beside them the mean with one standard deviation to each
        side. A line joins the dots of one fold: it shows whether a model is better on every fold
        or only on average.

    Raises:
        ValueError: if there are no scores, or their number differs between models.
    """
    lengths = {len(each) for each in scores.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"`scores` must hold as many numbers for each model. Found: {scores}.")
    values = np.array(list(scores.values()), "float64")
    figure = _picture(max(3.6, 1.5 * len(scores) + 1.2), 3.6)
    axes = figure.subplots()
    places = np.arange(len(values))
    axes.plot(places, values, color=RULE_COLOR, linewidth=1.2, zorder=1)
    for place, row in zip(places, values, strict=True):
        axes.plot([place] * len(row), row, "o", color=BLUE, markersize=5, zorder=2)
        deviation = row.std(ddof=1) if len(row) > 1 else 0.0
        bars = {"fmt": "_", "markersize": 16, "markeredgewidth": 2, "capsize": 4, "zorder": 3}
        axes.errorbar(place + 0.18, row.mean(), deviation, color=INK_COLOR, **bars)
    axes.set_xticks(places, [_short(name) for name in scores])
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_xlim(-0.5, len(values) - 0.5 + 0.18)
    plain_axes(axes, "", quantity)
    return figure


def save(figure, path):
    """Writes a figure as PNG; the file appears whole or not at all.

    Args:
        figure: a `matplotlib.figure.Figure`.
        path: the file; its name must end in `.png`.

    Raises:
        ValueError: if the name does not end in `.png`.
    """
    check_name(path)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def check_name(path):
    """Raises the error of `save` for a wrong name, before there is a figure."""
    if not str(path).lower().endswith(".png"):
        raise ValueError(f"A figure is saved as PNG: the name must end in .png. Found: {path}")


def colorize(mask, palette, ignore_class=None):
    """Turns class ids into colors.

    Args:
        mask: integer class ids `(height, width)`.
        palette: array `(num_classes, 3)`, RGB in 0..255.
        ignore_class: int, the void label, drawn as light gray stripes, or None.

    Returns:
        RGB image, uint8 `(height, width, 3)`.

    Raises:
        ValueError: if an id is neither in the palette nor `ignore_class`.

    Example:

    >>> colorize(np.array([[0, 1]]), np.array([[0, 0, 0], [255, 0, 0]])).tolist()
    [[[0, 0, 0], [255, 0, 0]]]
    """
    palette = _palette(palette)
    mask = _class_ids(mask, None, len(palette), "mask")
    void = mask == ignore_class
    outside = ~void & ((mask < 0) | (mask >= len(palette)))
    if outside.any():
        row, column = np.argwhere(outside)[0]
        allowed = f"0 to {len(palette) - 1}"
        if ignore_class is not None:
            allowed += f", or {ignore_class} (void)"
        raise ValueError(
            f"A class id is out of range: found {mask[row, column]} at row {row}, column "
            f"{column}; expected {allowed}."
        )
    colors = palette[np.where(void, 0, mask)]
    colors[void] = _stripes(mask.shape)[void]
    return colors


def overlay(image, mask, palette, ignore_class=None, alpha=0.5):
    """Blends the colors of a mask over its image.

    Where the colors on both sides of a border are near each other, the border is drawn in black or
    white.

    Args:
        image: array `(height, width, channels)`, 1 or 3 channels, float in [0, 1] or uint8.
        mask: integer class ids `(height, width)`.
        palette: array `(num_classes, 3)`, RGB in 0..255.
        ignore_class: int, the void label, drawn as light gray stripes, or None.
        alpha: float in [0, 1], the opacity of the mask.

    Returns:
        RGB image, uint8 `(height, width, 3)`.

    Raises:
        ValueError: if the sizes differ, an id is out of range, or `alpha` is.
    """
    _check_alpha(alpha)
    image = _image(image, "image")
    mask = _class_ids(mask, image.shape[:2], len(palette), "mask")
    blended = _blend(image, colorize(mask, palette, ignore_class), alpha)
    return _outlined(blended, mask) if alpha else blended


def objects(image, numbers, alpha=0.6):
    """Blends a color for each object over an image; neighbors hardly ever have the same.

    Args:
        image: array `(height, width, channels)`, 1 or 3 channels, float in [0, 1] or uint8.
        numbers: int `(height, width)`, 0 where there is no object, another number for each.
        alpha: float in [0, 1], the opacity of the colors.

    Returns:
        RGB image, uint8 `(height, width, 3)`.

    Raises:
        ValueError: if the sizes differ, or `alpha` is out of range.
    """
    image, numbers = _image(image, "image").copy(), np.asarray(numbers)
    _check_alpha(alpha)
    if numbers.shape != image.shape[:2] or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"`numbers` are {numbers.dtype} of shape {numbers.shape}; expected whole numbers "
            f"{image.shape[:2]}, as the image."
        )
    inside = numbers > 0
    # Multiples of the golden ratio, of which no two are close, once around the colors.
    turns = numbers[inside] * 0.618034 % 1
    image[inside] = _blend(image[inside], colormaps["hsv"](turns, bytes=True)[..., :3], alpha)
    return image


def heat(values, highest):
    """Colors numbers from black (0) over purple and orange to bright yellow (`highest`).

    Args:
        values: array `(height, width)`, 0 to `highest`; larger values have the last color.
        highest: float, more than 0.

    Returns:
        RGB image, uint8 `(height, width, 3)`.
    """
    return colormaps["inferno"](np.asarray(values) / highest, bytes=True)[..., :3]


def wrong_pixels(truth, prediction, ignore_class=None):
    """Finds the pixels that count and are wrong: bool `(height, width)`.

    Args:
        truth: integer class ids `(height, width)`.
        prediction: integer class ids `(height, width)`.
        ignore_class: int, the label in `truth` that never counts, or None.
    """
    return (np.asarray(truth) != prediction) & (np.asarray(truth) != ignore_class)


def difference(image, truth, prediction, ignore_class=None):
    """Marks the wrong pixels: bright on the dimmed image; void is striped.

    Args:
        image: array `(height, width, channels)`, 1 or 3 channels, float in [0, 1] or uint8.
        truth: integer class ids `(height, width)`.
        prediction: integer class ids `(height, width)`.
        ignore_class: int, the label in `truth` that never counts, or None.

    Returns:
        RGB image, uint8 `(height, width, 3)`.
    """
    image = _image(image, "image")
    marked = _marked(image, wrong_pixels(truth, prediction, ignore_class))
    void = np.asarray(truth) == ignore_class
    marked[void] = _stripes(void.shape)[void]
    return marked


def _frame(frame, i):
    """A frame of an animation as a Pillow image."""
    if isinstance(frame, (str, Path)):
        with Image.open(frame, formats=("PNG",)) as file:
            return file.convert("RGB")
    return Image.fromarray(_image(frame, f"frames[{i}]"))


def _picture(width, height):
    """An empty figure, its sides in inches, that makes room for its texts."""
    return Picture(figsize=(width, height), layout="constrained", facecolor="white")


def plain_axes(axes, x_label, y_label):
    """Gives axes their labels, two of four lines around them, and thin lines across."""
    axes.set_xlabel(x_label, color=INK_COLOR, fontsize=9.5)
    axes.set_ylabel(y_label, color=INK_COLOR, fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE_COLOR)
    axes.tick_params(which="both", color=RULE_COLOR, labelcolor=INK_COLOR, labelsize=9, length=3)
    axes.grid(axis="y", color=RULE_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)


def _short(name, length=20):
    name = str(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def finite(values):
    """Numbers as a float64 array, with NaN for None and infinity, so that charts show a gap."""
    values = np.array([math.nan if value is None else value for value in values], "float64")
    return np.where(np.isfinite(values), values, math.nan)


def _draw_masks(images, columns, last, palette, class_names, ignore_class, titles=None):
    """Draws images, masks of them, and a last picture that compares the masks.

    `columns` is a dict of title -> (name of the argument, masks or None), `last` None or the
    title of the last column, that of its color in the legend, and a callable from an image and
    its masks to a picture and a note.
    """
    columns = {title: given for title, given in columns.items() if given[1] is not None}
    rows, notes, seen = [], [], set()
    for i, image in enumerate(images):
        image = _image(image, f"images[{i}]")
        ids = [
            _class_ids(masks[i], image.shape[:2], len(palette), f"{where}[{i}]")
            for where, masks in columns.values()
        ]
        rows.append([image, *(colorize(each, palette, ignore_class) for each in ids)])
        notes.append([titles[i] if titles else "", *([""] * len(ids))])
        seen.update(*(np.unique(each).tolist() for each in ids))
        if last:
            picture, note = last[2](image, ids)
            rows[-1].append(picture)
            notes[-1].append(note)
    names = ["image", *columns, *([last[0]] if last else [])]
    legend = _legend(seen, palette, class_names, ignore_class, last and last[1])
    return _grid(rows, names, notes, legend)


def _grid(rows, names, notes, legend):
    height, width = rows[0][0].shape[:2]
    cell_width = 2.3  # inches
    cell_height = min(max(cell_width * height / width, 1.0), 4.0)
    width = cell_width * len(names)
    columns = max(1, int(width / 1.35))
    legend_rows = math.ceil(len(legend) / columns)
    step = cell_height + 0.2  # inches, as all lengths; one pair of axes is quick to draw
    figure = _picture(width, step * len(rows) + 0.4 + 0.22 * legend_rows)
    axes = figure.add_subplot()
    axes.set_axis_off()
    style = {"color": INK_COLOR, "parse_math": False}
    for column, name in enumerate(names):
        axes.text(column * cell_width, -0.05, name, va="bottom", fontsize=10, **style)
    for row, (cells, cell_notes) in enumerate(zip(rows, notes, strict=True)):
        for column, (cell, note) in enumerate(zip(cells, cell_notes, strict=True)):
            left, top = column * cell_width, row * step
            height = min(cell_height, (cell_width - 0.08) * cell.shape[0] / cell.shape[1])
            _place(axes, cell, left, top, height)
            axes.text(left, top + height + 0.03, note, va="top", fontsize=8, **style)
    for text in axes.texts:
        text.set_in_layout(False)  # a long one must not make the images smaller
    axes.set(xlim=(0, width), ylim=(len(rows) * step, -0.2), aspect="equal", anchor="NW")
    place = {"loc": "outside lower left", "ncols": columns, "columnspacing": 1.4}
    size = {"fontsize": 9, "handlelength": 1.1, "handleheight": 1.1}
    patches, names = [patch for patch, _ in legend], [_short(label, 28) for _, label in legend]
    _name_lines(figure, patches, names, **place, **size)
    return figure


def _place(axes, cell, left, top, height):
    """Draws an image at a place of axes whose y goes down."""
    width = height * cell.shape[1] / cell.shape[0]
    axes.imshow(
        cell,
        extent=(left, left + width, top + height, top),
        interpolation="nearest" if max(cell.shape) < 256 else "auto",
        aspect="auto",
    )


def _name_lines(where, lines, names, **options):
    """Draws the legend of axes or of a figure; a name may be any text."""
    # The texts are set afterward: a legend leaves out a label that starts with "_".
    drawn = where.legend(lines, ["-"] * len(lines), frameon=False, **options)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _legend(ids, palette, class_names, ignore_class, signal):
    border = {"edgecolor": "#80868b", "linewidth": 0.6}
    legend = [
        (Patch(facecolor=palette[i] / 255, **border), str(class_names[i]))
        for i in sorted(ids - {ignore_class})
    ]
    if ignore_class in ids:
        light, dark = (np.array(color) / 255 for color in VOID_COLORS)
        stripes = {"hatch": "/////", "edgecolor": dark, "linewidth": 0.0}
        legend.append((Patch(facecolor=light, **stripes), "void"))
    if signal:
        legend.append((Patch(facecolor=np.array(SIGNAL_COLOR) / 255, **border), signal))
    return legend


def _enlarged(image):
    """A small image, uint8, enlarged by a whole factor; a copy."""
    factor = max(1, math.ceil(288 / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline_box(draw, box, factor, color, line):
    left, top, right, bottom = (factor * float(side) for side in box)
    if right > left + 1 and bottom > top + 1:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=line)


def _inner(pixels, width):
    """The pixels of a mask that are further inside than `width`: bool."""
    for _ in range(width):
        padded = np.pad(pixels, 1)
        pixels = pixels & padded[2:, 1:-1] & padded[:-2, 1:-1]
        pixels &= padded[1:-1, 2:] & padded[1:-1, :-2]
    return pixels


def _marked(image, pixels):
    gray = image.mean(axis=-1, keepdims=True) * 0.45
    marked = np.repeat(gray, 3, axis=-1).astype("uint8")
    marked[pixels] = SIGNAL_COLOR
    return marked


def _outlined(picture, mask):
    """Draws the borders of a mask that a picture hardly shows: black on light, white on dark."""
    border = np.zeros(mask.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        contrast = np.abs(picture[here].astype("int16") - picture[there]).max(axis=-1)
        border[here] |= (mask[here] != mask[there]) & (contrast < NEAR_COLORS)
    outlined = picture.copy()
    outlined[border] = np.where(picture[border].mean(axis=-1, keepdims=True) < 128, 255, 0)
    return outlined


def _check_alpha(alpha):
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in [0, 1]. Found: {alpha}.")


def _blend(below, above, alpha):
    return np.rint(below * (1 - alpha) + above * alpha).astype("uint8")


def _stripes(shape):
    light, dark = np.array(VOID_COLORS, "uint8")
    rows, columns = np.indices(shape)
    return np.where(((rows + columns) % 6 < 2)[..., None], dark, light)


def _items(values):
    # Lists keep images of different sizes; everything else (NumPy, tensors) becomes an array.
    if values is None or isinstance(values, (list, tuple)):
        return values
    return np.asarray(values)


def _check_rows(images, others):
    if all(values is None for name, values in others.items() if name != "titles"):
        raise ValueError("There is nothing to draw beside the images: pass `truth`, `predictions`.")
    if not 1 <= len(images) <= MAX_ROWS:
        raise ValueError(
            f"`images` must hold 1 to {MAX_ROWS} items, one per row. Found: {len(images)}. "
            "Pass a part, such as images[:8]."
        )
    for name, values in others.items():
        if values is not None and len(values) != len(images):
            raise ValueError(
                f"`{name}` has {len(values)} items, `images` has {len(images)}; expected as many."
            )


def _number_of_classes(truth, predictions, ignore_class):
    """As many as the logits have channels, or up to the highest id that occurs."""
    highest = 0
    for array in map(
        np.asarray,
        [*([] if truth is None else truth), *([] if predictions is None else predictions)],
    ):
        if array.ndim == 3:
            return array.shape[-1]
        counted = array[array != ignore_class] if array.dtype.kind in "iu" else array[:0]
        highest = max(highest, int(counted.max(initial=0)))
    return highest + 1


def _palette(palette, class_names=None):
    palette = np.asarray(palette)
    if palette.ndim != 2 or palette.shape[1] != 3 or not np.issubdtype(palette.dtype, np.integer):
        raise ValueError(
            "`palette` must hold integers of shape (num_classes, 3), RGB in 0..255. Found: "
            f"shape {palette.shape}, {palette.dtype}."
        )
    if palette.size and (palette.min() < 0 or palette.max() > 255):
        raise ValueError(
            f"`palette` must lie in 0..255. Found: {palette.min()} to {palette.max()}."
        )
    if class_names is not None and len(class_names) != len(palette):
        raise ValueError(
            f"`palette` has {len(palette)} colors, `class_names` has {len(class_names)} names; "
            "expected one name per color."
        )
    return palette.astype("uint8")


def _image(image, where):
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"`{where}` must have the shape (height, width, 1 or 3). Found: {image.shape}."
        )
    if np.issubdtype(image.dtype, np.floating):
        low, high = image.min(), image.max()
        if not (low >= -1e-3 and high <= 1.001):  # written so that NaN fails too
            raise ValueError(
                f"`{where}` must lie in [0, 1] (float) or be uint8. Found: {low} to {high}."
            )
        image = np.rint(image.clip(0, 1) * 255).astype("uint8")
    elif image.dtype != np.uint8:
        raise ValueError(f"`{where}` must be float in [0, 1] or uint8. Found: {image.dtype}.")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _class_ids(mask, shape, num_classes, where):
    mask = np.asarray(mask)
    if mask.ndim == 3:  # logits
        if mask.shape[-1] != num_classes:
            raise ValueError(
                f"`{where}` must be class ids (height, width) or logits (height, width, "
                f"{num_classes}), one channel per class. Found: shape {mask.shape}."
            )
        mask = mask.argmax(axis=-1)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(
            f"`{where}` must be integer class ids (height, width). Found: shape {mask.shape}, "
            f"{mask.dtype}."
        )
    if shape is not None and mask.shape != tuple(shape):
        raise ValueError(
            f"`{where}` is {mask.shape[0]}x{mask.shape[1]}, its image {shape[0]}x{shape[1]} "
            "(height x width); expected the same size."
        )
    return mask
