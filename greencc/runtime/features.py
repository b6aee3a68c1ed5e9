"""What the CPU of this machine is and can do, in the names that LLVM, and so a manifest's target, uses."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_ALIASES = {
    # x86: names of /proc/cpuinfo that differ from LLVM's by more than punctuation.
    "pni": "sse3",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "pclmulqdq": "pclmul",
    "rdrand": "rdrnd",
    "shani": "sha",
    # Arm: names of /proc/cpuinfo and of macOS.
    "asimd": "neon",
    "advsimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "fphp": "fullfp16",
    "fp16": "fullfp16",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "fphpasimdhp": "fullfp16",
}
_NUMERIC = (
    "sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni",
    "avx512bf16", "avx512fp16", "avxvnni", "avxvnniint8", "amx-tile", "amx-int8", "amx-bf16",
    "neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip
_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}

# IsProcessorFeaturePresent of Windows (processthreadsapi.h).
_WINDOWS = {
    10: "sse2",
    13: "sse3",
    36: "ssse3",
    37: "sse4.1",
    38: "sse4.2",
    39: "avx",
    40: "avx2",
    41: "avx512f",
}


def canonical_feature(name: str) -> str:
    """One spelling for an instruction set: `AVX512_VNNI`, `avx512vnni` and `+avx512vnni` are the same."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return _ALIASES.get(plain, plain)


def machine() -> str:
    """The processor's architecture as target triples spell it: `x86_64`, `aarch64`, ..."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


@cache
def host_features() -> frozenset[str] | None:
    """Instruction sets that this machine's CPU and operating system offer, in canonical spelling.

    None when the system gives no way to find out.
    """
    if sys.platform == "linux":
        found = _linux_features()
    elif sys.platform == "darwin":
        found = _macos_features()
    elif sys.platform == "win32":
        found = _windows_features()
    else:
        return None
    return frozenset(canonical_feature(name) for name in found) or None


def missing_features(required: Iterable[str]) -> tuple[str, ...]:
    """Those of `required` that this machine lacks, as spelled there; empty when its features are unknown."""
    present = host_features()
    if present is None:
        return ()
    return tuple(name for name in required if canonical_feature(name) not in present)


def known_features() -> tuple[str, ...]:
    """Those instruction sets of this machine that matter to numeric code, in LLVM's spelling."""
    present = host_features() or frozenset()
    return tuple(name for name in _NUMERIC if canonical_feature(name) in present)


@cache
def cpu_name() -> str:
    """The CPU's marketing name, or its architecture where the system does not tell."""
    if sys.platform == "linux":
        fields = _cpuinfo()
        name = fields.get("model name") or fields.get("Model") or fields.get("Hardware")
    elif sys.platform == "darwin":
        name = _sysctl_text("machdep.cpu.brand_string")
    else:
        name = platform.processor()
    return name or machine()


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _linux_features() -> list[str]:
    fields = _cpuinfo()
    names = (fields.get("flags") or fields.get("Features") or "").split()
    # The kernel lists lzcnt and popcnt together as `abm` on AMD; LLVM wants both.
    return [*names, "popcnt"] if "abm" in names else names


def _macos_features() -> list[str]:
    if machine() == "x86_64":
        keys = ("machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.extfeatures")
        # sysctl spells AVX as AVX1.0.
        return ["avx" if name == "AVX1.0" else name for key in keys for name in _sysctl_text(key).split()]
    names = ("AdvSIMD", "DotProd", "FP16", "BF16", "I8MM", "LSE", "RDM", "SHA3", "SME")
    return [name for name in names if name == "AdvSIMD" or _sysctl_number(f"hw.optional.arm.FEAT_{name}")]


def _windows_features() -> list[str]:
    kernel = getattr(ctypes, "windll", None)
    if kernel is None:
        return []
    return [name for code, name in _WINDOWS.items() if kernel.kernel32.IsProcessorFeaturePresent(code)]


def _sysctl(name: str) -> bytes:
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if not hasattr(libc, "sysctlbyname"):
        return b""
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return b""
    buffer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return b""
    return buffer.raw[: size.value]


def _sysctl_text(name: str) -> str:
    return _sysctl(name).rstrip(b"\0").decode(errors="replace")


def _sysctl_number(name: str) -> int:
    return int.from_bytes(_sysctl(name), sys.byteorder)


@cache
def physical_cores() -> int:
    """Physical cores that this process may use: its affinity and its container's CPU quota are respected."""
    if sys.platform == "linux":
        count = _linux_cores()
    elif sys.platform == "darwin":
        count = _sysctl_number("hw.physicalcpu")
    else:
        count = (os.cpu_count() or 1) // (2 if machine() == "x86_64" else 1)
    return max(count, 1)


@cache
def logical_cpus() -> int:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_bytes() -> int | None:
    """Size of the last-level cache as the system reports it, None where it doesn't."""
    sizes = [_read(file).strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if re.fullmatch(r"\d+K", size)), default=None)


def _linux_cores() -> int:
    allowed = os.sched_getaffinity(0)
    topology = Path("/sys/devices/system/cpu")
    cores = {_read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    quota = _cgroup_quota()
    return len(cores) if quota is None else min(len(cores), max(1, round(quota)))


def _cgroup_quota() -> float | None:
    """CPUs' worth of time that the control group allows, or None without a limit (cgroup v2, then v1)."""
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    if not quota:
        quota = _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
        period = _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
