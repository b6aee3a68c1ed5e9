"""The rule that schedules depthwise convolutions by recorded plans; see the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import RULE_ATTR, Declined, Scheduled
from greencc.targets.cpu.schedules.convolution.form import Convolution, match_convolution
from greencc.targets.cpu.schedules.convolution.taps import FloatTaps
from greencc.targets.cpu.schedules.depthwise.emitter import DepthwiseEmitter
from greencc.targets.cpu.schedules.depthwise.plan import MAX_UNROLLED, Tiling, tiling_space
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import Tail, check_tail
from greencc.targets.tir import as_int
from greencc.targets.tuning.space import Plan, Space


@dataclass(frozen=True)
class DepthwiseRule:
    """Schedules float32 convolutions in which a channel meets filters of its own. It has no plan of its own."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "cpu-depthwise"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        form = self._form(func)
        return form if isinstance(form, Declined) else self._space(*form)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a depthwise convolution by a plan, or decline."""
        if plan is None:
            return Declined("nothing is recorded")
        form = self._form(func)
        if isinstance(form, Declined):
            return form
        problem = self._space(*form).problem(plan)
        if problem is not None:
            return Declined(problem)
        tail, conv = form
        emitted = DepthwiseEmitter(func, tail, conv, Tiling.of(plan), self.target.lanes()).emit()
        return Scheduled(emitted.with_attr(RULE_ATTR, self.name), self.name)

    def _space(self, tail: Tail, conv: Convolution) -> Space:
        return tiling_space(self.target, conv, as_int(tail.output.ty.shape[0]))

    def _form(self, func: tirx.PrimFunc) -> tuple[Tail, Convolution] | Declined:
        found = match_convolution(func, self.target)
        if isinstance(found, str):
            return Declined(found)
        tail, conv = found
        reason = check_tail(tail)
        if reason is not None:
            return Declined(reason)
        if conv.depth != 1 or not isinstance(conv.taps, FloatTaps):
            return Declined("no depthwise convolution of float32")
        if conv.kernel[0] * conv.kernel[1] > MAX_UNROLLED:
            return Declined("the filters are too large to be written out")
        return tail, conv
