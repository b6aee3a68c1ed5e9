"""Matrix products with everything elementwise behind them in one kernel.

    C[..., i, j] = f(sum_k A[..., i, k] * B[k, j], ...)

A and B are float32, or bytes whose products are summed in int32; or B holds levels in groups (greencc.grouped_matmul).

A register tile of `rows` x `columns` accumulators stays in vector registers over the whole k loop. Constant B is
packed into column panels as wide as the tile, so that the inner loop reads it with unit stride; other B is read
in place. Tasks are blocks of rows times column panels. Rows left over at the end of A get a tile of their own
(static sizes) or a full tile whose surplus rows repeat the last row and are not stored (symbolic sizes), so that
there is no slow path for tails.

Levels in groups are given their values where they are read when A has few rows, so that no more than levels comes from
memory; for more rows a task writes the values of its panel down once, and the tiles read those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.columns import Columns, Groups, InPlace, Packed
from greencc.targets.cpu.schedules.matmul_tiles import TASK_ROWS, Product, Tile, Tiles
from greencc.targets.cpu.schedules.multiply import DotArithmetic, FloatArithmetic
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.factors import GroupScheme, grouped_factors, plain_factors
from greencc.targets.kernel import (
    Tail,
    check_tail,
    indexed_by,
    inline_tail,
    is_const_zero,
    is_reduction,
    overwritable,
    parameter_index,
    widened,
)
from greencc.targets.packing import ColumnPanels, DotPanels, NibblePanels
from greencc.targets.tir import as_int, i64, unravel, volume
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# A task should take tens of microseconds: below this many multiply-adds threads cost more than they bring.
MIN_PARALLEL_WORK = 1 << 16
# Of a symbolic number of rows: up to so many, levels in groups are read anew for each.
FEW_ROWS = 4

PanelLayout: TypeAlias = ColumnPanels | DotPanels | NibblePanels


@dataclass(frozen=True)
class PackedOperand:
    """A constant parameter: how it is packed, its logical size [rows, columns], and its element type."""

    layout: PanelLayout
    rows: int
    columns: int
    dtype: str

    @property
    def shape(self) -> tuple[tirx.Expr, ...]:
        """Shape of what the kernel declares."""
        return tuple(map(i64, self.layout.shape(self.rows, self.columns)))


@dataclass(frozen=True)
class Form:
    """A product that the rule takes: its tail, whether B is packed, and the tile that it has by default."""

    tail: Tail
    product: Product
    packed: bool
    tile: Tile


@dataclass(frozen=True)
class MatmulRule:
    """Schedules products; see the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-matmul"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = self._form(func, constants)
        if isinstance(form, Declined):
            return form
        return tile_space(self.target, form)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a product with its tail, or decline."""
        form = self._form(func, constants)
        if isinstance(form, Declined):
            return form
        tail, product, packed, tile = form.tail, form.product, form.packed, form.tile
        if plan is not None:
            problem = tile_space(self.target, form).problem(plan)
            if problem is not None:
                return Declined(problem)
            tile = Tile(int(plan["rows"]), int(plan["vectors"]) * tile.lanes, tile.lanes)
        operands = pack_operands(func, product, tile) if packed else {}
        emitted = emit(func, tail, product, tile, operands)
        # A row is read again for every panel of columns, but a tail reads each element once.
        taken = [parameter_index(func, operand) for operand in (product.a, product.b)]
        overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in taken]
        layouts = {index: operand.layout for index, operand in operands.items()}
        return Scheduled(emitted, self.name, layouts, tuple(overwrites))

    def _form(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Form | Declined:
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
        if product.groups is not None and not packed:
            return Declined("levels in groups are no constants")
        tile = choose_tile(self.target, product, tail, packed)
        if tile is None:
            return Declined(f"{product.columns} columns that are not packed don't fill vectors")
        return Form(tail, product, packed, tile)


def tile_space(target: CpuTarget, form: Form) -> Space:
    """Register tiles of other sizes."""
    tile, product = form.tile, form.product
    most = -(-product.columns // tile.lanes)
    knobs = (
        Knob("rows", nearby((1, 2, 3, 4, 5, 6, 8, 12), tile.rows)),
        Knob("vectors", nearby((1, 2, 3, 4), tile.vectors)),
    )

    def refuses(plan: Plan) -> str | None:
        rows, vectors = int(plan["rows"]), int(plan["vectors"])
        if rows * vectors + vectors + 1 > target.vector_registers + 2:
            return "the sums don't fit the registers"
        if not form.packed and most % vectors:
            return "the columns aren't whole tiles"
        return None

    traits = {"depth": product.depth, "columns": product.columns, "rows": _row_count(form.tail) or 0}
    return Space(knobs, {"rows": tile.rows, "vectors": tile.vectors}, traits, refuses)


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
    groups = grouped_factors(block, store)
    factors = plain_factors(store, widened) if groups is None else groups[:2]
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
    if groups is not None:
        return Product(a.source, b.source, depth, columns, batched, FloatArithmetic(), groups[2])
    if kinds == ["float32"] * 3:
        return Product(a.source, b.source, depth, columns, batched, FloatArithmetic())
    if kinds == [dot.activation, "int8", "int32"]:
        return Product(a.source, b.source, depth, columns, batched, DotArithmetic(dot))
    return f"not float32, nor {dot.activation} times int8 in int32"


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


def pack_operands(func: tirx.PrimFunc, product: Product, tile: Tile) -> dict[int, PackedOperand]:
    """By the index of a parameter, how constants of the product are packed: B, and what its levels are worth."""
    groups = product.groups
    if groups is None:
        arithmetic = product.arithmetic
        layout = arithmetic.layout(tile.columns)
        found = {product.b: PackedOperand(layout, product.depth, product.columns, arithmetic.weight)}
    else:
        plain = ColumnPanels(tile.columns)
        levels = plain if groups.bits == 8 else NibblePanels(tile.columns)
        found = {product.b: PackedOperand(levels, product.depth, product.columns, "int8")}
        for buffer in (groups.scale, groups.offset):
            if buffer is not None:
                count = product.depth // groups.group
                found[buffer] = PackedOperand(plain, count, product.columns, str(buffer.ty.dtype))
    return {i: found[param] for i, param in enumerate(func.params) if param in found}


def emit(
    func: tirx.PrimFunc, tail: Tail, product: Product, tile: Tile, operands: Mapping[int, PackedOperand]
) -> tirx.PrimFunc:
    """The scheduled PrimFunc. Parameters that are packed have their packed shapes."""
    shape = list(tail.output.ty.shape)
    lead = shape[:-2] if product.batched else []
    row_dims = shape[len(lead) : -1]
    rows = volume(row_dims)
    panels = -(-product.columns // tile.columns)
    count = as_int(rows)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        buffers: dict[tirx.Var, tirx.Var] = {}
        for i, param in enumerate(func.params):
            declared = T.buffer(operands[i].shape, operands[i].dtype) if i in operands else param
            buffers[param] = T.arg(param.name, declared)
        T.func_attr({"tirx.noalias": True})
        row_tasks = 1 if count is not None and count <= TASK_ROWS else tirx.ceildiv(rows, i64(TASK_ROWS))
        # The panel runs fastest, so that neighbouring tasks share rows of A.
        extents = [*lead, _expr(row_tasks), i64(panels)]
        total = volume(extents)
        work = (as_int(total) or 2) * product.depth * tile.columns * (count or TASK_ROWS)
        loop = T.parallel if work >= MIN_PARALLEL_WORK and as_int(total) != 1 else T.serial
        with loop(i64(0), total) as task:
            *batch, block, panel = unravel(task, extents)
            columns: Columns
            if product.groups is not None:
                columns = _in_groups(product, product.groups, tile, buffers, panel)
            elif operands:
                tiles = max(1, min(count or TASK_ROWS, TASK_ROWS) // tile.rows)
                columns = _packed(product, tile, buffers[product.b], panel, panels, tiles)
            else:
                start = panel * i64(tile.columns)
                b = buffers[product.b]
                columns = InPlace(b, batch, start, product.steps, tile.vectors, tile.lanes, product.arithmetic)
            _task(Tiles(tail, product, tile, columns, buffers, batch, row_dims, rows, panel, panels), count, block)
    result = ib.get()
    return result.with_attr("greencc.rule", "cpu-matmul")


def _packed(
    product: Product, tile: Tile, buffer: tirx.Var, panel: tirx.Expr, panels: int, tiles: int
) -> Packed:
    return Packed(buffer, panel, panels, product.steps, tile.vectors, tile.lanes, tiles, product.arithmetic)


def _in_groups(
    product: Product, groups: GroupScheme, tile: Tile, buffers: dict[tirx.Var, tirx.Var], panel: tirx.Expr
) -> Groups:
    offset = None if groups.offset is None else buffers[groups.offset]
    scheme = (buffers[product.b], buffers[groups.scale], offset, panel, groups.bits)
    return Groups(*scheme, product.depth, groups.group, tile.vectors, tile.lanes)


def _task(tiles: Tiles, count: int | None, block: tirx.Expr) -> None:
    """Emit one task: block number `block` of the rows, of which there are `count`, None where that is open."""
    first = block * i64(TASK_ROWS)
    remaining = tirx.min(i64(TASK_ROWS), tiles.rows - first)
    if not isinstance(tiles.columns, Groups):
        _rows(tiles, count, block)
    elif count is None:
        with T.If(remaining <= i64(FEW_ROWS)):
            with T.Then():
                tiles.single_rows(first, remaining)
            with T.Else():
                _rows(_unpacked(tiles, tiles.columns), count, block)
    else:
        _rows(tiles if count <= tiles.tile.rows else _unpacked(tiles, tiles.columns), count, block)


def _unpacked(tiles: Tiles, levels: Groups) -> Tiles:
    """Emit the values of a task's panel of levels; the tiles read those."""
    product, tile = tiles.product, tiles.tile
    values = T.alloc_buffer((1, product.depth, tile.columns), "float32")
    levels.unpack(values)
    return replace(tiles, columns=_packed(product, tile, values, i64(0), 1, 1))


def _rows(tiles: Tiles, count: int | None, block: tirx.Expr) -> None:
    """Emit the tiles of a block of rows."""
    first = block * i64(TASK_ROWS)
    if count is None:
        tiles.symbolic_block(first, tirx.min(i64(TASK_ROWS), tiles.rows - first))
    elif count <= TASK_ROWS:
        tiles.block(i64(0), count)
    elif count % TASK_ROWS == 0:
        tiles.block(first, TASK_ROWS)
    else:
        with T.If(block < i64(count // TASK_ROWS)):
            with T.Then():
                tiles.block(first, TASK_ROWS)
            with T.Else():
                tiles.block(first, count % TASK_ROWS)


def _row_count(tail: Tail) -> int | None:
    return as_int(volume(list(tail.output.ty.shape[:-1])))


def _expr(value: tirx.Expr | int) -> tirx.Expr:
    return i64(value) if isinstance(value, int) else value
