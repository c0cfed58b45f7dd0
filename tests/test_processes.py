"""Processes: what they are limited to, how they answer, how they end."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from keras_segen import processes

pytestmark = pytest.mark.once

CHILD = """
import os, subprocess, sys, time
from keras_segen import processes

def add(a, b):
    print("a library prints")
    processes.tell(step=1)
    processes.tell(step=2)
    return {"sum": a + b}

def fail(kind):
    kinds = {"wrong": ValueError, "broken": KeyError}
    raise kinds[kind]("Exception encountered when calling x\\n why")

def die():
    sys.stderr.write("last words")
    sys.stderr.flush()
    os._exit(3)

def start():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return {"variable": os.environ.get("VARIABLE")}

def wait(path):
    open(path, "w").close()
    while True:
        time.sleep(0.05)
        processes.tell(alive=True)

processes.serve({f.__name__: f for f in (add, fail, die, start, wait)})
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "child_of_test.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)  # a process finds what this one finds
    worker = processes.Worker("child_of_test", "torch", 1, tmp_path / "log.txt", VARIABLE="v")
    yield worker
    worker.end()


def test_a_process_answers_and_tells_how_far_it_is(worker):
    events = []
    for number in range(2):
        assert worker.ask("add", events.append, a=1, b=number) == {"sum": 1 + number}
    assert events == [{"step": 1}, {"step": 2}] * 2
    assert "a library prints" in worker.log.read_text()


def test_an_error_is_an_answer_and_the_next_request_is_answered(worker):
    answer = worker.ask("fail", kind="wrong")
    assert answer["error"] == "ValueError: why" and answer["wrong"]
    assert answer["details"].startswith("Traceback") and "in fail" in answer["details"]
    assert not worker.ask("fail", kind="broken")["wrong"]
    assert worker.log.read_text().count("Traceback") == 2
    assert worker.ask("add", a=1, b=1) == {"sum": 2}


def test_a_process_that_died_answers_with_its_last_words(worker):
    for _ in range(2):
        answer = worker.ask("die")
        assert answer["error"] == "The process ended with exit status 3." and not answer["wrong"]
        assert answer["details"] == "last words"


def test_a_process_ends_with_all_that_it_started(worker):
    assert worker.ask("start") == {"variable": "v"}
    found = [psutil.Process(worker.process.pid), *psutil.Process(worker.process.pid).children()]
    assert len(found) == 2
    worker.end()
    assert not psutil.wait_procs(found, timeout=10)[1]


def test_a_process_ends_when_nobody_listens_any_more(tmp_path):
    (tmp_path / "child_of_test.py").write_text(CHILD)
    code = (
        f"import pathlib, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from keras_segen.processes import Worker\n"
        f"worker = Worker('child_of_test', 'torch', 1, pathlib.Path({str(tmp_path / 'log')!r}))\n"
        "print(worker.process.pid, flush=True)\n"
        f"worker.ask('wait', path={str(tmp_path / 'waits')!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        while not (tmp_path / "waits").exists():
            assert parent.poll() is None
        parent.kill()
    assert not psutil.wait_procs([child], timeout=10)[1]


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_a_process_has_the_threads_that_it_is_given(backend):
    """Where the variables alone do not do it, the seam does; other limits are overwritten."""
    code = (
        "import json, keras\n"
        "from keras_segen import backend\n"
        "backend.limit_threads(3)\n"
        "keras.ops.matmul(keras.ops.ones((64, 64)), keras.ops.ones((64, 64)))\n"
        "print(json.dumps(backend.settings()))"
    )
    environment = processes.environment(backend, 3)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["threads"] == found["inter-op threads"] == 3, done.stderr
    assert environment["KERAS_BACKEND"] == backend and environment["OMP_NUM_THREADS"] == "3"


def test_less_than_one_thread_is_refused():
    assert processes.num_threads(2) == 2 and processes.num_threads() == os.cpu_count()
    for threads in (0, -1):
        with pytest.raises(ValueError, match=f"threads is {threads}, expected 1 or more"):
            processes.num_threads(threads)
