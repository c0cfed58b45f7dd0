"""What is trained: one kind of task, one file; `registry.py` lists them. Needs no framework."""

from keras_segen.tasks.gan import GanTask
from keras_segen.tasks.instances import InstanceTask
from keras_segen.tasks.registry import kind_of, read, read_json, register
from keras_segen.tasks.segmentation import SegmentationTask
from keras_segen.tasks.style import StyleTask
from keras_segen.tasks.task import Task
from keras_segen.tasks.vae import VaeTask

__all__ = [
    "GanTask",
    "InstanceTask",
    "SegmentationTask",
    "StyleTask",
    "Task",
    "VaeTask",
    "kind_of",
    "read",
    "read_json",
    "register",
]
