"""Which thread runs a model, and how many threads help it.

TVM keeps one pool of workers per *calling* thread. It fixes the pool's size when that thread first uses it,
by default at half the machine's logical CPUs. greencc's rules make calls from any number of threads safe,
and the number of threads what was asked for:

* A model with one thread needs no pool: it runs in its caller's thread, any number of calls at a time. *
Models with more threads take turns, so that the machine is not oversubscribed. * In the program's main
thread they run right there, on a pool that is made in the right size at the first call. * Elsewhere (or
where the main thread's pool is too small by now) they run in a dedicated thread, one for each
  number of threads: a server's hundred request threads don't make a hundred pools. The detour costs about
  0.1 ms.
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


class _State:
    """What this process has set up; a forked child starts afresh, as it has none of its parent's threads."""

    def __init__(self, forked: bool) -> None:
        self.turn = threading.RLock()
        self.runners: dict[int, ThreadPoolExecutor] = {}
        self.main_limit: float = 1 if forked else float("inf")
        """Most threads that the main thread's pool can have, as far as is known."""
        self.configured = threading.local()


_state = _State(forked=False)


def run_with_threads(threads: int, work: Callable[[], T]) -> T:
    """Run `work` with `threads` threads of TVM's pool and return its result.

    Raises:
        GreenccError: the interpreter is shutting down.
        Exception: whatever `work` raises.
    """
    state = _state
    if threads == 1:
        _configure(state, 1)
        return work()
    if threading.current_thread() is threading.main_thread() and threads <= state.main_limit:
        with state.turn:
            available = _configure(state, threads)
            if available == threads:
                return work()
            state.main_limit = available
    return _run_elsewhere(state, threads, work)


def _run_elsewhere(state: _State, threads: int, work: Callable[[], T]) -> T:
    """Run `work` in the dedicated thread for `threads`."""

    def in_turn() -> T:
        with state.turn:
            _configure(state, threads)
            return work()

    with state.turn:
        runner = state.runners.get(threads)
        if runner is None:
            runner = state.runners[threads] = ThreadPoolExecutor(1, f"greencc-{threads}")
    try:
        future = runner.submit(in_turn)
    except RuntimeError as error:
        raise GreenccError(f"the model can't run: {error}") from error
    return future.result()


def _configure(state: _State, threads: int) -> int:
    """Size the calling thread's pool, and return the number of threads that it then has.

    The list's length is what TVM takes as the pool's size; binding to those CPUs is off.
    """
    if getattr(state.configured, "threads", None) != threads:
        library = load_library()
        configure = library.function("runtime.config_threadpool")
        configure(_SHARE_ALL_CORES, threads, [str(cpu) for cpu in range(threads)])
        state.configured.available = library.function("runtime.NumThreads")()
        state.configured.threads = threads
    return int(state.configured.available)


def _start_afresh() -> None:
    global _state
    _state = _State(forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
