"""Operators -> PrimFuncs for the CPU: its own kernels, and what all targets lower alike."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax, tirx

from greencc.kernels import KERNEL, kernel_name, kernel_options
from greencc.kernels import legalize as legalize_kernel
from greencc.ops import (
    ATTENTION,
    INTEGER_CONV2D,
    INTEGER_MATMUL,
    PACKED_ATTENTION,
    QUANTIZED_CONV2D,
    QUANTIZED_MATMUL,
    AttentionAttrs,
)
from greencc.targets.cpu.legalize_int8 import CpuInt8Lowering, with_quantizing_norms
from greencc.targets.cpu.schedules.attention import attention_kernel, packed_attention_kernel
from greencc.targets.cpu.schedules.pooling import find_max_pool, max_pool_kernel
from greencc.targets.cpu.target import CpuTarget, host_target
from greencc.targets.emitted import EmittedKernels
from greencc.targets.lowerings import Lowering, common_lowerings
from greencc.targets.tir import as_int


def legalize(module: tvm.IRModule, target: CpuTarget | None = None) -> tvm.IRModule:
    """Lower every operator of `module` to calls of PrimFuncs."""
    chosen = target if target is not None else host_target()
    kernels = EmittedKernels()
    int8 = CpuInt8Lowering(chosen, kernels)
    table: dict[str, Lowering] = {
        **common_lowerings(),
        KERNEL: lambda builder, call: _kernel(builder, call, chosen, kernels),
        INTEGER_CONV2D: int8.integer_conv2d,
        INTEGER_MATMUL: int8.integer_matmul,
        QUANTIZED_CONV2D: int8.quantized_conv2d,
        QUANTIZED_MATMUL: int8.quantized_matmul,
        ATTENTION: lambda builder, call: _attention(builder, call, chosen, kernels, attention_kernel),
        PACKED_ATTENTION: lambda builder, call: _attention(builder, call, chosen, kernels, packed_attention_kernel),
    }
    return relax.transform.LegalizeOps(table)(with_quantizing_norms(module, chosen))


def _kernel(builder: relax.BlockBuilder, call: relax.Call, target: CpuTarget, kernels: EmittedKernels) -> relax.Expr:
    """A kernel call: an emitted kernel where there is one, else its tensor expression."""
    if kernel_name(call) == "pool" and isinstance(call.ty, relax.TensorType):
        options = kernel_options(call)
        found = find_max_pool(
            call.args[0].ty,
            [as_int(size) for size in call.args[-1].ty.values],
            **{name: options[name] for name in ("kind", "kernel", "strides", "dilations")},
        )
        if found is not None:
            gv = kernels.add(builder, "max_pool", max_pool_kernel, call.args[0].ty, found, target)
            return relax.call_tir(gv, [call.args[0]], call.ty)
    return legalize_kernel(builder, call)


def _attention(
    builder: relax.BlockBuilder,
    call: relax.Call,
    target: CpuTarget,
    kernels: EmittedKernels,
    emit: Callable[..., tirx.PrimFunc],
) -> relax.Expr:
    types = [arg.ty for arg in call.args]
    gv = kernels.add(builder, "attention", emit, AttentionAttrs.of(call), types, call.ty, target)
    return relax.call_tir(gv, list(call.args), call.ty)
