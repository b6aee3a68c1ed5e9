"""How two partial results of a reduction become one: the reduction's own update, read as a function of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm_ffi
from tvm import ir, tirx

from greencc.targets.gpu.schedules.stages import Stage
from greencc.targets.tir import children, rewrite, uses_var


def elements_of(stage: Stage) -> list[tirx.Expr] | None:
    """What a reduction combines with its accumulators, one per store; None where that can't be told.

    In `acc = max(acc, x[i, k])` it is `x[i, k]`. An accumulator's element is the largest expression of its type that
    depends on a reduced axis and on no accumulator; where several differ, the update is no function of two values.
    """
    found = []
    for store in stage.stores:
        candidates = [node for value in _updates(stage) for node in _free(stage, value, str(store.buffer.ty.dtype))]
        if not candidates or any(not same(candidates[0], other) for other in candidates[1:]):
            return None
        found.append(candidates[0])
    # Every part of an update must be an accumulator, an element or free of reduced axes: else it isn't this function.
    names = [tirx.Var(f"e{n}", element.ty) for n, element in enumerate(found)]
    for value in combined(stage, {}, names, found):
        if any(uses_var(value, axis) for axis in stage.reduced):
            return None
    return found


def combined(
    stage: Stage,
    accumulators: Mapping[tirx.Var, tirx.Expr],
    values: Sequence[tirx.Expr],
    elements: Sequence[tirx.Expr],
) -> list[tirx.Expr]:
    """The accumulators after `values` were combined with them, in place of `elements`."""

    def replaced(node: tirx.Expr) -> tirx.Expr | None:
        for element, value in zip(elements, values, strict=True):
            if same(node, element):
                return value
        if isinstance(node, ir.TensorLoad):
            return next((value for buffer, value in accumulators.items() if buffer.same_as(node.source)), None)
        return None

    return [rewrite(store.value, replaced) for store in stage.stores]


def updated(stage: Stage, accumulators: Mapping[tirx.Var, tirx.Expr]) -> list[tirx.Expr]:
    """What a reduction stores at one point, its accumulators given."""
    return combined(stage, accumulators, (), ())


def same(a: tirx.Expr, b: tirx.Expr) -> bool:
    """Whether two expressions are the same in the same variables."""
    return bool(tvm_ffi.structural_equal(a, b)) if type(a) is type(b) else False


def _updates(stage: Stage) -> list[tirx.Expr]:
    return [store.value for store in stage.stores]


def _free(stage: Stage, value: tirx.Expr, dtype: str) -> list[tirx.Expr]:
    """The largest expressions of a type in `value` that use a reduced axis and no accumulator."""
    if not any(uses_var(value, axis) for axis in stage.reduced):
        return []
    if str(value.ty.dtype) == dtype and not _reads_accumulator(stage, value):
        return [value]
    if not _reads_accumulator(stage, value) and str(value.ty.dtype) != dtype and value.ty.dtype != "bool":
        return []  # another accumulator's element
    return [node for child in children(value) for node in _free(stage, child, dtype)]


def _reads_accumulator(stage: Stage, value: tirx.Expr) -> bool:
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, ir.TensorLoad) and any(node.source.same_as(buffer) for buffer in stage.writes):
            return True
        stack.extend(children(node))
    return False
