"""Everything without a reduction: one pass over memory, all blocks inlined into the last."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import tvm
from tvm import s_tir, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import InlineError, blocks, inline_blocks, is_reduction, is_written_in_order, overwritable
from greencc.targets.tir import as_int, loads, uses_var
from greencc.targets.tuning.space import Knob, Plan, Space

# Below this many elements threads cost more than they bring.
MIN_PARALLEL_ELEMENTS = 1 << 13


@dataclass(frozen=True)
class ElementwiseRule:
    """Parallel over the outer axes, vectors over the last one."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-elementwise"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        found = self._inlined(func)
        return found if isinstance(found, Declined) else _map_space(*found)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a kernel whose blocks are all spatial, or decline."""
        found = self._inlined(func)
        if isinstance(found, Declined):
            return found
        schedule, block = found
        problem = None if plan is None else _map_space(*found).problem(plan)
        if problem is not None:
            return Declined(problem)
        last = schedule.get(block)
        overwrites: tuple[int, ...] = ()
        if is_written_in_order(last):
            axes = [axis.var for axis in last.iter_vars]
            overwrites = tuple(overwritable(func, last.body.buffer, last.body.value, axes))
        schedule_map(schedule, block, self.target, None if plan is None else plan["threads"] == "all")
        return Scheduled(schedule.mod["main"], self.name, overwrites=overwrites)

    def _inlined(self, func: tirx.PrimFunc) -> tuple[s_tir.Schedule, s_tir.SBlockRV] | Declined:
        """The schedule in which a single block is left, and that block."""
        schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
        try:
            found = blocks(schedule)
        except s_tir.ScheduleError:
            return Declined("it has no root block with plain blocks under it")
        if any(is_reduction(schedule.get(block)) for block in found):
            return Declined("it reduces")
        if not all(isinstance(schedule.get(block).body, tirx.BufferStore) for block in found):
            return Declined("a block is no plain store")
        if _outputs(func, schedule, found) != 1:
            return Declined("it has several outputs")
        try:
            inline_blocks(schedule, found[:-1])
        except InlineError as error:
            return Declined(str(error))
        return schedule, found[-1]


def _map_space(schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> Space:
    """Whether threads share a map; other vectors than the default ones bring nothing, or are those of cpu-rows."""
    total = _elements(schedule, block)
    default: Plan = {"threads": "all" if _is_large(total) else "one"}
    reads = sum(1 for _ in loads(schedule.get(block).body.value))
    return Space((Knob("threads", ("all", "one")),), default, {"elements": total or 0, "reads": reads})


def _elements(schedule: s_tir.Schedule, block: s_tir.SBlockRV) -> int | None:
    extents = [as_int(schedule.get(loop).extent) for loop in schedule.get_loops(block)]
    known = [extent for extent in extents if extent is not None]
    return prod(known) if len(known) == len(extents) else None


def _is_large(elements: int | None) -> bool:
    return elements is None or elements >= MIN_PARALLEL_ELEMENTS


def schedule_map(
    schedule: s_tir.Schedule, block: s_tir.SBlockRV, target: CpuTarget, parallel: bool | None = None
) -> None:
    """Vectorise a spatial block in place, and parallelise it, None meaning where it is large."""
    loops = schedule.get_loops(block)
    if not loops:
        return
    store = schedule.get(block).body
    flat = _is_flat(store)
    lanes = target.lanes()
    if flat or len(loops) == 1:
        inner = schedule.fuse(*loops)
        outer = None
    else:
        outer, inner = schedule.fuse(*loops[:-1]), loops[-1]
    extent = as_int(schedule.get(inner).extent)
    shared = _is_large(_elements(schedule, block)) if parallel is None else parallel
    if extent is not None:
        while extent % lanes:
            lanes //= 2
        along = schedule.get(block).iter_vars[-1].var
        if lanes > 1 and vectorizes(store, along):
            rest, vector = schedule.split(inner, [None, lanes])
            schedule.vectorize(vector)
            outer = rest if outer is None else outer
    elif outer is None:
        # A long symbolic axis: chunks for the threads, the inside is left to LLVM's vectoriser.
        outer, _ = schedule.split(inner, [None, 1024])
    if shared:
        schedule.parallel(outer if outer is not None else inner)


def _outputs(func: tirx.PrimFunc, schedule: s_tir.Schedule, found: list[s_tir.SBlockRV]) -> int:
    written = [schedule.get(block).body.buffer for block in found]
    return sum(any(param.same_as(buffer) for buffer in written) for param in func.params)


def _is_flat(store: tirx.BufferStore) -> bool:
    """Whether every read is at the position of the write, in a buffer of the same shape, or of one element."""
    for load in loads(store.value):
        if all(isinstance(index, tirx.IntImm) for index in load.indices):
            continue
        if len(load.indices) != len(store.indices):
            return False
        if not all(a.same_as(b) for a, b in zip(load.indices, store.indices, strict=True)):
            return False
    return True


def vectorizes(store: tirx.BufferStore, along: tirx.Var) -> bool:
    """Whether TVM can vectorise the last axis, `along`.

    It can't where bool and integer logic mix, or where each element says by itself which other one is read.
    """
    if str(store.buffer.ty.dtype) == "bool":
        return False
    for load in loads(store.value):
        if str(load.source.ty.dtype) == "bool":
            return False
        looked_up = (inner for index in load.indices for inner in loads(index))
        if any(uses_var(place, along) for inner in looked_up for place in inner.indices):
            return False
    return True
