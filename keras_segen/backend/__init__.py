"""The seam: everything that keras_segen needs of a framework; only this room imports one.

`tensorflow.py` and `torch.py` define the same functions, side by side; this file imports those of
the framework that Keras runs on.
"""

import sys

from keras_segen import frameworks
from keras_segen.backend import quiet

frameworks.require()
if frameworks.chosen() == "tensorflow" and "keras" not in sys.modules:
    quiet.start()

import keras  # noqa: E402  (a missing framework is reported above, in one line)

frameworks.require(keras.backend.backend())

if keras.backend.backend() == "tensorflow":
    from keras_segen.backend.tensorflow import (
        bincount,
        check,
        double_precision,
        infer,
        input_gradient,
        limit_threads,
        make_loader,
        minimize,
        operations,
        peak_device_memory,
        save_model,
        settings,
        share_of_replica,
        slope_at,
        synchronize,
        uniform,
        weighted_rows,
        without_the_other_framework,
    )
else:
    from keras_segen.backend.torch import (
        bincount,
        check,
        double_precision,
        infer,
        input_gradient,
        limit_threads,
        make_loader,
        minimize,
        operations,
        peak_device_memory,
        save_model,
        settings,
        share_of_replica,
        slope_at,
        synchronize,
        uniform,
        weighted_rows,
        without_the_other_framework,
    )
