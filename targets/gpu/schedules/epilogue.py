"""What becomes of a product's sums: the expression fused behind it, computed element by element, and stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import ir, sym, tirx
from tvm.tirx.script import builder as T

from greencc.targets.gpu.schedules.products import Product
from greencc.targets.gpu.schedules.threads import at, is_multiple, local, put
from greencc.targets.kernel import Tail
from greencc.targets.tir import i64, ramp, rewrite, walk

# Nodes of all tails of a thread: above, they are emitted once, in a loop over the thread's sums.
UNROLLED_NODES = 1500


@dataclass(frozen=True)
class Epilogue:
    """Applies a product's tail.

    Attributes:
        tail: the expression.
        product: says in which groups the result's axes fall.
        buffers: the kernel's, by those of the tail.
        batch: the number of the batch.
    """

    tail: Tail
    product: Product
    buffers: Mapping[tirx.Var, tirx.Var]
    batch: tirx.Expr

    @property
    def lanes(self) -> int:
        """Neighbouring columns that are stored as one vector, where they start at a multiple of it."""
        columns = self.product.columns.size
        return next(n for n in (4, 2, 1) if n == 1 or is_multiple(columns, n))

    def is_short(self, count: int) -> bool:
        """Whether `count` tails may be emitted one behind the other."""
        return count * sum(1 for _ in walk(self.tail.value)) <= UNROLLED_NODES

    def store(self, sums: Callable[[int], tirx.Expr], row: tirx.Expr, column: tirx.Expr, count: int, tile: int) -> None:
        """Emit what becomes of `count` neighbouring columns of a row, of which sums(i) is the i-th sum.

        `column` is a multiple of `count`, a power of 2, and one of a tile of `tile` columns, which may reach behind the
        last column: nothing is stored there.
        """
        lanes = min(self.lanes, count)
        for first in range(0, count, lanes):
            start = column + i64(first) if first else column
            places = range(first, first + lanes)
            if is_multiple(self.product.columns.size, tile):
                self._store(sums, places, row, start, lanes)
            else:
                with T.If(start < self.product.columns.size), T.Then():
                    self._store(sums, places, row, start, lanes)

    def _store(
        self, sums: Callable[[int], tirx.Expr], places: range, row: tirx.Expr, start: tirx.Expr, lanes: int
    ) -> None:
        output = self.buffers[self.tail.output]
        offset = self._offset(row, start)
        values = [self.value(sums(i), row, start + i64(lane)) for lane, i in enumerate(places)]
        if lanes == 1:
            put(output, values[0], offset)
            return
        made = local(lanes, str(output.ty.dtype))
        for lane, value in enumerate(values):
            put(made, value, lane)
        put(output, tirx.BufferLoad(made, [ramp(i64(0), lanes)]), offset, lanes)

    def value(self, total: tirx.Expr, row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        """The tail at one place, where the product is `total`."""
        product, axes = self.product, self.tail.axes
        found: dict[tirx.Var, tirx.Expr] = {}

        def coordinate(var: tirx.Var) -> tirx.Expr | None:
            if not found:
                places = [*product.batch.at(self.batch), *product.rows.at(row), *product.columns.at(column)]
                found.update(zip(axes, places, strict=True))
            return found.get(var)

        kind = str(self.tail.intermediate.ty.dtype)
        rounded = total if str(total.ty.dtype) == kind else tirx.Cast(kind, total)

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad):
                if node.source.same_as(self.tail.intermediate):
                    return rounded
                buffer = self.buffers.get(node.source)
                if buffer is None:
                    return None
                if self._is_aligned(node):
                    return at(buffer, self._offset(row, column))
                return tirx.BufferLoad(buffer, [rewrite(index, replace) for index in node.indices])
            return coordinate(node) if isinstance(node, tirx.Var) else None

        return rewrite(self.tail.value, replace)

    def _offset(self, row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        """Distance of an element of the result from its first one."""
        product = self.product
        line = row if not product.batch.variables else self.batch * product.rows.size + row
        return line * product.columns.size + column

    def _is_aligned(self, load: ir.TensorLoad) -> bool:
        """Whether a tensor has the result's shape and is read where the result is written."""
        shape, result = list(load.source.ty.shape), list(self.tail.output.ty.shape)
        if len(shape) != len(result) or len(load.indices) != len(self.tail.axes):
            return False
        same = all(index.same_as(axis) for index, axis in zip(load.indices, self.tail.axes, strict=True))
        return same and all(map(sym.Analyzer().can_prove_equal, shape, result))
