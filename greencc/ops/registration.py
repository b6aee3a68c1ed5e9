"""Making operators known to TVM, with type inference and purity."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax

InferType: TypeAlias = Callable[[relax.Call, object], relax.Type]

_LOCK = threading.Lock()


@functools.cache
def registered(name: str, infer: InferType) -> ir.Op:
    """The pure operator `name`, whose type `infer` tells by a call of it; registered when it is asked for first."""
    with _LOCK:  # two threads that compile may ask for it at once
        if name not in ir.Op.list_op_names():
            tvm_ffi.get_global_func("ir.RegisterOp")(name, f"greencc operator {name}")
            ir.register_op_attr(name, "FInferType", infer)
            ir.register_op_attr(name, "FPurity", True)
    return ir.Op.get(name)
