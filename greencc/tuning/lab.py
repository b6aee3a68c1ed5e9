"""Where plans become programs and programs become times: processes that build, and devices that measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from greencc.targets.base import Target
from greencc.targets.tuning.planned import Decision
from greencc.tuning import builders
from greencc.tuning.builders import Build, Builders, BuildFailed, Built
from greencc.tuning.measure import Measurement
from greencc.tuning.pool import Job, Pool
from greencc.tuning.program import Program
from greencc.tuning.records import Failed, Measured
from greencc.tuning.tasks import Task

MOST_GUARDED_RATIO = 1.02
"""Of the default schedule's time at sizes between those that kernels are tuned at: above this a plan isn't used."""


class Workshop:
    """Builds on this machine and measures on the devices of a pool. See greencc.tuning.session.Lab.

    Args:
        target: what is built for.
        makers: processes that build.
        pool: devices that measure.
        overlap: whether devices measure while others are built: not where both share this machine.
    """

    def __init__(self, target: Target, makers: Builders, pool: Pool, *, overlap: bool) -> None:
        self._target, self._makers, self._pool, self._overlap = target, makers, pool, overlap
        self._opened: dict[tuple[str, str, bool], builders.Task] = {}
        self._references: dict[tuple[str, str, bool], Built] = {}

    def measure(
        self, task: Task, decisions: Sequence[Decision | None], thorough: bool = False
    ) -> Iterator[tuple[Decision | None, Measured | Failed, str]]:
        """See greencc.tuning.session.Lab."""
        reference = self._reference(task, thorough)
        if isinstance(reference, BuildFailed):
            yield None, Failed(reference.reason), ""
            return
        planned = [each for each in decisions if each is not None]
        opened = self._open(task, thorough)
        builds = [Build(opened, each.rule, each.plan) for each in planned]
        decision_of = {id(build): decision for build, decision in zip(builds, planned, strict=True)}
        failed: list[tuple[Decision, str]] = []

        def jobs() -> Iterator[Job]:
            if None in decisions:
                yield Job(reference, reference, thorough, None)
            for build, built in self._made(builds):
                if isinstance(built, Program):
                    yield Job(built, reference, thorough, decision_of[id(build)])
                else:
                    failed.append((decision_of[id(build)], built.reason))

        for job, outcome in self._pool.measure(jobs() if self._overlap else list(jobs())):
            if isinstance(outcome, Measurement):
                yield job.key, _judged(task, outcome), outcome.device
            else:
                yield job.key, Failed(str(outcome)), ""
        yield from ((decision, Failed(f"it can't be built: {reason}"), "") for decision, reason in failed)

    def _made(self, builds: Sequence[Build]) -> Iterable[tuple[Build, Built]]:
        if self._overlap:
            return self._makers.build_each(builds)
        return zip(builds, self._makers.build_all(builds), strict=True)

    def close(self) -> None:
        """End the processes and give up the devices."""
        self._makers.close()
        self._pool.close()

    def _open(self, task: Task, thorough: bool) -> builders.Task:
        """The task for processes that build; thoroughly, with the sizes that are guarded behind those that count."""
        key = task.key, str(task.sizes), thorough
        if key not in self._opened:
            points = [task.point(index) for index in range(task.points)]
            points += [task.guard(index) for index in range(len(task.guards))] if thorough else []
            self._opened[key] = builders.Task.of(task.kernel, self._target, points)
        return self._opened[key]

    def _reference(self, task: Task, thorough: bool) -> Built:
        """The program of the default schedule."""
        key = task.key, str(task.sizes), thorough
        if key not in self._references:
            (self._references[key],) = self._makers.build_all([Build(self._open(task, thorough))])
        return self._references[key]


def _judged(task: Task, outcome: Measurement) -> Measured | Failed:
    """A measurement at the sizes that count; failed where it is slower at one that is guarded."""
    pairs = list(zip(outcome.seconds, outcome.reference, strict=True))
    for index, (ours, theirs) in enumerate(pairs[task.points :]):
        if ours > theirs * MOST_GUARDED_RATIO:
            at = ", ".join(f"{name}={size}" for name, size in task.guard(index).items())
            return Failed(f"{ours / theirs:.2f} of the default schedule's time at {at}")
    count = task.points
    return Measured(outcome.seconds[:count], outcome.spread[:count], outcome.reference[:count])
