"""--quantize int8-weights and int4: the artifact computes what ONNX Runtime does with the weights that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from benchmarks import bert_onnx
from greencc import api, load

SIZE = bert_onnx.BertSize(layers=2, hidden=64, heads=4, feed_forward=256, vocabulary=100, positions=32)
LENGTH = 16
SHAPES = dict.fromkeys(bert_onnx.INPUTS, (1, LENGTH))


def in_groups(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Every weight [K, N] as its nearest level: symmetric in 8 bits, affine in 4; scales and offsets are halves."""
    made = np.empty_like(weight)
    for first in range(0, len(weight), group):
        rows = weight[first : first + group].astype(np.float64)
        if bits == 8:
            scale, offset = np.abs(rows).max(axis=0) / 127, np.zeros(rows.shape[1])
            low, high = -127, 127
        else:
            scale = np.ptp(rows, axis=0) / 15
            offset = (rows.min(axis=0) + rows.max(axis=0)) / 2 + scale.astype(np.float16) / 2
            low, high = -8, 7
        scale, offset = (number.astype(np.float16).astype(np.float64) for number in (scale, offset))
        levels = np.clip(np.rint((rows - offset) / scale), low, high)
        made[first : first + group] = levels * scale + offset
    return made


def with_weights_in_groups(path: Path, out: Path, bits: int, group: int) -> Path:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.size >= 4096 and len(array) != SIZE.vocabulary:
            tensor.CopyFrom(numpy_helper.from_array(in_groups(array, bits, group), tensor.name))
        elif array.ndim == 2 and len(array) == SIZE.vocabulary:
            scale = np.abs(array).max(axis=1, keepdims=True) / np.float32(127)
            tensor.CopyFrom(numpy_helper.from_array(np.rint(array / scale) * scale, tensor.name))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(("kind", "bits", "group", "share"), [("int8-weights", 8, 64, 0.32), ("int4", 4, 32, 0.24)])
def test_outputs_are_those_of_the_stored_weights(
    tmp_path: Path, kind: str, bits: int, group: int, share: float
) -> None:
    source = bert_onnx.random_onnx(SIZE)
    plain = f"fold-constants,quantize-tables,quantize-weights{{bits={bits},group={group},method=nearest}}"
    options: Any = {"shapes": SHAPES, "verify": True}
    report: dict[str, Any] = api.compile(source, tmp_path / "a", passes=plain, **options)
    assert report["bytes_after"] < share * report["bytes_before"]
    (done,) = (item for item in report["passes"] if item["name"] == "quantize-weights")
    assert {entry["bits"] for entry in done["stored"]} == {bits}
    rounded = with_weights_in_groups(source, tmp_path / "rounded.onnx", bits, group)
    session = onnxruntime.InferenceSession(str(rounded), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": rng.integers(0, SIZE.vocabulary, (1, LENGTH)),
        "attention_mask": np.ones((1, LENGTH), np.int64),
        "token_type_ids": np.zeros((1, LENGTH), np.int64),
    }
    wanted = np.asarray(session.run([bert_onnx.OUTPUT], inputs)[0])
    found = load(tmp_path / "a")(inputs)[bert_onnx.OUTPUT]
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)
    # By its own name, ranges of four bits are clipped: other weights move, outputs about as far.
    asked: dict[str, Any] = api.compile(source, tmp_path / "b", quantize=kind, **options)
    assert asked["approximated_by"] == ["quantize-tables", "quantize-weights"]
    assert asked["bytes_after"] <= report["bytes_after"]
    exact = np.asarray(onnxruntime.InferenceSession(str(source)).run([bert_onnx.OUTPUT], inputs)[0])
    moved, plainly = (np.linalg.norm(y - exact) for y in (load(tmp_path / "b")(inputs)[bert_onnx.OUTPUT], found))
    assert 0 < moved < 1.1 * plainly
