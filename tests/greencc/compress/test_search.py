"""--max-drop on a model with one product that int8 ruins, from the request to the proof in the artifact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from planted import WIDTH, samples, write_planted
from tvm import relax

from greencc import BudgetError, UserError, api, load
from greencc.cli import main
from greencc.compress.candidates import KINDS, LAYER, Kind
from greencc.compress.cost import COSTS, Cost, Latency
from greencc.compress.data import split
from greencc.compress.metrics import make_metric
from greencc.compress.search import Budget, References, Search
from greencc.importers import import_model
from greencc.ir import constant
from greencc.passes.base import PassContext, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.pipeline import run_pipeline
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.registry import default_pipeline
from greencc.passes.stored import StoredWeight
from greencc.samples import read_dataset
from greencc.targets.cpu.target import host_target
from greencc.verification import Runnable, open_reference

BUDGET = 0.05
PRECISIONS = {kind.label for kind in KINDS if kind.is_precision}
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


def dropped(report: dict[str, Any]) -> list[str]:
    record = report["compression"]
    return [item["node"] for item in record["operators"] if item["kind"] == "layer" and item["chosen"]]


def search(model: Path, data: Path, max_drop: float, kinds: tuple[Kind, ...], cost: Cost | None = None) -> Search:
    imported = import_model(model, shapes={}, dynamic={}, outputs=None).module
    module = run_pipeline(imported, default_pipeline(), PassContext()).module
    dataset, target = read_dataset(data, imported["main"]), host_target(1)
    budget = Budget(max_drop, make_metric("relative_l2"), dataset, split(dataset))
    references = References(dataset, open_reference(model, imported, target), ["y"], None)
    return Search(module, target, budget, cost or WeightBytes(), references, lambda message: None, kinds)


@pytest.mark.slow
def test_exactly_the_planted_product_stays_in_single_precision(compressed: tuple[Path, dict[str, Any]]) -> None:
    record = compressed[1]["compression"]
    products = [item for item in record["operators"] if item["kind"] in PRECISIONS]
    nodes = {item["node"] for item in products}
    assert nodes - {item["node"] for item in products if item["chosen"]} == {f"product{PLANTED}"}
    assert dropped(compressed[1]) == []
    worst = max(products, key=lambda item: item["sensitivity"])
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
    # The deviations that are shown are those of the weights that the passes stored, after they learnt from the data.
    stored = {entry["node"]: entry for item in report["passes"] for entry in item.get("stored", ())}
    chosen = [item for item in record["operators"] if item["chosen"]]
    assert [item["largest_deviation"] for item in chosen] == [
        stored[item["node"]]["largest_deviation"] for item in chosen
    ]


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
    operators = compressed[1]["compression"]["operators"]
    chosen = {(item["node"], item["kind"]) for item in operators if item["chosen"]}
    counted = f"{len(chosen)} of {len(operators)} candidates"
    for words in ("relative_l2 may lose 0.05", "held-out samples", counted, "deviation"):
        assert words in shown
    rows = re.findall(r"^ +((?:product|add)\d) +(\S+(?: \S+)?)  +(\d\.\d{4}) .* (yes|no)\b", shown, re.MULTILINE)
    assert len(rows) == len(operators)
    assert [float(apart) for *_, apart, _ in rows] == sorted((float(apart) for *_, apart, _ in rows), reverse=True)
    assert {(node, kind) for node, kind, _, answer in rows if answer == "yes"} == chosen


@pytest.mark.slow
def test_nothing_is_written_when_nothing_fits(planted: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["compile", str(planted), "-o", str(tmp_path / "a"), "--calib", str(data), "--max-drop", "1e-6"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == BudgetError.exit_status == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_exactly_the_layer_that_does_nothing_is_dropped(data: Path, tmp_path: Path) -> None:
    model = write_planted(tmp_path / "idle.onnx", layers=4, planted=None, idle=1)
    report: Any = api.compile(model, tmp_path / "a", calib=data, max_drop=0.02)
    assert dropped(report) == ["add1"]
    record = report["compression"]
    assert record["judged"]["value"] <= 0.02
    # The product inside is gone: nothing is claimed for it, and what is claimed adds up to what was measured.
    inside = next(item for item in record["operators"] if (item["node"], item["kind"]) == ("product1", "int8"))
    assert not inside["chosen"]
    reasons = [step["reason"] for step in record["steps"] if {"node": "product1", "kind": "int8"} in step["choices"]]
    assert reasons[-1] == "its layer is dropped"
    claimed = sum(item["bytes_saved"] for item in record["operators"] if item["chosen"])
    single = 4 * 4 * WIDTH * WIDTH // 2
    assert record["bytes_ratio"] == pytest.approx(1 - claimed / single, abs=1e-3)
    taken = next(point for point in record["front"] if point["drop"] == record["selection"])
    assert taken["bytes_ratio"] == pytest.approx(record["bytes_ratio"], abs=1e-3)
    calls = json.loads((tmp_path / "a" / "manifest.json").read_text())["calls"]
    nodes = {node for call in calls for node in call["nodes"]}
    assert {"product0", "product2", "product3"} <= nodes
    assert "product1" not in nodes
    session, artifact = onnxruntime.InferenceSession(str(model)), load(tmp_path / "a")
    x = {"x": samples(1, seed=2)["x"]}
    wanted, found = session.run(None, x)[0], artifact(x)["y"]
    assert np.linalg.norm(found - wanted) <= 0.02 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_a_smaller_budget_keeps_the_layer_that_does_nothing(data: Path, tmp_path: Path) -> None:
    model = write_planted(tmp_path / "idle.onnx", layers=4, planted=None, idle=1)
    report: Any = api.compile(model, tmp_path / "a", calib=data, max_drop=0.003)
    assert dropped(report) == []
    assert any(item["chosen"] for item in report["compression"]["operators"])
    assert report["compression"]["judged"]["value"] <= 0.003


@dataclass(frozen=True)
class StoreHalf(RewritePass[relax.Call]):
    """Weights of products in float16."""

    name: ClassVar[str] = "store-half"
    approximates: ClassVar[bool] = True

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> relax.Call | None:
        is_product = call.op.name == "relax.matmul" and graph.constant(call.args[1]) is not None
        return call if is_product and graph.call(call.args[1]) is None else None

    def stored(self, match: relax.Call) -> StoredWeight:
        return StoredWeight(np.zeros(0), np.zeros(0), 16, 0.0)

    def rewrite(self, builder: Builder, match: relax.Call) -> relax.Expr:
        half = constant(match.args[1].value.numpy().astype(np.float16))
        return relax.op.matmul(match.args[0], builder.emit(relax.op.astype(half, "float32")))


@pytest.mark.slow
def test_an_operator_has_the_cheapest_precision_that_fits(planted: Path, data: Path) -> None:
    """Float16 for the product that int8 ruins, int8 for the others, which float16 would do too."""
    kinds = (
        Kind("int8", QuantizeInt8(measure=False), is_precision=True),
        Kind("float16", StoreHalf(), is_precision=True),
    )
    found = search(planted, data, BUDGET, kinds).run()
    chosen = {candidate.node: candidate.label for candidate in found.chosen}
    assert len(found.chosen) == len(chosen)
    assert chosen == {f"product{i}": "float16" if i == PLANTED else "int8" for i in range(5)}
    assert len(found.assessed) == 10


class Slower(WeightBytes):
    """Whatever is stored in fewer bytes takes longer."""

    def by_turns(self, programs: Sequence[Runnable], inputs: Mapping[str, np.ndarray]) -> list[float]:
        return [1 / program.weight_bytes for program in programs]


@pytest.mark.slow
def test_what_is_slower_is_refused_however_few_bits_it_has(planted: Path, data: Path) -> None:
    kinds = tuple(kind for kind in KINDS if kind != LAYER)
    with pytest.raises(BudgetError, match="none makes the model cheaper"):
        search(planted, data, BUDGET, kinds, Slower()).run()


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
        ({"metric": "cosine"}, "--metric cosine: it is for the search inside a budget: add --max-drop"),
        ({"cost": "energy"}, "--cost energy: it is for the search inside a budget: add --max-drop"),
        ({"max_drop": -0.1, "calib": True}, "a loss of accuracy is 0 or more"),
        ({"max_drop": float("inf"), "calib": True}, "a loss of accuracy is 0 or more, and finite"),
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
