"""Processes that run a framework each and answer requests, one at a time."""

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback

import psutil


def num_threads(threads=None):
    """Returns how many threads a process gets: so many, or one per core for None.

    Raises:
        ValueError: fewer than one is asked for.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, expected 1 or more.")
    return threads or os.cpu_count()


def environment(backend, threads):
    """Returns the environment of a process that runs a backend: dict of str.

    PyTorch has no variable for operations side by side: the process calls
    `keras_segen.backend.limit_threads` as well.

    Args:
        backend: str, the Keras backend of the process.
        threads: int, threads within an operation and for operations side by side.
    """
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # So that the process finds what this one finds: a user's own layers.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }


class Worker:
    """A process that answers requests: each is a line of JSON, and so is its answer.

    It has its own session, so that Ctrl-C reaches this process alone; `end` ends it and its
    children. It also ends when this process ends, since its standard input is then closed.

    Args:
        module: str, the module that the process runs, such as `"keras_segen.bench.costs_child"`;
            it calls `serve`.
        backend, threads: as `environment` takes them.
        log: path of a file; the process' standard error is appended to it.
        **variables: further variables of its environment.
    """

    def __init__(self, module, backend, threads, log, **variables):
        self.log = log
        with open(log, "a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**environment(backend, threads), **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def ask(self, request, on_event=lambda event: None, **values):
        """Sends a request and waits for its answer.

        Args:
            request: str, one of the handlers' names.
            on_event: called with each dict that the handler sends meanwhile (see `tell`).
            **values: the handler's arguments, plain values.

        Returns:
            dict: what the handler returned; or, if it raised, `error` (the exception's class and
            the first line of its message), `wrong` (bool: a ValueError or OSError, which a user
            can fix) and `details` (the traceback). A process that died answers likewise, with the
            last lines of its log, now and to every further request.
        """
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"request": request, "values": values}) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if not line.endswith("\n"):
                break  # it died in the middle of it
            said = json.loads(line)
            if "event" in said:
                on_event(said["event"])
            else:
                return said["answer"]
        log = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return {
            "error": f"The process ended with exit status {self.process.wait()}.",
            "wrong": False,
            "details": "\n".join(log.splitlines()[-12:]),
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

    Output of libraries goes to standard error, as does the traceback of an error.

    Args:
        handlers: dict from a request's name to a callable, from its values to a dict.
    """
    global _answers
    _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # what was said last is in the log, too
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = handlers[asked["request"]](**asked["values"])
        except Exception as error:
            traceback.print_exc()
            wrong = isinstance(error, (ValueError, OSError))
            answer = {
                "error": error_line(error),
                "wrong": wrong,
                "details": traceback.format_exc()[-10_000:],
            }
        _say(answer=answer)


def tell(**event):
    """Sends progress to the process that asks; ends this one if that one is gone."""
    _say(event=event)


def _say(**line):
    try:
        _answers.write(json.dumps(line) + "\n")
        _answers.flush()
    except BrokenPipeError:
        os._exit(1)


def error_line(error):
    """The kind of an error and the first line of what it says.

    Keras puts a line of its own in front of what an operation said; that one is left out.

    >>> error_line(ValueError("no\\n\\nbecause of this and that"))
    'ValueError: no'
    """
    said = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras prints some in bold
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    kind = type(error).__name__
    return f"{kind}: {lines[0][:300]}" if lines else kind
