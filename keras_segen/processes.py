"""Processes that run a framework each and answer requests, one at a time."""

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback

import psutil


class Worker:
    """A process that answers requests: each is a line of JSON, and so is its answer.

    It has its own session, so that Ctrl-C reaches this process alone; `end` ends it and all that
    it started. It ends by itself when this process is gone, since nobody asks any more.

    Args:
        module: str, what the process runs, such as `"keras_segen.bench.costs_child"`: it calls
            `serve`.
        backend: str, the Keras backend of the process.
        threads: int, threads within an operation and for operations side by side.
        log: path of a file for what the process writes to standard error.
        **environment: further variables of its environment.
    """

    def __init__(self, module, backend, threads, log, **environment):
        # Keras would cut trainings short.
        without = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH")
        inherited = {name: text for name, text in os.environ.items() if name not in without}
        self.log = log
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={
                    **inherited,
                    "KERAS_BACKEND": backend,
                    "OMP_NUM_THREADS": str(threads),
                    "TF_NUM_INTRAOP_THREADS": str(threads),
                    "TF_NUM_INTEROP_THREADS": str(threads),
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                    **environment,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def ask(self, request, **values):
        """Sends a request and waits for its answer.

        Returns:
            dict: what the handler returned; or, if it raised, `error` (its kind and the first
            line of what it said), `wrong` (bool: a ValueError or OSError, which a user can mend)
            and `details` (the traceback). A process that died answers so, too, now and to every
            further request.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"request": request, "values": values}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        status = self.process.wait()
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return {
            "error": f"The process ended with exit status {status}.",
            "wrong": False,
            "details": "\n".join(said.splitlines()[-12:]),
        }

    def end(self):
        """Ends the process and all that it started, if they still run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            for one in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


def serve(handlers):
    """Answers the requests of a `Worker`, until there are no more.

    What libraries print goes to standard error.

    Args:
        handlers: dict from a request's name to a callable, from its values to a dict.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = handlers[asked["request"]](**asked["values"])
        except Exception as error:
            answer = {
                "error": describe(error),
                "wrong": isinstance(error, (ValueError, OSError)),
                "details": traceback.format_exc()[:10_000],
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def describe(error):
    """The kind of an error and the first line of what it says.

    Keras puts a line of its own in front of what an operation said; that one is left out.

    >>> describe(ValueError("no\\n\\nbecause of this and that"))
    'ValueError: no'
    """
    said = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras prints some in bold
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    kind = type(error).__name__
    return f"{kind}: {lines[0][:300]}" if lines else kind
