"""Local values of emitted kernels: vectors that live in registers, and small arrays on the stack.

TVM puts a buffer on the stack when it is in "global" scope and smaller than a kilobyte; from there LLVM moves vectors
into registers. Buffers of any other scope or size are allocated by a call at run time, and whatever is stored in one
last stays live in a register until the buffer is freed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.errors import GreenccError
from greencc.targets.tir import i64, ramp, splat

# TVM's kMaxStackAlloca.
_STACK_BYTES = 1024


@dataclass(frozen=True)
class Register:
    """A vector of `lanes` elements of `dtype`, or a scalar."""

    buffer: tirx.Var
    lanes: int
    dtype: str

    @property
    def value(self) -> tirx.Expr:
        """What it holds."""
        return tirx.BufferLoad(self.buffer, [ramp(i64(0), self.lanes)])

    def lane(self, index: tirx.Expr | int) -> tirx.Expr:
        """One element."""
        return tirx.BufferLoad(self.buffer, [i64(index) if isinstance(index, int) else index])

    def part(self, first: int, lanes: int) -> tirx.Expr:
        """Some neighbouring elements."""
        return tirx.BufferLoad(self.buffer, [ramp(i64(first), lanes)])

    def store(self, value: tirx.Expr) -> None:
        """Emit an assignment of all elements."""
        T.buffer_store(self.buffer, value, [ramp(i64(0), self.lanes)])

    def store_part(self, first: int, value: tirx.Expr, lanes: int) -> None:
        """Emit an assignment of some neighbouring elements."""
        T.buffer_store(self.buffer, value, [ramp(i64(first), lanes)])

    def reduce(self, combine: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> None:
        """Emit the combination of all elements into the first, halving the rest each time."""
        half = self.lanes // 2
        while half:
            self.store_part(0, combine(self.part(0, half), self.part(half, half)), half)
            half //= 2

    def fill(self, value: float) -> None:
        """Emit an assignment of one number to all elements."""
        self.store(splat(tirx.const(value, self.dtype), self.lanes))


def register(lanes: int, dtype: str = "float32") -> Register:
    """Emit the declaration of a register."""
    return Register(stack_buffer(lanes, dtype), lanes, dtype)


def registers(count: int, lanes: int, dtype: str = "float32") -> list[Register]:
    """Emit declarations of registers, filled with 0."""
    made = [register(lanes, dtype) for _ in range(count)]
    for item in made:
        item.fill(0)
    return made


def stack_buffer(elements: int, dtype: str = "float32") -> tirx.Var:
    """Emit the declaration of a small array.

    Raises GreenccError when it is too large for the stack.
    """
    if elements * 4 >= _STACK_BYTES:
        raise GreenccError(f"a local array of {elements} elements does not fit the stack")
    return T.alloc_buffer((elements,), dtype)


def transposed(rows: list[tirx.Expr]) -> list[Register]:
    """Emit the transposition of as many float32 vectors as they have lanes; returns registers with the columns."""
    square = [register(len(rows)) for _ in rows]
    for item, row in zip(square, rows, strict=True):
        item.store(row)
    transpose(square)
    return square


def transpose(square: list[Register]) -> None:
    """Emit the transposition of as many registers as they have lanes; the list then holds those with the columns.

    In steps of 1, 2, 4...: registers that far apart exchange the lanes that are that far apart.
    """
    distance, lanes = 1, len(square)
    while distance < lanes:
        for i in range(lanes):
            if i & distance:
                continue
            a, b = square[i], square[i + distance]
            pair = [a.value, b.value]
            low = [k if not k & distance else lanes + k - distance for k in range(lanes)]
            high = [k + distance if not k & distance else lanes + k for k in range(lanes)]
            first, second = (register(lanes, a.dtype) for _ in range(2))
            first.store(tirx.Shuffle(pair, [tirx.IntImm("int32", k) for k in low]))
            second.store(tirx.Shuffle(pair, [tirx.IntImm("int32", k) for k in high]))
            square[i], square[i + distance] = first, second
        distance *= 2
