"""What is known of a task while it is tuned, and what follows: whether to go on, and how much there is to gain."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable

from greencc.tuning.database import is_faster, weight
from greencc.tuning.records import DEFAULT_RULE, Failed, Measured, PlanKey, Trial
from greencc.tuning.search import BATCH
from greencc.tuning.tasks import Task

# A better plan is news if it is better by this share.
NEWS = 0.01
# Trials without news after which a task is left, and trials that it gets in any case.
PATIENCE, LEAST_TRIALS = 64, 48
# A kernel this close to its limit is left: what remains is less than what measuring can tell.
CLOSE_ENOUGH = 0.97
# Kernels whose limit isn't known are taken to have this share of their time to gain.
UNKNOWN_GAIN = 0.3
# Each batch without news makes the next one less likely to bring any, by this factor.
FADING = 0.6


class TaskState:
    """A task and its trials, in the order in which they were made.

    Args:
        task: the task.
        refused: plans that failed at other sizes: they are no answer here either.

    Attributes:
        task: the task.
        curve: after each plan, the best one's seconds over the default's.
        is_exhausted: whether the search has nothing left to try.
        failure: why the default schedule can't be measured; None where it can.
    """

    def __init__(self, task: Task, refused: Collection[PlanKey] = ()) -> None:
        self.task = task
        self._refused = refused
        self.curve: list[float] = []
        self.is_exhausted = False
        self.failure: str | None = None
        self._counting: dict[PlanKey, Trial] = {}
        self._faster: list[Trial] = []
        self._since_news = 0

    def add(self, trials: Iterable[Trial]) -> None:
        """Take note of trials, old ones or new. Of a plan that is measured again, the thorough measurement counts."""
        for trial in trials:
            before, known = self.ratio, self._counting.get(trial.plan_key)
            if known is not None and weight(known) > weight(trial) and isinstance(trial.outcome, Measured):
                continue
            self._counting[trial.plan_key] = trial
            if known in self._faster:
                self._faster.remove(known)
            if is_faster(trial) and trial.plan_key not in self._refused:
                insort(self._faster, trial, key=_ratio)
            if known is None:
                self.curve.append(self.ratio)
                self._since_news = 0 if self.ratio < before * (1 - NEWS) else self._since_news + 1

    @property
    def trials(self) -> int:
        """Number of plans tried, the default among them."""
        return len(self._counting)

    @property
    def failures(self) -> int:
        """Number of plans that failed."""
        return sum(isinstance(trial.outcome, Failed) for trial in self._counting.values())

    @property
    def tried(self) -> tuple[Trial, ...]:
        """What counts of every plan but the default."""
        return tuple(trial for trial in self._counting.values() if trial.plan is not None)

    @property
    def default(self) -> Measured | None:
        """The default schedule's measurement, None before it has been made or where it fails."""
        trial = self._counting.get((DEFAULT_RULE, None))
        return trial.outcome if trial is not None and isinstance(trial.outcome, Measured) else None

    @property
    def best(self) -> Trial | None:
        """The plan that beats the default by most, and by more than its spread; None while there is none."""
        return self._faster[0] if self._faster else None

    @property
    def ratio(self) -> float:
        """Seconds of the best over those of the default, at the size where that is worst."""
        return 1.0 if self.best is None else _ratio(self.best)

    @property
    def seconds(self) -> float | None:
        """Seconds of the default schedule, over all timed sizes; None before it was measured."""
        return None if self.default is None else sum(self.default.seconds)

    @property
    def best_seconds(self) -> float | None:
        """The same of the best plan."""
        return None if self.seconds is None else self.seconds * self.ratio

    @property
    def limit(self) -> float | None:
        """What it takes at least, over all timed sizes; None where the limit isn't known."""
        return None if self.task.limits is None else sum(self.task.limits)

    @property
    def share_of_limit(self) -> float | None:
        """How close the best plan comes to the machine's limit, at most 1; None where either isn't known."""
        if self.limit is None or not self.best_seconds:
            return None
        return min(1.0, self.limit / self.best_seconds)

    @property
    def gap(self) -> float:
        """Seconds of a run of the model that lie between the best plan and the limit."""
        if self.best_seconds is None or self.seconds is None:
            return 0.0
        least = self.seconds * (1 - UNKNOWN_GAIN) if self.limit is None else self.limit
        return self.task.launches * max(0.0, self.best_seconds - least) / self.task.points

    @property
    def expected_gain(self) -> float:
        """Seconds of a run that the next batch may win: the gap, less and less of it while no news comes."""
        return self.gap * float(FADING ** (self._since_news / BATCH))

    @property
    def finished(self) -> str | None:
        """Why nothing more is tried, or None."""
        if self.failure is not None:
            return f"the default schedule fails: {self.failure}"
        if self.default is None:
            return None
        if self.is_exhausted:
            return "nothing new to try"
        share = self.share_of_limit
        if share is not None and share >= CLOSE_ENOUGH:
            return "at the limit"
        if self.trials >= LEAST_TRIALS and self._since_news >= PATIENCE:
            return "settled"  # nothing better in PATIENCE trials
        return None


def _ratio(trial: Trial) -> float:
    return trial.outcome.ratio if isinstance(trial.outcome, Measured) else float("inf")
