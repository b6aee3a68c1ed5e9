"""What `greencc tune` does: from a model to records of how its kernels are scheduled best."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from greencc.errors import GreenccError, UserError
from greencc.files import check_writable
from greencc.limits import Limits
from greencc.model_options import ModelOptions
from greencc.optimize import optimize_model
from greencc.targets.base import Target
from greencc.targets.cpu.target import CpuTarget
from greencc.tuning.builders import Builders
from greencc.tuning.check import Check, ModelCheck
from greencc.tuning.credentials import read_token
from greencc.tuning.database import Database
from greencc.tuning.devices import LocalDevice
from greencc.tuning.events import summary
from greencc.tuning.fleet import Fleet
from greencc.tuning.lab import Workshop
from greencc.tuning.machine import limits_of
from greencc.tuning.plans import RecordedPlans
from greencc.tuning.pool import Pool
from greencc.tuning.records import Failed, Scope, now
from greencc.tuning.session import Budget, Listener, Outcome, Session
from greencc.tuning.state import TaskState
from greencc.tuning.tasks import extract_tasks, guard_points, tuning_points
from greencc.tuning.tracker import check_key, parse_address
from greencc.tuning.writer import Writer

Progress = Callable[[str], None]

# What a trial takes, about, for the estimate of a dry run: a build and a measurement of a small kernel.
_TRIAL_SECONDS = 0.4
# How often plans are given up with which the whole model is slower.
_MOST_REPAIRS = 4
_USUAL_TRIALS = 100
"""Plans tried of a kernel until nothing better comes, about."""


@dataclass(frozen=True)
class TuneRequest:
    """What is asked of a session.

    Attributes:
        database: the folder that keeps the records.
        budget: when it ends.
        tune_at: sizes by the model's symbolic dimensions.
        fleet: HOST:PORT of a tracker whose devices measure; None for this machine.
        fleet_key: the key that they are registered with.
        token_file: holds what they ask for; None for the environment's GREENCC_DEVICE_TOKEN, if it is set.
        dry_run: whether to say only what would be done.
        report: an HTML file to write; None for none.
    """

    database: Path
    budget: Budget
    tune_at: Mapping[str, Sequence[int]]
    fleet: str | None = None
    fleet_key: str | None = None
    token_file: Path | None = None
    dry_run: bool = False
    report: Path | None = None


def tune_model(
    model: Path, target: Target, options: ModelOptions, request: TuneRequest, *, listen: Listener, progress: Progress
) -> dict[str, Any]:
    """Tune the kernels of `model` for `target`; see `greencc.api.tune` for the result.

    Raises:
        UserError: a package is missing, the request doesn't fit the model, or nothing can measure.
    """
    _check(request)
    if request.fleet is None and not target.runs_here and not request.dry_run:
        raise UserError(f"--target: this machine can't run code for {_title(target)}: give devices with --rpc")

    optimized = optimize_model(model, options, target=target, progress=progress)
    limits = None if request.fleet is not None else _limits(target, progress)
    progress("finding what can be tuned")
    tasks, untuned = extract_tasks(optimized.result.module, target, request.tune_at, limits)
    if not tasks:
        raise UserError(f"{model}: none of its kernels can be tuned for {_title(target)}")
    database, scope = Database(request.database), Scope.of(target)
    records = database.records(scope)
    head: dict[str, Any] = {
        "model": str(model),
        "database": str(request.database),
        "target": dict(scope.target),
        "target_text": scope.title,
        "limits": None if limits is None else asdict(limits),
        "untuned": [asdict(item) for item in untuned],
    }
    if request.dry_run:
        states = [TaskState(task, records.failed(task.key)) for task in tasks]
        for state in states:
            state.add(records.trials(state.task.key, state.task.sizes))
        listed = [summary(state) | {"rules": list(state.task.spaces)} for state in states]
        return {**head, "dry_run": True, "tasks": listed, "estimate": _estimate(states, request.budget)}
    is_local = request.fleet is None
    with database.writer(scope) as writer:
        lab = _open_lab(target, request, lambda message: listen({"event": "note", "message": message}))
        try:
            session = Session(
                tasks,
                lab,
                records,
                writer,
                budget=request.budget,
                threads=target.threads,
                listen=listen,
                is_local=is_local,
            )
            outcome = session.run()
        finally:
            lab.close()
        checks: list[Check] = []
        if is_local and outcome.error is None and not outcome.was_interrupted:
            module = optimized.result.module
            points = [*tuning_points(module, request.tune_at), *guard_points(module, request.tune_at)]
            # What was found is on record by now: an interruption costs the comparison alone.
            with suppress(KeyboardInterrupt):
                checks = _settle(ModelCheck(module, target, progress), database, writer, outcome.states, points)
    result = {**head, **_report(outcome, [check.as_json() for check in checks])}
    if request.report is not None:
        from greencc.tuning.report import write_report

        write_report(request.report, result)
    return result


def _check(request: TuneRequest) -> None:
    """Raise UserError where the request is wrong by itself."""
    budget = request.budget
    if budget.trials is not None and budget.trials < 1:
        raise UserError(f"--trials {budget.trials}: at least one is needed")
    if budget.runs is not None and budget.runs < 1:
        raise UserError(f"--stop-when-unprofitable {budget.runs}: give the number of runs that it has to pay within")
    if (request.fleet is None) != (request.fleet_key is None):
        raise UserError("--rpc and --rpc-key go together: where the tracker is, and how the devices are registered")
    if request.token_file is not None and request.fleet is None:
        raise UserError(f"--token-file {request.token_file}: it is for devices: add --rpc and --rpc-key")
    if request.fleet is not None and request.fleet_key is not None:
        parse_address(request.fleet)
        check_key(request.fleet_key)
        read_token(request.token_file)
    if request.report is not None:
        check_writable(request.report)
    folder = next(path for path in (request.database, *request.database.resolve().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--db {request.database}: {folder} is not a folder that can be written to")


def _settle(
    model: ModelCheck,
    database: Database,
    writer: Writer,
    states: Sequence[TaskState],
    points: Sequence[Mapping[str, int]],
) -> list[Check]:
    """Compare the whole model at every point, and give up plans with which it is slower than without.

    A kernel that is faster alone may leave less of the caches to others, or wake threads that had better sleep.
    """
    for _ in range(_MOST_REPAIRS):
        records = database.records(writer.scope)
        plans = RecordedPlans(records)
        checks = model.compare(plans, points)
        worst = max((check for check in checks if check.is_slower), key=lambda check: check.ratio, default=None)
        followed = {state.task.key: trial for state in states if (trial := records.answer(state.task.key)) is not None}
        if worst is None or not followed:
            return checks
        at = ", ".join(f"{name}={size}" for name, size in worst.sizes.items())
        for key, alone in model.culprits(plans, list(followed), worst.sizes).items():
            reason = f"with it the whole model takes {alone.ratio:.3f} of its time" + (f" at {at}" if at else "")
            trial = replace(followed[key], outcome=Failed(reason), at=now(), thorough=True)
            writer.append(trial)
            for state in states:
                if (state.task.key, dict(state.task.sizes)) == (key, dict(trial.sizes)):
                    state.add([trial])
    return checks


def _report(outcome: Outcome, checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "dry_run": False,
        "stopped": outcome.stopped,
        "interrupted": outcome.was_interrupted,
        "error": None if outcome.error is None else str(outcome.error),
        "seconds": outcome.seconds,
        "trials": sum(state.trials for state in outcome.states),
        "new_trials": outcome.new_trials,
        "failures": sum(state.failures for state in outcome.states),
        "default_ms": outcome.default_seconds * 1e3,
        "model_ms": outcome.best_seconds * 1e3,
        "payback": outcome.payback.as_json(),
        "check": list(checks),
        "history": [list(point) for point in outcome.history],
        "tasks": [summary(state) | {"curve": state.curve} for state in outcome.states],
    }


def _limits(target: Target, progress: Progress) -> Limits | None:
    """The limits of this machine's CPU; None where they can't be measured. Those of GPUs are not."""
    if not isinstance(target, CpuTarget) or not target.runs_here:
        return None
    progress("measuring the machine's limits")
    try:
        return limits_of(target)
    except GreenccError as error:
        progress(f"going on without the machine's limits: {error}")
        return None


def _open_lab(target: Target, request: TuneRequest, progress: Progress) -> Workshop:
    makers = Builders(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if request.fleet is None:
        return Workshop(target, makers, Pool([LocalDevice(target)], log=progress), overlap=False)
    fleet = Fleet(request.fleet, request.fleet_key or "", target, token_file=request.token_file, log=progress)
    return Workshop(target, makers, fleet.pool, overlap=True)


def _estimate(states: Sequence[TaskState], budget: Budget) -> str:
    done = sum(state.trials for state in states)
    open_ = [state for state in states if state.finished is None]
    wanted = budget.trials if budget.trials is not None else done + _USUAL_TRIALS * len(open_)
    more = max(0, wanted - done) if open_ else 0
    seconds = more * _TRIAL_SECONDS
    if budget.seconds is not None:
        seconds = min(seconds, budget.seconds)
    minutes = f"about {max(1, round(seconds / 60))} min on one device" if more else "nothing"
    return f"{len(open_)} of {len(states)} kernels, up to {more} trials, {minutes}"


def _title(target: Target) -> str:
    return Scope.of(target).title
