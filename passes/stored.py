"""Weights in fewer bits: symmetric levels with a scale for each channel, and how far they are from the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Fewest and most bits of a level; levels of all widths are stored in bytes.
_FEWEST, MOST_BITS = 2, 8
MOST_LEVEL = 2 ** (MOST_BITS - 1) - 1


class FewBits(Protocol):
    """A weight in fewer bits, in whatever form."""

    @property
    def bits(self) -> int:
        """How many tell its elements apart."""

    @property
    def deviation(self) -> float:
        """The largest |stored - original| of an element."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight as integers.

    Attributes:
        levels: int8, of the weight's shape; at most 2^(bits - 1) - 1 in size, so that a weight and its negation are
            equally exact.
        scale: float32 [size of the channels' axis]: what a level of each channel is worth.
        bits: that a level needs.
        deviation: the largest |level * scale - weight|.
    """

    levels: np.ndarray
    scale: np.ndarray
    bits: int
    deviation: float


def store(weight: np.ndarray, axis: int, epsilon: float = 0.0) -> StoredWeight | None:
    """A weight in bytes, with a scale for each index of `axis`.

    Args:
        weight: float32, finite.
        axis: that channels lie along.
        epsilon: the fewest bits are taken for which every deviation is smaller than this; 0 takes 8 bits.

    Returns None where no number of bits up to 8 keeps deviations below `epsilon`.
    """
    for bits in range(_FEWEST if epsilon > 0 else MOST_BITS, MOST_BITS + 1):
        made = _stored(weight, axis, bits)
        if epsilon <= 0 or made.deviation < epsilon:
            return made
    return None


def exact_levels(weight: np.ndarray, axis: int) -> StoredWeight | None:
    """The bytes that a weight was made from, where every element is exactly a level times its channel's scale.

    Scales are looked for that make 127 or 128 of the largest element of each channel, or of the whole weight, as those
    of quantisers do. A scale that is divided out may be off in its last places, so its neighbours are tried.

    Args:
        weight: float32, finite.
        axis: that channels lie along.

    Returns None where there are none, which the first channel mostly tells.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    sizes = np.abs(weight)
    largest = sizes.max(axis=others, initial=0.0, keepdims=True)
    for top in (largest, np.full_like(largest, sizes.max(initial=0.0))):
        for most in (MOST_LEVEL, MOST_LEVEL + 1):
            guess = np.where(top > 0, top / np.float32(most), np.float32(1)).astype(np.float32)
            first = np.take(weight, [0], axis), np.take(guess, [0], axis)
            if _scale_of(*first, others) is None:
                continue
            scale = _scale_of(weight, guess, others)
            if scale is not None:
                return StoredWeight(np.rint(weight / scale).astype(np.int8), scale.ravel(), MOST_BITS, 0.0)
    return None


def _scale_of(weight: np.ndarray, guess: np.ndarray, others: tuple[int, ...]) -> np.ndarray | None:
    """Scales within two places of the guessed ones that give every element exactly; None where there are none."""
    found, known = guess.copy(), np.zeros(guess.shape, bool)
    for places in (0, 1, -1, 2, -2):
        scale = guess
        for _ in range(abs(places)):
            scale = np.nextafter(scale, np.float32(np.inf if places > 0 else 0)).astype(np.float32)
        levels = np.rint(weight / scale)
        in_range = (levels >= -MOST_LEVEL - 1) & (levels <= MOST_LEVEL)
        exact = (in_range & (levels * scale == weight)).all(axis=others, keepdims=True)
        found, known = np.where(exact & ~known, scale, found), known | exact
    return found.astype(np.float32) if known.all() else None


def quantize_channels(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight as int8 levels and float32 scales [size of `axis`]: weight is about levels * scale along `axis`."""
    made = _stored(weight, axis, MOST_BITS)
    return made.levels, made.scale


def _stored(weight: np.ndarray, axis: int, bits: int) -> StoredWeight:
    most = np.float32(2 ** (bits - 1) - 1)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, initial=0.0, keepdims=True)
    scale = np.where(largest > 0, largest / most, np.float32(1)).astype(np.float32)
    levels = np.clip(np.rint(weight / scale), -most, most).astype(np.int8)
    deviation = float(np.abs(levels * scale - weight).max(initial=0.0))
    return StoredWeight(levels, scale.ravel(), bits, deviation)
