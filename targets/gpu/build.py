"""Code for a GPU: a library for the host that launches kernels, and the kernels apart from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import tvm
from tvm import tirx
from tvm.tirx.build import split_host_device_mods

from greencc.errors import GreenccError
from greencc.runtime.features import machine
from greencc.targets.base import Code
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.sizes import check_sizes
from greencc.targets.library import build_library
from greencc.targets.packed_api import register_pipeline

KernelCompiler = Callable[[tvm.IRModule], Mapping[str, bytes]]
"""Makes an artifact's kernels of a module of lowered device functions."""


def build(
    module: tvm.IRModule, target: GpuTarget, compile_kernels: KernelCompiler, of_device: Collection[str] = ()
) -> Code:
    """Code of a module of scheduled PrimFuncs and a lowered `main`, which may call functions `of_device`.

    Raises:
        GreenccError: a kernel can't be compiled, or the code would call what an artifact's runtime does not have.
        UserError: there is no linker for the host, or a tensor is larger than what a kernel can be given.
    """
    check_sizes(module, target)
    taken = _DeviceFunctions()
    pipeline = register_pipeline(f"greencc-{target.kind}", target.alignment, taken.take)
    library = build_library(module, target.tvm_target(), pipeline, f"{machine()}-linux-gnu", of_device)
    return Code(library, compile_kernels(taken.module))


def host_description() -> dict[str, object]:
    """The machine that launches kernels, for TVM: any processor of this machine's architecture will do."""
    return {"kind": "llvm", "mtriple": f"{machine()}-linux-gnu"}


class _DeviceFunctions:
    """Takes the functions of the device out of a lowered module, so that the library holds those of the host alone."""

    def __init__(self) -> None:
        self.module = tvm.IRModule()

    def take(self, module: tvm.IRModule) -> tvm.IRModule:
        host, devices = split_host_device_mods(module)
        _, _, finalize = tirx.get_tir_pipeline("s_tir")
        for functions in devices.values():
            for gv, function in finalize()(functions).functions_items():
                if gv.name_hint in {known.name_hint for known in self.module.get_global_vars()}:
                    raise GreenccError(f"two kernels are called {gv.name_hint}")
                self.module.update_func(gv, function)
        return host
