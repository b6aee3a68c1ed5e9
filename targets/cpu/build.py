"""Machine code for the CPU: lowered Relax and scheduled TIR -> one shared library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm

from greencc.targets.base import Code
from greencc.targets.cpu.intrinsics.math import register_math
from greencc.targets.library import build_library
from greencc.targets.packed_api import register_pipeline

if TYPE_CHECKING:
    from greencc.targets.cpu.target import CpuTarget


def build(module: tvm.IRModule, target: CpuTarget) -> Code:
    """The module as a shared library whose entry is `vm_load_executable`. Raises as `build_library`."""
    register_math()
    pipeline = register_pipeline("greencc-cpu", target.alignment)
    return Code(build_library(module, target.llvm_target(), pipeline, target.triple))
