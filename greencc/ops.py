"""The `greencc.*` operators: what Relax has no operator for, or none that lowers well.

They are registered by one explicit call of `register_ops()`, with type inference and purity. They compile, run and
round-trip JSON, but TVMScript can't parse them: tests build their expected modules with BlockBuilder.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tvm_ffi
from tvm import ir, relax, tirx

from greencc.affine import Scheme
from greencc.errors import GreenccError
from greencc.ir import dtype_of, shape_of

ATTENTION = "greencc.attention"
GROUPED_MATMUL = "greencc.grouped_matmul"
INTEGER_CONV2D = "greencc.integer_conv2d"
INTEGER_MATMUL = "greencc.integer_matmul"
KERNEL = "greencc.kernel"  # see greencc/kernels
PACKED_ATTENTION = "greencc.packed_attention"
QUANTIZED_CONV2D = "greencc.quantized_conv2d"
QUANTIZED_MATMUL = "greencc.quantized_matmul"
QUANTIZED_TAKE = "greencc.quantized_take"
ROTARY = "greencc.rotary"
SHAPE_TO_TENSOR = "greencc.shape_to_tensor"


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
    register_ops()
    args = [q, k, v] if mask is None else [q, k, v, mask]
    return relax.Call(ir.Op.get(ATTENTION), args, ir.make_node("ir.DictAttrs", **asdict(attrs)), [])


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
    register_ops()
    return relax.Call(ir.Op.get(PACKED_ATTENTION), [q, k, v, starts], ir.make_node("ir.DictAttrs", **asdict(attrs)), [])


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
    register_ops()
    attrs = ir.make_node("ir.DictAttrs", interleaved=interleaved)
    return relax.Call(ir.Op.get(ROTARY), [x, cos, sin], attrs, [])


def quantized_matmul(
    x: relax.Expr,
    weight: relax.Expr,
    scale: relax.Expr,
    factors: relax.Expr | None = None,
    scheme: Scheme | None = None,
) -> relax.Call:
    """Product of x and weight * scale, computed in int8: each row of x is quantised when it is known.

    A row gets a scale and a zero point so that 0..255 spans its values and 0 (asymmetric, per token), or all of them
    get the same. Sums are int32.

    Args:
        x: [..., K] float32.
        weight: [K, N] int8, a constant.
        scale: [N] float32, a constant: what a unit of each column of `weight` is worth.
        factors: [K] float32, a constant that x is multiplied by before it is quantised, or None. (SmoothQuant,
            arXiv:2211.10438, moves range from activations to weights with it.)
        scheme: of all rows of x (times factors); None finds one for each row at run time.

    Returns a call of type [..., N] float32.
    """
    register_ops()
    args = [x, weight, scale] if factors is None else [x, weight, scale, factors]
    attrs = ir.make_node("ir.DictAttrs", **_scheme_attrs(scheme)) if scheme is not None else None
    return relax.Call(ir.Op.get(QUANTIZED_MATMUL), args, attrs, [])


def scheme_of(call: relax.Call) -> Scheme | None:
    """How a quantised product or convolution quantises its activations; None where that is found at run time."""
    if call.attrs is None or "activation_scale" not in call.attrs.keys():  # noqa: SIM118 (not a mapping)
        return None
    return Scheme(float(call.attrs["activation_scale"]), int(call.attrs["activation_zero"]))


def _scheme_attrs(scheme: Scheme | None) -> dict[str, object]:
    return {} if scheme is None else {"activation_scale": scheme.scale, "activation_zero": scheme.zero}


@dataclass(frozen=True)
class GroupAttrs:
    """Attributes of `greencc.grouped_matmul`.

    Attributes:
        bits: of a level, 8 or 4.
        group: rows of the weight that share a scale; divides their number.
    """

    bits: int
    group: int

    @staticmethod
    def of(call: relax.Call) -> GroupAttrs:
        """The attributes of a call, as Python values."""
        return GroupAttrs(int(call.attrs["bits"]), int(call.attrs["group"]))


def grouped_matmul(
    x: relax.Expr, levels: relax.Expr, scale: relax.Expr, offset: relax.Expr | None, attrs: GroupAttrs
) -> relax.Call:
    """Product of x and w[k, n] = levels[k, n] * scale[k // group, n] + offset[k // group, n], in float32.

    Args:
        x: [..., K] float32.
        levels: [K, N] int8, a constant; levels of 4 bits are -8..7.
        scale: [K / group, N] float16 or float32, a constant.
        offset: like `scale`, or None.
        attrs: see GroupAttrs.

    Returns a call of type [..., N] float32.
    """
    register_ops()
    args = [x, levels, scale] if offset is None else [x, levels, scale, offset]
    return relax.Call(ir.Op.get(GROUPED_MATMUL), args, ir.make_node("ir.DictAttrs", **asdict(attrs)), [])


def quantized_take(table: relax.Expr, scale: relax.Expr, indices: relax.Expr, *, wrap: bool = False) -> relax.Call:
    """Rows of table * scale, where each row has a scale of its own; only the rows that are taken are computed.

    Args:
        table: [V, D] int8, a constant.
        scale: [V] float32, a constant: what a unit of each row is worth.
        indices: [...] of integers.
        wrap: indices outside of the table are taken modulo its rows; else they mean its first or last row.

    Returns a call of type [..., D] float32.
    """
    register_ops()
    attrs = ir.make_node("ir.DictAttrs", wrap=wrap)
    return relax.Call(ir.Op.get(QUANTIZED_TAKE), [table, scale, indices], attrs, [])


@dataclass(frozen=True)
class Conv2dAttrs:
    """Attributes of `greencc.quantized_conv2d` and `greencc.integer_conv2d`.

    Attributes:
        strides: (rows, columns).
        padding: rows and columns of zeros (top, left, bottom, right).
        dilation: (rows, columns).
        groups: channels fall into as many groups.
    """

    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @staticmethod
    def of(call: relax.Call) -> Conv2dAttrs:
        """The attributes of a convolution in int8 or float32, as Python values."""
        attrs = call.attrs
        rows, columns = map(int, attrs["strides"])
        top, left, bottom, right = map(int, attrs["padding"])
        down, along = map(int, attrs["dilation"])
        return Conv2dAttrs((rows, columns), (top, left, bottom, right), (down, along), int(attrs["groups"]))

    def out_size(self, axis: int, size: int, kernel: int) -> int:
        """Rows (axis 0) or columns (1) of the result."""
        padded = size + self.padding[axis] + self.padding[axis + 2]
        return (padded - (kernel - 1) * self.dilation[axis] - 1) // self.strides[axis] + 1


def quantized_conv2d(
    x: relax.Expr, weight: relax.Expr, scale: relax.Expr, attrs: Conv2dAttrs, scheme: Scheme | None = None
) -> relax.Call:
    """Convolution of x by weight * scale, computed in int8: each image of x is quantised when it is known.

    An image gets a scale and a zero point so that 0..255 spans its values and 0 (asymmetric), or all of them get the
    same. Sums are int32.

    Args:
        x: [N, C, H, W] float32, of known sizes but for N.
        weight: [K, C / groups, KH, KW] int8, a constant.
        scale: [K] float32, a constant: what a unit of each filter of `weight` is worth.
        attrs: see Conv2dAttrs.
        scheme: of all images; None finds one for each image at run time.

    Returns a call of type [N, K, OH, OW] float32.
    """
    register_ops()
    return relax.Call(ir.Op.get(QUANTIZED_CONV2D), [x, weight, scale], _node(attrs, scheme), [])


def integer_matmul(a: relax.Expr, zero: relax.Expr, weight: relax.Expr) -> relax.Call:
    """The product (a - zero) @ weight of bytes, exact in int32 as long as its sums fit.

    Args:
        a: [..., K] uint8 or int8, of at least two axes.
        zero: one element, of a's type or int32: the level of `a` that stands for 0.
        weight: [K, N] int8, a constant.

    Returns a call of type [..., N] int32.
    """
    register_ops()
    return relax.Call(ir.Op.get(INTEGER_MATMUL), [a, zero, weight], None, [])


def integer_conv2d(a: relax.Expr, zero: relax.Expr, weight: relax.Expr, attrs: Conv2dAttrs) -> relax.Call:
    """The convolution of a - zero by weight, of bytes, exact in int32 as long as its sums fit.

    Args:
        a: [N, C, H, W] uint8 or int8, of known sizes but for N; what pads it counts as `zero`.
        zero: one element, of a's type or int32: the level of `a` that stands for 0.
        weight: [K, C / groups, KH, KW] int8, a constant.
        attrs: see Conv2dAttrs.

    Returns a call of type [N, K, OH, OW] int32.
    """
    register_ops()
    return relax.Call(ir.Op.get(INTEGER_CONV2D), [a, zero, weight], _node(attrs), [])


def _node(attrs: Conv2dAttrs, scheme: Scheme | None = None) -> ir.Node:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(attrs).items()}
    return ir.make_node("ir.DictAttrs", **plain, **_scheme_attrs(scheme))


def _infer_grouped_matmul(call: relax.Call, _context: object) -> relax.TensorType:
    x, *weight = (shape_of(arg.ty) for arg in call.args)
    kinds = [str(dtype_of(arg.ty)) for arg in call.args]
    attrs = GroupAttrs.of(call)
    sizes = [[int(size) for size in shape] for shape in weight if shape is not None and len(shape) == 2]
    if x is None or len(x) < 1 or len(sizes) != len(weight):
        raise GreenccError(f"{GROUPED_MATMUL}: takes x [..., K], levels [K, N] and scales [K / group, N]")
    if kinds[:2] != ["float32", "int8"] or not set(kinds[2:]) <= {"float16", "float32"}:
        raise GreenccError(f"{GROUPED_MATMUL}: takes float32, int8 and float16 or float32, not {', '.join(kinds)}")
    (depth, columns), *schemes = sizes
    if attrs.bits not in (4, 8) or any(rows * attrs.group != depth or size != columns for rows, size in schemes):
        raise GreenccError(f"{GROUPED_MATMUL}: {depth} rows are not groups of {attrs.group} levels of 4 or 8 bits")
    return relax.TensorType((*x[:-1], tirx.IntImm("int64", columns)), "float32")


def _infer_quantized_conv2d(call: relax.Call, _context: object) -> relax.TensorType:
    x, weight, scale = (shape_of(arg.ty) for arg in call.args)
    kinds = [dtype_of(arg.ty) for arg in call.args]
    if x is None or weight is None or scale is None or len(x) != 4 or len(weight) != 4 or len(scale) != 1:
        raise GreenccError(f"{QUANTIZED_CONV2D}: takes x [N, C, H, W], weight [K, C / groups, KH, KW] and scale [K]")
    if kinds != ["float32", "int8", "float32"]:
        raise GreenccError(f"{QUANTIZED_CONV2D}: takes float32, int8 and float32, not {', '.join(map(str, kinds))}")
    return _convolved(call, x, weight, "float32")


def _infer_integer_conv2d(call: relax.Call, _context: object) -> relax.TensorType:
    a, weight = _integer_operands(call)
    if len(a) != 4 or len(weight) != 4:
        raise GreenccError(f"{INTEGER_CONV2D}: takes a [N, C, H, W] and weight [K, C / groups, KH, KW]")
    return _convolved(call, a, weight, "int32")


def _infer_integer_matmul(call: relax.Call, _context: object) -> relax.TensorType:
    a, weight = _integer_operands(call)
    if len(a) < 2 or len(weight) != 2:
        raise GreenccError(f"{INTEGER_MATMUL}: takes a [..., K] of at least two axes and weight [K, N]")
    return relax.TensorType((*a[:-1], weight[1]), "int32")


def _integer_operands(call: relax.Call) -> tuple[list[tirx.Expr], list[tirx.Expr]]:
    """The shapes of the levels and the weight; all that both integer operators ask of their operands."""
    a, zero, weight = (shape_of(arg.ty) for arg in call.args)
    kinds = [str(dtype_of(arg.ty)) for arg in call.args]
    if a is None or zero is None or weight is None or not all(isinstance(d, tirx.IntImm) and d == 1 for d in zero):
        raise GreenccError(f"{call.op.name}: takes levels and a weight of known ranks, and a zero point of one element")
    if kinds[0] not in ("uint8", "int8") or kinds[1] not in (kinds[0], "int32") or kinds[2] != "int8":
        raise GreenccError(f"{call.op.name}: takes bytes, their zero point and int8, not {', '.join(kinds)}")
    return a, weight


def _convolved(call: relax.Call, x: list[tirx.Expr], weight: list[tirx.Expr], dtype: str) -> relax.TensorType:
    if not all(isinstance(size, tirx.IntImm) for size in [*x[1:], *weight]):
        raise GreenccError(f"{call.op.name}: the sizes of channels and images must be known")
    attrs = Conv2dAttrs.of(call)
    out = [attrs.out_size(axis, int(x[2 + axis]), int(weight[2 + axis])) for axis in (0, 1)]
    return relax.TensorType((x[0], weight[0], *(tirx.IntImm("int64", size) for size in out)), dtype)


def _infer_quantized_matmul(call: relax.Call, _context: object) -> relax.TensorType:
    x, weight, scale = (shape_of(arg.ty) for arg in call.args[:3])
    kinds = [dtype_of(arg.ty) for arg in call.args[:3]]
    if x is None or weight is None or scale is None or len(x) < 1 or len(weight) != 2 or len(scale) != 1:
        raise GreenccError(f"{QUANTIZED_MATMUL}: takes x [..., K], weight [K, N] and scale [N]")
    if kinds != ["float32", "int8", "float32"]:
        raise GreenccError(f"{QUANTIZED_MATMUL}: takes float32, int8 and float32, not {', '.join(map(str, kinds))}")
    return relax.TensorType((*x[:-1], weight[1]), "float32")


def _infer_quantized_take(call: relax.Call, _context: object) -> relax.TensorType:
    table, scale, indices = (shape_of(arg.ty) for arg in call.args)
    kinds = [str(dtype_of(arg.ty)) for arg in call.args]
    if table is None or scale is None or indices is None or len(table) != 2 or len(scale) != 1:
        raise GreenccError(f"{QUANTIZED_TAKE}: takes a table [V, D], scale [V] and indices")
    if kinds[:2] != ["int8", "float32"] or "int" not in kinds[2]:
        raise GreenccError(f"{QUANTIZED_TAKE}: takes int8, float32 and integers, not {', '.join(kinds)}")
    return relax.TensorType((*indices, table[1]), "float32")


def _infer_rotary(call: relax.Call, _context: object) -> relax.TensorType:
    x, *angles = (shape_of(arg.ty) for arg in call.args)
    if x is None or len(x) != 4 or not isinstance(x[3], tirx.IntImm) or int(x[3]) % 2:
        raise GreenccError(f"{ROTARY}: x must be [batch, sequence, heads, even], not {call.args[0].ty}")
    if any(angle is None or len(angle) != 3 for angle in angles):
        raise GreenccError(f"{ROTARY}: cosines and sines must be [batch or 1, sequence, columns]")
    return call.args[0].ty


def shape_to_tensor(dims: Sequence[tirx.Expr]) -> relax.Call:
    """An int64 tensor [len(dims)] that holds symbolic sizes, for operators that compute with them as data.

    TVM's own operator of this kind calls Python at run time; this one lowers to a kernel.
    """
    register_ops()
    return relax.Call(ir.Op.get(SHAPE_TO_TENSOR), [relax.ShapeExpr(list(dims))], None, [])


def _infer_shape_to_tensor(call: relax.Call, _context: object) -> relax.TensorType:
    return relax.TensorType((len(call.args[0].ty.values),), "int64")


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


def _infer_kernel(call: relax.Call, context: object) -> relax.Type:
    from greencc.kernels.base import infer_type  # it needs this module for its registration

    return infer_type(call, context)


_INFER_TYPE = {
    ATTENTION: _infer_attention,
    GROUPED_MATMUL: _infer_grouped_matmul,
    INTEGER_CONV2D: _infer_integer_conv2d,
    INTEGER_MATMUL: _infer_integer_matmul,
    KERNEL: _infer_kernel,
    PACKED_ATTENTION: _infer_attention,
    QUANTIZED_CONV2D: _infer_quantized_conv2d,
    QUANTIZED_MATMUL: _infer_quantized_matmul,
    QUANTIZED_TAKE: _infer_quantized_take,
    ROTARY: _infer_rotary,
    SHAPE_TO_TENSOR: _infer_shape_to_tensor,
}


@functools.cache
def register_ops() -> None:
    """Register every `greencc.*` operator with TVM. Calling it again does nothing."""
    known = set(ir.Op.list_op_names())
    for name, infer in _INFER_TYPE.items():
        if name in known:
            continue
        tvm_ffi.get_global_func("ir.RegisterOp")(name, f"greencc operator {name}")
        ir.register_op_attr(name, "FInferType", infer)
        ir.register_op_attr(name, "FPurity", True)
