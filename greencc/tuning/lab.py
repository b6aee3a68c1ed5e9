"""Where plans become programs and programs become times: processes that build, and devices that measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from greencc.targets.base import Target
from greencc.targets.tuning.planned import Decision
from greencc.tuning import builders
from greencc.tuning.builders import Build, Builders, BuildFailed, Built
from greencc.tuning.measure import Measurement
from greencc.tuning.pool import Job, Pool
from greencc.tuning.program import Program
from greencc.tuning.records import Failed, Measured
from greencc.tuning.tasks import Task


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
        self._opened: dict[tuple[str, str], builders.Task] = {}
        self._references: dict[tuple[str, str], Built] = {}

    def measure(
        self, task: Task, decisions: Sequence[Decision | None], thorough: bool = False
    ) -> Iterator[tuple[Decision | None, Measured | Failed, str]]:
        """See greencc.tuning.session.Lab."""
        reference = self._reference(task)
        if isinstance(reference, BuildFailed):
            yield from ((decision, Failed(f"the default schedule: {reference.reason}"), "") for decision in decisions)
            return
        opened = self._open(task)
        builds = [Build(opened, each.rule, each.plan) for each in decisions if each is not None]
        planned = [each for each in decisions if each is not None]
        by_build = {id(build): decision for build, decision in zip(builds, planned, strict=True)}
        failed: list[tuple[Decision, str]] = []

        def jobs() -> Iterator[Job]:
            if None in decisions:
                yield Job(reference, reference, thorough, None)
            made = self._makers.build_each(builds) if self._overlap else zip(
                builds, self._makers.build_all(builds), strict=True
            )
            for build, built in made:
                if isinstance(built, Program):
                    yield Job(built, reference, thorough, by_build[id(build)])
                else:
                    failed.append((by_build[id(build)], built.reason))

        for job, outcome in self._pool.measure(jobs() if self._overlap else list(jobs())):
            if isinstance(outcome, Measurement):
                yield job.key, Measured(outcome.seconds, outcome.spread, outcome.reference), outcome.device
            else:
                yield job.key, Failed(str(outcome)), ""
        yield from ((decision, Failed(f"it can't be built: {reason}"), "") for decision, reason in failed)

    def close(self) -> None:
        """End the processes and give up the devices."""
        self._makers.close()
        self._pool.close()

    def _open(self, task: Task) -> builders.Task:
        key = task.key, str(task.sizes)
        if key not in self._opened:
            points = [task.point(index) for index in range(task.points)]
            self._opened[key] = builders.Task.of(task.kernel, self._target, points)
        return self._opened[key]

    def _reference(self, task: Task) -> Built:
        """The program of the default schedule."""
        key = task.key, str(task.sizes)
        if key not in self._references:
            (self._references[key],) = self._makers.build_all([Build(self._open(task))])
        return self._references[key]
