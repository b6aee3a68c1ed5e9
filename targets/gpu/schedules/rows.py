"""The rows that the stages of a kernel have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import sym, tirx

from greencc.targets.gpu.schedules.stages import Stage, reads
from greencc.targets.tir import as_int, uses_var, volume

# Fewer rows than this leave most of a GPU idle: what has more elements than this in each is better done apart.
_FEW_ROWS, _WIDE = 16, 1 << 13


@dataclass(frozen=True)
class Rows:
    """The rows that stages have in common.

    Attributes:
        extents: sizes of the axes that tell rows apart.
        axes: for each stage, its axes that do, in the order of `extents`.
    """

    extents: tuple[tirx.Expr, ...]
    axes: tuple[tuple[tirx.Var, ...], ...]


def find_rows(stages: Sequence[Stage]) -> Rows | str:
    """The rows of stages, or why they have none in common. At least one stage must reduce."""
    if any(stage.is_opaque for stage in stages):
        return "a block is no plain store"
    first = next((stage for stage in stages if stage.is_reduction), None)
    if first is None:
        return "no reduction"
    kept = long_axes(first)
    extents = tuple(extent for _, extent in kept)
    results: dict[tirx.Var, list[int | None]] = {}
    all_axes = []
    for stage in stages:
        axes = _row_axes(stage, results, extents)
        if axes is None:
            return "its reductions and outputs are of different rows"
        if stage.is_reduction and len(long_axes(stage)) != len(axes):
            return "its reductions run over different axes"
        written = {buffer for other in stages for buffer in other.writes} - set(results) - set(stage.writes)
        if any(reads(stage, buffer) for buffer in written):
            return "a stage reads what another one stores"
        if stage.is_reduction and stage.is_in_order:
            for buffer in stage.writes:
                results[buffer] = [position_of(axis, axes) for axis in stage.axes]
        elif any(reads(other, buffer) for buffer in stage.writes for other in stages if other is not stage):
            return "a stage reads what another one stores"
        if not stage.is_reduction and _is_too_much(stage, axes, volume(list(extents))):
            return "an output is too large for the workgroups of so few rows"
        all_axes.append(axes)
    return Rows(extents, tuple(all_axes))


def rows_are_neighbours(stages: Sequence[Stage]) -> bool:
    """Whether the first reduction reads elements of different rows next to each other."""
    first = next(stage for stage in stages if stage.is_reduction)
    own = first.writes
    for load in first.reads():
        if not load.indices or any(load.source.same_as(buffer) for buffer in own):
            continue
        if any(uses_var(load.indices[-1], axis) for axis in first.reduced):
            return False
    return bool(long_axes(first))


def long_axes(stage: Stage) -> list[tuple[tirx.Var, tirx.Expr]]:
    """The axes of a stage that have more than one position, with their sizes."""
    return [(axis, extent) for axis, extent in zip(stage.axes, stage.extents, strict=True) if as_int(extent) != 1]


def position_of(axis: tirx.Var, axes: Sequence[tirx.Var]) -> int | None:
    """Which of some axes an axis is, or None."""
    return next((n for n, own in enumerate(axes) if own.same_as(axis)), None)


def _row_axes(
    stage: Stage, results: dict[tirx.Var, list[int | None]], extents: tuple[tirx.Expr, ...]
) -> tuple[tirx.Var, ...] | None:
    """Which axes of a stage number the rows: those by which it reads results, else its first."""
    found: dict[int, tirx.Var] = {}
    reads = [load for load in stage.reads() if load.source in results]
    for load in reads:
        for index, row in zip(load.indices, results[load.source], strict=True):
            if row is None:
                continue
            if not any(index.same_as(axis) for axis in stage.axes):
                return None
            if not found.setdefault(row, index).same_as(index):
                return None
    if not reads:
        found = {n: axis for n, (axis, _) in enumerate(long_axes(stage)[: len(extents)])}
    if sorted(found) != list(range(len(extents))) or len(set(found.values())) != len(extents):
        return None
    sizes = dict(zip(stage.axes, stage.extents, strict=True))
    analyzer = sym.Analyzer()
    if not all(analyzer.can_prove_equal(sizes[found[n]], extent) for n, extent in enumerate(extents)):
        return None
    return tuple(found[n] for n in range(len(extents)))


def _is_too_much(stage: Stage, axes: Sequence[tirx.Var], rows: tirx.Expr) -> bool:
    """Whether a map has so much in each of so few rows that it deserves a launch of its own."""
    inner = [extent for axis, extent in zip(stage.axes, stage.extents, strict=True) if position_of(axis, axes) is None]
    count, each = as_int(rows), as_int(volume(inner))
    return count is not None and count < _FEW_ROWS and each is not None and each > _WIDE
