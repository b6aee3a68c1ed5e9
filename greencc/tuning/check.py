"""The whole model by tuned kernels against itself by the default ones: what tuning is worth where it counts."""

from __future__ import annotations

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
from greencc.verification import Program, deviation


@dataclass(frozen=True)
class Check:
    """A model's time at one choice of its symbolic sizes.

    Attributes:
        sizes: by dimension; empty where all are fixed.
        default_ms, tuned_ms: median milliseconds of a run.
        ratio: tuned over default.
        interval: of the ratio, 95%.
        max_abs_difference: largest difference between the outputs.
    """

    sizes: Mapping[str, int]
    default_ms: float
    tuned_ms: float
    ratio: float
    interval: tuple[float, float]
    max_abs_difference: float

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "sizes": dict(self.sizes),
            "default_ms": self.default_ms,
            "tuned_ms": self.tuned_ms,
            "ratio": self.ratio,
            "interval_95": list(self.interval),
            "max_abs_difference": self.max_abs_difference,
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
        apart = max(deviation(outputs["tuned"][name], wanted) for name, wanted in outputs["default"].items())
        runs = {name: partial(_run, program, inputs) for name, program in programs.items()}
        series = measure(runs, meter, None, progress)
        ratio = ratio_of(series["tuned"], series["default"])
        times = {name: float(each.summary()["median"]) for name, each in series.items()}
        found.append(Check(point, times["default"], times["tuned"], ratio.value, (ratio.low, ratio.high), apart))
    return found


def _run(program: Program, inputs: Mapping[str, np.ndarray]) -> None:
    program.seconds(inputs, 1)
