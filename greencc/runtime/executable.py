"""Loaded machine code: where its tensors lie, how arrays get there and results come back."""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from greencc.artifact.bundle import Array
from greencc.runtime.binding import aligned_empty
from greencc.runtime.devices import Device, driver
from greencc.runtime.library import Library, load_library

_CPU = Device()
# While one thread records a CUDA graph, no other may allocate memory or launch on any stream.
_CUDA_TURN = threading.Lock()
_POOLED = 2
"""The VM's allocator that keeps freed buffers for the next call."""

Tensor: TypeAlias = Any
"""A tensor of tvm_ffi."""


class Executable:
    """A library of machine code with the kernels of its device."""

    def __init__(self, code: Path, kernels: Mapping[str, bytes], device: Device) -> None:
        self.device = device
        self._library = load_library()
        self._ffi = self._library.ffi
        self._module = _loaded(self._library, code, kernels, device.kind)
        if device.is_gpu:
            self._where = self._ffi.device(device.kind, device.index)
            self._allocate = self._library.function("runtime.TVMTensorAllocWithScope")
            self._copy = self._library.function("runtime.TVMTensorCopyFromTo")
            self._synchronize = self._library.function("runtime.Device_StreamSync")

    def new_machine(self) -> Machine:
        """A VM over the code, with its own state."""
        return Machine(self)

    def place(self, arrays: Sequence[Array]) -> list[Tensor]:
        """The arrays where kernels read them: themselves on the CPU, else copies on the device."""
        tensors = [self.as_tensor(array) for array in arrays]
        if not self.device.is_gpu:
            return tensors
        placed = [self.copied(tensor, self.empty(tensor.shape, str(tensor.dtype))) for tensor in tensors]
        self.synchronize()
        return placed

    def as_tensor(self, array: Array) -> Tensor:
        """A view of an array that is aligned and contiguous."""
        return self._ffi.from_dlpack(array)

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        """A tensor on the device, of unknown content."""
        return self._allocate(self._ffi.Shape(tuple(shape)), self._ffi.dtype(dtype), self._where, None)

    def copied(self, source: Tensor, target: Tensor) -> Tensor:
        """`target`, into which `source` will have been copied when the device is synchronized."""
        if math.prod(target.shape):
            self._copy(source, target)
        return target

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.is_gpu:
            self._synchronize(self._where, 0)

    def fetch(self, results: Sequence[Tensor]) -> list[Array]:
        """Results as arrays: views on the CPU, else copies that are made with one wait."""
        if not self.device.is_gpu:
            return [np.from_dlpack(result) for result in results]
        arrays: list[Array] = [aligned_empty(result.shape, str(result.dtype)) for result in results]
        try:
            for result, array in zip(results, arrays, strict=True):
                self.copied(result, self.as_tensor(array))
            self.synchronize()
        except BaseException:
            # The device must not write to the arrays once they are gone.
            driver(self.device.kind).discard(self.device.index)
            raise
        return arrays

    def start(self) -> Any:
        """A VM of TVM, initialised for the device."""
        vm = self._module["vm_load_executable"]()
        devices = (self.device, _CPU) if self.device.is_gpu else (_CPU,)
        vm["vm_initialization"](*(n for device in devices for n in (device.type, device.index, _POOLED)))
        return vm


_lock = threading.Lock()
_modules: dict[tuple[str, str], Any] = {}


def _loaded(library: Library, code: Path, kernels: Mapping[str, bytes], kind: str) -> Any:
    """The module of a shared library, with the kernels that it launches. One for each content: it is never unloaded.

    The system's loader knows libraries by name and by file: an artifact that was replaced since this process loaded it
    would come back as it was, so every load has a name of its own. A library that is loaded again is the same one, and
    would forget its kernels until it is given them again: so it is loaded once, and nobody gets it before it has them.
    """
    data = code.read_bytes()
    digest = hashlib.sha256(data)
    for name, member in sorted(kernels.items()):
        digest.update(f"{name} {len(member)}\n".encode() + member)
    key = (kind, digest.hexdigest())
    with _lock:
        if key not in _modules:
            made = None if kind == "cpu" else driver(kind).load_members(library, kernels)
            with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
                link = Path(folder) / code.name
                link.symlink_to(code.resolve())
                module = library.ffi.load_module(str(link))
            if made is not None:
                # The host's code asks its own module's imports for kernels, not those of the VM's executable.
                host = module.imports[0] if module.imports else module
                host.import_module(made)
            _modules[key] = module
        return _modules[key]


class Machine:
    """A VM, and the memory on its device that inputs are copied to."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self.vm = executable.start()
        self._main = self.vm["main"]
        self._inputs: dict[int, Tensor] = {}
        self._turn = _CUDA_TURN if executable.device.kind == "cuda" else contextlib.nullcontext()

    def run(self, arrays: Sequence[Array], weights: Sequence[Tensor]) -> list[Array]:
        """The outputs for inputs in call order. On a GPU they are in memory of their own."""
        with self._turn:
            results = self._main(*self._given(arrays), *weights)
        return self._executable.fetch(results)

    def seconds(self, arrays: Sequence[Array], weights: Sequence[Tensor], runs: int) -> float:
        """Wall time of so many runs, one after the other; without the ways to the device and back."""
        with self._turn:
            given = self._given(arrays)
        self._executable.synchronize()
        started = time.perf_counter()
        for _ in range(runs):
            with self._turn:
                self._main(*given, *weights)
            self._executable.synchronize()
        return time.perf_counter() - started

    def _given(self, arrays: Sequence[Array]) -> list[Tensor]:
        executable = self._executable
        if not executable.device.is_gpu:
            return executable.place(arrays)
        return [executable.copied(executable.as_tensor(array), self._input(i, array)) for i, array in enumerate(arrays)]

    def _input(self, index: int, array: Array) -> Tensor:
        kept = self._inputs.get(index)
        if kept is None or tuple(kept.shape) != array.shape:
            kept = self._inputs[index] = self._executable.empty(array.shape, str(array.dtype))
        return kept
