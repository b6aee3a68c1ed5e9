"""The targets by name. Adding one touches its own folder and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from greencc.errors import UserError
from greencc.targets.base import Target
from greencc.targets.cpu.target import host_target, load_target

TARGETS: dict[str, Callable[[int | None], Target]] = {"cpu": host_target}


def make_target(text: str, threads: int | None = None) -> Target:
    """The target that `--target` names: a registered name (this host), or a JSON file that describes another."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: at least one thread is needed")
    if text in TARGETS:
        return TARGETS[text](threads)
    if text.endswith(".json"):
        return load_target(Path(text), threads)
    raise UserError(f"--target {text}: unknown; known: {', '.join(sorted(TARGETS))}, or a FILE.json")
