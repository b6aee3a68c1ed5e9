"""Appends records to a tuning database: what has been reported as written survives whatever happens to the process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from greencc.errors import UserError
from greencc.tuning.files import new_path, sync_folder
from greencc.tuning.lines import header_line, line_of
from greencc.tuning.records import Scope, Trial, WorkloadNote


class Writer:
    """Writes records of one scope to a file of its own, which it makes for the first of them.

    Threads may share it; processes may not.

    Raises:
        UserError: the folder can't be made or written to.
    """

    def __init__(self, folder: Path, scope: Scope) -> None:
        self._folder, self._scope = folder, scope
        self._lock = threading.Lock()
        self._file: _File | None = None
        self._saved = 0
        self._noted: set[str] = set()
        self._pending: list[bytes] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: can't be made a tuning database: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: not a folder that can be written to")

    def note(self, note: WorkloadNote) -> None:
        """Say what a workload is, once; it is written with the next trial."""
        with self._lock:
            if note.workload not in self._noted:
                self._noted.add(note.workload)
                self._pending.append(line_of(note))

    @property
    def scope(self) -> Scope:
        """Of what it writes."""
        return self._scope

    def append(self, trial: Trial) -> None:
        """Write a trial. It is on the disk when this returns.

        Raises:
            UserError: it can't be written; everything that was written before is whole.
        """
        line = line_of(trial)
        with self._lock:
            try:
                self._append(b"".join((*self._pending, line)))
            except OSError as error:
                self.close()
                raise UserError(
                    f"{self._folder}: a tuning record can't be written: {error.strerror}: "
                    f"the {self._saved} written before it are saved; mend that and tune again, which goes on from them"
                ) from error
            self._pending.clear()
            self._saved += 1

    def close(self) -> None:
        """Close the file; a later record would go to another one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, lines: bytes) -> None:
        """Append to the file, and where somebody has compacted the folder meanwhile, to another one once more."""
        while self._file is None or not self._file.append(lines):
            self.close()
            self._file = _File(new_path(self._folder, self._scope), header_line(self._scope))


class _File:
    """A file that is open for appending, and how much of it is whole."""

    def __init__(self, path: Path, header: bytes) -> None:
        self._path, self._header = path, header
        self._whole = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def append(self, lines: bytes) -> bool:
        """Write whole lines, and say whether the file still has its name: else they may not be seen."""
        is_new = self._whole == 0
        rest = memoryview(self._header + lines if is_new else lines)
        size = len(rest)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
            if is_new:
                sync_folder(self._path.parent)
        except OSError:
            self._cut()
            raise
        self._whole += size
        return self._path.exists()

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def _cut(self) -> None:
        """Take away what was written in part. Where that fails too, readers skip it: nothing follows it."""
        try:
            if self._whole:
                os.ftruncate(self._descriptor, self._whole)
            else:
                self._path.unlink()
        except OSError:
            return
