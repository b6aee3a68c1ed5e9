"""Everything without a reduction: one pass over memory, all blocks inlined into the last."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import InlineError, blocks, inline_blocks, is_reduction, is_written_in_order, overwritable
from greencc.targets.tir import as_int, loads, uses_var

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

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a kernel whose blocks are all spatial, or decline."""
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
        last = schedule.get(found[-1])
        overwrites: tuple[int, ...] = ()
        if is_written_in_order(last):
            axes = [axis.var for axis in last.iter_vars]
            overwrites = tuple(overwritable(func, last.body.buffer, last.body.value, axes))
        schedule_map(schedule, found[-1], self.target)
        return Scheduled(schedule.mod["main"], self.name, overwrites=overwrites)


def schedule_map(schedule: s_tir.Schedule, block: s_tir.SBlockRV, target: CpuTarget) -> None:
    """Parallelise and vectorise a spatial block in place."""
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
    total = extent if outer is None else _times(extent, as_int(schedule.get(outer).extent))
    large = total is None or total >= MIN_PARALLEL_ELEMENTS
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
    if large:
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


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b
