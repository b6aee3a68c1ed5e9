"""The rule that schedules passes over rows by recorded plans; see the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import RULE_ATTR, Declined, Scheduled
from greencc.targets.cpu.schedules.rows.emitter import RowEmitter, kept_stages
from greencc.targets.cpu.schedules.rows.form import Rows, match_rows, same_extents
from greencc.targets.cpu.schedules.rows.plan import Passing, passing_space
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tuning.space import Plan, Space


@dataclass(frozen=True)
class RowsRule:
    """Schedules kernels that reduce along rows. It has no plan of its own."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "cpu-rows"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = match_rows(func)
        return Declined(form) if isinstance(form, str) else self._space(form)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a kernel by a plan, or decline."""
        if plan is None:
            return Declined("nothing is recorded")
        form = match_rows(func)
        if isinstance(form, str):
            return Declined(form)
        problem = self._space(form).problem(plan)
        if problem is not None:
            return Declined(problem)
        passing = Passing.of(plan)
        emitted = RowEmitter(func, form, passing).emit().with_attr(RULE_ATTR, self.name)
        return Scheduled(emitted, self.name, overwrites=_overwrites(func, form, passing))

    def _space(self, form: Rows) -> Space:
        kept, result = kept_stages(form), form.stages[-1]
        keepable = len(kept) == 1 and result.reduction is None and same_extents(kept[0].extents, result.extents)
        return passing_space(self.target, form, keepable)


def _overwrites(func: tirx.PrimFunc, form: Rows, passing: Passing) -> tuple[int, ...]:
    """Parameters that the result may overwrite: all stages read them at the place that they compute, in time."""
    result, kept = form.stages[-1], kept_stages(form)
    writer = kept[0] if kept and passing.kept == "output" else result
    late = form.stages[form.stages.index(writer) + 1 :]
    found = []
    for index, param in enumerate(func.params):
        dims = list(param.ty.shape)
        alike = str(param.ty.dtype) == str(result.buffer.ty.dtype) and same_extents(dims, list(result.buffer.ty.shape))
        readers = [stage for stage in form.stages if stage.reads(param)]
        in_time = not any(stage in late for stage in readers)
        if alike and readers and in_time and all(stage.reads_only_here(param) for stage in readers):
            found.append(index)
    return tuple(found)
