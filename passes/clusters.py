"""Weights with few distinct values: the middles of clusters, and how far they are from the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST_BITS, MOST_BITS = 2, 8
# Rounds after which clusters that still move are taken as they are; they are close by then.
_MOST_ROUNDS = 300
# So many weights, from all over, tell whether there may be few distinct ones.
_SAMPLED = 1 << 12


@dataclass(frozen=True)
class ClusteredWeight:
    """A weight with few distinct values.

    Attributes:
        values: float32, of the weight's shape; at most 2^bits distinct ones.
        bits: that tell them apart.
        deviation: the largest |value - weight|.
    """

    values: np.ndarray
    bits: int
    deviation: float


def cluster(weight: np.ndarray, bits: int) -> ClusteredWeight:
    """A weight with at most 2^bits distinct values: the middles of clusters, by k-means.

    Zeros stay zeros; where there are any, 0 is one of the values, and the other weights share the rest.

    Args:
        weight: float32, finite.
        bits: FEWEST_BITS to MOST_BITS.
    """
    is_set = weight != 0
    kept = np.sort(weight[is_set])
    if kept.size == 0:
        return ClusteredWeight(weight, bits, 0.0)
    middles, bounds = _lloyd(kept, 2**bits - int(kept.size < weight.size))
    values = np.where(is_set, middles[np.searchsorted(bounds, weight, side="right")], np.float32(0))
    deviation = float(np.abs(values - weight).max(initial=0.0))
    return ClusteredWeight(values, bits, deviation)


def has_few_values(weight: np.ndarray, most: int) -> bool:
    """Whether a weight has at most `most` distinct values."""
    flat = weight.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLED)]
    return bool(np.unique(sample).size <= most and np.unique(flat).size <= most)


def _lloyd(ordered: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles of clusters of ordered values, ascending, and the bounds between them: float32 [count] and [count - 1].

    Lloyd's algorithm, from middles that lie equally far apart: these serve the few large weights, which matter most, as
    well as the many small ones (Deep Compression, arXiv:1510.00149, section 3.2). A cluster of ordered values is a
    range of them, so a round takes sums of ranges instead of looking at every value.
    """
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    middles = np.linspace(float(ordered[0]), float(ordered[-1]), count)
    ends = np.zeros(count + 1, np.int64)
    for _ in range(_MOST_ROUNDS):
        bounds = ((middles[1:] + middles[:-1]) / 2).astype(np.float32)
        before, ends = ends, np.concatenate([[0], np.searchsorted(ordered, bounds), [ordered.size]])
        if np.array_equal(before, ends):
            break
        sizes = np.diff(ends)
        middles = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), middles)
    return middles.astype(np.float32), bounds
