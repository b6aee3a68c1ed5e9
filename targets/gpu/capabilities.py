"""What a GPU can do, as far as a schedule or an emitter has to know."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import tvm

from greencc.errors import UserError
from greencc.targets.base import Target


@dataclass(frozen=True)
class Capabilities:
    """A GPU's limits and optional features. The defaults are what desktop GPUs and recent mobile ones have.

    Attributes:
        max_threads: threads of a workgroup (a block in CUDA's words).
        shared_bytes: memory that the threads of a workgroup share.
        subgroup: threads that run in step and can exchange values (a warp); None where the device doesn't fix it, so
            that nothing may depend on it.
        has_float16: arithmetic in float16; it can be stored in any case.
        has_int64: 64-bit integers as data.
        has_float64: arithmetic and data in float64.
        has_dot4: `__dp4a`: int32 plus the dot product of two words of four signed bytes.
        has_tensor_cores: products of 16 x 16 matrices of float16 by a warp, summed in float32.
        has_tensor_bfloat16: the same of bfloat16.
        has_tensor_int8: the same of int8, summed in int32.
        alignment: bytes that the offset of a tensor in its memory must be a multiple of.
        max_buffer_bytes: the largest tensor that a kernel can be given.
        max_groups: workgroups of a launch along x; more are split over several launches.
        cores: workgroups that it takes to keep the device busy, about: with fewer of them, tiles are smaller.
    """

    max_threads: int = 256
    shared_bytes: int = 32 << 10
    subgroup: int | None = None
    has_float16: bool = False
    has_int64: bool = True
    has_float64: bool = False
    has_dot4: bool = False
    has_tensor_cores: bool = False
    has_tensor_bfloat16: bool = False
    has_tensor_int8: bool = False
    alignment: int = 256
    max_buffer_bytes: int = 128 << 20
    max_groups: int = 65535
    cores: int = 32


class GpuTarget(Target, Protocol):
    """A target whose kernels run on a GPU. Schedules read its capabilities, and ask nothing of its kind."""

    @property
    def gpu(self) -> Capabilities:
        """What the device can do."""

    def tvm_target(self) -> tvm.target.Target:
        """The same target for TVM, with a host."""


class UnknownDeviceWarning(UserWarning):
    """A GPU is compiled for that nothing is known of."""


def warn_unknown(kind: str, reason: str, instead: str) -> None:
    """Say that this machine's GPU isn't the one that is compiled for, as there is none that could be asked."""
    message = f"--target {kind}: {reason}; compiling for {instead}, and golden outputs are not computed"
    warnings.warn(message, UnknownDeviceWarning, stacklevel=3)


def refuse_threads(threads: int | None) -> None:
    """Raise UserError where a number of threads is asked for: one launches all kernels."""
    if threads is not None:
        raise UserError(f"--threads {threads}: a GPU's kernels are launched by one thread; leave it out")
