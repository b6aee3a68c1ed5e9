"""Operators that move or select data without computing: reshape, transpose, slice, gather, concat, ..."""

from __future__ import annotations

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.values import Dim, Value, as_expr, simplify


def reshape(ctx: NodeContext) -> relax.Expr | Value:
    """Reshape; 0 copies a dimension (unless allowzero), -1 is inferred, symbolic sizes come as expressions."""
    source = ctx.shape(0)
    wanted = ctx.dims(1) if ctx.opset >= 5 else list(ctx.attr("shape"))
    copy_zero = not ctx.attr("allowzero", 0)
    target: list[Dim] = [source[i] if dim == 0 and copy_zero else dim for i, dim in enumerate(wanted)]
    unknown = [i for i, dim in enumerate(target) if isinstance(dim, int) and dim == -1]
    if unknown:
        total: Dim = 1
        for dim in source:
            total = total * dim
        rest: Dim = 1
        for i, dim in enumerate(target):
            rest = rest * dim if i not in unknown else rest
        target[unknown[0]] = simplify(total // rest) if not (isinstance(rest, int) and rest == 0) else 0
    return relax.op.reshape(ctx.tensor(0), [as_expr(dim) for dim in target])


def transpose(ctx: NodeContext) -> relax.Expr:
    """Transpose; without `perm` the axes are reversed."""
    return relax.op.permute_dims(ctx.tensor(0), ctx.attr("perm"))


def identity(ctx: NodeContext) -> Value:
    """Identity: the same value under another name."""
    value = ctx.value(0)
    return Value("", value.expr, value.known, value.dtype, value.elements)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Reshape"): reshape,
    ("", "Transpose"): transpose,
    ("", "Identity"): identity,
}
