"""How a register tile adds products up, step by step along k: float32, or bytes summed in int32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import tvm
from tvm import tirx

from greencc.targets.cpu.intrinsics.dot import DotProduct
from greencc.targets.packing import ColumnPanels, DotPanels
from greencc.targets.tir import i64, ramp, splat


class Arithmetic(Protocol):
    """One step multiplies `depth` neighbouring values of a row of A with those of a vector of columns of B."""

    @property
    def depth(self) -> int:
        """Values of k in one step."""

    @property
    def sums(self) -> str:
        """Element type of the accumulators."""

    @property
    def weight(self) -> str:
        """Element type of B."""

    def layout(self, columns: int) -> ColumnPanels | DotPanels:
        """How constant B is packed for a tile of so many columns."""

    def word(self, buffer: tirx.Var, lead: list[tirx.Expr], step: tirx.Expr) -> tirx.Expr:
        """The row's values of one step, read from A at [*lead, step * depth]."""

    def columns(self, buffer: tirx.Var, lead: list[tirx.Expr], first: tirx.Expr, lanes: int) -> tirx.Expr:
        """A vector of columns of one step, read from B at [*lead, first], `lead` ending with the step."""

    def accumulate(self, total: tirx.Expr, word: tirx.Expr, columns: tirx.Expr, lanes: int) -> tirx.Expr:
        """`total` with the products of one step added."""


@dataclass(frozen=True)
class FloatArithmetic:
    """Multiply-adds of float32."""

    depth: int = 1
    sums: str = "float32"
    weight: str = "float32"

    def layout(self, columns: int) -> ColumnPanels:
        """See Arithmetic."""
        return ColumnPanels(columns)

    def word(self, buffer: tirx.Var, lead: list[tirx.Expr], step: tirx.Expr) -> tirx.Expr:
        """See Arithmetic."""
        return tirx.BufferLoad(buffer, [*lead, step])

    def columns(self, buffer: tirx.Var, lead: list[tirx.Expr], first: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Arithmetic."""
        return tirx.BufferLoad(buffer, [*lead, ramp(first, lanes)])

    def accumulate(self, total: tirx.Expr, word: tirx.Expr, columns: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Arithmetic."""
        return total + splat(word, lanes) * columns


@dataclass(frozen=True)
class DotArithmetic:
    """Products of bytes; `dot` says which instruction sums them."""

    dot: DotProduct
    sums: str = "int32"
    weight: str = "int8"

    @property
    def depth(self) -> int:
        """See Arithmetic."""
        return self.dot.depth

    def layout(self, columns: int) -> DotPanels:
        """See Arithmetic."""
        return DotPanels(columns, self.dot.depth, self.weight)

    def word(self, buffer: tirx.Var, lead: list[tirx.Expr], step: tirx.Expr) -> tirx.Expr:
        """See Arithmetic."""
        return tirx.BufferLoad(buffer, [*lead, ramp(step * i64(self.depth), self.depth)])

    def columns(self, buffer: tirx.Var, lead: list[tirx.Expr], first: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Arithmetic."""
        return tirx.BufferLoad(buffer, [*lead, ramp(first * i64(self.depth), lanes * self.depth)])

    def accumulate(self, total: tirx.Expr, word: tirx.Expr, columns: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Arithmetic."""
        return self.dot.multiply(total, self.dot.spread(word, self.dot.activation), columns)


def weight_bytes(arithmetic: Arithmetic) -> int:
    """Bytes of an element of B."""
    return int(tvm.DataType(arithmetic.weight).bits) // 8
