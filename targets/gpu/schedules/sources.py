"""Where a product's factors are read from: tensors as they lie, weights in panels, words of bytes, levels in groups.

A source is read in chunks: `wide` rows (columns) times `deep` elements along the depth, one thread a chunk. What is
read is kept raw in registers until it is needed; then it becomes what is multiplied, float32 or words of four signed
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from greencc.targets.gpu.schedules.products import Factor
from greencc.targets.gpu.schedules.threads import at, is_multiple
from greencc.targets.tir import i64, vector_type

BYTES = 4
"""Bytes in a word."""
VECTOR = 4
"""Elements of the longest vector."""
_PANEL_WIDTHS = (64, 32, 16)


class Source(Protocol):
    """A factor [major, depth] of one batch; both indices count what is multiplied, elements or words."""

    @property
    def depth_first(self) -> bool:
        """Whether chunks that are neighbours along the depth are neighbours in memory; else those along the other."""

    @property
    def wide(self) -> int:
        """Rows (columns) of a chunk: 1, 2 or 4, of which every chunk starts at a multiple."""

    @property
    def deep(self) -> int:
        """Elements of a chunk along the depth, of which every chunk starts at a multiple."""

    @property
    def block(self) -> int:
        """Rows (columns) that a workgroup reads; it starts at a multiple of them."""

    @property
    def raw(self) -> tuple[str, int, int]:
        """Type of what is read of a chunk, elements of each vector of them, and how many vectors."""

    @property
    def limit(self) -> tirx.Expr:
        """Rows (columns) that can be read."""

    def read(self, major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """The vectors in memory of the chunk that starts there. Rows (columns) behind the last one repeat it."""

    def values(self, raw: Sequence[tirx.Expr], major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """The elements of a chunk, from the parts of what was read: those of the first depth, then the next."""


class RowSource(Source, Protocol):
    """A factor whose elements can be read one by one."""

    def element(self, major: tirx.Expr, depth: tirx.Expr) -> tirx.Expr:
        """A single element, wherever it is."""


@dataclass(frozen=True)
class InPlace:
    """A tensor of floats as it lies.

    Attributes:
        factor: where its elements are.
        buffer: what it is called in the kernel.
        start: distance of the batch's first element.
        block: rows (columns) that are read by a workgroup start at its multiples, and are as many.
        together: rows (columns) of a chunk, where those aren't neighbours in memory.
    """

    factor: Factor
    buffer: tirx.Var
    start: tirx.Expr
    block: int
    together: int = 1

    @property
    def depth_first(self) -> bool:
        """See Source."""
        return self.factor.is_contiguous(self.factor.depth) or not self.factor.is_contiguous(self.factor.major)

    @property
    def wide(self) -> int:
        """See Source."""
        return self.together if self.depth_first else self.factor.lanes(self.factor.major)

    @property
    def deep(self) -> int:
        """See Source."""
        return self.factor.lanes(self.factor.depth) if self.depth_first else 1

    @property
    def raw(self) -> tuple[str, int, int]:
        """See Source."""
        return (self.factor.dtype, self.deep, self.wide) if self.depth_first else (self.factor.dtype, self.wide, 1)

    @property
    def limit(self) -> tirx.Expr:
        """See Source."""
        return self.factor.major.size

    def read(self, major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        _, lanes, count = self.raw
        if not self.depth_first:
            return [at(self.buffer, self._offset(_held(self, major, lanes), depth), lanes)]
        rows = [_held(self, major + i64(i) if i else major, 1) for i in range(count)]
        return [at(self.buffer, self._offset(row, depth), lanes) for row in rows]

    def values(self, raw: Sequence[tirx.Expr], major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        return [as_float(value) for value in _by_depth(raw, self.wide, self.deep)]

    def element(self, major: tirx.Expr, depth: tirx.Expr) -> tirx.Expr:
        """See Source."""
        return as_float(at(self.buffer, self._offset(major, depth)))

    def _offset(self, major: tirx.Expr, depth: tirx.Expr) -> tirx.Expr:
        factor = self.factor
        return self.start + factor.offset(factor.major, major) + factor.offset(factor.depth, depth)


@dataclass(frozen=True)
class ByteRows:
    """Signed bytes whose depth is a tensor's last axis, filled up to whole words; see InPlace."""

    factor: Factor
    buffer: tirx.Var
    start: tirx.Expr
    block: int
    wide: int = 1
    deep: int = 1
    depth_first: bool = True

    @property
    def raw(self) -> tuple[str, int, int]:
        """See Source."""
        return "int32", 1, self.wide

    @property
    def limit(self) -> tirx.Expr:
        """See Source."""
        return self.factor.major.size

    def read(self, major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        rows = [_held(self, major + i64(i) if i else major, 1) for i in range(self.wide)]
        return [self.element(row, depth) for row in rows]

    def values(self, raw: Sequence[tirx.Expr], major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        return list(raw)

    def element(self, major: tirx.Expr, depth: tirx.Expr) -> tirx.Expr:
        """See Source."""
        offset = self.start + self.factor.offset(self.factor.major, major) + depth * i64(BYTES)
        return tirx.reinterpret("int32", at(self.buffer, offset, BYTES))


@dataclass(frozen=True)
class Panels:
    """A weight in panels [panels, depth, width], of floats or of words.

    Attributes:
        buffer: what it is called in the kernel.
        block: see InPlace.
    """

    buffer: tirx.Var
    block: int
    depth_first: bool = False
    wide: int = 4
    deep: int = 1

    @property
    def raw(self) -> tuple[str, int, int]:
        """See Source."""
        return str(self.buffer.ty.dtype), self.wide, 1

    @property
    def limit(self) -> tirx.Expr:
        """See Source: what fills the last panel up is 0."""
        return _panel_columns(self.buffer)

    def read(self, major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        column = _held(self, major, self.wide)
        return [at(self.buffer, panel_offset(self.buffer, column, depth), self.wide)]

    def values(self, raw: Sequence[tirx.Expr], major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        return list(raw) if self.raw[0] == "int32" else [as_float(value) for value in raw]


@dataclass(frozen=True)
class LevelPanels:
    """A weight of levels in groups, in words of neighbours along the depth, in panels; scales in panels too.

    Attributes:
        words: int32 [panels, depth / deep, width].
        scale: float16 or float32 [panels, depth / group, width].
        offset: like `scale`, or None.
        bits: of a level.
        group: levels along the depth that share a scale, a multiple of those in a word.
        block: see InPlace.
        wide: see Source.
    """

    words: tirx.Var
    scale: tirx.Var
    offset: tirx.Var | None
    bits: int
    group: int
    block: int
    wide: int = 4
    depth_first: bool = False

    @property
    def deep(self) -> int:
        """See Source: a word's levels."""
        return 32 // self.bits

    @property
    def raw(self) -> tuple[str, int, int]:
        """See Source."""
        return "int32", self.wide, 1

    @property
    def limit(self) -> tirx.Expr:
        """See Source."""
        return _panel_columns(self.words)

    def read(self, major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        row = tirx.floordiv(depth, i64(self.deep))
        column = _held(self, major, self.wide)
        return [at(self.words, panel_offset(self.words, column, row), self.wide)]

    def values(self, raw: Sequence[tirx.Expr], major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """See Source."""
        scales = self.numbers(self.scale, major, depth)
        offsets = None if self.offset is None else self.numbers(self.offset, major, depth)
        made = []
        for i in range(self.deep):
            for column in range(self.wide):
                value = as_float(level_of(raw[column], i, self.bits)) * scales[column]
                made.append(value if offsets is None else value + offsets[column])
        return made

    def numbers(self, buffer: tirx.Var, major: tirx.Expr, depth: tirx.Expr) -> list[tirx.Expr]:
        """The scales or offsets of a chunk's columns."""
        groups = int(buffer.ty.shape[1])
        # Behind the end of the depth the other factor is 0: any scale will do.
        group = tirx.min(tirx.floordiv(depth, i64(self.group)), i64(groups - 1))
        first = panel_offset(buffer, _held(self, major, self.wide), group)
        return [as_float(at(buffer, first + i64(i) if i else first)) for i in range(self.wide)]


def _held(source: Source, major: tirx.Expr, wide: int) -> tirx.Expr:
    """The first of `wide` rows (columns), or of the last ones where it lies behind them."""
    return major if is_multiple(source.limit, source.block) else tirx.min(major, source.limit - i64(wide))


def _panel_columns(buffer: tirx.Var) -> tirx.Expr:
    panels, _, width = (int(size) for size in buffer.ty.shape)
    return i64(panels * width)


def _by_depth(raw: Sequence[tirx.Expr], wide: int, deep: int) -> list[tirx.Expr]:
    """Elements of a chunk that was read row by row, those of the first depth first."""
    return [raw[w * deep + d] for d in range(deep) for w in range(wide)]


def panel_width(columns: int) -> int:
    """Columns of a panel: few are one panel; of many, no more than an eighth is filled up if that can be.

    A panel's rows are whole vectors, and neighbouring threads' vectors lie side by side in them.
    """
    if columns <= _PANEL_WIDTHS[0]:
        return -(-columns // VECTOR) * VECTOR
    widths = (width for width in _PANEL_WIDTHS if 8 * (-columns % width) <= columns)
    return next(widths, _PANEL_WIDTHS[-1])


def panel_offset(buffer: tirx.Var, column: tirx.Expr, row: tirx.Expr) -> tirx.Expr:
    """Distance of an element of [panels, rows, width] from the first one."""
    panels, rows, width = (int(size) for size in buffer.ty.shape)
    if panels == 1:
        return row * i64(width) + column
    panel, inside = tirx.floordiv(column, i64(width)), tirx.floormod(column, i64(width))
    return (panel * i64(rows) + row) * i64(width) + inside


def level_of(word: tirx.Expr, index: int, bits: int) -> tirx.Expr:
    """A signed level of an int32 word, int32."""
    left, right = (tirx.IntImm("int32", count) for count in (32 - bits * (index + 1), 32 - bits))
    raised = word if int(left) == 0 else tirx.shift_left(word, left)
    return tirx.shift_right(raised, right)


def as_float(value: tirx.Expr) -> tirx.Expr:
    """A scalar in float32."""
    return value if str(value.ty.dtype) == "float32" else tirx.Cast(vector_type("float32", 1), value)
