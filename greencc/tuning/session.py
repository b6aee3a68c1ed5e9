"""A tuning session: which kernel gets the next trials, when to stop, and what is told meanwhile.

    the default schedule of every kernel
    -> batches of plans, for whatever kernel promises most -> the best plans again, thoroughly

Every trial is in the database before it is told of, so that a session that is killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from greencc.errors import GreenccError
from greencc.targets.tuning.planned import Decision
from greencc.tuning.costs import CostModel, Sample
from greencc.tuning.database import Records
from greencc.tuning.devices import DeviceLost
from greencc.tuning.events import Event, ratio_of, summary, trial_event
from greencc.tuning.payback import Payback, SessionMeter, is_profitable
from greencc.tuning.records import DEFAULT_RULE, Failed, Measured, Trial, WorkloadNote, now
from greencc.tuning.search import BATCH, KernelSearch, Tried, decision_of
from greencc.tuning.state import TaskState
from greencc.tuning.tasks import Task
from greencc.tuning.writer import Writer

Listener: TypeAlias = Callable[[Event], None]

# Plans of a kernel that are measured again at most, until the best one is one that was.
_FINALISTS = 6
# What kernels that were tuned before begin a search with.
_SEEDS = 4
# Kernels that a cost model learns from before anything is measured.
_MOST_TEACHERS = 64
# A kernel whose remaining gain is less than this share of the model's time is left.
_LEAST_SHARE = 0.001
# Of a gap, what a batch closes before anything is known.
_USUAL_SHARE = 0.3
# Of the time budget, kept for measuring the best plans again.
_CLOSING_SHARE = 0.15


class Lab(Protocol):
    """Builds and measures."""

    def measure(
        self, task: Task, decisions: Sequence[Decision | None], thorough: bool = False
    ) -> Iterator[tuple[Decision | None, Measured | Failed, str]]:
        """Outcomes as they come, each with its plan (None is the default schedule) and the name of the device.

        Each plan is measured in turns with the default schedule. Where that fails, it is the only outcome.
        """


@dataclass(frozen=True)
class Budget:
    """When a session ends.

    Attributes:
        trials: plans of the model's kernels that the database holds then, those of earlier sessions included; None for
            as many as it takes.
        seconds: after so many; None for as many as it takes.
        runs: further trials must pay within so many runs of the model; None for no such condition.
    """

    trials: int | None = None
    seconds: float | None = None
    runs: int | None = None


@dataclass
class Outcome:
    """How a session went.

    Attributes:
        states: the tasks.
        stopped: why it ended, in words.
        was_interrupted: whether the user ended it.
        error: what cut it off; None where it ended as it should.
        new_trials: plans that were tried in it.
        seconds: how long it took.
        payback: energy spent and saved.
        history: (seconds since the beginning, seconds of a run by the kernels' times) after each batch.
    """

    states: Sequence[TaskState]
    stopped: str = ""
    was_interrupted: bool = False
    error: Exception | None = None
    new_trials: int = 0
    seconds: float = 0.0
    payback: Payback = field(default_factory=lambda: Payback(None, None, "estimate"))
    history: list[tuple[float, float]] = field(default_factory=list)

    @property
    def default_seconds(self) -> float:
        """Seconds of a run of the model by its kernels' times, untuned: those that can be tuned."""
        return sum(_per_run(state, state.seconds) for state in self.states)

    @property
    def best_seconds(self) -> float:
        """The same with the best plans."""
        return sum(_per_run(state, state.best_seconds) for state in self.states)


@dataclass(frozen=True)
class _Batch:
    """Seconds of a run that the tried kernel had to gain and did gain, and the energy of finding out."""

    gap: float
    gain: float
    joules: float | None


class Session:
    """One session.

    Args:
        tasks: what to tune.
        lab: builds and measures.
        records: what the database holds already.
        writer: appends to it.
        budget: when to stop.
        threads: of a run of the model, for estimates of energy.
        listen: told of every event, a dictionary whose `event` says what happened.
        meter: of the session's energy.
        is_local: whether this machine measures: the power of others isn't known.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        lab: Lab,
        records: Records,
        writer: Writer,
        *,
        budget: Budget,
        threads: int,
        listen: Listener,
        meter: SessionMeter | None = None,
        is_local: bool = True,
    ) -> None:
        self._lab, self._records, self._writer = lab, records, writer
        self._budget, self._threads, self._listen = budget, threads, listen
        self._meter = SessionMeter() if meter is None else meter
        self.states = [TaskState(task, records.failed(task.key)) for task in tasks]
        self._searches: dict[str, KernelSearch] = {}
        self._costs: CostModel | None = None
        self._new = 0
        self._batches: list[_Batch] = []
        self._before = 0.0
        self._known: set[str] = set()
        self._is_local = is_local
        self._told: tuple[float, Payback] = (-1.0, Payback(None, None, self._meter.method))
        self.outcome = Outcome(self.states)

    def run(self) -> Outcome:
        """Tune until the budget is spent or nothing is left to gain.

        An interruption (Ctrl-C) ends it like a spent budget, a second one also the thorough comparisons at the end.
        """
        outcome = self.outcome
        try:
            outcome.stopped = self._tune()
            self._confirm()
        except KeyboardInterrupt:
            outcome.stopped, outcome.was_interrupted = "interrupted", True
        except (GreenccError, DeviceLost) as error:
            # What was measured is on record, and what it brought is told all the same.
            outcome.stopped, outcome.error = "cut off by an error", error
        outcome.new_trials, outcome.seconds = self._new, self._meter.seconds
        outcome.payback = self._payback()
        self._tell("end", trials=self.trials)
        return outcome

    def _tune(self) -> str:
        """Everything but the last comparisons; says why it ended."""
        try:
            self._resume()
            self._measure_defaults()
            self._note_time()
            return self._search()
        except KeyboardInterrupt:
            self.outcome.was_interrupted = True
            self._note("measuring the best plans again; Ctrl-C once more ends it at once")
            return "interrupted"

    @property
    def trials(self) -> int:
        """Plans of the session's kernels that the database holds."""
        return sum(state.trials for state in self.states)

    def _resume(self) -> None:
        for state in self.states:
            state.add(self._records.trials(state.task.key, state.task.sizes))
            task = state.task
            limit = None if task.limits is None else sum(task.limits)
            note = WorkloadNote(task.key, task.text, task.launches, task.traits, limit)
            if self._records.note(task.key) is None:
                self._writer.note(note)
        self._before = self.outcome.best_seconds
        self._known = {_id(state.task) for state in self.states if state.default is not None}
        self._tell("start", tasks=[summary(state) for state in self.states], trials=self.trials)

    def _measure_defaults(self) -> None:
        """Trial 0 of every kernel."""
        for state in self.states:
            if state.default is None and not self._spent():
                self._try(state, [None])
                if state.failure is not None:
                    self._tell("task-done", task=summary(state))

    def _search(self) -> str:
        while True:
            spent = self._spent()
            if spent is not None:
                return spent
            state = self._most_promising()
            if state is None:
                failing = all(state.failure is not None for state in self.states)
                return "no default schedule can be measured" if failing else "nothing is left to gain"
            if not self._pays(state):
                return f"further gains don't pay within {self._budget.runs} runs"
            left = self._batch()
            search = self._search_of(state)
            plans = search.propose(left)
            state.is_exhausted = search.is_exhausted
            before, energy = state.gap, self._meter.joules
            if plans:
                self._try(state, plans)
            self._note_time()
            self._note_batch(before, before - state.gap, energy)
            if state.finished is not None:
                self._tell("task-done", task=summary(state))

    def _confirm(self) -> None:
        """Measure the best plans again, thoroughly, until the best has been: of many, one looks better than it is.

        Those come first that save most; the time budget ends it.
        """
        for state in sorted(self.states, key=lambda state: -(_per_run(state, state.seconds) * (1 - state.ratio))):
            for _ in range(_FINALISTS):
                if self._budget.seconds is not None and self._meter.seconds >= self._budget.seconds:
                    return
                best = state.best
                if best is None or best.plan is None or best.thorough:
                    break
                self._measure(state, [Decision(best.rule, best.plan)], thorough=True)
        self._note_time()

    def _try(self, state: TaskState, decisions: Sequence[Decision | None]) -> None:
        outcomes = self._measure(state, decisions)
        self._new += len(outcomes)
        search = self._searches.get(_id(state.task))
        if search is not None:
            search.learn([Tried(d, ratio_of(outcome)) for d, outcome in outcomes if d is not None])

    def _batch(self) -> int:
        """How many plans to try next: fewer where the trials, or the time, come to their end."""
        budget, size = self._budget, BATCH
        if budget.trials is not None:
            size = min(size, budget.trials - self.trials)
        if budget.seconds is not None and self._new:
            left = budget.seconds * (1 - _CLOSING_SHARE) - self._meter.seconds
            size = max(1, min(size, int(left * self._new / self._meter.seconds)))
        return size

    def _note_time(self) -> None:
        self.outcome.history.append((self._meter.seconds, self.outcome.best_seconds))

    def _measure(
        self, state: TaskState, decisions: Sequence[Decision | None], thorough: bool = False
    ) -> list[tuple[Decision | None, Measured | Failed]]:
        outcomes = []
        for decision, outcome, device in self._lab.measure(state.task, decisions, thorough):
            if decision is None and isinstance(outcome, Failed):
                # Nothing is recorded: it may be the machine's fault, and the next session may have better luck.
                state.failure = outcome.reason
                continue
            rule, plan = (DEFAULT_RULE, None) if decision is None else (decision.rule, decision.plan)
            trial = Trial(state.task.key, state.task.sizes, rule, plan, outcome, device, now(), thorough)
            self._writer.append(trial)
            state.add([trial])
            outcomes.append((decision, outcome))
            self._tell("trial", task=summary(state), trial=trial_event(trial), trials=self.trials, thorough=thorough)
        return outcomes

    def _search_of(self, state: TaskState) -> KernelSearch:
        """The search for a task, which knows all that was tried: made when it is needed first."""
        task = state.task
        if self._costs is None:
            self._costs = CostModel(decision_of, {_id(s.task): s.task.spaces for s in self.states}, self._teachers())
        if _id(task) not in self._searches:
            seeds = [
                Decision(trial.rule, trial.plan)
                for rule in task.spaces
                for trial in self._records.nearest(task.traits, rule, _SEEDS)
                if trial.plan is not None
            ]
            defaults = [Decision(rule, space.default) for rule, space in task.spaces.items()]
            number = 1 + len(self._searches)
            search = KernelSearch(_id(task), task.spaces, self._costs, [*seeds, *defaults], seed=number)
            search.learn(
                [Tried(Decision(t.rule, t.plan), ratio_of(t.outcome)) for t in state.tried if t.plan is not None]
            )
            self._searches[_id(task)] = search
        return self._searches[_id(task)]

    def _teachers(self) -> dict[str, list[Sample]]:
        """What is known of kernels that aren't tuned now."""
        own = {state.task.key for state in self.states}
        found: dict[str, list[Sample]] = {}
        for workload in [key for key in self._records.workloads if key not in own][:_MOST_TEACHERS]:
            note = self._records.note(workload)
            for sizes in self._records.sizes(workload) if note is not None else ():
                samples = [
                    Sample(Decision(t.rule, t.plan), note.traits, t.outcome.ratio)
                    for t in self._records.trials(workload, sizes)
                    if note is not None and t.plan is not None and isinstance(t.outcome, Measured)
                ]
                if samples:
                    found[f"{workload} {sorted(sizes.items())}"] = samples
        return found

    def _most_promising(self) -> TaskState | None:
        total = self.outcome.best_seconds
        open_ = [
            state
            for state in self.states
            if state.finished is None and state.default is not None and state.gap > _LEAST_SHARE * total
        ]
        return max(open_, key=lambda state: state.expected_gain, default=None)

    def _spent(self) -> str | None:
        """Why the budget allows no more, or None."""
        budget = self._budget
        if budget.trials is not None and self.trials >= budget.trials:
            return f"{budget.trials} trials are done"
        if budget.seconds is not None and self._meter.seconds >= budget.seconds * (1 - _CLOSING_SHARE):
            return "the time is up"
        return None

    def _pays(self, state: TaskState) -> bool:
        """Whether the next batch is expected to pay within the runs that the user states."""
        if self._budget.runs is None or not self._batches:
            return True
        # Of a gap, a batch closes the share that batches have closed so far, and one more with the usual share: the
        # first one may have been out of luck.
        gap, gain = (sum(getattr(batch, name) for batch in self._batches) for name in ("gap", "gain"))
        usual = gap / len(self._batches)
        rate = (gain + _USUAL_SHARE * usual) / (gap + usual) if gap else 0.0
        energies = [batch.joules for batch in self._batches if batch.joules is not None]
        energy = sum(energies) / len(energies) if energies else None
        return is_profitable(state.expected_gain * rate, self._meter.watts(self._threads), energy, self._budget.runs)

    def _note_batch(self, gap: float, gain: float, joules: float | None) -> None:
        now_ = self._meter.joules
        self._batches.append(_Batch(gap, gain, None if joules is None or now_ is None else now_ - joules))

    def _payback(self) -> Payback:
        """Energy of this session, and what a run saves by what it found: what earlier ones found was theirs."""
        watts = self._meter.watts(self._threads) if self._is_local or self._meter.method == "estimate" else None
        # Kernels that were measured for the first time now have their defaults as what was before.
        first = sum(_per_run(s, s.seconds) for s in self.states if _id(s.task) not in self._known)
        saved = None if watts is None else (self._before + first - self.outcome.best_seconds) * watts
        return Payback(self._meter.joules, saved, self._meter.method)

    def _note(self, message: str) -> None:
        self._tell("note", message=message)

    def _tell(self, event: str, **what: Any) -> None:
        # Counting the CPU time of all processes takes a while.
        if self._meter.seconds - self._told[0] > 1 or event == "end":
            self._told = self._meter.seconds, self._payback()
        self._listen(
            {
                "event": event,
                "seconds": self._meter.seconds,
                "model_ms": self.outcome.best_seconds * 1e3,
                "default_ms": self.outcome.default_seconds * 1e3,
                "payback": self._told[1].as_json(),
                **what,
            }
        )


def _id(task: Task) -> str:
    return f"{task.key} {sorted(task.sizes.items())}"


def _per_run(state: TaskState, seconds: float | None) -> float:
    """Seconds of a run of the model, the mean over the timed sizes."""
    return 0.0 if seconds is None else state.task.launches * seconds / state.task.points
