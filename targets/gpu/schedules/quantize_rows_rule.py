"""Kernels that quantise rows, by plan. They are emitted while a module is legalised, and again by another plan."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.levels import SignedWords
from greencc.targets.gpu.schedules.quantize_rows import default_threads, planned_rows_kernel
from greencc.targets.int8.levels import padded_depth
from greencc.targets.tir import as_int, volume
from greencc.targets.tuning.recipes import recipe_of
from greencc.targets.tuning.space import Knob, Plan, Space, nearby

_THREADS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class QuantizeRowsRule:
    """Chooses how many threads a row has.

    Attributes:
        target: what the code is for.
        name: QUANTIZE_RULE or NORMALIZE_RULE, of the kernels that it emits again.
    """

    target: GpuTarget
    name: str

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        recipe = recipe_of(func)
        if not func.attrs or str(func.attrs.get("greencc.rule", "")) != self.name or recipe is None:
            return Declined("no kernel of this rule")
        *lead, last = list(func.params[0].ty.shape)
        default = default_threads(padded_depth(int(last), SignedWords()), self.target.gpu)
        threads = tuple(n for n in _THREADS if n <= min(self.target.gpu.max_threads, 2 * max(default, 64)))
        traits = {"rows": as_int(volume(lead)) or 0, "length": int(last), "norm": int(recipe["epsilon"] is not None)}
        return Space((Knob("threads", nearby(threads, default)),), {"threads": default}, traits)

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
            self.target.gpu,
            SignedWords(),
            bool(recipe["with_factors"]),
            recipe["epsilon"],
            int(plan["threads"]),
        )
        return Scheduled(emitted.without_attr("global_symbol"), self.name)
