"""A CUDA GPU as a target: its architecture, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm

from greencc.errors import GreenccError, UserError
from greencc.runtime import cuda
from greencc.targets.base import Code, Rule
from greencc.targets.cuda.architectures import DEFAULT, capabilities_of, capability_of, nearest
from greencc.targets.gpu.build import build, host_description
from greencc.targets.gpu.capabilities import Capabilities, refuse_threads, warn_unknown


@dataclass(frozen=True)
class CudaTarget:
    """An NVIDIA GPU to compile for.

    Attributes:
        arch: CUDA's name of the architecture: sm_80.
        device: the number of the GPU of this machine that it is; None for one that is described.

    Raises:
        UserError: the architecture is unknown.
    """

    arch: str = DEFAULT
    device: int | None = None

    def __post_init__(self) -> None:
        capability_of(self.arch)

    @property
    def kind(self) -> str:
        """Name in the registry."""
        return "cuda"

    @property
    def threads(self) -> int:
        """The one that launches."""
        return 1

    @property
    def gpu(self) -> Capabilities:
        """What the device can do."""
        return capabilities_of(self.arch)

    @property
    def runs_here(self) -> bool:
        """Whether a GPU of this machine runs this architecture's code."""
        return self.device is not None or _fitting(self) is not None

    @property
    def place(self) -> str:
        """The GPU of this machine that runs its code."""
        return f"{self.kind}:{_fitting(self) or 0 if self.device is None else self.device}"

    @property
    def alignment(self) -> int:
        """What CUDA's own allocations begin at multiples of."""
        return self.gpu.alignment

    def tvm_target(self) -> tvm.target.Target:
        """The same target for TVM."""
        gpu = self.gpu
        description = {
            "kind": self.kind,
            "arch": self.arch,
            "max_num_threads": gpu.max_threads,
            "max_threads_per_block": gpu.max_threads,
            "max_shared_memory_per_block": gpu.shared_bytes,
            "thread_warp_size": gpu.subgroup,
        }
        return tvm.target.Target(description, host=host_description())

    def describe(self) -> dict[str, object]:
        """What the manifest records."""
        triple = str(host_description()["mtriple"])
        return {"kind": self.kind, "triple": triple, "threads": self.threads, "arch": self.arch}

    def legalize(self, module: tvm.IRModule) -> tvm.IRModule:
        """Lower every operator to PrimFuncs."""
        from greencc.targets.gpu.legalize import legalize

        return legalize(module, self)

    def rules(self) -> Sequence[Rule]:
        """Schedule rules, in order; the first that applies wins."""
        from greencc.targets.gpu.schedules import rules

        return rules(self)

    def build(self, module: tvm.IRModule) -> Code:
        """A library that launches kernels, and the kernels in machine code and PTX."""
        from greencc.targets.cuda.compile import compile_kernels
        from greencc.targets.cuda.graphs import FUNCTIONS, capture_launches

        module = capture_launches(module)
        return build(module, self, lambda kernels: compile_kernels(kernels, self.arch), FUNCTIONS)


def local_target(device: str, threads: int | None) -> CudaTarget:
    """A GPU of this machine, by its number, or an architecture by its name; sm_80 where there is neither.

    Raises:
        UserError: there is no GPU of that number, none of its kind is known, or the architecture is unknown.
    """
    refuse_threads(threads)
    if device and not device.isdecimal():
        return CudaTarget(device)
    reason = "this machine has no NVIDIA GPU"
    try:
        found = cuda.devices()
    except GreenccError as error:
        if device:
            raise
        found, reason = [], str(error)
    if not device and not found:
        warn_unknown("cuda", reason, DEFAULT)
        return CudaTarget()
    index = int(device or 0)
    if index >= len(found):
        raise UserError(f"--target cuda:{device}: this machine has {len(found)} CUDA devices, counted from 0")
    return CudaTarget(nearest(found[index]["capability"]), index)


def described_target(fields: Mapping[str, Any], where: str, threads: int | None) -> CudaTarget:
    """The target that a JSON object describes: {"kind": "cuda", "arch": "sm_90"}.

    Raises:
        UserError: no architecture, or an unknown one.
    """
    refuse_threads(threads)
    unknown = sorted(fields.keys() - {"kind", "arch"})
    if unknown:
        raise UserError(f"{where}: unknown field {unknown[0]!r}; known: kind, arch")
    arch = fields.get("arch")
    if not isinstance(arch, str):
        raise UserError(f'{where}: a cuda target needs the text field "arch", as in "sm_80"')
    return CudaTarget(arch)


def _fitting(target: CudaTarget) -> int | None:
    """The first GPU of this machine that runs a target's code."""
    try:
        found = cuda.devices()
    except GreenccError:
        return None
    return next((d["index"] for d in found if cuda.refusal(d, target.describe()) is None), None)
