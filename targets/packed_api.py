"""The entry of a kernel that is called with tensors: it accepts tensors that begin inside their memory.

TVM makes the entry (MakePackedAPI) and refuses a tensor with a byte offset, because kernels count from where memory
begins. Here the entry adds the offset to the address instead, and refuses only one that is not aligned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tvm
from tvm import ir, tirx
from tvm.tirx import compilation_pipeline

# Fields of a tensor by the numbers that `tvm_struct_get` takes.
_DATA, _BYTE_OFFSET = 1, 8


Step = Callable[[tvm.IRModule], tvm.IRModule]


def register_pipeline(name: str, alignment: int, after_lowering: Step | None = None) -> str:
    """Register TVM's own pipeline with the other entries, under the name that this returns.

    Args:
        name: of the pipeline.
        alignment: what the entry of a kernel asks of a tensor's byte offset.
        after_lowering: is given the module of lowered host and device functions; what it returns is built.
    """
    lower, finalize_host, finalize_device = tirx.get_tir_pipeline("s_tir")
    accept = functools.partial(_accept_offsets, alignment)
    entries = tvm.ir.transform.module_pass(lambda module, _context: accept(module), opt_level=0)
    if after_lowering is not None:
        step = after_lowering
        last = tvm.ir.transform.module_pass(lambda module, _context: step(module), opt_level=0)
        lower = tvm.ir.transform.Sequential([lower, last])

    def pipeline() -> tuple[Any, Any, Any]:
        return lower, lambda: tvm.ir.transform.Sequential([entries, finalize_host()]), finalize_device

    compilation_pipeline.register_tir_pipeline(name, pipeline)
    return name


def _accept_offsets(alignment: int, module: tvm.IRModule) -> tvm.IRModule:
    result = module.clone()
    for gv, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and int(func.attrs.get("calling_conv", 0)) == 1:
            result.update_func(gv, func.with_body(_entry(func.body, alignment)))
    return result


def _entry(stmt: tirx.Stmt, alignment: int) -> tirx.Stmt:
    """The statements of an entry, down to the kernel's own."""
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_entry(part, alignment) for part in stmt.seq])
    if isinstance(stmt, tirx.AttrStmt):
        if stmt.attr_key == "compute_scope":
            return stmt
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _entry(stmt.body, alignment), stmt.span)
    if isinstance(stmt, tirx.AssertStmt):
        offset = _checked_offset(stmt.condition)
        if offset is None:
            return stmt
        aligned = tirx.EQ(tirx.floormod(offset, tirx.const(alignment, "uint64")), tirx.const(0, "uint64"))
        return tirx.AssertStmt(aligned, stmt.error_kind, stmt.message_parts, stmt.span)
    if isinstance(stmt, tirx.DeclBuffer):
        return tirx.DeclBuffer(stmt.buffer, data=_shifted(stmt.data), span=stmt.span)
    return stmt


def _checked_offset(condition: tirx.Expr) -> tirx.Expr | None:
    """The byte offset that a condition compares with 0, or None for another condition."""
    if not isinstance(condition, tirx.EQ):
        return None
    return next((side for side in (condition.a, condition.b) if _field(side) == _BYTE_OFFSET), None)


def _shifted(data: tirx.Expr) -> tirx.Expr:
    """The address of a tensor's data with its byte offset added; other addresses as they are."""
    if isinstance(data, ir.Call) and data.op.name == "tirx.reinterpret":
        return ir.Call(data.op, [*data.args[:-1], _shifted(data.args[-1])], data.attrs, data.ty_args, ret_ty=data.ty)
    if _field(data) != _DATA:
        return data
    tensor = data.args[0]
    get = ir.Call(data.op, [tensor, *data.args[1:-1], tirx.const(_BYTE_OFFSET, "int32")], ret_ty=ir.PrimType("uint64"))
    offset = tirx.Cast("int64", get)
    return ir.Call(ir.Op.get("tirx.handle_add_byte_offset"), [data, offset], ret_ty=data.ty)


def _field(expr: tirx.Expr) -> int | None:
    """Which field of a tensor an expression reads, or None."""
    if isinstance(expr, ir.Call) and expr.op.name == "tirx.tvm_struct_get":
        return int(expr.args[2])
    return None
