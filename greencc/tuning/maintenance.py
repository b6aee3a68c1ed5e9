"""What is done with tuning databases beside tuning: to list, merge, prune and export them. Results are JSON values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from greencc.errors import UserError
from greencc.files import check_writable, written_whole
from greencc.tuning.database import Records, Sizes, best_of, check_filled
from greencc.tuning.files import EXPORT_FORMAT, Contents, ScopeRecords, load, record_files, rewrite
from greencc.tuning.lines import note_json, trial_json
from greencc.tuning.records import Failed, Measured, Trial, WorkloadNote, running_versions

KEEP = 64
"""Plans of a kernel that pruning keeps: enough for a model of costs to begin with."""
FAILURE_DAYS = 30.0
"""How long pruning keeps failures: what failed for good fails again, at the cost of one trial."""
_MOST_DAYS = 36500.0


def listing(folders: Sequence[Path]) -> dict[str, Any]:
    """What databases hold together, kernel by kernel.

    Returns:
        `scopes`: each with its `scope`, a `title`, `devices`, and `workloads`, those first that take the model the most
        time; `trials`, `failures`, `files`, `bytes`; `damaged`, the number of lines that aren't whole, by file.

    Raises:
        UserError: there is none, or a file can't be read.
    """
    contents = _load(folders)
    scopes = [_scope_listing(found) for found in sorted(contents.scopes, key=lambda found: found.scope.title)]
    files = [*(file.path for file in contents.files), *(folder for folder in folders if folder.is_file())]
    return {
        "folders": list(map(str, folders)),
        "scopes": scopes,
        "trials": sum(scope["trials"] for scope in scopes),
        "failures": sum(scope["failures"] for scope in scopes),
        "files": len(files),
        "bytes": _size(files),
        "damaged": contents.damaged,
    }


def merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Make `out` hold what all folders hold, in one file for each scope. Folders other than `out` stay as they are.

    Returns:
        `out`; the number of `records`, and that of those that it had `before`; `duplicates`, records that were there
        more than once; `damaged` as of `listing`; `scopes`, `bytes`.

    Raises:
        UserError: a folder is no database, or `out` can't be written. Nothing has changed.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: not a folder")
    sources = [out if out.exists() and folder.exists() and folder.samefile(out) else folder for folder in folders]
    whole = load(list(dict.fromkeys([out, *sources])))
    check_filled(sources, whole)
    own = [file for file in whole.known_files if file.path.parent == out]
    rewrite(out, own, whole.scopes)
    records = sum(len(found.lines) for found in whole.scopes)
    return {
        "out": str(out),
        "records": records,
        "before": len({line for file in own for line in file.lines}),
        "duplicates": whole.read - records,
        "damaged": whole.damaged,
        "scopes": len(whole.scopes),
        "bytes": _bytes(out),
    }


def prune(
    folders: Sequence[Path], keep: int = KEEP, failure_days: float = FAILURE_DAYS, other_versions: bool = False
) -> dict[str, Any]:
    """Remove from each folder what a compilation and a further search have little use for; never an answer.

    Args:
        folders: the databases.
        keep: how many plans of a kernel stay, at each of the sizes that it was tuned at; the fastest.
        failure_days: failures that are older go.
        other_versions: also remove all that was measured with other versions of TVM and greencc than these.

    Returns:
        `folders`: for each its `folder`, `records`, how many were `removed` by reason, `bytes_before`, `bytes_after`.

    Raises:
        UserError: a folder is no database or can't be written.
    """
    if keep < 1:
        raise UserError(f"--keep {keep}: at least one plan of a kernel stays")
    if not 0 <= failure_days <= _MOST_DAYS:
        raise UserError(f"--failures {failure_days:g}: expected a number of days, at most {_MOST_DAYS:g}")
    for folder in folders:
        _load([folder])
        if not folder.is_dir():
            raise UserError(f"{folder}: not a folder")
    oldest = datetime.now(timezone.utc) - timedelta(days=failure_days)
    limit = oldest.isoformat(timespec="milliseconds")
    return {"folders": [_prune_folder(folder, keep, limit, other_versions) for folder in folders]}


def export(folders: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """The plans that compilations would take, of all scopes. A file of them can be read instead of a folder.

    Args:
        folders: the databases.
        out: a file to write them to; None for none.

    Returns:
        `format`, and `scopes`: each with its `scope`; `plans`, the records of those; and `workloads`, what is known of
        their kernels.

    Raises:
        UserError: a folder is no database, or the file can't be written.
    """
    if out is not None:
        check_writable(out)
    scopes = []
    for found in _load(folders).scopes:
        records = Records(found.lines)
        answers = [trial for workload in records.workloads if (trial := records.answer(workload)) is not None]
        notes = [note for trial in answers if (note := records.note(trial.workload)) is not None]
        listed = {"workloads": list(map(note_json, notes)), "plans": list(map(trial_json, answers))}
        scopes.append({"scope": found.scope.as_json, **listed})
    document = {"format": EXPORT_FORMAT, "scopes": scopes}
    if out is not None:
        with written_whole(out) as staged:
            staged.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
    return document


def _load(folders: Sequence[Path]) -> Contents:
    contents = load(folders)
    check_filled(folders, contents)
    return contents


def _bytes(folder: Path) -> int:
    return _size(record_files(folder))


def _size(files: Iterable[Path]) -> int:
    """Bytes of files; one that is taken away meanwhile has none."""
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _scope_listing(found: ScopeRecords) -> dict[str, Any]:
    records = Records(found.lines)
    tuned = [(workload, sizes) for workload in records.workloads for sizes in records.sizes(workload)]
    entries = [_workload_listing(records, workload, sizes) for workload, sizes in tuned]
    return {
        "scope": found.scope.as_json,
        "title": found.scope.title,
        "devices": sorted({item.device for item in found.lines.values() if isinstance(item, Trial)}),
        "trials": sum(entry["trials"] for entry in entries),
        "failures": sum(entry["failures"] for entry in entries),
        "workloads": sorted(entries, key=lambda entry: -(entry["launches"] or 1) * (entry["default_seconds"] or 0.0)),
    }


def _workload_listing(records: Records, workload: str, sizes: Sizes) -> dict[str, Any]:
    """One kernel at the sizes that it was tuned at; its seconds are those at which the best plan gains least."""
    note, trials, best = records.note(workload), records.trials(workload, sizes), records.best(workload, sizes)
    seconds, default = _seconds(best, records.ranking(workload, sizes))
    return {
        "workload": workload,
        "text": None if note is None else note.text,
        "sizes": {name: list(values) for name, values in sizes.items()},
        "launches": None if note is None else note.launches,
        "limit_seconds": None if note is None else note.limit,
        "trials": len(trials),
        "failures": sum(map(_is_failure, trials)),
        "default_seconds": default,
        "best_seconds": seconds,
        "ratio": None if seconds is None or default is None else seconds / default,
        "rule": None if best is None else best.rule,
        "plan": None if best is None or best.plan is None else dict(best.plan),
        "newest": trials[-1].at,
    }


def _seconds(best: Trial | None, ranking: Sequence[Trial]) -> tuple[float | None, float | None]:
    """Seconds of what a compilation would take, and of the default schedule."""
    outcome = best.outcome if best is not None else ranking[0].outcome if ranking else None
    if not isinstance(outcome, Measured):
        return None, None
    times = zip(outcome.seconds, outcome.reference, strict=True)
    seconds, default = max(times, key=lambda pair: pair[0] / pair[1])
    return (default if best is None else seconds), default


def _prune_folder(folder: Path, keep: int, oldest: str, other_versions: bool) -> dict[str, Any]:
    before, contents = _bytes(folder), load([folder])
    kept: list[ScopeRecords] = []
    removed: Counter[str] = Counter(damaged=sum(file.damaged for file in contents.known_files))
    for found in contents.scopes:
        if other_versions and (found.scope.tvm, found.scope.greencc) != running_versions():
            removed["other_versions"] += len(found.lines)
            continue
        wanted = set(map(id, _wanted(Records(found.lines), keep, oldest)))
        kept.append(ScopeRecords(found.scope, {line: item for line, item in found.lines.items() if id(item) in wanted}))
        gone = [item for item in found.lines.values() if id(item) not in wanted]
        failures = sum(isinstance(item, Trial) and _is_failure(item) for item in gone)
        removed.update(failures=failures, slower=len(gone) - failures)
    if removed.total():
        rewrite(folder, contents.known_files, kept)
    return {
        "folder": str(folder),
        "records": sum(len(found.lines) for found in kept),
        "removed": {reason: removed[reason] for reason in ("slower", "failures", "other_versions", "damaged")},
        "bytes_before": before,
        "bytes_after": _bytes(folder),
    }


def _wanted(records: Records, keep: int, oldest: str) -> Iterator[Trial | WorkloadNote]:
    """The trials that stay, and what is known of their kernels: what isn't ranked can never be an answer."""
    for workload in records.workloads:
        stay = [
            trial
            for sizes in records.sizes(workload)
            for trial in (
                *_first(records.ranking(workload, sizes), keep),
                *(trial for trial in records.trials(workload, sizes) if _is_failure(trial) and trial.at >= oldest),
            )
        ]
        yield from stay
        if stay:
            yield from records.notes(workload)


def _first(ranking: Sequence[Trial], keep: int) -> list[Trial]:
    """The fastest, the fastest of those that are certain to be faster, and the default schedule."""
    answer = best_of(ranking)
    return [trial for i, trial in enumerate(ranking) if i < keep or trial is answer or trial.plan is None]


def _is_failure(trial: Trial) -> bool:
    return isinstance(trial.outcome, Failed)
