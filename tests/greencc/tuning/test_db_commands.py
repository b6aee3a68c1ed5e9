"""`greencc db`: exit statuses, one line of error, one JSON object, tables that fit."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import Greencc
from made_records import OTHERS, SCOPE, note, numbers, trial, write
from rich.console import Console

import greencc
from greencc import api, render
from greencc.tuning.database import Database
from greencc.tuning.records import Failed, WorkloadNote


def test_ls_reports_to_people_and_to_scripts(run_cli: Greencc, tmp_path: Path) -> None:
    write(tmp_path)
    code, out, err = run_cli("db", "ls", tmp_path)
    assert (code, err) == (0, "")
    for text in ("cpu znver4 (avx2, fma, 2 threads)", f"greencc {SCOPE.greencc}", "matmul of", "2.00x", "2026-01-01"):
        assert text in out
    code, out, err = run_cli("db", "ls", tmp_path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == api.db_ls([tmp_path])


def test_ls_says_what_is_damaged_once(run_cli: Greencc, tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_bytes() + b"x\ny\nz")
    out = "".join(run_cli("db", "ls", tmp_path)[1].split())
    assert f"damaged3linesof{file}" in out
    assert out.count("damaged3lines") == 1


def test_merge_takes_the_first_folder_unless_told_otherwise(run_cli: Greencc, tmp_path: Path) -> None:
    write(tmp_path / "1")
    write(tmp_path / "2", first=4)
    code, out, _ = run_cli("db", "merge", tmp_path / "1", tmp_path / "2", "-o", tmp_path / "3", "--json")
    assert code == 0
    assert json.loads(out)["out"] == str(tmp_path / "3")
    code, out, _ = run_cli("db", "merge", tmp_path / "1", tmp_path / "2")
    assert code == 0
    assert "holds       7 records for 1 target" in out
    assert numbers(tmp_path / "1") == numbers(tmp_path / "3") == set(range(1, 7))


def test_prune_says_what_it_removed(run_cli: Greencc, tmp_path: Path) -> None:
    write(tmp_path, 5)
    code, out, _ = run_cli("db", "prune", tmp_path, "--keep", 2, "--failures", 7.5, "--other-versions")
    assert code == 0
    assert "removed   3 slower, repeated or overruled" in out
    code, out, _ = run_cli("db", "prune", tmp_path)
    assert "removed   nothing" in out
    result = json.loads(run_cli("db", "prune", tmp_path, "--json")[1])
    assert result["folders"][0]["records"] == 3


def test_export_writes_to_stdout_or_to_a_file(run_cli: Greencc, tmp_path: Path) -> None:
    write(tmp_path / "db")
    code, out, _ = run_cli("db", "export", tmp_path / "db")
    assert code == 0
    document = json.loads(out)
    assert document["format"] == 1
    code, out, _ = run_cli("db", "export", tmp_path / "db", "-o", tmp_path / "plans.json")
    assert code == 0
    assert out.startswith("1 plan  for cpu znver4")
    assert json.loads((tmp_path / "plans.json").read_text()) == document
    assert run_cli("db", "ls", tmp_path / "plans.json")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["ls"], ["Missing argument", "greencc db ls --help"]),
        (["ls", "{}/missing"], ["/missing: there is no such tuning database"]),
        (["ls", "{}/empty"], ["/empty: holds no tuning records"]),
        (["ls", "{}/text"], ["/text: neither a folder of tuning records nor"]),
        (["merge", "{}/db", "{}/missing"], ["/missing: there is no such tuning database"]),
        (["merge", "{}/db", "-o", "{}/text"], ["/text: not a folder"]),
        (["merge", "{}/db", "-o", "{}/text/below"], ["/text/below: can't be read as a tuning database"]),
        (["prune", "{}/missing"], ["/missing: there is no such tuning database"]),
        (["prune", "{}/plans.json"], ["/plans.json: not a folder"]),
        (["prune", "{}/db", "--keep", "0"], ["--keep 0: at least one plan"]),
        (["prune", "{}/db", "--keep", "few"], ["few"]),
        (["prune", "{}/db", "--failures", "-1"], ["--failures -1: expected a number of days"]),
        (["export", "{}/missing"], ["/missing: there is no such tuning database"]),
        (["export", "{}/db", "-o", "{}/missing/x.json"], ["/missing is not a folder that can be written to"]),
        (["export", "{}/db", "-o", "{}/empty"], ["/empty is a folder: name a file"]),
        ([], ["Missing command"]),
        (["tune"], ["No such command 'tune'"]),
    ],
)
def test_a_wrong_request_exits_with_2_and_changes_nothing(
    run_cli: Greencc, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    file = write(tmp_path / "db")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    api.db_export([tmp_path / "db"], tmp_path / "plans.json")
    before, content = sorted(tmp_path.rglob("*")), file.read_bytes()
    for more in ([], ["--json"]) if arguments and arguments[0] != "tune" else ([],):
        code, out, err = run_cli("db", *(text.format(tmp_path) for text in arguments), *more)
        assert (code, out) == (2, "")
        assert err.startswith("greencc: error: ")
        assert err.count("\n") == 1
        for part in parts:
            assert part in err
    assert sorted(tmp_path.rglob("*")) == before
    assert file.read_bytes() == content


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_a_terminal(tmp_path: Path, width: int) -> None:
    sizes = {"s0": (1, 1), "s1": (16, 128)}
    with Database(tmp_path).writer(OTHERS[0]) as writer:
        writer.note(WorkloadNote("a" * 16, "conv2d 1x64x56x56 3x3 stride 1 float32, bias, relu", 12))
        writer.append(trial(1, 0.5, workload="a" * 16))
        writer.append(trial(2, Failed("no"), workload="a" * 16, sizes=sizes))
        writer.append(trial(0, 1.0, workload="c" * 16))
    stream = io.StringIO()
    Console(file=stream, width=width).print(render.database_list(api.db_ls([tmp_path])))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(stream.getvalue().split())
    for part in ("12 launches", "at 1x16, 1x128", "none", "c" * 16):
        assert part in text if width == 120 else part.split()[-1] in text


def test_names_from_files_can_not_steer_a_terminal(run_cli: Greencc, tmp_path: Path) -> None:
    with Database(tmp_path).writer(SCOPE) as writer:
        writer.note(WorkloadNote(note().workload, "\x1b[2J[bold]:smile:\ud800", 1))
        writer.append(trial(1, 0.5))
    for arguments in (["ls", tmp_path], ["ls", tmp_path, "--json"], ["export", tmp_path]):
        code, out, _ = run_cli("db", *arguments)
        assert code == 0
        assert "\x1b" not in out
    assert r"\x1b[2J[bold]:smile:\ud800" in run_cli("db", "ls", tmp_path)[1]


def test_no_command_loads_the_compiler(tmp_path: Path) -> None:
    write(tmp_path)
    code = (
        "import sys\nfrom greencc.cli import main\n"
        "for command in ('ls', 'merge', 'prune', 'export'):\n"
        "    try:\n        main(['db', command, sys.argv[1]])\n"
        "    except SystemExit as end:\n        print(end.code, 'tvm' in sys.modules, file=sys.stderr)\n"
    )
    paths = {**os.environ, "PYTHONPATH": str(Path(greencc.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=paths, check=True)
    assert done.stderr == "0 False\n" * 4
