"""The targets by name. Adding one touches its own folder and one line here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from greencc.errors import UserError
from greencc.targets.base import Target


class Kind(Protocol):
    """What a target's module offers: `greencc.targets.KIND.target`."""

    def local_target(self, device: str, threads: int | None) -> Target:
        """A device of this machine: `device` is what stands behind the colon in `--target kind:device`, or empty."""

    def described_target(self, fields: Mapping[str, Any], where: str, threads: int | None) -> Target:
        """The target that a JSON object describes; `where` names it in messages."""


# What may follow the name, for messages.
KINDS = {"cpu": "", "cuda": "[:N|:sm_NN]", "vulkan": "[:N]"}


def make_target(text: str, threads: int | None = None) -> Target:
    """The target that `--target` names: a kind (this machine's), a device of it, or a JSON file that describes another.

    Raises:
        UserError: there is no such kind or device, or the file doesn't describe a target.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: at least one is needed")
    if text.endswith(".json"):
        return _described(Path(text), threads)
    name, colon, device = text.partition(":")
    if name not in KINDS or (colon and not device):
        known = ", ".join(kind + more for kind, more in KINDS.items())
        raise UserError(f"--target {text}: unknown target; write {known}, or the path of a .json file")
    return _kind(name).local_target(device, threads)


def _kind(name: str) -> Kind:
    """The module of a target, loaded when it is asked for."""
    return importlib.import_module(f"greencc.targets.{name}.target")


def _described(path: Path, threads: int | None) -> Target:
    where = f"--target {path}"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a readable JSON file ({error})") from error
    kind = fields.get("kind", "cpu") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f'{where}: expected an object whose "kind" is one of {", ".join(KINDS)}')
    return _kind(kind).described_target(fields, where, threads)
