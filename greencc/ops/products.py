"""Products with weights in bytes, and rows of tables in bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tvm import ir, relax, tirx

from greencc.affine import Scheme
from greencc.errors import GreenccError
from greencc.ir import dtype_of, shape_of
from greencc.ops.int8 import integer_operands, scheme_attrs
from greencc.ops.registration import registered

GROUPED_MATMUL = "greencc.grouped_matmul"
INTEGER_MATMUL = "greencc.integer_matmul"
QUANTIZED_MATMUL = "greencc.quantized_matmul"
QUANTIZED_TAKE = "greencc.quantized_take"


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
    args = [x, weight, scale] if factors is None else [x, weight, scale, factors]
    attrs = ir.make_node("ir.DictAttrs", **scheme_attrs(scheme)) if scheme is not None else None
    return relax.Call(registered(QUANTIZED_MATMUL, _infer_quantized_matmul), args, attrs, [])


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
    args = [x, levels, scale] if offset is None else [x, levels, scale, offset]
    return relax.Call(
        registered(GROUPED_MATMUL, _infer_grouped_matmul), args, ir.make_node("ir.DictAttrs", **asdict(attrs)), []
    )


def integer_matmul(a: relax.Expr, zero: relax.Expr, weight: relax.Expr) -> relax.Call:
    """The product (a - zero) @ weight of bytes, exact in int32 as long as its sums fit.

    Args:
        a: [..., K] uint8 or int8, of at least two axes.
        zero: one element, of a's type or int32: the level of `a` that stands for 0.
        weight: [K, N] int8, a constant.

    Returns a call of type [..., N] int32.
    """
    return relax.Call(registered(INTEGER_MATMUL, _infer_integer_matmul), [a, zero, weight], None, [])


def quantized_take(table: relax.Expr, scale: relax.Expr, indices: relax.Expr, *, wrap: bool = False) -> relax.Call:
    """Rows of table * scale, where each row has a scale of its own; only the rows that are taken are computed.

    Args:
        table: [V, D] int8, a constant.
        scale: [V] float32, a constant: what a unit of each row is worth.
        indices: [...] of integers.
        wrap: indices outside of the table are taken modulo its rows; else they mean its first or last row.

    Returns a call of type [..., D] float32.
    """
    attrs = ir.make_node("ir.DictAttrs", wrap=wrap)
    return relax.Call(registered(QUANTIZED_TAKE, _infer_quantized_take), [table, scale, indices], attrs, [])


def _infer_quantized_matmul(call: relax.Call, _context: object) -> relax.TensorType:
    x, weight, scale = (shape_of(arg.ty) for arg in call.args[:3])
    kinds = [dtype_of(arg.ty) for arg in call.args[:3]]
    if x is None or weight is None or scale is None or len(x) < 1 or len(weight) != 2 or len(scale) != 1:
        raise GreenccError(f"{QUANTIZED_MATMUL}: takes x [..., K], weight [K, N] and scale [N]")
    if kinds != ["float32", "int8", "float32"]:
        raise GreenccError(f"{QUANTIZED_MATMUL}: takes float32, int8 and float32, not {', '.join(map(str, kinds))}")
    return relax.TensorType((*x[:-1], weight[1]), "float32")


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


def _infer_integer_matmul(call: relax.Call, _context: object) -> relax.TensorType:
    a, weight = integer_operands(call)
    if len(a) < 2 or len(weight) != 2:
        raise GreenccError(f"{INTEGER_MATMUL}: takes a [..., K] of at least two axes and weight [K, N]")
    return relax.TensorType((*a[:-1], weight[1]), "int32")


def _infer_quantized_take(call: relax.Call, _context: object) -> relax.TensorType:
    table, scale, indices = (shape_of(arg.ty) for arg in call.args)
    kinds = [str(dtype_of(arg.ty)) for arg in call.args]
    if table is None or scale is None or indices is None or len(table) != 2 or len(scale) != 1:
        raise GreenccError(f"{QUANTIZED_TAKE}: takes a table [V, D], scale [V] and indices")
    if kinds[:2] != ["int8", "float32"] or "int" not in kinds[2]:
        raise GreenccError(f"{QUANTIZED_TAKE}: takes int8, float32 and integers, not {', '.join(kinds)}")
    return relax.TensorType((*indices, table[1]), "float32")
