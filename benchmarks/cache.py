"""Files that tests and benchmarks fetch or make, kept outside the tree and shared by all checkouts.

Each entry is a directory that is filled beside its place and renamed into it, so that it is there whole or
not at all, whoever else makes the same one meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def cache_root() -> Path:
    """GREENCC_CACHE, else greencc in the user's cache directory (XDG_CACHE_HOME, else ~/.cache)."""
    if own := os.environ.get("GREENCC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greencc"


def entry(name: str, fill: Callable[[Path], None]) -> Path:
    """Directory `name` of the cache; when it isn't there, `fill` makes its content where it is told to.

    What an earlier `fill` leaves unfinished is thrown away.
    """
    place = cache_root() / name
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        fill(draft)
        draft.chmod(0o755)
        try:
            draft.rename(place)
        except OSError:
            if not place.is_dir():  # else somebody finished the same entry first, and theirs serves as well
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def key(parts: Iterable[str | bytes]) -> str:
    """A short name for content: the parts' lengths are hashed too, so that no two lists run together."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
