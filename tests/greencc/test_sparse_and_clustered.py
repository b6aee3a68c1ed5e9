"""--prune sparsity and --cluster-weights: against ONNX Runtime on models with the same weights, and what they save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import bert_onnx
from greencc import UserError, api, load, render
from greencc.artifact.format import read_artifact

SIZE = bert_onnx.BertSize(layers=2, hidden=64, heads=4, feed_forward=256, vocabulary=100, positions=32)
SHAPES = dict.fromkeys(bert_onnx.INPUTS, (1, 16))


def encoder() -> Path:
    return bert_onnx.random_onnx(SIZE)


def some_inputs() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, SIZE.vocabulary, (1, 16))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def halved(columns: np.ndarray) -> np.ndarray:
    """Each column of [K, N] without the half of it that is smallest."""
    return np.where(np.abs(columns) > np.sort(np.abs(columns), axis=0)[len(columns) // 2 - 1], columns, 0)


def two_of_four(columns: np.ndarray) -> np.ndarray:
    """In four rows that follow each other, a column keeps the two largest."""
    groups = columns.reshape(-1, 4, columns.shape[1])
    second = np.sort(np.abs(groups), axis=1)[:, 1:2]
    return np.where(np.abs(groups) > second, groups, 0).reshape(columns.shape)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Bytes of the encoder as it is: weights, and the packed file."""
    folder = tmp_path_factory.mktemp("whole")
    report: Any = api.compile(encoder(), folder / "a", shapes=SHAPES)
    packed: Any = api.pack(folder / "a", folder / "a.pack")
    return {"weights": report["bytes_after"], "packed": packed["bytes_after"]}


@pytest.mark.parametrize(("share", "sparse"), [(0.5, halved), ("2:4", two_of_four)])
def test_the_sparse_model_is_the_model_of_the_sparse_weights(
    share: Any, sparse: Any, whole: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(encoder())
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name.endswith(".weight") and "embeddings" not in tensor.name and array.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(sparse(array), tensor.name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = np.asarray(session.run(None, some_inputs())[0])
    report: Any = api.compile(encoder(), tmp_path / "a", shapes=SHAPES, prune={"sparsity": share})
    found = load(tmp_path / "a")(some_inputs())[bert_onnx.OUTPUT]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert report["approximated_by"] == ["sparsify"]
    (made,) = (item for item in report["passes"] if item["name"] == "sparsify")
    assert [entry["share"] for entry in made["zeros"]] == [0.5] * 8  # of a layer's six products three are merged
    render.show(render.compile_report(report))
    assert "50.0% to 50.0% of 8 weights" in capsys.readouterr().out
    assert report["bytes_after"] == whole["weights"]
    packed: Any = api.pack(tmp_path / "a", tmp_path / "a.pack")
    # The half that stays, and a bit for each weight: 0.5 + 1 / 27 of the product's bytes.
    assert packed["bytes_after"] < 0.65 * whole["packed"]


def test_a_convolution_loses_what_its_data_show_to_be_unimportant(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    gains = np.exp(3 * rng.standard_normal((1, 16, 1, 1))).astype(np.float32)
    data = (gains * rng.standard_normal((20, 16, 8, 8))).astype(np.float32)

    def convolution(weight: np.ndarray) -> onnx.ModelProto:
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 16), ("y", 32)))
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
        graph = helper.make_graph(nodes, "convolution", [x], [y], [numpy_helper.from_array(weight, "w")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    onnx.save(convolution(filters), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=data)
    api.compile(tmp_path / "m.onnx", tmp_path / "a", prune={"sparsity": 0.5}, calib=tmp_path / "data.npz")
    norms = np.sqrt((data.astype(np.float64) ** 2).mean(axis=(0, 2, 3)))[:, None, None]
    scores = (np.abs(filters) * norms).reshape(32, -1)
    kept = scores > np.sort(scores, axis=1)[:, 71:72]
    session = onnxruntime.InferenceSession(convolution(filters * kept.reshape(filters.shape)).SerializeToString())
    wanted = np.asarray(session.run(None, {"x": data[:1]})[0])
    found = load(tmp_path / "a")({"x": data[:1]})["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_clustered_weights_are_packed_as_their_numbers(whole: dict[str, int], tmp_path: Path) -> None:
    report: Any = api.compile(encoder(), tmp_path / "a", shapes=SHAPES, cluster_weights=4)
    assert report["approximated_by"] == ["cluster-weights"]
    (made,) = (item for item in report["passes"] if item["name"] == "cluster-weights")
    assert len(made["stored"]) == 8 + 1  # and the table of words
    assert {entry["bits"] for entry in made["stored"]} == {4}
    large = [array for array in read_artifact(tmp_path / "a").weights.values() if array.size >= 4096]
    assert len(large) == 9
    assert all(np.unique(array).size <= 16 for array in large)
    assert report["bytes_after"] == whole["weights"]
    packed: Any = api.pack(tmp_path / "a", tmp_path / "a.pack")
    stored = sum(array.size for array in large)
    weights = packed["members"]["weights.safetensors"]
    # Four bits for each clustered weight; the others as they are.
    assert weights["bytes_after"] < 4.1 / 8 * stored + weights["bytes_before"] - 4 * stored
    assert packed["bytes_after"] < 0.3 * whole["packed"]


def test_a_weight_that_is_sparse_stays_so_when_it_is_clustered(tmp_path: Path) -> None:
    options: Any = {"shapes": SHAPES, "prune": {"sparsity": 0.5}, "cluster_weights": 3}
    report: Any = api.compile(encoder(), tmp_path / "a", **options)
    assert report["approximated_by"] == ["sparsify", "cluster-weights"]
    large = [array for array in read_artifact(tmp_path / "a").weights.values() if array.size >= 4096]
    shares = sorted(np.count_nonzero(array) / array.size for array in large)
    assert shares[:-1] == [0.5] * 8  # the last one is the table
    assert all(np.unique(array).size <= 8 for array in large)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prune": {"sparsity": 1.0}}, "--prune sparsity=1: write a share between 0 and 1, of what is to go, or 2:4"),
        ({"prune": {"sparsity": "1:4"}}, "--prune sparsity=1:4: write a share between 0 and 1"),
        ({"prune": {"heads": "2:4"}}, "--prune heads=2:4: write a share between 0 and 1, of what is to go$"),
        ({"cluster_weights": 9}, "cluster-weights: bits=9: give 2 to 8"),
        ({"cluster_weights": 4, "quantize": "int8"}, "--cluster-weights 4: weights are stored in one way: leave out"),
        ({"cluster_weights": 4, "epsilon": 0.1}, "leave out --quantize, --epsilon and --max-drop"),
        ({"cluster_weights": 4, "max_drop": 0.1, "calib": [some_inputs()]}, "--cluster-weights 4: weights are stored"),
    ],
)
def test_requests_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        api.compile(encoder(), tmp_path / "a", shapes=SHAPES, **options)
    assert not list(tmp_path.iterdir())
