"""The plans of a tuning database, as a compilation asks for them."""

from __future__ import annotations

from pathlib import Path

from tvm import tirx

from greencc.targets.base import Target
from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.workload import workload_key
from greencc.tuning.database import Database, Records
from greencc.tuning.records import Scope


class RecordedPlans:
    """The best plan of every kernel, by what was recorded; see greencc.targets.tuning.planned.Plans."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._decisions: dict[str, Decision | None] = {}

    @property
    def kernels(self) -> int:
        """How many different kernels were asked for."""
        return len(self._decisions)

    @property
    def answered(self) -> int:
        """For how many of them there is a plan."""
        return sum(decision is not None for decision in self._decisions.values())

    def decision(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Decision | None:
        """The best plan of a kernel, or None where the default schedule is as fast or nothing is known."""
        key = workload_key(func, constants)
        if key not in self._decisions:
            trial = self._records.answer(key)
            self._decisions[key] = None
            if trial is not None and trial.plan is not None:
                self._decisions[key] = Decision(trial.rule, trial.plan)
        return self._decisions[key]


def recorded_plans(folder: Path, target: Target) -> RecordedPlans:
    """The plans that a database holds for a target.

    Raises:
        UserError: there is no database, it is empty, can't be read, or is one for other targets or versions.
    """
    return RecordedPlans(Database(folder).scope(Scope.of(target)))
