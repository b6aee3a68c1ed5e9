"""All kernels by name. One module per family, merged here."""

from __future__ import annotations

from greencc.kernels import (
    contraction,
    elementwise,
    indexing,
    movement,
    padding,
    quantize,
    reductions,
    resize,
    sampling,
    windows,
)
from greencc.kernels.base import Kernel

KERNELS: dict[str, Kernel] = {
    **contraction.KERNELS,
    **elementwise.KERNELS,
    **indexing.KERNELS,
    **movement.KERNELS,
    **padding.KERNELS,
    **quantize.KERNELS,
    **reductions.KERNELS,
    **resize.KERNELS,
    **sampling.KERNELS,
    **windows.KERNELS,
}
