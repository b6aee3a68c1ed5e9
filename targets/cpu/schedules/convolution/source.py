"""What the taps of a convolution read: its input, or a padded copy that is split by stride, of all or of a band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.corner import Corner
from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.convolution.plan import Plan
from greencc.targets.cpu.schedules.matmul_space import MIN_PARALLEL_WORK
from greencc.targets.tir import as_int, i64, prefetch, ramp, splat, strided_load


class Source:
    """Reads vectors of positions. Making one emits the copy, where the plan wants one of all.

    Attributes:
        pitch: positions from one row to the next.
        run: positions of a band, filled up to whole vectors.
        length: positions of a band.
    """

    def __init__(self, conv: Convolution, plan: Plan, buffers: dict[tirx.Var, tirx.Var], batch: tirx.Expr) -> None:
        self.conv, self.plan, self.buffers = conv, plan, buffers
        self.pitch = conv.width if plan.direct else conv.source_width
        # Rows of a plane: those that the taps of a band read, or of all.
        self.rows = conv.source_height - (conv.out_height - plan.height if plan.source == "band" else 0)
        self.plane = conv.height * conv.width if plan.direct else self.rows * conv.source_width
        self.length = (plan.height - 1) * self.pitch + conv.out_width
        self.run = -(-self.length // plan.lanes) * plan.lanes
        self.copy: tirx.Var | None = None
        if plan.source == "copy":
            self._copy_all(batch)

    def prepare(self, corner: Corner) -> None:
        """Emit what a task needs before it reads: the copy of its band, where the plan wants that."""
        if self.plan.source == "band":
            self._copy_band(corner)

    def last(self, vectors: int) -> int:
        """The last start of a run of `vectors` in a band: the input must not be read beyond its end."""
        return self.length - vectors * self.plan.lanes if self.plan.direct else self.run

    def load(
        self, corner: Corner, c: tirx.Expr, r: tirx.Expr, q: tirx.Expr, position: tirx.Expr, lanes: int
    ) -> tirx.Expr:
        """A vector of words for tap (r, q) of word c of a group's channels, from `position` of a band on."""
        place = self._place(corner, c, r, q, position)
        if self.copy is None:  # rows follow each other: a position counts through all of them
            return self.conv.taps.read(self.buffers[self.conv.data], [*place[:2], i64(0)], place[2], lanes)
        return tirx.BufferLoad(self.copy, [ramp(place[0], lanes)])

    def ask_for(self, corner: Corner, c: tirx.Expr, position: tirx.Expr) -> None:
        """Emit a request for the vector of tap (0, 0) to be brought into the first cache."""
        place = self._place(corner, c, i64(0), i64(0), position)
        if self.copy is not None:
            prefetch(tirx.BufferLoad(self.copy, place), 1)
            return
        data = self.buffers[self.conv.data]
        inner = place[2:] if len(data.ty.shape) == 4 else [i64(0), place[2] * i64(self.conv.taps.depth)]
        prefetch(tirx.BufferLoad(data, [*place[:2], i64(0), *inner]), 1)

    def _place(self, corner: Corner, c: tirx.Expr, r: tirx.Expr, q: tirx.Expr, position: tirx.Expr) -> list[tirx.Expr]:
        """Where a vector begins: [image, word, position] in the input, or [element] of the copy."""
        (sy, sx), (dy, dx) = self.conv.stride, self.conv.dilation
        row, column = r * i64(dy), q * i64(dx)
        offset = tirx.floordiv(row, i64(sy)) * i64(self.pitch) + tirx.floordiv(column, i64(sx))
        if self.plan.source == "band":
            phase = tirx.floormod(row, i64(sy)), tirx.floormod(column, i64(sx))
            return [self._plane(i64(0), c, phase, self.conv.group_words) + offset + position]
        offset = offset + (corner.y * i64(self.pitch) + position)
        channel = corner.group * i64(self.conv.group_words) + c
        if self.plan.direct:
            return [corner.n, channel, offset]
        phase = tirx.floormod(row, i64(sy)), tirx.floormod(column, i64(sx))
        return [self._plane(corner.n, channel, phase, self.conv.words) + offset]

    def _plane(self, n: tirx.Expr, c: tirx.Expr, phase: tuple[tirx.Expr, tirx.Expr], words: int) -> tirx.Expr:
        """Where a plane of a padded copy of so many words begins."""
        rows, columns = self.conv.phases
        image = ((n * i64(rows) + phase[0]) * i64(columns) + phase[1]) * i64(words) + c
        return image * i64(self.plane)

    def _copy_all(self, batch: tirx.Expr) -> None:
        """The padded copy: words [batch, row phases, column phases, words, source rows, source columns]."""
        conv = self.conv
        images = batch * i64(conv.words)
        # The last vector of a band may reach beyond the last plane.
        size = images * i64(conv.phases[0] * conv.phases[1] * self.plane) + i64(self.run)
        copy = T.alloc_buffer((tvm.sym.Analyzer().simplify(size),), conv.taps.word, scope="global")
        loop = T.parallel if (as_int(images) or 2) * self.plane >= MIN_PARALLEL_WORK // 4 else T.serial
        with loop(i64(0), images) as image:
            n, c = tirx.floordiv(image, i64(conv.words)), tirx.floormod(image, i64(conv.words))
            for a, b in self._phases():
                plane = Plane(copy, self._plane(n, c, (i64(a), i64(b)), conv.words), n, c, (a, b))
                low, high = _inside(conv.top - a, conv.height, conv.stride[0], conv.source_height)
                self._clear(plane, plane.base, low * self.pitch)
                with T.serial(i64(0), i64(high - low)) as step:
                    self._row(plane, step + i64(low), step + i64(low))
                self._clear(plane, plane.base + i64(high * self.pitch), (conv.source_height - high) * self.pitch)
        self.copy = copy

    def _copy_band(self, corner: Corner) -> None:
        """The copy of a band of a group: words [row phases, column phases, words, rows, source columns]."""
        conv, words = self.conv, self.conv.group_words
        size = words * conv.phases[0] * conv.phases[1] * self.plane + self.run
        self.copy = copy = T.alloc_buffer((size,), conv.taps.word, scope="local")
        with T.serial(i64(0), i64(words)) as c:
            for a, b in self._phases():
                base = self._plane(i64(0), c, (i64(a), i64(b)), words)
                plane = Plane(copy, base, corner.n, corner.group * i64(words) + c, (a, b))
                low, high = _inside(conv.top - a, conv.height, conv.stride[0], conv.source_height)
                with T.serial(i64(0), i64(self.rows)) as row:
                    y = corner.y + row
                    if (low, high) == (0, conv.source_height):
                        self._row(plane, row, y)
                        continue
                    with T.If(tirx.all(y >= i64(low), y < i64(high))):
                        with T.Then():
                            self._row(plane, row, y)
                        with T.Else():
                            self._clear(plane, base + row * i64(self.pitch), self.pitch)

    def _phases(self) -> list[tuple[int, int]]:
        return [(a, b) for a in range(self.conv.phases[0]) for b in range(self.conv.phases[1])]

    def _row(self, plane: Plane, row: tirx.Expr, y: tirx.Expr) -> None:
        """Row `row` of a plane: of its phase of the padded input, row y."""
        conv, (a, b) = self.conv, plane.phase
        low, high = _inside(conv.left - b, conv.width, conv.stride[1], conv.source_width)
        start = plane.base + row * i64(self.pitch)
        where = y * i64(conv.stride[0]) + i64(a - conv.top)

        def load(first: tirx.Expr, lanes: int) -> tirx.Expr:
            return conv.taps.read(self.buffers[conv.data], [plane.n, plane.c, where], first, lanes)

        def store(at: tirx.Expr, lanes: int) -> None:
            x = (at + i64(low)) * i64(conv.stride[1]) + i64(b - conv.left)
            value = strided_load(load, x, conv.stride[1], lanes)
            T.buffer_store(plane.copy, value, [ramp(start + i64(low) + at, lanes)])

        self._clear(plane, start, low)
        in_vectors(high - low, self.plan.lanes, store)
        self._clear(plane, start + i64(high), self.pitch - high)

    def _clear(self, plane: Plane, start: tirx.Expr, count: int) -> None:
        """Elements of a plane that lie outside of the input."""
        zero = self.conv.zero
        outside = self.conv.taps.padding(None if zero is None else self.buffers[zero], plane.n)

        def store(at: tirx.Expr, lanes: int) -> None:
            T.buffer_store(plane.copy, splat(outside, lanes), [ramp(start + at, lanes)])

        in_vectors(count, self.plan.lanes, store)


@dataclass(frozen=True)
class Plane:
    """A phase of a word of an image in a copy.

    Attributes:
        copy: the buffer.
        base: where the plane begins.
        n, c: the image, and the word of all its channels.
        phase: rows a, a + sy, ... and columns b, b + sx, ... of the padded input.
    """

    copy: tirx.Var
    base: tirx.Expr
    n: tirx.Expr
    c: tirx.Expr
    phase: tuple[int, int]


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
