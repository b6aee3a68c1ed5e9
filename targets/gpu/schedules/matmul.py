"""Matrix products on GPUs, with everything elementwise behind them in one kernel.

    C[batch.., i.., j..] = f(sum_k A[..] * B[..], ...)

A and B are floats of 16 or 32 bits (sums are float32), or bytes summed in int32, or B holds levels in groups. Products
of few rows take all threads of a workgroup along the depth (see gemv.py), others are made in tiles (see
matmul_tiles.py). For a number of rows that is known at run time only, there is a kernel for one row, one for few and
one for many, and the host launches the one that fits.

A constant matrix B is stored in panels of columns, filled up with zeros, so that it is always read in whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import Capabilities, GpuTarget
from greencc.targets.gpu.schedules.arithmetic import arithmetic_of
from greencc.targets.gpu.schedules.epilogue import Epilogue
from greencc.targets.gpu.schedules.gemv import Gemv, GemvPlan, plan_gemv
from greencc.targets.gpu.schedules.matmul_plan import TilePlan, plan_tiles
from greencc.targets.gpu.schedules.matmul_space import Chunks, ProductPlan, product_space, read_plan
from greencc.targets.gpu.schedules.matmul_tiles import Tiles
from greencc.targets.gpu.schedules.products import Product, match_product
from greencc.targets.gpu.schedules.sources import (
    BYTES,
    ByteRows,
    InPlace,
    LevelPanels,
    Panels,
    RowSource,
    Source,
    panel_width,
)
from greencc.targets.gpu.schedules.threads import is_multiple, launch
from greencc.targets.kernel import Tail, check_tail, inline_tail, overwritable, parameter_index
from greencc.targets.packing import ColumnPanels, Transposed, WordPanels
from greencc.targets.tir import as_int, i64
from greencc.targets.tuning.space import Plan, Space

# Up to so many rows B is read once for all of them, and the time is that of reading it.
GEMV_ROWS = 8
# Of a symbolic number of rows: up to so many, tiles for few rows are used.
FEW_ROWS = 32
# Rows (columns) of a chunk of a tile: whole vectors of them are written to shared memory.
TOGETHER = 4

PanelLayout: TypeAlias = ColumnPanels | WordPanels


@dataclass(frozen=True)
class PackedOperand:
    """A constant parameter: how it is packed, and what the kernel declares."""

    layout: PanelLayout | Transposed
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MatmulRule:
    """Schedules products; see the module's docstring."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-matmul"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = self._form(func, constants)
        return form if isinstance(form, Declined) else form.space()

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a product with its tail, or decline."""
        form = self._form(func, constants)
        if isinstance(form, Declined):
            return form
        problem = None if plan is None else form.space().problem(plan)
        if problem is not None:
            return Declined(problem)
        emitted = emit(form, form.default if plan is None else read_plan(plan, form.default))
        # Factors are read again by other workgroups, but a tail reads each element once.
        tail, product = form.tail, form.product
        taken = [parameter_index(func, factor.buffer) for factor in (product.a, product.b)]
        overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in taken]
        layouts = {index: operand.layout for index, operand in form.operands.items()}
        return Scheduled(emitted, self.name, layouts, tuple(overwrites))

    def _form(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Form | Declined:
        tail = inline_tail(func)
        if isinstance(tail, str):
            return Declined(tail)
        product = match_product(tail)
        if isinstance(product, str):
            return Declined(product)
        operands = pack_operands(func, product, constants)
        reason = check_tail(tail) or _check_operands(product, operands)
        return Form(func, tail, product, operands, self.target.gpu) if reason is None else Declined(reason)


@dataclass(frozen=True)
class FewRowsRule(MatmulRule):
    """Makes products of few rows in tiles too. MatmulRule comes first: it takes a tuning record to choose this one."""

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-matmul-few-rows"

    def _form(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Form | Declined:
        form = super()._form(func, constants)
        if isinstance(form, Declined):
            return form
        is_gemv = isinstance(form.kernels.default().many, GemvPlan)
        return replace(form, tiles_only=True) if is_gemv else Declined("its rows aren't few, or not known")


@dataclass(frozen=True)
class Form:
    """A product that the rule takes.

    Attributes:
        func: the kernel to schedule.
        tail, product: what it computes.
        operands: parameters that are packed, by their index.
        gpu: what the device can do.
        tiles_only: whether it is made in tiles even where it has few rows.
    """

    func: tirx.PrimFunc
    tail: Tail
    product: Product
    operands: Mapping[int, PackedOperand]
    gpu: Capabilities
    tiles_only: bool = False

    @property
    def kernels(self) -> Kernels:
        """What emits launches, for questions about them: its buffers are the parameters that aren't packed yet."""
        return self.launches({param: param for param in self.func.params})

    def launches(self, buffers: dict[tirx.Var, tirx.Var]) -> Kernels:
        """What emits launches of a kernel with these buffers, by its parameters."""
        return Kernels(self.tail, self.product, buffers, bool(self.operands), self.gpu)

    @property
    def default(self) -> ProductPlan:
        """What is launched without a tuning record."""
        return ProductPlan(plan_tiles(self.product, self.gpu)) if self.tiles_only else self.kernels.default()

    def space(self) -> Space:
        """What can be chosen."""
        return product_space(self.product, self.gpu, self.default, self.kernels.chunks())


def pack_operands(func: tirx.PrimFunc, product: Product, constants: frozenset[int]) -> dict[int, PackedOperand]:
    """By the index of a parameter, how constants are packed: a matrix B, and what its levels are worth."""
    b = product.b
    index = parameter_index(func, b.buffer)
    is_matrix = len(b.indices) == 2 and len(b.major.variables) == len(b.depth.variables) == 1
    if index is None or index not in constants or not is_matrix:
        return {}
    depth, columns = as_int(b.depth.size), as_int(b.major.size)
    if depth is None or columns is None:
        return {}
    width, transposed = panel_width(columns), b.indices[0].same_as(b.major.variables[0])

    def packed(layout: PanelLayout, rows: int, dtype: str) -> PackedOperand:
        return PackedOperand(Transposed(layout) if transposed else layout, layout.shape(rows, columns), dtype)

    groups = product.groups
    if groups is None:
        if product.is_int8:
            return {index: packed(WordPanels(width, 8), depth, "int32")}
        return {index: packed(ColumnPanels(width), depth, b.dtype)}
    found = {index: packed(WordPanels(width, groups.bits), depth, "int32")}
    for buffer in (groups.scale, groups.offset):
        if buffer is not None:
            own = parameter_index(func, buffer)
            if own is None or own not in constants:
                return {}
            found[own] = packed(ColumnPanels(width), depth // groups.group, str(buffer.ty.dtype))
    return found


def _check_operands(product: Product, operands: Mapping[int, PackedOperand]) -> str | None:
    """Why the factors can't be read by a kernel, or None."""
    a, groups = product.a, product.groups
    if groups is not None:
        if not operands:
            return "levels in groups are no constants"
        if groups.group % (32 // groups.bits):
            return f"groups of {groups.group} levels aren't whole words"
    if product.is_int8:
        if not operands:
            return "the second factor in bytes is no constant"
        if not a.is_contiguous(a.depth) or not is_multiple(a.buffer.ty.shape[-1], BYTES):
            return "the bytes of the first factor aren't in whole words along the depth"
    return None


def emit(form: Form, plan: ProductPlan) -> tirx.PrimFunc:
    """The scheduled PrimFunc. Parameters that are packed have their packed shapes."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        buffers: dict[tirx.Var, tirx.Var] = {}
        for i, param in enumerate(form.func.params):
            operand = form.operands.get(i)
            declared = param if operand is None else T.buffer(tuple(map(i64, operand.shape)), operand.dtype)
            buffers[param] = T.arg(param.name, declared)
        T.func_attr({"tirx.noalias": True})
        kernels, size = form.launches(buffers), form.product.rows.size
        # Each case is emitted where it is chosen: a variable keeps its value until then.
        limits = {1: plan.one, FEW_ROWS: plan.few}
        cases = [(size <= i64(most), partial(kernels.emit, case)) for most, case in limits.items() if case is not None]
        choose(cases, lambda: kernels.emit(plan.many))
    return ib.get()


def choose(cases: Sequence[tuple[tirx.Expr, Callable[[], None]]], otherwise: Callable[[], None]) -> None:
    """Emit the first case whose condition holds."""
    if not cases:
        otherwise()
        return
    (condition, body), *rest = cases
    with T.If(condition):
        with T.Then():
            body()
        with T.Else():
            choose(rest, otherwise)


class Kernels:
    """Emits launches of a product."""

    def __init__(
        self,
        tail: Tail,
        product: Product,
        buffers: dict[tirx.Var, tirx.Var],
        packed: bool,
        gpu: Capabilities,
    ) -> None:
        self.tail, self.product, self.buffers, self.packed, self.gpu = tail, product, buffers, packed, gpu
        self.arithmetic = arithmetic_of(product.is_int8, gpu)
        depth = product.depth.size
        self.depth = depth if not product.is_int8 else i64(-(-int(depth) // BYTES))

    def default(self) -> ProductPlan:
        """What is launched without a tuning record."""
        rows = as_int(self.product.rows.size)
        if rows is not None:
            return ProductPlan(self.plan_gemv(rows) if rows <= GEMV_ROWS else plan_tiles(self.product, self.gpu))
        few = plan_tiles(self.product, self.gpu, FEW_ROWS)
        return ProductPlan(plan_tiles(self.product, self.gpu), few, self.plan_gemv(1))

    def plan_gemv(self, rows: int) -> GemvPlan:
        """How threads share out a product of so many rows."""
        return plan_gemv(rows, self._b(i64(0), 1, 1), min(256, self.gpu.max_threads), self.gpu.shared_bytes // 2)

    def chunks(self) -> Chunks:
        """What tiles must be made of."""
        a, b = self._a(i64(0), 1, TOGETHER), self._b(i64(0), 1, TOGETHER)
        return Chunks(a.wide, b.wide, max(a.deep, b.deep))

    def emit(self, plan: GemvPlan | TilePlan) -> None:
        """Emit a launch."""
        if isinstance(plan, GemvPlan):
            self.gemv(plan)
        else:
            self.tiles(plan)

    def gemv(self, plan: GemvPlan) -> None:
        """Emit a launch of threads that share out the depth."""

        def body(batch: tirx.Expr, row: tirx.Expr, column: tirx.Expr, thread: tirx.Expr) -> None:
            kernel = Gemv(plan, self.arithmetic, self.depth, self._epilogue(batch))
            kernel.emit(self._a(batch, plan.rows, 1), self._b(batch, plan.columns, 1), (row, column), thread)

        self._launch(plan.rows, plan.columns, plan.threads, body)

    def tiles(self, plan: TilePlan) -> None:
        """Emit a launch of tiles."""

        def body(batch: tirx.Expr, row: tirx.Expr, column: tirx.Expr, thread: tirx.Expr) -> None:
            kernel = Tiles(plan, self.arithmetic, self.depth, self._epilogue(batch))
            a, b = (self._a(batch, plan.rows, TOGETHER), self._b(batch, plan.columns, TOGETHER))
            kernel.emit(a, b, (row, column), thread)

        self._launch(plan.rows, plan.columns, plan.threads, body)

    def _launch(
        self,
        rows: int,
        columns: int,
        threads: int,
        body: Callable[[tirx.Expr, tirx.Expr, tirx.Expr, tirx.Expr], None],
    ) -> None:
        """Emit a launch of groups that make so many rows and columns each; neighbouring groups share rows."""
        product = self.product
        extents = [product.batch.size, _blocks(product.rows.size, rows), _blocks(product.columns.size, columns)]
        with launch(extents, threads) as ((batch, row, column), thread):
            body(batch, row * i64(rows), column * i64(columns), thread)

    def _epilogue(self, batch: tirx.Expr) -> Epilogue:
        return Epilogue(self.tail, self.product, self.buffers, batch)

    def _a(self, batch: tirx.Expr, block: int, together: int) -> RowSource:
        a = self.product.a
        buffer, start = self.buffers[a.buffer], a.offset(a.batch, batch)
        return (ByteRows if self.product.is_int8 else InPlace)(a, buffer, start, block, together)

    def _b(self, batch: tirx.Expr, block: int, together: int) -> Source:
        b, groups = self.product.b, self.product.groups
        buffer = self.buffers[b.buffer]
        if not self.packed:
            return InPlace(b, buffer, b.offset(b.batch, batch), block, together)
        if groups is None:
            return Panels(buffer, block)
        offset = None if groups.offset is None else self.buffers[groups.offset]
        scheme = (self.buffers[groups.scale], offset)
        return LevelPanels(buffer, *scheme, groups.bits, groups.group, block)


def _blocks(size: tirx.Expr, of: int) -> tirx.Expr:
    """How many blocks of a size cover an extent."""
    count = as_int(size)
    return tirx.ceildiv(size, i64(of)) if count is None else i64(-(-count // of))
