"""Many measurements on whatever devices there are."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from greencc.errors import GreenccError
from greencc.tuning.devices import Device, DeviceLost, TrialFailed
from greencc.tuning.measure import Measurement
from greencc.tuning.program import Program

# A candidate that cost so many devices is to blame for it.
_MOST_LOSSES = 3
# Jobs taken for each device: the one that it is at, and the next.
_AHEAD = 2
_LOOK_SECONDS = 0.2
_END_SECONDS = 5.0


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

    Attributes:
        closed: whether it has been closed.
    """

    def __init__(
        self, devices: Iterable[Device], patience: float = 0.0, log: Callable[[str], None] = lambda message: None
    ) -> None:
        self._devices = list(devices)
        self._patience, self._log = patience, log
        self._lock = threading.Lock()
        self._last_loss = "there is none"
        self.closed = threading.Event()

    @property
    def devices(self) -> tuple[Device, ...]:
        """Those that are left."""
        with self._lock:
            return tuple(self._devices)

    def add(self, device: Device) -> None:
        """Let a device join. Safe from other threads; a pool that has been closed closes it."""
        with self._lock:
            if not self.closed.is_set():
                self._devices.append(device)
                return
        device.close()

    def measure(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Outcomes as they come, of each job once, with the name of the device. Jobs are taken as devices get free.

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
            self.closed.set()
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
            if not (more or pending):
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
            if isinstance(outcome, Measurement):
                outcome = replace(outcome, device=device.name)
            self._outcomes.put((job, outcome))
