"""Whether tuning pays: the energy that it takes against the energy that it saves, run by run."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import psutil

from greencc.energy.estimate import EstimateMeter
from greencc.energy.meter import Meter, choose_meter


class SessionMeter:
    """Energy of a session: this process and all that it starts.

    The hardware's counters see the whole machine. The estimate is CPU time of this process and its children times watts
    per busy core; what devices of a fleet use isn't in it.
    """

    def __init__(self, watts_per_core: float | None = None) -> None:
        self._choice = choose_meter() if watts_per_core is None else choose_meter(watts_per_core)
        self._mark = self.meter.mark()
        self._cpu = _cpu_seconds()
        self._started = time.perf_counter()

    @property
    def meter(self) -> Meter:
        """What measures."""
        return self._choice.meter

    @property
    def method(self) -> str:
        """`rapl` or `estimate`."""
        return self.meter.method

    @property
    def seconds(self) -> float:
        """Since the session began."""
        return time.perf_counter() - self._started

    @property
    def joules(self) -> float | None:
        """Since the session began; None where a counter failed."""
        if isinstance(self.meter, EstimateMeter):
            return (_cpu_seconds() - self._cpu) * self.meter.watts_per_core
        return self.meter.since(self._mark).joules

    def watts(self, threads: int) -> float | None:
        """Power of a run with so many busy threads: by the estimate, or the mean of this session by the counters."""
        if isinstance(self.meter, EstimateMeter):
            return threads * self.meter.watts_per_core
        return None if self.joules is None else self.joules / max(self.seconds, 1e-9)


def _cpu_seconds() -> float:
    """CPU time of this process and of all processes that it has started, ended ones included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.Error:  # it ended meanwhile, and its parent counts it
            continue
        total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


@dataclass(frozen=True)
class Payback:
    """Energy spent and saved.

    Attributes:
        spent: joules of tuning so far; None where unknown.
        saved: joules that a run of the model saves, by the kernels' times.
        method: how joules are come by.
    """

    spent: float | None
    saved: float | None
    method: str

    @property
    def runs(self) -> int | None:
        """Runs of the model after which tuning has paid; None where it saves nothing, or that isn't known."""
        if self.spent is None or not self.saved or self.saved <= 0:
            return None
        return -(-int(self.spent * 1e9) // max(1, int(self.saved * 1e9)))

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "joules_spent": self.spent, "joules_saved_per_run": self.saved, "break_even_runs": self.runs,
            "method": self.method,
        }  # fmt: skip


def is_profitable(gain_seconds: float, watts: float | None, joules_of_batch: float | None, runs: int) -> bool:
    """Whether seconds that a batch is expected to save in each run are worth the batch's energy within so many runs."""
    if watts is None or joules_of_batch is None:
        return True
    return gain_seconds * watts * runs >= joules_of_batch
