"""Calls of the operator `greencc.kernel`: building them, inferring their types, lowering them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tvm import ir, relax, te, tirx

from greencc.errors import GreenccError
from greencc.kernels.base import KERNEL, kernel_name, kernel_options
from greencc.kernels.table import KERNELS
from greencc.ops.registration import registered


def kernel(name: str, args: Sequence[relax.Expr], dims: Sequence[tirx.Expr | int] = (), **options: Any) -> relax.Call:
    """A call of the kernel `name` on tensors `args`.

    Args:
        name: key of `greencc.kernels.KERNELS`.
        args: tensor expressions with known (perhaps symbolic) shapes.
        dims: int64 sizes that the kernel needs and that the shapes of `args` don't hold.
        options: JSON values, part of the kernel's identity.
    """
    if name not in KERNELS:
        raise GreenccError(f"{KERNEL}: no kernel '{name}'; known: {', '.join(sorted(KERNELS))}")
    sizes = relax.ShapeExpr([tirx.IntImm("int64", dim) if isinstance(dim, int) else dim for dim in dims])
    attrs = ir.make_node("ir.DictAttrs", kernel=name, options=json.dumps(options, sort_keys=True))
    return relax.Call(registered(KERNEL, _infer_type), [*args, sizes], attrs, [])


def _infer_type(call: relax.Call, _context: object) -> relax.Type:
    """The type of a kernel call: its tensor expression is built over placeholders of the arguments' types."""
    tensors = [_placeholder(index, arg.ty) for index, arg in enumerate(call.args[:-1])]
    result = _function(call)(*tensors, list(call.args[-1].ty.values))
    if isinstance(result, te.Tensor):
        return relax.TensorType(list(result.shape), result.dtype)
    return relax.TupleType([relax.TensorType(list(tensor.shape), tensor.dtype) for tensor in result])


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a kernel call to a PrimFunc: an entry for `relax.transform.LegalizeOps`."""
    return builder.call_te(_function(call), *call.args[:-1], call.args[-1], primfunc_name_hint=kernel_name(call))


def _function(call: relax.Call) -> Callable[..., Any]:
    function = KERNELS[kernel_name(call)]
    options = kernel_options(call)

    def build(*args: Any) -> Any:
        return function(*args[:-1], dims=list(args[-1]), **options)

    return build


def _placeholder(index: int, ty: relax.Type) -> te.Tensor:
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        raise GreenccError(f"{KERNEL}: argument {index} must be a tensor of known shape, not {ty}")
    return te.placeholder(list(ty.shape.values), str(ty.dtype), name=f"x{index}")
