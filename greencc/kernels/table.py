"""All kernels by name. One module per family, merged here."""

from __future__ import annotations

from greencc.kernels import elementwise, indexing, movement, quantize, reductions, resize, windows
from greencc.kernels.base import Kernel

KERNELS: dict[str, Kernel] = {
    **elementwise.KERNELS,
    **indexing.KERNELS,
    **movement.KERNELS,
    **quantize.KERNELS,
    **reductions.KERNELS,
    **resize.KERNELS,
    **windows.KERNELS,
}
