from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from greencc.tuning.child import Child, ChildFailed

ODD = "tests.greencc.tuning.odd_child"


@pytest.fixture(scope="module")
def steady():
    child = Child(ODD, {}, {})
    yield child
    child.close()


def test_messages_come_back_whole(steady: Child) -> None:
    blobs = (b"", os.urandom(3 << 20), b"x")
    answer = steady.ask({"do": "echo", "n": [1, "ü"]}, blobs, 10)
    assert answer.header == {"do": "echo", "n": [1, "ü"]}
    assert answer.blobs == blobs


def test_what_it_prints_is_no_answer(steady: Child) -> None:
    assert steady.ask({"do": "print"}, (), 10).header == {}


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ({"do": "signal", "signal": "SIGSEGV"}, "crashed with SIGSEGV"),
        ({"do": "signal", "signal": "SIGKILL"}, r"crashed with SIGKILL \(out of memory\?\)"),
        ({"do": "garbage"}, "answered with garbage"),
        ({"do": "half"}, "ended with status 0"),
        ({"do": "unheard of"}, "no result within 0.5 s"),
        ({"no": "deed"}, "ended with status 1"),
        ({"do": "sleep"}, "no result within 0.5 s"),
    ],
)
def test_how_it_ends_is_told(question: dict[str, str], reason: str) -> None:
    child = Child(ODD, {}, {})
    try:
        with pytest.raises(ChildFailed, match=reason):
            child.ask(question, (), 0.5 if "0.5" in reason else 10)
        assert not psutil.pid_exists(child.pid)
        with pytest.raises(ChildFailed):
            child.ask({"do": "echo"}, (), 10)
    finally:
        child.close()


def test_one_that_does_not_start_is_told() -> None:
    with pytest.raises(ChildFailed, match="ended with status 3"):
        Child(ODD, {"start": "crash"}, {})
    with pytest.raises(ChildFailed, match="ended with status 1"):
        Child("tests.greencc.tuning.no_such_module", {}, {})


def test_closing_from_another_thread_ends_what_is_under_way() -> None:
    child = Child(ODD, {}, {})
    threading.Timer(0.3, child.close).start()
    started = time.monotonic()
    with pytest.raises(ChildFailed, match=r"SIGKILL|ended"):
        child.ask({"do": "sleep"}, (), 30)
    assert time.monotonic() - started < 20
    assert not psutil.pid_exists(child.pid)


def test_it_ends_with_the_process_that_started_it() -> None:
    code = f"from greencc.tuning.child import Child; c = Child({ODD!r}, {{}}, {{}}); print(c.pid, flush=True); input()"
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    child.wait(10)


def test_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        Child(ODD, {}, {}).close()
    assert len(os.listdir("/proc/self/fd")) == before
