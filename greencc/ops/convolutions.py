"""Convolutions with weights in bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tvm import ir, relax, tirx

from greencc.affine import Scheme
from greencc.errors import GreenccError
from greencc.ir import dtype_of, shape_of
from greencc.ops.int8 import integer_operands, scheme_attrs
from greencc.ops.registration import registered

INTEGER_CONV2D = "greencc.integer_conv2d"
QUANTIZED_CONV2D = "greencc.quantized_conv2d"


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
    return relax.Call(
        registered(QUANTIZED_CONV2D, _infer_quantized_conv2d), [x, weight, scale], _node(attrs, scheme), []
    )


def integer_conv2d(a: relax.Expr, zero: relax.Expr, weight: relax.Expr, attrs: Conv2dAttrs) -> relax.Call:
    """The convolution of a - zero by weight, of bytes, exact in int32 as long as its sums fit.

    Args:
        a: [N, C, H, W] uint8 or int8, of known sizes but for N; what pads it counts as `zero`.
        zero: one element, of a's type or int32: the level of `a` that stands for 0.
        weight: [K, C / groups, KH, KW] int8, a constant.
        attrs: see Conv2dAttrs.

    Returns a call of type [N, K, OH, OW] int32.
    """
    return relax.Call(registered(INTEGER_CONV2D, _infer_integer_conv2d), [a, zero, weight], _node(attrs), [])


def _node(attrs: Conv2dAttrs, scheme: Scheme | None = None) -> ir.Node:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(attrs).items()}
    return ir.make_node("ir.DictAttrs", **plain, **scheme_attrs(scheme))


def _infer_quantized_conv2d(call: relax.Call, _context: object) -> relax.TensorType:
    x, weight, scale = (shape_of(arg.ty) for arg in call.args)
    kinds = [dtype_of(arg.ty) for arg in call.args]
    if x is None or weight is None or scale is None or len(x) != 4 or len(weight) != 4 or len(scale) != 1:
        raise GreenccError(f"{QUANTIZED_CONV2D}: takes x [N, C, H, W], weight [K, C / groups, KH, KW] and scale [K]")
    if kinds != ["float32", "int8", "float32"]:
        raise GreenccError(f"{QUANTIZED_CONV2D}: takes float32, int8 and float32, not {', '.join(map(str, kinds))}")
    return _convolved(call, x, weight, "float32")


def _infer_integer_conv2d(call: relax.Call, _context: object) -> relax.TensorType:
    a, weight = integer_operands(call)
    if len(a) != 4 or len(weight) != 4:
        raise GreenccError(f"{INTEGER_CONV2D}: takes a [N, C, H, W] and weight [K, C / groups, KH, KW]")
    return _convolved(call, a, weight, "int32")


def _convolved(call: relax.Call, x: list[tirx.Expr], weight: list[tirx.Expr], dtype: str) -> relax.TensorType:
    if not all(isinstance(size, tirx.IntImm) for size in [*x[1:], *weight]):
        raise GreenccError(f"{call.op.name}: the sizes of channels and images must be known")
    attrs = Conv2dAttrs.of(call)
    out = [attrs.out_size(axis, int(x[2 + axis]), int(weight[2 + axis])) for axis in (0, 1)]
    return relax.TensorType((x[0], weight[0], *(tirx.IntImm("int64", size) for size in out)), dtype)
