"""The search for the cheapest assignment inside an accuracy budget. See docs/decisions/0012."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from greencc.artifact.bundle import Array
from greencc.compress.candidates import KINDS, Assessed, Candidate, Choices, Kind, choices_of, find_candidates
from greencc.compress.cost import Cost
from greencc.compress.data import Splits
from greencc.compress.metrics import Drop, Metric, RelativeL2
from greencc.compress.ordering import in_effect, order
from greencc.compress.stages import Stages, with_unique_names
from greencc.errors import BudgetError
from greencc.padding import ElidedPadding
from greencc.samples import Dataset
from greencc.targets.base import Target
from greencc.verification import Reference, Runnable

Progress = Callable[[str], None]
Runner = Callable[[Mapping[str, Array]], Mapping[str, Array]]
# Shares of the model's cost below this are within what measurements differ by.
_NOISE = 0.005
# Runs that ranges and sensitivities are taken over, and that the stages' values are kept for.
_MOST_CALIBRATION = 64
# Operators that are tried one by one behind the prefix that bisection finds.
_MOST_TRIES = 24
# A candidate whose predicted drop is so many times the budget is not run: of relative L2, and of other metrics.
_HOPELESS_L2, _HOPELESS = 1.01, 1.2
_GONE, _REPLACED = "its layer is dropped", "another precision saves more"
_REACHES = "no stage holds all that it changes"


@dataclass(frozen=True)
class Budget:
    """What the user allows.

    Attributes:
        max_drop: the largest drop of the metric.
        metric: what the drop is of.
        dataset: where it is measured.
        splits: what of it is used for what.
    """

    max_drop: float
    metric: Metric
    dataset: Dataset
    splits: Splits

    @property
    def calibration_runs(self) -> list[dict[str, Array]]:
        """Inputs of the runs to learn from."""
        return [self.dataset.run(number) for number in self.splits.calibration[:_MOST_CALIBRATION]]


@dataclass(frozen=True)
class Step:
    """A decision of the search: what was tried, what was decided, and why."""

    candidates: tuple[Candidate, ...]
    accepted: bool
    reason: str
    drop: Drop | None = None

    def as_json(self) -> dict[str, object]:
        """The fields as JSON values."""
        drop = None if self.drop is None else self.drop.as_json()
        choices = [{"node": candidate.node, "kind": candidate.label} for candidate in self.candidates]
        return {"choices": choices, "accepted": self.accepted, "reason": self.reason, "drop": drop}


@dataclass(frozen=True)
class Point:
    """An assignment that was measured on the selection split."""

    chosen: int
    cost_ratio: float
    bytes_ratio: float
    drop: Drop


@dataclass
class Found:
    """What a search found.

    Attributes:
        chosen: the accepted candidates.
        assessed: all candidates with what was measured of them.
        steps: every decision, in order.
        points: assignments that were measured.
        drop: of the chosen ones, on the selection split.
    """

    chosen: tuple[Candidate, ...]
    assessed: tuple[Assessed, ...]
    steps: tuple[Step, ...]
    points: tuple[Point, ...]
    drop: Drop

    @property
    def choices(self) -> Choices:
        """What is done in the final compilation."""
        return choices_of(self.chosen)

    def front(self) -> list[Point]:
        """The measured assignments that no other beats in drop, cost and bytes at once."""
        best = [
            point
            for point in self.points
            if not any(
                other.drop.value <= point.drop.value
                and other.cost_ratio <= point.cost_ratio
                and other.bytes_ratio <= point.bytes_ratio
                and other != point
                for other in self.points
            )
        ]
        return sorted(set(best), key=lambda point: point.drop.value)


@dataclass
class Search:
    """A search on one module.

    Args:
        module: optimised, in single precision.
        target: what is compiled for; its code must run here.
        budget: what is allowed.
        cost: what is to be as low as possible.
        reference: the original model's outputs.
        progress: told what is being done.
        kinds: what may be chosen.
    """

    module: tvm.IRModule
    target: Target
    budget: Budget
    cost: Cost
    reference: References
    progress: Progress
    kinds: tuple[Kind, ...] = KINDS

    def run(self) -> Found:
        """Search.

        Raises:
            BudgetError: nothing fits.
        """
        module = with_unique_names(self.module)
        self._stages = Stages(module, self.target, self.kinds)
        self.progress("running the calibration data")
        self._stages.calibrate(self.budget.calibration_runs)
        self._steps: list[Step] = []
        self._points: list[Point] = []
        self._drops: dict[frozenset[Candidate], Drop] = {}
        self._require_start()
        assessed = tuple(self._assess(module))
        ordered, passed_over = order([item for item in assessed if self._is_useful(item)])
        fitting, drop = self._longest_prefix(ordered)
        # The first behind the prefix was refused with what stands before it.
        rest = [*ordered[len(fitting) + 1 :], *passed_over]
        chosen, drop = self._one_by_one(rest, in_effect(fitting), drop)
        self._explain(chosen)
        if not chosen or drop is None:
            raise BudgetError(
                f"--max-drop {self.budget.max_drop:g}: no candidate is within the budget: {self._nearest(assessed)}"
            )
        return Found(tuple(item.candidate for item in chosen), assessed, tuple(self._steps), tuple(self._points), drop)

    def _require_start(self) -> None:
        """Refuse a model that is beyond the budget before anything is chosen."""
        self.progress("measuring what the search starts from")
        drop = self.drop_of([])
        if drop.bound > self.budget.max_drop:
            raise BudgetError(
                f"--max-drop {self.budget.max_drop:g}: what was asked for besides is beyond it: "
                f"the {self.budget.metric.name} drop is {drop.value:.4g} (95% bound {drop.bound:.4g})"
            )

    def drop_of(self, items: Sequence[Assessed]) -> Drop:
        """The drop of an assignment on the selection split."""
        candidates = [item.candidate for item in in_effect(items)]
        known = frozenset(candidates)
        if known in self._drops:
            return self._drops[known]
        choices = choices_of(candidates)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            return self.reference.blanked(self._stages.run(choices, inputs), inputs)

        budget = self.budget
        drop = measure_drop(budget.metric, budget.dataset, self.reference, run, budget.splits.selection)
        return self._drops.setdefault(known, drop)

    def _assess(self, module: tvm.IRModule) -> Iterator[Assessed]:
        """Measure every candidate alone: cost and bytes of its stages, and the outputs that it causes."""
        stages = self._stages
        candidates = [*stages.layers(), *self._held(find_candidates(module, self.kinds))]
        states = [stages.state(number) for number in range(len(stages.stages))]
        base = [stages.program(number, {}) for number in range(len(stages.stages))]
        costs = [self.cost.by_turns([program], states[i][0])[0] for i, program in enumerate(base)]
        all_bytes = sum(program.weight_bytes for program in base)
        expected = [stages.run({}, state) for state in states[0]]
        for i, candidate in enumerate(candidates):
            self.progress(f"measuring candidate {i + 1} of {len(candidates)}")
            numbers, choices = stages.stages_of(candidate), choices_of([candidate])
            if candidate.inside:
                ours, before, left = 0.0, sum(costs[number] for number in numbers), 0
            else:
                program = stages.program(numbers[0], choices)
                ours, before = self._costs(program, base[numbers[0]], states[numbers[0]][0])
                left = program.weight_bytes
            statistics = [
                RelativeL2().statistics(wanted, stages.run(choices, state, numbers[0]), {})
                for wanted, state in zip(expected, states[numbers[0]], strict=True)
            ]
            saved = sum(base[number].weight_bytes for number in numbers) - left
            yield Assessed(
                candidate,
                cost_ratio=ours / before,
                cost_share=(before - ours) / sum(costs),
                bytes_saved=saved,
                bytes_share=saved / max(all_bytes, 1),
                sensitivity=RelativeL2().drop(statistics).value,
            )

    def _held(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that a stage shows the effect of; for the others it is written down that none does."""
        held = [candidate for candidate in candidates if self._stages.holds(candidate)]
        self._steps += [Step((one,), accepted=False, reason=_REACHES) for one in candidates if one not in held]
        return held

    def _costs(self, program: Runnable, base: Runnable, state: Mapping[str, Array]) -> list[float]:
        """Costs of a stage with a candidate and without it; a disadvantage must show twice, or a neighbour made it."""
        first = self.cost.by_turns([program, base], state)
        if first[0] <= first[1]:
            return first
        second = self.cost.by_turns([program, base], state)
        return min(first, second, key=lambda pair: pair[0] / pair[1])

    def _is_useful(self, item: Assessed) -> bool:
        """Whether a candidate may be tried; if not, the reason is written down."""
        if item.cost_share < -_NOISE:
            reason = f"costs more: {-item.cost_share:.1%} of the model's {self.cost.name}"
        elif item.cost_share < _NOISE and item.bytes_saved <= 0:
            reason = f"saves neither {self.cost.name} nor bytes"
        else:
            return True
        self._steps.append(Step((item.candidate,), accepted=False, reason=reason))
        return False

    def _try(self, items: Sequence[Assessed], new: Sequence[Assessed]) -> tuple[bool, Drop]:
        """Measure an assignment on the selection split, for the sake of what is new in it."""
        items = in_effect(items)
        self.progress(f"measuring {len(items)} choices on {len(self.budget.splits.selection)} runs")
        drop = self.drop_of(items)
        fits = drop.bound <= self.budget.max_drop
        self._points.append(
            Point(
                len(items),
                1 - sum(item.cost_share for item in items),
                1 - sum(item.bytes_share for item in items),
                drop,
            )
        )
        relation = "within" if fits else "beyond"
        reason = f"bound {drop.bound:.4g} is {relation} the budget"
        self._steps.append(Step(tuple(item.candidate for item in new), fits, reason, drop))
        return fits, drop

    def _longest_prefix(self, items: Sequence[Assessed]) -> tuple[list[Assessed], Drop | None]:
        """The longest beginning of the list that is within the budget, by bisection behind some guesses."""
        fitting, drop = 0, None
        beyond = len(items) + 1
        guesses = self._guesses(items)
        while beyond - fitting > 1:
            middle = next((guess for guess in guesses if fitting < guess < beyond), (fitting + beyond) // 2)
            fits, measured = self._try(items[:middle], items[fitting:middle])
            if fits:
                fitting, drop = middle, measured
            else:
                beyond = middle
        return list(items[:fitting]), drop

    def _guesses(self, items: Sequence[Assessed]) -> list[int]:
        """How long the longest beginning within the budget may be: where squares of errors add up to the budget's."""
        if not isinstance(self.budget.metric, RelativeL2):
            return [len(items)]
        errors = [sum(one.sensitivity**2 for one in in_effect(items[: i + 1])) for i in range(len(items))]
        guess = sum(error <= self.budget.max_drop**2 for error in errors)
        return [guess, guess - 1, guess + 1, guess - 2]

    def _one_by_one(
        self, items: Sequence[Assessed], chosen: list[Assessed], drop: Drop | None
    ) -> tuple[list[Assessed], Drop | None]:
        """Add what still fits, or put it in the place of what it excludes."""
        tries = 0
        for item in items:
            changed = in_effect([*chosen, item])
            reason = "not tried any more" if tries == _MOST_TRIES else self._objection(item, changed, chosen, drop)
            if reason is not None:
                self._steps.append(Step((item.candidate,), accepted=False, reason=reason))
                continue
            tries += 1
            fits, measured = self._try(changed, [item])
            if fits:
                chosen, drop = changed, measured
        return chosen, drop

    def _objection(
        self, item: Assessed, changed: Sequence[Assessed], chosen: Sequence[Assessed], drop: Drop | None
    ) -> str | None:
        """Why it is no use to measure the chosen candidates changed by one more; None where it may be of use.

        Squares of errors add up, and other metrics fall about with the square of the error, when it is small.
        """
        if item not in changed:
            return _GONE
        if sum(one.gain for one in changed) <= sum(one.gain for one in chosen):
            return _REPLACED
        before = sum(one.sensitivity**2 for one in chosen)
        if drop is None or not before or drop.bound <= 0:
            return None
        growth = sum(one.sensitivity**2 for one in changed) / before
        if isinstance(self.budget.metric, RelativeL2):
            hopeless = drop.bound * np.sqrt(growth) > _HOPELESS_L2 * self.budget.max_drop
        else:
            hopeless = drop.bound * growth > _HOPELESS * self.budget.max_drop
        return "its error is too large" if hopeless else None

    def _explain(self, chosen: Sequence[Assessed]) -> None:
        """Write down why candidates that were accepted are not done in the end."""
        done = {item.candidate for item in chosen}
        gone = {node for candidate in done for node in candidate.inside}
        accepted = dict.fromkeys(made for step in self._steps if step.accepted for made in step.candidates)
        for candidate in accepted:
            if candidate not in done:
                reason = _GONE if candidate.node in gone else _REPLACED
                self._steps.append(Step((candidate,), accepted=False, reason=reason))

    def _nearest(self, assessed: Sequence[Assessed]) -> str:
        measured = [step.drop.bound for step in self._steps if step.drop is not None]
        if measured:
            return f"the least 95% bound was {min(measured):.4g}"
        return "none makes the model cheaper" if assessed else "the model has no operator that could be made cheaper"


class References:
    """The original model's outputs of the runs of a dataset, computed once; zeros where padding is elided.

    Args:
        dataset: the runs.
        reference: computes the original model.
        outputs: names of those that count.
        elided: the padding, or None.
    """

    def __init__(
        self, dataset: Dataset, reference: Reference, outputs: Sequence[str], elided: ElidedPadding | None
    ) -> None:
        self._dataset, self._reference, self._elided = dataset, reference, elided
        self._outputs = outputs
        self._known: dict[int, dict[str, Array]] = {}

    def __call__(self, run: int) -> dict[str, Array]:
        """Outputs by name."""
        if run not in self._known:
            inputs = self._dataset.run(run)
            found = self._reference(inputs)
            self._known[run] = self.blanked({name: found[name] for name in self._outputs}, inputs)
        return self._known[run]

    def blanked(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`outputs` with zeros where padding is elided."""
        return dict(outputs) if self._elided is None else self._elided.blank(outputs, inputs)


def measure_drop(metric: Metric, data: Dataset, references: References, candidate: Runner, runs: Sequence[int]) -> Drop:
    """The drop of a candidate's outputs over some runs of the data."""
    # One after the other: while one runtime's idle threads spin, the other waits for its cores.
    wanted = [references(run) for run in runs]
    found = (candidate(data.run(run)) for run in runs)
    if metric.sees_all:
        return metric.drop([metric.statistics(_joined(wanted), _joined(list(found)), data.labels_of(runs))])
    pairs = zip(wanted, found, runs, strict=True)
    return metric.drop([metric.statistics(theirs, ours, data.labels_of([run])) for theirs, ours, run in pairs])


def _joined(outputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}
