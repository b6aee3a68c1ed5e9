"""The choices that a rule offers for one kernel: knobs with a few values each, and what a rule would take by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol, TypeAlias, runtime_checkable

from tvm import tirx

from greencc.errors import GreenccError
from greencc.targets.base import Declined, Rule, Scheduled

Value: TypeAlias = int | str
"""A choice, as JSON holds it."""
Plan: TypeAlias = Mapping[str, Value]
"""A value for every knob of a space, by the knob's name."""


class SpaceError(GreenccError):
    """A space that isn't one: a fault of its rule."""


@dataclass(frozen=True)
class Knob:
    """One choice.

    Attributes:
        name: unique in its space; part of tuning records, so a new meaning needs a new name.
        values: what can be chosen; numbers ascend, so that neighbours are alike.
    """

    name: str
    values: tuple[Value, ...]


def _anything(plan: Plan) -> str | None:
    return None


def _nothing(plan: Plan) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Space:
    """What can be chosen for one kernel.

    Attributes:
        knobs: the choices.
        default: where a search begins; each value is one of its knob's. It is what the rule takes without a tuning
            record, if it takes the kernel then.
        traits: numbers that say which kernel it is, to a model of costs that learns from several: sizes, counts.
        refuses: why values don't go together, or None; cheap, because a search asks often. A rule may still decline.
        features: numbers that follow from a plan and decide about time, such as the share of work that is padding.
    """

    knobs: tuple[Knob, ...]
    default: Plan
    traits: Mapping[str, float] = field(default_factory=dict)
    refuses: Callable[[Plan], str | None] = _anything
    features: Callable[[Plan], Mapping[str, float]] = _nothing

    def __post_init__(self) -> None:
        for knob in self.knobs:
            if self.default[knob.name] not in knob.values:
                raise SpaceError(f"the default of '{knob.name}', {self.default[knob.name]}, is none of its values")

    @property
    def size(self) -> int:
        """Number of plans, those included whose values don't go together."""
        return prod(len(knob.values) for knob in self.knobs)

    def problem(self, plan: Plan) -> str | None:
        """Why `plan` is none of this space's, as one that another version recorded may be, or None."""
        if set(plan) != {knob.name for knob in self.knobs}:
            return "it has other knobs"
        for knob in self.knobs:
            if plan[knob.name] not in knob.values:
                return f"{knob.name} is {plan[knob.name]}"
        return self.refuses(plan)


@runtime_checkable
class TunableRule(Rule, Protocol):
    """A rule whose schedules follow a plan."""

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """What can be chosen for `func`, or why the rule doesn't apply; arguments are those of `apply`."""

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule `func` by `plan`, or by the default plan; declines a plan that isn't in the space."""


def nearby(values: tuple[int, ...], *more: int) -> tuple[int, ...]:
    """The values of a knob of numbers: `values` and `more`, ascending, each once, those below 1 left out."""
    return tuple(sorted({value for value in (*values, *more) if value >= 1}))
