"""Rounds of measurements: batches in memory, the clock, and the order of turns."""

import time

import numpy as np
import psutil

from keras_segen.data.loader import Batches

WARM_UP = 3


def prepare(threads):
    """Makes this process compute as the commands do, without the limits of a notebook."""
    import keras  # here, for processes that measure imports

    from keras_segen import backend
    from keras_segen.backend import faster

    backend.limit_threads(threads)
    faster.apply_by_default()
    keras.config.set_max_epochs(None)  # such limits would cut a round short
    keras.config.set_max_steps_per_epoch(None)


def milliseconds(seconds):
    """Summarizes durations: dict of median, 10th and 90th percentile in ms, and their count."""
    low, median, high = np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90])
    return {
        "median": round(float(median), 3),
        "p10": round(float(low), 3),
        "p90": round(float(high), 3),
        "count": len(seconds),
    }


def steady(seconds):
    """Leaves out the first steps, which trace, compile and warm up."""
    return seconds[WARM_UP:] or seconds


def check_counts(steps, rounds):
    """Checks how many steps a round has, and how many rounds there are."""
    if steps < 3 or rounds < 1:
        raise ValueError(
            f"steps is {steps} and rounds {rounds}, expected at least 3 steps, of which the first "
            "and the last are not timed, and 1 round."
        )


def by_turns(sides, rounds):
    """Yields the sides of each round, every second one in reverse order: A B, B A, …

    A machine that slows down for a while affects all alike.

    >>> list(by_turns("AB", 3))
    [['A', 'B'], ['B', 'A'], ['A', 'B']]
    """
    for number in range(rounds):
        yield list(sides) if number % 2 == 0 else list(reversed(sides))


def now(children=False):
    """Returns the time and the CPU time of this process so far, in seconds.

    With `children`, the CPU time includes its child processes.
    """
    cpu = time.process_time()
    if children:
        for child in psutil.Process().children():
            used = child.cpu_times()
            cpu += used.user + used.system
    return time.perf_counter(), cpu


def per_step(moments):
    """Returns time and CPU time per step, between the second moment and the last.

    The first step may trace, compile or open something; there is no step after the last moment.
    """
    (first, first_cpu), (last, last_cpu) = moments[1], moments[-1]
    return (last - first) / (len(moments) - 2), (last_cpu - first_cpu) / (len(moments) - 2)


class Held(Batches):
    """Batches made in advance, held in memory and yielded again in every epoch.

    Args:
        count: int, number of batches; beyond one epoch's they come from further epochs. None for
            those of one epoch.
        steps: int, batches that an epoch yields, repeating them; None for each once.

    The other arguments are those of `Batches`.

    Attributes:
        stored: list of the batches.
        moments: list of what `now` returned when the batches of the last pass were taken.
    """

    def __init__(self, *args, count=None, steps=None, **options):
        self.steps = None
        super().__init__(*args, **options)
        per_epoch = len(self)
        self.stored = [self.batch(*divmod(k, per_epoch)) for k in range(count or per_epoch)]
        self.steps = steps or len(self.stored)

    def __len__(self):
        return self.steps or super().__len__()

    def read(self, epoch):
        from keras_segen import backend  # here, for processes that measure imports

        self.moments = moments = []
        for step in range(len(self)):
            if step in (1, len(self) - 1):  # where `per_step` begins and ends
                backend.synchronize()
            moments.append(now())
            self.waited.append(0.0)
            yield self.stored[step % len(self.stored)]

    def per_step(self):
        """Returns time and CPU time per step of the last pass."""
        if len(self.moments) != len(self):
            raise RuntimeError(f"{len(self.moments)} of {len(self)} batches were taken.")
        return per_step(self.moments)


class Portion(Batches):
    """The first batches of an epoch, as many as `steps` if there are."""

    def __init__(self, *args, steps, **options):
        self.steps = steps
        super().__init__(*args, **options)

    def __len__(self):
        return min(self.steps, super().__len__())
