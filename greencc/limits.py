"""What the machine can do at most, measured with kernels that greencc compiles: shares compare like with like."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from greencc.artifact.bundle import Compiled
from greencc.artifact.format import write_artifact
from greencc.artifact.manifest import Source
from greencc.runtime.binding import aligned_empty
from greencc.runtime.features import cache_bytes
from greencc.runtime.model import load

if TYPE_CHECKING:
    from greencc.targets.cpu.target import CpuTarget

# Bandwidth is that of memory when the array is larger than the caches: this times the last-level cache, within limits.
# (A virtual machine often reports the cache of the whole host, of which it has a small part.)
_CACHE_FACTOR = 2
_LEAST_BYTES, _MOST_BYTES = 256 << 20, 1 << 30
# Runs of each kernel at least, by turns, for so many seconds at least; the fastest counts: a limit is what the
# undisturbed machine reaches. (Two threads that begin on one core share it for tens of milliseconds.)
_RUNS, _SECONDS = 8, 1.0


@dataclass(frozen=True)
class Limits:
    """A machine's limits with a number of threads.

    Attributes:
        float32: float32 operations per second (a multiply-add is 2).
        int8: int8 operations per second, summed in int32.
        bandwidth: bytes per second read from memory.
    """

    float32: float
    int8: float
    bandwidth: float

    def operations(self, arithmetic: str) -> float:
        """The limit for one of `greencc.artifact.bundle.ARITHMETIC`."""
        return {"float32": self.float32, "int8": self.int8}[arithmetic]


def measure_limits(target: CpuTarget) -> Limits:
    """Measure the limits of this machine with the threads of `target`. Takes some seconds."""
    from greencc.targets.cpu.limits import bandwidth_limit, dot_limit, fma_limit

    size = min(max(_CACHE_FACTOR * (cache_bytes() or 0), _LEAST_BYTES), _MOST_BYTES)
    kernels = {
        "float32": fma_limit(target),
        "int8": dot_limit(target),
        "bandwidth": bandwidth_limit(target, size),
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: _prepared(Path(folder) / name, compiled, target.threads) for name, (compiled, _) in kernels.items()
        }
        seconds = _fastest(runs)
    return Limits(**{name: amount / seconds[name] for name, (_, amount) in kernels.items()})


def _prepared(path: Path, compiled: Compiled, threads: int) -> Callable[[], object]:
    """A kernel as an artifact at `path`, and what runs it."""
    write_artifact(path, compiled, source=Source("limit", "0" * 64), golden_inputs={}, run=None)
    model = load(path, threads=threads)
    spec = compiled.inputs[0]
    given = aligned_empty([int(dim) for dim in spec.shape], spec.dtype)
    given.fill(1)
    return partial(model.run_bound, [given])


def _fastest(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each one's fastest run."""
    fastest = dict.fromkeys(runs, inf)
    begun = time.perf_counter()
    rounds = 0
    while rounds < _RUNS or time.perf_counter() - begun < _SECONDS:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            fastest[name] = min(fastest[name], time.perf_counter() - started)
        rounds += 1
    return fastest
