"""Plans drawn from the spaces of one rule, so that whole modules can be run with schedules that nobody would choose."""

from __future__ import annotations

import random

from tvm import tirx

from greencc.targets.base import RULE_ATTR, Declined
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.space import Plan, Space, TunableRule
from greencc.targets.tuning.workload import workload_key


class SampledPlans:
    """Draws a plan for every kernel that the rule takes; `taken` holds them by the kernels' keys."""

    def __init__(self, rule: TunableRule, seed: int) -> None:
        self._rule, self._random = rule, random.Random(seed)
        self.taken: dict[str, Plan] = {}

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        """See Plans."""
        if func.attrs and str(func.attrs.get(RULE_ATTR, self._rule.name)) != self._rule.name:
            return None
        space = self._rule.space(func, constants)
        if isinstance(space, Declined):
            return None
        key = workload_key(func, constants)
        if key not in self.taken:
            self.taken[key] = draw(space, self._random)
        return Decision(self._rule.name, self.taken[key])


def draw(space: Space, generator: random.Random) -> Plan:
    """One of the plans that go together."""
    while True:
        plan = {knob.name: generator.choice(knob.values) for knob in space.knobs}
        if space.problem(plan) is None:
            return plan


def rule_of(target: CpuTarget, name: str) -> TunableRule:
    """A target's rule by its name."""
    (found,) = (rule for rule in target.rules() if rule.name == name)
    assert isinstance(found, TunableRule)
    return found
