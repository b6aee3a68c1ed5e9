"""Files of records survive whatever happens to processes and disks."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from made_records import SCOPE, note, numbers, trial, write

import greencc
from greencc.errors import UserError
from greencc.tuning.database import Database
from greencc.tuning.files import load, record_files, rewrite

HERE = Path(__file__).parent


def child(*arguments: object) -> subprocess.Popen[str]:
    paths = f"{Path(greencc.__file__).parents[1]}:{HERE}"
    command = [sys.executable, str(HERE / "record_writer.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})


def reported(process: subprocess.Popen[str]) -> set[int]:
    """What a child said that exists, by the lines that it had finished."""
    assert process.stdout is not None
    return {int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")}


# Processes


def test_what_was_reported_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(6)
    expected: set[int] = set()
    for turn in range(20):
        with child(tmp_path, turn) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
            expected |= {first} | reported(process)
    assert len(expected) > 20
    assert numbers(tmp_path) >= expected
    assert len(record_files(tmp_path)) == 20


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    with child(tmp_path, 0, 100) as one, child(tmp_path, 1, 100) as another:
        expected = reported(one) | reported(another)
    assert (one.returncode, another.returncode) == (0, 0)
    assert len(expected) == 200
    assert numbers(tmp_path) == expected
    assert not load([tmp_path]).damaged
    assert len(record_files(tmp_path)) == 2


def test_a_full_disk_is_one_line_and_damages_nothing(tmp_path: Path) -> None:
    with child(tmp_path, 1, 1000, 10_000) as process:
        assert process.stdout is not None
        *done, error = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert error.startswith(f"error {tmp_path}: a tuning record can't be written: File too large: the {len(done)} ")
    assert numbers(tmp_path) == set(map(int, done))
    assert not load([tmp_path]).damaged


@pytest.mark.parametrize("can_truncate", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["first record", "later record"])
def test_writing_goes_on_where_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_truncate: bool, first: bool
) -> None:
    """Half of a line is written before the disk is full; where even that can't be taken back, it is skipped."""
    writer = Database(tmp_path).writer(SCOPE)
    kept = set() if first else {1}
    for number in kept:
        writer.append(trial(number, 0.5))
    plain_write, is_full = os.write, [False]

    def full(descriptor: int, data: bytes) -> int:
        if is_full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        is_full[0] = True
        return plain_write(descriptor, bytes(data)[: len(data) // 2])

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        if not can_truncate:
            patch.setattr(os, "ftruncate", broken)
            patch.setattr(Path, "unlink", broken)
        with pytest.raises(UserError, match=f"No space left on device: the {len(kept)} written before"):
            writer.append(trial(2, 0.5))
    writer.append(trial(3, 0.5))
    assert numbers(tmp_path) == kept | {3}
    assert sum(load([tmp_path]).damaged.values()) == (0 if can_truncate else 1)


def test_a_record_that_did_not_reach_the_disk_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Database(tmp_path).writer(SCOPE)
    writer.append(trial(1, 0.5))

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(UserError, match="Input/output error: the 1 written before"):
            writer.append(trial(2, 0.5))
    assert numbers(tmp_path) == {1}


def test_a_folder_that_can_not_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be made a tuning database: File exists"):
        Database(tmp_path / "file").writer(SCOPE)
    with pytest.raises(UserError, match="can't be made a tuning database: Not a directory"):
        Database(tmp_path / "file" / "below").writer(SCOPE)


def test_nothing_is_written_before_the_first_trial(tmp_path: Path) -> None:
    with Database(tmp_path / "new").writer(SCOPE) as writer:
        writer.note(note())
    assert record_files(tmp_path / "new") == []
    assert Database(tmp_path / "new").records(SCOPE).workloads == ()


def test_a_note_is_written_once(tmp_path: Path) -> None:
    lines = write(tmp_path).read_bytes().splitlines()
    assert [sorted(json.loads(line))[0] for line in lines] == ["crc", "crc", "at", "at", "at"]
    assert "workload" in json.loads(lines[1])


def test_a_writer_notices_that_its_folder_was_compacted(tmp_path: Path) -> None:
    """Between any two records, and between what the compaction read and what it removes."""
    writer = Database(tmp_path).writer(SCOPE)
    writer.append(trial(1, 0.5))
    seen = load([tmp_path])
    writer.append(trial(2, 0.5))  # after the folder was read
    rewrite(tmp_path, seen.files, seen.scopes)
    assert numbers(tmp_path) == {1, 2}
    writer.append(trial(3, 0.5))
    writer.append(trial(4, 0.5))
    assert numbers(tmp_path) == {1, 2, 3, 4}
    assert len(record_files(tmp_path)) == 3


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize(("owner", "name"), [(Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync")])
def test_records_survive_a_compaction_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, turn: int
) -> None:
    """Whichever operation on files it is that fails, each record is still there."""
    write(tmp_path)
    write(tmp_path, first=4)
    seen, plain, calls = load([tmp_path]), getattr(owner, name), count()

    def fails(*arguments: Any, **more: Any) -> Any:
        if next(calls) == turn:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(*arguments, **more)

    with monkeypatch.context() as patch, suppress(UserError, OSError):
        patch.setattr(owner, name, fails)
        rewrite(tmp_path, seen.files, seen.scopes)
    assert numbers(tmp_path) == set(range(1, 7))
