"""The files of a tuning database: `records-<digest of the scope>-<random>.jsonl`, each of one writer and one scope.

Nobody appends to a file but the process that made it, so nothing is locked. Whoever compacts a folder writes a new
file first and removes what is in it only then: at every moment all records are there, some of them twice.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from greencc.errors import UserError
from greencc.tuning.lines import (
    MOST_BYTES,
    Line,
    decode,
    header_line,
    line_of,
    note_of,
    parse_header,
    parse_line,
    scope_of,
    trial_of,
)
from greencc.tuning.records import Scope

_NAME = re.compile(r"records-([0-9a-f]{12})-[0-9a-f]+\.jsonl")

EXPORT_FORMAT = 1
"""Of one file that holds the best plans only; see `greencc.tuning.maintenance.export`."""


@dataclass(frozen=True)
class RecordFile:
    """A file as it was read.

    Attributes:
        path: where it lies.
        scope: its header's; None where that is damaged.
        lines: its records by their lines.
        damaged: how many lines are not whole.
    """

    path: Path
    scope: Scope | None
    lines: Mapping[bytes, Line]
    damaged: int

    def is_of(self, scope: Scope) -> bool:
        """Whether its records are of a scope; where the header is damaged, the name still says so."""
        if self.scope is not None:
            return self.scope == scope
        found = _NAME.fullmatch(self.path.name)
        return found is not None and found[1] == scope.digest


@dataclass(frozen=True)
class ScopeRecords:
    """All records of a scope, by their lines: what is there twice counts once."""

    scope: Scope
    lines: Mapping[bytes, Line]


@dataclass(frozen=True)
class Contents:
    """What several files hold.

    Attributes:
        files: the files of records.
        scopes: what each scope has.
        read: number of records, those that are there several times counted as often.
    """

    files: tuple[RecordFile, ...]
    scopes: tuple[ScopeRecords, ...]
    read: int

    @property
    def damaged(self) -> dict[str, int]:
        """Lines that aren't whole, or whose scope isn't known, by path of the file."""
        counts = {str(file.path): file.damaged + (len(file.lines) if self._is_lost(file) else 0) for file in self.files}
        return {path: count for path, count in counts.items() if count}

    @property
    def known_files(self) -> tuple[RecordFile, ...]:
        """The files whose scope is known."""
        return tuple(file for file in self.files if not self._is_lost(file))

    def _is_lost(self, file: RecordFile) -> bool:
        return not any(file.is_of(records.scope) for records in self.scopes)


def record_files(folder: Path) -> list[Path]:
    """The files of records in a folder, in a fixed order; none where there is no folder.

    Raises:
        UserError: it can't be read.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder) if _NAME.fullmatch(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: can't be read as a tuning database: {error.strerror}") from error


def load(paths: Sequence[Path], only: Scope | None = None) -> Contents:
    """What folders of records, or exported files, hold; with `only`, of other scopes no more than that they are there.

    Raises:
        UserError: a file can't be read, or is of a newer format.
    """
    files = [file for path in paths if not path.is_file() for file in _read_folder(path, only)]
    exported = [found for path in paths if path.is_file() for found in read_export(path)]
    known = [*(found.scope for found in exported), *(file.scope for file in files if file.scope is not None)]
    if only is not None:
        known.append(only)
    scopes: list[ScopeRecords] = []
    read = 0
    for _, scope in sorted({scope.digest: scope for scope in known}.items()):
        parts = [found.lines for found in exported if found.scope == scope]
        own = [file for file in files if file.is_of(scope)]
        if parts or own:
            lines: dict[bytes, Line] = {}
            for part in (*parts, *(file.lines for file in own)):
                lines.update(part)
                read += len(part)
            scopes.append(ScopeRecords(scope, lines))
    return Contents(tuple(files), tuple(scopes), read)


def _read_folder(folder: Path, only: Scope | None) -> list[RecordFile]:
    """The files of a folder. Where merge or prune takes one away meanwhile, what it held is in another one by then."""
    while True:
        files = record_files(folder)
        try:
            found = [read_file(file, only) for file in files]
        except UserError:
            if all(map(os.path.lexists, files)):
                raise
            continue
        if all(map(os.path.lexists, files)):
            return found


def read_file(path: Path, only: Scope | None = None) -> RecordFile:
    """The records of a file; of one that belongs to another scope than `only`, the header.

    Raises:
        UserError: it can't be read, or is of a newer format.
    """
    lines: dict[bytes, Line] = {}
    damaged = 0
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: not a regular file: remove it")
        with path.open("rb") as stream:
            header = stream.readline(MOST_BYTES)
            scope = parse_header(header, str(path))
            damaged += bool(header) and scope is None
            if only is not None and scope is not None and scope != only:
                return RecordFile(path, scope, {}, 0)
            while line := stream.readline(MOST_BYTES):
                whole = line
                while len(line) == MOST_BYTES and not line.endswith(b"\n"):
                    line = stream.readline(MOST_BYTES)
                item = parse_line(whole)
                if item is None:
                    damaged += 1
                else:
                    lines[whole.rstrip(b"\r\n")] = item
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}: mend or remove it") from error
    return RecordFile(path, scope, lines, damaged)


def read_export(path: Path) -> list[ScopeRecords]:
    """What `greencc db export` wrote.

    Raises:
        UserError: it can't be read, is something else, or is of a newer format.
    """
    try:
        document = decode(path.read_text("utf-8"))
        version = document["format"] if isinstance(document, dict) else None
        if type(version) is int and version > EXPORT_FORMAT:
            raise UserError(f"{path}: exported plans of format {version}, this greencc reads {EXPORT_FORMAT}")
        found = []
        for entry in document["scopes"]:
            items: list[Line] = [*map(note_of, entry["workloads"]), *map(trial_of, entry["plans"])]
            found.append(ScopeRecords(scope_of(entry["scope"]), {line_of(item).rstrip(): item for item in items}))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: neither a folder of tuning records nor what greencc db export wrote") from error
    return found


def new_path(folder: Path, scope: Scope) -> Path:
    """A name that no file has."""
    return folder / f"records-{scope.digest}-{secrets.token_hex(8)}.jsonl"


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rewrite(folder: Path, old: Iterable[RecordFile], wanted: Iterable[ScopeRecords]) -> None:
    """Make one file for each scope of what is wanted, and remove files that were read before.

    A process that still writes to one of those notices and goes on in another file (greencc.tuning.writer); what it
    has written since the file was read is kept as well.

    Raises:
        UserError: it can't be written; everything is as it was.
    """
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for records in wanted:
            if records.lines:
                path = new_path(folder, records.scope)
                written.append((path.with_name(f".{path.name}.tmp"), path))
                _write(written[-1][0], records.scope, records.lines)
        for staged, path in written:
            staged.replace(path)
        sync_folder(folder)
        for file in old:
            _remove(file)
    except OSError as error:
        raise UserError(f"{folder}: can't be written: {error.strerror}: what was there is still there") from error
    finally:
        for staged, _ in written:
            staged.unlink(missing_ok=True)


def _write(path: Path, scope: Scope, lines: Iterable[bytes]) -> None:
    with path.open("xb") as stream:
        stream.write(header_line(scope))
        stream.writelines(line + b"\n" for line in lines)
        stream.flush()
        os.fsync(stream.fileno())


def _remove(file: RecordFile) -> None:
    if file.scope is None:
        file.path.unlink(missing_ok=True)
        return
    # Under a new name it is still a file of records, but its writer sees that the old name is gone. What that has
    # reported as written before is in the file by now.
    moved = new_path(file.path.parent, file.scope)
    file.path.rename(moved)
    late = {line: item for line, item in read_file(moved).lines.items() if line not in file.lines}
    if late:
        staged = moved.with_name(f".{moved.name}.tmp")
        _write(staged, file.scope, late)
        staged.replace(new_path(moved.parent, file.scope))
    moved.unlink()
