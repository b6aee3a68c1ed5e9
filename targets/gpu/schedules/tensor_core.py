"""Products on matrix units: float16 and bfloat16 summed in float32, int8 in int32, with what is fused behind them.

    C[batch.., row.., column..] = f(sum_k A[..] * B[..], ...)

A workgroup makes a tile of the result, each of its warps a part of that, in fragments of 16 x 16:

    for each step along the depth:
        barrier; both factors' tiles: registers -> shared memory, as they lie; barrier
        read the next step's tiles into registers
        for each 16 of the step: fragments of A, fragments of B, their products added to the sums
    for each fragment of the sums: to shared memory, and from there each thread's part through f to the result

Fragments are loaded, multiplied and stored by `tvm_load_matrix_sync`, `tvm_mma_sync` and `tvm_store_matrix_sync`,
which CUDA has as nvcuda::wmma and Vulkan as cooperative matrices. Rows and columns behind the last ones repeat it and
aren't stored; behind the end of the depth both factors are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import Capabilities, GpuTarget
from greencc.targets.gpu.schedules.epilogue import Epilogue
from greencc.targets.gpu.schedules.launch import barrier, when
from greencc.targets.gpu.schedules.matmul import Kernels, choose
from greencc.targets.gpu.schedules.products import Factor, Product, match_product
from greencc.targets.gpu.schedules.tensor_core_plan import (
    AREA,
    EDGE,
    PADDING_BYTES,
    WarpTiles,
    choose_tiles,
    read_tiles,
    tile_space,
)
from greencc.targets.gpu.schedules.threads import at, divided, is_multiple, launch, local, put, shared
from greencc.targets.kernel import Tail, check_tail, inline_tail, overwritable, parameter_index
from greencc.targets.tir import as_int, i64, ramp, splat
from greencc.targets.tuning.space import Plan, Space

# Fewer rows than this leave more than half of every fragment empty: other rules do those better.
MIN_ROWS = 8


@dataclass(frozen=True)
class TensorCoreRule:
    """Schedules products on matrix units; see the module's docstring."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-tensor-core"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = self._form(func)
        return form if isinstance(form, Declined) else tile_space(form[1], form[2], self.target.gpu)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a product with its tail, or decline."""
        form = self._form(func)
        if isinstance(form, Declined):
            return form
        tail, product, tiles = form
        gpu = self.target.gpu
        if plan is not None:
            problem = tile_space(product, tiles, gpu).problem(plan)
            if problem is not None:
                return Declined(problem)
            tiles = read_tiles(plan, tiles.warp)
        # A factor is read again for every tile of the other one, but a tail reads each element once.
        taken = [parameter_index(func, factor.buffer) for factor in (product.a, product.b)]
        overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in taken]
        return Scheduled(emit(func, tail, product, tiles, gpu), self.name, {}, tuple(overwrites))

    def _form(self, func: tirx.PrimFunc) -> tuple[Tail, Product, WarpTiles] | Declined:
        """What a kernel computes, and its tiles by default."""
        gpu = self.target.gpu
        if not gpu.has_tensor_cores or gpu.subgroup is None:
            return Declined("the device has no matrix units")
        tail = inline_tail(func)
        if isinstance(tail, str):
            return Declined(tail)
        product = match_product(tail)
        if isinstance(product, str):
            return Declined(product)
        reason = check_tail(tail) or _refusal(product, gpu)
        if reason is not None:
            return Declined(reason)
        tiles = choose_tiles(product, gpu)
        return Declined("tiles don't fit into shared memory") if tiles is None else (tail, product, tiles)


def _refusal(product: Product, gpu: Capabilities) -> str | None:
    """Why a product isn't for matrix units, or None."""
    if product.groups is not None:
        return "levels in groups"
    dtype = product.a.dtype
    has = {"float16": True, "bfloat16": gpu.has_tensor_bfloat16, "int8": gpu.has_tensor_int8}
    if not has.get(dtype, False):
        return f"no matrix units for {dtype}"
    rows = as_int(product.rows.size)
    if rows is not None and rows < MIN_ROWS:
        return f"{rows} rows leave matrix units empty"
    return None


def emit(func: tirx.PrimFunc, tail: Tail, product: Product, plan: WarpTiles, gpu: Capabilities) -> tirx.PrimFunc:
    """The scheduled PrimFunc. Where the number of rows is symbolic, one row gets a kernel without matrix units."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        buffers = {param: T.arg(param.name, param) for param in func.params}
        T.func_attr({"tirx.noalias": True})
        sizes = [product.batch.size, _count(product.rows.size, plan.rows), _count(product.columns.size, plan.columns)]

        def tiles() -> None:
            # Columns run fastest, so that workgroups that run together share rows of A.
            with launch(sizes, plan.threads) as ((batch, row, column), thread):
                kernel = Tiles(tail, product, plan, buffers, batch, thread)
                kernel.emit(row * i64(plan.rows), column * i64(plan.columns))

        # Bytes are read by a kernel for one row only where the weight is in its panels (see matmul.py).
        if as_int(product.rows.size) is None and not product.is_int8:
            others = Kernels(tail, product, buffers, False, gpu)
            choose([(product.rows.size <= i64(1), lambda: others.gemv(others.plan_gemv(1)))], tiles)
        else:
            tiles()
    return ib.get()


def _count(size: tirx.Expr, tile: int) -> tirx.Expr:
    known = as_int(size)
    return i64(-(-known // tile)) if known is not None else tirx.ceildiv(size, i64(tile))


class Tiles:
    """Emits one workgroup's tile."""

    def __init__(
        self,
        tail: Tail,
        product: Product,
        plan: WarpTiles,
        buffers: dict[tirx.Var, tirx.Var],
        batch: tirx.Expr,
        thread: tirx.Expr,
    ) -> None:
        self.product, self.plan, self.thread = product, plan, thread
        self.buffers, self.batch = buffers, batch
        self.epilogue = Epilogue(tail, product, buffers, batch)
        self.fragments = plan.warp_rows // EDGE, plan.warp_columns // EDGE
        warp, self.lane = divided(thread, plan.warp)
        down, across = divided(warp, plan.across)
        self.warp = warp
        self.warp_row, self.warp_column = down * i64(plan.warp_rows), across * i64(plan.warp_columns)

    def emit(self, row: tirx.Expr, column: tirx.Expr) -> None:
        """Emit the tile that starts at a row and a column."""
        plan, product = self.plan, self.product
        staged = [
            Staged(factor, factor is product.a, self.buffers[factor.buffer], self.batch, first, plan, self.thread)
            for factor, first in ((product.a, row), (product.b, column))
        ]
        down, across = self.fragments
        dtype = product.a.dtype
        a, b = (fragments(count, dtype, f"wmma.matrix_{side}") for count, side in ((down, "a"), (across, "b")))
        sums = fragments(down * across, product.sums, "wmma.accumulator")
        for i in range(down * across):
            T.evaluate(T.tvm_fill_fragment(*_fragment(sums, i), _zero(product.sums)))
        depth = product.depth.size
        steps = _count(depth, plan.depth)
        for tile in staged:
            tile.fetch(i64(0))
        with T.serial(i64(0), steps) as step:
            barrier()
            for tile in staged:
                tile.write()
            barrier()
            if as_int(steps) != 1:
                with T.If(step + i64(1) < steps), T.Then():
                    for tile in staged:
                        tile.fetch(step + i64(1))
            for k in range(0, plan.depth, EDGE):
                for i in range(down):
                    staged[0].load(a, i, self.warp_row + i64(i * EDGE), k)
                for j in range(across):
                    staged[1].load(b, j, self.warp_column + i64(j * EDGE), k)
                for i in range(down):
                    for j in range(across):
                        _multiply(sums, i * across + j, (a, i), (b, j))
        self._store(sums, row + self.warp_row, column + self.warp_column)

    def _store(self, sums: tirx.Var, row: tirx.Expr, column: tirx.Expr) -> None:
        """Emit the tails: fragment by fragment through shared memory, because who holds which sum isn't said."""
        plan, product = self.plan, self.product
        held = shared(plan.warps * AREA, product.sums)
        start = self.warp * i64(AREA)
        each = AREA // plan.warp
        # A thread has neighbours of a row.
        line, inside = divided(self.lane * i64(each), EDGE)
        rows = product.rows.size
        down, across = self.fragments
        for i in range(down):
            for j in range(across):
                barrier()
                # A plain address, because the memory may be that of a factor's tile, which has another type.
                pointer = tirx.address_of(tirx.BufferLoad(held, [start]))
                store = (*_fragment(sums, i * across + j), pointer, _int(EDGE), "row_major")
                T.evaluate(T.tvm_store_matrix_sync(*store))
                barrier()
                place = row + i64(i * EDGE) + line, column + i64(j * EDGE) + inside

                def total(n: int) -> tirx.Expr:
                    return at(held, start + self.lane * i64(each) + i64(n))

                with when(None if is_multiple(rows, plan.rows) else place[0] < rows):
                    self.epilogue.store(total, *place, each, plan.columns)


class Staged:
    """The way of a factor's tile from memory through registers to shared memory, and from there into fragments.

    The tile lies in shared memory as the factor does in memory: [major, depth], or [depth, major].
    """

    def __init__(
        self,
        factor: Factor,
        is_a: bool,
        buffer: tirx.Var,
        batch: tirx.Expr,
        first: tirx.Expr,
        plan: WarpTiles,
        thread: tirx.Expr,
    ) -> None:
        deep, wide = factor.lanes(factor.depth), factor.lanes(factor.major)
        self.along_depth = deep > wide or (deep == wide and factor.is_contiguous(factor.depth))
        self.lanes = max(deep, wide)
        self.factor, self.buffer, self.plan, self.thread, self.first = factor, buffer, plan, thread, first
        self.is_a = is_a
        self.size = size = plan.rows if is_a else plan.columns
        self.start = factor.offset(factor.batch, batch)
        lines, length = (size, plan.depth) if self.along_depth else (plan.depth, size)
        self.length = length
        width = 1 if factor.dtype == "int8" else 2
        self.stride = length + PADDING_BYTES // width
        self.chunks = lines * length // self.lanes
        self.each = -(-self.chunks // plan.threads)
        self.held = [local(self.lanes, factor.dtype) for _ in range(self.each)]
        self.memory = shared(lines * self.stride, factor.dtype)

    def fetch(self, step: tirx.Expr) -> None:
        """Emit the reading of a step's tile into registers."""
        factor, dtype = self.factor, self.factor.dtype
        whole = [ramp(i64(0), self.lanes)]
        depth = factor.depth.size

        def read(number: int) -> None:
            major, inside = self._place(number)
            k = step * i64(self.plan.depth) + inside
            offset = factor.offset(factor.major, self._clamped(self.first + major)) + factor.offset(factor.depth, k)
            value = at(self.buffer, self.start + offset, self.lanes)
            if is_multiple(depth, self.plan.depth):
                T.buffer_store(self.held[number], value, whole)
                return
            with T.If(k < depth):
                with T.Then():
                    T.buffer_store(self.held[number], value, whole)
                with T.Else():
                    T.buffer_store(self.held[number], splat(_zero(dtype), self.lanes), whole)

        self._each(read)

    def write(self) -> None:
        """Emit what was read to shared memory."""

        def write(number: int) -> None:
            line, inside = self._chunk(number)
            value = tirx.BufferLoad(self.held[number], [ramp(i64(0), self.lanes)])
            put(self.memory, value, line * i64(self.stride) + inside, self.lanes)

        self._each(write)

    def load(self, target: tirx.Var, index: int, major: tirx.Expr, depth: int) -> None:
        """Emit the reading of a fragment that starts at a row (column) of the tile and a depth of the step."""
        line, inside = (major, i64(depth)) if self.along_depth else (i64(depth), major)
        # An access pointer, because TVM takes a load from a plain address for one that has no effect.
        offset, extent = line * i64(self.stride) + inside, i64(EDGE * self.stride)
        pointer = self.memory.access_ptr("r", ptr_type=self.factor.dtype, offset=offset, extent=extent)
        layout = "row_major" if self.along_depth == self.is_a else "col_major"
        T.evaluate(T.tvm_load_matrix_sync(*_fragment(target, index), pointer, _int(self.stride), layout))

    def _each(self, body: Callable[[int], None]) -> None:
        for number in range(self.each):
            if self.chunks >= (number + 1) * self.plan.threads:
                body(number)
            else:
                with T.If(self.thread < i64(self.chunks - number * self.plan.threads)), T.Then():
                    body(number)

    def _chunk(self, number: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Line of the thread's chunk, and where in it the chunk starts."""
        chunk = self.thread + i64(number * self.plan.threads)
        line, inside = divided(chunk, self.length // self.lanes)
        return line, inside * i64(self.lanes)

    def _place(self, number: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Row (column) in the tile and depth in the step of the thread's chunk."""
        line, inside = self._chunk(number)
        return (line, inside) if self.along_depth else (inside, line)

    def _clamped(self, major: tirx.Expr) -> tirx.Expr:
        """A row (column) that can be read."""
        limit = self.factor.major.size
        if is_multiple(limit, self.size):
            return major
        return tirx.min(major, limit - i64(1 if self.along_depth else self.lanes))


def fragments(count: int, dtype: str, scope: str) -> tirx.Var:
    """Emit the declaration of fragments, which a warp holds together."""
    return T.alloc_buffer((count * AREA,), dtype, scope=scope)


def _fragment(buffer: tirx.Var, index: int) -> tuple[tirx.Expr, ...]:
    """A fragment, as the intrinsics take it: its variable, shape and number."""
    return (buffer.data, _int(EDGE), _int(EDGE), _int(EDGE), _int(index))


def _multiply(sums: tirx.Var, index: int, a: tuple[tirx.Var, int], b: tuple[tirx.Var, int]) -> None:
    total = (sums.data, _int(index))
    factors = (a[0].data, _int(a[1]), b[0].data, _int(b[1]))
    T.evaluate(T.tvm_mma_sync(*total, *factors, *total))


def _zero(dtype: str) -> tirx.Expr:
    return tirx.const(0, dtype)


def _int(value: int) -> tirx.Expr:
    return tirx.IntImm("int32", value)
