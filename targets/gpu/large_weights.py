"""Products with a weight that is larger than what a kernel can be given: as many products as it takes.

    matmul(x, w)  ->  concat([matmul(x, w[:, :n]), matmul(x, w[:, n:2n]), ...], axis=-1)

Vulkan's storage buffers have a limit (maxStorageBufferRange), on many devices 128 MiB. A table that rows are taken of
is split by rows, and the one that holds a row is chosen for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import ir, relax

from greencc.ir import constant, constant_array, dtype_of
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.lowerings import Lowering

# Columns or rows that a part has a multiple of: what schedules pack side by side, as much as there is room for.
_GROUPS = (256, 64, 16, 4, 1)


def split_matmul(target: GpuTarget) -> Lowering:
    """A lowering of `relax.matmul` that splits large constants by columns."""

    def lower(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        weight = constant_array(call.args[1])
        parts = 1 if weight is None or weight.ndim != 2 else _parts(weight, target)
        if weight is None or parts == 1:
            return _usual(call)(builder, call)
        width = _part(weight.shape[1], weight.nbytes // weight.shape[1], target)
        made = []
        for start in range(0, weight.shape[1], width):
            part = constant(np.ascontiguousarray(weight[:, start : start + width]))
            one = builder.normalize(relax.op.matmul(call.args[0], part, out_dtype=str(dtype_of(call.ty))))
            made.append(builder.emit(_usual(one)(builder, one)))
        joined = builder.normalize(relax.op.concat(made, axis=-1))
        return _usual(joined)(builder, joined)

    return lower


def split_take(target: GpuTarget) -> Lowering:
    """A lowering of `relax.take` that splits large constants by rows."""

    def lower(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        table = constant_array(call.args[0])
        parts = 1 if table is None or int(call.attrs.axis or 0) != 0 else _parts(table, target)
        if table is None or parts == 1:
            return _usual(call)(builder, call)
        height = _part(table.shape[0], table.nbytes // table.shape[0], target)
        indices, kind = call.args[1], str(dtype_of(call.args[1].ty))
        trailing = list(range(-(table.ndim - 1), 0))
        result: relax.Expr | None = None

        def emit(expr: relax.Expr) -> relax.Var:
            value = builder.normalize(expr)
            return builder.emit(_usual(value)(builder, value))

        if str(call.attrs.mode) == "wrap":
            indices = emit(relax.op.floor_mod(indices, relax.const(table.shape[0], kind)))
        for start in range(0, table.shape[0], height):
            part = constant(np.ascontiguousarray(table[start : start + height]))
            place = emit(relax.op.subtract(indices, relax.const(start, kind)))
            rows = emit(relax.op.take(part, place, axis=0, mode="clip"))
            if result is None:
                result = rows
                continue
            chosen = emit(relax.op.less(indices, relax.const(start, kind)))
            spread = emit(relax.op.expand_dims(chosen, trailing)) if trailing else chosen
            result = emit(relax.op.where(spread, result, rows))
        return result

    return lower


def _parts(weight: np.ndarray, target: GpuTarget) -> int:
    return math.ceil(weight.nbytes / target.gpu.max_buffer_bytes)


def _part(count: int, each: int, target: GpuTarget) -> int:
    """How many of `count` columns or rows of `each` bytes a part has; whole groups of what schedules pack."""
    most = max(1, target.gpu.max_buffer_bytes // each)
    group = next(size for size in _GROUPS if size <= most)
    return min(count, most // group * group)


def _usual(call: relax.Call) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    """Relax's own lowering."""
    lowering: Callable[[relax.BlockBuilder, relax.Call], relax.Expr] = ir.Op.get(call.op.name).get_attr("FLegalize")
    return lowering
