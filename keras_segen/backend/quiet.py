"""TensorFlow's start without the lines that it writes on every machine."""

import contextlib
import os
import sys
import tempfile

# Parts of harmless lines: there is no GPU, or the features of the CPU.
NOISE = (
    "All log messages before absl::InitializeLog() is called",
    "cudart_stub.cc",
    "cuda_platform.cc",
    "cpu_feature_guard.cc",
    "To enable the following instructions",
    "oneDNN custom operations are on",
)


@contextlib.contextmanager
def without_noise():
    """Drops lines with `NOISE` from standard error, also those of C++.

    All other lines are written at the end.
    """
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            written.seek(0)
            for line in written:
                if not any(noise.encode() in line for noise in NOISE):
                    os.write(2, line)


def start():
    """Imports TensorFlow and lets it look for devices, without noise.

    TensorFlow's messages about a GPU are kept.
    """
    with without_noise():
        import tensorflow

        tensorflow.config.list_physical_devices()
