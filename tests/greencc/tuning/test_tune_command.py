"""`greencc tune` from end to end, on small models: what it finds is used, kept, and right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import pytest
from small_models import perceptron

import greencc
from greencc import ModelOptions, UserError, api, cli
from greencc.tuning.database import Database

TRIALS = 14
Finished: TypeAlias = tuple[Path, Path, dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """(model, database, result, events) of a session that ended by its number of trials."""
    folder = tmp_path_factory.mktemp("session")
    model = perceptron(folder, layers=2, width=96, rows=37)
    events: list[dict[str, Any]] = []
    result = api.tune(
        model, folder / "db", threads=2, trials=TRIALS, listen=events.append, report=folder / "report.html"
    )
    return model, folder / "db", result, events


def test_the_result_says_what_was_done(session: Finished) -> None:
    _, _, result, events = session
    assert result["trials"] == result["new_trials"] == TRIALS
    assert result["stopped"] == f"{TRIALS} trials are done"
    assert result["model_ms"] <= result["default_ms"]
    (check,) = result["check"]
    assert check["max_abs_difference"] < 1e-5
    assert check["ratio"] > 0
    assert result["payback"]["method"] in ("estimate", "rapl")
    assert result["payback"]["joules_spent"] > 0
    assert json.loads(json.dumps(result, allow_nan=False))
    assert events[0]["event"] == "start"
    assert sum(event["event"] == "trial" and not event["thorough"] for event in events) == TRIALS


def test_events_are_told_after_their_records_are_kept(
    session: Finished,
) -> None:
    _, folder, _, events = session
    told = [event["trial"] for event in events if event["event"] == "trial"]
    listed = api.db_ls([folder])
    assert listed
    text = "".join(path.read_text() for path in folder.iterdir())
    assert text.count('"seconds"') + text.count('"error"') >= len([trial for trial in told if trial])


def test_a_compilation_uses_it_and_computes_the_same(session: Finished, tmp_path: Path) -> None:
    model, folder, result, _ = session
    report = api.compile(model, tmp_path / "tuned", threads=2, tune_db=folder)
    answered = report["tuning"]
    assert isinstance(answered, dict)
    assert len(answered["answered"]) == sum(task["plan"] is not None for task in result["tasks"])
    x = np.random.default_rng(1).standard_normal((37, 96)).astype("float32")
    wanted = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(greencc.load(tmp_path / "tuned")({"x": x})["y"], wanted, rtol=1e-5, atol=1e-5)


def test_the_page_has_both_plots_and_every_kernel(
    session: Finished,
) -> None:
    _, folder, result, _ = session
    page = (folder.parent / "report.html").read_text()
    assert page.count("Plotly.newPlot(") == 2
    assert all(task["text"].replace("&", "&amp;") in page for task in result["tasks"])


def test_the_same_command_again_has_nothing_to_do(
    session: Finished,
) -> None:
    model, folder, _, _ = session
    again = api.tune(model, folder, threads=2, trials=TRIALS)
    assert again["new_trials"] == 0
    assert again["trials"] == TRIALS


def test_a_database_of_another_target_is_refused_by_name(session: Finished, tmp_path: Path) -> None:
    model, folder, _, _ = session
    with pytest.raises(UserError, match=r"tuned for .*2 threads.*1 thread instead of 2"):
        api.compile(model, tmp_path / "out", threads=1, tune_db=folder)
    assert not (tmp_path / "out").exists()


def exit_code_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_dry_run_measures_nothing_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = perceptron(tmp_path, rows="tokens")
    arguments = ("tune", model, "--db", tmp_path / "db", "--dynamic", "tokens=1..64", "--threads", "1", "--dry-run")
    assert exit_code_of(*arguments) == 0
    shown = capfd.readouterr().out
    assert "tokensx64 * 64x64" in shown
    assert "cpu-matmul" in shown
    assert not (tmp_path / "db").exists()
    assert exit_code_of(*arguments, "--json") == 0
    (line,) = capfd.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["dry_run"]
    assert [task["trials"] for task in result["tasks"]] == [0] * len(result["tasks"])


def test_json_is_a_line_for_each_event_and_the_result_last(
    session: Finished, capfd: pytest.CaptureFixture[str]
) -> None:
    model, folder, _, _ = session
    assert exit_code_of("tune", model, "--db", folder, "--threads", 2, "--trials", TRIALS, "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[0]["event"] == "start"
    assert lines[-1]["event"] == "result"
    assert lines[-1]["trials"] == TRIALS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trials", "0"), "--trials 0: at least one is needed"),
        (("--time-budget", "soon"), "--time-budget soon: write a time above 0, as in 90s, 10m or 2h"),
        (("--time-budget", "0m"), "--time-budget 0m: write a time"),
        (("--stop-when-unprofitable", "0"), "--stop-when-unprofitable 0: give the number of runs"),
        (("--tune-at", "tokens"), "--tune-at tokens: write DIM=N,N,..."),
        (("--tune-at", "length=16"), "--tune-at length: the model has no such open dimension"),
        (("--rpc", "127.0.0.1:9190"), "--rpc and --rpc-key go together"),
        (("--report", "missing/report.html"), "missing is not a folder"),
    ],
)
def test_a_wrong_request_exits_with_2_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    model = perceptron(tmp_path, layers=1, rows=8)
    assert exit_code_of("tune", model, "--db", tmp_path / "db", "--threads", 1, *arguments) == 2
    stderr = capfd.readouterr().err
    assert message in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "db").exists()


def test_a_missing_model_or_database_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("tune", tmp_path / "no.onnx", "--db", tmp_path / "db") == 2
    assert "no.onnx: there is no such file or folder" in capfd.readouterr().err
    model = perceptron(tmp_path, layers=1, rows=8)
    assert exit_code_of("compile", model, "-o", tmp_path / "out", "--tune-db", tmp_path / "none") == 2
    assert f"{tmp_path / 'none'}: there is no such tuning database" in capfd.readouterr().err.replace("\n", " ")


def test_an_open_size_is_tuned_at_several(tmp_path: Path) -> None:
    model = perceptron(tmp_path, layers=1, width=96, rows="tokens")
    options = ModelOptions(dynamic={"tokens": (1, 64)})
    result = api.tune(model, tmp_path / "db", options=options, threads=2, trials=8, tune_at={"tokens": (5, 40)})
    assert {tuple(task["sizes"]["s0"]) for task in result["tasks"]} == {(5, 40)}
    # The tuned sizes, then those between and beyond.
    assert [check["sizes"]["tokens"] for check in result["check"]] == [5, 40, 14, 1, 2, 60]
    assert all(check["max_abs_difference"] < 1e-5 for check in result["check"])
    assert Database(tmp_path / "db")
