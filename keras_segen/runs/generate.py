"""Generation with the model of a run: samples, interpolations, nearest real images."""

from keras_segen.runs.training import load_model, open_run
from keras_segen.tasks.registry import check_options


def generate(
    folder,
    out="samples.png",
    *,
    count=None,
    seed=0,
    class_name=None,
    interpolate=None,
    traverse=None,
    nearest=None,
    split=None,
    extractor=None,
    separate=None,
):
    """Makes images with the model of a run, and writes them.

    Args:
        folder: the run folder.
        out: path of the PNG to write, a grid.
        seed: int, for the images; other seeds give others.
        count, class_name, interpolate, traverse, nearest, split, extractor, separate: as in
            the task's `generate`; None for its default.

    Returns:
        str, what was made and where it is.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
        ValueError: the run's model makes no images, there is no such class, or options do not fit
            together.
    """
    options = {
        "count": count,
        "class_name": class_name,
        "interpolate": interpolate,
        "traverse": traverse,
        "nearest": nearest,
        "split": split,
        "extractor": extractor,
        "separate": separate,
    }
    options = {name: value for name, value in options.items() if value is not None}
    task, run = open_run(folder)
    check_options(task, "generate", options)
    what, where = task.generate(load_model(folder), run["data"], out, seed, **options)
    return f"{what} of {folder} (seed {seed}) in {where}"
