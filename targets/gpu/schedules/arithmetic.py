"""How the products of a tile are added up: multiply-adds of float32, or dot products of words of four signed bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.sources import BYTES, level_of

_BITS = 8


class Arithmetic(Protocol):
    """What is multiplied, and what its products are added to."""

    @property
    def element(self) -> str:
        """Type of what is multiplied."""

    @property
    def sums(self) -> str:
        """Type of the sums."""

    def accumulate(self, total: tirx.Expr, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """`total` with a product added."""


@dataclass(frozen=True)
class FloatArithmetic:
    """Float32; factors that are stored shorter are widened before."""

    element: str = "float32"
    sums: str = "float32"

    def accumulate(self, total: tirx.Expr, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """See Arithmetic."""
        return total + a * b


@dataclass(frozen=True)
class WordArithmetic:
    """Words of four signed bytes, exact in int32.

    Attributes:
        has_dot4: whether the device has an instruction for it; otherwise the bytes are taken apart.
    """

    has_dot4: bool
    element: str = "int32"
    sums: str = "int32"

    def accumulate(self, total: tirx.Expr, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """See Arithmetic."""
        if self.has_dot4:
            return tirx.call_extern("int32", "__dp4a", a, b, total)
        for i in range(BYTES):
            total = total + level_of(a, i, _BITS) * level_of(b, i, _BITS)
        return total


def arithmetic_of(is_int8: bool, gpu: Capabilities) -> Arithmetic:
    """How a product of bytes, or of floats, is computed on a device."""
    return WordArithmetic(gpu.has_dot4) if is_int8 else FloatArithmetic()
