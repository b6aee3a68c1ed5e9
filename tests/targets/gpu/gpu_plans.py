"""Plans drawn at random from the spaces of a target's rules."""

from __future__ import annotations

import random

from tvm import s_tir, tirx

from greencc.targets.base import RULE_ATTR, Declined, Target
from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.space import Plan, Space, TunableRule
from greencc.targets.tuning.workload import workload_key


def spaces_of(func: tirx.PrimFunc, constants: frozenset[int], target: Target) -> dict[str, tuple[TunableRule, Space]]:
    """The rules that have a space for a kernel, with it."""
    own = str(func.attrs[RULE_ATTR]) if func.attrs and RULE_ATTR in func.attrs else None
    found = {}
    for rule in target.rules():
        if isinstance(rule, TunableRule) and own in (None, rule.name):
            try:
                space = rule.space(func, constants)
            except s_tir.ScheduleError:
                continue
            if not isinstance(space, Declined):
                found[rule.name] = (rule, space)
    return found


def draw(space: Space, chance: random.Random) -> Plan:
    """A plan that isn't refused."""
    for _ in range(10000):
        plan = {knob.name: chance.choice(knob.values) for knob in space.knobs}
        if space.problem(plan) is None:
            return plan
    raise AssertionError("hardly any plan of the space is allowed")


class SampledPlans:
    """Plans for a `PlannedTarget`: each kernel gets one of its spaces' plans, by chance.

    Attributes:
        chosen: decisions by the kernel's key.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._chance = target, random.Random(seed)
        self.chosen: dict[str, Decision | None] = {}

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        """See Plans."""
        key = workload_key(func, constants)
        if key not in self.chosen:
            spaces = spaces_of(func, constants, self._target)
            name = self._chance.choice(sorted(spaces)) if spaces else None
            self.chosen[key] = None if name is None else Decision(name, draw(spaces[name][1], self._chance))
        return self.chosen[key]
