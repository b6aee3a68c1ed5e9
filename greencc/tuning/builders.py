"""Builds candidates: a few processes that have the compiler loaded, and make programs of plans.

The processes sleep between builds, and `build_all` returns when all have ended: builds never disturb measurements that
follow on the same machine.
"""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from greencc.errors import GreenccError
from greencc.tuning.child import Child, ChildFailed
from greencc.tuning.program import Program

if TYPE_CHECKING:
    from greencc.targets.base import Target
    from greencc.targets.tuning.alone import Kernel
    from greencc.targets.tuning.space import Plan

BUILD_SECONDS = 30.0
"""A build that takes longer is left."""
BUILDER = "greencc.tuning.building"
"""What a process that builds runs: see Child."""
_STARTS = 2
# The compiler keeps something of every module: now and then a new process begins.
_MOST_BUILDS = 400


@dataclass(frozen=True)
class Task:
    """A kernel to be built by plans, as it is sent to processes that build.

    Attributes:
        func: the PrimFunc, as TVM's JSON.
        constants: indices of parameters that are compile-time constants.
        results: how many of its last parameters are results.
        target: what to build for.
        sizes: what its symbols are when it is timed; one mapping for each size, at least one.
        copies: how often a program launches it; 0 for what suits its weights.
    """

    func: str
    constants: tuple[int, ...]
    results: int
    target: Target
    sizes: tuple[Mapping[str, int], ...] = ({},)
    copies: int = 0

    @classmethod
    def of(cls, kernel: Kernel, target: Target, sizes: Sequence[Mapping[str, int]] = ({},), copies: int = 0) -> Task:
        """The task of a kernel; `kernel.problem()` must be None."""
        from tvm import ir

        text = str(ir.save_json(kernel.func))
        return cls(text, tuple(sorted(kernel.constants)), kernel.results, target, tuple(sizes), copies)

    @cached_property
    def data(self) -> bytes:
        """It as bytes, for processes that this one starts: a target is whatever Python object the caller has."""
        fields = (self.func, self.constants, self.results, self.target, [dict(s) for s in self.sizes], self.copies)
        return pickle.dumps(fields)


@dataclass(frozen=True)
class Build:
    """A program to be built.

    Attributes:
        task: what it computes.
        rule: name of the rule that schedules it; None for the one that does without tuning.
        plan: the plan that the rule follows; None for its default.
    """

    task: Task
    rule: str | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class BuildFailed:
    """Why there is no program: a phrase."""

    reason: str


Built: TypeAlias = Program | BuildFailed
"""What becomes of a build."""


class Builders:
    """Processes that build.

    Args:
        processes: how many.
        timeout: seconds that a build may take.
    """

    def __init__(self, processes: int, timeout: float = BUILD_SECONDS) -> None:
        self._builders = [_Builder(timeout) for _ in range(processes)]

    def build_all(self, builds: Sequence[Build]) -> list[Built]:
        """What becomes of the builds, in their order. When it returns, also by an exception, nothing is being built.

        Raises:
            GreenccError: no process that builds can be started.
        """
        found: dict[int, Built] = dict(self._build(builds))
        return [found[i] for i in range(len(builds))]

    def build_each(self, builds: Sequence[Build]) -> Iterator[tuple[Build, Built]]:
        """What becomes of the builds, as they end: for devices elsewhere, which don't mind. Raises as `build_all`."""
        for index, built in self._build(builds):
            yield builds[index], built

    def close(self) -> None:
        """End the processes."""
        for builder in self._builders:
            builder.close()

    def _build(self, builds: Sequence[Build]) -> Iterator[tuple[int, Built]]:
        waiting: queue.SimpleQueue[tuple[int, Build]] = queue.SimpleQueue()
        for numbered in enumerate(builds):
            waiting.put(numbered)
        done: queue.SimpleQueue[tuple[int, Built] | Exception] = queue.SimpleQueue()

        def serve(builder: _Builder) -> None:
            while True:
                try:
                    index, build = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, builder.build(build)))
                except Exception as error:  # raised where it is seen: in the thread that waits
                    done.put(error)
                    return

        threads = [threading.Thread(target=serve, args=(b,), daemon=True) for b in self._builders[: len(builds)]]
        for thread in threads:
            thread.start()
        finished = False
        try:
            for _ in builds:
                outcome = done.get()
                if isinstance(outcome, Exception):
                    raise GreenccError(f"candidates can't be built: the compiler: {outcome}") from outcome
                yield outcome
            finished = True
        finally:
            if not finished:
                _drain(waiting)
                self.close()
            for thread in threads:
                thread.join()


class _Builder:
    """One process, started when it is first needed, and again when it has crashed."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._child: Child | None = None
        self._holds: Task | None = None
        self._built = 0

    def build(self, build: Build) -> Built:
        if self._built >= _MOST_BUILDS:
            self.close()
        child = self._running()
        plan = None if build.plan is None else dict(build.plan)
        header = {"rule": build.rule, "plan": plan, "timeout": self._timeout}
        known = self._holds is build.task
        self._built += 1
        try:
            answer = child.ask(header, () if known else (build.task.data,), self._timeout)
        except ChildFailed as error:
            self.close()
            return BuildFailed(f"the compiler: {error}")
        self._holds = build.task
        return BuildFailed(str(answer.header["failed"])) if "failed" in answer.header else Program(answer.blobs[0])

    def close(self) -> None:
        child = self._child
        if child is not None:
            child.close()
        self._child, self._holds, self._built = None, None, 0

    def _running(self) -> Child:
        for start in range(_STARTS):
            if self._child is None:
                try:
                    self._child = Child(BUILDER, {}, {"OPENBLAS_NUM_THREADS": "1"})
                except ChildFailed:
                    if start == _STARTS - 1:
                        raise
        assert self._child is not None
        return self._child


def _drain(waiting: queue.SimpleQueue[tuple[int, Build]]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        pass
