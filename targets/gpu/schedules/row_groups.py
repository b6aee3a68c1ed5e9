"""How many rows a workgroup of a row-wise kernel has, and how many threads each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx

from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.combine import elements_of
from greencc.targets.gpu.schedules.launch import power_of_two
from greencc.targets.gpu.schedules.rows import Rows, rows_are_neighbours
from greencc.targets.gpu.schedules.stages import Stage
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

_GROUP = 128
# Elements that a lane has at least, where that leaves enough lanes.
_PER_LANE = 4
# A reduction of no more elements than this has one lane.
_SHORT = 16
# With this many rows side by side there is enough work without lanes.
_MANY_ROWS = 1 << 14
_SYMBOLIC_LANES = 64
# What symbolic sizes are taken for when features of a plan are computed.
_USUAL_ROWS, _USUAL_LENGTH = 128, 128


@dataclass(frozen=True)
class Groups:
    """What a workgroup has: so many rows, each with so many threads; powers of two."""

    lanes: int
    rows: int

    @property
    def threads(self) -> int:
        """Threads of a workgroup."""
        return self.lanes * self.rows


def rows_space(stages: Sequence[Stage], rows: Rows, gpu: Capabilities) -> Space:
    """What can be chosen for stages with common rows."""
    count = volume(list(rows.extents))
    default = default_groups(stages, count, gpu)
    reductions = [stage for stage in stages if stage.is_reduction]
    longest = max((as_int(volume(list(stage.reduced_extents))) or _USUAL_LENGTH for stage in reductions), default=1)
    known = as_int(count) or _USUAL_ROWS
    can_share = all(elements_of(stage) is not None for stage in reductions)
    most = min(gpu.max_threads, max(default.lanes, power_of_two(longest))) if can_share else 1
    sizes = tuple(1 << n for n in range(most.bit_length()))
    knobs = (
        Knob("lanes", nearby(tuple(size for size in sizes if size <= most), default.lanes)),
        Knob("rows", nearby(tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= known), default.rows)),
    )

    def refuses(plan: Plan) -> str | None:
        groups = Groups(int(plan["lanes"]), int(plan["rows"]))
        if groups.threads > gpu.max_threads:
            return f"{groups.threads} threads"
        taken = 0 if groups.lanes == 1 or groups == default else groups.threads * _tree_bytes(reductions)
        return "too much shared memory" if taken > gpu.shared_bytes else None

    def features(plan: Plan) -> dict[str, float]:
        groups = Groups(int(plan["lanes"]), int(plan["rows"]))
        return {
            "threads": groups.threads,
            "groups": -(-known // groups.rows),
            "elements": -(-longest // groups.lanes),
            "levels": groups.lanes.bit_length() - 1,
        }

    traits = {"rows": as_int(count) or 0, "length": longest, "reductions": len(reductions), "stages": len(stages)}
    return Space(knobs, {"lanes": default.lanes, "rows": default.rows}, traits, refuses, features)


def _tree_bytes(reductions: Sequence[Stage]) -> int:
    """Shared memory that the combination of lanes takes for each thread: two places for every accumulator."""
    kinds = [str(buffer.ty.dtype) for stage in reductions for buffer in stage.writes]
    return sum(2 * max(1, int(tvm.DataType(kind).bits) // 8) for kind in kinds)


def default_groups(stages: Sequence[Stage], count: tirx.Expr, gpu: Capabilities) -> Groups:
    """What a workgroup has without a tuning record."""
    lanes = _lanes(stages, count, rows_are_neighbours(stages), gpu)
    per_group = max(1, min(_GROUP, gpu.max_threads) // lanes)
    known = as_int(count)
    return Groups(lanes, per_group if known is None else min(per_group, power_of_two(known)))


def _lanes(stages: Sequence[Stage], count: tirx.Expr, side_by_side: bool, gpu: Capabilities) -> int:
    """Threads for each row: a power of two."""
    reductions = [stage for stage in stages if stage.is_reduction]
    if any(elements_of(stage) is None for stage in reductions):
        return 1
    most = 1 << (min(gpu.max_threads, 256).bit_length() - 1)
    known = as_int(count)
    lengths = [as_int(volume(list(stage.reduced_extents))) for stage in reductions]
    longest = max((length for length in lengths if length is not None), default=0)
    symbolic = None in lengths
    if side_by_side:
        if known is not None and known >= _MANY_ROWS:
            return 1
        most = max(1, _GROUP // 32) if known is None or known >= 32 else most // power_of_two(known)
    if symbolic:
        return min(most, _SYMBOLIC_LANES)
    if longest <= _SHORT:
        return 1
    wanted = power_of_two(-(-longest // _PER_LANE))
    while wanted * len(reductions) * 16 * max(1, _GROUP // wanted) > gpu.shared_bytes:
        wanted //= 2
    return max(1, min(most, wanted))
