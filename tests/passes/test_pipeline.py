from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import tvm
from small_graphs import const, graph, ops, run_numpy, tensor
from tvm import relax

from greencc.errors import GreenccError, UserError
from greencc.passes.base import Pass, PassContext, PassResult
from greencc.passes.fold_constants import FoldConstants
from greencc.passes.pipeline import DUMP_VARIABLE, run_pipeline
from greencc.passes.prune_dead_nodes import PruneDeadNodes
from greencc.passes.sparsify import Sparsify

op = relax.op


def example() -> tvm.IRModule:
    def body(e, x):
        e(op.exp(x))
        square = e(op.permute_dims(x), "turn")
        return [e(op.add(square, e(op.negative(const([1.0, 2.0]))))), e(op.exp(e(op.permute_dims(square))))]

    return graph([tensor("x", 2, 2)], body)


@dataclass(frozen=True)
class Negate(Pass):
    """A wrong pass: it negates the first output, or returns a module that uses an unbound variable."""

    name: ClassVar[str] = "negate"
    well_formed: bool = True

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        x = module["main"].params[0] if self.well_formed else tensor("lost", 2, 2)
        changed = graph([module["main"].params[0]], lambda e, _: [e(op.negative(x)), e(op.exp(x))])
        return PassResult(changed, 1)


@dataclass(frozen=True)
class Raise(Pass):
    name: ClassVar[str] = "raise"

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        raise KeyError("no such\nthing")


def test_reports_what_each_pass_did():
    result = run_pipeline(example(), [PruneDeadNodes(), FoldConstants(), PruneDeadNodes()])
    assert ops(result.module) == ["permute_dims", "add", "exp"]
    first, second, third = result.reports
    assert [r.name for r in result.reports] == ["prune-dead-nodes", "fold-constants", "prune-dead-nodes"]
    assert (first.rewrites, first.counts) == (2, {"dead-node": 1, "transpose-of-transpose": 1})
    assert (first.nodes_before, first.nodes_after, first.edges_before, first.edges_after) == (6, 4, 8, 6)
    assert (second.rewrites, second.nodes_before, second.nodes_after) == (1, 4, 3)
    assert (third.rewrites, third.nodes_after) == (0, 3)
    assert first.refused_by_reason == {"3. the transpose moves elements": 1}
    assert all(report.seconds >= 0 for report in result.reports)


def test_reports_are_json_and_the_same_in_every_run_without_times():
    runs = [run_pipeline(example(), [PruneDeadNodes(), FoldConstants()]) for _ in range(2)]
    texts = [json.dumps([report.as_json(timing=False) for report in run.reports]) for run in runs]
    assert texts[0] == texts[1]
    [report, _] = runs[0].reports
    assert report.as_json()["seconds"] == pytest.approx(report.seconds, abs=1e-6)
    assert "seconds" not in report.as_json(timing=False)
    assert report.as_json()["refused"] == 1
    assert report.as_json()["refusals"] == [{"node": "turn", "condition": 3, "reason": "the transpose moves elements"}]


def test_shares_of_zeros_are_reported_by_operator():
    weight = const(np.arange(1, 65).reshape(8, 8))
    before = graph([tensor("x", 2, 8)], lambda emit, x: [emit(relax.op.matmul(x, weight), "layer/MatMul")])
    [sparse, pruned] = run_pipeline(before, [Sparsify(0.25, min_weights=1), PruneDeadNodes()]).reports
    assert sparse.as_json()["zeros"] == [{"node": "layer/MatMul", "share": 0.25}]
    assert "zeros" not in pruned.as_json()


def test_no_passes_change_nothing():
    module = example()
    result = run_pipeline(module, [])
    assert result.reports == ()
    assert result.module.same_as(module)


def test_observer_sees_changed_modules_only_and_can_name_a_wrong_pass():
    before = example()
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    seen = []

    def compare(name: str, module: tvm.IRModule) -> None:
        seen.append(name)
        if not np.array_equal(run_numpy(module, x)[0], run_numpy(before, x)[0]):
            raise GreenccError(f"pass {name} changed the outputs")

    with pytest.raises(GreenccError, match="pass negate changed the outputs"):
        run_pipeline(before, [PruneDeadNodes(), PruneDeadNodes(), Negate(), FoldConstants()], observer=compare)
    assert seen == ["prune-dead-nodes", "negate"]


def test_ill_formed_ir_names_the_pass_and_those_before():
    with pytest.raises(GreenccError, match=r"pass negate left ill-formed IR: .*before it: prune-dead-nodes$"):
        run_pipeline(example(), [PruneDeadNodes(), Negate(well_formed=False)])


def test_ill_formed_input_is_not_blamed_on_the_first_pass():
    broken = Negate(well_formed=False).run(example(), PassContext()).module
    with pytest.raises(GreenccError, match=r"^the module is ill-formed as imported: .*; no pass has run$"):
        run_pipeline(broken, [PruneDeadNodes()])


def test_a_failure_names_the_pass_and_is_one_line():
    with pytest.raises(GreenccError) as caught:
        run_pipeline(example(), [Raise()])
    assert "pass raise failed: " in str(caught.value)
    assert str(caught.value).endswith("passes run before it: none")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_wrong_request_stays_a_user_error():
    with pytest.raises(UserError, match="its outputs: out0, out1"):
        run_pipeline(example(), [PruneDeadNodes()], PassContext(outputs=("nothing",)))


def test_dumps_the_module_after_each_pass(tmp_path, monkeypatch):
    monkeypatch.setenv(DUMP_VARIABLE, str(tmp_path / "ir"))
    run_pipeline(example(), [PruneDeadNodes(), FoldConstants()])
    files = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert files == ["00-input.txt", "01-prune-dead-nodes.txt", "02-fold-constants.txt"]
    assert "R.negative" in (tmp_path / "ir" / files[1]).read_text()
    assert "R.negative" not in (tmp_path / "ir" / files[2]).read_text()
