"""How far two sets of outputs are apart, and whether that is within a stated tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from greencc.artifact.bundle import Array


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference of floating-point values: absolute + relative x |expected|. Others must be equal."""

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.absolute:g} + {self.relative:g} x |expected|"


@dataclass(frozen=True)
class Comparison:
    """Outcome of a comparison.

    Attributes:
        agrees: whether every value of every common output is within the tolerance.
        max_abs_difference: largest difference; None when nothing finite can be said (shapes differ, or one
            side is not a number).
        worst: name of the output with that difference, or of the first that can't be compared.
        relative_l2: largest relative L2 difference of an output of floating-point numbers, |a - b| / |b|; None when
            nothing finite can be said.
    """

    agrees: bool
    max_abs_difference: float | None
    worst: str
    relative_l2: float | None


def compare(actual: Mapping[str, Array], expected: Mapping[str, Array], tolerance: Tolerance) -> Comparison:
    """Compare the outputs of `actual` with those of `expected` under the same names.

    Two NaN at the same place agree, and so do two infinities of one sign. `expected` must name at least one.
    """
    agrees, largest, worst, relative = True, -1.0, "", 0.0
    for name, wanted in expected.items():
        got = actual[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return Comparison(False, None, name, None)
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        same = (got == wanted) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(a - b))
            within = same | (difference <= tolerance.absolute + tolerance.relative * np.abs(b))
        if not np.all(np.isfinite(difference)):
            return Comparison(False, None, name, None)
        size = float(np.linalg.norm(np.where(np.isfinite(b), b, 0.0)))
        if got.dtype.kind == "f" and size:
            relative = max(relative, float(np.linalg.norm(difference)) / size)
        agrees = agrees and bool(np.all(within if got.dtype.kind == "f" else same))
        top = float(difference.max(initial=0.0))
        if top > largest:
            largest, worst = top, name
    return Comparison(agrees, largest, worst, relative)
