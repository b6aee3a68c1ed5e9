"""Convolutions, pooling and other reductions that no special rule takes: a register tile of outputs.

    for outer output axes (parallel):
        tile[c, x] = 0                                # c: second-innermost kept axis or channels, x: innermost
        for reduced axes: for c (unrolled): for x (vector): tile[c, x] += ...
        output = tail(tile)

What is fused in front (padding) is computed first, as a pass of its own; what is fused behind reads the tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS, schedule_map
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import InlineError, blocks, inline_blocks, is_reduction
from greencc.targets.tir import as_int

# Position of the output channels in NCHW.
CHANNEL_AXIS = 1
# More accumulators don't help: the loads of the inputs are shared by enough channels.
MAX_CHANNELS = 12


@dataclass(frozen=True)
class TiledReductionRule:
    """See the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-tiled-reduction"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a kernel with one reduction, or decline."""
        schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
        found = blocks(schedule)
        reducing = [i for i, block in enumerate(found) if is_reduction(schedule.get(block))]
        if len(reducing) != 1:
            return Declined(f"{len(reducing)} reductions")
        position = reducing[0]
        node = schedule.get(found[position])
        kinds = [int(axis.iter_type) for axis in node.iter_vars]
        if kinds != sorted(kinds) or not isinstance(node.body, tirx.BufferStore) or 0 not in kinds:
            return Declined("its axes aren't kept ones followed by reduced ones")
        if as_int(node.iter_vars[kinds.count(0) - 1].dom.extent) is None:
            return Declined("its innermost kept axis is symbolic")
        try:
            self._schedule(schedule, found, position, kinds.count(0))
        except (InlineError, s_tir.ScheduleError, ValueError) as error:
            return Declined(f"it can't be tiled ({str(error).splitlines()[0][:80]})")
        return Scheduled(schedule.mod["main"], self.name)

    def _schedule(
        self, schedule: s_tir.Schedule, found: list[s_tir.SBlockRV], position: int, spatial: int
    ) -> None:
        before, reduction, after = found[:position], found[position], found[position + 1 :]
        inline_blocks(schedule, [*before[:-1], *after[:-1]])
        if before:
            schedule_map(schedule, before[-1], self.target)
        if after:
            last = after[-1]
            if len(schedule.get(last).iter_vars) != spatial:
                raise ValueError("the tail has another rank")
        else:
            last = schedule.cache_write(reduction, 0, "local")
        loops = schedule.get_loops(last)
        lanes, channels = self._tile(schedule, reduction, spatial)
        total = 1
        for loop in loops:
            extent = as_int(schedule.get(loop).extent)
            total = total * extent if extent is not None else MIN_PARALLEL_ELEMENTS
        x_outer, x = schedule.split(loops[-1], [None, lanes])
        outer = list(loops[:-1])
        inner = [x]
        if channels > 1:
            c_outer, c = schedule.split(outer[CHANNEL_AXIS], [None, channels])
            outer[CHANNEL_AXIS] = c_outer
            inner = [c, x]
        schedule.reorder(*outer, x_outer, *inner)
        schedule.compute_at(reduction, x_outer, preserve_unit_loops=True)
        if after:
            schedule.set_scope(reduction, 0, "local")
        reads = as_int(_volume(schedule, schedule.get_loops(reduction)[len(outer) + 1 + spatial :])) or 1
        kept = schedule.get_loops(reduction)[len(outer) + 1 :]
        kept_spatial, reduced = kept[:spatial], kept[spatial:]
        schedule.reorder(*reduced, *kept_spatial)
        schedule.vectorize(x)
        schedule.vectorize(kept_spatial[-1])
        for loop in kept_spatial[:-1]:
            schedule.unroll(loop)
        if channels > 1:
            schedule.unroll(inner[0])
        if total * reads >= MIN_PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else (outer[0] if outer else x_outer))
        # Last: a decomposed reduction is no longer a reduction block that loops may be annotated around.
        schedule.decompose_reduction(reduction, reduced[0])

    def _tile(self, schedule: s_tir.Schedule, reduction: s_tir.SBlockRV, spatial: int) -> tuple[int, int]:
        """(columns, channels) of the register tile; both divide their axes."""
        axes = schedule.get(reduction).iter_vars
        width = as_int(axes[spatial - 1].dom.extent) or 1
        lanes = self.target.lanes()
        # Vectors wider than a register make LLVM spill.
        columns = _divisor(width, lanes)
        channels = 1
        if spatial > CHANNEL_AXIS + 1:
            extent = as_int(axes[CHANNEL_AXIS].dom.extent)
            budget = 3 * self.target.vector_registers // 4
            channels = _divisor(extent, min(budget, MAX_CHANNELS)) if extent is not None else 1
        return columns, channels


def _divisor(extent: int, limit: int) -> int:
    return max(d for d in range(1, min(extent, limit) + 1) if extent % d == 0)


def _volume(schedule: s_tir.Schedule, loops: list[s_tir.schedule.LoopRV]) -> tirx.Expr:
    total: tirx.Expr = tirx.IntImm("int64", 1)
    for loop in loops:
        total = total * schedule.get(loop).extent
    return total
