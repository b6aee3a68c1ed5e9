"""Element types: which ones greencc computes with, and the ONNX names of them."""

from __future__ import annotations

import numpy as np
import onnx

from greencc.importers.onnx.context import NodeContext
from greencc.importers.onnx.values import FLOATS, INTEGERS, SIGNED, SUPPORTED, UNSIGNED

__all__ = ["FLOATS", "INTEGERS", "SIGNED", "SUPPORTED", "UNSIGNED", "checked_type", "type_name"]


def type_name(code: int) -> str:
    """Numpy's name of an ONNX element type; "string" or "complex64" and the like where greencc has none."""
    try:
        name = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)))
    except (KeyError, TypeError):
        return f"element type {code}"
    return "string" if name == "object" else name


def checked_type(ctx: NodeContext, code: int) -> str:
    """The element type of a result, refused when greencc does not compute with it."""
    name = type_name(code)
    if name not in SUPPORTED:
        raise ctx.refuse(f"element type {name} is not supported")
    return name
