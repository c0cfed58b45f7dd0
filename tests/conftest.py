import csv
import json
import os

import pytest
from hypothesis import settings
from PIL import Image

from keras_segen.data import Shapes

# The same examples in each run, so that a failure is of the change that is tested.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

# Minutes each: they begin first, so that no process is left with one of them at the end.
LONG = (
    "test_first_hour",
    "test_training",
    "test_notebooks",
    "test_compare",
    "test_cli",
    "test_compare_api",
    "test_crossval",
    "test_instances",
    "test_costs",
    "test_generation_training",
    "test_docs",
    "test_readme",
)


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "once: what it tests needs no backend, or is the same on each, or starts the backends "
        "itself; runs with KERAS_BACKEND=torch alone, which starts sooner and traces no graphs",
    )


def pytest_collection_modifyitems(items):
    if os.environ.get("KERAS_BACKEND") != "torch":
        skip = pytest.mark.skip(reason="once is enough: it runs with KERAS_BACKEND=torch")
        for item in items:
            if item.get_closest_marker("once"):
                item.add_marker(skip)
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else 99)


@pytest.fixture(scope="module", autouse=True)
def replacements(request):
    """Keras made faster, as the commands have it; as it ships where replacing itself is tested."""
    from keras_segen.backend import faster

    if request.node.path.stem.startswith(("test_faster", "test_native", "test_machine")):
        faster.remove()
    else:
        faster.apply()


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """A folder data set on disk: 8 / 4 / 4 scenes of 32 x 32 with a void frame, colours as masks.

    The classes are those of `Shapes`, with the void label first in `classes.csv`, so that label
    ids and classes differ by one.
    """
    root = tmp_path_factory.mktemp("pictures")
    with open(root / "classes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "red", "green", "blue", "ignore"])
        writer.writerow(["void", 0, 0, 0, "yes"])
        scenes = Shapes("train", size=32, length=1)
        for name, colour in zip(scenes.class_names, scenes.palette, strict=True):
            writer.writerow([name, *(max(int(value), 1) for value in colour), ""])
    for split, length in (("train", 8), ("val", 4), ("test", 4)):
        scenes = Shapes(split, size=32, length=length)
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(length):
            image, mask = scenes[index]
            ids = (mask + 1).astype("uint8")
            ids[:2] = 0
            Image.fromarray((image * 255).round().astype("uint8")).save(
                root / split / "images" / f"scene{index}.png"
            )
            Image.fromarray(ids).save(root / split / "masks" / f"scene{index}.png")
    return root


@pytest.fixture
def read_json():
    return lambda path: json.loads(path.read_text(encoding="utf-8"))
