"""Prediction of image files with the model of a run."""

from pathlib import Path

from keras_segen.runs.training import load_model, open_run
from keras_segen.tasks.registry import check_options


def predict(folder, source, out, tell=lambda path: None, **options):
    """Predicts photos with the model of a run.

    Args:
        folder: the run folder.
        source: an image file or a folder of them; hidden files are left out.
        out: the folder to write to.
        tell: called with the path of each file written, except overlays.
        **options: `output`, `full_size`, `tile`, `overlap`, `flips`, `scales`, `fold`,
            `min_score`, as in the task's `predict`; None for its default.

    Returns:
        List of the paths written, except overlays.

    Raises:
        FileNotFoundError: `source` does not exist, or the folder holds no run.
        ValueError: there is no file in it, two files have one name, or one is not an image; an
            option is out of range; or the run's model does not predict photos.
    """
    task, run = open_run(folder)
    options = check_options(task, "predict", options)
    paths, written = photos(source), []
    for path in task.predict(load_model(folder), run["data"], paths, out, **options):
        written.append(path)
        tell(path)
    return written


def photos(source):
    """The image files that a path names: list of `pathlib.Path`, no two with one stem."""
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
