"""Damaged records are skipped, hostile ones are no traceback, and what can't be used is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import OTHERS, SCOPE, note, numbers, trial, write

from greencc.errors import UserError
from greencc.tuning.database import Database, Records
from greencc.tuning.files import RecordFile, load, read_file, rewrite
from greencc.tuning.lines import MOST_BYTES, header_line, line_of, parse_header, parse_line


def test_a_file_that_was_cut_at_any_byte_holds_all_whole_lines(tmp_path: Path) -> None:
    file = write(tmp_path, 2)
    whole = file.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        found = read_file(file)
        lines = sum(end <= length for end in ends)  # the line break itself may be missing
        assert len(found.lines) + (found.scope is not None) == lines
        assert found.damaged == (length not in (0, *ends, *(end + 1 for end in ends)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_garbage_in_a_line_costs_that_line_only(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("garbled")
    file = write(folder, 5)
    lines = file.read_bytes().splitlines(keepends=True)
    hit = data.draw(st.integers(1, len(lines) - 1))
    start = data.draw(st.integers(0, len(lines[hit]) - 2))
    garbage = data.draw(st.binary(min_size=1, max_size=40))
    changed = lines[hit][:start] + garbage + lines[hit][start + data.draw(st.integers(0, 40)) :]
    file.write_bytes(b"".join([*lines[:hit], changed, b"\n", *lines[hit + 1 :]]))
    expected = {line.rstrip() for i, line in enumerate(lines) if i not in (0, hit)}
    found = read_file(file).lines.keys()
    assert found >= expected
    assert found - expected <= {lines[hit].rstrip()}


def test_a_garbled_header_does_not_cost_the_records(tmp_path: Path) -> None:
    file = write(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(b"?" + whole[1:])
    assert len(Database(tmp_path).scope(SCOPE).trials(trial(0).workload, {})) == 3
    assert sum(load([tmp_path]).damaged.values()) == 5  # who asks for all scopes can't know which one it is
    write(tmp_path, first=4)
    assert numbers(tmp_path) == set(range(1, 7))
    assert load([tmp_path]).damaged == {str(file): 1}
    assert len(Database(tmp_path).records(OTHERS[0]).workloads) == 0


def test_a_line_without_end_is_skipped_in_pieces(tmp_path: Path) -> None:
    file = write(tmp_path)
    last = line_of(trial(9, 0.5))
    with file.open("ab") as stream:
        stream.write(b"x" * (2 * MOST_BYTES + 5) + b"\n" + last)
    found = read_file(file)
    assert found.damaged == 1
    assert last.rstrip() in found.lines


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_file_without_records(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "records-0123456789ab-01.jsonl"
    file.write_bytes(content)
    assert read_file(file).lines == {}


def checked(text: str) -> bytes:
    """A line with a right checksum."""
    body = text.encode()[:-1]
    return body + b',"crc":"%08x"}' % crc32(body)


GOOD = json.loads(line_of(trial(1, 0.5)))
GOOD_NOTE = json.loads(line_of(note()))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"trial":' + "[" * 100_000 + "]" * 100_000 + "}",
        "{}",
        '{"trial":"x"}',
        "[1]",
        *(
            json.dumps({**GOOD, **change})
            for change in (
                {"seconds": [float("nan")]},
                {"seconds": [float("inf")]},
                {"seconds": [-1.0]},
                {"seconds": [0]},
                {"seconds": []},
                {"seconds": 1.0},
                {"seconds": ["1"]},
                {"seconds": [True]},
                {"seconds": [10**400]},
                {"seconds": [1.0, 2.0]},
                {"seconds": {"0": 1.0}},
                {"spread": [None]},
                {"trial": 5},
                {"trial": None},
                {"rule": ["x"]},
                {"plan": [1]},
                {"plan": {"rows": 1.5}},
                {"plan": {"rows": None}},
                {"plan": {"rows": True}},
                {"plan": {"rows": 10**30}},
                {"plan": {"rows": {"a": 1}}},
                {"sizes": {"s0": [16, 128]}},
                {"sizes": {"s0": []}},
                {"sizes": {"s0": 16}},
                {"sizes": {"s0": ["16"]}},
                {"sizes": [16]},
                {"device": 0},
                {"at": "yesterday"},
                {"at": "2026-01-01T12:00:00.000+02:00"},
                {"at": "2026-01-01T12:00:00.000000000"},
                {"at": 0},
                {"error": 5},
            )
        ),
        json.dumps(GOOD).replace("0.0005", "1e999"),
        json.dumps(GOOD).replace("0.0005", "9" * 5000),
        *(
            json.dumps({**GOOD_NOTE, **change})
            for change in (
                {"launches": 1.5},
                {"traits": {"rows": "many"}},
                {"traits": {"rows": float("inf")}},
                {"traits": {"rows": 10**400}},
                {"traits": [1]},
                {"limit": -1},
                {"limit": "fast"},
                {"text": None},
            )
        ),
    ],
)
def test_a_hostile_line_with_a_right_checksum_is_damaged(text: str) -> None:
    assert parse_line(checked(text)) is None


def test_the_lines_that_hostile_ones_are_made_of_are_good() -> None:
    for good in (GOOD, GOOD_NOTE):
        assert parse_line(checked(json.dumps({key: value for key, value in good.items() if key != "crc"}))) is not None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"format":1}',
        '{"format":1,"scope":[]}',
        '{"format":1,"scope":{"target":{},"tvm":1,"greencc":"1"}}',
        '{"format":1,"scope":{"target":[],"tvm":"1","greencc":"1"}}',
        '{"format":1,"scope":{"target":{"a":1e999},"tvm":"1","greencc":"1"}}',
        '{"format":1,"scope":{"target":{"a":' + "9" * 400 + '},"tvm":"1","greencc":"1"}}',
        '{"format":1,"scope":{"target":{"a":' + "[" * 500 + "]" * 500 + '},"tvm":"1","greencc":"1"}}',
        '{"format":"2"}',
        '{"format":true}',
        '{"format":NaN}',
        "[" * 100_000,
    ],
)
def test_a_hostile_header_names_no_scope(text: str) -> None:
    assert parse_header(checked(text), "a file") is None


# What is refused


def test_a_file_of_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    file = write(tmp_path)
    newer = file.with_name(f"records-{SCOPE.digest}-ff.jsonl")
    newer.write_text('{"format":2,"what":"comes"}\n')
    for read in (Database(tmp_path).scope, Database(tmp_path).records):
        with pytest.raises(UserError, match=rf"{newer}: a tuning record file of format 2, this greencc reads 1"):
            read(SCOPE)


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling link", "loop"])
def test_a_file_that_can_not_be_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"records-{SCOPE.digest}-01.jsonl"
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(tmp_path / "nothing" if kind == "dangling link" else file)
    with pytest.raises(UserError, match=str(file)):
        Database(tmp_path).records(SCOPE)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("README", "records-x.jsonl", f".records-{SCOPE.digest}-01.jsonl.tmp", "old.jsonl"):
        (tmp_path / name).write_text("not a record")
    seen = load([tmp_path])
    assert not seen.damaged
    rewrite(tmp_path, seen.files, seen.scopes)
    assert len(list(tmp_path.iterdir())) == 5


def test_no_database_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: there is no such tuning database; greencc tune makes one"):
        Database(tmp_path / "missing").scope(SCOPE)
    with pytest.raises(UserError, match="holds no tuning records"):
        Database(tmp_path).scope(SCOPE)
    (tmp_path / f"records-{SCOPE.digest}-01.jsonl").write_bytes(b"garbage\n")
    with pytest.raises(UserError, match="all tuning records are damaged"):
        Database(tmp_path).scope(OTHERS[0])


def test_records_of_other_scopes_are_refused_with_what_differs(tmp_path: Path) -> None:
    with Database(tmp_path).writer(OTHERS[0]) as writer:
        writer.append(trial(1, 0.5))
    with pytest.raises(UserError) as caught:
        Database(tmp_path).scope(SCOPE)
    assert str(caught.value) == (
        f"{tmp_path}: tuned for cpu znver4 (avx2, fma, 4 threads) with TVM {SCOPE.tvm} and greencc {SCOPE.greencc}; "
        "this compilation is for 2 threads instead of 4: tune for it, or name the target it was tuned for"
    )
    with Database(tmp_path).writer(OTHERS[1]) as writer:
        writer.append(trial(1, 0.5))
    newer = type(SCOPE)(OTHERS[1].target, "0.28.0", SCOPE.greencc)
    with pytest.raises(UserError, match=r"\(and for 1 more\); .*TVM 0.28.0 instead of 0.26.0: tune again, or compile"):
        Database(tmp_path).scope(newer)
    assert Database(tmp_path).records(SCOPE).workloads == ()
    assert len(Database(tmp_path).scope(OTHERS[0]).workloads) == 1


def test_a_file_is_of_the_scope_that_its_header_names(tmp_path: Path) -> None:
    odd = RecordFile(tmp_path / f"records-{OTHERS[0].digest}-01.jsonl", SCOPE, {}, 0)
    assert odd.is_of(SCOPE)
    assert not odd.is_of(OTHERS[0])
    assert parse_header(header_line(OTHERS[0]), "a file") == OTHERS[0]
    assert Records({}).workloads == ()
