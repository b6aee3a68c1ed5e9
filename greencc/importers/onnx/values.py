"""What the walker knows of an ONNX value: a Relax expression, its constant contents, or symbolic integers.

Shape arithmetic (Shape, Gather, Concat, ... before a Reshape) never becomes a tensor: such values are numpy
arrays of Python integers and TIR expressions, and only turn into a tensor when some operator wants their data.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from tvm import ir, relax, sym, tirx

from greencc.ir import dtype_of, shape_of

Dim: TypeAlias = "int | tirx.Expr"

FLOATS = frozenset({"float16", "float32", "float64"})
SIGNED = frozenset({"int8", "int16", "int32", "int64"})
UNSIGNED = frozenset({"uint8", "uint16", "uint32", "uint64"})
INTEGERS = SIGNED | UNSIGNED
SUPPORTED = FLOATS | INTEGERS | {"bool"}
"""Element types that greencc computes with: the runtime's. TVM converts narrow ones (float8, int4, ...) wrongly."""

# What the model being imported says of its symbolic sizes; every simplification uses it.
_ANALYZER: contextvars.ContextVar[sym.Analyzer | None] = contextvars.ContextVar("analyzer", default=None)
_LARGEST_SIZE = 1 << 31


@dataclass
class Value:
    """One value of the ONNX graph.

    Attributes:
        name: its ONNX name.
        expr: its Relax expression; None for a known value that no operator has needed as a tensor yet.
        known: its contents: a numeric array (a constant), or an object array of int and TIR expressions
            (symbolic integers); None when it is only known at run time.
        dtype: numpy element type name.
        elements: for a sequence value, its parts (tensor values), else None.
    """

    name: str
    expr: relax.Expr | None = None
    known: np.ndarray | None = None
    dtype: str = ""
    elements: list[Value] | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.dtype:
            if self.known is not None and self.known.dtype != object:
                self.dtype = str(self.known.dtype)
            elif self.expr is not None:
                self.dtype = dtype_of(self.expr.ty) or ""

    @property
    def is_constant(self) -> bool:
        """Whether the contents are plain numbers, known at compile time."""
        return self.known is not None and self.known.dtype != object

    @property
    def shape(self) -> list[Dim] | None:
        """Dimensions: integers where static, TIR expressions where symbolic; None when unknown."""
        if self.known is not None:
            return list(self.known.shape)
        dims = shape_of(self.expr.ty) if self.expr is not None else None
        return None if dims is None else [as_dim(dim) for dim in dims]

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None when unknown."""
        if self.known is not None:
            return int(self.known.ndim)
        if self.expr is not None and isinstance(self.expr.ty, relax.TensorType) and self.expr.ty.ndim >= 0:
            return int(self.expr.ty.ndim)
        return None


def as_dim(dim: Dim) -> Dim:
    """A Python integer where the dimension is static, else the TIR expression."""
    return int(dim) if isinstance(dim, (int, np.integer, tirx.IntImm)) else dim


def as_expr(dim: Dim) -> tirx.Expr:
    """The dimension as an int64 TIR expression."""
    return tirx.IntImm("int64", int(dim)) if isinstance(dim, (int, np.integer)) else dim


def analyzer() -> sym.Analyzer:
    """The analyzer that knows the bounds of the symbolic sizes at hand."""
    return _ANALYZER.get() or sym.Analyzer()


@contextlib.contextmanager
def bounded(bounds: Mapping[tirx.Var, tuple[int, int | None]]) -> Iterator[None]:
    """Within it, sizes are simplified and compared under inclusive (lower, upper) bounds of the symbols."""
    knowing = sym.Analyzer()
    for symbol, (low, high) in bounds.items():
        extent = (_LARGEST_SIZE if high is None else high) - low + 1
        knowing.bind(symbol, ir.Range.from_min_extent(tirx.IntImm("int64", low), tirx.IntImm("int64", extent)))
    token = _ANALYZER.set(knowing)
    try:
        yield
    finally:
        _ANALYZER.reset(token)


def simplify(dim: Dim) -> Dim:
    """The dimension in canonical form, as an integer when it is one."""
    return as_dim(analyzer().simplify(dim)) if isinstance(dim, tirx.Expr) else as_dim(dim)


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are provably equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(analyzer().can_prove_equal(as_expr(a), as_expr(b)))


def symbolic_array(dims: list[Dim]) -> np.ndarray:
    """A one-dimensional object array of dimensions; numeric int64 when all are static."""
    if all(isinstance(dim, (int, np.integer)) for dim in dims):
        return np.array(dims, dtype=np.int64)
    array = np.empty(len(dims), dtype=object)
    array[:] = dims
    return array
