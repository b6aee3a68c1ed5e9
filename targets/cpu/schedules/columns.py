"""Where a register tile reads its columns of B from, step by step along k: in place, packed, or levels in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.multiply import Arithmetic, weight_bytes
from greencc.targets.cpu.schedules.registers import Register, register
from greencc.targets.tir import i64, prefetch, ramp, splat, vector_type

# Bytes that memory is moved in.
CACHE_LINE = 64
# The half of a byte that a level of four bits takes.
_NIBBLE = 4

Step = tuple[tirx.Expr, list[tirx.Expr]]
"""A step along k, and the vectors of columns in it."""


class Columns(Protocol):
    """The columns of one panel of B."""

    def steps(self, tile: tirx.Expr) -> Iterator[Step]:
        """Emit the loop over k around what is emitted for each step; `tile` is the number of the tile in its task."""


@dataclass(frozen=True)
class InPlace:
    """Columns of B as it lies, B [..., k, j].

    Attributes:
        buffer: B.
        lead: indices in front of k.
        first: the first column.
        count: steps along k.
        vectors, lanes: of a step.
        arithmetic: reads vectors.
    """

    buffer: tirx.Var
    lead: list[tirx.Expr]
    first: tirx.Expr
    count: int
    vectors: int
    lanes: int
    arithmetic: Arithmetic

    def steps(self, tile: tirx.Expr) -> Iterator[Step]:
        """See Columns."""
        with T.serial(i64(0), i64(self.count)) as step:
            place = [*self.lead, step]
            starts = [self.first + i64(v * self.lanes) for v in range(self.vectors)]
            yield step, [self.arithmetic.columns(self.buffer, place, start, self.lanes) for start in starts]


@dataclass(frozen=True)
class Packed:
    """A panel of packed B [panels, steps, width]. While it is used, the next one is brought into the second cache.

    A panel is read once per tile, and the tiles of a task share the prefetching of the next panel: it comes from
    memory or the last-level cache, and waiting for that costs more than a tenth of the time otherwise.

    Attributes:
        buffer: B.
        panel: the panel's number.
        panels: how many there are.
        count: steps along k.
        vectors, lanes: of a step.
        ahead: steps between asking for a part of the panel and reading it.
        burst: steps between requests for parts of the next panel, a divisor of `count`; 0 where nothing is asked for.
        share: tiles among which those requests are divided.
        arithmetic: reads vectors.
    """

    buffer: tirx.Var
    panel: tirx.Expr
    panels: int
    count: int
    vectors: int
    lanes: int
    ahead: int
    burst: int
    share: int
    arithmetic: Arithmetic

    @property
    def _width(self) -> int:
        """Elements of a step."""
        return self.vectors * self.lanes * self.arithmetic.depth

    def steps(self, tile: tirx.Expr) -> Iterator[Step]:
        """See Columns."""
        if self.panels == 1 or not self.burst:
            with T.serial(i64(0), i64(self.count)) as step:
                yield self._step(step)
            return
        parts = i64(self.count // self.burst)
        with T.serial(i64(0), parts) as part:
            self._ask_for_next(tile * parts + part)
            with T.serial(i64(0), i64(self.burst)) as step:
                yield self._step(part * i64(self.burst) + step)

    def _ask_for_next(self, part: tirx.Expr) -> None:
        """Ask for one of the parts that the next panel comes in."""
        per_line = CACHE_LINE // weight_bytes(self.arithmetic)
        lines = -(-self.count * self._width // (per_line * self.share))
        per_part = -(-lines // (self.count // self.burst))
        next_panel = tirx.min(self.panel + i64(1), i64(self.panels - 1))
        for number in range(per_part):
            element = (part * i64(per_part) + i64(number)) * i64(per_line)
            row, column = tirx.floordiv(element, i64(self._width)), tirx.floormod(element, i64(self._width))
            where = [next_panel, tirx.min(row, i64(self.count - 1)), column]
            prefetch(tirx.BufferLoad(self.buffer, where), 2)

    def _step(self, step: tirx.Expr) -> Step:
        """Ask for the columns of a step to come, and read those of this one."""
        for first in range(0, self._width, CACHE_LINE // weight_bytes(self.arithmetic)):
            where = [self.panel, step + i64(self.ahead), i64(first)]
            prefetch(tirx.BufferLoad(self.buffer, where), 1)
        starts = [i64(v * self.lanes) for v in range(self.vectors)]
        lead = [self.panel, step]
        return step, [self.arithmetic.columns(self.buffer, lead, start, self.lanes) for start in starts]


@dataclass(frozen=True)
class Groups:
    """A panel of levels in groups, given their values in registers when they are read.

    Attributes:
        levels: int8 [panels, k, width], or of four bits [panels, k / 2, width] with the levels of k in the lower
            halves and those of k + 1 in the upper ones.
        scale: float16 or float32 [panels, groups, width].
        offset: like `scale`, or None.
        panel: the panel's number.
        bits: of a level.
        depth: of the product.
        group: levels along k that share a scale; divides the depth.
        vectors, lanes: of a step.
        ahead: half the steps between asking for levels and reading them.
    """

    levels: tirx.Var
    scale: tirx.Var
    offset: tirx.Var | None
    panel: tirx.Expr
    bits: int
    depth: int
    group: int
    vectors: int
    lanes: int
    ahead: int

    @property
    def _each(self) -> int:
        """Levels in a byte."""
        return 8 // self.bits

    def steps(self, tile: tirx.Expr) -> Iterator[Step]:
        """See Columns."""
        with T.serial(i64(0), i64(self.depth // self.group)) as block:
            factors = self._numbers(self.scale, block)
            offsets = None if self.offset is None else self._numbers(self.offset, block)
            with T.serial(i64(0), i64(self.group // self._each)) as pair:
                row = block * i64(self.group // self._each) + pair
                self._ask_for(row)
                held = [self._bytes(row, v) for v in range(self.vectors)]
                for half in range(self._each):
                    made = []
                    for v, byte in enumerate(held):
                        value = tirx.Cast(vector_type("float32", self.lanes), self._level(byte.value, half))
                        value = value * factors[v].value
                        if offsets is not None:
                            value = value + offsets[v].value
                        made.append(self._register(value, "float32"))
                    yield row * i64(self._each) + i64(half), [item.value for item in made]

    def unpack(self, target: tirx.Var) -> None:
        """Emit the panel's values to `target` [1, depth, width], which `Packed` reads."""
        for step, vectors in self.steps(i64(0)):
            for v, value in enumerate(vectors):
                T.buffer_store(target, value, [i64(0), step, ramp(i64(v * self.lanes), self.lanes)])

    def _ask_for(self, row: tirx.Expr) -> None:
        for first in range(0, self.vectors * self.lanes, CACHE_LINE):
            where = [self.panel, row + i64(2 * self.ahead), i64(first)]
            prefetch(tirx.BufferLoad(self.levels, where), 1)

    def _bytes(self, row: tirx.Expr, vector: int) -> Register:
        """The bytes of a vector of columns, widened: a register, because both halves are read."""
        place = [self.panel, row, ramp(i64(vector * self.lanes), self.lanes)]
        return self._register(tirx.Cast(vector_type("int32", self.lanes), tirx.BufferLoad(self.levels, place)), "int32")

    def _level(self, byte: tirx.Expr, half: int) -> tirx.Expr:
        """The level in one half of widened bytes, with its sign."""
        if self.bits == 8:
            return byte
        bits = splat(tirx.IntImm("int32", 32 - _NIBBLE), self.lanes)
        if half == 0:
            return tirx.shift_right(tirx.shift_left(byte, bits), bits)
        return tirx.shift_right(byte, splat(tirx.IntImm("int32", _NIBBLE), self.lanes))

    def _numbers(self, buffer: tirx.Var, block: tirx.Expr) -> list[Register]:
        """Scales or offsets of a group, for each vector of columns."""
        kind = vector_type("float32", self.lanes)
        places = [[self.panel, block, ramp(i64(v * self.lanes), self.lanes)] for v in range(self.vectors)]
        return [self._register(tirx.Cast(kind, tirx.BufferLoad(buffer, place)), "float32") for place in places]

    def _register(self, value: tirx.Expr, dtype: str) -> Register:
        made = register(self.lanes, dtype)
        made.store(value)
        return made
