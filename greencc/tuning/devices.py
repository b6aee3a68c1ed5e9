"""What measures candidates: devices of this machine, or others (greencc.tuning.fleet), and many that share jobs."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from greencc.errors import GreenccError
from greencc.runtime.devices import parse_device
from greencc.tuning import worker
from greencc.tuning.channel import Message
from greencc.tuning.child import Child, ChildFailed
from greencc.tuning.measure import Measurement
from greencc.tuning.program import Program

MEASURE_SECONDS, THOROUGH_SECONDS = 10.0, 40.0
"""A candidate that gives no result within these is left, also when it is measured thoroughly."""
_STARTS = 2
# Code that was loaded stays in its process: now and then a new one begins.
_MOST_CANDIDATES = 256


# A candidate that cost so many devices is to blame for it.
_MOST_LOSSES = 3
# Jobs taken for each device: the one that it is at, and the next.
_AHEAD = 2
_LOOK_SECONDS = 0.2
_END_SECONDS = 5.0


class TrialFailed(Exception):
    """A candidate can't be measured, and it is the candidate's fault. The message is a phrase."""


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
        timeout: seconds that a candidate gets; four times as many when it is measured thoroughly.
        memory: bytes that a candidate may take, on a CPU; None for half of this machine's.
    """

    def __init__(self, target: Place, timeout: float = MEASURE_SECONDS, memory: int | None = None) -> None:
        self._target, self._timeout = target, timeout
        self._memory = _half_of_memory() if memory is None else memory
        self._turn = threading.Lock()
        self._child: Child | None = None
        self._holds = ""
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
            timeout = self._timeout * (THOROUGH_SECONDS / MEASURE_SECONDS if thorough else 1)
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
                    self._child = Child("greencc.tuning.worker", options, environment)
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
        try:
            answer = self._ask(child, {"do": "reference"}, reference, self._timeout)
        except ChildFailed as error:
            raise self._failure(f"the reference: {error}") from error
        if "failed" in answer.header:
            raise TrialFailed(f"the reference: {answer.header['failed']}")
        self._holds = reference.digest

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
        raise TrialFailed(str(answer["failed"]))
    return Measurement(*(tuple(map(float, answer[key])) for key in ("seconds", "spread", "reference")))


def _half_of_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return None


@dataclass(frozen=True)
class Job:
    """A measurement to be made.

    Attributes:
        candidate: what is measured.
        reference: what it is compared with.
        thorough: whether it is measured longer.
        key: the caller's, to tell jobs apart.
    """

    candidate: Program
    reference: Program
    thorough: bool = False
    key: Any = None


Outcome: TypeAlias = Measurement | TrialFailed
"""What becomes of a job."""


class Pool:
    """Devices that share jobs. Devices may join at any time; those that are lost leave, and nothing is lost with them.

    Args:
        devices: the devices; the pool closes them.
        patience: seconds to wait for a device to join when there is none.
        log: told, in a line, of every device that leaves.
    """

    def __init__(
        self, devices: Iterable[Device], patience: float = 0.0, log: Callable[[str], None] = lambda message: None
    ) -> None:
        self._devices = list(devices)
        self._patience, self._log = patience, log
        self._lock = threading.Lock()
        self._last_loss = "there is none"

    @property
    def devices(self) -> tuple[Device, ...]:
        """Those that are left."""
        with self._lock:
            return tuple(self._devices)

    def add(self, device: Device) -> None:
        """Let a device join. Safe from other threads."""
        with self._lock:
            self._devices.append(device)

    def measure(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Outcomes as they come, of each job once. Jobs are taken as devices get free.

        An iteration that is not finished, or interrupted, leaves devices at their last jobs and waits for those.

        Raises:
            DeviceLost: no device is left, nor has one joined in time.
        """
        ongoing = _Round(self._drop)
        try:
            yield from self._run(ongoing, iter(jobs))
        finally:
            ongoing.stop()

    def close(self) -> None:
        """Close all devices."""
        with self._lock:
            devices, self._devices = self._devices, []
        for device in devices:
            device.close()

    def _run(self, ongoing: _Round, jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
        pending, more = 0, True
        alone_since: float | None = None
        while True:
            devices = self.devices
            ongoing.employ(devices)
            while more and pending < _AHEAD * len(devices):
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    ongoing.put(job)
                    pending += 1
            if not pending:
                return
            alone_since = None if devices else alone_since or time.monotonic()
            if alone_since is not None and time.monotonic() - alone_since >= self._patience:
                raise DeviceLost(f"no device is left: {self._last_loss}")
            finished = ongoing.next_outcome(_LOOK_SECONDS)
            if finished is not None:
                pending -= 1
                yield finished

    def _drop(self, device: Device, reason: str) -> None:
        with self._lock:
            if device in self._devices:
                self._devices.remove(device)
            self._last_loss = f"{device.name}: {reason}"
        self._log(f"{device.name} is lost: {reason}")
        device.close()


class _Round:
    """One iteration: a thread for each device, which takes jobs until there is none."""

    def __init__(self, drop: Callable[[Device, str], None]) -> None:
        self._outcomes: queue.Queue[tuple[Job, Outcome] | Exception] = queue.Queue()
        self._drop = drop
        self._jobs: deque[tuple[Job, int]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._threads: dict[Device, threading.Thread] = {}

    def put(self, job: Job, losses: int = 0) -> None:
        """Have a job done, ahead of others where it was begun already."""
        with self._changed:
            if losses:
                self._jobs.appendleft((job, losses))
            else:
                self._jobs.append((job, losses))
            self._changed.notify()

    def employ(self, devices: Sequence[Device]) -> None:
        """Let those devices work that don't yet."""
        for device in devices:
            if device not in self._threads:
                # A device may hang for good; that must not keep the interpreter from ending.
                thread = threading.Thread(target=self._serve, args=(device,), name=device.name, daemon=True)
                self._threads[device] = thread
                thread.start()

    def next_outcome(self, timeout: float) -> tuple[Job, Outcome] | None:
        """An outcome that has come, or None after so many seconds without one."""
        try:
            outcome = self._outcomes.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(outcome, Exception):
            raise GreenccError("a measurement failed, and it is a fault of greencc") from outcome
        return outcome

    def stop(self) -> None:
        """Let every device finish the job that it is at."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + _END_SECONDS
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _take(self) -> tuple[Job, int] | None:
        with self._changed:
            while not self._jobs and not self._stopped:
                self._changed.wait()
            return None if self._stopped else self._jobs.popleft()

    def _serve(self, device: Device) -> None:
        while (taken := self._take()) is not None:
            job, losses = taken
            try:
                outcome: Outcome = device.measure(job.candidate, job.reference, job.thorough)
            except TrialFailed as error:
                outcome = error
            except DeviceLost as error:
                self._drop(device, str(error))
                if losses + 1 < _MOST_LOSSES:
                    self.put(job, losses + 1)
                else:
                    self._outcomes.put((job, TrialFailed(f"{losses + 1} devices were lost while they measured it")))
                return
            except Exception as error:  # raised where it is seen: in the thread that waits
                self._outcomes.put(error)
                return
            self._outcomes.put((job, outcome))
