"""Register tiles of a matrix product: sums that stay in vector registers over the whole loop along k."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.columns import Columns
from greencc.targets.cpu.schedules.matmul_form import Product
from greencc.targets.cpu.schedules.matmul_plan import MatmulPlan, tile_heights
from greencc.targets.cpu.schedules.registers import Register, register, registers
from greencc.targets.kernel import Tail
from greencc.targets.tir import i64, unravel


@dataclass(frozen=True)
class Tiles:
    """Emits the tiles of one task.

    Attributes:
        tail: what becomes of the product.
        product, plan: what is computed, and how.
        columns: the task's columns of B.
        buffers: those that are declared, by those of the product and its tail.
        batch: the indices in front of the rows.
        row_dims: the axes that rows run over; `rows` in all.
        panel: the panel of columns; there are `panels`.
    """

    tail: Tail
    product: Product
    plan: MatmulPlan
    columns: Columns
    buffers: dict[tirx.Var, tirx.Var]
    batch: list[tirx.Expr]
    row_dims: list[tirx.Expr]
    rows: tirx.Expr
    panel: tirx.Expr
    panels: int

    def block(self, first: tirx.Expr, count: int) -> None:
        """A block with a static number of rows."""
        number = 0
        for times, height in tile_heights(count, self.plan.rows, even=self.plan.rest == "even"):
            if times == 1:
                self.tile_at(first, height, i64(number))
            else:
                with T.serial(i64(0), i64(times)) as step:
                    self.tile_at(first + step * i64(height), height, step + i64(number))
            first, number = first + i64(times * height), number + times

    def symbolic_block(self, first: tirx.Expr, count: tirx.Expr) -> None:
        """A block with a symbolic number of rows."""
        height = i64(self.plan.rows)
        if self.plan.rest == "even":
            self._even_tiles(first, count)
            return
        full = tirx.floordiv(count, height)
        with T.serial(i64(0), full) as step:
            self.tile_at(first + step * height, self.plan.rows, step)
        if self.plan.rest == "exact":
            self._tile_of(first + full * height, count - full * height, self.plan.rows - 1, full)
            return
        with T.If(full * height < count), T.Then():
            self.tile_at(first + full * height, self.plan.rows, full, self.rows)

    def few_rows(self, first: tirx.Expr, count: tirx.Expr) -> None:
        """Rows of a symbolic number up to the plan's `direct_rows`: one tile, or one by one where tiles are padded.

        Surplus rows would then cost more than reading B again.
        """
        if self.plan.rest != "padded":
            self._tile_of(first, count, self.plan.direct_rows, i64(0))
            return
        with T.serial(i64(0), count) as row:
            self.tile_at(first + row, 1, row)

    def _even_tiles(self, first: tirx.Expr, count: tirx.Expr) -> None:
        """Tiles whose heights differ by a row at most. What is divided is stored, or TVM would try to simplify it."""
        tiles, left, row = (register(1, "int64") for _ in range(3))
        tiles.store(tirx.floordiv(count + i64(self.plan.rows - 1), i64(self.plan.rows)))
        left.store(count)
        row.store(first)
        with T.serial(i64(0), tiles.value) as step:
            height = register(1, "int64")
            height.store(tirx.floordiv(left.value, tiles.value - step))
            self._tile_of(row.value, height.value, self.plan.rows, step)
            left.store(left.value - height.value)
            row.store(row.value + height.value)

    def _tile_of(self, first: tirx.Expr, rows: tirx.Expr, most: int, number: tirx.Expr) -> None:
        """A tile of a height that is known at run time only: code for each up to `most`."""
        for height in range(1, most + 1):
            with T.If(rows == i64(height)), T.Then():
                self.tile_at(first, height, number)

    def tile_at(self, first: tirx.Expr, rows: int, number: tirx.Expr, limit: tirx.Expr | None = None) -> None:
        """Register tile `number` of its task. With `limit`, rows from there repeat the last row and aren't stored."""
        lanes = self.plan.lanes
        arithmetic = self.product.arithmetic
        sums = [registers(self.plan.vectors, lanes, arithmetic.sums) for _ in range(rows)]
        positions = [first + i64(r) for r in range(rows)]
        sources = positions if limit is None else [tirx.min(p, limit - i64(1)) for p in positions]
        for step, columns in self.columns.steps(number):
            for r in range(rows):
                row = [*self.batch, *unravel(sources[r], self.row_dims)]
                word = arithmetic.word(self.buffers[self.product.a], row, step)
                for total, column in zip(sums[r], columns, strict=True):
                    total.store(arithmetic.accumulate(total.value, word, column, lanes))
        for r in range(rows):
            if limit is None:
                self._store_row(sums[r], positions[r])
            else:
                with T.If(positions[r] < limit), T.Then():
                    self._store_row(sums[r], positions[r])

    def _store_row(self, sums: list[Register], row: tirx.Expr) -> None:
        """Apply the tail to one row of the tile and store it; the last panel may be narrower than the tile."""
        surplus = self.panels * self.plan.columns - self.product.columns
        if surplus == 0:
            self._store_vectors(sums, row, self.plan.columns)
        elif self.panels == 1:
            self._store_vectors(sums, row, self.plan.columns - surplus)
        else:
            with T.If(self.panel < i64(self.panels - 1)):
                with T.Then():
                    self._store_vectors(sums, row, self.plan.columns)
                with T.Else():
                    self._store_vectors(sums, row, self.plan.columns - surplus)

    def _store_vectors(self, sums: list[Register], row: tirx.Expr, columns: int) -> None:
        for v, vector in enumerate(sums):
            filled = min(self.plan.lanes, columns - v * self.plan.lanes)
            # What doesn't fill a vector is stored in narrower ones.
            start, lanes = 0, self.plan.lanes
            while start < filled:
                while start + lanes > filled:
                    lanes //= 2
                self._store_lanes(vector, row, v, start, lanes)
                start += lanes

    def _store_lanes(self, sums: Register, row: tirx.Expr, number: int, start: int, lanes: int) -> None:
        """Store some lanes of the sums of vector `number` of the panel's columns."""
        first = self.panel * i64(self.plan.columns) + i64(number * self.plan.lanes + start)
        with T.vectorized(i64(0), i64(lanes)) as lane:
            position = [*self.batch, *unravel(row, self.row_dims), first + lane]
            value = self.tail.value_at(sums.lane(i64(start) + lane), position, self.buffers)
            T.buffer_store(self.buffers[self.tail.output], value, position)
