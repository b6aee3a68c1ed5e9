"""Layer normalisations that quantise their result for the product behind them, in the same pass over a row.

y = layer_norm(x)                      becomes   t = normalize_rows(x); y = t[0]
z = quantized_matmul(y, ...)                     and z reads t[1], t[2], t[3] when it is lowered
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tvm
from tvm import ir, relax, tirx

from greencc.ir import bindings_of, constant_array, dtype_of, is_call, relax_functions, shape_of
from greencc.ops import QUANTIZED_MATMUL, scheme_of
from greencc.targets.int8.levels import Levels, quantized_rows_types

NAME = "normalize_rows"


class NormKernel(Protocol):
    """Makes a target's kernel that normalises rows and quantises them."""

    def __call__(self, x: relax.TensorType, epsilon: float, *, with_factors: bool) -> tirx.PrimFunc:
        """The kernel for x [..., K] float32, gamma [K], beta [K], and factors [K], if there are any.

        It writes y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, of x's type, and what `quantized_rows_types`
        lists of y, times the factors.
        """


def quantize_in_norms(module: tvm.IRModule, levels: Levels, emit: NormKernel) -> tvm.IRModule:
    """`module` with a kernel that normalises and quantises in the place of layer norms whose rows are quantised."""
    rewriter = _Rewriter(relax.BlockBuilder(module.clone()), levels, emit)
    for gv, function in relax_functions(module):
        readers: dict[relax.Var, relax.Call] = {}
        for binding in bindings_of(function):
            if is_call(binding.value, QUANTIZED_MATMUL) and scheme_of(binding.value) is None:
                readers.setdefault(binding.value.args[0], binding.value)
        found = {
            binding.var: readers[binding.var]
            for binding in bindings_of(function)
            if binding.var in readers and _is_plain_norm(binding.value)
        }
        if found:
            rewriter.builder.update_func(gv, rewriter.function(function, found))
    return rewriter.builder.get()


def quantized_by_norm(
    builder: relax.BlockBuilder, x: relax.Expr, factors: list[relax.Expr]
) -> tuple[relax.Expr, relax.Expr, relax.Expr] | None:
    """(levels, scale, zero point) of x, where the kernel that made it made them too, with the same factors."""
    field = builder.lookup_binding(x) if isinstance(x, relax.Var) else None
    if not isinstance(field, relax.TupleGetItem) or field.index != 0:
        return None
    made = builder.lookup_binding(field.tuple_value)
    if not is_call(made, "relax.call_tir") or not made.args[0].name_hint.startswith(NAME):
        return None
    given = list(made.args[1].fields)[3:]
    if len(given) != len(factors) or not all(map(_equal, given, factors)):
        return None
    levels, scale, zero = (builder.emit(relax.TupleGetItem(field.tuple_value, i)) for i in (1, 2, 3))
    return levels, scale, zero


class _Rewriter:
    """Rewrites the functions of the module that `builder` holds, and adds the kernels to it."""

    def __init__(self, builder: relax.BlockBuilder, levels: Levels, emit: NormKernel) -> None:
        self.builder, self._levels, self._emit = builder, levels, emit
        self._kernels: dict[str, ir.GlobalVar] = {}

    def function(self, function: relax.Function, found: dict[relax.Var, relax.Call]) -> relax.Function:
        """The function with norms replaced; `found` holds their variables, with a product that reads each."""
        blocks = []
        for block in function.body.blocks:
            bindings: list[relax.Binding] = []
            for binding in block.bindings:
                if binding.var not in found:
                    bindings.append(binding)
                    continue
                call = self._call(binding.value, found[binding.var])
                made = relax.DataflowVar if isinstance(block, relax.DataflowBlock) else relax.Var
                both = made(f"{binding.var.name}_rows", call.ty)
                field = relax.BlockBuilder().normalize(relax.TupleGetItem(both, 0))
                bindings += [relax.VarBinding(both, call), relax.VarBinding(binding.var, field)]
            blocks.append(type(block)(bindings))
        body = relax.BlockBuilder().normalize(relax.SeqExpr(blocks, function.body.body))
        return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)

    def _call(self, norm: relax.Call, reader: relax.Call) -> relax.Call:
        x, factors = norm.args[0], list(reader.args[3:])
        types = [x.ty, *quantized_rows_types(x.ty, self._levels)]
        epsilon = float(norm.attrs.epsilon)
        form = f"{x.ty} {epsilon} {len(factors)}"
        if form not in self._kernels:
            kernel = self._emit(x.ty, epsilon, with_factors=bool(factors))
            self._kernels[form] = self.builder.add_func(kernel.without_attr("global_symbol"), NAME)
        call = relax.call_tir(self._kernels[form], [*norm.args, *factors], types)
        return relax.BlockBuilder().normalize(call)


def _equal(a: relax.Expr, b: relax.Expr) -> bool:
    """Whether two constants hold the same."""
    first, second = constant_array(a), constant_array(b)
    return first is not None and second is not None and np.array_equal(first, second)


def _is_plain_norm(value: relax.Expr) -> bool:
    """Whether a value is a layer norm over the last axis of float32 rows of known length, with gamma and beta."""
    if not is_call(value, "relax.nn.layer_norm"):
        return False
    shape, attrs = shape_of(value.args[0].ty), value.attrs
    if shape is None or not isinstance(shape[-1], tirx.IntImm) or dtype_of(value.ty) != "float32":
        return False
    axes = [int(axis) % len(shape) for axis in attrs.axes]
    return axes == [len(shape) - 1] and bool(attrs.center) and bool(attrs.scale)
