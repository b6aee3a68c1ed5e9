"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greencc.errors import UserError


def check_writable(path: Path) -> None:
    """Refuse a destination that can't be written, before the work whose result it is for.

    Raises:
        UserError: the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: {path.parent} is not a folder that can be written to")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there takes its place at the end, unless something is raised.

    Raises:
        UserError: the file can't be written; what was there is left as it was.
    """
    check_writable(path)
    staged = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        yield staged
        staged.replace(path)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error}") from error
    finally:
        staged.unlink(missing_ok=True)
