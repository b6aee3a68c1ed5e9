"""What operators in int8 have in common: schemes of activations, levels as operands."""

from __future__ import annotations

from tvm import relax, tirx

from greencc.affine import Scheme
from greencc.errors import GreenccError
from greencc.ir import dtype_of, shape_of


def scheme_of(call: relax.Call) -> Scheme | None:
    """How a quantised product or convolution quantises its activations; None where that is found at run time."""
    if call.attrs is None or "activation_scale" not in call.attrs.keys():  # noqa: SIM118 (not a mapping)
        return None
    return Scheme(float(call.attrs["activation_scale"]), int(call.attrs["activation_zero"]))


def scheme_attrs(scheme: Scheme | None) -> dict[str, object]:
    """Attributes that `scheme_of` reads."""
    return {} if scheme is None else {"activation_scale": scheme.scale, "activation_zero": scheme.zero}


def integer_operands(call: relax.Call) -> tuple[list[tirx.Expr], list[tirx.Expr]]:
    """The shapes of the levels and the weight; all that both integer operators ask of their operands."""
    a, zero, weight = (shape_of(arg.ty) for arg in call.args)
    kinds = [str(dtype_of(arg.ty)) for arg in call.args]
    if a is None or zero is None or weight is None or not all(isinstance(d, tirx.IntImm) and d == 1 for d in zero):
        raise GreenccError(f"{call.op.name}: takes levels and a weight of known ranks, and a zero point of one element")
    if kinds[0] not in ("uint8", "int8") or kinds[1] not in (kinds[0], "int32") or kinds[2] != "int8":
        raise GreenccError(f"{call.op.name}: takes bytes, their zero point and int8, not {', '.join(kinds)}")
    return a, weight
