"""The rule that schedules convolutions; see the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import RULE_ATTR, Declined, Scheduled
from greencc.targets.cpu.schedules.convolution.channels import ChannelEmitter
from greencc.targets.cpu.schedules.convolution.emitter import Emitter
from greencc.targets.cpu.schedules.convolution.form import Convolution, match_convolution
from greencc.targets.cpu.schedules.convolution.panels import PanelEmitter
from greencc.targets.cpu.schedules.convolution.plan import Plan, choose_plan
from greencc.targets.cpu.schedules.convolution.space import plan_space, planned
from greencc.targets.cpu.schedules.convolution.tiles import TileEmitter
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import Tail, check_tail, overwritable, parameter_index
from greencc.targets.tuning import space as tuning


@dataclass(frozen=True)
class ConvolutionRule:
    """Schedules convolutions by constant weights."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-convolution"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> tuning.Space | Declined:
        """See TunableRule."""
        form = self._form(func, constants)
        return form if isinstance(form, Declined) else plan_space(self.target, *form)

    def apply(
        self, func: tirx.PrimFunc, constants: frozenset[int], plan: tuning.Plan | None = None
    ) -> Scheduled | Declined:
        """Schedule a convolution with its tail, or decline."""
        form = self._form(func, constants)
        if isinstance(form, Declined):
            return form
        tail, conv = form
        if plan is None:
            return self._emit(func, tail, conv, choose_plan(self.target, conv))
        problem = plan_space(self.target, tail, conv).problem(plan)
        return self._emit(func, tail, conv, planned(plan)) if problem is None else Declined(problem)

    def _form(self, func: tirx.PrimFunc, constants: frozenset[int]) -> tuple[Tail, Convolution] | Declined:
        found = match_convolution(func, self.target)
        if isinstance(found, str):
            return Declined(found)
        tail, conv = found
        reason = check_tail(tail)
        if reason is not None:
            return Declined(reason)
        index = parameter_index(func, conv.weight)
        if index is None or index not in constants:
            return Declined("the weights are no constant")
        if conv.out_channels // conv.groups < 2:
            return Declined("a channel of the input serves one of the output")
        return tail, conv

    def _emit(self, func: tirx.PrimFunc, tail: Tail, conv: Convolution, plan: Plan) -> Scheduled:
        layout = conv.taps.layout(plan.filters, conv.groups)
        emitter = _emitter(plan)(func, tail, conv, plan, layout)
        emitted = emitter.emit()
        overwrites: list[int] = []
        if emitter.stores_once:  # else what is read again would be overwritten already
            operands = [parameter_index(func, operand) for operand in (conv.data, conv.weight)]
            overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in operands]
        weight = parameter_index(func, conv.weight)
        assert weight is not None  # _form saw to that
        return Scheduled(emitted.with_attr(RULE_ATTR, self.name), self.name, {weight: layout}, tuple(overwrites))


def _emitter(plan: Plan) -> type[Emitter]:
    if plan.over == "channels":
        return ChannelEmitter
    return PanelEmitter if plan.panel else TileEmitter
