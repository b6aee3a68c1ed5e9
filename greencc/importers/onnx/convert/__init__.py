"""Converter tables: (domain, operator) -> function from a node to Relax. One module per family, merged here.

A converter covers every opset version of its operator and branches on `ctx.opset` where they differ. It refuses
(`raise ctx.refuse("reason")`) what it does not convert exactly.
"""

from __future__ import annotations

from greencc.importers.onnx.context import Converter
from greencc.importers.onnx.convert import (
    activations,
    control,
    convolution,
    einsum,
    elementwise,
    gathering,
    linear,
    loops,
    movement,
    normalization,
    pooling,
    quantize,
    quantized,
    recurrent,
    reductions,
    resize,
    sampling,
    sequence,
    slicing,
    softmax,
    transformer,
)

CONVERTERS: dict[tuple[str, str], Converter] = {
    **activations.CONVERTERS,
    **control.CONVERTERS,
    **convolution.CONVERTERS,
    **einsum.CONVERTERS,
    **elementwise.CONVERTERS,
    **gathering.CONVERTERS,
    **linear.CONVERTERS,
    **loops.CONVERTERS,
    **movement.CONVERTERS,
    **normalization.CONVERTERS,
    **pooling.CONVERTERS,
    **quantize.CONVERTERS,
    **quantized.CONVERTERS,
    **recurrent.CONVERTERS,
    **reductions.CONVERTERS,
    **resize.CONVERTERS,
    **sampling.CONVERTERS,
    **sequence.CONVERTERS,
    **slicing.CONVERTERS,
    **softmax.CONVERTERS,
    **transformer.CONVERTERS,
}
