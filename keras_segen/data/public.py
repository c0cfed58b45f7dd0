"""Public data sets that tensorflow-datasets fetches: Oxford-IIIT Pet."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import numpy as np

from keras_segen.data import cache as caches
from keras_segen.data.dataset import carve, check_split
from keras_segen.data.pairs import Pairs, resolved, stamp

KIND = "oxford_iiit_pet"
DISK = 2_500_000_000  # bytes: archives, files and prepared records at the same time


class Pets(Pairs):
    """Oxford-IIIT Pet: photos of cats and dogs, with the pet, the background and its outline.

    3,312 photos for training, 368 for validation (a tenth of the 3,680 training photos, always
    the same) and 3,669 for test, of about 500 x 400. The values 1, 2 and 3 of the published
    trimaps are the classes foreground, background and outline. Photos are decoded as what they
    are, whatever their suffix says.

    tensorflow-datasets fetches and prepares the photos once, see `keras_segen.data.download`;
    only that needs TensorFlow. Reading needs tensorflow-datasets and no network.

    From: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", 2012. License: CC BY-SA 4.0.

    Args:
        path: the folder in which tensorflow-datasets keeps its data, prepared there with
            `file_format="array_record"`; None is where `keras_segen.data.download` puts it.
        split, size, channels, cache: as in `keras_segen.data.Folder`.

    Raises:
        FileNotFoundError: if the photos are not there; it says how to get them.
        ModuleNotFoundError: if tensorflow-datasets is not installed.
        ValueError: if they are prepared in a format that cannot be read item by item, or as in
            `keras_segen.data.Folder`.
    """

    TURNED = False  # the trimaps were drawn on photos as they are stored

    def __init__(self, path=None, split="train", size=None, channels=3, cache=None):
        check_split(split)
        self._prepared = prepared_in(default_folder() if path is None else path)
        if self._prepared is None:
            raise FileNotFoundError(
                f"pets is not in {default_folder() if path is None else path} yet: 811 MB from "
                "thor.robots.ox.ac.uk. Fetch it once with `keras-segen datasets --download pets` "
                "or keras_segen.data.download('pets')"
            )
        self._source = "test" if split == "test" else "train"
        self._opened = None
        length = len(self._records())
        name = "pets" if path is None else f"pets:{path}"
        indices = np.arange(length) if split == "test" else carve(length, split)
        classes = ("foreground", "background", "outline"), None, (1, 2, 3), ()
        super().__init__(name, split, indices, *classes, size, channels, cache)

    def __getstate__(self):
        return self.__dict__ | {"_opened": None}  # each worker process opens the records itself

    def _sizes(self):
        return {}  # many, as every photo has its own

    def item_name(self, index):
        return Path(self._record(self._index(index))["file_name"].decode()).stem

    def _records(self):
        if self._opened is None:
            tfds = import_tfds()
            builder = tfds.builder_from_directory(self._prepared)
            skip = tfds.decode.SkipDecoding()
            try:
                self._opened = builder.as_data_source(
                    self._source, decoders={"image": skip, "segmentation_mask": skip}
                )
            except NotImplementedError as error:
                raise ValueError(
                    f"{self._prepared} is in a format that cannot be read item by item; prepare "
                    "it with tensorflow_datasets and file_format='array_record', or leave the "
                    "path away and fetch it with `keras-segen datasets --download pets`"
                ) from error
        return self._opened

    def _record(self, index):
        return self._records()[int(self.pairs[index])]

    def _file(self, index, kind):
        record = self._record(index)
        name = record["file_name"].decode()
        part = ("image", "segmentation_mask")[kind]
        return f"{self._prepared}, {part} of {name}", record[part]

    def _stamps(self, index):
        path = self._prepared / "dataset_info.json"
        return [(*stamp(path), self._source, int(self.pairs[index]))]

    @classmethod
    def download(cls, say=print):
        """Fetches and prepares the photos, once; see `keras_segen.data.download`."""
        folder = default_folder()
        if prepared_in(folder) is not None:
            say(f"pets is there: {folder}")
            return
        tfds = import_tfds()
        if importlib.util.find_spec("tensorflow") is None:
            raise ModuleNotFoundError(
                "Preparing pets needs TensorFlow, once (reading does not): pip install "
                "'keras-segen[tensorflow]', or copy the folder oxford_iiit_pet from a machine "
                f"that has it into {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < DISK:
            raise OSError(
                f"{folder} has {free / 1e9:.1f} GB free; preparing pets takes {DISK / 1e9:.1f} GB "
                "for a while. Set KERAS_SEGEN_DATA to a folder on another disk"
            )
        say(f"pets: 811 MB from thor.robots.ox.ac.uk, to {folder}")
        builder = tfds.builder(KIND, data_dir=folder, file_format="array_record")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".downloads-") as temporary:
            try:
                builder.download_and_prepare(download_dir=temporary)
            except OSError as error:
                raise ConnectionError(
                    f"pets could not be downloaded ({error}). Try again later, or name the "
                    "folder of tensorflow-datasets that has it: pets:PATH"
                ) from error


def default_folder():
    """Returns the folder that `download` fills."""
    return caches.data_folder() / "tensorflow_datasets"


def prepared_in(folder):
    """Returns the folder of the newest prepared version, or None."""
    folder = resolved(folder) / KIND
    found = sorted(path.parent for path in folder.glob("*/dataset_info.json"))
    return found[-1] if found else None


def import_tfds():
    """Returns the module tensorflow_datasets, which imports no TensorFlow by itself."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ModuleNotFoundError(
            "pets is read with tensorflow-datasets, which is not installed: pip install "
            "'keras-segen[datasets]'"
        )
    import tensorflow_datasets

    return tensorflow_datasets
