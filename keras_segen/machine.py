"""The machine and this process: processor, memory, versions. No framework is imported."""

import importlib.metadata
import os
import platform
import sys

import psutil

PACKAGES = ("keras", "tensorflow", "torch", "numpy", "opencv-python-headless", "pillow")


def describe():
    """Returns what the machine is, as plain values: system, processor, cores, memory in GiB."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor():
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions():
    """Returns the versions of Python, keras_segen and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("keras-segen", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def peak_memory():
    """Returns the largest resident memory that this process has had so far, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
