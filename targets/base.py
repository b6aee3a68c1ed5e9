"""What a target is: a frozen description, a lowering of operators, an ordered list of schedule rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import tvm
from tvm import tirx

RULE_ATTR = "greencc.rule"
"""Attribute of a PrimFunc that names the rule which emitted or scheduled it."""


class Layout(Protocol):
    """How a schedule wants a constant weight stored. Packing applies it with numpy, at compile time."""

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The packed array; its shape is what the scheduled kernel declares."""


@dataclass(frozen=True)
class Code:
    """What a target makes of a module.

    Attributes:
        library: a shared library for the machine that runs the model; its entry is `vm_load_executable`.
        kernels: what the device needs besides, by name of the artifact's member; nothing where the library holds all.
    """

    library: bytes
    kernels: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Scheduled:
    """A scheduled kernel.

    Attributes:
        func: the PrimFunc; a parameter with a layout has the packed shape.
        rule: name of the rule that made it.
        layouts: layout by parameter index, only for parameters that are constants at every call site.
        overwrites: parameters whose memory the result may take: each element is read for the last time before the
            element of the result is written that takes its place.
        plan: what was recorded of the kernel and followed; None for a kernel that isn't tuned.
    """

    func: tirx.PrimFunc
    rule: str
    layouts: Mapping[int, Layout] = field(default_factory=dict)
    overwrites: tuple[int, ...] = ()
    plan: Mapping[str, int | str] | None = None


@dataclass(frozen=True)
class Declined:
    """Why a rule doesn't apply to a kernel."""

    reason: str


class Target(Protocol):
    """A device to compile for. Frozen: passes and rules read its capabilities and change nothing."""

    @property
    def kind(self) -> str:
        """Name in the registry: cpu, cuda, vulkan."""

    @property
    def threads(self) -> int:
        """Number of threads that a run uses."""

    @property
    def runs_here(self) -> bool:
        """Whether code for this target runs on this machine."""

    @property
    def place(self) -> str:
        """The device of this machine that runs its code: `cpu`, or a GPU as in `vulkan:1`."""

    def describe(self) -> dict[str, object]:
        """What the artifact's manifest records; the runtime compares it with its host."""

    def legalize(self, module: tvm.IRModule) -> tvm.IRModule:
        """Lower every operator to PrimFuncs."""

    def rules(self) -> Sequence[Rule]:
        """Schedule rules, in order; the first that applies wins."""

    @property
    def alignment(self) -> int:
        """Bytes that the place of a tensor in memory is a multiple of."""

    def build(self, module: tvm.IRModule) -> Code:
        """Machine code of a module of scheduled PrimFuncs and a lowered `main`."""


class Rule(Protocol):
    """Chooses a schedule for one kernel, or declines with a reason."""

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule `func`; `constants` are the indices of parameters that are compile-time constants."""
