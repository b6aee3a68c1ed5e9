"""--max-drop on a model with one product that int8 ruins, from the request to the proof in the artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from planted import samples, write_planted

from greencc import BudgetError, UserError, api, load
from greencc.cli import main
from greencc.compress.cost import COSTS, Cost, Latency
from greencc.verification import Runnable

BUDGET = 0.05
PLANTED = 2


class WeightBytes(Cost):
    """A cost that no neighbour on the machine changes."""

    name = "latency"

    def by_turns(self, programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
        return [float(program.weight_bytes) for program in programs]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COSTS, "latency", WeightBytes)
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("models") / "planted.onnx", planted=PLANTED)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **samples(40))
    return path


@pytest.fixture(scope="module")
def compressed(planted: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("artifacts") / "a"
    return out, api.compile(planted, out, calib=data, max_drop=BUDGET)


@pytest.mark.slow
def test_exactly_the_planted_product_stays_in_single_precision(compressed: tuple[Path, dict[str, Any]]) -> None:
    record = compressed[1]["compression"]
    kept = [item["node"] for item in record["operators"] if not item["chosen"]]
    assert kept == [f"product{PLANTED}"]
    worst = max(record["operators"], key=lambda item: item["sensitivity"])
    assert worst["node"] == f"product{PLANTED}"
    assert worst["sensitivity"] > 2 * BUDGET
    refused = [step for step in record["steps"] if not step["accepted"]]
    assert any({"node": f"product{PLANTED}", "kind": "int8"} in step["choices"] for step in refused)


@pytest.mark.slow
def test_the_proof_is_what_an_independent_measurement_finds(
    compressed: tuple[Path, dict[str, Any]], planted: Path
) -> None:
    path, report = compressed
    record = report["compression"]
    assert record["judged"]["value"] <= record["judged"]["bound_95"] <= BUDGET
    assert record["selection"]["bound_95"] <= BUDGET
    assert record["data"]["samples"] == {"calibration": 8, "selection": 16, "judged": 16}
    assert json.loads((path / "manifest.json").read_text())["report"]["compression"] == record
    session, model = onnxruntime.InferenceSession(str(planted)), load(path)
    fresh = samples(16, seed=2)["x"]
    wanted = np.concatenate([session.run(None, {"x": x[None]})[0] for x in fresh])
    found = np.concatenate([model({"x": x[None]})["y"] for x in fresh])
    apart = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert apart == pytest.approx(record["judged"]["value"], rel=0.2)
    assert report["bytes_after"] < 0.45 * report["bytes_before"]


@pytest.mark.slow
def test_verify_measures_the_drop_again(compressed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, report = compressed
    np.savez(tmp_path / "held_out.npz", **samples(12, seed=3))
    again: Any = api.verify(path, data=tmp_path / "held_out.npz")["drop"]
    assert again["samples"] == 12
    assert again["value"] == pytest.approx(report["compression"]["judged"]["value"], rel=0.2)
    strange = np.random.default_rng(0).standard_normal((12, 64, 512)).astype(np.float32)
    np.savez(tmp_path / "strange.npz", x=strange * np.float32(np.nan))
    with pytest.raises(UserError, match=r"--data .*'x' has NaN or infinity in sample 0"):
        api.verify(path, data=tmp_path / "strange.npz")


@pytest.mark.slow
def test_a_script_decides_and_is_found_again(planted: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    script = tmp_path / "away" / "score.py"
    script.write_text("def score(outputs, labels):\n    return labels['label.weight'] * outputs['y'][:, 0, 0]\n")
    with np.load(data) as arrays:
        np.savez(tmp_path / "d.npz", x=arrays["x"], **{"label.weight": np.ones(40)})
    options: Any = {"calib": tmp_path / "d.npz", "max_drop": 0.5, "metric": f"{script}:score"}
    api.compile(planted, tmp_path / "a", **options)
    text = (tmp_path / "a" / "manifest.json").read_text()
    assert '"metric": "score.py:score"' in text
    assert str(tmp_path) not in text
    again: Any = api.verify(tmp_path / "a", data=tmp_path / "d.npz", metric=f"{script}:score")["drop"]
    assert (again["metric"], again["samples"]) == ("score.py:score", 40)
    with pytest.raises(UserError, match=r"there is no file score\.py"):
        api.verify(tmp_path / "a", data=tmp_path / "d.npz")
    with pytest.raises(UserError, match=r"the artifact's budget is one of score\.py:score"):
        api.verify(tmp_path / "a", data=tmp_path / "d.npz", metric="cosine")


@pytest.mark.slow
def test_people_see_the_budget_the_result_and_every_operator(
    compressed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(compressed[0])])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for words in ("relative_l2 may lose 0.05", "held-out samples", "4 of 5 candidates: 4 as int8", "deviation"):
        assert words in shown
    line = next(line for line in shown.splitlines() if line.strip().startswith(f"product{PLANTED}"))
    assert "no int8" in line


@pytest.mark.slow
def test_nothing_is_written_when_nothing_fits(planted: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["compile", str(planted), "-o", str(tmp_path / "a"), "--calib", str(data), "--max-drop", "1e-6"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == BudgetError.exit_status == 3
    assert list(tmp_path.iterdir()) == []


class Slower(WeightBytes):
    """Whatever is stored in fewer bytes takes longer."""

    def by_turns(self, programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
        return [1 / program.weight_bytes for program in programs]


@pytest.mark.slow
def test_what_is_slower_is_refused_however_few_bits_it_has(
    planted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COSTS, "latency", Slower)
    with pytest.raises(BudgetError, match="none makes the model cheaper"):
        api.compile(planted, tmp_path / "a", calib=data, max_drop=BUDGET)
    assert not (tmp_path / "a").exists()


class Clock:
    """A program that takes a given time, and now and then much longer."""

    weight_bytes = 0

    def __init__(self, seconds: float) -> None:
        self.each, self.calls = seconds, 0

    def seconds(self, inputs: Mapping[str, np.ndarray], runs: int) -> float:
        self.calls += 1
        return self.each * runs * (50 if self.calls % 4 == 0 else 1)


def test_a_neighbour_now_and_then_does_not_change_what_is_measured() -> None:
    programs: Any = [Clock(1e-3), Clock(1.5e-3)]
    assert Latency().by_turns(programs, {}) == pytest.approx([1e-3, 1.5e-3])


@pytest.mark.slow
def test_only_kept_outputs_count(planted: Path, data: Path, tmp_path: Path) -> None:
    """A second output of another scale, which is left out, decides nothing."""
    model = onnx.load(planted)
    model.graph.node.append(onnx.helper.make_node("Exp", ["x0"], ["huge"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("huge", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "two.onnx")
    report: Any = api.compile(tmp_path / "two.onnx", tmp_path / "a", outputs=["y"], calib=data, max_drop=BUDGET)
    assert sum(item["chosen"] for item in report["compression"]["operators"]) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": 0.1}, "--max-drop 0.1: give the data to measure it on with --calib"),
        ({"max_drop": 0.1, "calib": True, "quantize": "int8"}, "leave out --quantize"),
        ({"max_drop": -0.1, "calib": True}, "a loss of accuracy is 0 or more"),
        ({"max_drop": float("nan"), "calib": True}, "a loss of accuracy is 0 or more"),
        ({"max_drop": 0.1, "calib": True, "metric": "bleu"}, "--metric bleu: write"),
        ({"max_drop": 0.1, "calib": True, "cost": "money"}, "--cost money: unknown; known: latency, energy"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    planted: Path, data: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    given = {name: data if name == "calib" else value for name, value in options.items()}
    with pytest.raises(UserError, match=words):
        api.compile(planted, tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()
