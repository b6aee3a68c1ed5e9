"""Records for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greencc.tuning.database import Database
from greencc.tuning.files import load, record_files
from greencc.tuning.records import DEFAULT_RULE, Failed, Measured, Scope, Trial, WorkloadNote, running_versions

VERSIONS = running_versions()
CPU: dict[str, Any] = {
    "kind": "cpu",
    "triple": "x86_64-linux-gnu",
    "mcpu": "znver4",
    "features": ["avx2", "fma"],
    "threads": 2,
}
SCOPE = Scope(CPU, *VERSIONS)
OTHERS = (Scope({**CPU, "threads": 4}, *VERSIONS), Scope(CPU, "0.26.0", VERSIONS[1]))
TIMES = ("2026-01-01T12:00:00.000+00:00", "2026-06-01T12:00:00.500+00:00", "2999-01-01T00:00:00.000+00:00")


def measured(ratio: float, spread: float = 0.01, reference: float = 1e-3) -> Measured:
    return Measured((reference * ratio,), (spread,), (reference,))


def trial(
    number: int,
    outcome: Measured | Failed | float = 1.0,
    *,
    workload: str = "9f3a5b7c1d2e4f60",
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    at: str = TIMES[0],
) -> Trial:
    """A trial of the plan of a number; 0 is the default schedule."""
    result = measured(outcome) if isinstance(outcome, float) else outcome
    plan = {"rows": number, "order": "panels"} if number else None
    rule = "cpu-matmul" if number else DEFAULT_RULE
    return Trial(workload, sizes or {}, rule, plan, result, "a processor", at, thorough=True)


def note(workload: str = "9f3a5b7c1d2e4f60", **traits: float) -> WorkloadNote:
    return WorkloadNote(workload, f"matmul of {workload}", 3, traits or {"rows": 128.0}, 1e-5)


def numbers(folder: Path) -> set[int]:
    found: set[int] = set()
    for records in load([folder]).scopes:
        assert records.scope == SCOPE
        items = [item for item in records.lines.values() if isinstance(item, Trial)]
        found.update(int(item.plan["rows"]) for item in items if item.plan)
        for item in items:  # each is what was written, not only readable
            number = int(item.plan["rows"]) if item.plan else 0
            assert item.workload in (trial(0).workload, f"{number // 10:016x}")
    return found


def write(folder: Path, count: int = 3, first: int = 1) -> Path:
    """A folder with one file of a few records."""
    with Database(folder).writer(SCOPE) as writer:
        for number in range(first, first + count):
            writer.note(note())
            writer.append(trial(number, 0.5))
    return record_files(folder)[0]
