"""A target whose kernels are scheduled by recorded plans, where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tvm import tirx

from greencc.targets.base import Declined, Rule, Scheduled, Target
from greencc.targets.tuning.space import Plan, TunableRule
from greencc.targets.wrapped import WrappedTarget


@dataclass(frozen=True)
class Decision:
    """Which rule schedules a kernel, and by which plan."""

    rule: str
    plan: Plan


class Plans(Protocol):
    """Decisions by kernel: a tuning database, or what a tuner tries."""

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        """What is known of a kernel; arguments are those of `Rule.apply`."""


class PlannedTarget(WrappedTarget):
    """A target that asks `plans` first. See Target."""

    def __init__(self, target: Target, plans: Plans) -> None:
        super().__init__(target)
        self._plans = plans

    def rules(self) -> Sequence[Rule]:
        """The target's rules, asked for recorded plans first: a plan that no rule takes any more is left."""
        rules = self._target.rules()
        planned = (_PlannedRule(rule, self._plans) for rule in rules if isinstance(rule, TunableRule))
        return (*planned, *rules)


@dataclass(frozen=True)
class _PlannedRule:
    rule: TunableRule
    plans: Plans

    @property
    def name(self) -> str:
        return self.rule.name

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        decision = self.plans.decision(func, constants)
        if decision is None:
            return Declined("nothing is recorded")
        if decision.rule != self.name:
            return Declined(f"a plan of {decision.rule} is recorded")
        outcome = self.rule.apply(func, constants, decision.plan)
        return replace(outcome, plan=decision.plan) if isinstance(outcome, Scheduled) else outcome
