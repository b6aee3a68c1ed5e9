"""Operators -> PrimFuncs for GPUs: their own kernels, and what all targets lower alike."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax, tirx

from greencc.ops import (
    ATTENTION,
    INTEGER_CONV2D,
    INTEGER_MATMUL,
    PACKED_ATTENTION,
    QUANTIZED_CONV2D,
    QUANTIZED_MATMUL,
    AttentionAttrs,
)
from greencc.targets.emitted import EmittedKernels
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.int8 import GpuInt8Lowering, with_quantizing_norms
from greencc.targets.gpu.kernels import kernel_lowerings
from greencc.targets.gpu.large_weights import split_matmul, split_take
from greencc.targets.gpu.schedules.attention import attention_kernel, packed_attention_kernel
from greencc.targets.lowerings import Lowering, common_lowerings


def legalize(module: tvm.IRModule, target: GpuTarget) -> tvm.IRModule:
    """Lower every operator of `module` to calls of PrimFuncs."""
    kernels = EmittedKernels()
    int8 = GpuInt8Lowering(target, kernels)
    table: dict[str, Lowering] = {
        **common_lowerings(),
        "relax.matmul": split_matmul(target),
        "relax.take": split_take(target),
        **kernel_lowerings(target, kernels),
        INTEGER_CONV2D: int8.integer_conv2d,
        INTEGER_MATMUL: int8.integer_matmul,
        QUANTIZED_CONV2D: int8.quantized_conv2d,
        QUANTIZED_MATMUL: int8.quantized_matmul,
        ATTENTION: lambda builder, call: _attention(builder, call, target, kernels, attention_kernel),
        PACKED_ATTENTION: lambda builder, call: _attention(builder, call, target, kernels, packed_attention_kernel),
    }
    return relax.transform.LegalizeOps(table)(with_quantizing_norms(module, target))


def _attention(
    builder: relax.BlockBuilder,
    call: relax.Call,
    target: GpuTarget,
    kernels: EmittedKernels,
    emit: Callable[..., tirx.PrimFunc],
) -> relax.Expr:
    types = [arg.ty for arg in call.args]
    gv = kernels.add(builder, "attention", emit, AttentionAttrs.of(call), types, call.ty, target)
    return relax.call_tir(gv, list(call.args), call.ty)
