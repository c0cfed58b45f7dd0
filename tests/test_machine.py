"""What the machine does with the memory of a process."""

import os
import subprocess
import sys

import psutil
import pytest

from keras_segen.machine import OtherPrograms

pytestmark = pytest.mark.once

# Page faults while 8 MiB are allocated, filled and freed thirty times: 2,048 pages each time
# if the system fetches them anew.
COUNT_FAULTS = """
import resource
from keras_segen import machine
machine.keep_freed_memory()
b'x' * 2**23
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    b'x' * 2**23
print(machine.freed_memory, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, sep=",")
"""


def count_faults(**environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )
    memory, faults = done.stdout.strip().splitlines()[-1].split(",")
    return memory, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_tensor():
    memory, faults = count_faults()
    assert memory == "kept"
    assert faults < 2048


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_an_allocator_that_the_user_set_is_left_alone():
    memory, faults = count_faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert memory == "as the system does"
    assert faults > 30 * 2048


@pytest.fixture
def stranger():
    """Another program, started by none that still runs, which keeps a processor busy."""
    start = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'while 1: 0'], "
        "stdout=subprocess.DEVNULL).pid)"
    )
    done = subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
    process = psutil.Process(int(done.stdout))
    yield process
    process.kill()


def spend(process, seconds):
    """Waits until a process has had so much of the processor."""
    while sum(process.cpu_times()[:2]) < seconds:
        pass


def test_other_programs_are_seen_and_own_ones_are_not(stranger):
    child = subprocess.Popen([sys.executable, "-c", "while 1: 0"])
    try:
        others = OtherPrograms()
        spend(stranger, 0.3)
        spend(psutil.Process(child.pid), 0.3)
        assert others.busy() > 0.01
        counted = others._seconds()
        assert stranger in counted
        assert not {psutil.Process(), psutil.Process().parent(), psutil.Process(child.pid)} & set(
            counted
        )
    finally:
        child.kill()
        child.wait()


def test_only_what_others_used_since_counts(stranger, monkeypatch):
    gone, new = psutil.Process(), psutil.Process(os.getppid())  # any two
    monkeypatch.setattr(OtherPrograms, "_seconds", lambda self: {stranger: 7.0, gone: 9.0})
    others = OtherPrograms()
    monkeypatch.setattr(OtherPrograms, "_seconds", lambda self: {stranger: 9.0, new: 1.0})
    monkeypatch.setattr("time.monotonic", lambda: others.began + 6)
    assert others.busy() == 0.5
