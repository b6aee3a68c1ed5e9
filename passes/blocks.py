"""The repeated blocks of a model: layers whose input and output have one type, found by what lives between them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tvm import ir, relax

from greencc.ir import bindings_of, constant_array, operands, same_type, shape_of
from greencc.passes.base import node_name

# Longer blocks than so many parts are not looked for.
_LONGEST_PERIOD = 64
# Runs of blocks begin at a parameter, or at one of so many first values.
_MOST_STARTS = 64
# Of each operator in order: its name, and the shapes of the constants among its operands.
Signature = tuple[tuple[str, tuple[tuple[int, ...] | None, ...]], ...]


@dataclass(frozen=True)
class Block:
    """One of a run of like blocks.

    Attributes:
        node: name of the operator that it ends with.
        before: the value that goes in.
        behind: the value that comes out, of the same type.
    """

    node: str
    before: relax.Var
    behind: relax.Var


def find_blocks(function: relax.Function) -> list[Block]:
    """The run of like blocks that covers the most operators of a function, in order; none where nothing repeats.

    Two places enclose a part when one value lives on from the first to the second, and everything that the part
    computes from it ends in one value. Like parts have the same operators on constants of the same shapes; a block is
    the shortest series of parts that repeats. Of equally long runs the last is taken, which leaves what follows an
    embedding outside.
    """
    bindings = list(bindings_of(function))
    last_use = _last_uses(function, bindings)
    best: list[relax.Var] = []
    most = 0
    for number, start in enumerate([*function.params, *(binding.var for binding in bindings[:_MOST_STARTS])]):
        first = max(0, number - len(function.params) + 1)
        covered, ends = _longest_run(*_parts(bindings, last_use, start, first))
        if covered > most:
            most, best = covered, ends
        if 2 * most > len(bindings):
            break
    names = {binding.var: node_name(binding.var, binding.value) for binding in bindings}
    return [Block(names[behind], before, behind) for before, behind in itertools.pairwise(best)]


def _longest_run(ends: list[relax.Var], signatures: list[Signature]) -> tuple[int, list[relax.Var]]:
    """How many operators the run of like blocks covers that covers the most, and the values between its blocks."""
    best = (0, 0, 0)  # operators covered, first part, parts of a block
    for period in range(1, min(_LONGEST_PERIOD, len(signatures) // 2) + 1):
        for first in range(len(signatures) - 2 * period + 1):
            count = _repeats(ends, signatures, first, period)
            covered = sum(len(part) for part in signatures[first : first + count * period])
            if count < 2 or not _has_product(signatures[first : first + period]):
                continue
            # Fewer parts to a block are better, later runs are better.
            if covered > best[0] or (covered == best[0] and period == best[2]):
                best = covered, first, period
    covered, first, period = best
    if not covered:
        return 0, []
    count = _repeats(ends, signatures, first, period)
    return covered, ends[first : first + count * period + 1 : period]


def _repeats(ends: list[relax.Var], signatures: list[Signature], first: int, period: int) -> int:
    """How often the series of parts at `first` stands there, one behind the other, from a value to one of its type."""
    series, ty = signatures[first : first + period], ends[first].ty
    place, count = first, 0
    while signatures[place : place + period] == series and same_type(ty, ends[place + period].ty):
        place, count = place + period, count + 1
    return count


def _has_product(signatures: list[Signature]) -> bool:
    names = {name for part in signatures for name, _ in part}
    return bool(names & {"relax.matmul", "relax.nn.conv2d"})


def _last_uses(function: relax.Function, bindings: list[relax.Binding]) -> dict[relax.Var, int]:
    """Number of the binding that uses a value last."""
    last: dict[relax.Var, int] = {}
    for i, binding in enumerate(bindings):
        last.update((use, i) for use in _used(binding.value))
    last.update((use, len(bindings)) for use in _used(function.body.body))
    return last


def _used(value: relax.Expr) -> list[relax.Var]:
    uses = [value] if isinstance(value, relax.Var) else operands(value)
    return [use for use in uses if isinstance(use, relax.Var)]


def _parts(
    bindings: list[relax.Binding], last_use: dict[relax.Var, int], start: relax.Var, first: int
) -> tuple[list[relax.Var], list[Signature]]:
    """Values between which parts lie, and what each part computes: the part i from value i to value i + 1.

    Only what is computed from `start`, before the binding `first`, is looked at.
    """
    ends, signatures = [start], []
    reached = [start]  # what is computed from the last end, itself included, and lives
    part: list[tuple[str, tuple[tuple[int, ...] | None, ...]]] = []
    for i, binding in enumerate(bindings[first:], start=first):
        if not any(use in reached for use in _used(binding.value)):
            continue
        part.append(_signature(binding.value))
        reached = [var for var in (*reached, binding.var) if last_use.get(var, -1) > i]
        if reached == [binding.var] and shape_of(binding.var.ty) is not None:
            signatures.append(tuple(part))
            ends.append(binding.var)
            part = []
    return ends, signatures


def _signature(value: relax.Expr) -> tuple[str, tuple[tuple[int, ...] | None, ...]]:
    name = str(value.op.name) if isinstance(value, relax.Call) and isinstance(value.op, ir.Op) else type(value).__name__
    arrays = (constant_array(use) for use in operands(value))
    return name, tuple(None if array is None else array.shape for array in arrays)
