"""Emits a depthwise convolution."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.depthwise.plan import Tiling
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.kernel import Tail
from greencc.targets.tir import as_int, cover, i64, ramp, splat, split_index, strided_load, volume


class DepthwiseEmitter:
    """Emits one kernel; `lanes` are those of a copy."""

    def __init__(self, func: tirx.PrimFunc, tail: Tail, conv: Convolution, tiling: Tiling, lanes: int) -> None:
        self.func, self.tail, self.conv, self.tiling, self.lanes = func, tail, conv, tiling, lanes
        self.buffers: dict[tirx.Var, tirx.Var] = {}
        self.bands = -(-conv.out_height // tiling.band)
        self.multiplier = conv.out_channels // conv.words
        self.pitch = conv.source_width
        self.copied_rows = (tiling.band - 1) * conv.stride[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1

    def emit(self) -> tirx.PrimFunc:
        """The scheduled PrimFunc."""
        conv, chunk = self.conv, self.tiling.chunk
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            for param in self.func.params:
                self.buffers[param] = T.arg(param.name, param)
            T.func_attr({"tirx.noalias": True})
            extents = [self.tail.output.ty.shape[0], i64(conv.words), i64(self.bands)]
            units = volume(extents)
            tasks = tvm.sym.Analyzer().simplify(tirx.ceildiv(units, i64(chunk)))
            loop = T.serial if as_int(tasks) == 1 else T.parallel
            with loop(i64(0), tasks) as task:
                # What a tile reads behind the last row is dropped, but has to be there.
                size = self.copied_rows * conv.phases[1] * self.pitch + self.tiling.lanes
                copy = T.alloc_buffer((-(-size // self.lanes) * self.lanes,), "float32", scope="local")
                self._clear(copy, i64(0), int(copy.ty.shape[0]))
                first = task * i64(chunk)
                with T.serial(i64(0), tirx.min(i64(chunk), units - first)) as step:
                    n, c, band = split_index(first + step, extents)
                    # The last band overlaps the one before, so that all have the same height.
                    y0 = tirx.min(band * i64(self.tiling.band), i64(conv.out_height - self.tiling.band))
                    self._fill(copy, n, c, y0)
                    with T.serial(i64(0), i64(self.multiplier)) as j:
                        self._band(copy, n, c * i64(self.multiplier) + j, y0)
        return ib.get()

    def _clear(self, copy: tirx.Var, start: tirx.Expr, count: int) -> None:
        def store(at: tirx.Expr, lanes: int) -> None:
            T.buffer_store(copy, splat(tirx.const(0.0, "float32"), lanes), [ramp(start + at, lanes)])

        cover(count, self.lanes, store)

    def _fill(self, copy: tirx.Var, n: tirx.Expr, c: tirx.Expr, y0: tirx.Expr) -> None:
        """Copy the rows that the band from output row y0 on reads; padded columns hold 0 already."""
        conv = self.conv
        width = conv.phases[1] * self.pitch
        if self.bands == 1:  # the rows that are padding are the same ones each time
            low = min(conv.top, self.copied_rows)
            high = max(low, min(conv.top + conv.height, self.copied_rows))
            with T.serial(i64(0), i64(high - low)) as step:
                self._copy_row(copy, (step + i64(low)) * i64(width), [n, c, step + i64(low - conv.top)])
            return
        with T.serial(i64(0), i64(self.copied_rows)) as row:
            y = y0 * i64(conv.stride[0]) + row - i64(conv.top)
            with T.If(tirx.And(y >= i64(0), y < i64(conv.height))):
                with T.Then():
                    self._copy_row(copy, row * i64(width), [n, c, y])
                with T.Else():
                    self._clear(copy, row * i64(width), width)

    def _copy_row(self, copy: tirx.Var, base: tirx.Expr, row: list[tirx.Expr]) -> None:
        """Copy a row of the input, all its phases, to `base`."""
        conv, stride = self.conv, self.conv.stride[1]
        data = self.buffers[conv.data]

        def load(first: tirx.Expr, lanes: int) -> tirx.Expr:
            return tirx.BufferLoad(data, [*row, ramp(first, lanes)])

        for phase in range(conv.phases[1]):
            before = conv.left - phase
            low = min(max(0, -(-before // stride)), self.pitch)
            high = min(max(low, (conv.width - 1 + before) // stride + 1), self.pitch)

            def store(at: tirx.Expr, lanes: int, low: int = low, phase: int = phase) -> None:
                x = (at + i64(low)) * i64(stride) + i64(phase - conv.left)
                value = strided_load(load, x, stride, lanes)
                T.buffer_store(copy, value, [ramp(base + i64(phase * self.pitch + low) + at, lanes)])

            if high > low:
                cover(high - low, self.lanes, store)

    def _band(self, copy: tirx.Var, n: tirx.Expr, k: tirx.Expr, y0: tirx.Expr) -> None:
        """All outputs of filter k in the band from row y0 on."""
        tiling, width = self.tiling, self.conv.out_width
        columns = tiling.vectors * tiling.lanes
        with (
            T.serial(i64(0), i64(-(-tiling.band // tiling.rows))) as row_step,
            T.serial(i64(0), i64(-(-width // columns))) as column_step,
        ):
            y = tirx.min(row_step * i64(tiling.rows), i64(tiling.band - tiling.rows))
            x = tirx.min(column_step * i64(columns), i64(max(width - columns, 0)))
            tile = [registers(tiling.vectors, tiling.lanes) for _ in range(tiling.rows)]
            self._accumulate(copy, tile, k, y, x)
            for i, row in enumerate(tile):
                for v, sums in enumerate(row):
                    self._finish(sums, [n, k, y0 + y + i64(i)], x + i64(v * tiling.lanes))

    def _accumulate(self, copy: tirx.Var, tile: list[list[Register]], k: tirx.Expr, y: tirx.Expr, x: tirx.Expr) -> None:
        conv, lanes = self.conv, self.tiling.lanes
        (row_stride, stride), (row_dilation, dilation) = conv.stride, conv.dilation
        weight = self.buffers[conv.weight]
        for row in range((len(tile) - 1) * row_stride + (conv.kernel[0] - 1) * row_dilation + 1):
            users = [
                (sums, r)
                for i, sums in enumerate(tile)
                for r in range(conv.kernel[0])
                if i * row_stride + r * row_dilation == row
            ]
            if not users:
                continue
            base = (y * i64(row_stride) + i64(row)) * i64(conv.phases[1] * self.pitch) + x
            for q in range(conv.kernel[1]):
                shift, phase = divmod(q * dilation, stride)
                for v in range(self.tiling.vectors):
                    at = base + i64(phase * self.pitch + shift + v * lanes)
                    column = tirx.BufferLoad(copy, [ramp(at, lanes)])
                    for sums, r in users:
                        factor = splat(tirx.BufferLoad(weight, [k, i64(0), i64(r), i64(q)]), lanes)
                        sums[v].store(sums[v].value + factor * column)

    def _finish(self, sums: Register, row: list[tirx.Expr], x: tirx.Expr) -> None:
        """Evaluate the tail for a vector of outputs from [*row, x] on, and store those that are in the row."""
        start, left = 0, min(sums.lanes, self.conv.out_width)
        while left:
            lanes = 1 << (left.bit_length() - 1)
            with T.vectorized(i64(0), i64(lanes)) as lane:
                at = lane + i64(start)
                place = [*row, x + at]
                value = self.tail.value_at(sums.lane(at), place, self.buffers)
                T.buffer_store(self.buffers[self.tail.output], value, place)
            start, left = start + lanes, left - lanes
