"""Tensors that a device's kernels can't be given are refused when a model is compiled, with the number."""

from __future__ import annotations

import tvm
from tvm import relax, sym, tirx

from greencc.errors import UserError
from greencc.ir import bindings_of, dim_text, dtype_of, is_call, relax_functions, shape_of
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.memory import bounded_analyzer

_ALLOCATIONS = ("relax.builtin.alloc_tensor", "relax.memory.alloc_tensor")


def check_sizes(module: tvm.IRModule, target: GpuTarget) -> None:
    """Raise UserError where a tensor that kernels get may have more bytes than they can be given.

    Args:
        module: placed: every tensor that lies in memory is a parameter or allocated.
        target: the device.

    Of sizes without an upper bound nothing is known.
    """
    most = target.gpu.max_buffer_bytes
    for _, function in relax_functions(module):
        analyzer = bounded_analyzer(function)
        for var in _tensors(function):
            size = _most_bytes(var.ty, analyzer)
            if size is not None and size > most:
                dims = ", ".join(map(dim_text, shape_of(var.ty) or []))
                raise UserError(
                    f"--target {target.kind}: a tensor [{dims}] has up to {size} bytes, and a kernel can be given at "
                    f"most {most}: use smaller shapes (--shape), or lower bounds (--dynamic)"
                )


def is_unbounded(module: tvm.IRModule) -> bool:
    """Whether kernels may get a tensor of which `check_sizes` knows nothing, as nothing bounds its size."""
    return any(
        isinstance(var.ty, relax.TensorType) and _most_bytes(var.ty, bounded_analyzer(function)) is None
        for _, function in relax_functions(module)
        for var in _tensors(function)
    )


def _tensors(function: relax.Function) -> list[relax.Var]:
    """What lies in memory: parameters, and what is allocated."""
    return [*function.params, *(binding.var for binding in bindings_of(function) if _allocates(binding.value))]


def _allocates(value: relax.Expr) -> bool:
    return any(is_call(value, name) for name in _ALLOCATIONS)


def _most_bytes(ty: relax.Type, analyzer: sym.Analyzer) -> int | None:
    shape = shape_of(ty) if isinstance(ty, relax.TensorType) else None
    dtype = dtype_of(ty) if shape is not None else None
    if shape is None or dtype is None:
        return None
    total: tirx.Expr = tirx.IntImm("int64", (int(tvm.DataType(str(dtype)).bits) + 7) // 8)
    for dim in shape:
        total = total * dim
    bound = int(analyzer.const_int_bound(total).max_value)
    return bound if bound < 1 << 60 else None
