"""The tasks of a matrix product: blocks of rows times panels of columns, in tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import RULE_ATTR
from greencc.targets.cpu.schedules.columns import Columns, Groups, InPlace, Packed
from greencc.targets.cpu.schedules.matmul_form import Form, Product
from greencc.targets.cpu.schedules.matmul_plan import MatmulPlan
from greencc.targets.cpu.schedules.matmul_tiles import Tiles
from greencc.targets.factors import GroupScheme
from greencc.targets.packing import ColumnPanels, DotPanels, NibblePanels
from greencc.targets.tir import as_int, i64, unravel, volume

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


def pack_operands(func: tirx.PrimFunc, form: Form, width: int) -> dict[int, PackedOperand]:
    """By the index of a parameter, how constants of the product are packed: B, and what its levels are worth.

    Args:
        func: the kernel.
        form: of its product.
        width: columns of a panel.
    """
    if not form.packed:
        return {}
    product = form.product
    groups = product.groups
    if groups is None:
        arithmetic = product.arithmetic
        layout = arithmetic.layout(width)
        found = {product.b: PackedOperand(layout, product.depth, product.columns, arithmetic.weight)}
    else:
        plain = ColumnPanels(width)
        levels = plain if groups.bits == 8 else NibblePanels(width)
        found = {product.b: PackedOperand(levels, product.depth, product.columns, "int8")}
        for buffer in (groups.scale, groups.offset):
            if buffer is not None:
                count = product.depth // groups.group
                found[buffer] = PackedOperand(plain, count, product.columns, str(buffer.ty.dtype))
    return {i: found[param] for i, param in enumerate(func.params) if param in found}


def emit(func: tirx.PrimFunc, form: Form, plan: MatmulPlan, operands: Mapping[int, PackedOperand]) -> tirx.PrimFunc:
    """The scheduled PrimFunc. Parameters that are packed have their packed shapes."""
    tail, product = form.tail, form.product
    rows = volume(form.row_dims)
    panels = -(-product.columns // plan.columns)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        buffers: dict[tirx.Var, tirx.Var] = {}
        for i, param in enumerate(func.params):
            declared = T.buffer(operands[i].shape, operands[i].dtype) if i in operands else param
            buffers[param] = T.arg(param.name, declared)
        T.func_attr({"tirx.noalias": True})
        extents = [*form.lead, *_arranged(_blocks(form, plan), i64(panels), plan)]
        total = volume(extents)
        loop = T.parallel if plan.parallel and as_int(total) != 1 else T.serial
        with loop(i64(0), total) as task:
            *batch, outer, inner = unravel(task, extents)
            block, panel = _arranged(outer, inner, plan)
            columns = _columns(form, plan, buffers, batch, panel, panels)
            tiles = Tiles(tail, product, plan, columns, buffers, batch, form.row_dims, rows, panel, panels)
            _task(tiles, form.rows, block)
    return ib.get().with_attr(RULE_ATTR, "cpu-matmul")


def _blocks(form: Form, plan: MatmulPlan) -> tirx.Expr:
    """Number of blocks of rows."""
    if form.rows is not None:
        return i64(-(-form.rows // plan.task_rows))
    return tirx.ceildiv(volume(form.row_dims), i64(plan.task_rows))


def _arranged(block: tirx.Expr, panel: tirx.Expr, plan: MatmulPlan) -> tuple[tirx.Expr, tirx.Expr]:
    """What belongs to blocks and to panels, the faster one last; arranges what is arranged back again."""
    return (block, panel) if plan.order == "panels" else (panel, block)


def _columns(
    form: Form,
    plan: MatmulPlan,
    buffers: Mapping[tirx.Var, tirx.Var],
    batch: list[tirx.Expr],
    panel: tirx.Expr,
    panels: int,
) -> Columns:
    product = form.product
    b = buffers[product.b]
    if product.groups is not None:
        return _in_groups(product, product.groups, plan, buffers, panel)
    if form.packed:
        share = plan.share if form.rows is None else max(1, min(form.rows, plan.task_rows) // plan.rows)
        return _packed(product, replace(plan, share=share), b, panel, panels)
    return InPlace(b, batch, panel * i64(plan.columns), product.steps, plan.vectors, plan.lanes, product.arithmetic)


def _packed(product: Product, plan: MatmulPlan, buffer: tirx.Var, panel: tirx.Expr, panels: int) -> Packed:
    tile, requests = (product.steps, plan.vectors, plan.lanes), (plan.ahead, plan.burst, plan.share)
    return Packed(buffer, panel, panels, *tile, *requests, product.arithmetic)


def _in_groups(
    product: Product, groups: GroupScheme, plan: MatmulPlan, buffers: Mapping[tirx.Var, tirx.Var], panel: tirx.Expr
) -> Groups:
    offset = None if groups.offset is None else buffers[groups.offset]
    scheme = (buffers[product.b], buffers[groups.scale], offset, panel, groups.bits)
    return Groups(*scheme, product.depth, groups.group, plan.vectors, plan.lanes, plan.ahead)


def _task(tiles: Tiles, count: int | None, block: tirx.Expr) -> None:
    """Emit one task: block number `block` of the rows, of which there are `count`, None where that is open."""
    columns, direct = tiles.columns, tiles.plan.direct_rows
    if not isinstance(columns, Groups):
        _rows(tiles, count, block)
    elif count is None:
        first, remaining = _symbolic_rows(tiles, block)
        with T.If(remaining <= i64(direct)):
            with T.Then():
                tiles.few_rows(first, remaining)
            with T.Else():
                _rows(_unpacked(tiles, columns), count, block)
    else:
        _rows(tiles if count <= direct else _unpacked(tiles, columns), count, block)


def _unpacked(tiles: Tiles, levels: Groups) -> Tiles:
    """Emit the values of a task's panel of levels; the tiles read those."""
    product, plan = tiles.product, tiles.plan
    values = T.alloc_buffer((1, product.depth, plan.columns), "float32")
    levels.unpack(values)
    return replace(tiles, columns=_packed(product, plan, values, i64(0), 1))


def _rows(tiles: Tiles, count: int | None, block: tirx.Expr) -> None:
    """Emit the tiles of a block of rows."""
    most = tiles.plan.task_rows
    first = block * i64(most)
    if count is None:
        tiles.symbolic_block(*_symbolic_rows(tiles, block))
    elif count <= most:
        tiles.block(i64(0), count)
    elif count % most == 0:
        tiles.block(first, most)
    else:
        with T.If(block < i64(count // most)):
            with T.Then():
                tiles.block(first, most)
            with T.Else():
                tiles.block(first, count % most)


def _symbolic_rows(tiles: Tiles, block: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """The first row of a block, and how many it has."""
    first = block * i64(tiles.plan.task_rows)
    return first, tirx.min(i64(tiles.plan.task_rows), tiles.rows - first)
