"""Constant folding while walking: a node whose inputs are all constants is evaluated on the spot.

The evaluator is the ONNX package's own reference implementation, one node at a time, so that weights are never
copied and node names survive. Operators that are random, stateful or hold nested graphs are left alone, and so
is a result that would blow up the model (ConstantOfShape of a large shape, Expand, Tile, ...). Weights that are stored
in bytes stay in bytes: passes decide what becomes of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from greencc.importers.onnx.context import NodeContext
from greencc.importers.onnx.reader import subgraphs, tensor_array
from greencc.importers.onnx.values import Value

# A folded result above this many bytes is kept only when it is no larger than the inputs it replaces.
MAX_FOLDED_BYTES = 1 << 22
_NOT_FOLDED = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)


# A constant of one repeated value takes no memory until it is used; this bounds what it may become then.
MAX_FILLED_BYTES = 1 << 30


def handles(domain: str, op: str) -> bool:
    """Whether nodes of this operator are constants whatever their inputs are."""
    return not domain and op == "Constant"


def fold(context: NodeContext) -> list[Value] | None:
    """The node's constant outputs, or None when it has to stay in the graph."""
    node = context.node
    if context.domain or context.op in _NOT_FOLDED or any(True for _ in subgraphs(node)):
        return None
    if context.op == "Constant":
        return [Value("", known=_constant(context))]
    if not context.inputs or any(value is not None and not value.is_constant for value in context.inputs):
        return None
    arrays = [value.known for value in context.inputs if value is not None and value.known is not None]
    if context.op == "DequantizeLinear" and arrays[0].itemsize == 1 and arrays[0].ndim >= 2:
        return None
    if context.op == "ConstantOfShape":
        return _filled(context, arrays[0])
    outputs = _evaluate(context, arrays)
    if outputs is None or not all(isinstance(output, np.ndarray) for output in outputs):
        return None
    size = sum(output.nbytes for output in outputs)
    if size > MAX_FOLDED_BYTES and size > sum(array.nbytes for array in arrays):
        return None
    return [Value("", known=output) for output in outputs]


def bind_attributes(body: onnx.FunctionProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a function body with references to the function's attributes replaced by `node`'s values."""
    given = {attribute.name: attribute for attribute in node.attribute}
    defaults = {attribute.name: attribute for attribute in body.attribute_proto}
    for inner in body.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(inner)
        del copy.attribute[:]
        for attribute in inner.attribute:
            if not attribute.ref_attr_name:
                copy.attribute.append(attribute)
                continue
            bound = given.get(attribute.ref_attr_name) or defaults.get(attribute.ref_attr_name)
            if bound is not None:
                named = copy.attribute.add()
                named.CopyFrom(bound)
                named.name = attribute.name
        yield copy


def dense_array(path: Path, sparse: onnx.SparseTensorProto) -> np.ndarray:
    """A sparse initializer as a dense array."""
    values = tensor_array(path, sparse.values)
    indices = tensor_array(path, sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _filled(context: NodeContext, shape: np.ndarray) -> list[Value] | None:
    """A constant of one repeated value, as a view that takes no memory."""
    dims = [int(dim) for dim in shape.reshape(-1)]
    fill = np.asarray(context.attr("value", np.zeros(1, np.float32))).reshape(-1)
    if any(dim < 0 for dim in dims) or len(fill) != 1 or math.prod(dims) * fill.itemsize > MAX_FILLED_BYTES:
        return None
    return [Value("", known=np.broadcast_to(fill.reshape([1] * len(dims)), dims))]


def _constant(context: NodeContext) -> np.ndarray:
    for name, dtype in (("value", None), ("value_float", "float32"), ("value_floats", "float32"),
                        ("value_int", "int64"), ("value_ints", "int64")):  # fmt: skip
        if context.has_attr(name):
            value = context.attr(name)
            return value if dtype is None else np.asarray(value, dtype)
    if context.has_attr("sparse_value"):
        return dense_array(context.walker.importer.file.path, context.attr("sparse_value"))
    raise context.refuse("a constant of strings is not numeric")


def _evaluate(context: NodeContext, arrays: list[np.ndarray]) -> list[np.ndarray] | None:
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(context.inputs)]
    node = onnx.NodeProto()
    node.CopyFrom(context.node)
    del node.input[:]
    node.input.extend(names)
    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(filter(None, names), arrays, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", context.opset)])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            feeds = dict(zip(filter(None, names), arrays, strict=True))
            results = iter(ReferenceEvaluator(model).run(None, feeds))
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError):
            return None  # the converter gets its chance and reports what is wrong with the node
    return [np.asarray(next(results)) if name else np.zeros(0) for name in node.output]
