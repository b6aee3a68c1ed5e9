"""The GPU architectures that code can be made for, and what each of them can do."""

from __future__ import annotations

from greencc.errors import UserError
from greencc.targets.gpu.capabilities import Capabilities

_FAMILY = "f"
_EXACT = "a"
# Compute capability times ten -> suffixes of its own instruction sets. `a`: runs on this capability only, `f`: on its
# family. greencc's kernels need neither; a user's nvcc flags may.
ARCHITECTURES: dict[int, str] = {
    75: "",
    80: "",
    86: "",
    87: "",
    88: "",
    89: "",
    90: _EXACT,
    100: _EXACT + _FAMILY,
    103: _EXACT + _FAMILY,
    110: _EXACT + _FAMILY,
    120: _EXACT + _FAMILY,
    121: _EXACT + _FAMILY,
}
DEFAULT = "sm_80"


def capability_of(arch: str) -> int:
    """Ten times the compute capability of an architecture: 80 for sm_80, 90 for sm_90a.

    Raises:
        UserError: unknown; the message lists those that are known.
    """
    for capability, suffixes in ARCHITECTURES.items():
        if arch in (f"sm_{capability}", *(f"sm_{capability}{suffix}" for suffix in suffixes)):
            return capability
    known = ", ".join(f"sm_{capability}" for capability in ARCHITECTURES)
    raise UserError(f"CUDA architecture {arch!r}: unknown; known: {known}, with the suffix a or f where CUDA has one")


def nearest(capability: int) -> str:
    """The latest architecture whose code runs on a GPU of `capability`.

    Raises:
        UserError: greencc makes no code for this GPU.
    """
    fitting = [known for known in ARCHITECTURES if known // 10 == capability // 10 and known <= capability]
    if not fitting:
        known = ", ".join(f"sm_{known}" for known in ARCHITECTURES)
        raise UserError(f"a GPU of compute capability {capability / 10} runs code for none of {known}")
    return f"sm_{max(fitting)}"


def capabilities_of(arch: str) -> Capabilities:
    """What every GPU of an architecture can do (CUDA C++ Programming Guide, "Compute Capabilities")."""
    capability = capability_of(arch)
    return Capabilities(
        max_threads=1024,
        # What a kernel gets without asking the driver for more.
        shared_bytes=48 << 10,
        subgroup=32,
        has_float16=True,
        has_int64=True,
        has_float64=True,
        has_dot4=True,
        has_tensor_cores=True,
        has_tensor_bfloat16=capability >= 80,
        has_tensor_int8=True,
        alignment=256,
        max_buffer_bytes=1 << 40,
        max_groups=(1 << 31) - 1,
        # Those of data centres have 72 (T4) to 148 (B200) multiprocessors.
        cores=100,
    )
