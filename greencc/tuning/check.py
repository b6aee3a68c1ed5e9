"""The whole model by tuned kernels against itself by the default ones: what tuning is worth where it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tvm

from greencc.energy.meter import choose_meter
from greencc.golden import golden_inputs
from greencc.targets.base import Target
from greencc.targets.tuning.planned import PlannedTarget, Plans
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


def check_model(
    module: tvm.IRModule,
    target: Target,
    plans: Plans,
    points: Sequence[Mapping[str, int]],
    progress: Callable[[str], None],
) -> list[Check]:
    """Time the model both ways, in turns, at each point.

    Args:
        module: the optimised model.
        target: runs here.
        plans: what was found.
        points: sizes of symbolic dimensions by name.
        progress: told what is being done.
    """
    progress("compiling the model with and without what was found")
    programs = {"default": Program(module, target), "tuned": Program(module, PlannedTarget(target, plans))}
    meter = choose_meter().meter
    found = []
    for point in points:
        inputs = golden_inputs(module, at=point)
        outputs = {name: program(inputs) for name, program in programs.items()}
        pairs = [(outputs["tuned"][name], wanted) for name, wanted in outputs["default"].items()]
        apart = max((deviation(ours, wanted) for ours, wanted in pairs), default=0.0)
        agrees = all(_agree(ours, wanted) for ours, wanted in pairs)
        runs = {name: partial(_run, program, inputs) for name, program in programs.items()}
        series = measure(runs, meter, None, progress)
        ratio = ratio_of(series["tuned"], series["default"])
        times = {name: float(each.summary()["median"]) for name, each in series.items()}
        interval = (ratio.low, ratio.high)
        difference = math.inf if math.isnan(apart) else apart
        found.append(Check(point, times["default"], times["tuned"], ratio.value, interval, difference, agrees))
    return found


def _agree(ours: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether outputs differ by no more than kernels in single precision may."""
    finite = wanted[np.isfinite(wanted)]
    scale = max(1.0, float(np.max(np.abs(finite.astype(np.float64)), initial=0.0)))
    return deviation(ours, wanted) <= TOLERANCE * scale


def _run(program: Program, inputs: Mapping[str, np.ndarray]) -> None:
    program.seconds(inputs, 1)
