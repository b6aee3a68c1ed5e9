"""The CPU as a target: which instructions it has, how wide its vectors are, how many threads a run gets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.target import codegen

from greencc.errors import UserError
from greencc.runtime.features import physical_cores
from greencc.targets.base import Code, Rule

# Feature -> (what it needs, in LLVM's names). What isn't listed is of no interest to a schedule.
X86_FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avxvnni")
ARM_FEATURES = ("neon", "dotprod", "i8mm", "fullfp16", "sve")
# What has a feature has these too, and what those imply.
_IMPLIED = {
    "avx": ("sse4.2",),
    "avx2": ("avx",),
    "fma": ("avx",),
    "f16c": ("avx",),
    "avxvnni": ("avx2",),
    "avx512f": ("avx2", "fma", "f16c"),
    "avx512bw": ("avx512f",),
    "avx512vl": ("avx512f",),
    "avx512vnni": ("avx512f",),
    "dotprod": ("neon",),
    "i8mm": ("neon",),
    "fullfp16": ("neon",),
    "sve": ("fullfp16",),
}
# LLVM 22 vectorises some loops wrongly: it takes x[i % 8] in a loop over 16 values of i for consecutive elements
# (tests/targets/cpu/test_elementwise.py has one). Schedules make their vectors themselves.
_LLVM_OPTIONS = {"cl-opt": ["-vectorize-loops:bool=0"]}


@dataclass(frozen=True)
class CpuTarget:
    """A CPU to compile for.

    Attributes:
        triple: LLVM target triple.
        cpu: LLVM processor name.
        features: instruction-set extensions that generated code may use, sorted, in LLVM's names.
        threads: threads of a run.
    """

    triple: str
    cpu: str
    features: tuple[str, ...]
    threads: int

    @property
    def kind(self) -> str:
        """Name in the registry."""
        return "cpu"

    @property
    def is_x86(self) -> bool:
        """Whether this is an x86-64 processor."""
        return self.triple.split("-")[0] in ("x86_64", "amd64")

    @property
    def runs_here(self) -> bool:
        """Whether this machine has what the code needs."""
        host = host_target()
        same = self.triple.split("-")[0] == host.triple.split("-")[0]
        return same and set(self.features) <= set(host.features)

    @property
    def place(self) -> str:
        """See Target."""
        return "cpu"

    @property
    def vector_bits(self) -> int:
        """Width of a vector register."""
        if "avx512f" in self.features:
            return 512
        return 256 if "avx" in self.features else 128

    @property
    def vector_registers(self) -> int:
        """Number of vector registers."""
        return 32 if not self.is_x86 or "avx512vl" in self.features else 16

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of `dtype` in a vector register."""
        return self.vector_bits // int(tvm.DataType(dtype).bits)

    def llvm_target(self) -> tvm.target.Target:
        """The same target for TVM."""
        return tvm.target.Target(
            {
                "kind": "llvm",
                "mtriple": self.triple,
                "mcpu": self.cpu,
                "mattr": [f"+{feature}" for feature in self.features],
                "num-cores": self.threads,
                **_LLVM_OPTIONS,
            }
        )

    def describe(self) -> dict[str, object]:
        """What the manifest records; the runtime compares it with its host."""
        return {
            "kind": self.kind,
            "triple": self.triple,
            "mcpu": self.cpu,
            "features": list(self.features),
            "threads": self.threads,
        }

    def legalize(self, module: tvm.IRModule) -> tvm.IRModule:
        """Lower every operator to PrimFuncs."""
        from greencc.targets.cpu.legalize import legalize

        return legalize(module, self)

    def rules(self) -> Sequence[Rule]:
        """Schedule rules, in order; the first that applies wins."""
        from greencc.targets.cpu.schedules import rules

        return rules(self)

    @property
    def alignment(self) -> int:
        """A line of the caches, and the widest vector."""
        return 64

    def build(self, module: tvm.IRModule) -> Code:
        """Machine code as a shared library."""
        from greencc.targets.cpu.build import build

        return build(module, self)


def host_target(threads: int | None = None) -> CpuTarget:
    """The processor that this process runs on, with one thread per physical core unless `threads` says otherwise."""
    cpu = codegen.llvm_get_system_cpu()
    available = (
        {str(name) for name, on in codegen.llvm_get_system_x86_features().items() if on}
        if hasattr(codegen, "llvm_get_system_x86_features")
        else set()
    )
    machine = os.uname().machine
    known = X86_FEATURES if machine in ("x86_64", "amd64") else ARM_FEATURES
    if not available:
        available = _proc_features()
    features = tuple(sorted(feature for feature in known if feature in available))
    triple = f"{'aarch64' if machine == 'arm64' else machine}-linux-gnu"
    return CpuTarget(triple, cpu, features, threads or physical_cores())


def local_target(device: str, threads: int | None) -> CpuTarget:
    """The CPU of this machine.

    Raises:
        UserError: `device` names one of several.
    """
    if device:
        raise UserError(f"--target cpu:{device}: a machine has one CPU target; write cpu")
    return host_target(threads)


def recorded_target(description: Mapping[str, object], threads: int) -> CpuTarget:
    """The target that `CpuTarget.describe` described: the instructions that an artifact's code may use."""
    features = description["features"]
    names = tuple(map(str, features)) if isinstance(features, list) else ()
    return CpuTarget(str(description["triple"]), str(description["mcpu"]), names, threads)


def described_target(fields: Mapping[str, Any], where: str, threads: int | None = None) -> CpuTarget:
    """A target from a JSON object: {"kind": "cpu", "triple": ..., "cpu": ..., "features": [...], "threads": N}.

    Raises:
        UserError: a field is missing, unknown or of the wrong type; `where` names the object.
    """
    missing = [name for name in ("triple", "cpu") if not isinstance(fields.get(name), str)]
    if missing:
        raise UserError(f"{where}: missing text field(s) {', '.join(missing)}")
    features = fields.get("features", [])
    known = {*X86_FEATURES, *ARM_FEATURES}
    if not isinstance(features, list):
        raise UserError(f"{where}: features must be a list of names, not {features!r}")
    unknown = [str(f) for f in features if f not in known]
    if unknown:
        raise UserError(f"{where}: unknown feature(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    count = threads or fields.get("threads", 1)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{where}: threads must be a positive integer, not {count}")
    return CpuTarget(fields["triple"], fields["cpu"], tuple(sorted(_with_implied(features))), count)


def _with_implied(features: Iterable[str]) -> set[str]:
    """`features` and all that they imply: vectors would else be as narrow as the one that a file happens to name."""
    found: set[str] = set()
    pending = list(features)
    while pending:
        feature = pending.pop()
        if feature not in found:
            found.add(feature)
            pending.extend(_IMPLIED.get(feature, ()))
    return found


def _proc_features() -> set[str]:
    """Instruction-set extensions from /proc/cpuinfo, renamed to LLVM's spelling."""
    renames = {"sse4_2": "sse4.2", "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni", "asimd": "neon",
               "asimddp": "dotprod", "asimdhp": "fullfp16"}  # fmt: skip
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return {renames.get(name, name) for name in line.split(":", 1)[1].split()}
    return set()
