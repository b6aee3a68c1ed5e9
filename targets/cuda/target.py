"""A CUDA GPU as a target: its architecture, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm

from greencc.errors import UserError
from greencc.runtime import cuda
from greencc.targets.base import Rule
from greencc.targets.cpu.target import host_target
from greencc.targets.cuda.architectures import DEFAULT, capabilities_of, capability_of, nearest, runs_on
from greencc.targets.gpu.capabilities import Capabilities


@dataclass(frozen=True)
class CudaTarget:
    """A GPU to compile for, and the processor that launches its kernels: this machine's.

    Attributes:
        arch: CUDA's name of the architecture: sm_80.

    Raises:
        UserError: the architecture is unknown.
    """

    arch: str = DEFAULT

    def __post_init__(self) -> None:
        capability_of(self.arch)

    @property
    def kind(self) -> str:
        """Name in the registry."""
        return "cuda"

    @property
    def threads(self) -> int:
        """Host threads of a run: the one that launches."""
        return 1

    @property
    def gpu(self) -> Capabilities:
        """What the device can do."""
        return capabilities_of(self.arch)

    @property
    def runs_here(self) -> bool:
        """Whether a driver and a GPU that runs this architecture's code are present."""
        return any(runs_on(self.arch, device["capability"]) for device in cuda.devices())

    def tvm_target(self) -> tvm.target.Target:
        """The same target for TVM, with a host."""
        gpu = self.gpu
        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.arch,
                "max_num_threads": gpu.max_threads,
                "max_threads_per_block": gpu.max_threads,
                "max_shared_memory_per_block": gpu.shared_bytes,
                "thread_warp_size": gpu.subgroup,
            },
            host=host_target(1).llvm_target(),
        )

    def describe(self) -> dict[str, object]:
        """What the manifest records; the runtime compares it with its host."""
        host = host_target(1)
        return {
            "kind": self.kind,
            "arch": self.arch,
            "triple": host.triple,
            "mcpu": host.cpu,
            "features": list(host.features),
            "threads": self.threads,
        }

    def legalize(self, module: tvm.IRModule) -> tvm.IRModule:
        """Lower every operator to PrimFuncs."""
        from greencc.targets.gpu.legalize import legalize

        return legalize(module, self)

    def rules(self) -> Sequence[Rule]:
        """Schedule rules, in order; the first that applies wins."""
        from greencc.targets.gpu.schedules import rules

        return rules(self)

    def build(self, module: tvm.IRModule) -> bytes:
        """Machine code as a shared library."""
        from greencc.targets.gpu.build import build

        return build(module, self)


def local_target(index: int = 0) -> CudaTarget:
    """The architecture of a GPU of this machine; sm_80 on one that has none, whose later models run its code too.

    Raises:
        UserError: the GPU is older than anything that greencc makes code for, or there is no GPU of this number.
    """
    found = cuda.devices()
    if not found:
        return CudaTarget()
    if index >= len(found):
        raise UserError(f"--target cuda:{index}: this machine has {len(found)} CUDA device(s)")
    return CudaTarget(nearest(found[index]["capability"]))


def described_target(description: Mapping[str, object]) -> CudaTarget:
    """The target of `CudaTarget.describe`, or of a JSON file {"kind": "cuda", "arch": "sm_90"}.

    Raises:
        UserError: no architecture, or an unknown one.
    """
    arch = description.get("arch")
    if not isinstance(arch, str):
        raise UserError('--target: a cuda target needs the text field "arch", as in "sm_80"')
    return CudaTarget(arch)
