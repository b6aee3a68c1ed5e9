"""Machine code for the CPU: lowered Relax and scheduled TIR -> one shared library."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm import relax

from greencc.targets.cpu.intrinsics.math import register_math

if TYPE_CHECKING:
    from greencc.targets.cpu.target import CpuTarget


def build(module: tvm.IRModule, target: CpuTarget) -> bytes:
    """The module as a shared library whose entry is `vm_load_executable`."""
    register_math()
    pipeline = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    executable = tvm.relax.build(module, target.llvm_target(), relax_pipeline=pipeline)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "code.so"
        executable.export_library(str(library))
        return library.read_bytes()
