"""The schedule for everything that no other rule takes: several launches, with memory of their own between them.

A kernel is taken apart into launches, in order:

    maps over one space        one launch, a thread for each element
    reductions of common rows  one launch, as in `rowwise`
    other statements           one launch of one thread

Each is as long as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import s_tir, tirx

from greencc.errors import GreenccError
from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.elementwise import are_one_map, map_launch
from greencc.targets.gpu.schedules.launch import in_sequence, one_thread
from greencc.targets.gpu.schedules.rows import find_rows
from greencc.targets.gpu.schedules.rowwise import rows_launch
from greencc.targets.gpu.schedules.stages import (
    Stage,
    allocated,
    inlined,
    read_stages,
    reads_or_writes,
    updates_in_place,
)


@dataclass(frozen=True)
class FallbackRule:
    """See the module's docstring."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "gpu-fallback"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule any kernel that is made of blocks."""
        stages = read_stages(func)
        if not stages:
            return Declined("it isn't made of blocks")
        left = stages if updates_in_place(func, stages) else inlined(stages, func.params)
        groups = together(left)
        launches = [self._launch(group, left, func.params) for group in groups]
        between = [buffer for buffer in allocated(func) if any(reads_or_writes(stage, buffer) for stage in left)]
        return Scheduled(func.with_body(_with_memory(in_sequence(launches), between)), self.name)

    def _launch(self, group: Sequence[Stage], stages: Sequence[Stage], params: Sequence[tirx.Var]) -> tirx.Stmt:
        if group[0].is_opaque:
            return one_thread(group[0].block)
        if not any(stage.is_reduction for stage in group):
            return map_launch(group, self.target)
        others = [stage for stage in stages if stage not in group]
        read = [buffer for stage in group for buffer in stage.writes if any(reads_or_writes(o, buffer) for o in others)]
        rows = find_rows(group)
        if isinstance(rows, str):
            raise GreenccError(f"no launch for a reduction by itself: {rows}")
        return rows_launch(group, rows, self.target, [*params, *read])


def together(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages grouped into launches, in order: each group as long as it can be."""
    groups: list[list[Stage]] = []
    rest = list(stages)
    while rest:
        length = 1
        for end in range(2, len(rest) + 1):
            if _fits(rest[:end]):
                length = end
        groups.append(rest[:length])
        rest = rest[length:]
    return groups


def _fits(group: Sequence[Stage]) -> bool:
    if any(stage.is_opaque for stage in group):
        return False
    if any(stage.is_reduction for stage in group):
        return not isinstance(find_rows(group), str)
    return are_one_map(group)


def _with_memory(body: tirx.Stmt, buffers: Sequence[tirx.Var]) -> tirx.Stmt:
    """A root block that allocates what the launches hand on."""
    root = s_tir.SBlock([], [], [], "root", body, alloc_buffers=list(buffers))
    return s_tir.SBlockRealize([], tirx.const(True, "bool"), root)
