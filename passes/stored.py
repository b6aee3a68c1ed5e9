"""Weights in fewer bits: symmetric levels with a scale for each channel, and how far they are from the weights."""

from __future__ import annotations

import itertools
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
        levels: int8, of the weight's shape; where they were chosen, at most 2^(bits - 1) - 1 in size, so that a weight
            and its negation are equally exact.
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

    The smallest step between the sizes of a channel's elements is about its scale, if there are many; it tells which
    level the largest is of, and that one tells the scale but for its last places, whose neighbours are tried. Where it
    fails the largest is taken for level 127 or 128, as quantisers of channels have it. -0 is no level.

    Args:
        weight: float32, finite.
        axis: that channels lie along.

    Returns None where there are none, which the first channel mostly tells.
    """
    if not weight.size:
        return None
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    # Of most weights the first channel tells that they were never levels.
    if _scales_of(channels[:1]) is None:
        return None
    scale = _scales_of(channels)
    if scale is None:
        return None
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return StoredWeight(np.rint(weight / scale.reshape(shape)).astype(np.int8), scale, MOST_BITS, 0.0)


def _scales_of(channels: np.ndarray) -> np.ndarray | None:
    """Scales [channels] that give every element [channels, elements] exactly; None where there are none."""
    sizes = np.sort(np.abs(channels), axis=1)
    largest = sizes[:, -1:]
    steps = np.diff(np.pad(sizes, ((0, 0), (1, 0))), axis=1)
    found, known = np.ones(largest.shape, np.float32), np.zeros(largest.shape, bool)
    with np.errstate(all="ignore"):
        # Sizes of one level differ by less, those of two levels by more.
        step = np.where(steps > largest / (4 * MOST_LEVEL), steps, np.inf).min(axis=1, keepdims=True)
        likely = np.clip(np.rint(largest / step), 1, MOST_LEVEL + 1)
        for most, places in itertools.product((likely, MOST_LEVEL, MOST_LEVEL + 1), (0, 1, -1, 2, -2)):
            scale = np.where(largest > 0, largest / np.asarray(most, np.float32), 1).astype(np.float32)
            for _ in range(abs(places)):
                scale = np.nextafter(scale, np.float32(np.inf if places > 0 else 0)).astype(np.float32)
            levels = np.clip(np.rint(channels / scale), -MOST_LEVEL - 1, MOST_LEVEL).astype(np.int8)
            same = (levels * scale).view(np.uint32) == channels.view(np.uint32)
            exact = same.all(axis=1, keepdims=True)
            found, known = np.where(exact & ~known, scale, found), known | exact
            if known.all():
                return found.ravel()
    return None


def quantize_channels(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight as int8 levels and float32 scales [size of `axis`]: weight is about levels * scale along `axis`."""
    made = _stored(weight, axis, MOST_BITS)
    return made.levels, made.scale


def _stored(weight: np.ndarray, axis: int, bits: int) -> StoredWeight:
    most = np.float32(2 ** (bits - 1) - 1)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = (np.abs(weight).max(axis=others, initial=0.0, keepdims=True) / most).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    levels = np.clip(np.rint(weight / scale), -most, most).astype(np.int8)
    deviation = float(np.abs(levels * scale - weight).max(initial=0.0))
    return StoredWeight(levels, scale.ravel(), bits, deviation)
