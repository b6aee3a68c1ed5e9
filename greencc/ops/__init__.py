"""The `greencc.*` operators: what Relax has no operator for, or none that lowers well.

An operator is registered with TVM when its first call is built. Calls compile, run and, in the process that built them,
round-trip JSON, but TVMScript can't parse them: tests build their expected modules with BlockBuilder. One more operator
is `greencc.kernel`, see greencc/kernels.
"""

from greencc.ops.attention import (
    ATTENTION,
    PACKED_ATTENTION,
    ROTARY,
    AttentionAttrs,
    attention,
    packed_attention,
    rotary,
)
from greencc.ops.convolutions import INTEGER_CONV2D, QUANTIZED_CONV2D, Conv2dAttrs, integer_conv2d, quantized_conv2d
from greencc.ops.int8 import scheme_of
from greencc.ops.products import (
    GROUPED_MATMUL,
    INTEGER_MATMUL,
    QUANTIZED_MATMUL,
    QUANTIZED_TAKE,
    GroupAttrs,
    grouped_matmul,
    integer_matmul,
    quantized_matmul,
    quantized_take,
)
from greencc.ops.shapes import SHAPE_TO_TENSOR, shape_to_tensor

__all__ = [
    "ATTENTION",
    "GROUPED_MATMUL",
    "INTEGER_CONV2D",
    "INTEGER_MATMUL",
    "PACKED_ATTENTION",
    "QUANTIZED_CONV2D",
    "QUANTIZED_MATMUL",
    "QUANTIZED_TAKE",
    "ROTARY",
    "SHAPE_TO_TENSOR",
    "AttentionAttrs",
    "Conv2dAttrs",
    "GroupAttrs",
    "attention",
    "grouped_matmul",
    "integer_conv2d",
    "integer_matmul",
    "packed_attention",
    "quantized_conv2d",
    "quantized_matmul",
    "quantized_take",
    "rotary",
    "scheme_of",
    "shape_to_tensor",
]
