"""Comparisons from Python: a function starts one, and its results are tables.

`run` starts the same processes as `keras-segen compare`; `load` opens results of either. The tables
come from the functions that fill the page and the terminal (`report.py`). This process needs no
framework, unless it builds a model.
"""

import contextlib
import functools
import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np

from keras_segen import frameworks
from keras_segen.compare import report as reports
from keras_segen.compare.run import run as run_task
from keras_segen.data.array_files import check_pair, write_arrays
from keras_segen.files import write_atomically
from keras_segen.report.html import iframe
from keras_segen.tasks.registry import kind_of
from keras_segen.tasks.task import is_file


def run(
    model,
    data="shapes",
    out="runs/compare",
    backends=("tensorflow", "torch"),
    threads=None,
    parity_steps=0,
    seconds=60.0,
    num_seeds=1,
    **fields,
):
    """Trains a model on each backend, from the same weights and batches, and reports.

    Each backend runs in its own process, one after the other; progress is shown. The folder `out`
    gets the same files as with `keras-segen compare`, such as `report.html` and `report.json`.

    Args:
        model: one of:

            - str, a model's name, such as `"unet"` or `"dcgan"`, initialized from `seed`;
            - a function without arguments that builds a `keras.Model` from images
              `(batch, height, width, channels)`, float32 in [0, 1], to logits
              `(batch, height, width, classes)`. It is called once, here; the model is initialized
              from `seed` (`keras_segen.initialize`), and the processes load it;
            - the path of a `.keras` file with such a model: training starts from its weights.

            Your own layers must be registered (`keras.saving.register_keras_serializable`) in a
            module that is imported here, not in the notebook itself.
        data: str, a data set as `keras_segen.data.load` takes it; or a pair `(train, val)` of
            `keras_segen.data.Dataset`, such as `keras_segen.data.arrays` makes, or one of them, of
            which a tenth is held out. Their items are written into the folder, as float32 and
            uint8, for the processes; for a large data set, use a name.
        out: path of the folder; an earlier comparison there is replaced.
        backends: names of the backends, in the order in which they run.
        threads: int, threads for each process; None for one per core.
        parity_steps: int, training steps that are also compared layer by layer; 0 for none.
        seconds: float, how long the backends may take turns to find which is faster; 0 skips
            that.
        num_seeds: int, trainings on each backend with as many seeds, to tell the frameworks'
            difference from that of the seeds.
        **fields: fields of the model's task (`keras_segen.tasks`), such as
            `epochs=2, filters=(8, 16), image_size=(64, 64)`.

    Returns:
        A `Report`. Its `status` says whether the backends agree, or whether one failed.

    Raises:
        ValueError: there is no such model or field, a value is wrong, or the function's network
            does not fit these images and classes.
        ModuleNotFoundError: a backend's framework is not installed.
        FileExistsError: the folder holds something other than a comparison.
        FileNotFoundError: there is no such `.keras` file.
        KeyboardInterrupt: it was interrupted. All processes have ended, and `load` opens the
            results until then.
    """
    own = {"backends": tuple(backends), "threads": threads, "parity_steps": parity_steps}
    own |= {"seconds": seconds, "num_seeds": num_seeds}
    usual = inspect.signature(run).parameters
    own = {name: value for name, value in own.items() if value != usual[name].default}
    call = _call(model, data=data, out=str(out), **own, **fields)
    out = Path(out).expanduser()
    own = out / "own"
    splits = built = None
    if not isinstance(data, str):
        splits = _pair(data, fields)
        data = f"arrays:{own / 'data'}"
        fields = {**fields, "channels": splits[0].image_shape[2]}
    if not isinstance(model, str | Path):
        built = _build(model)
        model = own / f"{re.sub(r'[^A-Za-z0-9_]', '', _name(model)) or 'model'}.keras"
    model = str(model)
    task = kind_of(model).from_dict({"model": model, "data": data, **fields})
    modules = []
    if built is not None:
        modules = _fill(built, task, splits)
    elif is_file(model) and "keras" in sys.modules:
        from keras_segen.segmentation.keras_file import registered_modules

        modules = registered_modules()

    def write_own():
        if splits:
            write_arrays(own / "data", *splits)
        if built is not None:
            from keras_segen import backend

            with write_atomically(model) as temporary:
                backend.save_model(built, temporary)

    content = run_task(
        task,
        out,
        tuple(backends),
        threads,
        parity_steps=parity_steps,
        seconds=seconds,
        num_seeds=num_seeds,
        command=call,
        modules=modules,
        write_own=write_own if splits or built is not None else None,
    )
    if content["status"] == "interrupted":
        raise KeyboardInterrupt(
            f"What was measured is kept: keras_segen.compare.load({str(out)!r}) opens it."
        )
    return Report(content, out)


def _build(builder):
    """Calls a user's function; returns the model that it builds."""
    frameworks.require()
    import keras

    if isinstance(builder, keras.Model) or not callable(builder):
        raise ValueError(
            f"model is a {type(builder).__name__}; expected a model's name, a function that builds "
            "a keras.Model, or the path of a .keras file (model.save('mine.keras'))."
        )
    model = builder()
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"{_name(builder)}() returned a {type(model).__name__}; expected a keras.Model."
        )
    return model


def _fill(model, task, splits):
    """Checks a built model and initializes it; returns the modules of its layers."""
    from keras_segen import determinism
    from keras_segen.segmentation.keras_file import own_modules

    modules = own_modules(model)
    task.check_network(
        model, splits[0] if splits else task.load_data("train"), Path(task.model).stem
    )
    determinism.initialize(model, task.seed)
    return modules


def _pair(data, fields):
    """A user's data set or sets as the pair of training and validation split (or None)."""
    splits = data if isinstance(data, tuple | list) else (data, None)
    if len(splits) != 2:
        raise ValueError(f"data holds {len(splits)} data sets; expected a pair (train, val).")
    check_pair(*splits)
    for field in ("image_size", "channels"):
        if field in fields:
            raise ValueError(
                f"{field} is {fields[field]!r}, but the images of data sets in memory are taken "
                "as they are: leave it out."
            )
    return splits


def _name(builder):
    return getattr(builder, "__name__", type(builder).__name__)


def _call(model, **arguments):
    """The call of `run`, as text for the report."""
    shown = repr(str(model)) if isinstance(model, str | Path) else _name(model)
    shown = [shown, *(f"{name}={value!r}" for name, value in arguments.items())]
    return f"keras_segen.compare.run({', '.join(shown)})"


def load(path):
    """Opens an earlier comparison, by `run` or by `keras-segen compare`.

    Args:
        path: its folder, or the `report.json` in it.

    Returns:
        A `Report`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged or not a report.
    """
    path = Path(path)
    file = path / "report.json" if path.is_dir() else path
    if not file.exists():
        found = "has no report.json" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{path} {found}; expected the folder of a comparison that has ended, as "
            "keras_segen.compare.run or keras-segen compare writes it."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged or no JSON ({error}): run the comparison again."
        ) from None
    if not isinstance(content, dict) or not {"backends", "status"} <= content.keys():
        raise ValueError(f"{file} is no comparison; expected what keras-segen compare writes.")
    return Report(content, file.parent)


class Report:
    """The results of a comparison. A notebook displays the page `report.html`.

    Tables are `pandas.DataFrame`s, made on access.

    Args:
        content: dict as in `report.json`.
        folder: the folder of the comparison.

    Attributes:
        content: the dict, with all results.
        folder: `pathlib.Path`.
        path: `pathlib.Path` of `report.html`.
        status: str, `"passed"`, `"parted"`, `"failed"` or `"interrupted"`.
    """

    def __init__(self, content, folder):
        self.content = reports.complete(content)
        self.folder = Path(folder)
        self.path = self.folder / "report.html"
        self.status = self.content["status"]

    @property
    def verdict(self):
        """The comparison and its result in one sentence: str."""
        return reports.verdict(self.content)

    @property
    def figures(self):
        """The measured figures, a row for each.

        Columns: `unit`; each backend's value, for times the median; `torch / tensorflow`, their
        ratio; and for distributions `tensorflow p10`, `tensorflow p90` and so on: the 10th and the
        90th percentile.
        """
        names = list(self.content["backends"])
        rows = {}
        for row in reports.figures(self.content):
            values = {"unit": row["unit"]} | dict(zip(names, row["values"], strict=True))
            values |= {
                f"{name} / {names[0]}": factor
                for name, factor in zip(names[1:], row["factors"], strict=True)
            }
            for name, (low, high) in zip(names, row["percentiles"], strict=True):
                values |= {f"{name} p10": low, f"{name} p90": high}
            rows[row["label"]] = values
        table = _pandas().DataFrame.from_dict(rows, orient="index")
        return table.rename_axis("figure").dropna(axis="columns", how="all")

    @property
    def steps(self):
        """The losses of every training step: a row per step, from 1.

        Columns: `tensorflow loss` and so on; `difference`, relative, of the two; `tolerance`, for
        the steps that have one.
        """
        columns = self._of_each("losses")
        steps = max(map(len, columns.values()), default=0)
        tolerance = reports.dig(self.content, "loss_tolerance", "relative") or []
        columns["difference"] = self.content["loss_difference"]
        columns["tolerance"] = tolerance[:steps]
        return _columns(columns, "step")

    @property
    def history(self):
        """The histories of `fit`: a row per epoch, from 1.

        Columns: `tensorflow val_loss`, `torch val_loss` and so on.
        """
        return _columns(self._of_each("history"), "epoch")

    def _of_each(self, key):
        """A dict of each backend as columns: `tensorflow loss` and so on."""
        return {
            f"{name} {quantity}": values
            for name, backend in self.content["backends"].items()
            for quantity, values in (backend.get(key) or {}).items()
        }

    @property
    def checks(self):
        """The checks against tolerances, a row for each.

        Columns: `measured`, `tolerance`, `unit`, `passed` (None if it was not measured),
        `note`.
        """
        columns = ["name", "measured", "tolerance", "unit", "passed", "note"]
        table = _pandas().DataFrame(self.content["checks"], columns=columns)
        return table.set_index("name").rename_axis("check")

    @property
    def predictions(self):
        """The predicted classes of the validation images, after each backend's own training.

        Returns:
            Dict of backend -> uint8 `(images, height, width)`, in the order of the split; a
            generative model has none, nor has a backend that failed.
        """
        found = {}
        for name in self.content["backends"]:
            with (
                contextlib.suppress(FileNotFoundError),
                np.load(self.folder / name / "arrays.npz", allow_pickle=False) as arrays,
            ):
                if "ids" in arrays:
                    found[name] = arrays["ids"]
        return found

    def __repr__(self):
        sign, word, _ = reports.STATUS[self.status]
        return f"{sign} {word}: {self.verdict} The report: {self.path}"

    @functools.cached_property
    def page(self):
        """The page as HTML: str."""
        return reports.page(self.content, self.folder)

    def _repr_html_(self):
        return iframe(self.page, self.verdict)


def _columns(columns, index):
    """A table of columns that may differ in length, its rows counted from 1."""
    pandas = _pandas()
    series = {
        name: pandas.Series(values, range(1, len(values) + 1), "float64")
        for name, values in columns.items()
        if values
    }
    return pandas.DataFrame(series).rename_axis(index)


def _pandas():
    try:
        import pandas
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The tables of a comparison need pandas: pip install 'keras-segen[notebooks]'."
        ) from None
    return pandas
