"""--elide-padding from end to end: a small encoder and MiniLM against ONNX Runtime, on real rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from real_models import ENCODER_SIZES, ENCODERS

from benchmarks.bert_onnx import BertSize, random_onnx
from greencc import UserError, api, load

BATCH, LENGTH = 4, 19
SMALL = BertSize(layers=2, hidden=64, heads=4, feed_forward=96, vocabulary=50, positions=64)
SIZES = {"batch": (1, 8), "sequence": (1, 64)}
ATOL = 1e-4


def masks(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    lengths = np.linspace(1, length, batch).astype(int)[:, None]
    places = np.arange(length)
    some = places < np.where(np.arange(batch)[:, None] % 2, lengths, 0)
    return {
        "prefix": places < lengths,
        "suffix": places >= length - lengths,
        "holes": rng.random((batch, length)) < 0.4,
        "sequences of padding": some,
        "all padding": np.zeros((batch, length), bool),
        "no padding": np.ones((batch, length), bool),
    }


def inputs_of(mask: np.ndarray, words: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, words, mask.shape)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}


def runner(model: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return lambda inputs: [np.asarray(output) for output in session.run(None, inputs)]


@pytest.fixture(scope="module")
def small() -> Path:
    return random_onnx(SMALL)


@pytest.fixture(scope="module")
def pooled(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder with mean pooling behind it, as sentence encoders have it."""
    model = onnx.load(str(small))
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["weight"]),
        helper.make_node("Mul", ["last_hidden_state", "weight"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weight", "tokens"], ["count"], keepdims=0),
        helper.make_node("Clip", ["count", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["sentence"]),
    ]
    values = {"last": np.array([2]), "tokens": np.array([1]), "least": np.array(1e-9, np.float32)}
    graph = model.graph
    graph.node.extend(nodes)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["batch", SMALL.hidden]))
    path = tmp_path_factory.mktemp("pooled") / "pooled.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def elided(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = tmp_path_factory.mktemp("elided") / "artifact"
    api.compile(small, artifact, dynamic=SIZES, elide_padding="attention_mask", verify=True)
    return artifact


def test_real_rows_equal_onnx_runtime_and_padded_ones_are_zero(small: Path, elided: Path) -> None:
    model, reference = load(elided), runner(small)
    for name, mask in masks(BATCH, LENGTH).items():
        inputs = inputs_of(mask, SMALL.vocabulary)
        got = model(inputs)["last_hidden_state"]
        np.testing.assert_allclose(got[mask], reference(inputs)[0][mask], atol=ATOL, rtol=0, err_msg=name)
        assert not got[~mask].any(), name


def test_pooling_inside_the_graph_is_elided_without_being_asked(pooled: Path, tmp_path: Path) -> None:
    report: dict[str, Any] = api.compile(pooled, tmp_path / "a", dynamic=SIZES)
    assert report["elided_padding"] == {"mask": "attention_mask", "outputs": []}
    model, reference = load(tmp_path / "a"), runner(pooled)
    for name, mask in masks(BATCH, LENGTH).items():
        inputs = inputs_of(mask, SMALL.vocabulary)
        np.testing.assert_allclose(model(inputs)["sentence"], reference(inputs)[0], atol=ATOL, rtol=0, err_msg=name)


def test_int8_products_of_real_tokens(small: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dynamic": SIZES, "quantize": "int8-all", "passes": None}
    api.compile(small, tmp_path / "packed", elide_padding="attention_mask", **options)
    api.compile(small, tmp_path / "padded", **options)
    packed, padded = load(tmp_path / "packed"), load(tmp_path / "padded")
    mask = masks(BATCH, LENGTH)["holes"]
    inputs = inputs_of(mask, SMALL.vocabulary)
    got, want = (model(inputs)["last_hidden_state"][mask] for model in (packed, padded))
    # Rows are quantised one by one: the same tokens get the same bytes. Sums of attention have another order.
    assert np.linalg.norm(got - want) <= 0.01 * np.linalg.norm(want)


def test_verify_and_bench_judge_real_rows(small: Path, elided: Path, tmp_path: Path) -> None:
    mask = masks(BATCH, LENGTH)["prefix"]
    inputs = inputs_of(mask, SMALL.vocabulary)
    np.savez(tmp_path / "inputs.npz", **inputs)
    np.savez(tmp_path / "data.npz", **inputs, last_hidden_state=runner(small)(inputs)[0])
    checked: dict[str, Any] = api.verify(elided, data=tmp_path / "data.npz")
    assert checked["data"]["max_abs_difference"] < ATOL
    result: dict[str, Any] = api.bench(
        elided, vs=["onnxruntime"], model=small, inputs=tmp_path / "inputs.npz", repeat=10, profile=True
    )
    assert result["peers"]["onnxruntime"]["agrees"]
    assert result["elided_padding"]["tokens"] == mask.sum()
    products = [rate for rate in result["profile"] if "matmul" in rate["kernel"]]
    assert len(products) == 4 * SMALL.layers
    assert all(rate["operations"] for rate in products)
    shapes = {(SMALL.hidden, 3 * SMALL.hidden), (SMALL.hidden, SMALL.feed_forward)}
    for depth, columns in shapes:
        least = 2 * depth * columns * int(mask.sum())
        assert any(least <= rate["operations"] < 1.2 * least for rate in products)


def test_golden_inputs_have_padding(elided: Path) -> None:
    mask = load(elided).artifact.golden_inputs["attention_mask"]
    assert 0 < mask.sum() < mask.size
    assert api.verify(elided)["golden"]


def test_what_the_user_can_get_wrong(small: Path, elided: Path, tmp_path: Path) -> None:
    for name, words in (("nothing", "inputs: input_ids, attention_mask"), ("input_ids", "no attention")):
        with pytest.raises(UserError, match=words):
            api.compile(small, tmp_path / "a", dynamic=SIZES, elide_padding=name)
    assert not (tmp_path / "a").exists()
    np.savez(tmp_path / "inputs.npz", **inputs_of(np.ones((1, 4), bool), SMALL.vocabulary))
    np.savez(tmp_path / "lacking.npz", input_ids=np.zeros((1, 4), np.int64))
    with pytest.raises(UserError, match="attention_mask"):
        api.bench(elided, vs=["onnxruntime"], model=small, inputs=tmp_path / "lacking.npz")
    with pytest.raises(UserError, match="give one of them"):
        api.bench(elided, inputs=tmp_path / "inputs.npz", shapes={"input_ids": (1, 4)})


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("source", ["torchscript_dynamic", "directory"])
def test_minilm(source: str, minilm_onnx: Path, tmp_path: Path) -> None:
    """torch's exporter finds the mask's elements by computed indices; the directory's importer writes a plain mask."""
    report: dict[str, Any] = api.compile(
        ENCODERS[source].source(), tmp_path / "a", dynamic=ENCODER_SIZES, elide_padding="attention_mask"
    )
    elisions = [item["rewrites"] for item in report["passes"] if item["name"] == "elide-padding"]
    assert elisions == [6]
    model, reference = load(tmp_path / "a"), runner(minilm_onnx)
    for name, mask in masks(8, 40).items():
        inputs = inputs_of(mask, 30000)
        got = model(inputs)["last_hidden_state"]
        np.testing.assert_allclose(got[mask], reference(inputs)[0][mask], atol=ATOL, rtol=0, err_msg=name)
        assert not got[~mask].any(), name
