"""Products and convolutions with a weight, as the passes that store or read weights in bytes see them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import relax, tirx

from greencc.ir import shape_of

WEIGHTED = ("relax.matmul", "relax.nn.conv2d")


def is_convolution(call: relax.Call) -> bool:
    """Whether a call of `WEIGHTED` has a weight [K, C / groups, KH, KW]; else it is a product's [K, N]."""
    return bool(call.op.name == "relax.nn.conv2d")


def channel_axis(call: relax.Call) -> int:
    """The axis of the weight that the channels of the result lie along."""
    return 0 if is_convolution(call) else 1


def depth_of(call: relax.Call, weight: Sequence[int]) -> int:
    """Length of the sums of a call by a weight of some shape."""
    channels = 0 if is_convolution(call) else -1
    return math.prod(weight) // max(weight[channels], 1) if weight else 1


def has_plain_form(call: relax.Call, weight: Sequence[int]) -> bool:
    """Whether the weight is a matrix, or the layout NCHW with images of known size."""
    if not is_convolution(call):
        return len(weight) == 2
    attrs, x = call.attrs, shape_of(call.args[0].ty)
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or "NCHW"
    known = x is not None and all(isinstance(size, tirx.IntImm) for size in x[1:])
    return layouts == ("NCHW", "OIHW", "NCHW") and known
