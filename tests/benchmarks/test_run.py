"""The comparison of ratios with stored ones, and the cases that are timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.run import ALLOWANCE, CASES, padded_batch, regressions, updated


def results(cpu: str, ratio: float, spread: float = 0.01) -> dict[str, Any]:
    names = ("onnxruntime", "openvino")
    timed = {
        "environment": {"cpu": cpu},
        "ratio": dict.fromkeys(names, ratio),
        "ratio_interval_95": {name: [ratio - spread, ratio + spread] for name in names},
    }
    return {"results": [{"name": "minilm-1x128", "bench": timed}]}


def test_only_what_is_surely_slower_than_before_is_a_regression() -> None:
    baseline = updated(results("A", 0.8), {"B": {"other": {"onnxruntime": 1.0}}})
    assert baseline["A"] == {"minilm-1x128": {"onnxruntime": 0.8, "openvino": 0.8}}
    assert baseline["B"] == {"other": {"onnxruntime": 1.0}}
    assert regressions(results("A", 0.8), baseline) == []
    assert regressions(results("A", 0.8 * ALLOWANCE + 0.005), baseline) == []
    slower = regressions(results("A", 1.0), baseline)
    assert len(slower) == 2
    assert "minilm-1x128: 1.00 of ONNX Runtime, was 0.80" in slower[0]
    assert regressions(results("A", 1.0, spread=0.2), baseline) == []
    assert regressions(results("another CPU", 9.0), baseline) == []


def test_the_padded_batch_is_padded_as_its_name_says() -> None:
    inputs = padded_batch()
    lengths = inputs["attention_mask"].sum(axis=1)
    assert (lengths[0], lengths[-1], inputs["input_ids"].shape) == (16, 128, (8, 128))
    assert np.array_equal(inputs["attention_mask"], np.arange(128) < lengths[:, None])
    assert all(set(case.peers) == {"onnxruntime", "openvino"} for case in CASES.values())
