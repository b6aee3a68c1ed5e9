"""Times a candidate against a reference in this process, once their results are the same.

Both are timed in turns, in blocks of a few milliseconds, so that a machine that slows down does so for both. This
runs in a process of its own (greencc.tuning.worker), because a candidate may be wrong in any way.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from greencc.artifact.bundle import Array
from greencc.errors import GreenccError
from greencc.runtime.binding import aligned, aligned_empty
from greencc.runtime.devices import Device
from greencc.runtime.executable import Executable
from greencc.runtime.features import cache_bytes, logical_cpus
from greencc.runtime.library import load_library
from greencc.tuning.program import Contents, Program

TOLERANCES = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-8}
"""Largest deviation that is still rounding, relative to the largest magnitude of an output."""
_CLEARLY_SLOWER = 1.3
_TURNS_TO_BE_SURE = 2
_TWO_SIDED_95 = 1.96
_MOST_RUNS = 200
# Runs that tell how many fill a block: one alone may have waited for others that compute.
_TRIES = 3
# Weights lie in so much more memory than the last-level cache holds, within these bounds.
_CACHES = 2
_DEFAULT_CACHE = 32 << 20
_MOST_WEIGHT_BYTES = 256 << 20
_MOST_SETS = 64
_ONE_CPU_PER_THREAD, _SHARED_CPUS = -2, -3
"""TVM's affinity modes kSpecifyOneCorePerThread and kSpecifyThreadShareAllCore."""


class WrongResult(GreenccError):
    """A candidate that computes something else than the reference."""


@dataclass(frozen=True)
class Measurement:
    """Times of a candidate; an entry for each size of the programs.

    Attributes:
        seconds: of one launch, the median of blocks, of which each counts with its fastest run.
        spread: how far the ratio of the two may be from what it seems to be, relative (95%): from the ratios of all
            turns, of which the median's standard error is about 0.93 times their interquartile range over the root of
            their number (as of a normal distribution).
        reference: the same of the reference, measured in the same turns.
        device: name of the device that measured; empty where it isn't one of several.
    """

    seconds: tuple[float, ...]
    spread: tuple[float, ...]
    reference: tuple[float, ...]
    device: str = ""


@dataclass(frozen=True)
class Effort:
    """How carefully a candidate is timed at one size.

    Attributes:
        least: turns that it gets in any case, unless it is clearly slower and `gives_up`.
        most: turns that it gets at most.
        seconds: no turn begins after so many.
        block: a block takes about so many seconds.
        gives_up: whether a candidate that is clearly slower is left after a few turns.
    """

    least: int
    most: int
    seconds: float
    block: float
    gives_up: bool


QUICK = Effort(least=3, most=8, seconds=0.06, block=0.003, gives_up=True)
THOROUGH = Effort(least=10, most=40, seconds=0.5, block=0.005, gives_up=False)


class Loaded:
    """A program that is loaded in this process, and has run once at every size.

    Its weights lie in memory several times, and each run takes the next ones: they come from memory, as in a model,
    where other layers' have driven them out of the caches.

    Attributes:
        contents: what is in the program.
        results: what it computes at each size.

    Raises:
        ProgramError: the bytes are no program.
        RuntimeError, ValueError, OSError, GreenccError: the code doesn't load, or fails.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.contents = program.unpack()
        with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
            path = Path(folder) / "code.so"
            path.write_bytes(self.contents.code)
            executable = Executable(path, self.contents.kernels, device)
        self._machine = executable.new_machine()
        self._inputs = [self.contents.inputs(size) for size in range(self.contents.sizes)]
        self._sets = [self._place(executable) for _ in range(_weight_sets(self.contents))]
        self._next = 0
        runs = (self._machine.run(inputs, self._sets[0]) for inputs in self._inputs)
        self.results = [[output.copy() for output in outputs] for outputs in runs]

    def seconds(self, size: int) -> float:
        """Wall time of a run, of as many launches as the program has."""
        taken = self._machine.seconds(self._inputs[size], self._sets[self._next], 1)
        self._next = (self._next + 1) % len(self._sets)
        return taken

    def _place(self, executable: Executable) -> list[Any]:
        arrays = [_copied(weight) for _ in range(self.contents.copies) for weight in self.contents.weights]
        return executable.place(arrays)


def pin_threads(threads: int) -> None:
    """Give this thread a pool of so many threads, this one included, each on a CPU of its own where `can_pin` says so.

    CPUs are taken in an order in which hardware threads of the same core come last.
    """
    configure = load_library().function("runtime.config_threadpool")
    if not can_pin(threads):
        configure(_SHARED_CPUS, threads, [str(cpu) for cpu in range(threads)])
        return
    cpus = _cpus_by_core()[:threads]
    configure(_ONE_CPU_PER_THREAD, threads, [str(cpu) for cpu in cpus])
    os.sched_setaffinity(0, {cpus[0]})


def can_pin(threads: int) -> bool:
    """Whether threads are to stay on CPUs. TVM's runtime must then be loaded with TVM_BIND_THREADS=1, else with 0.

    One thread alone goes where the system finds room: several processes may measure beside each other.
    """
    return hasattr(os, "sched_setaffinity") and 1 < threads <= logical_cpus()


def check_outputs(got: Sequence[Array], wanted: Sequence[Array]) -> None:
    """Compare a candidate's outputs with the reference's: integers are equal, floats but for rounding.

    Raises:
        WrongResult: they differ; the message is a phrase.
    """
    if len(got) != len(wanted):
        raise WrongResult(f"wrong result ({len(got)} outputs instead of {len(wanted)})")
    for i, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise WrongResult(
                f"wrong result (output {i} is {ours.dtype}{list(ours.shape)} instead of "
                f"{theirs.dtype}{list(theirs.shape)})"
            )
        if ours.dtype.kind == "f":
            _check_floats(i, ours, theirs)
        elif not np.array_equal(ours, theirs):
            raise WrongResult(f"wrong result ({np.count_nonzero(ours != theirs)} elements of output {i} differ)")


def compare(candidate: Loaded, reference: Loaded, effort: Effort) -> Measurement:
    """Times of `candidate` beside those of `reference`.

    Raises:
        WrongResult: they don't compute the same.
        ValueError: they aren't made for the same operands.
    """
    ours, theirs = candidate.contents, reference.contents
    if (ours.operands, ours.sizes) != (theirs.operands, theirs.sizes):
        raise ValueError("candidate and reference take different operands")
    for size in range(ours.sizes):
        check_outputs(candidate.results[size], reference.results[size])
    timed = [_by_turns(candidate, reference, size, effort) for size in range(ours.sizes)]
    seconds, spread, of_reference = zip(*timed, strict=True)
    return Measurement(seconds, spread, of_reference)


def _by_turns(candidate: Loaded, reference: Loaded, size: int, effort: Effort) -> tuple[float, float, float]:
    """Median, spread and the reference's median at one size."""
    programs = (candidate, reference)
    runs = [_runs_per_block(program, size, effort) for program in programs]
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for turn in range(effort.most):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(_block(programs[which], size, runs[which]))
        done = turn + 1
        if effort.gives_up and done >= _TURNS_TO_BE_SURE and _is_clearly_slower(*times):
            break
        if done >= effort.least and time.perf_counter() - started > effort.seconds:
            break
    ratios = np.array(times[0]) / np.array(times[1])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    spread = _TWO_SIDED_95 * 0.93 * (high - low) / middle / math.sqrt(len(ratios))
    return median(times[0]), float(spread), median(times[1])


def _block(program: Loaded, size: int, runs: int) -> float:
    """Seconds of a launch, in the fastest run of a block.

    Noise only adds: beside six busy processes on two cores, medians of runs were up to thirty times what they are on an
    idle machine, with interquartile ranges as large as they; the fastest of eight runs stayed within 3% of it.
    """
    if runs > 1:
        program.seconds(size)  # the other program's data fill the caches, and its threads may sleep
    return min(program.seconds(size) for _ in range(runs)) / program.contents.copies


def _runs_per_block(program: Loaded, size: int, effort: Effort) -> int:
    once = program.seconds(size)
    if once < effort.block * _TRIES:
        once = min(once, *(program.seconds(size) for _ in range(_TRIES - 1)))
    # Of runs that fill most of a block, a few, so that one of them is undisturbed; of longer ones no more than one.
    least = _TRIES if once <= effort.block else 1
    return int(np.clip(effort.block / max(once, 1e-9), least, _MOST_RUNS))


def _is_clearly_slower(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether it is in every turn: one turn may have been disturbed."""
    return all(mine > _CLEARLY_SLOWER * its for mine, its in zip(ours, theirs, strict=True))


def _check_floats(index: int, got: Array, wanted: Array) -> None:
    tolerance = TOLERANCES.get(str(wanted.dtype), TOLERANCES["float32"])
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    # Where both are the same infinity, or no number at all, they agree.
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = float(np.max(np.abs(np.where(same, 0.0, a - b)), initial=0.0))
    largest = float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0))
    if not error <= tolerance * largest:
        raise WrongResult(f"wrong result (output {index} is off by {error:.2g}, its largest value is {largest:.2g})")


def _weight_sets(contents: Contents) -> int:
    """How often the weights of all launches lie in memory."""
    one = contents.copies * sum(weight.nbytes for weight in contents.weights)
    if not one:
        return 1
    wanted = min(_CACHES * (cache_bytes() or _DEFAULT_CACHE), _MOST_WEIGHT_BYTES)
    return min(math.ceil(wanted / one), _MOST_SETS)


def _copied(array: Array) -> Array:
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return aligned(copy)


def _cpus_by_core() -> list[int]:
    """The CPUs that this process may use: one of each core first."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            core = siblings.read_text().strip()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    deepest = max(map(len, cores.values()))
    return [cpus[depth] for depth in range(deepest) for cpus in cores.values() if depth < len(cpus)]
