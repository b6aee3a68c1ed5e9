"""Tuning databases, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from greencc.render.tables import facts, new_table, size
from greencc.tuning.records import Scope

Result = Mapping[str, Any]

_REASONS = {
    "slower": "slower, repeated or overruled",
    "failures": "failed long ago",
    "other_versions": "of other versions",
    "damaged": "damaged",
}


def database_list(result: Result) -> RenderableType:
    """Kernels that were tuned, by scope."""
    parts: list[RenderableType] = []
    for scope in result["scopes"]:
        versions = f"TVM {scope['scope']['tvm']}, greencc {scope['scope']['greencc']}"
        devices = [("on", ", ".join(map(_clean, scope["devices"])))] if scope["devices"] else []
        parts += [facts([("tuned for", _clean(scope["title"])), *devices, ("with", _clean(versions))]), _kernels(scope)]
    trials = f"{result['trials']:,} trials, {result['failures']:,} failed"
    files = f"{size(result['bytes'])} in {_count(result['files'], 'file')}"
    return Group(*parts, facts([("total", f"{trials}; {files}"), *_damaged(result)]))


def merge_report(result: Result) -> RenderableType:
    """What a folder holds now."""
    counts = f"{result['records']:,} records for {_count(result['scopes'], 'target')} ({size(result['bytes'])})"
    rows = [
        ("database", _clean(result["out"])),
        ("holds", counts),
        ("before", f"{result['before']:,} records"),
        ("duplicates", f"{result['duplicates']:,}"),
    ]
    return facts([*rows, *_damaged(result)])


def prune_report(result: Result) -> RenderableType:
    """What was removed from each folder."""
    return Group(*(facts(_pruned(folder)) for folder in result["folders"]))


def export_report(result: Result) -> RenderableType:
    """How many plans there are, by target."""
    scopes = [(_count(len(entry["plans"]), "plan"), Scope(**entry["scope"])) for entry in result["scopes"]]
    return facts([(plans, _clean(f"for {scope.title} with {scope.versions}")) for plans, scope in scopes])


def _kernels(scope: Result) -> RenderableType:
    numbers = ("trials", "failed", "default\nus", "best\nus", "speed-up")
    table = new_table("kernel", *numbers, "newest", numbers=numbers)
    for entry in scope["workloads"]:
        is_faster = entry["plan"] is not None
        nothing = "" if entry["ratio"] is None else "none"
        table.add_row(
            _kernel(entry),
            f"{entry['trials']:,}",
            f"{entry['failures']:,}" if entry["failures"] else "",
            _microseconds(entry["default_seconds"]),
            _microseconds(entry["best_seconds"]) if is_faster else "",
            f"{1 / entry['ratio']:.2f}x" if is_faster else nothing,
            entry["newest"][:10],
        )
    return table


def _kernel(entry: Result) -> Text:
    """What a kernel is, how often the model launches it, and the sizes at which it was tuned, as in "1x16, 1x128"."""
    more = [] if entry["launches"] is None else [_count(entry["launches"], "launch", "launches")]
    if entry["sizes"]:
        points = ", ".join("x".join(map(str, point)) for point in zip(*entry["sizes"].values(), strict=True))
        more.append(f"at {points}")
    name = _clean(entry["workload"] if entry["text"] is None else entry["text"])
    return Text.assemble(name, (f" ({_clean('; '.join(more))})" if more else "", "dim"))


def _pruned(folder: Result) -> list[tuple[str, str]]:
    removed = [f"{count:,} {_REASONS[reason]}" for reason, count in folder["removed"].items() if count]
    return [
        ("database", _clean(folder["folder"])),
        ("removed", "; ".join(removed) or "nothing"),
        ("kept", f"{folder['records']:,} records"),
        ("size", f"{size(folder['bytes_before'])} -> {size(folder['bytes_after'])}"),
    ]


def _damaged(result: Result) -> list[tuple[str, str]]:
    listed = [f"{_count(count, 'line')} of {_clean(file)}" for file, count in result["damaged"].items()]
    reason = "skipped: a process was stopped while it wrote, or the file was changed"
    return [("damaged", "\n".join([*listed, reason]))] if listed else []


def _count(number: int, thing: str, things: str = "") -> str:
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def _microseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    digits = 0 if seconds >= 100e-6 else 1 if seconds >= 10e-6 else 2
    return f"{seconds * 1e6:,.{digits}f}"


def _clean(text: str) -> str:
    """Text from a file without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
