"""Register tiles of a matrix product: sums that stay in vector registers over the whole loop along k."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.columns import Columns
from greencc.targets.cpu.schedules.multiply import Arithmetic
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.factors import GroupScheme
from greencc.targets.kernel import Tail
from greencc.targets.tir import i64, rewrite, unravel

# Rows of A per task: enough to use a panel of B many times while it is in the cache, few enough to share out.
TASK_ROWS = 128


@dataclass(frozen=True)
class Product:
    """A recognised product of A [..., i, k] and B [k, j].

    Attributes:
        a, b: the operands' buffers.
        depth, columns: sizes of k and j.
        batched: whether B has the axes before k too.
        arithmetic: how products are added up.
        groups: where B holds levels in groups, what they are worth.
    """

    a: tirx.Var
    b: tirx.Var
    depth: int
    columns: int
    batched: bool
    arithmetic: Arithmetic
    groups: GroupScheme | None = None

    @property
    def steps(self) -> int:
        """Steps along k."""
        return -(-self.depth // self.arithmetic.depth)


@dataclass(frozen=True)
class Tile:
    """Register tile: `rows` x `columns` accumulators in vectors of `lanes`."""

    rows: int
    columns: int
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors per row of the tile."""
        return self.columns // self.lanes


@dataclass(frozen=True)
class Tiles:
    """Emits the tiles of one task.

    Attributes:
        tail: what becomes of the product.
        product, tile: what is computed, and how large the tiles are.
        columns: the task's columns of B.
        buffers: those that are declared, by those of the product and its tail.
        batch: the indices in front of the rows.
        row_dims: the axes that rows run over; `rows` in all.
        panel: the panel of columns; there are `panels`.
    """

    tail: Tail
    product: Product
    tile: Tile
    columns: Columns
    buffers: dict[tirx.Var, tirx.Var]
    batch: list[tirx.Expr]
    row_dims: list[tirx.Expr]
    rows: tirx.Expr
    panel: tirx.Expr
    panels: int

    def block(self, first: tirx.Expr, count: int) -> None:
        """A block with a static number of rows: full tiles, then one tile of what is left."""
        full, rest = divmod(count, self.tile.rows)
        if full == 1:
            self.tile_at(first, self.tile.rows, None)
        elif full:
            with T.serial(i64(0), i64(full)) as step:
                self.tile_at(first + step * i64(self.tile.rows), self.tile.rows, None)
        if rest:
            self.tile_at(first + i64(full * self.tile.rows), rest, None)

    def symbolic_block(self, first: tirx.Expr, count: tirx.Expr) -> None:
        """A block with a symbolic number of rows: full tiles, then one whose surplus rows aren't stored."""
        full = tirx.floordiv(count, i64(self.tile.rows))
        with T.serial(i64(0), full) as step:
            self.tile_at(first + step * i64(self.tile.rows), self.tile.rows, None)
        with T.If(full * i64(self.tile.rows) < count), T.Then():
            self.tile_at(first + full * i64(self.tile.rows), self.tile.rows, self.rows)

    def single_rows(self, first: tirx.Expr, count: tirx.Expr) -> None:
        """Rows one by one: where they are few, surplus ones would cost more than reading B again."""
        with T.serial(i64(0), count) as row:
            self.tile_at(first + row, 1, None)

    def tile_at(self, first: tirx.Expr, rows: int, limit: tirx.Expr | None) -> None:
        """One register tile. With `limit`, rows at or beyond it repeat the last row and aren't stored."""
        tile, lanes = self.tile, self.tile.lanes
        arithmetic = self.product.arithmetic
        sums = [registers(tile.vectors, lanes, arithmetic.sums) for _ in range(rows)]
        positions = [first + i64(r) for r in range(rows)]
        sources = positions if limit is None else [tirx.min(p, limit - i64(1)) for p in positions]
        tile_number = tirx.floordiv(tirx.floormod(first, i64(TASK_ROWS)), i64(tile.rows))
        for step, columns in self.columns.steps(tile_number):
            for r in range(rows):
                row = [*self.batch, *unravel(sources[r], self.row_dims)]
                word = arithmetic.word(self.buffers[self.product.a], row, step)
                for register, column in zip(sums[r], columns, strict=True):
                    register.store(arithmetic.accumulate(register.value, word, column, lanes))
        for r in range(rows):
            if limit is None:
                self._store_row(sums[r], positions[r])
            else:
                with T.If(positions[r] < limit), T.Then():
                    self._store_row(sums[r], positions[r])

    def _store_row(self, sums: list[Register], row: tirx.Expr) -> None:
        """Apply the tail to one row of the tile and store it; the last panel may be narrower than the tile."""
        surplus = self.panels * self.tile.columns - self.product.columns
        if surplus == 0:
            self._store_vectors(sums, row, self.tile.columns)
        elif self.panels == 1:
            self._store_vectors(sums, row, self.tile.columns - surplus)
        else:
            with T.If(self.panel < i64(self.panels - 1)):
                with T.Then():
                    self._store_vectors(sums, row, self.tile.columns)
                with T.Else():
                    self._store_vectors(sums, row, self.tile.columns - surplus)

    def _store_vectors(self, sums: list[Register], row: tirx.Expr, columns: int) -> None:
        base = self.panel * i64(self.tile.columns)
        for v, register in enumerate(sums):
            lanes = min(self.tile.lanes, columns - v * self.tile.lanes)
            if lanes <= 0:
                return
            loop: Callable[..., object] = T.vectorized if lanes == self.tile.lanes else T.serial
            with loop(i64(0), i64(lanes)) as lane:  # type: ignore[attr-defined]
                column = base + i64(v * self.tile.lanes) + lane
                position = [*self.batch, *unravel(row, self.row_dims), column]
                value = self._tail_value(register, lane, position)
                T.buffer_store(self.buffers[self.tail.output], value, position)

    def _tail_value(self, sums: Register, lane: tirx.Expr, position: list[tirx.Expr]) -> tirx.Expr:
        """The tail's expression at one output position; the product is read from its lane of the accumulator."""
        where = dict(zip(self.tail.axes, position, strict=True))

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad) and node.source.same_as(self.tail.intermediate):
                return sums.lane(lane)
            if isinstance(node, ir.TensorLoad) and node.source in self.buffers:
                indices = [rewrite(index, replace) for index in node.indices]
                return tirx.BufferLoad(self.buffers[node.source], indices)
            return where.get(node) if isinstance(node, tirx.Var) else None

        return rewrite(self.tail.value, replace)
