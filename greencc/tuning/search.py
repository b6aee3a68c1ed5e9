"""Which plans of a kernel to try next: MetaSchedule's evolutionary search over the knobs of our spaces.

To MetaSchedule a plan is the trace of a stand-in function: one categorical decision for each knob, noted on its block.
It samples, mutates and ranks traces by its own cost model (gradient-boosted trees); what a plan makes of the kernel is
ours to build. docs/decisions/0023 says what of MetaSchedule is used, and why no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.postproc import PyPostproc
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.tir import i64
from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.space import Space, Value
from greencc.tuning.costs import CostModel

BATCH = 16
"""Plans that are proposed at a time."""
_POPULATION = 128
_GENERATIONS = 3
# Populations that are bred for a batch, until there is something new in one.
_ROUNDS = 3
# A mutation moves a number to a neighbouring value; otherwise any value is as likely.
_NEIGHBOUR = 0.6
# How often a mutation changes a second knob.
_SECOND = 0.4
# Spaces of so many plans are tried to the last one.
_SMALL = 2048
_BLOCK = "kernel"
_RULE = "greencc.search.rule"
_KNOB = "greencc.knob."
_RANDOM = "greencc.workload"


@dataclass(frozen=True)
class Tried:
    """A plan and how it did: seconds over those of the default schedule, or None where it failed."""

    decision: Decision
    ratio: float | None


class KernelSearch:
    """The search for one kernel.

    Args:
        key: the task's, unique in a session.
        spaces: what can be chosen, by rule.
        costs: predicts how plans do; shared by the searches of a session.
        seeds: plans to try first, after the default: what was best for similar kernels.
        seed: of random choices.
    """

    def __init__(
        self, key: str, spaces: Mapping[str, Space], costs: CostModel, seeds: Sequence[Decision] = (), seed: int = 1
    ) -> None:
        self.key, self.spaces, self._costs = key, spaces, costs
        self._seeds = [fitting for fitting in map(self._fitted, seeds) if fitting is not None]
        self._tried: set[tuple[str, tuple[tuple[str, Value], ...]]] = set()
        self._exhausted = False
        self._module = _stand_in(key)
        self._target = tvm.target.Target({"kind": "llvm", "num-cores": 1})
        self._database = ms.database.MemoryDatabase()
        self._workload = self._database.commit_workload(self._module)
        self._context = self._new_context(seed)
        self._designs = {rule: self._design(rule) for rule in spaces}
        self._context.pre_tuning(1 << 30, BATCH, list(self._designs.values()), self._database, costs.model)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left that hasn't been tried."""
        return self._exhausted

    def propose(self, count: int) -> list[Decision]:
        """Up to so many plans that were neither proposed before nor learned; none when all have been."""
        chosen: list[Decision] = []
        while self._seeds and len(chosen) < count:
            self._take(self._seeds.pop(0), chosen)
        for _ in range(_ROUNDS):
            if chosen or self._exhausted:
                break
            candidates = self._context.generate_measure_candidates() or []
            # MetaSchedule counts on an answer for every candidate; what came of them it reads from the database.
            self._context.notify_runner_results(candidates, [_unknown()] * len(candidates))
            for candidate in candidates:
                if len(chosen) < count:
                    self._take(decision_of(candidate.sch, self.spaces), chosen)
        if not chosen:
            self._take_rest(count, chosen)
            self._exhausted = not chosen
        return chosen

    def _take_rest(self, count: int, chosen: list[Decision]) -> None:
        """What evolution has left out: of small spaces, whatever is left."""
        for rule, space in self.spaces.items():
            if space.size > _SMALL:
                continue
            names = [knob.name for knob in space.knobs]
            for values in itertools.product(*(knob.values for knob in space.knobs)):
                plan = dict(zip(names, values, strict=True))
                if len(chosen) == count:
                    return
                if space.refuses(plan) is None:
                    self._take(Decision(rule, plan), chosen)

    def learn(self, results: Sequence[Tried]) -> None:
        """Take note of measured plans: those worse than others, and failed ones, teach as well."""
        traces = []
        for result in results:
            self._tried.add(_identity(result.decision))
            if result.decision.rule not in self.spaces:
                continue
            if self.spaces[result.decision.rule].problem(result.decision.plan) is None:
                traces.append((self._trace(result.decision), result))
        records = []
        for trace, result in traces:
            seconds = [result.ratio if result.ratio is not None else _FAILED]
            record = ms.database.TuningRecord(trace, self._workload, seconds, self._target, [])
            if result.ratio is not None:
                self._database.commit_tuning_record(record)
            records.append((record.as_measure_candidate(), ms.runner.RunnerResult(seconds, None)))
        if records:
            self._costs.learn(self._context, [c for c, _ in records], [r for _, r in records])

    def _take(self, decision: Decision, chosen: list[Decision]) -> None:
        if _identity(decision) not in self._tried:
            self._tried.add(_identity(decision))
            chosen.append(decision)

    def _fitted(self, decision: Decision) -> Decision | None:
        """A plan of another kernel, with the nearest values that this one's space has; None where that is none."""
        space = self.spaces.get(decision.rule)
        if space is None:
            return None
        plan = {
            knob.name: _nearest(decision.plan.get(knob.name), knob.values, space.default[knob.name])
            for knob in space.knobs
        }
        return Decision(decision.rule, plan) if space.problem(plan) is None else None

    def _new_context(self, seed: int) -> Any:
        # The class's own constructor imports every tensor intrinsic of every device, for most of a minute.
        checks, mutations = [_Fitting(self.spaces)], {_Mutation(seed): 1.0}
        space = ms.space_generator.ScheduleFn(lambda schedule: None, [], checks, mutations)
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=_POPULATION, init_min_unmeasured=BATCH, genetic_num_iters=_GENERATIONS, eps_greedy=0.1
        )
        context = _ffi_api.TuneContext(
            self._module, self._target, space, strategy, self.key, 1, seed, lambda level, file, line, message: None
        )
        _ffi_api.TuneContextInitialize(context)
        return context

    def _design(self, rule: str) -> s_tir.Schedule:
        """A schedule of the stand-in whose trace has a decision for every knob of the rule's space."""
        space = self.spaces[rule]
        schedule = s_tir.Schedule(self._module)
        block = schedule.get_sblock(_BLOCK)
        schedule.annotate(block, _RULE, rule)
        for knob in space.knobs:
            count = len(knob.values)
            chosen = schedule.sample_categorical(
                list(range(count)), [1 / count] * count, knob.values.index(space.default[knob.name])
            )
            schedule.annotate(block, _KNOB + knob.name, chosen)
        return schedule

    def _trace(self, decision: Decision) -> s_tir.Trace:
        trace, space = self._designs[decision.rule].trace, self.spaces[decision.rule]
        for instruction, knob in zip(_decisions(trace), space.knobs, strict=True):
            trace = trace.with_decision(instruction, knob.values.index(decision.plan[knob.name]), False)
        return trace


_FAILED = 1e10
"""What MetaSchedule takes for the seconds of what failed."""


def _unknown() -> Any:
    return ms.runner.RunnerResult(None, "")


def _stand_in(key: str) -> tvm.IRModule:
    """A function with a block to note decisions on, another one for each key."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        out = T.arg("out", T.buffer((1,), "float32"))
        with T.sblock(_BLOCK):
            T.buffer_store(out, tirx.const(0.0, "float32"), [i64(0)])
    return tvm.IRModule({"main": ib.get().with_attrs({"global_symbol": "main", _RANDOM: key})})


def _decisions(trace: s_tir.Trace) -> list[Any]:
    return [instruction for instruction in trace.insts if instruction.kind.name == "SampleCategorical"]


def decision_of(schedule: s_tir.Schedule, spaces: Mapping[str, Space]) -> Decision:
    """The plan that a schedule of the stand-in notes."""
    notes = schedule.get(schedule.get_sblock(_BLOCK)).annotations
    rule = str(notes[_RULE])
    return Decision(rule, {knob.name: knob.values[int(notes[_KNOB + knob.name])] for knob in spaces[rule].knobs})


def _identity(decision: Decision) -> tuple[str, tuple[tuple[str, Value], ...]]:
    return decision.rule, tuple(sorted(decision.plan.items()))


def _nearest(value: Value | None, values: Sequence[Value], otherwise: Value) -> Value:
    """The number of `values` that is closest to `value`."""
    numbers = [other for other in values if isinstance(other, int)]
    if value in values or not isinstance(value, int) or not numbers:
        return value if value is not None and value in values else otherwise
    return min(numbers, key=lambda other: abs(other - value))


@derived_object
class _Mutation(PyMutator):  # type: ignore[misc]
    """Changes one decision of a trace, or two."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = np.random.default_rng(seed)

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: s_tir.Trace, _: Any) -> s_tir.Trace | None:
        found = [each for each in _decisions(trace) if len(each.attrs[0]) > 1]
        for instruction in self.random.permutation(len(found))[: 2 if self.random.random() < _SECOND else 1]:
            chosen = found[int(instruction)]
            count, now = len(chosen.attrs[0]), int(trace.decisions[chosen])
            moved = now + (1 if self.random.random() < 0.5 else -1)
            if self.random.random() >= _NEIGHBOUR or not 0 <= moved < count:
                moved = int(self.random.integers(count))
            trace = trace.with_decision(chosen, moved, True)
            found = [each for each in _decisions(trace) if len(each.attrs[0]) > 1]
        return trace

    def clone(self) -> _Mutation:
        return _Mutation(int(self.random.integers(1 << 30)))


@derived_object
class _Fitting(PyPostproc):  # type: ignore[misc]
    """Drops plans whose values don't go together."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        super().__init__()
        self.spaces = spaces

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, schedule: s_tir.Schedule) -> bool:
        decision = decision_of(schedule, self.spaces)
        return self.spaces[decision.rule].refuses(decision.plan) is None

    def clone(self) -> _Fitting:
        return _Fitting(self.spaces)
