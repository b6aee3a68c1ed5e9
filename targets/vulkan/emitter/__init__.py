"""Lowered TIR device functions to SPIR-V: GLSL, compiled by glslang, validated, optimised, cached by content."""

from __future__ import annotations

import json

import tvm
from tvm import tirx

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.vulkan.emitter.kernel import emit
from greencc.targets.vulkan.emitter.shader import Shader
from greencc.targets.vulkan.emitter.spirv import compile_all

__all__ = ["Shader", "compile_kernels", "emit"]

TABLE, CODE = "kernels.json", "kernels.spv"


def compile_kernels(module: tvm.IRModule, gpu: Capabilities, unbounded: bool = False) -> dict[str, bytes]:
    """The members of an artifact that hold its kernels: their table and their SPIR-V modules behind each other.

    `module` holds device functions as TVM's pipeline leaves them, split from the host's and finalised. The same module
    gives the same bytes. `unbounded` says that the model has sizes that nothing bounds: the runtime then refuses
    tensors that are larger than what a kernel can be given.

    Raises:
        UserError: glslang or the SPIR-V tools aren't installed.
        GreenccError: a kernel can't be emitted; the message names it and says what stands in the way.
    """
    functions = {gv.name_hint: func for gv, func in module.functions_items() if isinstance(func, tirx.PrimFunc)}
    shaders = {name: emit(name, functions[name], gpu) for name in sorted(functions)}
    modules = compile_all({name: shader.source for name, shader in shaders.items()})
    entries: dict[str, dict[str, object]] = {}
    places: dict[bytes, list[int]] = {}
    code = bytearray()
    for name, shader in shaders.items():
        spirv = modules[name]
        if spirv not in places:
            places[spirv] = [len(code), len(spirv)]
            code += spirv
        entries[name] = {**shader.entry(), "code": places[spirv]}
    whole: dict[str, object] = {"version": 1, "functions": entries, **({"unbounded": True} if unbounded else {})}
    table = json.dumps(whole, sort_keys=True, indent=1)
    return {TABLE: table.encode(), CODE: bytes(code)}
