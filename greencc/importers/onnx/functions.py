"""Function bodies that the ONNX standard itself gives for operators (GroupNormalization, CenterCropPad, ...)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.defs

from greencc.importers.onnx.context import NodeContext
from greencc.importers.onnx.values import Value


def function_body(context: NodeContext) -> onnx.FunctionProto | None:
    """The standard's definition of the node's operator in terms of others, or None when it has none."""
    try:
        schema = onnx.defs.get_schema(context.op, context.opset, context.domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    types = [b"" if value is None else _type_of(value).SerializeToString() for value in context.inputs]
    versions = schema.context_dependent_function_opset_versions
    version = max((v for v in versions if v <= context.opset), default=min(versions))
    data = schema.get_context_dependent_function_with_opset_version(version, context.node.SerializeToString(), types)
    return onnx.FunctionProto.FromString(data) if data else None


def has_function_body(context: NodeContext) -> bool:
    """Whether the standard defines the node's operator in terms of others."""
    try:
        schema = onnx.defs.get_schema(context.op, context.opset, context.domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _type_of(value: Value) -> onnx.TypeProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    shape = value.shape
    dims = None if shape is None else [dim if isinstance(dim, int) else None for dim in shape]
    return onnx.helper.make_tensor_type_proto(element, dims)
