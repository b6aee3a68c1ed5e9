"""Which thread runs a model, and how many threads help it.

TVM keeps one pool of workers per *calling* thread and fixes its size when that thread first uses it, at half
the machine's logical CPUs. So a model that wants N > 1 threads does not run in its caller's thread: one
dedicated thread per N, shared by all models of the process, owns a pool of exactly N. Its callers queue.
That makes calls from any number of threads safe, keeps the machine from being oversubscribed, and leaves the
caller's own thread as it was. A model with one thread needs no pool and runs where it is called, so that a
server with one request per thread runs N of them at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from greencc.errors import GreenccError
from greencc.runtime.library import load_library

T = TypeVar("T")

_SHARE_ALL_CORES = -3
"""TVM's affinity mode kSpecifyThreadShareAllCore, the only way to ask for a pool of a given size."""

_lock = threading.Lock()
_runners: dict[int, ThreadPoolExecutor] = {}
_current = threading.local()


def run_with_threads(threads: int, work: Callable[[], T]) -> T:
    """Run `work` with `threads` threads of TVM's pool and return its result.

    Raises:
        GreenccError: the interpreter is shutting down.
        Exception: whatever `work` raises.
    """
    if threads == 1:
        if getattr(_current, "threads", None) != 1:
            _configure(1)
        return work()
    with _lock:
        runner = _runners.get(threads)
        if runner is None:
            runner = ThreadPoolExecutor(1, f"greencc-{threads}", _configure, (threads,))
            _runners[threads] = runner
    try:
        future = runner.submit(work)
    except RuntimeError as error:
        raise GreenccError(f"the model can't run: {error}") from error
    return future.result()


def _configure(threads: int) -> None:
    """Size the calling thread's pool. The list's length is what TVM takes as its limit; binding is off."""
    configure = load_library().function("runtime.config_threadpool")
    configure(_SHARE_ALL_CORES, threads, [str(cpu) for cpu in range(threads)])
    _current.threads = threads


def _forget_runners() -> None:
    """A forked child has none of its parent's threads: start new ones when they are needed."""
    global _lock
    _lock = threading.Lock()
    _runners.clear()
    _current.threads = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_runners)
