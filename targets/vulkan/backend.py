"""The hook that makes TVM's own Python package know Vulkan, in this process and in its workers."""

from __future__ import annotations

from greencc.errors import GreenccError
from greencc.runtime.vulkan import open_sidecar


def register() -> None:
    """Load the Vulkan runtime where there is one; do nothing otherwise.

    `import tvm` calls it (entry-point group `tvm.backends`), also in programs that have nothing to do with Vulkan: a
    sidecar that is missing or made for another TVM is not their concern, nor are greencc's settings of TVM's threads.
    greencc says what is wrong when Vulkan is asked for.
    """
    import tvm_ffi

    try:
        open_sidecar(tvm_ffi)
    except (GreenccError, OSError):
        return
