"""What measures candidates: a device of this machine, or of another (greencc.tuning.fleet)."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from greencc.runtime.devices import parse_device
from greencc.tuning import worker
from greencc.tuning.channel import Message
from greencc.tuning.child import Child, ChildFailed
from greencc.tuning.measure import Measurement
from greencc.tuning.program import Program

MEASURE_SECONDS, THOROUGH_SECONDS = 10.0, 40.0
"""A candidate that gives no result within these is left, also when it is measured thoroughly."""
WORKER = "greencc.tuning.worker"
"""What the process that measures runs: see Child."""
# A reference, which nobody suspects, may take so long to be loaded and run once.
REFERENCE_SECONDS = 60.0
# A candidate may take the time of so many runs of the reference, beside its own.
MOST_REFERENCE_RUNS = 50
_STARTS = 2
# Code that was loaded stays in its process: now and then a new one begins.
_MOST_CANDIDATES = 256


class TrialFailed(Exception):
    """A candidate can't be measured, and it is the candidate's fault. The message is a phrase."""


class ReferenceFailed(TrialFailed):
    """What a candidate is to be compared with can't be measured itself. The message is a phrase."""


class DeviceLost(Exception):
    """A device doesn't measure any more, whatever the candidate. The message is a phrase."""


class Device(Protocol):
    """Measures one candidate at a time."""

    @property
    def name(self) -> str:
        """For messages."""

    def describe(self) -> dict[str, object]:
        """What it is: the fields of `Target.describe`."""

    def measure(self, candidate: Program, reference: Program, thorough: bool = False) -> Measurement:
        """Time a candidate beside what it is compared with.

        Raises:
            TrialFailed: the candidate crashes, hangs, computes something else, or the reference does.
            DeviceLost: the device is of no more use.
        """

    def close(self) -> None:
        """Give it up; a measurement that is under way fails."""


class Place(Protocol):
    """What a local device needs to know of a target."""

    @property
    def threads(self) -> int:
        """Threads of a run."""

    @property
    def place(self) -> str:
        """The device of this machine, as in `vulkan:1`."""

    def describe(self) -> dict[str, object]:
        """What it is."""


class LocalDevice:
    """A device of this machine. Candidates run in a process of their own, which may crash or hang.

    Args:
        target: a target that runs here.
        timeout: seconds that a candidate gets beside those that its runs should take; four times as many when it is
            measured thoroughly.
        memory: bytes that a candidate may take, on a CPU; None for half of this machine's.
    """

    def __init__(self, target: Place, timeout: float = MEASURE_SECONDS, memory: int | None = None) -> None:
        self._target, self._timeout = target, timeout
        self._memory = _half_of_memory() if memory is None else memory
        self._turn = threading.Lock()
        self._child: Child | None = None
        self._holds = ""
        self._run_seconds = 0.0
        self._measured = 0
        self._closed = False

    @property
    def name(self) -> str:
        """See Device."""
        return f"this machine's {self._target.place}"

    def describe(self) -> dict[str, object]:
        """See Device."""
        return self._target.describe()

    def measure(self, candidate: Program, reference: Program, thorough: bool = False) -> Measurement:
        """See Device."""
        with self._turn:
            if self._measured >= _MOST_CANDIDATES:
                self._end()
            child = self._running()
            self._hold(child, reference)
            self._measured += 1
            timeout = self._timeout + MOST_REFERENCE_RUNS * self._run_seconds
            timeout *= THOROUGH_SECONDS / MEASURE_SECONDS if thorough else 1
            try:
                answer = self._ask(child, {"do": "measure", "thorough": thorough}, candidate, timeout)
            except ChildFailed as error:
                raise self._failure(str(error)) from error
            return measurement_of(answer.header)

    def close(self) -> None:
        """See Device."""
        self._closed = True
        child = self._child
        if child is not None:
            child.close()

    def _running(self) -> Child:
        if self._closed:
            raise DeviceLost("closed")
        if self._child is None:
            place = self._target.place
            options = {"device": place, "threads": self._target.threads, "memory": self._memory}
            environment = worker.environment(self._target.threads, parse_device(place))
            for start in range(_STARTS):
                try:
                    self._child = Child(WORKER, options, environment)
                    break
                except ChildFailed as error:
                    if start == _STARTS - 1:
                        raise DeviceLost(f"the process that measures {error}") from error
        assert self._child is not None
        return self._child

    def _hold(self, child: Child, reference: Program) -> None:
        """Have the reference loaded in the process."""
        if self._holds == reference.digest:
            return
        self._holds = ""
        try:
            answer = self._ask(child, {"do": "reference"}, reference, max(self._timeout, REFERENCE_SECONDS))
        except ChildFailed as error:
            self._end()
            raise DeviceLost("closed") if self._closed else ReferenceFailed(str(error)) from error
        if "failed" in answer.header:
            raise ReferenceFailed(str(answer.header["failed"]))
        self._holds, self._run_seconds = reference.digest, float(answer.header["seconds"])

    def _ask(self, child: Child, header: Mapping[str, Any], program: Program, timeout: float) -> Message:
        return child.ask({**header, "timeout": timeout}, (program.data,), timeout)

    def _failure(self, reason: str) -> Exception:
        """What it means that the process has ended."""
        self._end()
        return DeviceLost("closed") if self._closed else TrialFailed(reason)

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child, self._holds, self._measured = None, "", 0


def measurement_of(answer: Mapping[str, Any]) -> Measurement:
    """The measurement that a measuring process answered with.

    Raises:
        TrialFailed: it answered why there is none.
    """
    if "failed" in answer:
        raise (ReferenceFailed if answer.get("reference") is True else TrialFailed)(str(answer["failed"]))
    seconds, spread, reference = (tuple(map(float, answer[key])) for key in ("seconds", "spread", "reference"))
    return Measurement(seconds, spread, reference)


def _half_of_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return None
