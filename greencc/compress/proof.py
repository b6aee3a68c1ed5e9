"""Compilation inside an accuracy budget: the search, the judgement of what was compiled, and the record of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tvm

from greencc.artifact.bundle import Array, Compiled
from greencc.calibration import Calibration
from greencc.compress.candidates import KINDS, apply_choices
from greencc.compress.cost import make_cost
from greencc.compress.data import split
from greencc.compress.metrics import Drop, make_metric
from greencc.compress.search import Budget, Found, Progress, References, Search, measure_drop
from greencc.compress.stages import with_unique_names
from greencc.errors import BudgetError, UserError
from greencc.ir import OUTPUTS_ATTR
from greencc.padding import ElidedPadding
from greencc.passes.pipeline import Observer, PipelineResult
from greencc.samples import read_dataset
from greencc.trials import seconds_by_turns
from greencc.verification import BuiltProgram, Program, open_reference

if TYPE_CHECKING:
    from greencc.targets.base import Target


@dataclass(frozen=True)
class Request:
    """What `--max-drop` asks for.

    Attributes:
        max_drop: the largest loss of accuracy that is allowed.
        metric: as `greencc.compress.metrics.make_metric` reads it.
        data: samples, as `greencc.samples.read_dataset` reads them.
        cost: a key of `greencc.compress.cost.COSTS`.
    """

    max_drop: float
    metric: str
    data: Path | Iterable[Mapping[str, Array]]
    cost: str = "latency"


class Compression:
    """Compresses one model within a budget.

    Args:
        request: the budget.
        model: the original model.
        module: the same as imported.
        target: what is compiled for.
        progress: told what is being done.

    Attributes:
        observed: what the calibration split shows of modules' values.
        uncompressed: the model without what was chosen, for the ratios of time and bytes.

    Raises:
        UserError: the request doesn't fit the model, or the target's code can't run here.
    """

    def __init__(
        self,
        request: Request,
        model: Path,
        module: tvm.IRModule,
        target: Target,
        progress: Progress,
    ) -> None:
        if not 0 <= request.max_drop < math.inf:
            raise UserError(f"--max-drop {request.max_drop:g}: a loss of accuracy is 0 or more, and finite")
        if not target.runs_here:
            raise UserError("--max-drop: candidates are measured, and this machine can't run code for the target")
        dataset = read_dataset(request.data, module["main"])
        self._budget = Budget(request.max_drop, make_metric(request.metric), dataset, split(dataset))
        self._target, self._progress = target, progress
        self._cost = make_cost(request.cost)
        self._original = open_reference(model, module, target)
        self.observed = Calibration(target, self._budget.calibration_runs)
        self._found: Found | None = None
        self._deviations: dict[str, float] = {}
        self.uncompressed = module

    def compress(
        self, module: tvm.IRModule, elided: ElidedPadding | None, observer: Observer | None = None
    ) -> PipelineResult:
        """Search, and apply what was found.

        Args:
            module: optimised, in single precision; padding is computed.
            elided: padding that outputs will be zeros for.
            observer: see `run_pipeline`.

        Raises:
            BudgetError: nothing fits.
        """
        outputs = [str(name) for name in module["main"].attrs[OUTPUTS_ATTR]]
        self._references = References(self._budget.dataset, self._original, outputs, elided)
        search = Search(module, self._target, self._budget, self._cost, self._references, self._progress)
        self._found = search.run()
        result = apply_choices(with_unique_names(module), KINDS, self._found.choices, self.observed, observer)
        stored = (report.stored.items() for report in result.reports)
        self._deviations = {node: deviation for one in stored for node, (_, deviation) in one}
        return result

    def judge(self, compiled: Compiled) -> dict[str, object]:
        """Measure what was compiled on data that nothing was chosen by, and give the record of it all.

        Raises:
            BudgetError: it is beyond the budget there.
        """
        if self._found is None:
            raise RuntimeError("judged before anything was compressed")
        budget, found = self._budget, self._found
        self._progress(f"judging on {len(budget.splits.judged)} runs")
        program = BuiltProgram(compiled, self._target)
        drop = measure_drop(budget.metric, budget.dataset, self._references, program, budget.splits.judged)
        if drop.value > budget.max_drop:
            raise BudgetError(
                f"--max-drop {budget.max_drop:g}: on held-out data the drop is {drop.value:.4g}, "
                f"though it was {found.drop.value:.4g} on the data it was chosen by: give more samples"
            )
        sample = budget.dataset.run(budget.splits.calibration[0])
        single = Program(self.uncompressed, self._target)
        ours, before = seconds_by_turns([program, single], sample)
        return self._record(found, drop) | {
            "time_ratio": ours / before,
            "bytes_ratio": program.weight_bytes / single.weight_bytes,
        }

    def _record(self, found: Found, judged: Drop) -> dict[str, object]:
        budget, data = self._budget, self._budget.dataset
        splits = {name: len(runs) * data.batch for name, runs in asdict(budget.splits).items()}
        chosen = set(found.chosen)
        return {
            "max_drop": budget.max_drop,
            "metric": budget.metric.name,
            "cost": self._cost.name,
            "data": {"sha256": data.sha256, "samples": splits},
            "selection": found.drop.as_json(),
            "judged": judged.as_json(),
            "operators": [
                {
                    "node": item.candidate.node,
                    "kind": item.candidate.label,
                    "chosen": item.candidate in chosen,
                    "sensitivity": item.sensitivity,
                    "cost_ratio": item.cost_ratio,
                    "bytes_saved": item.bytes_saved,
                    # Data choose levels: what is stored is not what a candidate was found as.
                    "largest_deviation": self._deviations.get(item.candidate.node, item.candidate.deviation)
                    if item.candidate in chosen
                    else item.candidate.deviation,
                }
                for item in found.assessed
            ],
            "steps": [step.as_json() for step in found.steps],
            "front": [
                {
                    "chosen": point.chosen,
                    "cost_ratio": point.cost_ratio,
                    "bytes_ratio": point.bytes_ratio,
                    "drop": point.drop.as_json(),
                }
                for point in found.front()
            ],
        }
