"""Converter tables: (domain, operator) -> function from a node to Relax. One module per family, merged here.

A converter covers every opset version of its operator and branches on `ctx.opset` where they differ. It refuses
(`raise ctx.refuse("reason")`) what it does not convert exactly.
"""

from __future__ import annotations

from greencc.importers.onnx.context import Converter
from greencc.importers.onnx.convert import control, elementwise, linear, movement

CONVERTERS: dict[tuple[str, str], Converter] = {
    **elementwise.CONVERTERS,
    **linear.CONVERTERS,
    **movement.CONVERTERS,
    **control.CONVERTERS,
}
