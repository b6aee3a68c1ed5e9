"""Matrix products with everything elementwise behind them in one kernel.

    C[..., i, j] = f(sum_k A[..., i, k] * B[k, j], ...)

A and B are float32, or bytes whose products are summed in int32.

A register tile of `rows` x `columns` accumulators stays in vector registers over the whole k loop. Constant B is
packed into column panels as wide as the tile, so that the inner loop reads it with unit stride; other B is read
in place. Tasks are blocks of rows times column panels. Rows left over at the end of A get a tile of their own
(static sizes) or a full tile whose surplus rows repeat the last row and are not stored (symbolic sizes), so that
there is no slow path for tails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import ir, sym, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.kernel import (
    Tail,
    indexed_by,
    inline_tail,
    is_const_zero,
    is_reduction,
    overwritable,
    parameter_index,
    widened,
)
from greencc.targets.cpu.schedules.multiply import Arithmetic, DotArithmetic, FloatArithmetic, weight_bytes
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.packing import ColumnPanels, DotPanels
from greencc.targets.tir import as_int, i64, loads, prefetch, rewrite, unravel, volume

# Rows of A per task: enough to use a panel of B many times while it is in the cache, few enough to share out.
TASK_ROWS = 128
# Bytes that memory is moved in.
CACHE_LINE = 64
# Steps of the inner loop between asking for a part of a panel and using it: longer than the second cache takes.
STEPS_AHEAD = 8
# A task should take tens of microseconds: below this many multiply-adds threads cost more than they bring.
MIN_PARALLEL_WORK = 1 << 16


@dataclass(frozen=True)
class Product:
    """A recognised product of A [..., i, k] and B [k, j]; `batched` when B has the axes before k too."""

    a: tirx.Var
    b: tirx.Var
    depth: int
    columns: int
    batched: bool
    arithmetic: Arithmetic


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
class MatmulRule:
    """Schedules products; see the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-matmul"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a product with its tail, or decline."""
        tail = inline_tail(func)
        if isinstance(tail, str):
            return Declined(tail)
        product = match_product(tail, self.target)
        if isinstance(product, str):
            return Declined(product)
        reason = check_tail(tail)
        if reason is not None:
            return Declined(reason)
        index = parameter_index(func, product.b)
        packed = index is not None and index in constants and not product.batched
        tile = choose_tile(self.target, product, tail, packed)
        if tile is None:
            return Declined(f"{product.columns} columns that are not packed don't fill vectors")
        layout = product.arithmetic.layout(tile.columns)
        emitted = emit(func, tail, product, tile, layout if packed else None, self.target.threads)
        # A row is read again for every panel of columns, but a tail reads each element once.
        operands = [parameter_index(func, operand) for operand in (product.a, product.b)]
        overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in operands]
        layouts = {index: layout} if packed and index is not None else {}
        return Scheduled(emitted, self.name, layouts, tuple(overwrites))


def match_product(tail: Tail, target: CpuTarget) -> Product | str:
    """The product that the producer block computes, or why it is none."""
    block = tail.producer
    if not is_reduction(block):
        return "no reduction"
    spatial = [axis.var for axis in block.iter_vars if int(axis.iter_type) == 0]
    reduced = [axis for axis in block.iter_vars if int(axis.iter_type) != 0]
    store = block.body
    if len(reduced) != 1 or len(spatial) < 2 or not isinstance(store, tirx.BufferStore):
        return "not a product over one axis"
    if not all(index.same_as(var) for index, var in zip(store.indices, spatial, strict=True)):
        return "the product isn't written in the order of its axes"
    factors = _factors(store)
    if factors is None or not is_const_zero(block.init.value):
        return "not a sum of products"
    k, (i, j), lead = reduced[0].var, spatial[-2:], spatial[:-2]
    a, b = factors
    if not (b.indices[-1].same_as(j) and len(b.indices) >= 2 and b.indices[-2].same_as(k)):
        return "the second factor isn't [k, j]"
    if not indexed_by(a, [*lead, i, k]):
        return "the first factor isn't [..., i, k]"
    batched = len(b.indices) > 2
    if batched and not indexed_by(b, [*lead, k, j]):
        return "the batch axes of the factors differ"
    depth, columns = as_int(reduced[0].dom.extent), as_int(tail.output.ty.shape[-1])
    if depth is None or columns is None:
        return "depth or columns are symbolic"
    kinds = [str(value.ty.dtype) for value in (a, b, tail.intermediate)]
    dot = dot_product(target)
    if kinds == ["float32"] * 3:
        return Product(a.source, b.source, depth, columns, batched, FloatArithmetic())
    if kinds == [dot.activation, "int8", "int32"]:
        return Product(a.source, b.source, depth, columns, batched, DotArithmetic(dot))
    return f"not float32, nor {dot.activation} times int8 in int32"


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


def choose_tile(target: CpuTarget, product: Product, tail: Tail, packed: bool) -> Tile | None:
    """The register tile: accumulators fill the registers but for what loads need; wide tiles when N allows."""
    if isinstance(product.arithmetic, DotArithmetic):
        if not packed:
            return None
        lanes = product.arithmetic.dot.lanes
        # Without an instruction that multiplies and adds, a product needs a register before it is added.
        small: tuple[tuple[int, int], ...] = ((6, 2), (8, 1))
    else:
        lanes, small = target.lanes(), ((4, 3), (6, 2), (8, 1))
        while not packed and product.columns % lanes:
            lanes //= 2
            if lanes < 4:
                return None
    shapes = ((8, 3), (8, 2), (12, 1)) if target.vector_registers >= 32 else small
    limit = -(-product.columns // lanes)
    fitting = [(rows, vectors) for rows, vectors in shapes if vectors <= limit and (packed or limit % vectors == 0)]
    fitting = fitting or [shapes[-1]]
    # Columns that pad the last panel are wasted work; between equals the first shape is the fastest.
    rows, vectors = min(fitting, key=lambda s: (-(-limit // s[1]) * s[1], fitting.index(s)))
    count = _row_count(tail)
    if count is not None and count < rows:
        rows = count
    return Tile(rows, vectors * lanes, lanes)


def emit(
    func: tirx.PrimFunc,
    tail: Tail,
    product: Product,
    tile: Tile,
    layout: ColumnPanels | DotPanels | None,
    threads: int,
) -> tirx.PrimFunc:
    """The scheduled PrimFunc. B's parameter has the packed shape when there is a layout."""
    shape = list(tail.output.ty.shape)
    lead = shape[:-2] if product.batched else []
    row_dims = shape[len(lead) : -1]
    rows = volume(row_dims)
    panels = -(-product.columns // tile.columns)
    count = as_int(rows)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        buffers: dict[tirx.Var, tirx.Var] = {}
        for param in func.params:
            declared = param
            if layout is not None and param.same_as(product.b):
                packed = tuple(map(i64, layout.shape(product.depth, product.columns)))
                declared = T.buffer(packed, product.arithmetic.weight)
            buffers[param] = T.arg(param.name, declared)
        T.func_attr({"tirx.noalias": True})
        row_tasks = 1 if count is not None and count <= TASK_ROWS else tirx.ceildiv(rows, i64(TASK_ROWS))
        task_rows = rows if isinstance(row_tasks, int) else i64(TASK_ROWS)
        # The panel runs fastest, so that neighbouring tasks share rows of A.
        extents = [*lead, _expr(row_tasks), i64(panels)]
        total = volume(extents)
        work = (as_int(total) or 2) * product.depth * tile.columns * (count or TASK_ROWS)
        loop = T.parallel if work >= MIN_PARALLEL_WORK and as_int(total) != 1 else T.serial
        with loop(i64(0), total) as task:
            *batch, block, panel = unravel(task, extents)
            task_count = min(count or TASK_ROWS, TASK_ROWS)
            emitter = _Tiles(
                task_count, tail, product, tile, layout is not None, buffers, batch, row_dims, rows, panel, panels
            )
            first = block * i64(TASK_ROWS)
            if count is not None and not isinstance(row_tasks, int) and count % TASK_ROWS == 0:
                emitter.block(first, TASK_ROWS)
            elif count is not None and isinstance(row_tasks, int):
                emitter.block(i64(0), count)
            elif count is not None:
                with T.If(block < i64(count // TASK_ROWS)):
                    with T.Then():
                        emitter.block(first, TASK_ROWS)
                    with T.Else():
                        emitter.block(first, count % TASK_ROWS)
            else:
                remaining = tirx.min(task_rows, rows - first)
                emitter.symbolic_block(first, remaining)
    result = ib.get()
    return result.with_attr("greencc.rule", "cpu-matmul")


class _Tiles:
    """Emits the tiles of one task."""

    def __init__(
        self,
        task_rows: int,
        tail: Tail,
        product: Product,
        tile: Tile,
        packed: bool,
        buffers: dict[tirx.Var, tirx.Var],
        batch: list[tirx.Expr],
        row_dims: list[tirx.Expr],
        rows: tirx.Expr,
        panel: tirx.Expr,
        panels: int,
    ) -> None:
        self.task_rows = task_rows
        self.tail, self.product, self.tile, self.packed = tail, product, tile, packed
        self.buffers, self.batch, self.row_dims, self.rows = buffers, batch, row_dims, rows
        self.panel, self.panels = panel, panels

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

    def tile_at(self, first: tirx.Expr, rows: int, limit: tirx.Expr | None) -> None:
        """One register tile. With `limit`, rows at or beyond it repeat the last row and aren't stored."""
        tile, lanes = self.tile, self.tile.lanes
        arithmetic = self.product.arithmetic
        sums = [registers(tile.vectors, lanes, arithmetic.sums) for _ in range(rows)]
        positions = [first + i64(r) for r in range(rows)]
        sources = positions if limit is None else [tirx.min(p, limit - i64(1)) for p in positions]
        with self._steps(first) as step:
            self._ask_for(step)
            columns = [self._b(step, v) for v in range(tile.vectors)]
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

    @contextmanager
    def _steps(self, first: tirx.Expr) -> Iterator[tirx.Expr]:
        """The loop over steps along k. While a panel is used, the next one is brought into the second-level cache.

        A panel is read once per tile, and the tiles of a task share the prefetching of the next panel: it comes from
        memory or the last-level cache, and waiting for that costs more than a tenth of the time otherwise.
        """
        arithmetic = self.product.arithmetic
        steps, tiles = -(-self.product.depth // arithmetic.depth), max(1, self.task_rows // self.tile.rows)
        per_line = CACHE_LINE // weight_bytes(arithmetic)
        lines = -(-steps * arithmetic.depth * self.tile.columns // (per_line * tiles))
        chunk = next((size for size in (16, 8) if steps % size == 0), None)
        if not self.packed or self.panels == 1 or chunk is None:
            with T.serial(i64(0), i64(steps)) as step:
                yield step
            return
        per_chunk = -(-lines // (steps // chunk))
        width = i64(self.tile.columns * arithmetic.depth)
        panel = tirx.min(self.panel + i64(1), i64(self.panels - 1))
        tile = tirx.floordiv(tirx.floormod(first, i64(TASK_ROWS)), i64(self.tile.rows))
        with T.serial(i64(0), i64(steps // chunk)) as block:
            for number in range(per_chunk):
                element = ((tile * i64(steps // chunk) + block) * i64(per_chunk) + i64(number)) * i64(per_line)
                row, column = tirx.floordiv(element, width), tirx.floormod(element, width)
                where = tirx.BufferLoad(self.buffers[self.product.b], [panel, tirx.min(row, i64(steps - 1)), column])
                prefetch(where, 2)
            with T.serial(i64(0), i64(chunk)) as step:
                yield block * i64(chunk) + step

    def _ask_for(self, step: tirx.Expr) -> None:
        """Bring the columns of a step to come into the first-level cache."""
        if not self.packed:
            return
        arithmetic = self.product.arithmetic
        per_line = CACHE_LINE // weight_bytes(arithmetic)
        for first in range(0, self.tile.columns * arithmetic.depth, per_line):
            where = [self.panel, step + i64(STEPS_AHEAD), i64(first)]
            prefetch(tirx.BufferLoad(self.buffers[self.product.b], where), 1)

    def _b(self, step: tirx.Expr, vector: int) -> tirx.Expr:
        first = i64(vector * self.tile.lanes)
        lead = [self.panel, step]
        if not self.packed:
            first = self.panel * i64(self.tile.columns) + first
            lead = [*self.batch, step]
        return self.product.arithmetic.columns(self.buffers[self.product.b], lead, first, self.tile.lanes)

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


def _factors(store: tirx.BufferStore) -> tuple[ir.TensorLoad, ir.TensorLoad] | None:
    """The two loads of `C[x] = C[x] + A[y] * B[z]`."""
    value = store.value
    if not isinstance(value, tirx.Add) or not isinstance(value.b, tirx.Mul):
        return None
    if not isinstance(value.a, ir.TensorLoad) or not value.a.source.same_as(store.buffer):
        return None
    left, right = widened(value.b.a), widened(value.b.b)
    if isinstance(left, ir.TensorLoad) and isinstance(right, ir.TensorLoad):
        return left, right
    return None


def _row_count(tail: Tail) -> int | None:
    return as_int(volume(list(tail.output.ty.shape[:-1])))


def _expr(value: tirx.Expr | int) -> tirx.Expr:
    return i64(value) if isinstance(value, int) else value
