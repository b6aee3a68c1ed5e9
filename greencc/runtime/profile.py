"""How long each kernel of a model takes, told in the names of the user's own nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from greencc.artifact.bundle import KernelCall
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
    recorded: list[list[tuple[str, float]]] = []
    for _ in range(runs + 1):
        recorder = _Recorder(model.synchronize, [], [])
        machine = model.new_machine()
        machine.vm["set_instrument"](load_library().ffi.convert(recorder))
        model.run_bound(arrays, machine)
        recorded.append(recorder.launches)
    kernels = [name for name, _ in recorded[0]]
    times = [median(run[i][1] for run in recorded[1:]) for i in range(len(kernels))]
    launched = _match(kernels, model.artifact.manifest.calls)
    return tuple(KernelTime(*launch) for launch in zip(launched, times, strict=True))


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
    """The VM calls this before and after everything it calls. A device has finished what was before, each time."""

    synchronize: Callable[[], None]
    launches: list[tuple[str, float]]
    started: list[float]

    def __call__(self, function: object, name: str, before: bool, result: object, *arguments: object) -> int:
        if not name.startswith(_NOT_KERNELS):
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
