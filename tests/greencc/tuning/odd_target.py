"""A target for tests of builders, whose one rule does whatever a plan says, right or wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import Declined, Rule, Scheduled
from greencc.targets.cpu.target import CpuTarget, host_target
from greencc.targets.tuning.space import Knob, Plan, Space

DEEDS = ("build", "decline", "raise", "crash", "hang")


@dataclass(frozen=True)
class OddRule:
    """Schedules, or not."""

    name: str = "odd"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        return Space((Knob("do", DEEDS),), {"do": "build"})

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """See TunableRule."""
        deed = "build" if plan is None else plan["do"]
        if deed == "decline":
            return Declined("not this one")
        if deed == "raise":
            raise ValueError("first line\nthe plan is odd")
        if deed == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if deed == "hang":
            time.sleep(60)
        return Scheduled(func, self.name)


@dataclass(frozen=True)
class OddTarget(CpuTarget):
    """This machine's CPU with that rule alone."""

    def rules(self) -> Sequence[Rule]:
        """See Target."""
        return (OddRule(),)


def odd_target() -> OddTarget:
    """One thread of it."""
    host = host_target(1)
    return OddTarget(host.triple, host.cpu, host.features, host.threads)
