"""Which range of activations is given levels: what calibration data show, summed up in histograms of fixed size.

A range that holds all values spends levels on the few largest; a smaller one clips those and resolves the others finer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from greencc.affine import LEVELS
from greencc.errors import UserError

# Bins on either side of 0; the widest value falls into the upper half of them.
BINS = 1 << 13
# Ranges that a search tries, and the fewest bins of one side: what is finer than a bin can't be told from it.
_CANDIDATES = 128
_FEWEST_BINS = LEVELS + 1
# Bins of one side that are compared as distributions (as many as Migacz takes): in finer ones chance would decide.
_COMPARED_BINS = 1 << 11


class Histogram:
    """How often values fall into bins of one width, -BINS to BINS of them around 0, a multiple of the width at each.

    The width is a power of two. When a larger value comes it doubles, and neighbouring bins become one, until the value
    has a bin: memory does not grow with the values.

    Attributes:
        counts: int64 [2 * BINS]; bin i holds what is at least (i - BINS) * width and less than a width more.
        zeros: how many of the values are 0.
        width: of a bin; 0 while nothing but 0 was seen.
        low, high: the extremes of the values, and 0; NaN once a value was not finite.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, np.int64)
        self.zeros = 0
        self.width = 0.0
        self.low = self.high = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count some values, of any shape."""
        flat = np.asarray(values, np.float64).ravel()
        if not np.isfinite(flat).all() or np.isnan(self.low):
            self.low = self.high = float("nan")
            return
        self.low, self.high = min(self.low, float(flat.min(initial=0.0))), max(self.high, float(flat.max(initial=0.0)))
        largest = max(-self.low, self.high)
        if largest > self.width * BINS:
            self._widen(2.0 ** float(np.ceil(np.log2(largest))) / BINS)
        self.zeros += int(np.count_nonzero(flat == 0))
        where = np.floor(flat / self.width) if self.width else flat
        # The largest value itself may be the end of the last bin.
        self.counts += np.bincount(np.minimum(where.astype(np.int64) + BINS, 2 * BINS - 1), minlength=2 * BINS)

    @property
    def centres(self) -> np.ndarray:
        """The middle of every bin: float64."""
        return (np.arange(-BINS, BINS) + 0.5) * self.width

    def _widen(self, width: float) -> None:
        while 0 < self.width < width:
            outer = np.zeros(BINS // 2, np.int64)
            self.counts = np.concatenate([outer, self.counts.reshape(-1, 2).sum(axis=1), outer])
            self.width *= 2
        self.width = width


class RangeObserver(ABC):
    """Says which range of a value gets levels. Subclasses are frozen dataclasses."""

    name: ClassVar[str]

    @abstractmethod
    def range_of(self, histogram: Histogram) -> tuple[float, float]:
        """(low, high) with low <= 0 <= high; NaN where a value was not finite."""


@dataclass(frozen=True)
class MinMax(RangeObserver):
    """All that was seen."""

    name: ClassVar[str] = "min-max"

    def range_of(self, histogram: Histogram) -> tuple[float, float]:
        """See RangeObserver."""
        return histogram.low, histogram.high


@dataclass(frozen=True)
class Percentile(RangeObserver):
    """All but the outermost values on either side.

    Attributes:
        percentile: percent of the values that are at most `high`, and at least `low`.
    """

    percentile: float = 99.99

    name: ClassVar[str] = "percentile"

    def range_of(self, histogram: Histogram) -> tuple[float, float]:
        """See RangeObserver."""
        if np.isnan(histogram.low) or not histogram.width:
            return histogram.low, histogram.high
        total = np.cumsum(histogram.counts)
        edges = np.arange(-BINS + 1, BINS + 1) * histogram.width
        share = (1 - self.percentile / 100) * total[-1]
        # The first bin beyond which, seen from either end, no more than the share of the values lies.
        high = edges[np.searchsorted(total, total[-1] - share)]
        low = edges[np.searchsorted(total, share, side="right")] - histogram.width
        return max(min(float(low), 0.0), histogram.low), min(max(float(high), 0.0), histogram.high)


class _Searched(RangeObserver):
    """The range that loses least, of those that end at the same distance from 0, or at what was seen if that is less.

    Such a range keeps the short side of a value whose sides differ, as behind GELU, where a share of both would not.
    """

    def range_of(self, histogram: Histogram) -> tuple[float, float]:
        """See RangeObserver."""
        best, least = (histogram.low, histogram.high), np.inf
        for candidate in candidates(histogram):
            loss = self.loss(histogram, *candidate)
            if loss < least:
                best, least = candidate, loss
        return best

    @abstractmethod
    def loss(self, histogram: Histogram, low: float, high: float) -> float:
        """What a range loses."""


@dataclass(frozen=True)
class MeanSquaredError(_Searched):
    """The range with the least mean squared difference between values and their levels."""

    name: ClassVar[str] = "mse"

    def loss(self, histogram: Histogram, low: float, high: float) -> float:
        """See _Searched. Values count as the middle of their bin."""
        used = np.flatnonzero(histogram.counts)
        values, scale = histogram.centres[used], (high - low) / LEVELS
        stored = np.clip(np.rint(values / scale), np.rint(low / scale), np.rint(low / scale) + LEVELS) * scale
        return float(histogram.counts[used] @ (stored - values) ** 2)


@dataclass(frozen=True)
class Entropy(_Searched):
    """The range whose levels say most of how values are distributed: the least Kullback-Leibler divergence.

    After Migacz, 8-bit Inference with TensorRT (GPU Technology Conference 2017), for ranges around 0 that need not be
    symmetric: the distribution in a range, what lies beyond it counted at its ends, against the same without that,
    where bins that share a level share its values. Zeros, which every range represents exactly, are left out: behind
    ReLU they would outweigh all else.
    """

    name: ClassVar[str] = "entropy"

    def loss(self, histogram: Histogram, low: float, high: float) -> float:
        """See _Searched."""
        counts = histogram.counts.reshape(2 * _COMPARED_BINS, -1).sum(axis=1)
        counts[_COMPARED_BINS] -= histogram.zeros
        width, scale = histogram.width * (BINS // _COMPARED_BINS), (high - low) / LEVELS
        first, last = int(np.floor(low / width)) + _COMPARED_BINS, int(np.ceil(high / width)) + _COMPARED_BINS
        inside = counts[first:last].astype(np.float64)
        if not inside.sum():
            return np.inf
        whole = inside.copy()
        whole[0] += counts[:first].sum()
        whole[-1] += counts[last:].sum()
        centres = (np.arange(first, last) + 0.5 - _COMPARED_BINS) * width
        levels = np.clip(np.rint(centres / scale) - np.rint(low / scale), 0, LEVELS).astype(np.int64)
        used = whole > 0
        bins = np.bincount(levels, used, minlength=LEVELS + 1)
        shared = np.bincount(levels, inside, minlength=LEVELS + 1) / np.maximum(bins, 1)
        p, q = (whole / whole.sum())[used], (shared[levels] / inside.sum())[used]
        with np.errstate(divide="ignore"):
            return float(np.sum(p * np.log(p / q)))


def candidates(histogram: Histogram) -> Iterator[tuple[float, float]]:
    """Ranges that a search tries, the widest first: their ends lie between bins, or are those of the values."""
    low, high = histogram.low, histogram.high
    if np.isnan(low) or low == high:
        return
    top = int(np.ceil(max(-low, high) / histogram.width))
    fewest = min(_FEWEST_BINS, top)
    for bins in np.unique(np.linspace(top, fewest, _CANDIDATES).round().astype(np.int64))[::-1]:
        end = float(bins) * histogram.width
        yield max(low, -end), min(high, end)


OBSERVERS: dict[str, RangeObserver] = {
    item.name: item for item in (MinMax(), Percentile(), Entropy(), MeanSquaredError())
}


def make_observer(name: str, option: str) -> RangeObserver:
    """The observer called `name`.

    Args:
        name: a key of OBSERVERS.
        option: what was given, for messages.

    Raises:
        UserError: it is unknown.
    """
    if name not in OBSERVERS:
        raise UserError(f"{option} {name}: unknown; known: {', '.join(OBSERVERS)}")
    return OBSERVERS[name]
