"""Importing, choosing a framework, and living with only one of them."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import keras
import pytest

import keras_segen
from keras_segen import frameworks

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
HERE = keras.backend.backend()
OTHER = {"tensorflow": "torch", "torch": "tensorflow"}[HERE]
NAMES = {"tensorflow": "TensorFlow", "torch": "PyTorch"}

# Nothing of these names is found, as if it were not installed. (None in sys.modules would do for
# an import, but scipy takes every entry there for a module.)
HIDE = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def find_others(name, path=None, target=None):
    return None if name.split(".")[0] in {missing} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_others
"""


def python(code, backend=None, missing=()):
    """Runs code in a new process in which some modules cannot be found."""
    block = HIDE.format(missing=tuple(missing))
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    if backend:
        environment["KERAS_BACKEND"] = backend
    return subprocess.run(
        [sys.executable, "-c", block + code], env=environment, capture_output=True, text=True
    )


def test_import_loads_no_framework():
    done = python(
        "import keras_segen, keras_segen.data, keras_segen.data.loader, keras_segen.plot\n"
        "print(sorted({'keras', 'tensorflow', 'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_everything_runs_with_the_other_framework_missing():
    """Which is the only one there is, and so is chosen."""
    done = python(
        "import keras_segen as ks\n"
        "[getattr(ks, name) for name in dir(ks)]\n"
        "import keras_segen.cli, keras_segen.runs.evaluate\n"
        "train = ks.data.Shapes('train', size=16, length=4)\n"
        "model = ks.segmentation.unet((16, 16, 3), 6, filters=(4, 8))\n"
        "ks.initialize(model, 0)\n"
        "model.compile('adam', ks.losses.CrossEntropy(), metrics=[ks.metrics.MeanIoU(6)])\n"
        "model.fit(train.batches(2), verbose=0)\n"
        "import keras; print('trained by', keras.backend.backend())",
        missing=[OTHER],
    )
    assert done.stdout.strip() == f"trained by {HERE}", done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "from keras_segen import backend",
        "from keras_segen.runs import training",
        "import keras_segen as ks; ks.losses",
        "import keras_segen as ks; ks.initialize",
    ],
)
def test_a_missing_framework_is_one_line_that_says_what_to_install(code):
    done = python(code, backend=OTHER, missing=[OTHER])
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert f"{NAMES[OTHER]} is not installed: pip install 'keras-segen[{OTHER}]'" in last


def test_no_framework_at_all_says_what_to_install():
    done = python("from keras_segen import backend", missing=[HERE, OTHER])
    assert "No framework is installed" in done.stderr.strip().splitlines()[-1]


def test_another_backend_is_refused():
    done = python("from keras_segen import backend", backend="jax")
    assert "The backend is 'jax', but keras_segen runs on" in done.stderr.splitlines()[-1]


def test_both_frameworks_are_found_here():
    assert frameworks.installed() == ["tensorflow", "torch"]


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segmentaton'"):
        keras_segen.segmentaton  # noqa: B018


def test_every_class_of_ours_that_a_file_may_hold_is_known_by_name():
    code = """
import keras_segen as ks, keras, inspect
placed = {name for name in keras.saving.get_custom_objects() if name.startswith("keras_segen>")}
import keras_segen.layers
ks.losses, ks.metrics, ks.segmentation, ks.generation, ks.runs
there = keras.saving.get_custom_objects()
print(sorted(placed ^ {name for name in there if name.startswith("keras_segen>")}))
print([name for name, kind in there.items() if not inspect.isclass(kind)])
"""
    done = python(code, backend=HERE)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stdout + done.stderr


@pytest.mark.parametrize("imports", ["import keras, keras_segen", "import keras_segen, keras"])
def test_a_model_of_ours_loads_once_the_package_is_imported(imports, tmp_path):
    from keras_segen import segmentation

    model = segmentation.fcn((32, 32, 3), 2, filters=(2, 2, 2, 2, 2, 4))
    model.save(tmp_path / "fcn.keras")
    code = f"{imports}\nprint(keras.models.load_model({str(tmp_path / 'fcn.keras')!r}).name)"
    done = python(code, backend=HERE)
    assert done.stdout.strip() == "fcn", done.stderr


def test_looking_for_keras_does_not_import_it():
    code = "import keras_segen, importlib.util, sys; importlib.util.find_spec('keras')\n"
    code += "print('keras' in sys.modules)\nimport keras\n"
    code += "print('keras_segen>Bilinear' in keras.saving.get_custom_objects())"
    assert python(code, backend=HERE).stdout.split() == ["False", "True"]


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project["version"] == keras_segen.__version__
    assert f"\nversion: {keras_segen.__version__}\n" in citation
    assert f"\n## {keras_segen.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_is_built_has_all_files_and_runs(tmp_path):
    """The wheel that is built from the sdist, unpacked where there is no checkout."""
    source, unpacked, installed = (tmp_path / name for name in ("source", "unpacked", "installed"))
    shutil.copytree(ROOT / "keras_segen", source / "keras_segen")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def build(kind, folder):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(tmp_path)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (found,) = tmp_path.glob("*.tar.gz" if kind == "sdist" else "*.whl")
        return found

    with tarfile.open(build("sdist", source)) as archive:
        archive.extractall(unpacked, filter="data")
    shutil.unpack_archive(build("wheel", next(unpacked.iterdir())), installed, "zip")
    files = {
        path.relative_to(ROOT)
        for path in (ROOT / "keras_segen").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert not [path for path in files if not (installed / path).is_file()]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "keras_segen", "--version"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"keras-segen {keras_segen.__version__}\n", done.stderr
