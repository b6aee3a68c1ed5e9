"""Weight layouts: how schedules want constants stored. Packing is numpy on the host, so it cross-compiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ColumnPanels:
    """[K, N] stored as [ceil(N / width), K, width]: the columns of a register tile side by side for every k.

    The last panel is filled up with zeros.
    """

    width: int

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Shape of the packed array."""
        return (-(-columns // self.width), rows, self.width)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack a [K, N] array."""
        rows, columns = weight.shape
        panels, _, width = self.shape(rows, columns)
        packed = np.zeros((panels, rows, width), weight.dtype)
        full = columns // width
        packed[:full] = weight[:, : full * width].reshape(rows, full, width).transpose(1, 0, 2)
        if full < panels:
            packed[full, :, : columns - full * width] = weight[:, full * width :]
        return packed


@dataclass(frozen=True)
class NibblePanels:
    """[K, N] of 4-bit levels stored as [ceil(N / width), K / 2, width] bytes.

    The low half of a byte holds row 2i of its column, the high one row 2i + 1; K is even. The last panel is filled up
    with zeros.
    """

    width: int

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Shape of the packed array."""
        return ColumnPanels(self.width).shape(rows // 2, columns)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack an int8 array [K, N] of -8..7."""
        both = (weight[::2].astype(np.uint8) & 15) | (weight[1::2].astype(np.uint8) << 4)
        return ColumnPanels(self.width).pack(both.view(np.int8))


@dataclass(frozen=True)
class DotPanels:
    """[K, N] stored as [ceil(N / width), ceil(K / depth), width * depth]: `depth` values of k side by side per column.

    K and N are filled up with zeros. `dtype` is the element type of the packed array.
    """

    width: int
    depth: int
    dtype: str = "int8"

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Shape of the packed array."""
        return (-(-columns // self.width), -(-rows // self.depth), self.width * self.depth)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack a [K, N] array."""
        rows, columns = weight.shape
        panels, steps, _ = self.shape(rows, columns)
        padded = np.zeros((steps * self.depth, panels * self.width), self.dtype)
        padded[:rows, :columns] = weight
        split = padded.reshape(steps, self.depth, panels, self.width).transpose(2, 0, 3, 1)
        return np.ascontiguousarray(split).reshape(self.shape(rows, columns))


@dataclass(frozen=True)
class ChannelBlocks:
    """[K, C, KH, KW] stored as [groups * ceil(K / groups / width), C, KH, KW, width].

    Neighbouring filters lie side by side. The last block of a group is filled up with zeros.
    """

    width: int
    groups: int

    def shape(self, filters: int, channels: int, rows: int, columns: int) -> tuple[int, int, int, int, int]:
        """Shape of the packed array."""
        return (self.groups * -(-(filters // self.groups) // self.width), channels, rows, columns, self.width)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack a [K, C, KH, KW] array."""
        filters, *inner = weight.shape
        each = filters // self.groups
        blocks = -(-each // self.width)
        padded = np.zeros((self.groups, blocks * self.width, *inner), weight.dtype)
        padded[:, :each] = weight.reshape(self.groups, each, *inner)
        split = padded.reshape(self.groups * blocks, self.width, *inner)
        return np.ascontiguousarray(np.moveaxis(split, 1, -1))


@dataclass(frozen=True)
class WordBlocks:
    """[K, C, KH, KW] stored as [groups * ceil(K / groups / width), ceil(C / depth), KH, KW, width * depth].

    Neighbouring filters lie side by side, and of each of them `depth` channels. What fills up blocks and words is 0.

    Attributes:
        width: filters of a block.
        groups: filters fall into as many groups, of which each has blocks of its own.
        depth: channels of a word.
        dtype: element type of the packed array.
    """

    width: int
    groups: int
    depth: int
    dtype: str

    def shape(self, filters: int, channels: int, rows: int, columns: int) -> tuple[int, int, int, int, int]:
        """Shape of the packed array."""
        blocks, *_ = ChannelBlocks(self.width, self.groups).shape(filters, channels, rows, columns)
        return (blocks, -(-channels // self.depth), rows, columns, self.width * self.depth)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack a [K, C, KH, KW] array."""
        blocks = ChannelBlocks(self.width, self.groups).pack(weight)  # [blocks, C, KH, KW, width]
        surplus = -blocks.shape[1] % self.depth
        filled = np.pad(blocks, ((0, 0), (0, surplus), (0, 0), (0, 0), (0, 0)))
        count, channels, rows, columns, width = filled.shape
        words = filled.reshape(count, channels // self.depth, self.depth, rows, columns, width)
        packed = words.transpose(0, 1, 3, 4, 5, 2).astype(self.dtype)
        return np.ascontiguousarray(packed).reshape(self.shape(*weight.shape))


@dataclass(frozen=True)
class JoinedBlocks:
    """int8 [K, C, KH, KW] stored as int32 [groups * ceil(K / groups / width), ceil(C / 4), KH, KW, width].

    A word holds four channels of its filter, the first one in its lowest bits. What fills up blocks and words is 0.
    """

    width: int
    groups: int

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack a [K, C, KH, KW] array."""
        return WordBlocks(self.width, self.groups, 4, "int8").pack(weight).view("<i4")


@dataclass(frozen=True)
class WordPanels:
    """[K, N] of signed levels stored as int32 [ceil(N / width), ceil(K / each), width], each = 32 / bits.

    A word holds `each` levels of its column, the first one in its lowest bits. K and N are filled up with zeros.
    """

    width: int
    bits: int

    @property
    def each(self) -> int:
        """Levels in a word."""
        return 32 // self.bits

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Shape of the packed array."""
        return (-(-columns // self.width), -(-rows // self.each), self.width)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack an int8 array [K, N] of numbers of so many bits."""
        rows, columns = weight.shape
        panels, words, _ = self.shape(rows, columns)
        padded = np.zeros((words * self.each, panels * self.width), np.uint32)
        padded[:rows, :columns] = weight.astype(np.int64) & ((1 << self.bits) - 1)
        split = padded.reshape(words, self.each, panels, self.width)
        shifts = (np.arange(self.each, dtype=np.uint32) * np.uint32(self.bits)).reshape(1, -1, 1, 1)
        joined = np.bitwise_or.reduce(split << shifts, axis=1)
        return np.ascontiguousarray(joined.transpose(1, 0, 2)).view(np.int32)


@dataclass(frozen=True)
class Transposed:
    """[N, K] stored as `inner` stores [K, N]."""

    inner: ColumnPanels | WordPanels

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Shape of the packed array, of what `inner` packs."""
        return self.inner.shape(rows, columns)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack an [N, K] array."""
        return self.inner.pack(weight.T)
