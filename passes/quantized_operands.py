"""Operands in bytes as importers leave them: `levels - zero` in int32, or `(levels - zero) * scale`, dequantised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from greencc.ir import constant, dtype_of, is_call, shape_of
from greencc.kernels import KERNEL, kernel_name, kernel_options
from greencc.passes.evaluate import evaluate
from greencc.passes.graph import Graph
from greencc.passes.matching import same_extents
from greencc.passes.no_ops import permutation_of

# Integer arithmetic on constants that stands between a weight and its levels.
_PREPARING = tuple(f"relax.{name}" for name in ("astype", "expand_dims", "permute_dims", "reshape", "subtract"))


@dataclass(frozen=True)
class Levels:
    """Activations `data - zero`, or that times `scale`.

    Attributes:
        data: integers.
        zero: what stands for 0.
        scale: what a level is worth, float; None for plain integers.
    """

    data: relax.Expr
    zero: relax.Expr
    scale: relax.Expr | None

    @property
    def is_uniform(self) -> bool:
        """Whether all levels share a zero point, of their own type or int32, and a scale."""
        parameters = [self.zero] if self.scale is None else [self.zero, self.scale]
        kinds = (dtype_of(self.data.ty), "int32")
        return dtype_of(self.zero.ty) in kinds and all(map(_is_one_element, parameters))


@dataclass(frozen=True)
class Weight:
    """A constant weight `centered * scale`.

    Attributes:
        centered: int32, the levels less their zero points; where scales lie in blocks, the levels.
        scale: float, what a level is worth; None for plain integers.
        axis: axis that several scales lie along; None for plain integers, and where scales lie in blocks.
    """

    centered: np.ndarray
    scale: np.ndarray | None = None
    axis: int | None = None

    def scales_channels(self, channels: int) -> bool:
        """Whether there is one scale, or one for each index of axis `channels`."""
        if self.scale is None:
            return True
        return self.axis is not None and (self.scale.size == 1 or self.axis == channels)


@dataclass(frozen=True)
class Quantization:
    """A call of the kernels `quantize` and `dequantize`, read.

    Attributes:
        data, scale: operands.
        zero: zero points; None where they are 0.
        axis, block: see greencc/kernels/quantize.py.
        dtype: of the result.
    """

    data: relax.Expr
    scale: relax.Expr
    zero: relax.Expr | None
    axis: int
    block: int
    dtype: str


def quantization(graph: Graph, expr: relax.Expr, name: str) -> Quantization | None:
    """`expr` as a call of the kernel `name`, "quantize" or "dequantize"; None for anything else."""
    call = graph.call(expr, KERNEL)
    if call is None or kernel_name(call) != name:
        return None
    data, scale, *zero = call.args[:-1]
    options = kernel_options(call)
    return Quantization(data, scale, zero[0] if zero else None, options["axis"], options["block"], options["dtype"])


def read_levels(graph: Graph, expr: relax.Expr) -> Levels | None:
    """The levels that `expr` stands for; None for another form."""
    made = quantization(graph, expr, "dequantize")
    if made is not None:
        kind = dtype_of(made.data.ty) or ""
        return Levels(made.data, constant(np.zeros((), kind)) if made.zero is None else made.zero, made.scale)
    centered = graph.call(expr, "relax.subtract")
    if centered is None:
        data = _before_cast(graph, expr)
        return None if data is None else Levels(data, constant(np.zeros((), np.int32)), None)
    data, zero = (_before_cast(graph, arg) for arg in centered.args)
    if data is None or not same_extents(data, expr):
        return None
    return Levels(data, centered.args[1] if zero is None else zero, None)


def read_weight(graph: Graph, expr: relax.Expr) -> Weight | None:
    """The constant weight that `expr` stands for, transposed or not; None for another form."""
    order: tuple[int, ...] = tuple(range(len(shape_of(expr.ty) or ())))
    inner = expr
    while (call := graph.call(inner, "relax.permute_dims")) is not None:
        order = tuple(permutation_of(call)[axis] for axis in order)
        inner = call.args[0]
    made = quantization(graph, inner, "dequantize")
    if made is None:
        integers = _integers(graph, expr)
        return None if integers is None else Weight(integers)
    data, scale = graph.constant(made.data), graph.constant(made.scale)
    zero = np.zeros((), np.int32) if made.zero is None else graph.constant(made.zero)
    if data is None or scale is None or zero is None or data.dtype.kind not in "iu" or not data.ndim:
        return None
    centered = data.astype(np.int32)
    if made.block:
        return Weight(centered.transpose(order), scale)
    centered = centered - along(zero, made.axis, data.ndim).astype(np.int32)
    return Weight(centered.transpose(order), scale.reshape(-1), order.index(made.axis))


def along(parameter: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Scales or zero points, one or one for each index of `axis`, so that they broadcast to `rank` axes."""
    return parameter.reshape([-1 if i == axis else 1 for i in range(rank)])


def _before_cast(graph: Graph, expr: relax.Expr) -> relax.Expr | None:
    """The integers that `expr` is int32 of."""
    call = graph.call(expr, "relax.astype")
    if call is None or dtype_of(expr.ty) != "int32" or "int" not in str(dtype_of(call.args[0].ty)):
        return None
    return call.args[0]


def _integers(graph: Graph, expr: relax.Expr) -> np.ndarray | None:
    """The values of integer arithmetic on constants."""
    array = graph.constant(expr)
    if array is None:
        value = graph.value(expr)
        if not any(is_call(value, name) for name in _PREPARING):
            return None
        operands = [arg for arg in value.args if isinstance(arg.ty, relax.TensorType)]
        arrays = [_integers(graph, arg) for arg in operands]
        given = [array for array in arrays if array is not None]
        if len(given) != len(arrays):
            return None
        (array,) = evaluate(value, given)
    return array if array.dtype.kind in "iu" else None


def _is_one_element(expr: relax.Expr) -> bool:
    shape = shape_of(expr.ty)
    return shape is not None and all(isinstance(size, tirx.IntImm) and int(size) == 1 for size in shape)
