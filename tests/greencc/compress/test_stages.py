"""Stages compute what the whole does, in every variant."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import tvm
from planted import samples, write_planted

from greencc.calibration import Calibration
from greencc.compress import cutting
from greencc.compress.candidates import KINDS, LAYER, Candidate, apply_choices, choices_of, find_candidates
from greencc.compress.cutting import Stage, cut
from greencc.compress.stages import Stages, with_unique_names
from greencc.importers import import_model
from greencc.passes.base import PassContext
from greencc.passes.blocks import find_blocks
from greencc.passes.pipeline import run_pipeline
from greencc.passes.registry import default_pipeline
from greencc.targets.cpu.target import CpuTarget, host_target
from greencc.verification import run_module

INT8 = tuple(kind for kind in KINDS if kind == LAYER or kind.label == "int8")
"""Kinds of which each product has one candidate."""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> tvm.IRModule:
    path = write_planted(tmp_path_factory.mktemp("models") / "planted.onnx", layers=4, planted=None)
    imported = import_model(path, shapes={}, dynamic={}, outputs=None).module
    return with_unique_names(run_pipeline(imported, default_pipeline(), PassContext()).module)


def test_cuts_are_narrow_and_share_the_products(module: tvm.IRModule) -> None:
    stages = cut(module, 4).stages
    assert len(stages) == 4
    products = [sum(node.startswith("product") for node in stage.nodes) for stage in stages]
    assert products == [1, 1, 1, 1]
    for stage in stages[1:]:
        assert len(stage.module["main"].params) == 1
    assert len(cut(module, 2).stages) == 2
    assert len(cut(module, 1).stages) == 1
    assert len(cut(module, 100).stages) == 4


def test_a_network_that_gets_narrower_is_cut_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [512, 512, 512, 128, 128, 32, 32]
    weights = {f"w{i}": np.ones(shape, np.float32) for i, shape in enumerate(itertools.pairwise(sizes))}
    steps = "".join(f"p{i} = MatMul(x{i}, w{i}) x{i + 1} = Relu(p{i})" for i in range(6))
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[64, 512] x0) => (float[64, 32] x6) {{ {steps} }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", shapes={}, dynamic={}, outputs=None).module

    def inputs() -> list[tuple[int, ...]]:
        return [shape for stage in cut(imported, 3).stages for shape in _shapes(stage)]

    assert inputs() == [(64, 512), (64, 128), (64, 32)]
    monkeypatch.setattr(cutting, "_MOST_BYTES", 64 * 32 * 4)
    assert inputs() == [(64, 512), (64, 32)]


def _shapes(stage: Stage) -> list[tuple[int, ...]]:
    return [tuple(map(int, param.ty.shape.values)) for param in stage.module["main"].params]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_stages_compute_what_the_module_does(module: tvm.IRModule, count: int) -> None:
    target = host_target(1)
    stages = Stages(module, target, KINDS, count)
    (x,) = (samples(1),)
    np.testing.assert_allclose(stages.run({}, x)["y"], run_module(module, target, x)["y"], rtol=1e-5, atol=1e-5)


def test_variants_are_what_the_passes_do_to_the_whole_module(module: tvm.IRModule) -> None:
    target, x = host_target(1), samples(1)
    candidates = find_candidates(module, INT8)
    assert [candidate.node for candidate in candidates] == [f"product{i}" for i in range(4)]
    some = choices_of([candidates[0], candidates[2]])
    stages = Stages(module, target, INT8, 4)
    single = stages.run({}, x)["y"]
    whole = apply_choices(module, INT8, some).module
    wanted = run_module(whole, target, x)["y"]
    found = stages.run(some, x)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(found - single).max() > 1e-3


def test_what_lies_before_a_stage_is_kept(module: tvm.IRModule) -> None:
    stages = Stages(module, host_target(1), KINDS, 4)
    given = [samples(1, seed) for seed in (1, 2)]
    stages.calibrate(given)
    for number in (1, 3):
        for x, state in zip(given, stages.state(number), strict=True):
            np.testing.assert_array_equal(stages.run({}, state, number)["y"], stages.run({}, x)["y"])
    assert stages.program(0, {}) is stages.program(0, choices_of([]))


def test_a_dropped_layer_is_passed_over(module: tvm.IRModule) -> None:
    target, x = host_target(1), samples(1)
    stages = Stages(module, target, INT8, 4)
    layers = stages.layers()
    assert [layer.node for layer in layers] == [f"add{i}" for i in range(4)]
    assert [f"product{i}" in layers[i].inside for i in range(4)] == [True] * 4
    products = find_candidates(module, INT8)
    for some in ([layers[0]], [layers[1], layers[2]], [layers[3], products[1]]):
        choices = choices_of(some)
        whole = apply_choices(module, INT8, choices).module
        assert len(find_candidates(whole, INT8)) == 4 - len(some)
        np.testing.assert_allclose(stages.run(choices, x)["y"], run_module(whole, target, x)["y"], rtol=1e-5, atol=1e-5)


def test_what_other_layers_read_stays_when_the_layer_goes_that_it_stands_in(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[8, 16] x, float[8, 16] z) => (float[8, 16] y) <float[16, 16] w> {
        p0 = MatMul(x, w)
        s = Sigmoid(z)
        q0 = Mul(p0, s)
        x0 = Add(x, q0)
        p1 = MatMul(x0, w)
        q1 = Mul(p1, s)
        x1 = Add(x0, q1)
        p2 = MatMul(x1, w)
        q2 = Mul(p2, s)
        y = Add(x1, q2)
    }"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "w"))
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", shapes={}, dynamic={}, outputs=None).module
    assert [block.node for block in find_blocks(imported["main"])] == ["make_x0", "make_x1", "make_y"]
    stages = Stages(with_unique_names(imported), host_target(1), KINDS, 3)
    layers = stages.layers()
    assert [layer.node for layer in layers] == ["make_x0", "make_x1", "make_y"]
    assert "make_s" not in layers[0].inside
    x, z = (np.random.default_rng(seed).standard_normal((8, 16)).astype(np.float32) for seed in (1, 2))
    once = x * (1 + 1 / (1 + np.exp(-z)))
    for some in (layers[:2], layers[1:], [layers[0], layers[2]]):
        found = stages.run(choices_of(some), {"x": x, "z": z})["y"]
        np.testing.assert_allclose(found, once, rtol=1e-5, atol=1e-5)


def _given(stages: Stages, number: int, x: np.ndarray) -> dict[str, np.ndarray]:
    """`x` for every value that lives before a stage."""
    return {str(param.name): x for param in stages.stages[number].module["main"].params}


def test_like_layers_are_built_once(module: tvm.IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tvm.IRModule] = []
    build = CpuTarget.build
    monkeypatch.setattr(CpuTarget, "build", lambda self, lowered: built.append(lowered) or build(self, lowered))
    stages = Stages(module, host_target(1), KINDS, 4)
    for number in range(1, 4):
        stages.program(number, {})
    assert len(built) == 1
    x = samples(1)["x"]
    outputs = [next(iter(stages.program(number, {})(_given(stages, number, x)).values())) for number in (1, 2)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_a_stage_is_watched_once(module: tvm.IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    reduced = Calibration._reduced
    monkeypatch.setattr(
        Calibration, "_reduced", lambda self, *given: asked.append(len(given[1])) or reduced(self, *given)
    )
    target, kinds = host_target(1), [kind for kind in INT8 if kind != LAYER]
    stages = Stages(module, target, kinds, 2)
    given = [samples(1, seed) for seed in (1, 2)]
    stages.calibrate(given)
    products = find_candidates(module, kinds)
    for product in products:
        stages.program(stages.stages_of(product)[0], choices_of([product]))
    assert asked == [2, 2]
    some = choices_of(products[1:3])
    whole = apply_choices(module, kinds, some, Calibration(target, given)).module
    wanted = run_module(whole, target, given[0])["y"]
    np.testing.assert_allclose(stages.run(some, given[0])["y"], wanted, rtol=1e-5, atol=1e-5)


def test_what_no_stage_shows_is_not_held(tmp_path: Path) -> None:
    """Operators of a branch, and channels that are made in one stage and read in another."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 3, 12, 12] x, bool c) => (float[1, 32, 12, 12] y) <float[32, 3, 3, 3] u, float[32, 32, 3, 3] v> {
        a = Conv<pads = [1, 1, 1, 1]>(x, u)
        b = Relu(a)
        d = Conv<pads = [1, 1, 1, 1]>(b, v)
        e = Conv<pads = [1, 1, 1, 1]>(d, v)
        y = Relu(e)
    }"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    for name, shape in (("u", (32, 3, 3, 3)), ("v", (32, 32, 3, 3))):
        weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", shapes={}, dynamic={}, outputs=None).module
    whole = with_unique_names(run_pipeline(imported, default_pipeline(), PassContext()).module)
    filters = [candidate for candidate in find_candidates(whole, KINDS) if candidate.label == "filters"]
    assert [candidate.node for candidate in filters] == ["make_a", "make_d"]
    kinds = [kind for kind in KINDS if kind != LAYER]
    split, one = (Stages(whole, host_target(1), kinds, count) for count in (3, 1))
    assert [len(split.stages), len(one.stages)] == [3, 1]
    assert [split.holds(candidate) for candidate in filters] == [False, False]
    assert [one.holds(candidate) for candidate in filters] == [True, True]
    assert not one.holds(Candidate("an operator of a branch", "int8", is_precision=True))


def test_branches_are_not_cut(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[4, 4] x, bool[1] c) => (float[4, 4] y) {
        a = MatMul(x, x)
        b = If(c) <then_branch = t () => (float[4, 4] u) { u = MatMul(a, x) },
                   else_branch = e () => (float[4, 4] v) { v = Add(a, x) }>
        y = MatMul(b, a)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", shapes={}, dynamic={}, outputs=None).module
    assert len(cut(imported, 4).stages) == 1


def test_symbolic_sizes_reach_every_stage(tmp_path: Path) -> None:
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
    stages = Stages(module, host_target(1), KINDS, 2)
    assert len(stages.stages) == 2
    for n in (1, 7):
        x = np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32)
        wanted = np.maximum(x @ weight, 0) @ weight
        np.testing.assert_allclose(stages.run({}, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)


def test_equal_names_are_told_apart(module: tvm.IRModule) -> None:
    again = with_unique_names(module)
    names = [c.node for c in find_candidates(again, INT8)]
    assert len(set(names)) == len(names)
