"""What the taps of a convolution read: its input, or a padded copy of it that is split by stride."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.convolution.plan import Plan
from greencc.targets.cpu.schedules.matmul import MIN_PARALLEL_WORK
from greencc.targets.tir import as_int, i64, prefetch, ramp, splat, strided_load


class Source:
    """Reads vectors of positions. Making one emits the copy, where the plan wants it.

    Attributes:
        pitch: positions from one row to the next.
        run: positions of a band, filled up to whole vectors.
        length: positions of a band.
    """

    def __init__(self, conv: Convolution, plan: Plan, buffers: dict[tirx.Var, tirx.Var], batch: tirx.Expr) -> None:
        self.conv, self.plan, self.buffers = conv, plan, buffers
        self.pitch = conv.width if plan.direct else conv.source_width
        self.plane = conv.height * conv.width if plan.direct else conv.source_height * conv.source_width
        self.length = (plan.height - 1) * self.pitch + conv.out_width
        self.run = -(-self.length // plan.lanes) * plan.lanes
        self.copy = None if plan.direct else self._copy(batch)

    def last(self, vectors: int) -> int:
        """The last start of a run of `vectors` in a band: the input must not be read beyond its end."""
        return self.length - vectors * self.plan.lanes if self.plan.direct else self.run

    def load(
        self, n: tirx.Expr, c: tirx.Expr, r: tirx.Expr, q: tirx.Expr, position: tirx.Expr, lanes: int
    ) -> tirx.Expr:
        """A vector of words for tap (r, q) of image n and word c of its channels, from `position` on."""
        start = self._start(n, c, r, q, position)
        if self.copy is None:  # rows follow each other: a position counts through all of them
            return self.conv.taps.read(self.buffers[self.conv.data], [n, c, i64(0)], start, lanes)
        return tirx.BufferLoad(self.copy, [ramp(start, lanes)])

    def ask_for(self, n: tirx.Expr, c: tirx.Expr, position: tirx.Expr) -> None:
        """Emit a request for the vector of tap (0, 0) to be brought into the first cache."""
        start = self._start(n, c, i64(0), i64(0), position)
        if self.copy is not None:
            prefetch(tirx.BufferLoad(self.copy, [start]), 1)
            return
        data = self.buffers[self.conv.data]
        inner = [start] if len(data.ty.shape) == 4 else [i64(0), start * i64(self.conv.taps.depth)]
        prefetch(tirx.BufferLoad(data, [n, c, i64(0), *inner]), 1)

    def _start(self, n: tirx.Expr, c: tirx.Expr, r: tirx.Expr, q: tirx.Expr, position: tirx.Expr) -> tirx.Expr:
        """Where a vector begins: in the planes of word c, or in the whole copy."""
        (sy, sx), (dy, dx) = self.conv.stride, self.conv.dilation
        row, column = r * i64(dy), q * i64(dx)
        offset = tirx.floordiv(row, i64(sy)) * i64(self.pitch) + tirx.floordiv(column, i64(sx)) + position
        if self.copy is None:
            return offset
        return self._plane(n, c, tirx.floormod(row, i64(sy)), tirx.floormod(column, i64(sx))) + offset

    def _copy(self, batch: tirx.Expr) -> tirx.Var:
        """The padded copy: words [batch, row phases, column phases, words, source rows, source columns]."""
        conv = self.conv
        images = batch * i64(conv.words)
        # The last vector of a band may reach beyond the last plane.
        size = images * i64(conv.phases[0] * conv.phases[1] * self.plane) + i64(self.run)
        copy = T.alloc_buffer((tvm.sym.Analyzer().simplify(size),), conv.taps.word, scope="global")
        loop = T.parallel if (as_int(images) or 2) * self.plane >= MIN_PARALLEL_WORK // 4 else T.serial
        with loop(i64(0), images) as image:
            n, c = tirx.floordiv(image, i64(conv.words)), tirx.floormod(image, i64(conv.words))
            for a in range(conv.phases[0]):
                for b in range(conv.phases[1]):
                    self._fill(copy, n, c, a, b)
        return copy

    def _fill(self, copy: tirx.Var, n: tirx.Expr, c: tirx.Expr, a: int, b: int) -> None:
        """One plane: rows a, a + sy, ... and columns b, b + sx, ... of a padded word of channels."""
        conv = self.conv
        base = self._plane(n, c, i64(a), i64(b))
        y_low, y_high = _inside(conv.top - a, conv.height, conv.stride[0], conv.source_height)
        x_low, x_high = _inside(conv.left - b, conv.width, conv.stride[1], conv.source_width)
        outside = conv.taps.padding(None if conv.zero is None else self.buffers[conv.zero], n)

        def clear(start: tirx.Expr, count: int) -> None:
            def store(at: tirx.Expr, lanes: int) -> None:
                T.buffer_store(copy, splat(outside, lanes), [ramp(start + at, lanes)])

            in_vectors(count, self.plan.lanes, store)

        clear(base, y_low * self.pitch)
        with T.serial(i64(0), i64(y_high - y_low)) as step:
            row = base + (step + i64(y_low)) * i64(self.pitch)
            y = (step + i64(y_low)) * i64(conv.stride[0]) + i64(a - conv.top)

            def load(first: tirx.Expr, lanes: int) -> tirx.Expr:
                return conv.taps.read(self.buffers[conv.data], [n, c, y], first, lanes)

            def store(at: tirx.Expr, lanes: int) -> None:
                x = (at + i64(x_low)) * i64(conv.stride[1]) + i64(b - conv.left)
                value = strided_load(load, x, conv.stride[1], lanes)
                T.buffer_store(copy, value, [ramp(row + i64(x_low) + at, lanes)])

            clear(row, x_low)
            in_vectors(x_high - x_low, self.plan.lanes, store)
            clear(row + i64(x_high), self.pitch - x_high)
        clear(base + i64(y_high * self.pitch), (conv.source_height - y_high) * self.pitch)

    def _plane(self, n: tirx.Expr, c: tirx.Expr, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """Where a plane of the padded copy begins."""
        conv = self.conv
        image = ((n * i64(conv.phases[0]) + a) * i64(conv.phases[1]) + b) * i64(conv.words) + c
        return image * i64(self.plane)


def in_vectors(count: int, lanes: int, body: Callable[[tirx.Expr, int], None]) -> None:
    """Emit `body(start, lanes)` for vectors that fill 0..count: whole ones, then ever smaller ones."""
    full = count // lanes
    if full:
        with T.serial(i64(0), i64(full)) as step:
            body(step * i64(lanes), lanes)
    for start, size in _halves(full * lanes, count, lanes):
        body(i64(start), size)


def _halves(start: int, stop: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Powers of two that fill start..stop, the largest first: (where, how many)."""
    while start < stop:
        lanes //= 2
        if start + lanes <= stop:
            yield start, lanes
            start += lanes
            lanes *= 2


def _inside(before: int, size: int, stride: int, count: int) -> tuple[int, int]:
    """The i of 0..count for which 0 <= i * stride - before < size, as a range."""
    low = int(np.clip(-(-before // stride), 0, count))
    return low, int(np.clip((size - 1 + before) // stride + 1, low, count))
