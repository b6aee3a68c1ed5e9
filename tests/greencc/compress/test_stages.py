"""Stages compute what the whole does, in every variant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from planted import samples, write_planted

from greencc.compress.candidates import PASSES, choices_of, find_candidates
from greencc.compress.stages import Stages, cut, with_unique_names
from greencc.importers import import_model
from greencc.passes.base import PassContext
from greencc.passes.pipeline import run_pipeline
from greencc.passes.registry import default_pipeline
from greencc.targets.cpu.target import host_target
from greencc.verification import run_module


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> tvm.IRModule:
    path = write_planted(tmp_path_factory.mktemp("models") / "planted.onnx", layers=4, planted=None)
    imported = import_model(path, shapes={}, dynamic={}, outputs=None).module
    return with_unique_names(run_pipeline(imported, default_pipeline(), PassContext()).module)


def test_cuts_are_narrow_and_share_the_products(module: tvm.IRModule) -> None:
    stages = cut(module, 4)
    assert len(stages) == 4
    products = [sum(node.startswith("product") for node in stage.nodes) for stage in stages]
    assert products == [1, 1, 1, 1]
    for stage in stages[1:]:
        assert len(stage.module["main"].params) == 1
    assert len(cut(module, 2)) == 2
    assert len(cut(module, 1)) == 1
    assert len(cut(module, 100)) == 4


@pytest.mark.parametrize("count", [1, 3, 4])
def test_stages_compute_what_the_module_does(module: tvm.IRModule, count: int) -> None:
    target = host_target(1)
    stages = Stages(module, target, PASSES, count)
    (x,) = (samples(1),)
    np.testing.assert_allclose(stages.run({}, x)["y"], run_module(module, target, x)["y"], rtol=1e-5, atol=1e-5)


def test_variants_are_what_the_passes_do_to_the_whole_module(module: tvm.IRModule) -> None:
    target, x = host_target(1), samples(1)
    candidates = find_candidates(module)
    assert [candidate.node for candidate in candidates] == [f"product{i}" for i in range(4)]
    some = choices_of([candidates[0], candidates[2]])
    stages = Stages(module, target, PASSES, 4)
    single = stages.run({}, x)["y"]
    whole = run_pipeline(module, PASSES, PassContext(choices=some)).module
    wanted = run_module(whole, target, x)["y"]
    found = stages.run(some, x)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(found - single).max() > 1e-3


def test_what_lies_before_a_stage_is_kept(module: tvm.IRModule) -> None:
    stages = Stages(module, host_target(1), PASSES, 4)
    given = [samples(1, seed) for seed in (1, 2)]
    stages.calibrate(given)
    for number in (1, 3):
        for x, state in zip(given, stages.state(number), strict=True):
            np.testing.assert_array_equal(stages.run({}, state, number)["y"], stages.run({}, x)["y"])
    assert stages.program(0, {}) is stages.program(0, choices_of([]))


def test_branches_are_not_cut(tmp_path: Path) -> None:
    import onnx.parser

    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[4, 4] x, bool[1] c) => (float[4, 4] y) {
        a = MatMul(x, x)
        b = If(c) <then_branch = t () => (float[4, 4] u) { u = MatMul(a, x) },
                   else_branch = e () => (float[4, 4] v) { v = Add(a, x) }>
        y = MatMul(b, a)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", shapes={}, dynamic={}, outputs=None).module
    assert len(cut(imported, 4)) == 1


def test_symbolic_sizes_reach_every_stage(tmp_path: Path) -> None:
    import onnx.parser

    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 64] x) => (float[n, 64] y) <float[64, 64] w> {
        a = MatMul(x, w)
        b = Relu(a)
        s = Shape(x)
        z = Expand(b, s)
        y = MatMul(z, w)
    }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", shapes={}, dynamic={"n": (1, 9)}, outputs=None).module
    module = with_unique_names(run_pipeline(imported, default_pipeline(), PassContext()).module)
    stages = Stages(module, host_target(1), PASSES, 2)
    assert len(stages.stages) == 2
    for n in (1, 7):
        x = np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32)
        wanted = np.maximum(x @ weight, 0) @ weight
        np.testing.assert_allclose(stages.run({}, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)


def test_equal_names_are_told_apart(module: tvm.IRModule) -> None:
    again = with_unique_names(module)
    names = [c.node for c in find_candidates(again)]
    assert len(set(names)) == len(names)
