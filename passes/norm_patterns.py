"""The spellings that layer_norm and rms_norm have in common: squares, deviations, quotients by them."""

from __future__ import annotations

from tvm import relax

from greencc.ir import shape_of
from greencc.passes.matching import Region
from greencc.passes.patterns import Pattern, op, scalar

_MEANS = ("mean", "mean_square")


def square(value: Pattern) -> Pattern:
    """Value ** 2, or value * value."""
    return op("power", value, scalar(2.0)) | op("square", value) | op("multiply", value, value)


def deviation(mean_square: Pattern) -> Pattern:
    """sqrt(mean_square + eps); captures `eps`."""
    shifted = op("add", mean_square, scalar(name="eps"))
    return op("sqrt", shifted) | op("power", shifted, scalar(0.5))


def inverse_deviation(mean_square: Pattern) -> Pattern:
    """1 / sqrt(mean_square + eps) in any spelling; captures `eps`."""
    shifted = op("add", mean_square, scalar(name="eps"))
    return (
        op("rsqrt", shifted)
        | op("power", shifted, scalar(-0.5))
        | op("divide", scalar(1.0), deviation(mean_square))
        | op("power", deviation(mean_square), scalar(-1.0))
    )


def normalised(value: Pattern, mean_square: Pattern) -> Pattern:
    """`value` divided by the deviation, or multiplied by its inverse."""
    return op("divide", value, deviation(mean_square)) | op("multiply", value, inverse_deviation(mean_square))


def mean_over_last_axis(region: Region) -> bool:
    """Whether the captured means reduce the last axis of their operand and no other."""
    return all(_axes(call) == {len(shape_of(call.args[0].ty) or ()) - 1} for call in _means(region))


def mean_keeps_axis(region: Region) -> bool:
    """Whether the captured means leave an axis of length 1 where they reduced."""
    return all(bool(call.attrs.keepdims) for call in _means(region))


def _means(region: Region) -> list[relax.Call]:
    return [region.call(name) for name in _MEANS if name in region.captures]


def _axes(call: relax.Call) -> set[int]:
    rank = len(shape_of(call.args[0].ty) or ())
    return set(range(rank)) if call.attrs.axis is None else {int(axis) % rank for axis in call.attrs.axis}
