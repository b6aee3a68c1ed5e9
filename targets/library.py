"""Machine code of a module: lowered Relax and scheduled TIR -> one shared library that the runtime loads."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.support import cc

from greencc.errors import UserError
from greencc.targets.runtime_functions import check_runtime_functions


def build_library(
    module: tvm.IRModule,
    target: tvm.target.Target,
    tir_pipeline: str,
    triple: str,
    of_device: Collection[str] = (),
) -> bytes:
    """The module as a shared library whose entry is `vm_load_executable`.

    Args:
        module: scheduled PrimFuncs and lowered Relax functions.
        target: for TVM; of a GPU, with its host.
        tir_pipeline: name of a registered pipeline for PrimFuncs.
        triple: LLVM triple of the machine that the library is linked for.
        of_device: functions that the runtime of a GPU has besides.

    Raises:
        GreenccError: the code would call what the runtime of an artifact does not have.
        UserError: there is no linker for that kind of machine.
    """
    linker = find_linker(triple)
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
            tvm.ir.transform.module_pass(_order_shape_functions, opt_level=0),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    executable = tvm.relax.build(module, target, relax_pipeline=pipeline, tir_pipeline=tir_pipeline)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "code.so"
        executable.export_library(str(library), cc=linker)
        code = library.read_bytes()
    names = [gv.name_hint for gv in module.get_global_vars()]
    check_runtime_functions(executable, code, names, of_device)
    return code


def find_linker(triple: str) -> str:
    """The C++ compiler that links for `triple`: this machine's own, or a cross compiler named after the triple.

    Raises:
        UserError: it is not installed.
    """
    architecture = triple.partition("-")[0]
    if architecture == platform.machine():
        return str(cc.get_cc())
    found = shutil.which(f"{triple}-g++") or shutil.which(f"{triple}-gcc")
    if found is None:
        package = f"g++-{triple.replace('_', '-')}"
        raise UserError(f"--target: code for {triple} is linked by {triple}-g++; install it (Debian: {package})")
    return found


def _order_shape_functions(module: tvm.IRModule, _context: tvm.ir.transform.PassContext) -> tvm.IRModule:
    """Put the statements of shape functions in the order of the slots that they write.

    VMShapeLower iterates a hash table of addresses, so that their order differs from run to run, and with it the
    machine code. A statement reads only slots that are written before the function is called.
    """
    result = module.clone()
    for gv, func in module.functions_items():
        if gv.name_hint.startswith("shape_func") and isinstance(func.body, tirx.SeqStmt):
            stores = list(func.body.seq)
            if all(isinstance(store, tirx.BufferStore) for store in stores):
                stores.sort(key=lambda store: int(store.indices[0]))
                result.update_func(gv, func.with_body(tirx.SeqStmt(stores)))
    return result
