"""Where the models lie that artifacts of this user were compiled from.

An artifact holds no path, or it would differ from machine to machine. So the path goes into the user's cache,
under the model's hash: `bench --vs` finds the original there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from pathlib import Path

from greencc.artifact.manifest import Source
from greencc.caching import cache_folder
from greencc.errors import UserError

_MOST_ENTRIES = 1000


def remember_source(source: Source, model: Path) -> None:
    """Note where `source` lies. A cache that can't be written is not worth an error."""
    file = _index_file()
    entries = _read_index(file)
    entries.pop(source.sha256, None)
    entries[source.sha256] = str(model.resolve())
    staged = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.write_text(json.dumps(dict(list(entries.items())[-_MOST_ENTRIES:]), indent=1) + "\n")
            staged.replace(file)
        finally:
            staged.unlink(missing_ok=True)


def find_source(source: Source) -> Path:
    """The model that an artifact was compiled from.

    Raises:
        UserError: it is not known here, is gone, or has changed since.
    """
    known = _read_index(_index_file()).get(source.sha256)
    remedy = "name the model with --model FILE"
    if known is None:
        raise UserError(f"the model {source.name!r} was not compiled on this machine: {remedy}")
    path = Path(known)
    if not path.exists():
        raise UserError(f"{path}, the model that this was compiled from, is gone: {remedy}")
    if path.is_file() and _sha256(path) != source.sha256:
        raise UserError(f"{path} has changed since this was compiled from it: {remedy}")
    return path


def _index_file() -> Path:
    return cache_folder() / "sources.json"


def _read_index(file: Path) -> dict[str, str]:
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {str(key): value for key, value in entries.items() if isinstance(value, str)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
