"""The whole model by tuned kernels against itself by the default ones: what tuning is worth where it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tvm
from tvm import tirx

from greencc.energy.meter import choose_meter
from greencc.golden import golden_inputs
from greencc.targets.base import Target
from greencc.targets.tuning.planned import Decision, PlannedTarget, Plans
from greencc.targets.tuning.workload import workload_key
from greencc.timing import measure, ratio_of
from greencc.verification import TOLERANCE, Program, deviation


@dataclass(frozen=True)
class Check:
    """A model's time at one choice of its symbolic sizes.

    Attributes:
        sizes: by dimension; empty where all are fixed.
        default_ms, tuned_ms: median milliseconds of a run.
        ratio: tuned over default.
        interval: of the ratio, 95%.
        max_abs_difference: largest difference between the outputs; infinite where one has no number and the other one.
        agrees: whether that is rounding.
    """

    sizes: Mapping[str, int]
    default_ms: float
    tuned_ms: float
    ratio: float
    interval: tuple[float, float]
    max_abs_difference: float
    agrees: bool

    @property
    def is_slower(self) -> bool:
        """Whether the model is certain to be slower by the plans."""
        return self.interval[0] > 1

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "sizes": dict(self.sizes),
            "default_ms": self.default_ms,
            "tuned_ms": self.tuned_ms,
            "ratio": self.ratio,
            "interval_95": list(self.interval),
            "max_abs_difference": self.max_abs_difference if math.isfinite(self.max_abs_difference) else None,
            "agrees": self.agrees,
        }


class Selected:
    """Plans of some kernels only. See greencc.targets.tuning.planned.Plans."""

    def __init__(self, plans: Plans, workloads: Collection[str]) -> None:
        self._plans, self._workloads = plans, workloads

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        """See Plans."""
        wanted = workload_key(func, constants) in self._workloads
        return self._plans.decision(func, constants) if wanted else None


class ModelCheck:
    """Times a model by plans against itself by the default schedules.

    Args:
        module: the optimised model.
        target: runs here.
        progress: told what is being done.
    """

    def __init__(self, module: tvm.IRModule, target: Target, progress: Callable[[str], None]) -> None:
        self._module, self._target, self._progress = module, target, progress
        progress("compiling the model with and without what was found")
        self._default = Program(module, target)

    def compare(self, plans: Plans, points: Sequence[Mapping[str, int]]) -> list[Check]:
        """Both, in turns, at each point: sizes of symbolic dimensions by name."""
        programs = {"default": self._default, "tuned": Program(self._module, PlannedTarget(self._target, plans))}
        meter = choose_meter().meter
        found = []
        for point in points:
            inputs = golden_inputs(self._module, at=point)
            outputs = {name: program(inputs) for name, program in programs.items()}
            pairs = [(outputs["tuned"][name], wanted) for name, wanted in outputs["default"].items()]
            apart = max((deviation(ours, wanted) for ours, wanted in pairs), default=0.0)
            agrees = all(_agree(ours, wanted) for ours, wanted in pairs)
            runs = {name: partial(_run, program, inputs) for name, program in programs.items()}
            series = measure(runs, meter, None, self._progress)
            ratio = ratio_of(series["tuned"], series["default"])
            times = {name: float(each.summary()["median"]) for name, each in series.items()}
            interval, difference = (ratio.low, ratio.high), math.inf if math.isnan(apart) else apart
            found.append(Check(point, times["default"], times["tuned"], ratio.value, interval, difference, agrees))
        return found

    def culprits(self, plans: Plans, workloads: Sequence[str], point: Mapping[str, int]) -> dict[str, Check]:
        """Of the kernels whose plans make the model slower at a point: how the model does with that one alone.

        Where none does by itself, the one that does worst.
        """
        alone = {key: self.compare(Selected(plans, {key}), [point])[0] for key in workloads}
        slower = {key: check for key, check in alone.items() if check.is_slower}
        worst = sorted(alone.items(), key=lambda item: -item[1].ratio)
        return slower or dict(worst[:1])


def _agree(ours: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether outputs differ by no more than kernels in single precision may."""
    finite = wanted[np.isfinite(wanted)]
    scale = max(1.0, float(np.max(np.abs(finite.astype(np.float64)), initial=0.0)))
    return deviation(ours, wanted) <= TOLERANCE * scale


def _run(program: Program, inputs: Mapping[str, np.ndarray]) -> None:
    program.seconds(inputs, 1)
