"""Recognises a sum of products whose one factor is a filter, in any number of spatial axes."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import ir, s_tir, tirx

from greencc.targets.kernel import (
    DATA_PARALLEL,
    InlineError,
    Tail,
    blocks,
    check_tail,
    inline_blocks,
    inline_side_blocks,
    inline_tail,
    is_const_zero,
    is_reduction,
)
from greencc.targets.tir import as_int, children, loads, walk

FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Contraction:
    """sum over `reduced` of data * weight, and what follows it.

    Attributes:
        tail: what follows.
        axes: of the sum, in the order of the result: batch, filter, positions.
        reduced, extents: what is summed over, and how many of each.
        data: the factor that depends on the filter's group only.
        weight: the other one, a load; it depends on no position.
        filters: how many there are, in `groups` groups.
        sums: the type of the sum while it grows.
        words: whether factors are words of four signed bytes (see `words`).
    """

    tail: Tail
    axes: tuple[tirx.Var, ...]
    reduced: tuple[tirx.Var, ...]
    extents: tuple[int, ...]
    data: tirx.Expr
    weight: ir.TensorLoad
    filters: int
    groups: int
    sums: str
    words: bool = False

    @property
    def depth(self) -> int:
        """Products of a sum."""
        total = 1
        for extent in self.extents:
            total *= extent
        return total

    @property
    def positions(self) -> list[tirx.Expr]:
        """Extents of all axes but the filters'."""
        shape = list(self.tail.output.ty.shape)
        return [shape[0], *shape[2:]]

    @property
    def is_plain_weight(self) -> bool:
        """Whether the weight is read at [filter, what is summed over]."""
        wanted = [self.axes[1], *self.reduced]
        indices = list(self.weight.indices)
        return len(indices) == len(wanted) and all(i.same_as(w) for i, w in zip(indices, wanted, strict=True))


def read_reduction(func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, Tail] | str:
    """A kernel's reduction with its tail, what is computed before it (padding) inlined into it, or why it is none.

    Also gives the kernel so inlined.
    """
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    if not any(is_reduction(schedule.get(rv)) for rv in blocks(schedule)):
        return "no reduction"
    try:
        found = inline_side_blocks(schedule)
        inline_blocks(schedule, found[: [is_reduction(schedule.get(rv)) for rv in found].index(True)])
    except InlineError:
        return "what precedes can't be inlined"
    inlined = schedule.mod["main"]
    tail = inline_tail(inlined)
    if isinstance(tail, str):
        return tail
    reason = check_tail(tail)
    if reason is not None:
        return reason
    given = [*inlined.params, tail.intermediate]
    read = [load.source for value in (tail.producer.body.value, tail.value) for load in loads(value)]
    if not all(any(source.same_as(param) for param in given) for source in read):
        return "an operand is computed in the kernel"
    return inlined, tail


def match_contraction(tail: Tail) -> Contraction | str:
    """The sum of products that a reduction is, or why it is none."""
    block, store = tail.producer, tail.producer.body
    kept = [axis for axis in block.iter_vars if int(axis.iter_type) == DATA_PARALLEL]
    reduced = [axis for axis in block.iter_vars if int(axis.iter_type) != DATA_PARALLEL]
    extents = [extent for axis in reduced if (extent := as_int(axis.dom.extent)) is not None]
    if len(kept) < 3 or len(extents) != len(reduced):
        return "not a sum of known length for a filter and a position"
    if not all(index.same_as(axis.var) for index, axis in zip(store.indices, kept, strict=True)):
        return "the result isn't written in the order of its axes"
    if not is_const_zero(block.init.value) or not isinstance(store.value, tirx.Add):
        return "not a sum"
    product = store.value.b
    if not isinstance(product, tirx.Mul):
        return "not a sum of products"
    axes = tuple(axis.var for axis in kept)
    others = [axes[0], *axes[2:]]
    pair = [(product.a, product.b), (product.b, product.a)]
    factors = [(data, load) for data, other in pair if (load := _load(other)) is not None and not _reads(load, others)]
    if not factors or not _reads(factors[0][0], others):
        return "no factor is a filter's alone"
    data, weight = factors[0]
    filters = as_int(tail.output.ty.shape[1])
    size = None if filters is None else _group_size(data, axes[1], filters)
    if filters is None or size is None:
        return "the data depend on the filter by more than its group"
    result = str(store.value.ty.dtype)
    if result != "int32" and result not in FLOATS:
        return f"sums of {result}"
    sums = "int32" if result == "int32" else "float32"
    variables = tuple(axis.var for axis in reduced)
    return Contraction(tail, axes, variables, tuple(extents), data, weight, filters, filters // size, sums)


def _load(factor: tirx.Expr) -> ir.TensorLoad | None:
    """The element that a factor is, before it is widened."""
    inner = factor.value if isinstance(factor, tirx.Cast) else factor
    return inner if isinstance(inner, ir.TensorLoad) else None


def _reads(expr: tirx.Expr, variables: list[tirx.Var]) -> bool:
    return any(node.same_as(var) for node in walk(expr) for var in variables)


def _group_size(data: tirx.Expr, filter_: tirx.Var, filters: int) -> int | None:
    """How many neighbouring filters read the same data; all, if it doesn't depend on them."""
    found: set[int] = set()

    def visit(node: tirx.Expr) -> None:
        if isinstance(node, tirx.FloorDiv) and node.a.same_as(filter_) and as_int(node.b) is not None:
            found.add(int(node.b))
            return
        if node.same_as(filter_):
            found.add(1)
        for child in children(node):
            visit(child)

    visit(data)
    if len(found) > 1:
        return 1
    size = found.pop() if found else filters
    return size if filters % size == 0 else None
