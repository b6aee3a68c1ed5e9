"""Reads a fused PrimFunc as stages over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import ir, s_tir, sym, tirx

from greencc.targets.cpu.schedules.elementwise import vectorizes
from greencc.targets.kernel import (
    InlineError,
    blocks,
    dtype,
    indexed_by,
    inline_blocks,
    is_const_zero,
    is_reduction,
    is_written_in_order,
    parameter_index,
)
from greencc.targets.tir import as_int, children, loads, uses_var, volume

Combine = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]

# Elements of a row of a map, from which on what its end costs doesn't count.
ENOUGH = 512

_COMBINERS: dict[type, Combine] = {tirx.Add: lambda a, b: a + b, tirx.Max: tirx.max}


@dataclass(frozen=True)
class Reduction:
    """How a row's values become one.

    Attributes:
        combine: of two values.
        start: what there is before the first value; combined with a value it gives that one, or it comes out of all.
    """

    combine: Combine
    start: tirx.Expr


@dataclass(frozen=True)
class Stage:
    """One block: a value for each row, or for each place of a row.

    Attributes:
        buffer, indices: what is written, and where.
        value: what; of a reduction, for each place that is reduced.
        rows: the variables of the rows' axes.
        units: variables that are always 0.
        inner, extents: the variables of a row's places, and their sizes; nothing where a row has one value.
        reduction: how places become one value, None where each has its own.
    """

    buffer: tirx.Var
    indices: tuple[tirx.Expr, ...]
    value: tirx.Expr
    rows: tuple[tirx.Var, ...]
    units: tuple[tirx.Var, ...]
    inner: tuple[tirx.Var, ...]
    extents: tuple[tirx.Expr, ...]
    reduction: Reduction | None

    def reads(self, buffer: tirx.Var) -> bool:
        """Whether its value depends on `buffer`."""
        return any(load.source.same_as(buffer) for load in loads(self.value))

    def reads_only_here(self, buffer: tirx.Var) -> bool:
        """Whether it reads `buffer` at the row and the place that it computes, and nowhere else."""
        wanted = [*self.rows, *self.inner]
        for load in loads(self.value):
            if load.source.same_as(buffer):
                index = open_indices(load.source, load.indices)
                if len(index) != len(wanted) or not all(i.same_as(var) for i, var in zip(index, wanted, strict=True)):
                    return False
        return True

    @property
    def is_run(self) -> bool:
        """Whether what it reads and writes along a row lies side by side, so that one number counts its places."""
        if len(self.inner) < 2:
            return True
        accesses = [(load.source, list(load.indices)) for load in loads(self.value)]
        if self.reduction is None:
            accesses.append((self.buffer, list(self.indices)))
        used = sum(any(uses_var(index, var) for var in self.inner) for _, at in accesses for index in at)
        runs = [at for buffer, at in accesses if _is_run(buffer, at, self.inner, self.extents)]
        # Each variable is counted once for every run, so no other access has one; nor is one used outside of accesses.
        return used == len(runs) * len(self.inner) and not _used_outside_of_loads(self.value, self.inner)


@dataclass(frozen=True)
class Rows:
    """A kernel whose stages all go row by row.

    Attributes:
        stages: in order; the last one writes the result.
        extents: sizes of the rows' axes.
    """

    stages: tuple[Stage, ...]
    extents: tuple[tirx.Expr, ...]

    def passes(self) -> list[list[Stage]]:
        """The stages, grouped by the pass that they share; one that makes a single value of a row has its own."""
        found: list[list[Stage]] = []
        for stage in self.stages:
            joins = bool(found) and bool(stage.inner) and same_extents(stage.extents, found[-1][0].extents)
            if joins and not any(stage.reads(other.buffer) for other in found[-1] if other.reduction):
                found[-1].append(stage)
            else:
                found.append([stage])
        return found


def match_rows(func: tirx.PrimFunc) -> Rows | str:
    """The rows that a kernel goes through, or why it doesn't.

    Sums say what a row is. Without any, as many of the last axes make one as its vectors need, if they can.
    """
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    # TVM's norms copy what they read to the type that they compute in, even where it is the same.
    copies = [block for block in blocks(schedule) if _is_copy(func, schedule.get(block))]
    try:
        inline_blocks(schedule, copies)
    except InlineError as error:
        return str(error)
    nodes = [schedule.get(block) for block in blocks(schedule)]
    reducing = next((node for node in nodes if is_reduction(node)), None)
    if reducing is not None:
        return _read(func, nodes, _open_extents(reducing))
    extents = _open_extents(nodes[-1])
    found: Rows | str = "a single value"
    for count in range(len(extents) - 1, -1 if len(extents) == 1 else 0, -1):
        longer = _read(func, nodes, extents[:count])
        if isinstance(longer, str):
            return longer if isinstance(found, str) else found
        found = longer
        if (as_int(volume(list(extents[count:]))) or ENOUGH) >= ENOUGH:
            break
    return found


def _is_copy(func: tirx.PrimFunc, node: s_tir.SBlock) -> bool:
    """Whether a block stores what it reads at the same place, and not as a result."""
    store, axes = node.body, [axis.var for axis in node.iter_vars]
    return (
        isinstance(store, tirx.BufferStore)
        and parameter_index(func, store.buffer) is None
        and is_written_in_order(node)
        and isinstance(store.value, ir.TensorLoad)
        and indexed_by(store.value, axes)
        and dtype(store.value.source) == dtype(store.buffer)
    )


def _open_extents(node: s_tir.SBlock) -> tuple[tirx.Expr, ...]:
    """Sizes of the axes that a block keeps, those of one place left out."""
    kept = (axis.dom.extent for axis in node.iter_vars if int(axis.iter_type) == 0)
    return tuple(extent for extent in kept if as_int(extent) != 1)


def _read(func: tirx.PrimFunc, nodes: Sequence[s_tir.SBlock], extents: tuple[tirx.Expr, ...]) -> Rows | str:
    """The stages of blocks, the rows being those of so many axes."""
    stages = []
    for node in nodes:
        stage = _stage(node, extents)
        if isinstance(stage, str):
            return stage
        stages.append(stage)
    for i, stage in enumerate(stages):
        reason = _unreadable(stage, stages[:i]) if stage.is_run else "a row's places don't lie side by side"
        if reason is not None:
            return reason
    if [parameter_index(func, stage.buffer) is not None for stage in stages] != [False] * (len(stages) - 1) + [True]:
        return "it has several results"
    return Rows(tuple(stages), extents)


def _stage(node: s_tir.SBlock, row_extents: tuple[tirx.Expr, ...]) -> Stage | str:
    store = node.body
    if not isinstance(store, tirx.BufferStore) or str(store.buffer.ty.dtype) != "float32":
        return "a block is no plain store of float32"
    kinds = [int(axis.iter_type) for axis in node.iter_vars]
    kept = [axis for axis in node.iter_vars if int(axis.iter_type) == 0]
    if kinds != sorted(kinds) or not all(i.same_as(a.var) for i, a in zip(store.indices, kept, strict=False)):
        return "a block isn't written in the order of its axes"
    if len(store.indices) != len(kept):
        return "a block has an axis that it isn't written along"
    open_axes = [axis for axis in kept if as_int(axis.dom.extent) != 1]
    rows, more = open_axes[: len(row_extents)], open_axes[len(row_extents) :]
    if not same_extents([axis.dom.extent for axis in rows], row_extents):
        return "blocks go over different rows"
    reduction, value, inner = None, store.value, more
    if is_reduction(node):
        reduced = [axis for axis in node.iter_vars if int(axis.iter_type) != 0]
        combine = _COMBINERS.get(type(value))
        if combine is None or more or node.init is None:
            return "a reduction is no sum or maximum of rows"
        if isinstance(value, tirx.Add) and not is_const_zero(node.init.value):
            return "a sum begins with another number than 0"
        if not isinstance(value.a, ir.TensorLoad) or not value.a.source.same_as(store.buffer):
            return "a reduction is no sum or maximum of rows"
        reduction, value = Reduction(combine, node.init.value), value.b
        inner = [axis for axis in reduced if as_int(axis.dom.extent) != 1] or reduced[-1:]
        open_axes += inner
    if inner and not vectorizes(tirx.BufferStore(store.buffer, value, list(store.indices)), inner[-1].var):
        return "a block can't be vectorised"
    units = tuple(axis.var for axis in node.iter_vars if not any(axis.var.same_as(other.var) for other in open_axes))
    return Stage(
        store.buffer, tuple(store.indices), value, tuple(axis.var for axis in rows), units,
        tuple(axis.var for axis in inner), tuple(axis.dom.extent for axis in inner), reduction,
    )  # fmt: skip


def _unreadable(stage: Stage, before: Sequence[Stage]) -> str | None:
    """Why what a stage reads can't be read in a pass over its row, or None."""
    for load in loads(stage.value):
        index = open_indices(load.source, load.indices)
        made = next((other for other in before if other.buffer.same_as(load.source)), None)
        if made is not None:
            wanted = [*stage.rows, *([] if made.reduction else stage.inner[: len(made.inner)])]
            if len(index) != len(wanted) or not all(i.same_as(var) for i, var in zip(index, wanted, strict=True)):
                return "a block reads another place than its own"
            if made.inner and not made.reduction and not same_extents(made.extents, stage.extents):
                return "a block reads another place than its own"
        elif stage.inner and any(uses_var(i, stage.inner[-1]) for i in index[:-1]):
            return "a block reads across rows"
    return None


def open_indices(buffer: tirx.Var, indices: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """The indices of the axes of a buffer that have more than one place."""
    return [index for index, dim in zip(indices, buffer.ty.shape, strict=True) if as_int(dim) != 1]


def same_extents(a: Sequence[tirx.Expr], b: Sequence[tirx.Expr]) -> bool:
    """Whether sizes are equal, one by one."""
    analyzer = sym.Analyzer()
    return len(a) == len(b) and all(bool(analyzer.can_prove_equal(x, y)) for x, y in zip(a, b, strict=True))


def _is_run(
    buffer: tirx.Var, indices: Sequence[tirx.Expr], inner: tuple[tirx.Var, ...], extents: tuple[tirx.Expr, ...]
) -> bool:
    """Whether an access ends in all the variables of a row's places, in order and in full."""
    dims = list(buffer.ty.shape)
    pairs = [(i, dim) for i, dim in zip(indices, dims, strict=True) if as_int(dim) != 1][-len(inner) :]
    in_order = len(pairs) == len(inner) and all(i.same_as(var) for (i, _), var in zip(pairs, inner, strict=True))
    return in_order and same_extents([dim for _, dim in pairs], extents)


def _used_outside_of_loads(expr: tirx.Expr, variables: tuple[tirx.Var, ...]) -> bool:
    if isinstance(expr, ir.TensorLoad):
        return False
    if isinstance(expr, tirx.Var):
        return any(expr.same_as(var) for var in variables)
    return any(_used_outside_of_loads(child, variables) for child in children(expr))
