"""Calibration data: what is seen of a model's values, and what int8 gains by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax, tirx

from greencc import UserError, api, load
from greencc.calibration import Calibration
from greencc.ir import INPUTS_ATTR, OUTPUTS_ATTR
from greencc.observers import MeanSquaredError, MinMax
from greencc.targets.cpu.target import host_target

K = 12


def doubled(batch: object) -> tuple[tvm.IRModule, relax.Var]:
    """A module of y = x + x, and its inner value 2 x."""
    x = relax.Var("x", relax.TensorType((batch, 3, K), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            twice = builder.emit(relax.op.add(x, x))
            result = builder.emit_output(relax.Tuple([builder.emit(relax.op.exp(twice))]))
        builder.emit_func_output(result)
    module = builder.get()
    named = module["main"].with_attrs({INPUTS_ATTR: ["x"], OUTPUTS_ATTR: ["y"]})
    module.update_func(module.get_global_var("main"), named)
    return module, twice


def test_maxima_are_over_all_samples_and_columns_apart() -> None:
    module, value = doubled(tirx.Var("b", "int64"))
    samples = [np.random.default_rng(i).standard_normal((1 + i, 3, K)).astype(np.float32) for i in range(3)]
    seen = Calibration(host_target(1), [{"x": sample} for sample in samples])
    (largest,) = seen.largest(module, [value])
    wanted = np.max([np.abs(2 * sample).max(axis=(0, 1)) for sample in samples], axis=0)
    np.testing.assert_allclose(largest, wanted, rtol=1e-6)
    assert seen.runs == 3


def test_mean_squares_are_over_all_elements_of_a_column() -> None:
    module, value = doubled(2)
    samples = [np.random.default_rng(i).standard_normal((2, 3, K)).astype(np.float32) for i in range(3)]
    (found,) = Calibration(host_target(1), [{"x": sample} for sample in samples]).mean_squares(module, [value])
    wanted = np.mean([(2 * sample.astype(np.float64)) ** 2 for sample in samples], axis=(0, 1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_mean_sizes_are_over_all_elements_of_a_column() -> None:
    module, value = doubled(2)
    samples = [np.random.default_rng(i).standard_normal((2, 3, K)).astype(np.float32) for i in range(3)]
    (found,) = Calibration(host_target(1), [{"x": sample} for sample in samples]).mean_sizes(module, [value])
    wanted = np.mean([np.abs(2 * sample.astype(np.float64)) for sample in samples], axis=(0, 1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_grams_are_sums_over_all_rows_of_samples_of_any_size() -> None:
    module, value = doubled(tirx.Var("b", "int64"))
    x = module["main"].params[0]
    samples = [np.random.default_rng(i).standard_normal((1 + i, 3, K)).astype(np.float32) for i in range(3)]
    seen = Calibration(host_target(1), ({"x": sample} for sample in samples))
    rows = np.concatenate([sample.reshape(-1, K) for sample in samples]).astype(np.float64)
    for gram, factor in zip(seen.grams(module, [value, x]), (4.0, 1.0), strict=True):
        assert gram.dtype == np.float64
        np.testing.assert_allclose(gram, factor * rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert seen.runs == 3


def test_mean_squares_are_along_the_axis_of_each_value() -> None:
    module, value = doubled(2)
    x = module["main"].params[0]
    samples = [np.random.default_rng(i).standard_normal((2, 3, K)).astype(np.float32) for i in range(3)]
    seen = Calibration(host_target(1), [{"x": sample} for sample in samples])
    squares = np.stack(samples).astype(np.float64) ** 2
    wanted = [4 * squares.mean(axis=(0, 1, 3)), squares.mean(axis=(0, 2, 3)), squares.mean(axis=(0, 1, 2))]
    found = seen.mean_squares(module, [value, x, x], [1, 0, -1])
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_changes_are_quotients_of_norms_over_all_samples() -> None:
    module, value = doubled(2)
    x = module["main"].params[0]
    samples = [np.random.default_rng(i).standard_normal((2, 3, K)).astype(np.float32) for i in range(3)]
    seen = Calibration(host_target(1), [{"x": sample} for sample in samples])
    np.testing.assert_allclose(seen.changes(module, [(x, value), (value, x), (x, x)]), [1.0, 0.5, 0.0], rtol=1e-6)


def test_means_are_along_an_axis_of_each_value() -> None:
    module, value = doubled(2)
    x = module["main"].params[0]
    samples = [np.random.default_rng(i).standard_normal((2, 3, K)).astype(np.float32) + 1 for i in range(3)]
    seen = Calibration(host_target(1), [{"x": sample} for sample in samples])
    columns, channels = seen.means(module, [value, x], [-1, 1])
    exact = np.array(samples, np.float64)
    np.testing.assert_allclose(columns, 2 * exact.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(channels, exact.mean(axis=(0, 1, 3)), rtol=1e-5)


def test_ranges_are_over_all_samples_of_inputs_and_inner_values() -> None:
    module, value = doubled(tirx.Var("b", "int64"))
    x = module["main"].params[0]
    samples = [np.random.default_rng(i).standard_normal((1 + i, 3, K)).astype(np.float32) for i in range(3)]
    seen = Calibration(host_target(1), [{"x": sample} for sample in samples])
    low, high = min(s.min() for s in samples), max(s.max() for s in samples)
    assert seen.ranges(module, [x, value, x], MinMax()) == [(low, high), (2 * low, 2 * high), (low, high)]


def test_the_same_question_is_answered_without_another_run() -> None:
    class Counted:
        rounds = 0

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            self.rounds += 1
            yield {"x": np.random.default_rng(0).standard_normal((2, 3, K)).astype(np.float32)}

    module, value = doubled(2)
    (x,) = module["main"].params
    samples = Counted()
    seen = Calibration(host_target(1), samples)
    first = seen.ranges(module, [x], MinMax())
    assert seen.ranges(module, [x], MinMax()) == first
    seen.ranges(module, [x], MeanSquaredError())  # by the same histogram
    assert samples.rounds == 1
    seen.ranges(module, [value, x], MinMax())  # one value is new
    seen.means(module, [x], [-1])
    seen.means(module, [x, x], [-1, -1])
    assert samples.rounds == 3
    other, _ = doubled(2)
    seen.ranges(other, [other["main"].params[0]], MinMax())
    assert samples.rounds == 4


def test_data_without_samples_are_the_users_mistake() -> None:
    module, value = doubled(2)
    with pytest.raises(UserError, match="no sample"):
        Calibration(host_target(1), []).largest(module, [value])


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of x whose first columns are a hundred times larger than the others."""
    rng = np.random.default_rng(0)
    depth, columns = 64, 96
    gain = np.where(np.arange(depth) < 4, 100.0, 1.0).astype(np.float32)
    weight = rng.standard_normal((depth, columns)).astype(np.float32) / gain[:, None]
    nodes = [helper.make_node("Mul", ["x", "gain"], ["large"]), helper.make_node("Tanh", ["x"], ["small"])]
    nodes += [
        helper.make_node("Add", ["large", "small"], ["sum"]),
        helper.make_node("MatMul", ["sum", "weight"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in (("x", depth), ("y", columns))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in (("gain", gain), ("weight", weight))]
    graph = helper.make_graph(nodes, "skewed", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("skewed") / "skewed.onnx"
    onnx.save(model, str(path))
    return path


def test_int8_gains_by_calibration(skewed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data, held_out = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    np.savez(tmp_path / "calib.npz", x=data)
    session = onnxruntime.InferenceSession(str(skewed), providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(None, {"x": held_out})[0])
    distances = {}
    for name, calib in (("without", None), ("file", tmp_path / "calib.npz"), ("iterable", [{"x": data}])):
        report: dict[str, Any] = api.compile(
            skewed, tmp_path / name, dynamic={"rows": (1, 64)}, quantize="int8-all", calib=calib
        )
        got = load(tmp_path / name)({"x": held_out})["y"]
        distances[name] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        assert report["calibration_runs"] == {"without": 0, "file": 64, "iterable": 1}[name]
    assert distances["file"] == distances["iterable"]
    assert distances["file"] < 0.2 * distances["without"]


def test_calibration_needs_something_to_calibrate(skewed: Path, tmp_path: Path) -> None:
    shapes = {"x": (1, 64)}
    with pytest.raises(UserError, match="without --quantize"):
        api.compile(skewed, tmp_path / "a", shapes=shapes, calib=[])
    with pytest.raises(UserError, match="no such file"):
        api.compile(skewed, tmp_path / "a", shapes=shapes, quantize="int8-all", calib=tmp_path / "nothing.npz")
    assert not (tmp_path / "a").exists()
