"""Operators are registered once, whoever asks first."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from tvm import relax

from greencc.ops.registration import registered

THREADS, NAMES = 4, 50


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns after microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def infer(call: relax.Call, _context: object) -> relax.Type:
    return call.args[0].ty


@pytest.mark.usefixtures("impatient")
def test_threads_may_ask_for_an_operator_at_once() -> None:
    start, failures = threading.Barrier(THREADS), []

    def ask() -> None:
        start.wait()
        for i in range(NAMES):
            try:
                op = registered(f"greencc.tested_{i}", infer)
                assert op.get_attr("FInferType") is not None
                assert op.get_attr("FPurity")
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
