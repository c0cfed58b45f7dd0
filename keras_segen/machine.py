"""The machine and this process: processor, memory, versions. No framework is imported."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import sys
import time

import psutil

PACKAGES = ("keras", "tensorflow", "torch", "numpy", "opencv-python-headless", "pillow")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
freed_memory = "as the system does"  # what happens to it: see `keep_freed_memory`


def keep_freed_memory():
    """Lets this process keep the memory that it frees, for the next step's tensors.

    Every training step allocates and frees the same large tensors. The C library of Linux (glibc)
    returns blocks of that size to the system at once, which must fill each new one with zeros,
    page by page: a good part of a U-Net's step on TensorFlow. If kept, the same blocks serve every
    step; the peak does not change.

    If `why_freed_memory_is_not_kept` returns a reason, nothing changes. It cannot be undone.
    """
    global freed_memory
    if why_freed_memory_is_not_kept() is None:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 64 * 2**20)
        freed_memory = "kept"


def why_freed_memory_is_not_kept():
    """Returns the reason, a str, or None where `keep_freed_memory` can keep it.

    Whoever has set one of glibc's own variables or another allocator keeps that.
    """
    chosen = {"GLIBC_TUNABLES", "LD_PRELOAD"} & os.environ.keys()
    chosen |= {name for name in os.environ if name.startswith("MALLOC_")}
    if chosen:
        return f"the environment sets {', '.join(sorted(chosen))}"
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return "the C library of this system is not glibc"
    return None


def hardware():
    """Returns system, processor, cores and memory in GiB, as plain values."""
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


def installed_size(package):
    """Returns the disk space of a package and all its requirements, in bytes."""
    found, wanted, size = set(), [package], 0
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system
        for file in distribution.files or ():
            with contextlib.suppress(OSError):
                size += file.locate().stat().st_size
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                wanted.append(re.match(r"[\w.-]+", requirement)[0])
    return size


def peak_memory():
    """Returns the largest resident memory that this process has had so far, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class OtherPrograms:
    """The processors that other programs keep busy during a measurement.

    It counts the processes that this one may see, except itself, its children and its parents.
    Processes that start and end in between are missed.

    Example:

    >>> others = OtherPrograms()
    >>> others.busy() >= 0
    True
    """

    def __init__(self):
        self.began, self.before = time.monotonic(), self._seconds()

    def busy(self):
        """Returns how many processors they kept busy, on average since this object was made."""
        used = sum(
            seconds - self.before.get(process, 0.0) for process, seconds in self._seconds().items()
        )
        return used / max(time.monotonic() - self.began, 1e-3)

    @staticmethod
    def _seconds():
        """Processor time by process."""
        this = psutil.Process()
        own = {this, *this.children(recursive=True), *this.parents()}
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process not in own:
                    times = process.cpu_times()
                    found[process] = times.user + times.system
        return found
