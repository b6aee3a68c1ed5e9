"""Merging, pruning and exporting change no answer, and say what they did."""

from __future__ import annotations

import json
from pathlib import Path

import drawn_records
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import OTHERS, SCOPE, TIMES, note, numbers, trial, write

from greencc.errors import UserError
from greencc.tuning.database import Database, Records
from greencc.tuning.files import load, record_files
from greencc.tuning.maintenance import export, listing, merge, prune
from greencc.tuning.records import Failed, Scope, Trial

KEY = trial(0).workload


def fill(folder: Path, *trials: Trial, scope: Scope = SCOPE) -> Path:
    with Database(folder).writer(scope) as writer:
        for item in trials:
            writer.note(note(item.workload))
            writer.append(item)
    return folder


def answers(records: Records) -> dict[object, object]:
    """What compilations get, and who asks for certain sizes."""
    found: dict[object, object] = {workload: records.answer(workload) for workload in records.workloads}
    for workload in records.workloads:
        for sizes in records.sizes(workload):
            found[workload, str(sizes)] = records.best(workload, sizes)
    return {key: answer for key, answer in found.items() if answer is not None}


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.lists(drawn_records.trials(), min_size=1, max_size=15), min_size=1, max_size=3),
    keep=st.integers(1, 3),
    days=st.sampled_from([0.0, 30.0, 36500.0]),
)
def test_no_answer_changes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[Trial]], keep: int, days: float
) -> None:
    root = tmp_path_factory.mktemp("kept")
    folders = [fill(root / str(i), *part) for i, part in enumerate(parts)]
    together = answers(Records({line: item for f in load(folders).scopes for line, item in f.lines.items()}))
    merge(folders, root / "merged")
    assert answers(Database(root / "merged").scope(SCOPE)) == together
    prune([root / "merged"], keep, days)
    assert answers(Database(root / "merged").records(SCOPE)) == together
    if record_files(root / "merged"):  # else there were old failures only
        again = prune([root / "merged"], keep, days)["folders"][0]
        assert not any(again["removed"].values())
        assert again["bytes_after"] == again["bytes_before"]


# merge


def test_merging_unites_folders_in_the_first(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "1", trial(1), trial(2)), fill(tmp_path / "2", trial(2), trial(3))
    fill(two, trial(4), scope=OTHERS[0])
    before = {file.name: file.read_bytes() for file in record_files(two)}
    result = merge([one, two], one)
    assert {key: result[key] for key in ("records", "before", "duplicates", "scopes", "damaged")} == {
        "records": 6, "before": 3, "duplicates": 2, "scopes": 2, "damaged": {},
    }  # fmt: skip
    assert result["bytes"] == sum(file.stat().st_size for file in one.iterdir())
    assert [len(Database(one).records(scope).trials(KEY, {})) for scope in (SCOPE, OTHERS[0])] == [3, 1]
    assert len(list(one.iterdir())) == 2
    assert {file.name: file.read_bytes() for file in record_files(two)} == before


def test_merging_into_another_folder_keeps_what_it_has(tmp_path: Path) -> None:
    one, out = write(tmp_path / "1").parent, write(tmp_path / "out", first=4).parent
    merge([one], out)
    assert numbers(out) == set(range(1, 7))
    assert numbers(one) == {1, 2, 3}
    merge([out / ".." / "out"], out)
    assert numbers(out) == set(range(1, 7))


def test_merging_one_folder_makes_one_file_of_many(tmp_path: Path) -> None:
    for first in (1, 4, 7):
        write(tmp_path, first=first)
    merge([tmp_path], tmp_path)
    assert numbers(tmp_path) == set(range(1, 10))
    assert len(list(tmp_path.iterdir())) == 1


def test_merging_leaves_damaged_lines_behind_and_says_so(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_bytes() + b"garbage")
    lost = tmp_path / "records-0123456789ab-01.jsonl"
    lost.write_bytes(b"garbage")
    assert merge([tmp_path], tmp_path)["damaged"] == {str(file): 1, str(lost): 1}
    assert load([tmp_path]).damaged == {str(lost): 1}  # whose it is isn't known, so it stays
    assert numbers(tmp_path) == {1, 2, 3}


@pytest.mark.parametrize("broken", ["missing", "empty", "newer", "file"])
def test_what_can_not_be_merged_changes_nothing(tmp_path: Path, broken: str) -> None:
    one, bad = write(tmp_path / "1").parent, tmp_path / "bad"
    if broken == "file":
        bad.write_text("{}")
    elif broken != "missing":
        bad.mkdir()
        if broken == "newer":
            (bad / "records-0123456789ab-01.jsonl").write_text('{"format":9}\n')
    before = [(file.name, file.read_bytes()) for file in one.iterdir()]
    for folders, out in (([one, bad], one), ([bad, one], tmp_path / "out")):
        with pytest.raises(UserError, match=str(bad)):
            merge(folders, out)
    assert [(file.name, file.read_bytes()) for file in one.iterdir()] == before
    assert not (tmp_path / "out").exists()


# prune


def test_pruning_says_what_it_removed(tmp_path: Path) -> None:
    fill(
        tmp_path,
        trial(0),
        *(trial(number, 0.5 + number / 100) for number in range(1, 11)),
        trial(1, 0.3, at="2025-01-01T00:00:00.000+00:00"),
        trial(11, Failed("old")),
        trial(12, Failed("new"), at=TIMES[2]),
        trial(13, Failed("after all"), at=TIMES[2]),
        trial(13, 0.2),
    )
    result = prune([tmp_path], keep=3)["folders"][0]
    assert result["removed"] == {"slower": 9, "failures": 1, "other_versions": 0, "damaged": 0}
    assert result["records"] == 7
    assert result["bytes_after"] < result["bytes_before"]
    left = {item.plan and item.plan["rows"] for item in Database(tmp_path).records(SCOPE).trials(KEY, {})}
    assert left == {None, 1, 2, 3, 12, 13}
    assert Database(tmp_path).records(SCOPE).note(KEY) == note()


def test_pruning_removes_other_versions_when_it_is_told_to(tmp_path: Path) -> None:
    for scope in (SCOPE, *OTHERS):
        fill(tmp_path, trial(1, 0.5), scope=scope)
    assert not any(prune([tmp_path])["folders"][0]["removed"].values())
    assert prune([tmp_path], other_versions=True)["folders"][0]["removed"]["other_versions"] == 2
    assert {found.scope.digest for found in load([tmp_path]).scopes} == {SCOPE.digest, OTHERS[0].digest}


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf"), 1e9])
def test_pruning_refuses_what_is_no_number_of_days(tmp_path: Path, days: float) -> None:
    with pytest.raises(UserError, match=r"--failures .*: expected a number of days"):
        prune([tmp_path], failure_days=days)


# export, ls


def test_an_exported_file_answers_as_the_folder_does(tmp_path: Path) -> None:
    file, folder = tmp_path / "plans.json", tmp_path / "folder"
    fill(folder, trial(0), trial(1, 0.5), trial(2, 0.4), trial(1, 2.0, workload="a" * 16))
    document = export([folder], file)
    assert json.loads(file.read_text()) == document
    assert [plan["plan"]["rows"] for plan in document["scopes"][0]["plans"]] == [2]
    records = Database(file).scope(SCOPE)
    assert records.answer(KEY) == Database(folder).scope(SCOPE).answer(KEY)
    assert records.note(KEY) == note()
    merge([file], tmp_path / "merged")
    assert export([tmp_path / "merged"]) == document
    with pytest.raises(UserError, match=f"{file}: tuned for cpu znver4"):
        Database(file).scope(OTHERS[0])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "5", '{"format":1}', '{"format":1,"scopes":5}', '{"format":1,"scopes":[5]}', "[" * 100_000,
     '{"format":1,"scopes":[{"scope":{"target":{},"tvm":"1","greencc":"1"},"workloads":[],"plans":[{"trial":"x"}]}]}'],
)  # fmt: skip
def test_a_file_that_was_not_exported_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x.json: neither a folder of tuning records nor what greencc db export wrote"):
        Database(tmp_path / "x.json").scope(SCOPE)


def test_an_exported_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"format":2}')
    with pytest.raises(UserError, match=r"x.json: exported plans of format 2, this greencc reads 1"):
        listing([tmp_path / "x.json"])


def test_the_listing_says_what_tuning_brought(tmp_path: Path) -> None:
    sizes = {"s0": (16, 128)}
    fill(
        tmp_path, trial(0), trial(1, 0.5), trial(2, Failed("no")), trial(1, 1.5, workload="a" * 16),
        trial(1, Failed("no"), workload="b" * 16), trial(1, Failed("no"), sizes=sizes, workload="b" * 16),
    )  # fmt: skip
    file = record_files(tmp_path)[0]
    file.write_bytes(file.read_bytes() + b"cut")
    result = listing([tmp_path])
    assert (result["trials"], result["failures"], result["files"], result["damaged"]) == (6, 3, 1, {str(file): 1})
    (scope,) = result["scopes"]
    entries = {(entry["workload"], str(entry["sizes"])): entry for entry in scope["workloads"]}
    assert scope["devices"] == ["a processor"]
    assert entries[KEY, "{}"] == {
        "workload": KEY, "text": f"matmul of {KEY}", "sizes": {}, "launches": 3, "limit_seconds": 1e-5, "trials": 3,
        "failures": 1, "default_seconds": 1e-3, "best_seconds": 5e-4, "ratio": 0.5, "rule": "cpu-matmul",
        "plan": {"rows": 1, "order": "panels"}, "newest": TIMES[0],
    }  # fmt: skip
    times = ("default_seconds", "best_seconds", "ratio", "plan")
    assert [entries["a" * 16, "{}"][name] for name in times] == [1e-3, 1e-3, 1.0, None]
    assert [entries["b" * 16, "{'s0': [16, 128]}"][name] for name in times] == [None, None, None, None]
