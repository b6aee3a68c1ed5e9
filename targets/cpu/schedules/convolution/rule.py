"""The rule that schedules convolutions; see the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.convolution.form import match_convolution
from greencc.targets.cpu.schedules.convolution.panels import PanelEmitter
from greencc.targets.cpu.schedules.convolution.plan import choose_plan
from greencc.targets.cpu.schedules.convolution.tiles import TileEmitter
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.kernel import check_tail, overwritable, parameter_index


@dataclass(frozen=True)
class ConvolutionRule:
    """Schedules convolutions by constant weights."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-convolution"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a convolution with its tail, or decline."""
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
        plan = choose_plan(self.target, conv)
        layout = conv.taps.layout(plan.rows, conv.groups)
        emitter = PanelEmitter if plan.readers else TileEmitter
        emitted = emitter(func, tail, conv, plan, layout).emit()
        overwrites: list[int] = []
        if conv.out_height % plan.height == 0:  # else two bands compute the same rows
            operands = [parameter_index(func, operand) for operand in (conv.data, conv.weight)]
            overwrites = [i for i in overwritable(func, tail.output, tail.value, tail.axes) if i not in operands]
        func = emitted.with_attr("greencc.rule", self.name)
        return Scheduled(func, self.name, {index: layout}, tuple(overwrites))
