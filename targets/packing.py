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
