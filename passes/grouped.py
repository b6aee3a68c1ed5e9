"""Weights in groups: levels of few bits along the depth of a product, with a scale for each group and column.

    w[k, n] ~ levels[k, n] * scale[k // group, n] + offset[k // group, n]

Eight bits are symmetric, without an offset; four are affine, which leaves them all of their 16 levels. Scales and
offsets are of half precision, and levels are chosen for them as they are stored.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

BITS = (8, 4)
# What of a range is tried, on either side of its middle: weights at its ends may cost less than wider steps do.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Scheme:
    """What the levels of one group are worth, column by column.

    Attributes:
        scale: float16 [N], above 0.
        offset: float16 [N]; None for symmetric levels.
        bits: of a level.
    """

    scale: np.ndarray
    offset: np.ndarray | None
    bits: int

    def levels(self, rows: np.ndarray) -> np.ndarray:
        """The nearest levels of rows [..., N] of the group: int8."""
        low, high = limits(self.bits)
        shifted = rows if self.offset is None else rows - self.offset.astype(np.float32)
        return np.clip(np.rint(shifted / self.scale.astype(np.float32)), low, high).astype(np.int8)

    def values(self, levels: np.ndarray) -> np.ndarray:
        """What levels [..., N] are worth: float32."""
        made = levels.astype(np.float32) * self.scale.astype(np.float32)
        return made if self.offset is None else made + self.offset.astype(np.float32)

    def where(self, kept: np.ndarray, other: Scheme) -> Scheme:
        """The scheme with the columns of `other` wherever `kept` [N] is false."""
        scale = np.where(kept, self.scale, other.scale)
        if self.offset is None or other.offset is None:
            return Scheme(scale, None, self.bits)
        return Scheme(scale, np.where(kept, self.offset, other.offset), self.bits)


@dataclass(frozen=True)
class GroupedWeight:
    """A weight [K, N] as integers in groups.

    Attributes:
        levels: int8 [K, N], of `bits` bits.
        scale: float16 [ceil(K / group), N].
        offset: float16, like `scale`; None for symmetric levels.
        bits: of a level.
        group: rows that share a scale.
        deviation: the largest |value - weight|.
    """

    levels: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None
    bits: int
    group: int
    deviation: float

    @property
    def values(self) -> np.ndarray:
        """What the levels are worth: float32 [K, N]."""
        rows = np.arange(len(self.levels)) // self.group
        offset = None if self.offset is None else self.offset[rows]
        return Scheme(self.scale[rows], offset, self.bits).values(self.levels)


def is_symmetric(bits: int) -> bool:
    """Whether levels have no offset: eight bits."""
    return bits == BITS[0]


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest level. Symmetric levels leave out the least, so that negations are as exact."""
    most = 2 ** (bits - 1) - 1
    return (-most if is_symmetric(bits) else -most - 1), most


def scheme_of(rows: np.ndarray, bits: int, importance: np.ndarray | None = None) -> Scheme:
    """The scheme of the rows [g, N] of a group.

    Its levels span them. With the `importance` [g] of each row, affine levels may span less, whatever makes the sum of
    importance * error^2 of a column least (clipping as in AWQ, arXiv:2306.00978, here for both ends apart); steps of
    eight bits are too fine for it to gain anything.
    """
    least, most = rows.min(axis=0), rows.max(axis=0)
    if is_symmetric(bits):
        return Scheme(_half(np.maximum(-least, most) / limits(bits)[1]), None, bits)
    best = _spanning(least, most, bits)
    if importance is None:
        return best
    middle, lowest = (least + most) / 2, _weighted_error(best, rows, importance)
    for low, high in itertools.product(_SHARES, repeat=2):
        tried = _spanning(middle + low * (least - middle), middle + high * (most - middle), bits)
        error = _weighted_error(tried, rows, importance)
        best = best.where(error >= lowest, tried)
        lowest = np.minimum(lowest, error)
    return best


def joined(levels: np.ndarray, schemes: list[Scheme], weight: np.ndarray, group: int) -> GroupedWeight:
    """The weight of levels [K, N] and the schemes of its groups; `weight` is what it stands for."""
    scale = np.stack([scheme.scale for scheme in schemes])
    offsets = [scheme.offset for scheme in schemes if scheme.offset is not None]
    made = GroupedWeight(levels, scale, np.stack(offsets) if offsets else None, schemes[0].bits, group, 0.0)
    deviation = float(np.abs(made.values - weight).max(initial=0.0))
    return GroupedWeight(levels, made.scale, made.offset, made.bits, group, deviation)


def round_to_nearest(weight: np.ndarray, group: int, bits: int, importance: np.ndarray | None = None) -> GroupedWeight:
    """Every weight [K, N] as its nearest level; `importance` [K] as in `scheme_of`."""
    parts = [slice(first, first + group) for first in range(0, len(weight), group)]
    schemes = [scheme_of(weight[part], bits, None if importance is None else importance[part]) for part in parts]
    levels = np.concatenate([scheme.levels(weight[part]) for scheme, part in zip(schemes, parts, strict=True)])
    return joined(levels, schemes, weight, group)


def output_error(error: np.ndarray, gram: np.ndarray) -> float:
    """What an error [K, N] of a weight does to products: the squared norm of x @ error, for x^T x = `gram` [K, K]."""
    return float(np.sum(error * (gram @ error)))


def _spanning(least: np.ndarray, most: np.ndarray, bits: int) -> Scheme:
    """The affine scheme whose levels reach from `least` [N] to `most` [N]."""
    low, high = limits(bits)
    scale = _half((most - least) / (high - low))
    # The middle of the levels stands for the middle of the values: what rounding the scale costs, both ends share.
    # Where all values are equal, level 0 stands for them.
    shift = np.where(most > least, scale.astype(np.float32) * ((low + high) / 2), np.float32(0))
    middle = (least + most) / 2 - shift
    return Scheme(scale, middle.astype(np.float16), bits)


def _weighted_error(scheme: Scheme, rows: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Sums [N] over rows [g, N] of importance [g] times the squared distance from the nearest level."""
    return np.asarray(importance @ (scheme.values(scheme.levels(rows)) - rows) ** 2)


def _half(scale: np.ndarray) -> np.ndarray:
    """Scales in half precision, 1 for groups of zeros; where halves vanish, the least that they can be."""
    least = np.finfo(np.float16).smallest_subnormal
    return np.where(scale > 0, np.maximum(scale.astype(np.float16), least), np.float16(1)).astype(np.float16)
