"""Operators that treat each token of a batch [B, S, ...] by itself: they give the same on any selection of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax, sym, tirx

from greencc.ir import same_shape, shape_of
from greencc.kernels.padding import BARE_POSITIONS, POSITIONS, SEQUENCES, TOKENS
from greencc.ops import GROUPED_MATMUL, INTEGER_MATMUL, QUANTIZED_MATMUL, QUANTIZED_TAKE, ROTARY
from greencc.passes.no_ops import permutation_of

# How each operand of a call runs over the batch (names of greencc.kernels.padding), None for one that doesn't.
Leads = tuple[str | None, ...]

# Operators on elements, whose operands are broadcast.
ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "abs", "add", "astype", "ceil", "clip", "cos", "divide", "equal", "erf", "exp", "floor", "greater",
        "greater_equal", "less", "less_equal", "log", "logical_and", "logical_not", "logical_or", "maximum", "minimum",
        "multiply", "negative", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.silu", "not_equal", "power",
        "round", "rsqrt", "sigmoid", "sign", "sin", "sqrt", "square", "subtract", "tanh", "where",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """The sizes of a batch of sequences."""

    size: tirx.Expr
    longest: tirx.Expr

    def runs_through(self, expr: relax.Expr) -> bool:
        """Whether a tensor is [B, S, ...]."""
        dims = shape_of(expr.ty)
        return dims is not None and len(dims) >= 2 and same_shape(dims[:2], [self.size, self.longest])


def leads_of(batch: Batch, call: relax.Call, result: relax.Expr) -> Leads | None:
    """How each operand of a row-wise call runs over the batch; None where the call is not row-wise."""
    if not batch.runs_through(result):
        return None
    if call.op.name in ELEMENTWISE:
        rank = len(shape_of(result.ty) or [])
        return tuple(_aligned(batch, shape_of(arg.ty), rank) for arg in call.args)
    rule = _RULES.get(call.op.name)
    return None if rule is None else rule(batch, call)


def _aligned(batch: Batch, dims: list[tirx.Expr] | None, rank: int) -> str | None:
    """How an operand that is broadcast to [B, S, ...] of `rank` runs over the batch."""
    if dims is None or len(dims) < rank - 1:
        return None
    if len(dims) < rank:
        return None if _is_one(dims[0]) else BARE_POSITIONS
    return _leading(batch, dims)


def _leading(batch: Batch, dims: list[tirx.Expr]) -> str | None:
    # In a batch of one, an axis of one is the batch: whether it is broadcast makes no difference.
    has_batch = not _is_one(dims[0]) or _is_one(batch.size)
    if _is_one(dims[1]):
        return None if _is_one(dims[0]) else SEQUENCES
    return TOKENS if has_batch else POSITIONS


def _is_one(dim: tirx.Expr) -> bool:
    return isinstance(dim, tirx.IntImm) and int(dim) == 1


def _first_operand(batch: Batch, call: relax.Call) -> Leads | None:
    """The first operand is [B, S, ...]; others are parameters, the same for each token."""
    if not batch.runs_through(call.args[0]):
        return None
    return (TOKENS, *(None for _ in call.args[1:]))


def _product(batch: Batch, call: relax.Call) -> Leads | None:
    second = shape_of(call.args[1].ty)
    first = shape_of(call.args[0].ty)
    if second is None or len(second) != 2 or first is None or len(first) < 3:
        return None
    return _first_operand(batch, call)


def _inner_axes(attribute: str) -> Callable[[Batch, relax.Call], Leads | None]:
    """A rule for operators along axes that must lie behind [B, S]."""

    def rule(batch: Batch, call: relax.Call) -> Leads | None:
        rank = len(shape_of(call.args[0].ty) or [])
        axes = getattr(call.attrs, attribute)
        if axes is None:
            return None
        listed = [axes] if isinstance(axes, int) else list(axes)
        return _first_operand(batch, call) if all(int(axis) % rank >= 2 for axis in listed) else None

    return rule


def _take(batch: Batch, call: relax.Call) -> Leads | None:
    """Rows of a table by token, or columns of each token."""
    if call.attrs.axis is None:
        return None
    data, indices = call.args
    axis = int(call.attrs.axis) % max(len(shape_of(data.ty) or []), 1)
    if axis == 0 and batch.runs_through(indices):
        return (None, TOKENS)
    return (TOKENS, None) if axis >= 2 and batch.runs_through(data) else None


def _permute(batch: Batch, call: relax.Call) -> Leads | None:
    return _first_operand(batch, call) if permutation_of(call)[:2] == (0, 1) else None


def _rotary(batch: Batch, call: relax.Call) -> Leads | None:
    if not batch.runs_through(call.args[0]):
        return None
    return (TOKENS, *(_leading(batch, shape_of(arg.ty) or []) for arg in call.args[1:]))


_RULES: dict[str, Callable[[Batch, relax.Call], Leads | None]] = {
    GROUPED_MATMUL: _product,
    INTEGER_MATMUL: _first_operand,
    QUANTIZED_MATMUL: _product,
    QUANTIZED_TAKE: lambda batch, call: (None, None, TOKENS) if batch.runs_through(call.args[2]) else None,
    ROTARY: _rotary,
    "relax.broadcast_to": _first_operand,
    "relax.expand_dims": _first_operand,
    "relax.matmul": _product,
    "relax.max": _inner_axes("axis"),
    "relax.mean": _inner_axes("axis"),
    "relax.min": _inner_axes("axis"),
    "relax.nn.layer_norm": _inner_axes("axes"),
    "relax.nn.log_softmax": _inner_axes("axis"),
    "relax.nn.rms_norm": _inner_axes("axes"),
    "relax.nn.softmax": _inner_axes("axis"),
    "relax.permute_dims": _permute,
    "relax.reshape": _first_operand,
    "relax.squeeze": _inner_axes("axis"),
    "relax.sum": _inner_axes("axis"),
    "relax.take": _take,
}


def packed_shape(dims: list[tirx.Expr], tokens: tirx.Var) -> relax.ShapeExpr:
    """[1, N, ...] for [B, S, ...]: what a call that names its result's shape gets on packed operands."""
    return relax.ShapeExpr([tirx.IntImm("int64", 1), tokens, *dims[2:]])


def picks_tokens(batch: Batch, call: relax.Call, operand: relax.Expr) -> bool:
    """Whether a call takes one token of every sequence of `operand`, e.g. the first, by its place."""
    dims, taken = shape_of(operand.ty) or [], shape_of(call.ty) or []
    if call.op.name == "relax.take":
        index = call.args[1]
        ones = all(_is_one(dim) for dim in shape_of(index.ty) or [])
        axis = call.attrs.axis
        return call.args[0].same_as(operand) and axis is not None and int(axis) % len(dims) == 1 and ones
    if call.op.name == "relax.strided_slice":
        rest = sym.Analyzer()
        return len(taken) == len(dims) and _is_one(taken[1]) and rest.can_prove_equal(taken[0], batch.size)
    return False
