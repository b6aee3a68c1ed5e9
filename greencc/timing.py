"""Fair timing of several programs in one process, and what may be said from it.

Programs are interleaved in blocks, so that a machine that slows down or speeds up does so for all. Within a
block one program runs alone: before it there is a pause, because the idle threads of the one before still
spin (interleaving single runs made both sides up to twice as slow), and its first runs are discarded,
because caches and threads are cold. The order of programs rotates from block to block.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from greencc.energy.meter import Meter

PAUSE_SECONDS = 0.1
"""Between blocks: ONNX Runtime's idle threads were seen to spin for 0.04 s, greencc's spin for 0.001 s."""
BLOCKS = 10
_TARGET_SECONDS = 2.0
"""Measured time per program when the number of runs is not given."""
_MOST_RUNS_PER_BLOCK = 200
_LEAST_RUNS_PER_BLOCK = 3
_DISCARDED = 2
_RESAMPLES = 2000


@dataclass(frozen=True)
class Series:
    """Times and energy of one program.

    Attributes:
        blocks: milliseconds of every timed run, by block; all blocks have equally many.
        joules: energy of each block's timed runs; None where the meter could not tell.
    """

    blocks: tuple[tuple[float, ...], ...]
    joules: tuple[float | None, ...]

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """Every timed run."""
        return tuple(value for block in self.blocks for value in block)

    @property
    def joules_per_run(self) -> float | None:
        """Energy of one run; None when any block's is missing."""
        known = [value for value in self.joules if value is not None]
        return sum(known) / len(self.milliseconds) if len(known) == len(self.joules) else None

    def summary(self) -> dict[str, float | int]:
        """Median, least, mean and 90th percentile in milliseconds, and the number of timed runs."""
        values = self.milliseconds
        return {
            "median": median(values),
            "min": min(values),
            "mean": sum(values) / len(values),
            "p90": float(np.percentile(values, 90)),
            "runs": len(values),
        }


@dataclass(frozen=True)
class Ratio:
    """Median time of one program over another's, with a 95% interval.

    Attributes:
        value: ratio of the medians of all timed runs.
        low: lower end of the interval, from resampling pairs of blocks.
        high: upper end.
    """

    value: float
    low: float
    high: float


def measure(
    programs: Mapping[str, Callable[[], object]],
    meter: Meter,
    repeat: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Series]:
    """Time every program, interleaved in blocks.

    Args:
        programs: what to run, by name.
        meter: reads the energy of the timed runs.
        repeat: timed runs of each program, rounded up to whole blocks; None for as many as two seconds hold,
            at least 30.
        progress: told what is being done.
    """
    names = list(programs)
    plan = {name: _runs_per_block(programs[name], repeat) for name in names}
    blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    joules: dict[str, list[float | None]] = {name: [] for name in names}
    count = BLOCKS if repeat is None else min(BLOCKS, repeat)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for block in range(count):
            progress(f"measuring: block {block + 1} of {count}")
            for name in names[block % len(names) :] + names[: block % len(names)]:
                times, energy = _run_block(programs[name], plan[name], meter)
                blocks[name].append(times)
                joules[name].append(energy)
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: Series(tuple(blocks[name]), tuple(joules[name])) for name in names}


def ratio_of(ours: Series, theirs: Series) -> Ratio:
    """Ratio of median times; the interval is a percentile bootstrap over pairs of blocks (Efron, 1979)."""
    a, b = np.array(ours.blocks), np.array(theirs.blocks)
    picks = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    tops = np.median(a[picks].reshape(_RESAMPLES, -1), 1)
    bottoms = np.median(b[picks].reshape(_RESAMPLES, -1), 1)
    low, high = np.percentile(tops / bottoms, (2.5, 97.5))
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def _runs_per_block(program: Callable[[], object], repeat: int | None) -> int:
    program()
    started = time.perf_counter()
    program()
    seconds = time.perf_counter() - started
    if repeat is not None:
        return math.ceil(repeat / min(BLOCKS, repeat))
    wanted = int(_TARGET_SECONDS / BLOCKS / max(seconds, 1e-9))
    return max(_LEAST_RUNS_PER_BLOCK, min(wanted, _MOST_RUNS_PER_BLOCK))


def _run_block(program: Callable[[], object], runs: int, meter: Meter) -> tuple[tuple[float, ...], float | None]:
    """Milliseconds of every timed run, and the energy of them all."""
    time.sleep(PAUSE_SECONDS)
    for _ in range(_DISCARDED):
        program()
    times = []
    mark = meter.mark()
    for _ in range(runs):
        started = time.perf_counter()
        program()
        times.append((time.perf_counter() - started) * 1e3)
    return tuple(times), meter.since(mark).joules
