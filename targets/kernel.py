"""Reading a fused PrimFunc: its blocks, and what is left when its elementwise tail is inlined into one block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import ir, s_tir, sym, tirx

from greencc.targets.tir import as_int, loads, rewrite, written_out

DATA_PARALLEL = 0
REDUCE = 2
# Nodes of a store into which others are inlined. In a chain of maps that read the one before twice, they double with
# every map.
MAX_NODES = 2000


class InlineError(Exception):
    """Blocks can't be inlined into those that read them, or shouldn't be; the text says why."""


@dataclass(frozen=True)
class Tail:
    """A producer block followed by one elementwise block that holds everything fused behind it.

    Attributes:
        schedule: the schedule in which the tail has been inlined.
        producer: the block in front (a reduction).
        value: what the last block stores, an expression over `axes` that may read the producer's buffer.
        axes: the last block's iteration variables, one per dimension of `output`.
        output: the buffer that is written.
        intermediate: the producer's buffer; the same as `output` when there is no tail.
    """

    producer: s_tir.SBlock
    value: tirx.Expr
    axes: tuple[tirx.Var, ...]
    output: tirx.Var
    intermediate: tirx.Var

    def value_at(
        self, produced: tirx.Expr, place: Sequence[tirx.Expr], buffers: Mapping[tirx.Var, tirx.Var]
    ) -> tirx.Expr:
        """What is stored at one place of the output.

        Args:
            produced: the producer's value there.
            place: an index for each axis.
            buffers: by the buffers that the tail reads, those to read in their stead.
        """
        values = dict(zip(self.axes, place, strict=True))

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad) and node.source.same_as(self.intermediate):
                return produced
            if isinstance(node, ir.TensorLoad) and node.source in buffers:
                return tirx.BufferLoad(buffers[node.source], [rewrite(index, replace) for index in node.indices])
            return values.get(node) if isinstance(node, tirx.Var) else None

        return rewrite(self.value, replace)


def blocks(schedule: s_tir.Schedule) -> list[s_tir.SBlockRV]:
    """The blocks directly under the root, in order."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def is_reduction(block: s_tir.SBlock) -> bool:
    """Whether a block reduces over some axis."""
    return any(int(axis.iter_type) == REDUCE for axis in block.iter_vars)


def inline_blocks(schedule: s_tir.Schedule, inlined: Sequence[s_tir.SBlockRV]) -> None:
    """Inline some blocks directly under the root into those that read them.

    Raises InlineError where TVM can't, and, before anything is changed, where a store would grow beyond MAX_NODES.
    """
    if not inlined:
        return
    gone = [schedule.get(rv) for rv in inlined]
    sizes: dict[tirx.Var, int] = {}
    for rv in blocks(schedule):
        block = schedule.get(rv)
        if isinstance(block.body, tirx.BufferStore):
            nodes = written_out([block.body.value, *block.body.indices], sizes)
            if nodes > MAX_NODES:
                raise InlineError("the expression would be too large")
            if any(block.same_as(other) for other in gone):
                sizes[block.body.buffer] = nodes
    try:
        for rv in inlined:
            schedule.compute_inline(rv)
    except s_tir.ScheduleError as error:
        raise InlineError("a block can't be inlined") from error


def inline_side_blocks(schedule: s_tir.Schedule) -> list[s_tir.SBlockRV]:
    """Inline the blocks before the first reduction that it doesn't read; returns the blocks that are left.

    They prepare something for what follows the reduction, such as the product of two scales.
    Raises InlineError where they can't be inlined.
    """
    found = blocks(schedule)
    first = next((i for i, rv in enumerate(found) if is_reduction(schedule.get(rv))), 0)
    needed = _sources(schedule.get(found[first]))
    aside = []
    for rv in reversed(found[:first]):
        block = schedule.get(rv)
        if isinstance(block.body, tirx.BufferStore) and any(block.body.buffer.same_as(read) for read in needed):
            needed += _sources(block)
        else:
            aside.append(rv)
    inline_blocks(schedule, aside)
    return blocks(schedule)


def _sources(block: s_tir.SBlock) -> list[tirx.Var]:
    body = block.body
    return [load.source for load in loads(body.value)] if isinstance(body, tirx.BufferStore) else []


def inline_tail(func: tirx.PrimFunc, skip: int = 0) -> Tail | str:
    """Inline everything behind the producer into the last block, or say why that isn't possible.

    The producer is the first block after the `skip` first ones, those aside that only its tail reads.
    """
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        all_blocks = inline_side_blocks(schedule)[skip:]
    except InlineError:
        return "what precedes the product can't be inlined"
    if any(is_reduction(schedule.get(rv)) for rv in all_blocks[1:]):
        return "a second reduction follows"
    try:
        inline_blocks(schedule, all_blocks[1:-1])
    except InlineError:
        return "what follows the product can't be inlined"
    producer = schedule.get(all_blocks[0])
    if not isinstance(producer.body, tirx.BufferStore):
        return "the first block writes several buffers"
    intermediate = producer.body.buffer
    if len(all_blocks) == 1:
        axes = tuple(axis.var for axis in producer.iter_vars if int(axis.iter_type) == DATA_PARALLEL)
        if len(axes) != len(shape(intermediate)):
            return "the output lacks an axis of the block"  # a result of rank 0 has a block with one
        return Tail(producer, tirx.BufferLoad(intermediate, list(axes)), axes, intermediate, intermediate)
    last = schedule.get(all_blocks[-1])
    if not isinstance(last.body, tirx.BufferStore):
        return "the last block is no plain store"
    if not is_written_in_order(last):
        return "the output isn't written in the order of its axes"
    axes = tuple(axis.var for axis in last.iter_vars)
    return Tail(producer, last.body.value, axes, last.body.buffer, intermediate)


def check_tail(tail: Tail) -> str | None:
    """Why the tail can't be computed tile by tile, or None: it must read the product at its own position."""
    if len(tail.intermediate.ty.shape) != len(tail.output.ty.shape):
        return "the tail changes the rank"
    analyzer = sym.Analyzer()
    for a, b in zip(tail.intermediate.ty.shape, tail.output.ty.shape, strict=True):
        if not analyzer.can_prove_equal(a, b):
            return "the tail changes the shape"
    for load in loads(tail.value):
        if load.source.same_as(tail.intermediate) and not indexed_by(load, list(tail.axes), allow_zero=True):
            return "the tail reads the product elsewhere"
    return None


def shape(buffer: tirx.Var) -> list[tirx.Expr]:
    """Dimensions of a buffer."""
    return list(buffer.ty.shape)


def dtype(buffer: tirx.Var) -> str:
    """Element type of a buffer."""
    return str(buffer.ty.dtype)


def parameter_index(func: tirx.PrimFunc, buffer: tirx.Var) -> int | None:
    """Position of a buffer among the parameters, or None for an intermediate."""
    return next((i for i, param in enumerate(func.params) if param.same_as(buffer)), None)


def is_const_zero(expr: tirx.Expr) -> bool:
    """Whether an expression is the constant 0."""
    return isinstance(expr, (tirx.IntImm, tirx.FloatImm)) and float(expr.value) == 0.0


def widened(factor: tirx.Expr) -> tirx.Expr:
    """What an integer factor is before it is widened to the type of the sum."""
    return factor.value if isinstance(factor, tirx.Cast) and str(factor.ty.dtype) == "int32" else factor


def overwritable(func: tirx.PrimFunc, output: tirx.Var, value: tirx.Expr, axes: Sequence[tirx.Var]) -> list[int]:
    """Parameters of the output's type that `value`, stored at `axes`, reads nowhere else.

    The output can lie in the memory of one of them, unless it is read somewhere else than in `value`.
    """
    analyzer = sym.Analyzer()
    found = []
    for index, param in enumerate(func.params):
        reads = [load for load in loads(value) if load.source.same_as(param)]
        if not reads or param.same_as(output) or str(param.ty.dtype) != str(output.ty.dtype):
            continue
        dims, wanted = list(param.ty.shape), list(output.ty.shape)
        if len(dims) != len(wanted) or not all(map(analyzer.can_prove_equal, dims, wanted)):
            continue
        if all(indexed_by(load, axes, allow_zero=True) for load in reads):
            found.append(index)
    return found


def indexed_by(load: ir.TensorLoad, axes: Sequence[tirx.Var], *, allow_zero: bool = False) -> bool:
    """Whether a load's indices are exactly `axes`; with `allow_zero`, 0 may stand for an axis of extent 1."""
    if len(load.indices) != len(axes):
        return False
    for index, axis, extent in zip(load.indices, axes, load.source.ty.shape, strict=True):
        if index.same_as(axis) or (allow_zero and is_const_zero(index) and as_int(extent) == 1):
            continue
        return False
    return True


def is_written_in_order(block: s_tir.SBlock) -> bool:
    """Whether a block stores its value at its own axes, in order."""
    indices, axes = block.body.indices, block.iter_vars
    return len(indices) == len(axes) and all(i.same_as(axis.var) for i, axis in zip(indices, axes, strict=True))
