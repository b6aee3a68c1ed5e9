"""What a value computed from a mask input is where a token is real and where it is padding.

A chain of operators from the mask to the scores of an attention is executed twice, on a mask of zeros and on one of
ones, while a third array keeps, for every element, which single element of the mask it depends on. Operators work on
each element by themselves, or only move elements, so that the result holds for every mask of zeros and ones: each
element is what the first or the second execution gave. Where two elements of the mask meet in one element, or an
operator is another one, nothing is known.

Symbolic sizes get numbers: what is found holds for these sizes, and the caller asks for several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from greencc.ir import constant_array, dim_text, dtype_of, shape_of
from greencc.kernels import KERNEL, kernel_name
from greencc.ops import SHAPE_TO_TENSOR
from greencc.passes.graph import Graph
from greencc.passes.no_ops import permutation_of
from greencc.symbolic import evaluate

_FIXED = -1


class _Unknown(Exception):
    """Something that can't be followed: a size without a number, or an option."""


@dataclass(frozen=True)
class MaskValues:
    """A tensor computed from a mask.

    Attributes:
        source: int64, for each element the flat index of the mask's element that it depends on, or -1 for none.
        padded: the values where that element of the mask is 0.
        real: the values where it is 1.
    """

    source: np.ndarray
    padded: np.ndarray
    real: np.ndarray

    @property
    def is_fixed(self) -> bool:
        """Whether no element depends on the mask."""
        return bool((self.source == _FIXED).all())


def mask_values(graph: Graph, expr: relax.Expr, mask: relax.Var, sizes: Mapping[str, int]) -> MaskValues | None:
    """The values of `expr` as a function of the elements of `mask`, or None when it is no such function.

    Args:
        sizes: a number for each symbolic dimension, by name.
    """
    return _Execution(graph, mask, sizes).value(expr)


class _Execution:
    def __init__(self, graph: Graph, mask: relax.Var, sizes: Mapping[str, int]) -> None:
        self._graph, self._sizes = graph, sizes
        shape = self._numbers(shape_of(mask.ty) or [])
        dtype = np.dtype(dtype_of(mask.ty) or "")
        indices = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        self._known: dict[relax.Expr, MaskValues | None] = {
            mask: MaskValues(indices, np.zeros(shape, dtype), np.ones(shape, dtype))
        }

    def value(self, expr: relax.Expr) -> MaskValues | None:
        array = constant_array(expr)
        if array is not None:
            return _fixed(array)
        if expr not in self._known:
            call = self._graph.call(expr)
            try:
                with np.errstate(all="ignore"):
                    self._known[expr] = None if call is None else self._call(call)
            except _Unknown:
                self._known[expr] = None
        return self._known[expr]

    def _call(self, call: relax.Call) -> MaskValues | None:
        name = f"kernel:{kernel_name(call)}" if call.op.name == KERNEL else call.op.name.removeprefix("relax.")
        if name in _MADE:
            sizes = self._numbers(call.args[0].values) if isinstance(call.args[0], relax.ShapeExpr) else None
            return None if sizes is None else _fixed(_MADE[name](call, sizes))
        if name not in _ELEMENTWISE and name not in _MOVES:
            return None
        operands: list[MaskValues] = []
        shapes: list[tuple[int, ...]] = []
        for arg in _flat(call.args):
            if isinstance(arg, relax.ShapeExpr):
                shapes.append(self._numbers(arg.values))
                continue
            known = self.value(arg)
            if known is None:
                return None
            operands.append(known)
        if name in _ELEMENTWISE:
            return _elementwise(lambda *arrays: _ELEMENTWISE[name](call, *arrays), operands)
        if name in _INDEXED and not all(operand.is_fixed for operand in operands[1:]):
            return None  # which element is taken depends on the mask
        shape = self._numbers(shape_of(call.ty) or []) if not shapes else shapes[0]
        move = _MOVES[name]
        parts = [[getattr(operand, part) for operand in operands] for part in ("source", "padded", "real")]
        if name in _INDEXED:
            for part in parts:
                part[1:] = [operand.padded for operand in operands[1:]]
        return MaskValues(*(move(call, part, shape) for part in parts))

    def _numbers(self, dims: Sequence[tirx.Expr]) -> tuple[int, ...]:
        found = [evaluate(dim_text(dim), self._sizes) for dim in dims]
        if any(size is None for size in found):
            raise _Unknown
        return tuple(int(size) for size in found if size is not None)


def _fixed(array: np.ndarray) -> MaskValues:
    return MaskValues(np.full(array.shape, _FIXED, np.int64), array, array)


def _flat(args: Sequence[relax.Expr]) -> list[relax.Expr]:
    return [part for arg in args for part in (arg.fields if isinstance(arg, relax.Tuple) else [arg])]


def _elementwise(function: Callable[..., np.ndarray], operands: Sequence[MaskValues]) -> MaskValues | None:
    padded, real = (function(*(getattr(o, part) for o in operands)) for part in ("padded", "real"))
    source = np.full(padded.shape, _FIXED, np.int64)
    for operand in operands:
        other = np.broadcast_to(operand.source, padded.shape)
        if np.any((source != _FIXED) & (other != _FIXED) & (source != other)):
            return None
        source = np.where(other == _FIXED, source, other)
    # What is the same in both cases depends on nothing: `position >= 0 and mask` does, `position >= 0 or mask` doesn't.
    same = (padded == real) | ((padded != padded) & (real != real))
    return MaskValues(np.where(same, _FIXED, source), padded, real)


def _take(call: relax.Call, parts: list[np.ndarray], _shape: tuple[int, ...]) -> np.ndarray:
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return np.take(parts[0], parts[1], axis=axis, mode="wrap" if str(call.attrs.mode) == "wrap" else "clip")


def _gather_nd(call: relax.Call, parts: list[np.ndarray], _shape: tuple[int, ...]) -> np.ndarray:
    if json.loads(str(call.attrs["options"]))["batch_dims"]:
        raise _Unknown
    data, indices = parts
    return np.asarray(data[tuple(np.moveaxis(indices, -1, 0))])


def _slice(call: relax.Call, parts: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    rank = parts[0].ndim
    begins, sizes = shape[:rank], shape[rank:]
    steps = json.loads(str(call.attrs["options"]))["steps"]
    index = tuple(b + np.arange(n) * step for b, n, step in zip(begins, sizes, steps, strict=True))
    return parts[0][np.ix_(*index)]


def _reshaped(_call: relax.Call, parts: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return parts[0].reshape(shape)


_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda call, a, b: a + b,
    "astype": lambda call, x: x.astype(str(call.attrs.dtype)),
    "bitwise_and": lambda call, a, b: a & b,
    "bitwise_or": lambda call, a, b: a | b,
    "divide": lambda call, a, b: (a / b).astype(a.dtype),
    "equal": lambda call, a, b: a == b,
    "greater": lambda call, a, b: a > b,
    "greater_equal": lambda call, a, b: a >= b,
    "kernel:to_bool": lambda call, x: x != 0,
    "less": lambda call, a, b: a < b,
    "less_equal": lambda call, a, b: a <= b,
    "logical_and": lambda call, a, b: np.logical_and(a, b),
    "logical_not": lambda call, x: np.logical_not(x),
    "logical_or": lambda call, a, b: np.logical_or(a, b),
    "maximum": lambda call, a, b: np.maximum(a, b),
    "minimum": lambda call, a, b: np.minimum(a, b),
    "multiply": lambda call, a, b: a * b,
    "negative": lambda call, x: -x,
    "not_equal": lambda call, a, b: a != b,
    "subtract": lambda call, a, b: a - b,
    "where": lambda call, m, a, b: np.asarray(np.where(m, a, b)),
}
_MOVES: dict[str, Callable[[relax.Call, list[np.ndarray], tuple[int, ...]], np.ndarray]] = {
    "broadcast_to": lambda call, parts, shape: np.broadcast_to(parts[0], shape),
    "concat": lambda call, parts, shape: np.concatenate(parts, int(call.attrs.axis)),
    "expand_dims": _reshaped,
    "flatten": _reshaped,
    "kernel:gather_nd": _gather_nd,
    "kernel:strided_slice": _slice,
    "permute_dims": lambda call, parts, shape: parts[0].transpose(permutation_of(call)),
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "take": _take,
}
# Moves whose operands after the first say which elements are taken.
_INDEXED = frozenset(("kernel:gather_nd", "take"))
# What sizes alone make.
_MADE: dict[str, Callable[[relax.Call, tuple[int, ...]], np.ndarray]] = {
    SHAPE_TO_TENSOR: lambda call, sizes: np.array(sizes, np.int64),
    "kernel:arange": lambda call, sizes: (sizes[0] + np.arange(sizes[2], dtype=np.int64) * sizes[1]).astype(
        json.loads(str(call.attrs["options"]))["dtype"]
    ),
    "ones": lambda call, sizes: np.ones(sizes, str(call.ty.dtype)),
    "zeros": lambda call, sizes: np.zeros(sizes, str(call.ty.dtype)),
}
