"""Attention, and the rotation of its operands by their positions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from tvm import ir, relax, tirx

from greencc.errors import GreenccError
from greencc.ir import dtype_of, shape_of
from greencc.ops.registration import registered

ATTENTION = "greencc.attention"
PACKED_ATTENTION = "greencc.packed_attention"
ROTARY = "greencc.rotary"


@dataclass(frozen=True)
class AttentionAttrs:
    """Attributes of `greencc.attention`.

    Attributes:
        heads: number of query heads H.
        kv_heads: number of key and value heads; divides H (grouped-query attention).
        head_dim: size D of a query and key head.
        value_dim: size Dv of a value head.
        q_offset, k_offset, v_offset: first column of each operand, so that one fused projection [B, S, C] can be
            passed three times.
        scale: factor on the scores before the mask is added.
        causal: query i sees keys j <= i + (T - S) only.
        nan_to_zero: a row whose keys are all masked with -inf gives 0, not NaN.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q_offset: int = 0
    k_offset: int = 0
    v_offset: int = 0
    scale: float = 1.0
    causal: bool = False
    nan_to_zero: bool = False

    @staticmethod
    def of(call: relax.Call) -> AttentionAttrs:
        """The attributes of an attention call, as Python values."""
        attrs = call.attrs
        return AttentionAttrs(
            heads=int(attrs["heads"]),
            kv_heads=int(attrs["kv_heads"]),
            head_dim=int(attrs["head_dim"]),
            value_dim=int(attrs["value_dim"]),
            q_offset=int(attrs["q_offset"]),
            k_offset=int(attrs["k_offset"]),
            v_offset=int(attrs["v_offset"]),
            scale=float(attrs["scale"]),
            causal=bool(attrs["causal"]),
            nan_to_zero=bool(attrs["nan_to_zero"]),
        )


def attention(
    q: relax.Expr, k: relax.Expr, v: relax.Expr, mask: relax.Expr | None, attrs: AttentionAttrs
) -> relax.Call:
    """softmax(scale * Q K^T + mask) V, heads side by side in the last axis.

    Args:
        q: [B, S, Cq] float32; head h occupies columns q_offset + h * head_dim and on.
        k: [B, T, Ck], like q with kv_heads heads.
        v: [B, T, Cv], kv_heads heads of value_dim columns from v_offset on.
        mask: float32 added to the scores, broadcastable to [B, heads, S, T] (rank 4), or None.
        attrs: see AttentionAttrs.

    Returns a call of type [B, S, heads * value_dim]. No transposed copy of an operand is needed.
    """
    args = [q, k, v] if mask is None else [q, k, v, mask]
    return relax.Call(registered(ATTENTION, _infer_attention), args, ir.make_node("ir.DictAttrs", **asdict(attrs)), [])


def packed_attention(
    q: relax.Expr, k: relax.Expr, v: relax.Expr, starts: relax.Expr, attrs: AttentionAttrs
) -> relax.Call:
    """Attention of sequences that lie behind each other in one row: each token sees those of its own sequence.

    Args:
        q: [1, N, Cq] float32, the N tokens of all sequences; heads lie in the columns as in `attention`.
        k: [1, N, Ck].
        v: [1, N, Cv].
        starts: [B, S] int64; starts[b, 0] is the place of sequence b's first token, the last one ends at N, and none
            has more than S tokens. (Other columns are not read: the array is what `token_starts` gives.)
        attrs: see AttentionAttrs; with `causal`, a token sees itself and what comes before it.

    Returns a call of type [1, N, heads * value_dim].
    """
    return relax.Call(
        registered(PACKED_ATTENTION, _infer_attention),
        [q, k, v, starts],
        ir.make_node("ir.DictAttrs", **asdict(attrs)),
        [],
    )


def rotary(x: relax.Expr, cos: relax.Expr, sin: relax.Expr, *, interleaved: bool) -> relax.Call:
    """Rotary position embedding: x * cos + turn(x) * sin (RoFormer, arXiv:2104.09864, equation 34).

    Args:
        x: [B, S, H, D] float32, D even.
        cos: [B or 1, S, D] float32, the cosine of the angle at each position and column.
        sin: its sine, like cos.
        interleaved: columns 2i and 2i + 1 make a pair, turn(x) = (-x1, x0, -x3, x2, ..); else columns i and
            i + D / 2 do, turn(x) = (-x[D / 2:], x[:D / 2]).

    Returns a call of x's type.
    """
    attrs = ir.make_node("ir.DictAttrs", interleaved=interleaved)
    return relax.Call(registered(ROTARY, _infer_rotary), [x, cos, sin], attrs, [])


def _infer_attention(call: relax.Call, _context: object) -> relax.TensorType:
    attrs = AttentionAttrs.of(call)
    q = shape_of(call.args[0].ty)
    if q is None or len(q) != 3:
        raise GreenccError(f"{ATTENTION}: the query must be [batch, sequence, columns], not {call.args[0].ty}")
    if attrs.kv_heads < 1 or attrs.heads % attrs.kv_heads:
        raise GreenccError(f"{ATTENTION}: {attrs.heads} heads are no multiple of {attrs.kv_heads} key heads")
    if not math.isfinite(attrs.scale):
        raise GreenccError(f"{ATTENTION}: the scale must be finite, not {attrs.scale}")
    return relax.TensorType((q[0], q[1], attrs.heads * attrs.value_dim), dtype_of(call.args[0].ty))


def _infer_rotary(call: relax.Call, _context: object) -> relax.TensorType:
    x, *angles = (shape_of(arg.ty) for arg in call.args)
    if x is None or len(x) != 4 or not isinstance(x[3], tirx.IntImm) or int(x[3]) % 2:
        raise GreenccError(f"{ROTARY}: x must be [batch, sequence, heads, even], not {call.args[0].ty}")
    if any(angle is None or len(angle) != 3 for angle in angles):
        raise GreenccError(f"{ROTARY}: cosines and sines must be [batch or 1, sequence, columns]")
    return call.args[0].ty
