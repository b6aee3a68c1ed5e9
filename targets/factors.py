"""What a product multiplies: two tensors, or one with levels in groups (see `greencc.ops.grouped_matmul`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import ir, s_tir, tirx

from greencc.targets.cost import BITS_ATTR
from greencc.targets.lowerings import GROUP_ATTR
from greencc.targets.tir import loads


@dataclass(frozen=True)
class GroupScheme:
    """What levels are worth: buffers of scales and offsets, bits of a level, levels of a group."""

    scale: tirx.Var
    offset: tirx.Var | None
    bits: int
    group: int


def grouped_factors(
    block: s_tir.SBlock, store: tirx.BufferStore
) -> tuple[ir.TensorLoad, ir.TensorLoad, GroupScheme] | None:
    """The loads of A and of levels, and what those are worth, in a block that says it has levels in groups."""
    if GROUP_ATTR not in block.annotations:
        return None
    left, right = store.value.b.a, list(loads(store.value.b.b))
    levels = next(load for load in right if str(load.ty.dtype) == "int8")
    # The offset is what is added; of a sum the last operand is walked first.
    *offset, scale = [load.source for load in right if load is not levels]
    group, bits = (int(block.annotations[name]) for name in (GROUP_ATTR, BITS_ATTR))
    return left, levels, GroupScheme(scale, offset[0] if offset else None, bits, group)


def plain_factors(
    store: tirx.BufferStore, unwidened: Callable[[tirx.Expr], tirx.Expr]
) -> tuple[ir.TensorLoad, ir.TensorLoad] | None:
    """The two loads of `C[x] = C[x] + A[y] * B[z]`; `unwidened` gives what a factor is before it is widened."""
    value = store.value
    if not isinstance(value, tirx.Add) or not isinstance(value.b, tirx.Mul):
        return None
    if not isinstance(value.a, ir.TensorLoad) or not value.a.source.same_as(store.buffer):
        return None
    left, right = unwidened(value.b.a), unwidened(value.b.b)
    if isinstance(left, ir.TensorLoad) and isinstance(right, ir.TensorLoad):
        return left, right
    return None
