"""The schedule for everything that no other rule takes: correct, parallel where that is obviously safe."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import blocks
from greencc.targets.tir import as_int


@dataclass(frozen=True)
class FallbackRule:
    """Each block on its own, its outermost spatial loops in parallel."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-fallback"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Never declines; a kernel that can't be scheduled at all is returned as it is."""
        schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
        try:
            for block in blocks(schedule):
                _parallelize(schedule, block)
        except s_tir.ScheduleError:
            return Scheduled(func, self.name)
        return Scheduled(schedule.mod["main"], self.name)


def _parallelize(schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> None:
    node = schedule.get(block)
    loops = schedule.get_loops(block)
    if not isinstance(node.body, tirx.BufferStore) or len(loops) != len(node.iter_vars):
        return
    spatial = 0
    for axis in node.iter_vars:
        if int(axis.iter_type) != 0:
            break
        spatial += 1
    total: int | None = 1
    for loop in loops:
        extent = as_int(schedule.get(loop).extent)
        total = None if total is None or extent is None else total * extent
    if spatial == 0 or (total is not None and total < MIN_PARALLEL_ELEMENTS):
        return
    schedule.parallel(schedule.fuse(*loops[: max(spatial - 1, 1)]))
