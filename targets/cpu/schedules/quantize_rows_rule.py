"""Kernels that quantise rows, by plan. They are emitted while a module is legalised, and again by another plan."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.schedules.quantize_rows import is_parallel, planned_rows_kernel
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.recipes import recipe_of
from greencc.targets.tuning.space import Knob, Plan, Space

# More elements than one thread is done with before several have started.
MAX_SERIAL = 1 << 17


@dataclass(frozen=True)
class QuantizeRowsRule:
    """Chooses whether threads share rows: of a few thousand elements it depends on the machine.

    Attributes:
        target: what the code is for.
        name: QUANTIZE_RULE or NORMALIZE_RULE, of the kernels that it emits again.
    """

    target: CpuTarget
    name: str

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        if not func.attrs or str(func.attrs.get("greencc.rule", "")) != self.name or recipe_of(func) is None:
            return Declined("no kernel of this rule")
        shape = list(func.params[0].ty.shape)
        elements = as_int(volume(shape))
        if elements is None or elements > MAX_SERIAL:
            return Declined("rows are many, or may be: threads share them")
        default: Plan = {"threads": "all" if is_parallel(shape) else "one"}
        return Space((Knob("threads", ("all", "one")),), default, {"elements": elements})

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """The kernel as it is, or by another plan."""
        if plan is None:
            return Scheduled(func, self.name)
        space = self.space(func, constants)
        problem = space.reason if isinstance(space, Declined) else space.problem(plan)
        recipe = recipe_of(func)
        if problem is not None or recipe is None:
            return Declined(problem or "no kernel of this rule")
        emitted = planned_rows_kernel(
            list(func.params[0].ty.shape),
            self.target,
            dot_product(self.target),
            bool(recipe["with_factors"]),
            recipe["epsilon"],
            plan["threads"] == "all",
        )
        return Scheduled(emitted.without_attr("global_symbol"), self.name)
