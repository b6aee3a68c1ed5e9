"""Reductions over the last axes and what hangs on them (softmax, layer norm, means): one pass over each row.

All blocks are computed inside one loop over rows, which runs in parallel. Each sum or maximum is first taken
over vector lanes (a reassociation, like every vectorised sum) and then over the lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import REDUCE, blocks, is_reduction, is_written_in_order, overwritable
from greencc.targets.tir import as_int, loads, uses_var


@dataclass(frozen=True)
class RowwiseRule:
    """See the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-rowwise"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a kernel whose reductions all run over the last axes, or decline."""
        schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
        found = blocks(schedule)
        reductions = [block for block in found if is_reduction(schedule.get(block))]
        if not reductions:
            return Declined("no reduction")
        if is_reduction(schedule.get(found[-1])) and len(found) > 1:
            return Declined("the last block is a reduction behind others")
        rows = min(_spatial_count(schedule, block) for block in reductions)
        for block in reductions:
            reason = _check(schedule, block, rows)
            if reason is not None:
                return Declined(reason)
        last_spatial = _spatial_count(schedule, found[-1])
        if last_spatial < rows:
            return Declined("the output has fewer axes than rows")
        overwrites = _overwrites(func, [schedule.get(block) for block in found], rows)
        try:
            self._schedule(schedule, found, reductions, rows)
        except s_tir.ScheduleError as error:
            return Declined(f"its blocks don't go into one row loop ({str(error).splitlines()[0][:80]})")
        return Scheduled(schedule.mod["main"], self.name, overwrites=overwrites)

    def _schedule(
        self,
        schedule: s_tir.Schedule,
        found: list[s_tir.SBlockRV],
        reductions: list[s_tir.SBlockRV],
        rows: int,
    ) -> None:
        ordered: list[s_tir.SBlockRV] = []
        per_lane: list[s_tir.SBlockRV] = []
        for block in found:
            if block in reductions:
                lanes_block = self._over_lanes(schedule, block)
                if lanes_block is not None:
                    per_lane.append(lanes_block)
                    ordered.append(lanes_block)
            ordered.append(block)
        last = ordered[-1]
        loops = schedule.get_loops(last)
        if rows == 0:
            return
        row = schedule.fuse(*loops[:rows])
        for block in reversed(ordered[:-1]):
            schedule.compute_at(block, row, preserve_unit_loops=True)
        for block in ordered:
            self._vectorize_inner(schedule, block)
        count = as_int(schedule.get(row).extent)
        width = as_int(schedule.get(schedule.get_loops(ordered[0])[-1]).extent)
        if count is None or width is None or count * width * len(ordered) >= MIN_PARALLEL_ELEMENTS:
            schedule.parallel(row)
        # Last: a block without its initial value is no reduction that a row could be made parallel around.
        for block in per_lane:
            self._vectorize_lanes(schedule, block)

    def _over_lanes(self, schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> s_tir.SBlockRV | None:
        """Split a reduction over vector lanes; the block that reduces per lane, or None when it doesn't divide."""
        loops = schedule.get_loops(block)
        inner = loops[-1]
        extent, lanes = as_int(schedule.get(inner).extent), self.target.lanes()
        if extent is None or extent % lanes or extent <= lanes or not _is_float32(schedule.get(block)):
            return None
        _, lane = schedule.split(inner, [None, lanes])
        partial = schedule.rfactor(lane, factor_axis=len(schedule.get(block).writes[0].region))
        return partial

    def _vectorize_lanes(self, schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> None:
        """Make the lanes of a partial reduction a vector that is innermost."""
        kinds = [int(axis.iter_type) for axis in schedule.get(block).iter_vars]
        loops = schedule.get_loops(block)
        own = loops[len(loops) - len(kinds) :]
        # The lanes are the partial reduction's last axis that is kept; their loop comes first of those that are left.
        lane = next(loop for loop in own if as_int(schedule.get(loop).extent) == self.target.lanes())
        reduced = [loop for loop, kind in zip(own, sorted(kinds), strict=True) if kind == REDUCE]
        schedule.reorder(*reduced, lane)
        schedule.vectorize(lane)
        schedule.decompose_reduction(block, reduced[0])

    def _vectorize_inner(self, schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> None:
        node = schedule.get(block)
        loops = schedule.get_loops(block)
        if len(loops) < 2:
            return
        inner = schedule.get(loops[-1])
        extent, lanes = as_int(inner.extent), self.target.lanes()
        if extent is None or extent < 2:
            return
        if is_reduction(node):
            return
        if not isinstance(node.body, tirx.BufferStore) or str(node.body.buffer.ty.dtype) != "float32":
            return
        while extent % lanes:
            lanes //= 2
        if lanes > 1:
            _, vector = schedule.split(loops[-1], [None, lanes])
            schedule.vectorize(vector)


def _spatial_count(schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> int:
    return sum(int(axis.iter_type) == 0 for axis in schedule.get(block).iter_vars)


def _overwrites(func: tirx.PrimFunc, found: list[s_tir.SBlock], rows: int) -> tuple[int, ...]:
    """Parameters that the result may overwrite: what precedes the last block reads nothing of them but its own row."""
    *before, last = found
    axes = [axis.var for axis in last.iter_vars]
    if rows == 0 or not before or not isinstance(last.body, tirx.BufferStore) or not is_written_in_order(last):
        return ()
    foreign: set[tirx.Var] = set()
    for block in before:
        own = [axis.var for axis in block.iter_vars][:rows]
        for load in loads(block.body.value) if isinstance(block.body, tirx.BufferStore) else ():
            if not all(index.same_as(axis) for index, axis in zip(load.indices, own, strict=False)):
                foreign.add(load.source)
    candidates = overwritable(func, last.body.buffer, last.body.value, axes)
    return tuple(index for index in candidates if func.params[index] not in foreign)


def _is_float32(block: s_tir.SBlock) -> bool:
    return isinstance(block.body, tirx.BufferStore) and str(block.body.buffer.ty.dtype) == "float32"


def _check(schedule: s_tir.Schedule, block: s_tir.SBlockRV, rows: int) -> str | None:
    """Why a reduction isn't one over whole rows, or None."""
    node = schedule.get(block)
    kinds = [int(axis.iter_type) for axis in node.iter_vars]
    if kinds != sorted(kinds):
        return "a reduced axis comes before a kept one"
    if len([k for k in kinds if k == 0]) != rows:
        return "the reductions run over different axes"
    if isinstance(node.body, tirx.BufferStore):
        spatial = [axis.var for axis in node.iter_vars if int(axis.iter_type) == 0]
        reduced = [axis.var for axis in node.iter_vars if int(axis.iter_type) != 0]
        for load in loads(node.body.value):
            if not any(uses_var(index, var) for index in load.indices for var in reduced):
                continue
            leading = load.indices[: len(spatial)]
            if len(leading) < len(spatial) or not all(a.same_as(b) for a, b in zip(leading, spatial, strict=True)):
                return "a reduction reads across rows"
    return None
