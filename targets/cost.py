"""What a kernel has to do at least: arithmetic operations and bytes moved, counted before it is scheduled.

A profile divides both by the measured time. The counts say what the computation needs, not what a schedule makes of
it: padding, repeated loads and work done twice don't count.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import ir, relax, s_tir, sym, tirx

from greencc.ir import shape_of
from greencc.targets.tir import as_int, children, i64, loads, substitute, walk

OPERATIONS_ATTR = "greencc.operations"
"""Set by imperative kernels, whose loops aren't blocks: operations of one run, an expression in the kernel's sizes; and
on blocks whose expression says more than the computation needs: operations of one iteration."""
BITS_ATTR = "greencc.bits"
"""On a block: how many bits the int8 elements that it reads have."""
_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max)


@dataclass(frozen=True)
class Cost:
    """Work of one launch.

    Attributes:
        operations: additions, multiplications, comparisons and function values, each 1 (a multiply-add is 2); None
            where that is unknown. Index arithmetic doesn't count.
        bytes: every parameter read or written once; of a table, as many elements as are looked up.
        arithmetic: "int8" for products of bytes, else "float32".
    """

    operations: tirx.Expr | None
    bytes: tirx.Expr
    arithmetic: str


def call_cost(module: tvm.IRModule, call: relax.Call) -> Cost:
    """The cost of a `call_tir`, in the sizes that are known at the call."""
    func = module[call.args[0]]
    cost = kernel_cost(func)
    args = call.args[1]
    operands = list(args.fields) if isinstance(args, relax.Tuple) else [args]
    outputs = call.ty_args[0]
    results = list(outputs.fields) if isinstance(outputs, relax.TupleType) else [outputs]
    types = [ty for ty in (*(arg.ty for arg in operands), *results) if isinstance(ty, relax.TensorType)]
    tensors = [param for param in func.params if _is_tensor(param)]
    values: dict[tirx.Var, tirx.Expr] = {}
    for param, ty in zip(tensors, types, strict=True):
        shape = shape_of(ty)
        # A value whose shape isn't known leaves the kernel's own symbols in the cost: then it is unknown at run time.
        for dim, size in zip(param.ty.shape, shape or (), strict=shape is not None):
            if isinstance(dim, tirx.Var):
                values[dim] = size
    analyzer = sym.Analyzer()

    def at_call(expr: tirx.Expr) -> tirx.Expr:
        return analyzer.simplify(substitute(expr, values))

    operations = None if cost.operations is None else at_call(cost.operations)
    return Cost(operations, at_call(cost.bytes), cost.arithmetic)


def kernel_cost(func: tirx.PrimFunc) -> Cost:
    """The cost of a kernel, in its own sizes."""
    tensors = [param for param in func.params if _is_tensor(param)]
    try:
        schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
        found = [schedule.get(rv) for rv in schedule.get_child_blocks(schedule.get_sblock("root"))]
    except s_tir.ScheduleError:
        found = []
    if not found or not all(isinstance(block.body, tirx.BufferStore) for block in found):
        operations = func.attrs[OPERATIONS_ATTR] if func.attrs and OPERATIONS_ATTR in func.attrs else None
        total: tirx.Expr = i64(0)
        for param in tensors:
            total = total + _elements(param) * i64(_itemsize(param))
        return Cost(operations, total, "float32")
    analyzer = sym.Analyzer()
    operations, is_int8 = i64(0), False
    looked_up: set[tirx.Var] = set()
    bits = {param: 8 * _itemsize(param) for param in tensors}
    accesses: dict[tirx.Var, tirx.Expr] = {param: i64(0) for param in tensors}
    for block in found:
        times: tirx.Expr = i64(1)
        for axis in block.iter_vars:
            times = times * axis.dom.extent.astype("int64")
        own = block.annotations.get(OPERATIONS_ATTR)
        operations = operations + times * i64(_operations(block.body.value) if own is None else int(own))
        is_int8 = is_int8 or _multiplies_bytes(block.body.value)
        read = list(loads(block.body.value))
        for buffer in [block.body.buffer, *(load.source for load in read)]:
            if buffer in accesses:
                accesses[buffer] = analyzer.simplify(accesses[buffer] + times)
        if BITS_ATTR in block.annotations:
            narrow = [load.source for load in read if str(load.ty.dtype) == "int8"]
            bits.update((source, int(block.annotations[BITS_ATTR])) for source in narrow)
        looked_up |= {load.source for load in read if any(_reads(index) for index in load.indices)}
    traffic: tirx.Expr = i64(0)
    for param, count in accesses.items():
        size = _elements(param)
        is_part = param in looked_up or (as_int(size) is not None and as_int(count) is not None)
        moved = (tirx.min(size, count) if is_part else size) * i64(bits[param])
        traffic = traffic + tirx.ceildiv(moved, i64(8))
    return Cost(operations, traffic, "int8" if is_int8 else "float32")


def _reads(index: tirx.Expr) -> bool:
    """Whether an index comes from data."""
    return next(loads(index), None) is not None


def _operations(value: tirx.Expr) -> int:
    """Operations on data in an expression, outside indices."""
    if isinstance(value, ir.TensorLoad):
        return 0
    own = 0
    if isinstance(value, _ARITHMETIC) or (
        isinstance(value, ir.Call) and "if_then_else" not in str(value.op) and "float" in str(value.ty)
    ):
        own = 1
    return own + sum(_operations(child) for child in children(value))


def _multiplies_bytes(value: tirx.Expr) -> bool:
    """Whether an expression holds a product of 8-bit integers, widened."""
    return any(
        isinstance(node, tirx.Mul) and all(_is_widened_byte(factor) for factor in (node.a, node.b))
        for node in walk(value)
    )


def _is_widened_byte(value: tirx.Expr) -> bool:
    narrow = ("int8", "uint8", "int16")
    return isinstance(value, tirx.Cast) and str(value.value.ty) in narrow and str(value.ty) == "int32"


def _is_tensor(param: tirx.Var) -> bool:
    return hasattr(param.ty, "shape")


def _elements(param: tirx.Var) -> tirx.Expr:
    total: tirx.Expr = i64(1)
    for dim in param.ty.shape:
        total = total * dim.astype("int64")
    return total


def _itemsize(param: tirx.Var) -> int:
    return (int(tvm.DataType(str(param.ty.dtype)).bits) + 7) // 8
