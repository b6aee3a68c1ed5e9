"""Symbolic sizes as data."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, tirx

from greencc.ops.registration import registered

SHAPE_TO_TENSOR = "greencc.shape_to_tensor"


def shape_to_tensor(dims: Sequence[tirx.Expr]) -> relax.Call:
    """An int64 tensor [len(dims)] that holds symbolic sizes, for operators that compute with them as data.

    TVM's own operator of this kind calls Python at run time; this one lowers to a kernel.
    """
    return relax.Call(registered(SHAPE_TO_TENSOR, _infer_shape_to_tensor), [relax.ShapeExpr(list(dims))], None, [])


def _infer_shape_to_tensor(call: relax.Call, _context: object) -> relax.TensorType:
    return relax.TensorType((len(call.args[0].ty.values),), "int64")
