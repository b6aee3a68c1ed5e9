"""How long each kernel of a model takes, told in the names of the user's own nodes."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from greencc.artifact.bundle import Array, KernelCall
from greencc.runtime.devices import driver
from greencc.runtime.library import load_library
from greencc.runtime.model import Model

WORK = (
    "dispatches", "barriers", "submits", "waits", "uploads", "upload_bytes", "downloads", "download_bytes", "copies",
)  # fmt: skip
"""What is counted of a run, of the counters that a device's runtime keeps."""
_NOT_KERNELS = ("vm.", "shape_func")
"""Beginnings of the names of what the VM calls besides kernels: its own bookkeeping."""


@dataclass(frozen=True)
class KernelTime:
    """Time of one kernel launch.

    Attributes:
        call: the kernel and the nodes that this launch computes; nothing but its name where a branch left it unknown.
        milliseconds: median over the profiled runs. The instrument itself adds some microseconds.
    """

    call: KernelCall
    milliseconds: float


def profile(model: Model, inputs: Mapping[str, object], runs: int = 5) -> tuple[KernelTime, ...]:
    """Time every kernel launch of `model`, in launch order.

    Args:
        model: the loaded model.
        inputs: arrays by input name.
        runs: how many runs to take the median of; one more warms up.

    Raises:
        InputError: the arrays don't fit the model's inputs.
        GreenccError: the machine code failed.
    """
    arrays = model.bind(inputs)
    device = model.device
    launches = _by_device if device.is_gpu and driver(device.kind).times_kernels(device.index) else _by_clock
    recorded = [launches(model, arrays) for _ in range(runs + 1)]
    kernels = [name for name, _ in recorded[0]]
    times = [median(run[i][1] for run in recorded[1:]) for i in range(len(kernels))]
    launched = _match(kernels, model.artifact.manifest.calls)
    return tuple(KernelTime(*launch) for launch in zip(launched, times, strict=True))


def _by_clock(model: Model, arrays: Sequence[Array]) -> list[tuple[str, float]]:
    """Names and milliseconds of the launches of a run, each waited for."""
    recorder = _Recorder(model.synchronize, _recording(model), [], [])
    _run_recorded(model, arrays, recorder)
    return recorder.launches


def _by_device(model: Model, arrays: Sequence[Array]) -> list[tuple[str, float]]:
    """Names and milliseconds of the launches of a run, by the device's own clock: nothing waits in between."""
    recorder = _Recorder(lambda: None, lambda: False, [], [])
    gpu = driver(model.device.kind)
    gpu.profile(True)
    try:
        _run_recorded(model, arrays, recorder)
    finally:
        gpu.profile(False)
        times = gpu.profile_results()
    return assign_times([name for name, _ in recorder.launches], times)


def assign_times(launches: Sequence[str], times: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The time of each launch: of the kernels on the device that it stands for.

    Args:
        launches: names of a run's functions that launch kernels, in order.
        times: `kernel` and `milliseconds` of the kernels that ran, in order. Function f has f_kernel, f_kernel_1, ..
            and runs each at most once.
    """
    left = deque((str(each["kernel"]), float(each["milliseconds"])) for each in times)
    result = []
    for name in launches:
        own = re.compile(re.escape(name) + r"_kernel(_\d+)?")
        total, seen = 0.0, set[str]()
        while left and own.fullmatch(left[0][0]) and left[0][0] not in seen:
            kernel, milliseconds = left.popleft()
            seen.add(kernel)
            total += milliseconds
        result.append((name, total))
    return result


def _run_recorded(model: Model, arrays: Sequence[Array], recorder: _Recorder) -> None:
    machine = model.new_machine()
    machine.vm["set_instrument"](load_library().ffi.convert(recorder))
    model.run_bound(arrays, machine)


def _recording(model: Model) -> Callable[[], bool]:
    """What tells whether the launches of a model are recorded, not run."""
    return driver(model.device.kind).is_recording if model.device.is_gpu else lambda: False


def device_work(model: Model, inputs: Mapping[str, object]) -> dict[str, int] | None:
    """What one run asks of the device: dispatches, barriers, submits, waits, copies and their bytes.

    None for a CPU, and for a GPU whose runtime doesn't count.

    Raises:
        InputError: the arrays don't fit the model's inputs.
        GreenccError: the machine code failed.
    """
    if not model.device.is_gpu:
        return None
    arrays = model.bind(inputs)
    model.run_bound(arrays)  # what only the first run does is not asked of others
    before = driver(model.device.kind).statistics(model.device.index)
    model.run_bound(arrays)
    after = driver(model.device.kind).statistics(model.device.index)
    return {name: after[name] - count for name, count in before.items() if name in WORK} or None


@dataclass(frozen=True)
class _Recorder:
    """The VM calls this before and after everything it calls. A device has finished what was before, each time.

    A new VM runs what becomes a graph once before it records it: that is timed, what is recorded is not.
    """

    synchronize: Callable[[], None]
    is_recording: Callable[[], bool]
    launches: list[tuple[str, float]]
    started: list[float]

    def __call__(self, function: object, name: str, before: bool, result: object, *arguments: object) -> int:
        if not name.startswith(_NOT_KERNELS) and not self.is_recording():
            self.synchronize()
            if before:
                self.started.append(time.perf_counter())
            else:
                self.launches.append((name, (time.perf_counter() - self.started.pop()) * 1e3))
        return 0


def _match(kernels: list[str], calls: tuple[KernelCall, ...]) -> list[KernelCall]:
    """The call of each launch: the manifest's calls are in launch order, but a branch not taken is skipped."""
    result: list[KernelCall] = []
    position = 0
    for kernel in kernels:
        found = next((i for i in range(position, len(calls)) if calls[i].kernel == kernel), None)
        result.append(KernelCall(kernel, ()) if found is None else calls[found])
        position = position if found is None else found + 1
    return result
