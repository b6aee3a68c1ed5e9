"""The hook that makes TVM's own Python package know Vulkan, in this process and in its workers."""

from __future__ import annotations

from greencc.errors import GreenccError
from greencc.runtime.vulkan import load_sidecar


def register() -> None:
    """Load the Vulkan runtime where there is one; do nothing otherwise.

    `import tvm` calls it (entry-point group `tvm.backends`), also in programs that have nothing to do with Vulkan: a
    sidecar that is missing or made for another TVM is not their concern. greencc says what is wrong when Vulkan is
    asked for.
    """
    try:
        load_sidecar()
    except GreenccError:
        return
