"""Whole networks through the importer: image networks with random weights, and what symbolic sizes become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx_cases import run

from greencc.errors import UnsupportedOperators, UserError
from greencc.importers.onnx import import_onnx
from greencc.ir import bindings_of, relax_functions, span_of

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def with_random_weights(path: Path) -> onnx.ModelProto:
    """A light network whose weights, all 0.02 as shipped, are random; without its softmax, which hides differences."""
    model = onnx.load(path)
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rng = np.random.default_rng(0)
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = shapes[node.input[0]].tolist()
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = rng.standard_normal(shape) / np.sqrt(fan_in) if len(shape) > 1 else rng.uniform(0.1, 0.5, shape)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    if kept[-1].op_type == "Softmax":
        kept[-1].CopyFrom(helper.make_node("Identity", kept[-1].input, kept[-1].output))
    del graph.node[:]
    graph.node.extend(kept)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet", "inception_v1"])
def test_light_network_with_random_weights_agrees_with_onnx_runtime(name, tmp_path):
    path = tmp_path / f"{name}.onnx"
    onnx.save(with_random_weights(LIGHT / f"light_{name}.onnx"), path)
    module = import_onnx(path).module
    (param,) = module["main"].params
    data = np.random.default_rng(1).uniform(-1, 1, [int(dim) for dim in param.ty.shape.values]).astype(np.float32)
    (got,) = run(module, [data])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {session.get_inputs()[0].name: data})
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, float(np.abs(want).max())))


def graph_model(text: str, opset: int = 17) -> onnx.ModelProto:
    return helper.make_model(
        onnx.parser.parse_graph(f"g {text}"), opset_imports=[helper.make_opsetid("", opset)], ir_version=9
    )


def test_every_call_carries_the_name_of_its_node(tmp_path):
    model = graph_model(
        "(float[N,3] x) => (float y) { [first] a = Relu(x) [second] b = Softmax(a) [third] y = Gelu(b) }", 20
    )
    onnx.save(model, tmp_path / "m.onnx")
    module = import_onnx(tmp_path / "m.onnx").module
    names = [span_of(b.value) for _, fn in relax_functions(module) for b in bindings_of(fn) if span_of(b.value)]
    assert names == ["first", "second", "third"]


def test_dimensions_that_must_be_equal_become_one(tmp_path):
    model = graph_model("(float[A,3] x, float[B,3] z) => (float y) { y = Add(x, z) }")
    onnx.save(model, tmp_path / "m.onnx")
    module = import_onnx(tmp_path / "m.onnx").module
    ones = np.ones((2, 3), np.float32)
    (got,) = run(module, [ones, ones])
    np.testing.assert_array_equal(got, 2 * ones)
    with pytest.raises((RuntimeError, ValueError)):
        run(module, [ones, np.ones((4, 3), np.float32)])
    bounded = import_onnx(tmp_path / "m.onnx", dynamic={"A": (1, 8), "B": (2, 9)}).module["main"]
    (symbol,) = bounded.attrs["tir_var_upper_bound"]
    assert (bounded.attrs["tir_var_lower_bound"][symbol], bounded.attrs["tir_var_upper_bound"][symbol]) == (2, 8)
    with pytest.raises(UserError, match="which has other bounds"):
        import_onnx(tmp_path / "m.onnx", dynamic={"A": (1, 2), "B": (3, 4)})
    fixed = import_onnx(tmp_path / "m.onnx", shapes={"x": (2, 3)}).module
    np.testing.assert_array_equal(run(fixed, [ones, ones])[0], 2 * ones)
    with pytest.raises((RuntimeError, ValueError)):
        run(fixed, [ones, np.ones((4, 3), np.float32)])


def test_computed_sizes_that_must_agree_are_checked_when_the_model_runs(tmp_path):
    pool = "p = MaxPool<kernel_shape=[2], strides=[2]>(x)"
    onnx.save(
        graph_model(f"(float[1,3,A] x, float[1,3,B] z) => (float y) {{ {pool} y = Add(p, z) }}"), tmp_path / "m.onnx"
    )
    module = import_onnx(tmp_path / "m.onnx").module
    x, z = np.ones((1, 3, 8), np.float32), np.ones((1, 3, 4), np.float32)
    np.testing.assert_array_equal(run(module, [x, z])[0], 2 * z)
    for size in (1, 3, 5):
        with pytest.raises((RuntimeError, ValueError)):
            run(module, [x, np.ones((1, 3, size), np.float32)])


def test_both_branches_of_an_if_run(tmp_path):
    text = """(bool c, float[N,3] x) => (float y) {
        y = If (c) <then_branch = t () => (float[N,3] a) { a = Relu(x) }, else_branch = e () => (float[N,3] b) { b = Neg(x) }>
    }"""
    onnx.save(graph_model(text), tmp_path / "m.onnx")
    module = import_onnx(tmp_path / "m.onnx").module
    x = np.array([[-1, 0, 2]], np.float32)
    for condition, want in ((True, np.maximum(x, 0)), (False, -x)):
        (got,) = run(module, [np.array(condition), x])
        np.testing.assert_array_equal(got, want)


def test_branches_of_different_types_are_refused(tmp_path):
    text = """(bool c, float[N,3] x) => (float y) {
        y = If (c) <then_branch = t () => (float a) { a = Relu(x) }, else_branch = e () => (float b) { b = Transpose(x) }>
    }"""
    onnx.save(graph_model(text), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperators, match="different types"):
        import_onnx(tmp_path / "m.onnx")
