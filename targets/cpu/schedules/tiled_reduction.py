"""Convolutions, pooling and other reductions that no special rule takes: a register tile of outputs.

    for outer output axes (parallel):
        tile[c, x] = 0                                # c: second-innermost kept axis or channels, x: innermost
        for reduced axes: for c (unrolled): for x (vector): tile[c, x] += ...
        output = tail(tile)

What is fused in front (padding) is computed first, as a pass of its own; what is fused behind reads the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import tvm
from tvm import s_tir, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS, schedule_map
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.factors import plain_factors
from greencc.targets.kernel import InlineError, blocks, inline_blocks, is_reduction, widened
from greencc.targets.tir import as_int
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

# Position of the output channels in NCHW.
CHANNEL_AXIS = 1
# More accumulators don't help: the loads of the inputs are shared by enough channels.
MAX_CHANNELS = 12


@dataclass(frozen=True)
class Tiling:
    """How outputs are tiled.

    Attributes:
        columns: outputs of a vector; a divisor of the innermost kept axis.
        channels: vectors side by side; a divisor of the channels.
        parallel: whether threads share the tiles.
    """

    columns: int
    channels: int
    parallel: bool

    @staticmethod
    def of(plan: Plan) -> Tiling:
        """What a plan of the rule's space stands for."""
        return Tiling(int(plan["columns"]), int(plan["channels"]), plan["threads"] == "all")


@dataclass(frozen=True)
class _Form:
    """A kernel with one reduction.

    Attributes:
        schedule, found: its blocks.
        position: which of them is the reduction.
        kept, reduced: the sizes of its axes, None for open ones.
        written: the sizes of the result.
        is_product: whether products are summed.
    """

    schedule: s_tir.Schedule
    found: list[s_tir.SBlockRV]
    position: int
    kept: list[int | None]
    reduced: list[int | None]
    written: list[int | None]
    is_product: bool

    @property
    def channels(self) -> int:
        """How many vectors could lie side by side."""
        return (self.kept[CHANNEL_AXIS] or 1) if len(self.kept) > CHANNEL_AXIS + 1 else 1

    @property
    def work(self) -> int:
        """Elements that are reduced, an open size counting as many."""
        outputs = prod(MIN_PARALLEL_ELEMENTS if extent is None else extent for extent in self.written)
        return outputs * (1 if None in self.reduced else prod(extent or 1 for extent in self.reduced))


@dataclass(frozen=True)
class TiledReductionRule:
    """See the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-tiled-reduction"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = _form(func)
        return form if isinstance(form, Declined) else self._space(form)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a kernel with one reduction, or decline."""
        form = _form(func)
        if isinstance(form, Declined):
            return form
        tiling = self._default(form)
        if plan is not None:
            space = self._space(form)
            problem = space.reason if isinstance(space, Declined) else space.problem(plan)
            if problem is not None:
                return Declined(problem)
            tiling = Tiling.of(plan)
        try:
            _schedule(form, tiling, self.target)
        except (InlineError, s_tir.ScheduleError, ValueError) as error:
            return Declined(f"it can't be tiled ({str(error).splitlines()[0][:80]})")
        return Scheduled(form.schedule.mod["main"], self.name)

    def _space(self, form: _Form) -> Space | Declined:
        if form.is_product:  # most have a rule of their own, beside whose plans these would be a waste of trials
            return Declined("it sums products")
        default = self._default(form)
        widest = _divisors(form.kept[-1] or 1, 2 * self.target.lanes())[-4:]
        knobs = (
            Knob("columns", nearby(tuple(widest), default.columns)),
            Knob("channels", tuple(_divisors(form.channels, MAX_CHANNELS))),
            Knob("threads", ("all", "one")),
        )
        chosen: Plan = {
            "columns": default.columns,
            "channels": default.channels,
            "threads": "all" if default.parallel else "one",
        }
        sizes = {f"kept{i}": extent or 0 for i, extent in enumerate(form.kept)}
        return Space(knobs, chosen, {**sizes, "work": form.work})

    def _default(self, form: _Form) -> Tiling:
        # Vectors wider than a register make LLVM spill.
        columns = _divisors(form.kept[-1] or 1, self.target.lanes())[-1]
        channels = _divisors(form.channels, min(3 * self.target.vector_registers // 4, MAX_CHANNELS))[-1]
        return Tiling(columns, channels, form.work >= MIN_PARALLEL_ELEMENTS)


def _form(func: tirx.PrimFunc) -> _Form | Declined:
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
    spatial = kinds.count(0)
    extents = [as_int(axis.dom.extent) for axis in node.iter_vars]
    if extents[spatial - 1] is None:
        return Declined("its innermost kept axis is symbolic")
    last = found[-1] if found[position + 1 :] else found[position]
    written = [as_int(schedule.get(loop).extent) for loop in schedule.get_loops(last)]
    is_product = plain_factors(node.body, widened) is not None
    return _Form(schedule, found, position, extents[:spatial], extents[spatial:], written[:spatial], is_product)


def _schedule(form: _Form, tiling: Tiling, target: CpuTarget) -> None:
    schedule, found, position, spatial = form.schedule, form.found, form.position, len(form.kept)
    before, reduction, after = found[:position], found[position], found[position + 1 :]
    inline_blocks(schedule, [*before[:-1], *after[:-1]])
    if before:
        schedule_map(schedule, before[-1], target)
    if after:
        last = after[-1]
        if len(schedule.get(last).iter_vars) != spatial:
            raise ValueError("the tail has another rank")
    else:
        last = schedule.cache_write(reduction, 0, "local")
    loops = schedule.get_loops(last)
    x_outer, x = schedule.split(loops[-1], [None, tiling.columns])
    outer = list(loops[:-1])
    inner = [x]
    if tiling.channels > 1:
        c_outer, c = schedule.split(outer[CHANNEL_AXIS], [None, tiling.channels])
        outer[CHANNEL_AXIS] = c_outer
        inner = [c, x]
    schedule.reorder(*outer, x_outer, *inner)
    schedule.compute_at(reduction, x_outer, preserve_unit_loops=True)
    if after:
        schedule.set_scope(reduction, 0, "local")
    kept = schedule.get_loops(reduction)[len(outer) + 1 :]
    kept_spatial, reduced = kept[:spatial], kept[spatial:]
    schedule.reorder(*reduced, *kept_spatial)
    schedule.vectorize(x)
    schedule.vectorize(kept_spatial[-1])
    for loop in kept_spatial[:-1]:
        schedule.unroll(loop)
    if tiling.channels > 1:
        schedule.unroll(inner[0])
    if tiling.parallel:
        schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else (outer[0] if outer else x_outer))
    # Last: a decomposed reduction is no longer a reduction block that loops may be annotated around.
    schedule.decompose_reduction(reduction, reduced[0])


def _divisors(extent: int, limit: int) -> list[int]:
    return [d for d in range(1, min(extent, limit) + 1) if extent % d == 0]
