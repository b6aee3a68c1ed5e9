"""--keep-layers and --prune on encoders of random weights, against ONNX Runtime on models that lack the same parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from benchmarks import bert_onnx
from greencc import BudgetError, UserError, api, load

SIZE: dict[str, Any] = {"hidden": 64, "heads": 4, "feed_forward": 256, "vocabulary": 100, "positions": 32}
SHAPE = (1, 16)
SHAPES = dict.fromkeys(bert_onnx.INPUTS, SHAPE)
LAYERS, KEPT = 6, 2


def encoder(layers: int) -> Path:
    """Random weights are drawn layer by layer, so that fewer layers are the first of more."""
    return bert_onnx.random_onnx(bert_onnx.BertSize(layers=layers, **SIZE))


def some_inputs(count: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE["vocabulary"], (count, SHAPE[1]))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def expected(model: Path | bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model))
    return np.asarray(session.run(None, some_inputs())[0])


def test_the_first_layers_are_the_smaller_model(tmp_path: Path) -> None:
    report: Any = api.compile(encoder(LAYERS), tmp_path / "a", shapes=SHAPES, keep_layers=KEPT)
    found = load(tmp_path / "a")(some_inputs())[bert_onnx.OUTPUT]
    np.testing.assert_allclose(found, expected(encoder(KEPT)), atol=2e-5)
    smaller: Any = api.compile(encoder(KEPT), tmp_path / "b", shapes=SHAPES)
    for fact in ("nodes_after", "edges_after", "kernels", "bytes_after"):
        assert report[fact] == smaller[fact]
    assert report["nodes_after"] < report["nodes_before"]
    assert report["edges_after"] < report["edges_before"]
    assert report["approximated_by"] == ["drop-layers"]


def test_heads_and_channels_that_do_nothing_are_removed_and_nothing_else_changes(tmp_path: Path) -> None:
    model = onnx.load(encoder(2))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name.endswith("attention.output.dense.weight"):
            array[16:32] = 0  # the second of four heads
        elif tensor.name.endswith("output.dense.weight"):
            array[::4] = 0  # a quarter of the channels
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    options: Any = {"prune": {"heads": 0.25, "channels": 0.25}, "shapes": SHAPES}
    report: Any = api.compile(tmp_path / "m.onnx", tmp_path / "a", **options)
    found = load(tmp_path / "a")(some_inputs())[bert_onnx.OUTPUT]
    np.testing.assert_allclose(found, expected(model.SerializeToString()), atol=2e-5)
    made = {entry["name"]: entry["rewrites"] for entry in report["passes"]}
    assert (made["prune-heads"], made["prune-channels"]) == (2, 2)
    whole: Any = api.compile(tmp_path / "m.onnx", tmp_path / "b", shapes=SHAPES)
    weights = 4 * 64 * 64 + 2 * 64 * 256  # of a layer's products
    biases = 3 * 64 + 256
    saved = 2 * 4 * (weights + biases) // 4
    assert whole["bytes_after"] - report["bytes_after"] == pytest.approx(saved, rel=0.02)


def residual_network(unread: int) -> onnx.ModelProto:
    """Two convolutions on a stream of 32 channels, and a product behind it, which read `unread` channels less."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (32, 3, 3, 3), "inner": (64, 32, 3, 3), "outer": (32, 64, 1, 1), "out": (10, 32)}
    arrays = {
        name: rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }
    for name, share in (("inner", 1), ("outer", 2), ("out", 1)):
        arrays[name][:, : unread * share] = 0
    arrays |= {f"{name}.bias": rng.standard_normal(shapes[name][0]).astype(np.float32) for name in shapes}
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "stem", "stem.bias"], ["a"], "stem", **pads),
        node("Relu", ["a"], ["stream"], "stem.relu"),
        node("Conv", ["stream", "inner", "inner.bias"], ["b"], "inner", **pads),
        node("Relu", ["b"], ["c"], "inner.relu"),
        node("Conv", ["c", "outer", "outer.bias"], ["d"], "outer"),
        node("Add", ["stream", "d"], ["sum"], "sum"),
        node("GlobalAveragePool", ["sum"], ["pooled"], "pool"),
        node("Flatten", ["pooled"], ["flat"], "flat"),
        node("Gemm", ["flat", "out", "out.bias"], ["y"], "out", transB=1),
    ]
    info = onnx.helper.make_tensor_value_info
    values = [info("x", 1, [2, 3, 8, 8])], [info("y", 1, [2, 10])]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "network", *values, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("calibrated", [False, True])
def test_channels_of_images_that_nobody_reads_are_removed_and_nothing_else_changes(
    tmp_path: Path, calibrated: bool
) -> None:
    model = residual_network(unread=8)
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    calib: Any = [{"x": x}] if calibrated else None
    report: Any = api.compile(tmp_path / "m.onnx", tmp_path / "a", prune={"channels": 0.25}, calib=calib)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run(None, {"x": x})
    np.testing.assert_allclose(load(tmp_path / "a")({"x": x})["y"], np.asarray(wanted), atol=2e-5)
    assert {entry["name"]: entry["rewrites"] for entry in report["passes"]}["prune-filters"] == 2
    assert report["calibration_runs"] == calibrated
    filters = 24 * 3 * 9 + 48 * 24 * 9 + 24 * 48 + 10 * 24
    assert report["bytes_after"] == pytest.approx(4 * (filters + 24 + 48 + 24 + 10), rel=0.02)


@pytest.mark.slow
def test_a_budget_refuses_layers_that_are_missed(tmp_path: Path) -> None:
    options: Any = {"shapes": SHAPES, "calib": [some_inputs(20)], "max_drop": 0.01}
    with pytest.raises(BudgetError, match="what was asked for besides is beyond it: the relative_l2 drop is"):
        api.compile(encoder(LAYERS), tmp_path / "a", keep_layers=KEPT, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_layers": 0}, "--keep-layers 0: at least one must stay"),
        ({"keep_layers": 7}, "can't keep 7 layers: the model has 2 repeated layers"),
        ({"prune": {"neurons": 0.5}}, "--prune neurons: unknown; known: heads, channels, sparsity"),
        ({"prune": {"heads": 1.0}}, "--prune heads=1: write a share between 0 and 1"),
        ({"prune": {"channels": -0.5}}, "--prune channels=-0.5: write a share between 0 and 1"),
        ({"calib": [some_inputs()]}, "nothing is calibrated without --quantize, --epsilon, --prune or --max-drop"),
    ],
)
def test_requests_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        api.compile(encoder(2), tmp_path / "a", shapes=SHAPES, **options)
    assert not list(tmp_path.iterdir())
