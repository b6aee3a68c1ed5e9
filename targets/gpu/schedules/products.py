"""Products of two tensors in any arrangement of axes: batched, transposed, contracted over several axes.

    C[batch.., row.., column..] = f(sum_k A[..] * B[..], ...)

Every index of A and B is an axis of the block or 0. Axes of the result fall into three groups: columns are the last
ones that only one factor has, which is then called B; rows are those before them that only the other one has; what is
in front of both is the batch. So a vector has one row, and a factor that is spread over the batch is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, sym, tirx

from greencc.targets.factors import GroupScheme, grouped_factors, plain_factors
from greencc.targets.kernel import Tail, is_const_zero, is_reduction
from greencc.targets.tir import as_int, i64, split_index, volume

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Axes:
    """A group of axes, which one index runs over.

    Attributes:
        variables: of the block.
        extents: their sizes.
    """

    variables: tuple[tirx.Var, ...]
    extents: tuple[tirx.Expr, ...]

    @property
    def size(self) -> tirx.Expr:
        """How many positions the group has; 1 where it is empty."""
        return volume(list(self.extents))

    def at(self, index: tirx.Expr) -> list[tirx.Expr]:
        """The coordinates of a position."""
        return split_index(index, list(self.extents))


@dataclass(frozen=True)
class Factor:
    """One factor of a product: where the element of a batch, a row (of B: a column) and a depth lies.

    Attributes:
        buffer: the tensor, row-major.
        indices: what the block reads it at.
        batch, major, depth: the product's groups of axes; `major` are A's rows or B's columns.
    """

    buffer: tirx.Var
    indices: tuple[tirx.Expr, ...]
    batch: Axes
    major: Axes
    depth: Axes

    @property
    def dtype(self) -> str:
        """Element type."""
        return str(self.buffer.ty.dtype)

    @property
    def strides(self) -> list[tirx.Expr]:
        """Elements between neighbours along each dimension."""
        return _strides(list(self.buffer.ty.shape))

    def step(self, axes: Axes) -> tirx.Expr | None:
        """Elements between neighbouring positions of a group; None where they don't lie at equal distances."""
        places = [self._dimension(var) for var in axes.variables]
        if not places:
            return i64(0)
        if any(place is None for place in places):
            return i64(0) if all(place is None for place in places) else None
        found = [place for place in places if place is not None]
        sizes, analyzer = list(self.buffer.ty.shape), sym.Analyzer()
        together = found == list(range(found[0], found[0] + len(found)))
        whole = all(
            analyzer.can_prove_equal(sizes[place], extent)
            for place, extent in zip(found[1:], axes.extents[1:], strict=True)
        )
        return self.strides[found[-1]] if together and whole else None

    def is_contiguous(self, axes: Axes) -> bool:
        """Whether neighbouring positions of a group are neighbours in memory."""
        step = self.step(axes)
        return step is not None and as_int(step) == 1

    def offset(self, axes: Axes, index: tirx.Expr) -> tirx.Expr:
        """What the position `index` of a group adds to the place of an element."""
        step = self.step(axes)
        if step is not None:
            return i64(0) if as_int(step) == 0 else index * step
        total: tirx.Expr = i64(0)
        for var, value in zip(axes.variables, axes.at(index), strict=True):
            place = self._dimension(var)
            if place is not None:
                total = total + value * self.strides[place]
        return total

    def lanes(self, axes: Axes) -> int:
        """The longest vector, of 4, 2 or 1 elements, that can be read along a group from every multiple of its length.

        Its elements are neighbours, it crosses no end of the group, and it lies at a multiple of its size.
        """
        if not self.is_contiguous(axes):
            return 1
        sizes = [as_int(self.buffer.ty.shape[-1]), as_int(axes.extents[-1])]
        return next(n for n in (4, 2, 1) if n == 1 or all(size is not None and size % n == 0 for size in sizes))

    def _dimension(self, var: tirx.Var) -> int | None:
        return next((i for i, index in enumerate(self.indices) if index.same_as(var)), None)


@dataclass(frozen=True)
class Product:
    """A recognised product.

    Attributes:
        a, b: the factors.
        batch, rows, columns: the groups of the result's axes, in this order.
        depth: the axes that are summed over.
        groups: where B holds levels in groups, what they are worth.
    """

    a: Factor
    b: Factor
    batch: Axes
    rows: Axes
    columns: Axes
    depth: Axes
    groups: GroupScheme | None = None

    @property
    def is_int8(self) -> bool:
        """Whether bytes are multiplied, and summed in int32."""
        return self.groups is None and self.a.dtype == "int8"

    @property
    def sums(self) -> str:
        """Element type of the sums."""
        return "int32" if self.is_int8 else "float32"


def match_product(tail: Tail) -> Product | str:
    """The product that the producer block computes, or why it is none."""
    block, store = tail.producer, tail.producer.body
    if not is_reduction(block) or not isinstance(store, tirx.BufferStore) or block.init is None:
        return "no reduction"
    spatial = [axis for axis in block.iter_vars if int(axis.iter_type) == 0]
    reduced = [axis for axis in block.iter_vars if int(axis.iter_type) != 0]
    if len(store.indices) != len(spatial) or not all(
        index.same_as(axis.var) for index, axis in zip(store.indices, spatial, strict=True)
    ):
        return "the product isn't written in the order of its axes"
    grouped = grouped_factors(block, store)
    pair = plain_factors(store, _unwidened) if grouped is None else grouped[:2]
    if pair is None or not is_const_zero(block.init.value):
        return "not a sum of products"
    variables = {axis.var for axis in block.iter_vars}
    for load in pair:
        used = [index for index in load.indices if not is_const_zero(index)]
        if len(set(used)) != len(used) or not all(isinstance(index, tirx.Var) and index in variables for index in used):
            return "a factor isn't read at axes of the product"
    if not all(all(_has(load, axis.var) for load in pair) for axis in reduced):
        return "a factor lacks an axis that is summed over"
    reason = _check_types(tail, pair, grouped is not None)
    if reason is not None:
        return reason
    return _arranged(spatial, reduced, pair, None if grouped is None else grouped[2])


def _arranged(
    spatial: list[tirx.IterVar],
    reduced: list[tirx.IterVar],
    pair: tuple[ir.TensorLoad, ir.TensorLoad],
    groups: GroupScheme | None,
) -> Product | str:
    """The product with its axes in groups, and its factors in the order of those."""
    a, b = pair
    owners = []
    for axis in spatial:
        in_a, in_b = _has(a, axis.var), _has(b, axis.var)
        owners.append("" if in_a == in_b else "a" if in_a else "b")
    owner = owners[-1] if owners else ""
    if not owner:
        return "no factor has the last axis for itself"
    if owner == "a":
        if groups is not None:
            return "the levels have no columns"
        a, b = b, a
    other = "b" if owner == "a" else "a"
    first_column = len(owners)
    while first_column and owners[first_column - 1] == owner:
        first_column -= 1
    first_row = first_column
    while first_row and owners[first_row - 1] == other:
        first_row -= 1
    batch, rows, columns = (
        _axes(part) for part in (spatial[:first_row], spatial[first_row:first_column], spatial[first_column:])
    )
    depth = _axes(sorted(reduced, key=lambda axis: _place(b, axis.var)))
    made = [Factor(load.source, tuple(load.indices), batch, major, depth) for load, major in ((a, rows), (b, columns))]
    return Product(made[0], made[1], batch, rows, columns, depth, groups)


def _check_types(tail: Tail, pair: Sequence[ir.TensorLoad], grouped: bool) -> str | None:
    kinds = [str(load.ty.dtype) for load in pair]
    result = str(tail.intermediate.ty.dtype)
    if grouped:
        return None if kinds[0] == "float32" else f"{kinds[0]} times levels in groups"
    if kinds == ["int8", "int8"] and result == "int32":
        return None
    if kinds[0] == kinds[1] and kinds[0] in FLOATS and result in (kinds[0], "float32"):
        return None
    return f"{kinds[0]} times {kinds[1]} in {result}"


def _unwidened(factor: tirx.Expr) -> tirx.Expr:
    """What a factor is before it is widened to the type of the sum."""
    return factor.value if isinstance(factor, tirx.Cast) else factor


def _has(load: ir.TensorLoad, var: tirx.Var) -> bool:
    return any(index.same_as(var) for index in load.indices)


def _place(load: ir.TensorLoad, var: tirx.Var) -> int:
    return next(i for i, index in enumerate(load.indices) if index.same_as(var))


def _axes(found: Sequence[tirx.IterVar]) -> Axes:
    return Axes(tuple(axis.var for axis in found), tuple(axis.dom.extent for axis in found))


def _strides(shape: list[tirx.Expr]) -> list[tirx.Expr]:
    strides: list[tirx.Expr] = []
    total: tirx.Expr = i64(1)
    for size in reversed(shape):
        strides.append(total)
        total = sym.Analyzer().simplify(total * size)
    return strides[::-1]
