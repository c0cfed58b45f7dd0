"""What the machine does with the memory of a process."""

import os
import subprocess
import sys

import pytest

# Page faults while 8 MiB are allocated, filled and freed thirty times: 2,048 pages each time
# if the system fetches them anew.
COUNT_FAULTS = """
import resource, keras_segen.backend
from keras_segen import machine
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
    assert memory == "as the environment says"
    assert faults > 30 * 2048
