"""Arithmetic, comparisons, logic and activations: one value in, one value out, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext


def binary(function: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    """A two-operand operator with numpy broadcasting."""
    return lambda ctx: function(ctx.tensor(0), ctx.tensor(1))


def unary(function: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """A one-operand operator."""
    return lambda ctx: function(ctx.tensor(0))


def variadic(function: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    """An operator that folds any number of operands from the left."""

    def convert(ctx: NodeContext) -> relax.Expr:
        result = ctx.tensor(0)
        for index in range(1, len(ctx.inputs)):
            result = ctx.emit(function(result, ctx.tensor(index)))
        return result

    return convert


def where(ctx: NodeContext) -> relax.Expr:
    """Where(condition, a, b)."""
    return relax.op.where(ctx.tensor(0), ctx.tensor(1), ctx.tensor(2))


def cast(ctx: NodeContext) -> relax.Expr:
    """Cast to the attribute `to`."""
    import onnx

    return relax.op.astype(ctx.tensor(0), str(onnx.helper.tensor_dtype_to_np_dtype(ctx.attr("to"))))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Add"): binary(relax.op.add),
    ("", "Sub"): binary(relax.op.subtract),
    ("", "Mul"): binary(relax.op.multiply),
    ("", "Max"): variadic(relax.op.maximum),
    ("", "Min"): variadic(relax.op.minimum),
    ("", "Relu"): unary(relax.op.nn.relu),
    ("", "Sigmoid"): unary(relax.op.sigmoid),
    ("", "Tanh"): unary(relax.op.tanh),
    ("", "Erf"): unary(relax.op.erf),
    ("", "Sqrt"): unary(relax.op.sqrt),
    ("", "Exp"): unary(relax.op.exp),
    ("", "Where"): where,
    ("", "Cast"): cast,
}
