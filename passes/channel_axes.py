"""Where the channels of a tensor lie: an axis, and which channel each index of it belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from greencc.ir import same_shape


@dataclass(frozen=True)
class ChannelAxis:
    """The channels of a tensor.

    Attributes:
        axis: the axis that they lie on.
        numbers: the channel of each index of that axis, int64; several indices may be of one channel.
    """

    axis: int
    numbers: np.ndarray


def reshaped(
    source: ChannelAxis, before: Sequence[tirx.Expr], behind: Sequence[tirx.Expr]
) -> tuple[ChannelAxis, np.ndarray] | None:
    """Where the channels lie after a reshape from the dimensions `before` to `behind`; None where nowhere.

    The second result [rows, size of the new axis] has the channels of an axis that was split: they go by columns only
    when those of a column go together. When the axis is merged with others, it has a single row.
    """
    if any(isinstance(dim, tirx.IntImm) and int(dim) == 0 for dim in (*before, *behind)):
        return None  # a tensor without elements
    lead = 0
    while lead < min(source.axis, len(behind)) and same_shape([before[lead]], [behind[lead]]):
        lead += 1
    outer = _product(before[lead : source.axis])
    size, passed = len(source.numbers), 1
    if outer is None:
        return None
    for place in range(lead, len(behind)):
        dim = behind[place]
        if not isinstance(dim, tirx.IntImm) or outer % passed:
            return None
        merged = outer // passed * size
        if int(dim) % merged == 0:
            numbers = np.tile(np.repeat(source.numbers, int(dim) // merged), outer // passed)
            return ChannelAxis(place, numbers), numbers[np.newaxis]
        parts = _parts(behind[place:], size) if passed == outer else None
        if parts is not None:
            largest = int(np.argmax(parts))
            rows = np.moveaxis(source.numbers.reshape(parts), largest, -1).reshape(-1, parts[largest])
            return ChannelAxis(place + largest, rows[0]), rows
        passed *= int(dim)
    return None


def _product(dims: Sequence[tirx.Expr]) -> int | None:
    """The product of dimensions; None where one is symbolic."""
    return math.prod(map(int, dims)) if all(isinstance(dim, tirx.IntImm) for dim in dims) else None


def _parts(dims: Sequence[tirx.Expr], size: int) -> list[int] | None:
    """As many of the first dimensions as have the product `size`; None where none have."""
    for count in range(1, len(dims) + 1):
        product = _product(dims[:count])
        if product is None or product >= size:
            return [int(dim) for dim in dims[:count]] if product == size else None
    return None
