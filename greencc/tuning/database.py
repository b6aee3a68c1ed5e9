"""A tuning database: a folder of records that several processes may write to and read at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from math import asinh, inf
from pathlib import Path
from typing import TypeAlias

from greencc.errors import UserError
from greencc.tuning.files import Contents, load
from greencc.tuning.lines import Line
from greencc.tuning.records import Measured, PlanKey, Scope, SizesKey, Trial, WorkloadNote, sizes_key
from greencc.tuning.writer import Writer

Sizes: TypeAlias = Mapping[str, tuple[int, ...]]


class Records:
    """The records of one scope, as they were when they were read.

    Of several measurements of a plan the newest thorough one counts, or else the newest. Only a plan that was measured
    thoroughly is an answer, and one that failed at any sizes of a workload is none at others.
    """

    def __init__(self, lines: Mapping[bytes, Line]) -> None:
        self._trials: dict[str, dict[SizesKey, list[Trial]]] = {}
        self._notes: dict[str, list[WorkloadNote]] = {}
        # In an order of their own, so that of equals always the same one counts, in whatever files they lie.
        for line in sorted(lines):
            item = lines[line]
            if isinstance(item, Trial):
                self._trials.setdefault(item.workload, {}).setdefault(item.sizes_key, []).append(item)
            else:
                self._notes.setdefault(item.workload, []).append(item)

    @property
    def workloads(self) -> tuple[str, ...]:
        """Keys of the kernels that were tried, sorted."""
        return tuple(sorted(self._trials))

    def sizes(self, workload: str) -> tuple[Sizes, ...]:
        """At what sizes of symbolic dimensions a kernel was tried; one without any where all are static."""
        return tuple(dict(key) for key in sorted(self._trials.get(workload, {})))

    def note(self, workload: str) -> WorkloadNote | None:
        """What a kernel is. Of what models say differently, that with most launches."""
        return max(self._notes.get(workload, ()), key=lambda note: note.launches, default=None)

    def notes(self, workload: str) -> tuple[WorkloadNote, ...]:
        """All that is said of a kernel."""
        return tuple(self._notes.get(workload, ()))

    def trials(self, workload: str, sizes: Sizes) -> tuple[Trial, ...]:
        """Everything that was tried, failures as well, the oldest first."""
        return tuple(sorted(self._trials.get(workload, {}).get(sizes_key(sizes), ()), key=lambda trial: trial.at))

    def failed(self, workload: str) -> frozenset[PlanKey]:
        """Plans that failed, at whatever sizes."""
        known = self._trials.get(workload, {}).values()
        return frozenset(t.plan_key for trials in known for t in trials if not isinstance(t.outcome, Measured))

    def ranking(self, workload: str, sizes: Sizes) -> tuple[Trial, ...]:
        """What counts of every plan that works, the default's among them: lowest time over the default's first."""
        failed = self.failed(workload)
        counting = {trial.plan_key: trial for trial in sorted(self.trials(workload, sizes), key=weight)}
        return tuple(sorted((trial for key, trial in counting.items() if key not in failed), key=_ratio))

    def best(self, workload: str, sizes: Sizes) -> Trial | None:
        """The plan to schedule a kernel by, or None where none is known to be faster than the default schedule.

        The size at which it is slowest decides. Faster means: by more than the spread, at every size.
        """
        return best_of(self.ranking(workload, sizes))

    def answer(self, workload: str) -> Trial | None:
        """`best` for who doesn't know sizes: that which was found at the most of them, of equals the newest."""
        found = (self.best(workload, sizes) for sizes in self.sizes(workload))
        return max((trial for trial in found if trial is not None), key=lambda t: (_count(t), t.at), default=None)

    def nearest(self, traits: Mapping[str, float], rule: str, count: int) -> tuple[Trial, ...]:
        """Answers for the kernels that are most alike, by a rule: where to begin with a kernel that isn't known.

        Args:
            traits: of that kernel.
            rule: name of the rule that the answers are to be of.
            count: how many at most.

        Returns:
            The nearest first; one of a kernel of equal traits is among them.
        """
        distances = (
            (_distance(traits, note.traits), workload, trial)
            for workload, trial in self._answers.items()
            if trial.rule == rule and (note := self.note(workload)) is not None
        )
        return tuple(trial for _, _, trial in sorted(distances, key=lambda found: found[:2])[:count])

    @cached_property
    def _answers(self) -> dict[str, Trial]:
        found = ((workload, self.answer(workload)) for workload in self.workloads)
        return {workload: trial for workload, trial in found if trial is not None}


class Database:
    """Records in a folder. Nothing is read or made before it is asked for.

    Args:
        folder: where they lie; for reading also a file that `greencc db export` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def writer(self, scope: Scope) -> Writer:
        """What appends records of `scope`.

        Raises:
            UserError: the folder can't be made or written to.
        """
        return Writer(self.folder, scope)

    def records(self, scope: Scope) -> Records:
        """The records of `scope`; none where there are none, or no folder yet.

        Raises:
            UserError: a file can't be read, or is of a newer format.
        """
        found = [records.lines for records in load([self.folder], scope).scopes if records.scope == scope]
        return Records(found[0] if found else {})

    def scope(self, scope: Scope) -> Records:
        """The records of `scope`, which must be there.

        Raises:
            UserError: there is no database, it is empty, or holds records of other scopes only; or as `records`.
        """
        contents = load([self.folder], scope)
        check_filled([self.folder], contents)
        for found in contents.scopes:
            if found.scope == scope:
                return Records(found.lines)
        raise UserError(f"{self.folder}: {_refusal(scope, [found.scope for found in contents.scopes])}")


def best_of(ranking: Iterable[Trial]) -> Trial | None:
    """The first plan of a ranking that is certain to be faster than the default schedule."""
    return next((trial for trial in ranking if trial.thorough and is_faster(trial)), None)


def is_faster(trial: Trial) -> bool:
    """Whether a plan was measured to be faster than the default schedule, by more than the spread."""
    return trial.plan is not None and isinstance(trial.outcome, Measured) and trial.outcome.is_faster


def weight(trial: Trial) -> tuple[bool, str]:
    """What of several measurements of a plan counts: the one with the largest."""
    return trial.thorough, trial.at


def check_filled(paths: Iterable[Path], contents: Contents) -> None:
    """Raise UserError where a path holds no records of any scope."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: there is no such tuning database; greencc tune makes one")
        files = [file for file in contents.files if file.path.parent == path]
        if path.is_dir() and not files:
            raise UserError(f"{path}: holds no tuning records; greencc tune writes them")
    if not contents.scopes:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: all tuning records are damaged; tune again into another folder")


def _refusal(wanted: Scope, known: list[Scope]) -> str:
    """Why records of other scopes are of no use, by the one that is most alike."""
    nearest = min(known, key=lambda scope: len(scope.differences(wanted)))
    others = f" (and for {len(known) - 1} more)" if len(known) > 1 else ""
    remedy = "tune for it, or name the target it was tuned for"
    if nearest.target == wanted.target:
        remedy = "tune again, or compile with the versions it was tuned with"
    return (
        f"tuned for {nearest.title} with {nearest.versions}{others}; "
        f"this compilation is for {', '.join(nearest.differences(wanted))}: {remedy}"
    )


def _ratio(trial: Trial) -> float:
    return trial.outcome.ratio if isinstance(trial.outcome, Measured) else inf


def _count(trial: Trial) -> int:
    return len(trial.outcome.seconds) if isinstance(trial.outcome, Measured) else 0


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How far apart two kernels are: sums of ratios of traits, in logarithms, those that only one has from zero."""
    return sum(abs(asinh(one.get(name, 0.0)) - asinh(other.get(name, 0.0))) for name in {**one, **other})
