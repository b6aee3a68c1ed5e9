"""Activations and other functions of one number."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.elementwise import unary
from greencc.importers.onnx.values import as_expr
from greencc.kernels import kernel


def in_single(function: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """A function that Relax computes well in float32: half precision goes through it."""

    def convert(ctx: NodeContext) -> relax.Expr:
        dtype = ctx.value(0).dtype
        if dtype not in ("float16", "bfloat16"):
            return function(ctx.tensor(0))
        wide = ctx.emit(function(ctx.emit(relax.op.astype(ctx.tensor(0), "float32"))))
        return relax.op.astype(wide, dtype)

    return convert


def library(name: str) -> Converter:
    """A function of C's math library that Relax has no exact operator for."""
    return lambda ctx: kernel("math_function", [ctx.tensor(0)], function=name)


def scalar(ctx: NodeContext, name: str, default: float) -> relax.Expr:
    """A float attribute as a constant of the input's type."""
    return ctx.const(float(ctx.attr(name, default)), ctx.value(0).dtype)


def _zero(ctx: NodeContext) -> relax.Expr:
    return ctx.const(0, ctx.value(0).dtype)


def _exp_minus_one(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
    """exp(min(x, 0)) - 1: the negative side, without overflow on the other one."""
    negative = ctx.emit(relax.op.minimum(x, _zero(ctx)))
    return ctx.emit(relax.op.subtract(ctx.emit(relax.op.exp(negative)), ctx.const(1, ctx.value(0).dtype)))


def elu(ctx: NodeContext) -> relax.Expr:
    """Elu: x, or alpha (exp(x) - 1) below zero."""
    x = ctx.tensor(0)
    negative = ctx.emit(relax.op.multiply(scalar(ctx, "alpha", 1.0), _exp_minus_one(ctx, x)))
    return relax.op.where(ctx.emit(relax.op.less(x, _zero(ctx))), negative, x)


def selu(ctx: NodeContext) -> relax.Expr:
    """Selu: gamma times Elu."""
    x = ctx.tensor(0)
    alpha, gamma = scalar(ctx, "alpha", 1.6732632423543772), scalar(ctx, "gamma", 1.0507009873554805)
    negative = ctx.emit(relax.op.multiply(alpha, _exp_minus_one(ctx, x)))
    is_positive = ctx.emit(relax.op.greater(x, _zero(ctx)))
    return relax.op.multiply(gamma, ctx.emit(relax.op.where(is_positive, x, negative)))


def celu(ctx: NodeContext) -> relax.Expr:
    """Celu: max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    x, alpha = ctx.tensor(0), scalar(ctx, "alpha", 1.0)
    negative = _exp_minus_one(ctx, ctx.emit(relax.op.divide(x, alpha)))
    return relax.op.where(ctx.emit(relax.op.less(x, _zero(ctx))), ctx.emit(relax.op.multiply(alpha, negative)), x)


def leaky_relu(ctx: NodeContext) -> relax.Expr:
    """LeakyRelu: x, or alpha x below zero."""
    x = ctx.tensor(0)
    scaled = ctx.emit(relax.op.multiply(x, scalar(ctx, "alpha", 0.01)))
    return relax.op.where(ctx.emit(relax.op.less(x, _zero(ctx))), scaled, x)


def prelu(ctx: NodeContext) -> relax.Expr:
    """PRelu: x, or slope x below zero; before opset 7 a slope per channel lacks its trailing axes."""
    x, slope = ctx.tensor(0), ctx.tensor(1)
    if ctx.opset < 7 and ctx.rank(1) == 1 and ctx.rank(0) > 2:
        shape = [as_expr(dim) for dim in ctx.shape(1)] + [as_expr(1)] * (ctx.rank(0) - 2)
        slope = ctx.emit(relax.op.reshape(slope, shape))
    zero = _zero(ctx)
    return relax.op.where(ctx.emit(relax.op.less(x, zero)), ctx.emit(relax.op.multiply(x, slope)), x)


def thresholded_relu(ctx: NodeContext) -> relax.Expr:
    """ThresholdedRelu: x above alpha, else 0."""
    x = ctx.tensor(0)
    return relax.op.where(ctx.emit(relax.op.greater(x, scalar(ctx, "alpha", 1.0))), x, _zero(ctx))


def _hard_sigmoid(ctx: NodeContext, alpha: float, beta: float) -> relax.Expr:
    dtype = ctx.value(0).dtype
    scaled = ctx.emit(relax.op.multiply(ctx.tensor(0), ctx.const(alpha, dtype)))
    shifted = ctx.emit(relax.op.add(scaled, ctx.const(beta, dtype)))
    return ctx.emit(relax.op.minimum(ctx.emit(relax.op.maximum(shifted, _zero(ctx))), ctx.const(1, dtype)))


def hard_sigmoid(ctx: NodeContext) -> relax.Expr:
    """HardSigmoid: alpha x + beta, kept within [0, 1]."""
    return _hard_sigmoid(ctx, float(ctx.attr("alpha", 0.2)), float(ctx.attr("beta", 0.5)))


def hard_swish(ctx: NodeContext) -> relax.Expr:
    """HardSwish: x times HardSigmoid(alpha 1/6, beta 1/2)."""
    return relax.op.multiply(ctx.tensor(0), _hard_sigmoid(ctx, 1.0 / 6.0, 0.5))


def shrink(ctx: NodeContext) -> relax.Expr:
    """Shrink: x + bias below -lambd, x - bias above lambd, else 0."""
    x, bias = ctx.tensor(0), scalar(ctx, "bias", 0.0)
    bound = float(ctx.attr("lambd", 0.5))
    dtype = ctx.value(0).dtype
    low = ctx.emit(relax.op.less(x, ctx.const(-bound, dtype)))
    high = ctx.emit(relax.op.greater(x, ctx.const(bound, dtype)))
    upper = ctx.emit(relax.op.where(high, ctx.emit(relax.op.subtract(x, bias)), _zero(ctx)))
    return relax.op.where(low, ctx.emit(relax.op.add(x, bias)), upper)


def softsign(ctx: NodeContext) -> relax.Expr:
    """Softsign: x / (1 + |x|)."""
    x = ctx.tensor(0)
    bottom = ctx.emit(relax.op.add(ctx.const(1, ctx.value(0).dtype), ctx.emit(relax.op.abs(x))))
    return relax.op.divide(x, bottom)


def mish(ctx: NodeContext) -> relax.Expr:
    """Mish: x tanh(softplus(x))."""
    x = ctx.tensor(0)
    return relax.op.multiply(x, ctx.emit(relax.op.tanh(ctx.emit(kernel("softplus", [x])))))


def swish(ctx: NodeContext) -> relax.Expr:
    """Swish: x sigmoid(alpha x)."""
    x, alpha = ctx.tensor(0), float(ctx.attr("alpha", 1.0))
    if alpha == 1.0:
        return relax.op.nn.silu(x)
    inner = ctx.emit(relax.op.multiply(x, ctx.const(alpha, ctx.value(0).dtype)))
    return relax.op.multiply(x, ctx.emit(relax.op.sigmoid(inner)))


def gelu(ctx: NodeContext) -> relax.Expr:
    """Gelu, by erf or by tanh."""
    function = relax.op.nn.gelu_tanh if ctx.attr("approximate", "none") == "tanh" else relax.op.nn.gelu
    return in_single(function)(ctx)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Acos"): library("acos"),
    ("", "Acosh"): library("acosh"),
    ("", "Asin"): library("asin"),
    ("", "Asinh"): library("asinh"),
    ("", "Atan"): library("atan"),
    ("", "Atanh"): library("atanh"),
    ("", "Celu"): celu,
    ("", "Cos"): in_single(relax.op.cos),
    ("", "Cosh"): library("cosh"),
    ("", "Elu"): elu,
    ("", "Erf"): in_single(relax.op.erf),
    ("", "Exp"): in_single(relax.op.exp),
    ("", "Gelu"): gelu,
    ("", "HardSigmoid"): hard_sigmoid,
    ("", "HardSwish"): hard_swish,
    ("", "LeakyRelu"): leaky_relu,
    ("", "Log"): in_single(relax.op.log),
    ("", "Mish"): mish,
    ("", "PRelu"): prelu,
    ("", "Relu"): unary(relax.op.nn.relu),
    ("", "Selu"): selu,
    ("", "Shrink"): shrink,
    ("", "Sigmoid"): in_single(relax.op.sigmoid),
    ("", "Sin"): in_single(relax.op.sin),
    ("", "Sinh"): library("sinh"),
    ("", "Softplus"): lambda ctx: kernel("softplus", [ctx.tensor(0)]),
    ("", "Softsign"): softsign,
    ("", "Sqrt"): in_single(relax.op.sqrt),
    ("", "Swish"): swish,
    ("", "Tan"): library("tan"),
    ("", "Tanh"): in_single(relax.op.tanh),
    ("", "ThresholdedRelu"): thresholded_relu,
}
