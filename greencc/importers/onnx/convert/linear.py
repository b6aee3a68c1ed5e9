"""Matrix products. MatMul and Add stay apart, so that any epilogue can fuse with the product."""

from __future__ import annotations

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.ir import constant


def matmul(ctx: NodeContext) -> relax.Expr:
    """MatMul with numpy semantics."""
    return product(ctx, ctx.tensor(0), ctx.tensor(1))


def product(ctx: NodeContext, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """A matrix product; half precision is summed in float32, as every runtime does."""
    if str(left.ty.dtype) != "float16":
        return relax.op.matmul(left, right)
    return relax.op.astype(ctx.emit(relax.op.matmul(left, right, out_dtype="float32")), "float16")


def gemm(ctx: NodeContext) -> relax.Expr:
    """Gemm: alpha * op(A) op(B) + beta * C as a matmul and an add; constant operands are prepared here."""
    left, right = ctx.tensor(0), ctx.tensor(1)
    alpha, beta = float(ctx.attr("alpha", 1.0)), float(ctx.attr("beta", 1.0))
    if ctx.attr("transA", 0):
        left = ctx.emit(relax.op.permute_dims(left, [1, 0]))
    if ctx.attr("transB", 0):
        value = ctx.value(1)
        if value.is_constant and value.known is not None:
            right = constant(value.known.T)
        else:
            right = ctx.emit(relax.op.permute_dims(right, [1, 0]))
    result = ctx.emit(product(ctx, left, right))
    dtype = ctx.value(0).dtype
    if alpha != 1.0:
        result = ctx.emit(relax.op.multiply(result, ctx.const(alpha, dtype)))
    if not ctx.has(2) or beta == 0.0:
        return result
    addend = ctx.tensor(2)
    if beta != 1.0:
        addend = ctx.emit(relax.op.multiply(addend, ctx.const(beta, dtype)))
    return relax.op.add(result, addend)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "MatMul"): matmul,
    ("", "Gemm"): gemm,
}
