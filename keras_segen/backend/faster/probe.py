"""How a replacement looks at what Keras does, and says that there is nothing to replace."""

import sys


class NotNeeded(Exception):
    """Keras takes the fast way itself."""


def python_calls(function):
    """Counts the calls of Python functions that a call makes, itself included."""
    found = []

    def watch(frame, event, argument):
        if event == "call":
            found.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found
