"""Tasks and trials as events and reports show them: plain values that JSON can hold."""

from __future__ import annotations

from typing import Any, TypeAlias

from greencc.tuning.records import Failed, Measured, Trial
from greencc.tuning.state import TaskState

Event: TypeAlias = dict[str, Any]


def summary(state: TaskState) -> Event:
    """A task as events and reports show it."""
    default, best = state.default, state.best
    return {
        "workload": state.task.key,
        "kernel": state.task.name,
        "text": state.task.text,
        "node": state.task.nodes[0] if state.task.nodes else None,
        "sizes": {name: list(values) for name, values in state.task.sizes.items()},
        "launches": state.task.launches,
        "plans": sum(space.size for space in state.task.spaces.values()),
        "trials": state.trials,
        "failures": state.failures,
        "default_us": None if default is None else [s * 1e6 for s in default.seconds],
        "limit_us": None if state.task.limits is None else [s * 1e6 for s in state.task.limits],
        "ratio": state.ratio,
        "share_of_limit": state.share_of_limit,
        "rule": None if best is None else best.rule,
        "plan": None if best is None else best.plan,
        "finished": state.finished,
    }


def trial_event(trial: Trial) -> Event:
    """A trial likewise."""
    outcome = trial.outcome
    return {
        "rule": trial.rule,
        "plan": trial.plan,
        "device": trial.device,
        "ratio": ratio_of(outcome),
        "seconds": list(outcome.seconds) if isinstance(outcome, Measured) else None,
        "spread": list(outcome.spread) if isinstance(outcome, Measured) else None,
        "error": outcome.reason if isinstance(outcome, Failed) else None,
    }


def ratio_of(outcome: Measured | Failed) -> float | None:
    """Seconds over those of the default schedule; None of what failed."""
    return outcome.ratio if isinstance(outcome, Measured) else None
