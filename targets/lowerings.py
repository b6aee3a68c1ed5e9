"""Lowerings that no target has of its own: what an operator computes, in the form that schedule rules recognise.

How it is computed (vectors, threads, layouts) is their business. Relax's own lowering serves where nothing is said
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvm import relax, te, tirx, topi

from greencc.ir import dtype_of, shape_of
from greencc.kernels.reductions import lower_extreme, lower_position
from greencc.ops import GROUPED_MATMUL, QUANTIZED_TAKE, ROTARY, SHAPE_TO_TENSOR, GroupAttrs
from greencc.targets.cost import BITS_ATTR, OPERATIONS_ATTR
from greencc.targets.memory import CONCAT_ATTR

Lowering: TypeAlias = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# On a block: how many rows of its weight share a scale.
GROUP_ATTR = "greencc.group"


def common_lowerings() -> dict[str, Lowering]:
    """Lowerings by name of the operator, for `relax.transform.LegalizeOps`."""
    return {
        "relax.argmax": lower_position(largest=True),
        "relax.argmin": lower_position(largest=False),
        "relax.concat": _concat,
        "relax.max": lower_extreme(largest=True),
        "relax.min": lower_extreme(largest=False),
        "relax.nn.gelu": _gelu,
        "relax.nn.silu": _silu,
        "relax.nn.softmax": _softmax,
        "relax.sigmoid": _sigmoid,
        GROUPED_MATMUL: _grouped_matmul,
        QUANTIZED_TAKE: _quantized_take,
        ROTARY: _rotary,
        SHAPE_TO_TENSOR: _shape_to_tensor,
    }


def _concat(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The kernel says what it does: where its operands can be made in their places, it is not called."""
    parts = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
    axis = int(call.attrs.axis or 0) % len(shape_of(call.ty) or [0])
    made = builder.call_te(lambda *tensors: topi.concatenate(tensors, axis), *parts, primfunc_name_hint="concatenate")
    gv = made.args[0]
    builder.update_func(gv, builder.get()[gv].with_attr(CONCAT_ATTR, axis))
    return made


def _shape_to_tensor(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The symbolic sizes reach the kernel as scalar arguments."""

    def compute(sizes: list[tirx.Expr]) -> te.Tensor:
        def at(index: tirx.Var) -> tirx.Expr:
            value = tirx.const(0, "int64")
            for position, size in enumerate(sizes):
                value = tirx.Select(index.equal(position), size, value)
            return value

        return te.compute((len(sizes),), at, name="sizes")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="shape_to_tensor")


def _gelu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """0.5 x (1 + erf(x / sqrt 2)) in one block, so that it stays one expression behind a matmul."""

    def compute(x: te.Tensor) -> te.Tensor:
        dtype = str(x.dtype)

        def at(*index: tirx.Var) -> tirx.Expr:
            value = x(*index)
            inner = tirx.erf(value * tirx.const(0.7071067811865476, dtype))
            return value * (tirx.const(0.5, dtype) + tirx.const(0.5, dtype) * inner)

        return te.compute(x.shape, at, name="gelu")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="gelu")


def _rotary(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Each column times cos, plus the other one of its pair, negated for the first, times sin."""
    interleaved = bool(call.attrs["interleaved"])

    def compute(x: te.Tensor, cos: te.Tensor, sin: te.Tensor) -> te.Tensor:
        size = x.shape[3]
        of_batch = [not isinstance(a.shape[0], tirx.IntImm) or int(a.shape[0]) != 1 for a in (cos, sin)]

        def at(b: tirx.Var, s: tirx.Var, h: tirx.Var, d: tirx.Var) -> tirx.Expr:
            partner = d + 1 - 2 * (d % 2) if interleaved else (d + size // 2) % size
            is_first = d % 2 == 0 if interleaved else d < size // 2
            c, t = (a(b if full else 0, s, d) for a, full in zip((cos, sin), of_batch, strict=True))
            other = x(b, s, h, partner)
            return x(b, s, h, d) * c + tirx.Select(is_first, -other, other) * t

        return te.compute(x.shape, at, name="rotary")

    return builder.call_te(compute, *call.args, primfunc_name_hint="rotary")


def _grouped_matmul(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A product whose schedule finds in annotations what its levels are; the multiply-adds alone count as work."""
    attrs, depth = GroupAttrs.of(call), int(call.args[1].ty.shape.values[0])
    annotations = {GROUP_ATTR: attrs.group, BITS_ATTR: attrs.bits, OPERATIONS_ATTR: 2}

    def compute(x: te.Tensor, levels: te.Tensor, scale: te.Tensor, *offset: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, depth), name="k")

        def at(*index: tirx.Var) -> tirx.Expr:
            group, column = tirx.floordiv(k, attrs.group), index[-1]
            value = levels(k, column).astype("float32") * scale(group, column).astype("float32")
            for tensor in offset:
                value = value + tensor(group, column).astype("float32")
            return te.sum(x(*index[:-1], k) * value, axis=k)

        return te.compute((*x.shape[:-1], levels.shape[1]), at, name="grouped_matmul", attrs=annotations)

    return builder.call_te(compute, *call.args, primfunc_name_hint="grouped_matmul")


def _quantized_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """One kernel that reads bytes of the rows and each row's scale."""
    wraps = bool(call.attrs["wrap"])

    def compute(table: te.Tensor, scale: te.Tensor, indices: te.Tensor) -> te.Tensor:
        rows = table.shape[0]

        def at(*index: tirx.Var) -> tirx.Expr:
            given = indices(*index[:-1]).astype("int64")
            held = tirx.min(tirx.max(given, tirx.const(0, "int64")), rows - 1)
            row = tirx.floormod(given, rows) if wraps else held
            return table(row, index[-1]).astype("float32") * scale(row)

        return te.compute((*indices.shape, table.shape[1]), at, name="quantized_take")

    return builder.call_te(compute, *call.args, primfunc_name_hint="quantized_take")


def _sigmoid(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *index: tirx.sigmoid(x(*index)), name="sigmoid")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="sigmoid")


def _silu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *index: x(*index) * tirx.sigmoid(x(*index)), name="silu")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="silu")


def _softmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Softmax over the last axis as maximum, exponentials, sum, quotient; other axes keep TVM's lowering."""
    axis = int(call.attrs.axis)
    rank = int(call.args[0].ty.ndim)
    if axis % rank != rank - 1 or dtype_of(call.args[0].ty) != "float32":
        return builder.call_te(topi.nn.softmax, call.args[0], axis, primfunc_name_hint="softmax")

    def compute(x: te.Tensor) -> te.Tensor:
        lead, width = list(x.shape[:-1]), x.shape[-1]
        j = te.reduce_axis((0, width), name="j")
        peak = te.compute(lead, lambda *i: te.max(x(*i, j), axis=j), name="softmax_max")
        power = te.compute(x.shape, lambda *i: tirx.exp(x(*i) - peak(*i[:-1])), name="softmax_exp")
        k = te.reduce_axis((0, width), name="k")
        total = te.compute(lead, lambda *i: te.sum(power(*i, k), axis=k), name="softmax_sum")
        return te.compute(x.shape, lambda *i: power(*i) / total(*i[:-1]), name="softmax_norm")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="softmax")
