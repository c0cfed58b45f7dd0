"""Generation with the model of a run: samples, interpolations, nearest real images."""

from keras_segen.runs.training import load_model, open_run
from keras_segen.tasks.registry import check_options


def generate(folder, out="samples.png", *, seed=0, **options):
    """Makes images with the model of a run, and writes them.

    Args:
        folder: the run folder.
        out: path of the PNG to write, a grid.
        seed: int, for the images; other seeds give others.
        **options: `count`, `class_name`, `truncation`, `interpolate`, `traverse`, `nearest`,
            `split`, `extractor`, `separate`, as in the task's `generate`; None for its default.

    Returns:
        str, what was made and where it is.

    Raises:
        FileNotFoundError: the folder holds no run, or no epoch of it is finished.
        ValueError: the run's model makes no images, there is no such class, or options do not fit
            together.
    """
    task, run = open_run(folder)
    options = check_options(task, "generate", options)
    what, where = task.generate(load_model(folder), run["data"], out, seed, **options)
    return f"{what} of {folder} (seed {seed}) in {where}"
