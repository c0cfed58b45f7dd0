"""Pictures: the pixels that they show, the errors that they give, how Jupyter shows them."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_segen import plot

pytestmark = pytest.mark.once

NAMES = ("ground", "disc", "_$box$")
PALETTE = np.array([[10, 20, 30], [255, 0, 0], [0, 128, 255]], "uint8")
VOID = 255


def scene(count=2, height=12, width=16):
    rng = np.random.default_rng(0)
    images = rng.random((count, height, width, 3), "float32")
    truth = rng.integers(0, 3, (count, height, width), "int32")
    truth[:, :, -3:] = VOID
    predictions = rng.integers(0, 3, (count, height, width), "int32")
    return images, truth, predictions


def titles(figure):
    """The texts above the first row."""
    texts = figure.axes[0].texts
    return [text.get_text() for text in texts if text.get_text() and text.get_position()[1] < 0]


def notes(figure):
    """The texts under the cells, row by row."""
    return [text.get_text() for text in figure.axes[0].texts if text.get_position()[1] > 0]


def cell(figure, row, column):
    return figure.axes[0].images[row * len(titles(figure)) + column].get_array()


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_colorize_gives_the_palette_and_stripes_for_void():
    mask = np.array([[0, 1, 2, VOID]], "uint8")
    colors = plot.colorize(mask, PALETTE, VOID)
    assert colors.dtype == np.uint8 and colors.shape == (1, 4, 3)
    np.testing.assert_array_equal(colors[0, :3], PALETTE)
    assert tuple(colors[0, 3]) in plot.VOID_COLORS


def test_colorize_stripes_differ_from_every_plain_color():
    void = plot.colorize(np.full((12, 12), VOID), PALETTE, VOID)
    found = {tuple(color) for color in void.reshape(-1, 3).tolist()}
    assert found == set(plot.VOID_COLORS)


@pytest.mark.parametrize("value", [3, -1, VOID])
def test_colorize_says_which_id_is_out_of_range_and_where(value):
    mask = np.zeros((4, 5), "int32")
    mask[2, 3] = value
    with pytest.raises(ValueError, match=rf"found {value} at row 2, column 3; expected 0 to 2\."):
        plot.colorize(mask, PALETTE)


def test_overlay_mixes_image_and_mask():
    image = np.full((2, 2, 3), 200, "uint8")
    mask = np.array([[0, 1], [2, 0]])
    colors = plot.colorize(mask, PALETTE)
    np.testing.assert_array_equal(plot.overlay(image, mask, PALETTE, alpha=0.0), image)
    np.testing.assert_array_equal(plot.overlay(image, mask, PALETTE, alpha=1.0), colors)
    mixed = plot.overlay(image, mask, PALETTE, alpha=0.5).astype(int)
    assert np.abs(mixed - (image.astype(int) + colors) / 2).max() <= 0.5
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        plot.overlay(image, mask, PALETTE, alpha=1.5)


def test_overlay_outlines_what_colors_do_not_show():
    near, far = np.array([[10, 10, 10], [20, 12, 10]]), np.array([[0, 0, 0], [255, 0, 0]])
    mask = np.zeros((6, 8), int)
    mask[2:, 3:] = 1
    expected = np.zeros((6, 8), bool)
    expected[2, 3:] = expected[2:, 3] = True
    for light, line in ((0.0, 255), (1.0, 0)):
        image = np.full((6, 8, 3), light)
        plain = (255 * light + near[mask]) / 2
        drawn = plot.overlay(image, mask, near, alpha=0.5)
        assert (drawn[expected] == line).all()
        assert np.abs(drawn - plain)[~expected].max() <= 0.5
        colors = plot.overlay(image, mask, far, alpha=0.5)
        assert np.abs(colors - (255 * light + far[mask]) / 2).max() <= 0.5


def test_heat_gets_brighter_with_the_number():
    picture = plot.heat(np.array([[0, 1, 2, 3, 4, 5]]), highest=4)
    assert picture.dtype == np.uint8 and picture.shape == (1, 6, 3)
    brightness = picture[0].astype(int).sum(axis=-1)
    assert (np.diff(brightness[:5]) > 0).all()
    assert picture[0, 0].max() < 10 and picture[0, 4].min() > 150
    np.testing.assert_array_equal(picture[0, 4], picture[0, 5])


def test_difference_marks_exactly_the_wrong_pixels():
    images, truth, predictions = scene()
    picture = plot.difference(images[0], truth[0], predictions[0], VOID)
    signal = (picture == plot.SIGNAL_COLOR).all(axis=-1)
    void = truth[0] == VOID
    np.testing.assert_array_equal(signal, (truth[0] != predictions[0]) & ~void)
    for color in picture[void].tolist():
        assert tuple(color) in plot.VOID_COLORS
    right = picture[~signal & ~void]
    assert right.max() < 128 and (right == right[:, :1]).all()  # dimmed and grey


def test_masks_shows_all_columns_with_the_right_pixels():
    images, truth, predictions = scene()
    figure = plot.masks(
        images, truth, predictions, palette=PALETTE, class_names=NAMES, ignore_class=VOID
    )
    assert titles(figure) == ["image", "truth", "prediction", "difference"]
    assert legend(figure) == [*NAMES, "void", "wrong"]
    for row in range(2):
        np.testing.assert_allclose(cell(figure, row, 0), images[row] * 255, atol=0.5)
        np.testing.assert_array_equal(
            cell(figure, row, 1), plot.colorize(truth[row], PALETTE, VOID)
        )
        np.testing.assert_array_equal(
            cell(figure, row, 2), plot.colorize(predictions[row], PALETTE)
        )
        np.testing.assert_array_equal(
            cell(figure, row, 3),
            plot.difference(images[row], truth[row], predictions[row], VOID),
        )


def test_masks_counts_wrong_pixels_without_void():
    images, truth = np.zeros((1, 4, 5, 3)), np.zeros((1, 4, 5), int)
    truth[0, :, 4] = VOID  # 16 pixels count
    predictions = np.zeros_like(truth)
    predictions[0, 0] = 1  # 5 wrong, one of them void
    figure = plot.masks(
        images, truth, predictions, palette=PALETTE, class_names=NAMES, ignore_class=VOID
    )
    assert notes(figure)[3] == "25.0 % wrong"
    truth[:] = VOID
    figure = plot.masks(
        images, truth, predictions, palette=PALETTE, class_names=NAMES, ignore_class=VOID
    )
    assert notes(figure)[3] == "all void"


def test_masks_takes_logits_as_class_ids():
    images, truth, predictions = scene()
    logits = 5 * np.eye(3, dtype="float32")[predictions] - 2
    one = plot.masks(images, None, predictions, palette=PALETTE, class_names=NAMES)
    other = plot.masks(images, None, logits, palette=PALETTE, class_names=NAMES)
    assert titles(other) == ["image", "prediction"]
    np.testing.assert_array_equal(cell(one, 1, 1), cell(other, 1, 1))


@pytest.mark.parametrize("kind", ["uint8", "grey", "one channel", "list of sizes"])
def test_masks_takes_every_kind_of_image(kind):
    images, truth, predictions = scene()
    if kind == "uint8":
        images = (images * 255).astype("uint8")
    elif kind == "grey":
        images = images[..., 0]
    elif kind == "one channel":
        images = images[..., :1]
    else:
        images, truth = [images[0], images[1][:6, :9]], [truth[0], truth[1][:6, :9]]
        predictions = [predictions[0], predictions[1][:6, :9]]
    figure = plot.masks(
        images, truth, predictions, palette=PALETTE, class_names=NAMES, ignore_class=VOID
    )
    assert cell(figure, 1, 0).shape == (*np.shape(truth[1]), 3)
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": None, "predictions": None}, "nothing to draw"),
        ({"images": np.zeros((0, 12, 16, 3))}, "must hold 1 to 32 items.*Found: 0"),
        ({"images": np.zeros((33, 12, 16, 3))}, r"Found: 33.*images\[:8\]"),
        ({"images": np.full((2, 12, 16, 3), 7.0)}, r"images\[0\]` must lie in \[0, 1\].*7\.0"),
        ({"images": np.full((2, 12, 16, 3), math.nan)}, r"images\[0\]` must lie in \[0, 1\]"),
        ({"images": np.zeros((2, 12, 16, 3), "int32")}, "must be float in.*Found: int32"),
        ({"images": np.zeros((2, 12, 16, 4))}, r"\(height, width, 1 or 3\).*\(12, 16, 4\)"),
        ({"truth": np.zeros((3, 12, 16), int)}, "`truth` has 3 items, `images` has 2"),
        ({"truth": np.zeros((2, 12, 15), int)}, r"`truth\[0\]` is 12x15, its image 12x16"),
        ({"truth": np.zeros((2, 12, 16))}, r"`truth\[0\]` must be integer.*float64"),
        ({"predictions": np.zeros((2, 12, 16, 5))}, r"logits \(height, width, 3\)"),
        ({"palette": PALETTE[:2]}, "2 colors, `class_names` has 3 names"),
        ({"palette": PALETTE / 255}, "`palette` must hold integers"),
        ({"palette": PALETTE.astype(int) + 9}, "`palette` must lie in 0..255. Found: 9 to 264"),
        ({"titles": ["one"]}, "`titles` has 1 items"),
    ],
)
def test_masks_names_every_mistake(change, message):
    images, truth, predictions = scene()
    given = {"images": images, "truth": truth, "predictions": predictions, "palette": PALETTE}
    given |= {"class_names": NAMES, "ignore_class": VOID} | change
    with pytest.raises(ValueError, match=message):
        plot.masks(**given)


def test_comparison_marks_exactly_where_the_backends_disagree():
    images, truth, one = scene()
    other = one.copy()
    other[0, 2, 3:6] = (other[0, 2, 3:6] + 1) % 3
    figure = plot.comparison(
        images,
        truth,
        {"tensorflow": one, "torch": other},
        palette=PALETTE,
        class_names=NAMES,
        ignore_class=VOID,
    )
    assert titles(figure) == ["image", "truth", "tensorflow", "torch", "disagreement"]
    marked = (np.asarray(cell(figure, 0, 4)) == plot.SIGNAL_COLOR).all(axis=-1)
    np.testing.assert_array_equal(marked, one[0] != other[0])
    assert list(filter(None, notes(figure))) == ["3 of 192 pixels", "0 of 192 pixels"]


def test_comparison_of_one_backend_has_no_disagreement():
    images, _, one = scene()
    figure = plot.comparison(images, None, {"torch": one}, palette=PALETTE, class_names=NAMES)
    assert titles(figure) == ["image", "torch"]
    with pytest.raises(ValueError, match="`predictions` is empty"):
        plot.comparison(images, None, {}, palette=PALETTE, class_names=NAMES)


def test_curves_draws_training_and_validation_together():
    history = {"loss": [3.0, 2.0], "val_loss": [3.5, 2.5], "mean_iou": [0.1, 0.2]}
    figure = plot.curves(history)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "mean IoU"]
    loss = {line.get_label(): line for line in figure.axes[0].lines}
    assert loss["training"].get_ydata().tolist() == [3.0, 2.0]
    assert loss["validation"].get_ydata().tolist() == [3.5, 2.5]
    assert loss["training"].get_xdata().tolist() == [1, 2]
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_curves_says_what_never_changes_in_words():
    figure = plot.curves({"loss": [0.9, 0.5], "learning_rate": [0.1, 0.1], "dice": [None, None]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "dice"]
    assert figure.get_supxlabel() == "The same in every epoch: learning rate 0.1"
    (axes,) = plot.curves({"loss": [0.5, 0.5], "val_loss": [0.5, 0.5]}).axes
    assert axes.get_title(loc="left") == "loss" and len(axes.lines) == 2
    assert len(plot.curves({"loss": [0.5, 0.5], "val_loss": [0.5, 0.4], "dice": [1, 2]}).axes) == 2
    # After one epoch nothing has changed yet, and nothing is known to stay.
    assert len(plot.curves({"loss": [0.5], "val_loss": [0.6], "dice": [1]}).axes) == 2


def test_curves_leaves_gaps_for_nan_none_and_infinity():
    figure = plot.curves({"loss": [1.0, math.nan, None, math.inf, 0.5], "dice": [None, None]})
    values = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, True, False])
    assert figure.axes[1].texts[0].get_text() == "no finite value"
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("history", [{}, [1.0, 2.0], None])
def test_curves_says_what_it_wants(history):
    with pytest.raises(ValueError, match=r"model\.fit\(\.\.\.\)\.history"):
        plot.curves(history)


def test_save_writes_a_whole_png_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "curves.png"
    plot.save(plot.curves({"loss": [1.0, 0.5]}), path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.width > 300
    first = path.read_bytes()
    plot.save(plot.curves({"loss": [1.0, 0.5]}), path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]
    with pytest.raises(ValueError, match=r"must end in \.png.*curves\.jpg"):
        plot.save(plot.curves({"loss": [1.0]}), tmp_path / "curves.jpg")


def test_pictures_touch_neither_pyplot_nor_a_framework():
    code = (
        "import sys, numpy as np; from keras_segen import plot; import keras_segen.compare.report;"
        "plot.curves({'loss': [1.0]})._repr_png_();"
        "print([m for m in ('matplotlib.pyplot', 'keras', 'tensorflow', 'torch')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_figure_shows_itself_in_jupyter_once():
    nbformat = pytest.importorskip("nbformat", reason="the notebooks extra is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the notebooks extra is not installed")
    draw = "from keras_segen import plot\nplot.curves({'loss': [1.0, 0.5]})"
    cells = [draw, "%matplotlib inline\n" + draw]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    for each in notebook.cells:
        assert ["image/png" in output.get("data", {}) for output in each.outputs] == [True]


def test_neighbors_shows_real_images_beside_generated_ones():
    images, _, _ = scene(count=6)
    nearest = images.reshape(2, 3, *images.shape[1:])
    figure = plot.neighbors(images[:2], nearest, distances=[[0, 0.5, 1.23456], [1, 2, 3]])
    assert titles(figure) == ["generated", "nearest", "2nd", "3rd"]
    assert notes(figure) == ["", "0", "0.5", "1.23", "", "1", "2", "3"]
    for row in range(2):
        np.testing.assert_allclose(cell(figure, row, 0), images[row] * 255, atol=0.5)
        for j in range(3):
            np.testing.assert_allclose(cell(figure, row, j + 1), nearest[row, j] * 255, atol=0.5)
    many = np.repeat(nearest, 2, axis=1)
    assert titles(plot.neighbors(images[:2], many))[3:] == ["3rd", "4th", "5th", "6th"]
    with pytest.raises(ValueError, match="`nearest` has 2 items, `images` has 3; expected as many"):
        plot.neighbors(images[:3], nearest)


def drawn(figure):
    """Where each image of a grid stands in inches (left, top, right, bottom), and its pixels."""
    return [
        ((left, top, right, bottom), image.get_array())
        for image in figure.axes[0].images
        for left, right, bottom, top in [image.get_extent()]
    ]


def test_images_stand_in_rows_without_overlap():
    pictures = np.random.default_rng(0).random((5, 6, 8, 3))
    figure = plot.images(pictures, columns=2, labels=["a", 1, "_$", "", "e"])
    width, height = figure.get_size_inches()
    found = drawn(figure)
    lefts = [left for (left, *_), _ in found]
    tops = [top for (_, top, *_), _ in found]
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3]
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    for (left, top, right, bottom), _ in found:
        assert 0 < left < right < width and 0 < top < bottom < height
        assert (right - left) / (bottom - top) == pytest.approx(8 / 6)
    assert found[0][0][2] < lefts[1] and found[0][0][3] < tops[2]
    for (_, shown), picture in zip(found, pictures, strict=True):
        np.testing.assert_allclose(shown, picture * 255, atol=0.5)
    texts = [(text.get_text(), text.get_position()[0]) for text in figure.axes[0].texts]
    assert texts == list(zip(["a", "1", "_$", "", "e"], lefts, strict=True))
    assert figure.axes[0].get_ylim() == (height, 0)  # the first row is the upper one
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_images_are_about_as_many_rows_as_columns_and_keep_their_sizes():
    assert len({left for (left, *_), _ in drawn(plot.images(np.zeros((9, 4, 4))))}) == 3
    (_, first), (_, second) = drawn(plot.images([np.zeros((4, 4, 1)), np.zeros((6, 2, 3))]))
    assert first.shape == (4, 4, 3) and second.shape == (6, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((0, 4, 4))}, "must hold 1 to 400 images. Found: 0"),
        ({"images": np.zeros((401, 1, 1))}, r"Found: 401.*images\[:64\]"),
        ({"images": np.full((2, 4, 4), -1.0)}, r"images\[0\]` must lie in \[0, 1\]"),
        ({"images": np.zeros((2, 4, 4)), "labels": ["a"]}, "`labels` has 1 items, `images` has 2"),
        ({"images": np.zeros((2, 4, 4)), "columns": 0}, "`columns` must be 1 or more. Found: 0"),
    ],
)
def test_images_names_every_mistake(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.images(**arguments)


def test_mosaic_keeps_every_pixel():
    pictures = np.random.default_rng(0).integers(0, 255, (5, 6, 8, 3)).astype("uint8")
    picture = plot.mosaic(pictures, columns=3)
    assert picture.shape == (2 * 8 + 2, 3 * 10 + 2, 3) and picture.dtype == np.uint8
    for i, expected in enumerate(pictures):
        top, left = 2 + i // 3 * 8, 2 + i % 3 * 10
        np.testing.assert_array_equal(picture[top : top + 6, left : left + 8], expected)
    assert (picture[:2] == 255).all() and (picture[8:10] == 255).all()
    assert (picture[10:, 22:] == 255).all()  # no sixth one


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animation_shows_its_frames_one_after_the_other(tmp_path, suffix):
    frames = [np.full((10, 20, 3), level, "uint8") for level in (0, 120, 250)]
    png = tmp_path / "last.png"
    Image.fromarray(np.full((10, 20), 180, "uint8")).save(png)
    path = tmp_path / "folder" / f"steps{suffix}"
    plot.animation([*frames, png], path, seconds=0.1, hold=1.5)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as film:
        assert film.n_frames == 4 and film.size == (400, 200) and film.info["loop"] == 0
        shown, durations = [], []
        for number in range(4):
            film.seek(number)
            film.load()
            shown.append(np.asarray(film.convert("RGB")))
            durations.append(film.info["duration"])
    assert durations == [100, 100, 100, 1500]
    for picture, level in zip(shown, (0, 120, 250, 180), strict=True):
        np.testing.assert_array_equal(picture, level)


def test_animation_says_what_it_wants(tmp_path):
    path = tmp_path / "steps.gif"
    with pytest.raises(ValueError, match=r"must end in \.gif or \.webp. Found: .*steps.mp4"):
        plot.animation([np.zeros((4, 4))], tmp_path / "steps.mp4")
    with pytest.raises(ValueError, match="at least one image"):
        plot.animation([], path)
    with pytest.raises(ValueError, match=r"frames\[0\] is \(4, 4\), frames\[1\] is \(4, 2\)"):
        plot.animation([np.zeros((4, 4)), np.zeros((2, 4))], path)
    assert not list(tmp_path.iterdir())


def test_confusion_matrix_shows_shares_of_each_row():
    matrix = np.array([[6, 2, 0], [0, 5, 5], [0, 0, 0]])
    figure = plot.confusion_matrix(matrix, NAMES)
    axes = figure.axes[0]
    alpha = axes.images[0].get_array()[..., 3]
    np.testing.assert_allclose(alpha, [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert [text.get_text() for text in axes.texts] == ["75", "25", "50", "50"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert axes.get_ylabel() == "truth" and axes.get_xlabel() == "predicted"
    assert [text.get_text() for text in axes.get_yticklabels()] == list(NAMES)
    figure.savefig(io.BytesIO())  # names are no formulas
    with pytest.raises(ValueError, match=r"Found: \(3, 3\)"):
        plot.confusion_matrix(matrix, NAMES[:2])


def test_reliability_shows_accuracy_confidence_and_share_of_each_bin():
    bins = np.array([[0, 0, 0], [0, 0, 0], [10, 4, 6.5], [30, 27, 27.5]])
    above, below = plot.reliability(bins).axes
    bars = [(round(bar.get_x(), 3), round(bar.get_height(), 3)) for bar in above.patches]
    assert bars == [(0.5, 0.4), (0.75, 0.9)]
    dots = above.lines[-1]
    np.testing.assert_allclose(dots.get_ydata(), [0.65, 27.5 / 30])
    assert [bar.get_height() for bar in below.patches] == [25, 75]
    with pytest.raises(ValueError, match=r"Found: \(4, 2\)"):
        plot.reliability(bins[:, :2])
    plot.reliability(np.zeros((15, 3))).savefig(io.BytesIO())  # no pixel at all


def test_folds_show_every_fold_and_join_those_of_one():
    axes = plot.folds({"a": [0.5, 0.6, 0.7], "_b$": [0.4, 0.7, 0.7]}).axes[0]
    joined = [line.get_ydata().tolist() for line in axes.lines[:3]]
    assert joined == [[0.5, 0.4], [0.6, 0.7], [0.7, 0.7]]
    dots = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[0.5, 0.6, 0.7], [0.4, 0.7, 0.7]]
    means = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "_"]
    assert 0.6 in [round(float(mean), 6) for mean in means]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "_b$"]
    for wrong in ({}, {"a": [0.5], "b": [0.5, 0.6]}):
        with pytest.raises(ValueError, match="as many numbers"):
            plot.folds(wrong)
