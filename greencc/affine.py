"""Affine quantisation to bytes with one scale and zero point that are known when a model is compiled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 255
"""Steps between the 256 levels of a byte."""


@dataclass(frozen=True)
class Scheme:
    """x is about (level - zero) * scale, with levels from 0 to 255 (Jacob et al., arXiv:1712.05877, equation 1).

    The level of x is round(x / scale + zero), held within 0 and 255: what lies outside of the range is clipped.

    Attributes:
        scale: what a level is worth, a float32.
        zero: the level that stands for 0.
    """

    scale: float
    zero: int

    @staticmethod
    def of_range(low: float, high: float) -> Scheme:
        """The scheme whose levels span `low` to `high`, with low <= 0 <= high, both finite."""
        scale = float(np.float32((high - low) / LEVELS))
        if scale < np.finfo(np.float32).tiny:  # nothing but zeros was seen
            return Scheme(1.0, 0)
        return Scheme(scale, int(np.rint(-low / scale)))

    @property
    def inverse(self) -> float:
        """What values are multiplied by instead of being divided by the scale, a float32."""
        return float(np.float32(1) / np.float32(self.scale))
