"""Broadcasting and index arithmetic that the kernels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import sym, te, tirx
from tvm.script.ir_builder import tirx as T

from greencc.errors import GreenccError


def element_type(value: te.Tensor | tirx.Expr) -> str:
    """Name of the element type of a tensor or of a scalar expression."""
    return str(value.dtype) if isinstance(value, te.Tensor) else str(value.ty.dtype)


def is_one(dim: tirx.Expr) -> bool:
    """Whether a size is the constant 1, which broadcasts."""
    return (isinstance(dim, int) and dim == 1) or (isinstance(dim, tirx.IntImm) and dim.value == 1)


def is_zero(dim: tirx.Expr) -> bool:
    """Whether a size is the constant 0."""
    return (isinstance(dim, int) and dim == 0) or (isinstance(dim, tirx.IntImm) and dim.value == 0)


def broadcast_shape(shapes: Sequence[Sequence[tirx.Expr]]) -> list[tirx.Expr]:
    """Numpy's common shape. Raises GreenccError for sizes that aren't provably equal or 1."""
    rank = max((len(shape) for shape in shapes), default=0)
    analyzer = sym.Analyzer()
    result: list[tirx.Expr] = []
    for axis in range(-rank, 0):
        chosen: tirx.Expr | None = None
        for shape in shapes:
            if -axis > len(shape) or is_one(shape[axis]):
                continue
            if chosen is None:
                chosen = shape[axis]
            elif not analyzer.can_prove_equal(chosen, shape[axis]):
                raise GreenccError(f"sizes {chosen} and {shape[axis]} do not broadcast")
        result.append(tirx.IntImm("int64", 1) if chosen is None else chosen)
    return result


def at(tensor: te.Tensor, index: Sequence[tirx.Expr]) -> tirx.Expr:
    """Element of a tensor that broadcasts to the shape that `index` runs over."""
    own = list(index[len(index) - len(tensor.shape) :])
    return tensor(*(tirx.IntImm("int64", 0) if is_one(dim) else i for dim, i in zip(tensor.shape, own, strict=True)))


def compute(shape: Sequence[tirx.Expr], function: Callable[..., Any], name: str) -> te.Tensor:
    """te.compute that passes int64 indices as one tuple and works for rank 0."""
    return te.compute(tuple(shape), lambda *index: function(index), name=name)


def product(dims: Sequence[tirx.Expr]) -> tirx.Expr:
    """Product of sizes, int64."""
    result: tirx.Expr = tirx.IntImm("int64", 1)
    for dim in dims:
        result = result * dim
    return result


def sequence() -> Any:
    """The frame of several statements in a row. (LLVM's code generator warns of the pragma that T.seq_scope leaves).

    It is a loop that runs once.
    """
    return T.serial(0, 1)


def wrapped(index: tirx.Expr, size: tirx.Expr) -> tirx.Expr:
    """An index of ONNX, where negative ones count from the end, as one within [0, size).

    An index out of range is an error of the model's input; it is clamped so that nothing else is read.
    """
    index = tirx.Cast("int64", index)
    index = tirx.Select(index < 0, index + size, index)
    return tirx.max(tirx.min(index, size - 1), tirx.IntImm("int64", 0))
