"""Carries shape arithmetic as symbolic integers instead of tensors.

Values are numpy arrays of dtype object that hold Python integers and TIR expressions; numpy's indexing and
broadcasting do the rest. Only small integer values take part (shapes, axes, sizes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax, tirx

from greencc.importers.onnx.context import NodeContext
from greencc.importers.onnx.values import Dim, Value, as_dim, as_expr, same_dim, simplify, symbolic_array
from greencc.ops import shape_to_tensor

if TYPE_CHECKING:
    from greencc.importers.onnx.walker import GraphWalker

MAX_ELEMENTS = 256


def handles(domain: str, op: str) -> bool:
    """Whether some nodes of this operator are shape arithmetic."""
    return not domain and (op in _RULES or op in ("Shape", "Size"))


def carry(context: NodeContext) -> list[Value] | None:
    """The node's outputs as symbolic integers, or None when it isn't shape arithmetic."""
    if context.domain:
        return None
    if context.op in ("Shape", "Size"):
        return _shape_or_size(context)
    rule = _RULES.get(context.op)
    if rule is None or not any(v is not None and v.known is not None and not v.is_constant for v in context.inputs):
        return None
    arrays = [None if value is None else value.known for value in context.inputs]
    if any(value is not None and value.known is None for value in context.inputs):
        return None
    if any(array is not None and array.size > MAX_ELEMENTS for array in arrays):
        return None
    result = rule(context, arrays)
    if result is None:
        return None
    outputs = result if isinstance(result, list) else [result]
    return [Value("", known=_normalized(output), dtype=_dtype(context, output)) for output in outputs]


def materialize(walker: GraphWalker, value: Value, node: str) -> relax.Expr:
    """A tensor with the symbolic integers of `value`: [elements] computed from the input shapes at run time."""
    assert value.known is not None
    flat = value.known.reshape(-1).tolist()
    tensor: relax.Expr = walker.emit(shape_to_tensor([as_expr(as_dim(item)) for item in flat]), node, "dims")
    if value.known.shape != (len(flat),):
        tensor = walker.emit(relax.op.reshape(tensor, value.known.shape), node, "dims")
    if value.dtype not in ("int64", ""):
        tensor = walker.emit(relax.op.astype(tensor, value.dtype), node, "dims")
    return tensor


def _shape_or_size(context: NodeContext) -> list[Value] | None:
    dims = context.value(0).shape
    if dims is None:
        return None
    if context.op == "Size":
        total = np.empty((), dtype=object)
        total[()] = simplify(_product(dims))
        return [Value("", known=_normalized(total), dtype="int64")]
    rank = len(dims)
    start, end = context.attr("start", 0), context.attr("end", rank)
    bounds = slice(*(min(max(b + rank if b < 0 else b, 0), rank) for b in (start, end)))
    return [Value("", known=symbolic_array(dims[bounds]), dtype="int64")]


def _product(dims: list[Dim]) -> Dim:
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def _normalized(array: np.ndarray) -> np.ndarray:
    """Simplified entries; a plain numeric array when none is symbolic any more."""
    if array.dtype != object:
        return array
    items = [simplify(item) if isinstance(item, tirx.Expr) else item for item in array.reshape(-1).tolist()]
    if any(isinstance(item, tirx.Expr) for item in items):
        result = np.empty(len(items), dtype=object)
        result[:] = items
        return result.reshape(array.shape)
    kind = np.bool_ if items and all(isinstance(item, bool) for item in items) else np.int64
    if any(isinstance(item, float) for item in items):
        kind = np.float32
    return np.array(items, dtype=kind).reshape(array.shape)


def _dtype(context: NodeContext, output: np.ndarray) -> str:
    if context.op == "Cast":
        import onnx

        return str(onnx.helper.tensor_dtype_to_np_dtype(context.attr("to")))
    if output.dtype == np.bool_:
        return "bool"
    return next((v.dtype for v in context.inputs if v is not None and v.dtype), "int64")


Arrays = list["np.ndarray | None"]
Rule = Callable[[NodeContext, Arrays], "np.ndarray | list[np.ndarray] | None"]


def _required(arrays: Arrays, index: int) -> np.ndarray:
    array = arrays[index] if index < len(arrays) else None
    if array is None:
        raise ValueError(f"input {index} is missing")
    return array


def _elementwise(function: Callable[[Dim, Dim], Dim]) -> Rule:
    vectorized = np.frompyfunc(function, 2, 1)

    def rule(context: NodeContext, arrays: Arrays) -> np.ndarray:
        return np.asarray(vectorized(_required(arrays, 0), _required(arrays, 1)), dtype=object)

    return rule


def _divide(a: Dim, b: Dim) -> Dim:
    if isinstance(a, (int, np.integer)) and isinstance(b, (int, np.integer)):
        return math.trunc(int(a) / int(b)) if abs(int(a)) < 2**52 else int(a) // int(b)
    return a // b  # dimensions are not negative: flooring and truncation agree


def _larger(a: Dim, b: Dim) -> Dim:
    if isinstance(a, (int, np.integer)) and isinstance(b, (int, np.integer)):
        return max(a, b)
    return tirx.max(as_expr(a), as_expr(b))


def _smaller(a: Dim, b: Dim) -> Dim:
    if isinstance(a, (int, np.integer)) and isinstance(b, (int, np.integer)):
        return min(a, b)
    return tirx.min(as_expr(a), as_expr(b))


def _cast(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    import onnx

    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(context.attr("to")))
    return _required(arrays, 0) if kind.kind in "iu" else None


def _gather(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    data, indices = _required(arrays, 0), _required(arrays, 1)
    if indices.dtype == object:
        return None
    return np.asarray(np.take(data, indices, axis=context.attr("axis", 0)), dtype=object)


def _concat(context: NodeContext, arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.asarray(a, dtype=object) for a in arrays], axis=context.attr("axis", 0))


def _slice(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    data = _required(arrays, 0)
    if context.opset < 10:
        starts, ends = context.attr("starts"), context.attr("ends")
        axes, steps = context.attr("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        rest = [None if array is None else array for array in arrays[1:]]
        if any(array is not None and array.dtype == object for array in rest):
            return None
        starts, ends = _required(arrays, 1).tolist(), _required(arrays, 2).tolist()
        axes = arrays[3].tolist() if len(arrays) > 3 and arrays[3] is not None else list(range(len(starts)))
        steps = arrays[4].tolist() if len(arrays) > 4 and arrays[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(index)]


def _axes(context: NodeContext, arrays: Arrays) -> list[int] | None:
    if context.opset >= 13:
        return [int(a) for a in arrays[1]] if len(arrays) > 1 and arrays[1] is not None else None
    axes = context.attr("axes")
    return None if axes is None else [int(a) for a in axes]


def _squeeze(context: NodeContext, arrays: Arrays) -> np.ndarray:
    axes = _axes(context, arrays)
    return np.squeeze(_required(arrays, 0), axis=None if axes is None else tuple(axes))


def _unsqueeze(context: NodeContext, arrays: Arrays) -> np.ndarray:
    return np.expand_dims(_required(arrays, 0), tuple(_axes(context, arrays) or ()))


def _reshape(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    data, shape = _required(arrays, 0), _required(arrays, 1)
    if shape.dtype == object or context.attr("allowzero", 0):
        return None
    return data.reshape([data.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def _reduce_product(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    data = _required(arrays, 0)
    if data.ndim != 1:
        return None
    result = np.empty((1,) if context.attr("keepdims", 1) else (), dtype=object)
    result[...] = simplify(_product(data.tolist()))
    return result


def _equal(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    a, b = np.broadcast_arrays(_required(arrays, 0), _required(arrays, 1))
    result = np.zeros(a.shape, dtype=np.bool_)
    for index in np.ndindex(a.shape):
        left, right = as_dim(a[index]), as_dim(b[index])
        if same_dim(left, right):
            result[index] = True
        elif _both_static(left, right) or _is_negative(left) or _is_negative(right):
            result[index] = False  # a size is never the -1 that stands for "infer it"
        else:
            return None
    return result


def _both_static(a: Dim, b: Dim) -> bool:
    return isinstance(a, int) and isinstance(b, int)


def _is_negative(a: Dim) -> bool:
    return isinstance(a, int) and a < 0


def _where(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    condition = _required(arrays, 0)
    if condition.dtype == object:
        return None
    left = np.asarray(_required(arrays, 1), dtype=object)
    right = np.asarray(_required(arrays, 2), dtype=object)
    return np.where(condition, left, right)


def _split(context: NodeContext, arrays: Arrays) -> list[np.ndarray] | None:
    data = _required(arrays, 0)
    parts = len(context.node.output)
    sizes = arrays[1] if len(arrays) > 1 and arrays[1] is not None else context.attr("split")
    if sizes is None:
        sizes = [-(-data.shape[0] // parts)] * parts
    if data.ndim != 1:
        return None
    return np.split(data, np.cumsum([int(size) for size in sizes])[:-1])


def _expand(context: NodeContext, arrays: Arrays) -> np.ndarray | None:
    data, shape = _required(arrays, 0), _required(arrays, 1)
    if shape.dtype == object or math.prod(int(size) for size in shape) > MAX_ELEMENTS:
        return None
    target = np.broadcast_shapes(data.shape, tuple(int(size) for size in shape))
    return np.broadcast_to(data, target)


_RULES: dict[str, Rule] = {
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_divide),
    "Max": _elementwise(_larger),
    "Min": _elementwise(_smaller),
    "Cast": _cast,
    "Concat": _concat,
    "Equal": _equal,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": lambda _, arrays: _required(arrays, 0),
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
