"""A weight that several operators read is stored once, in whatever form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from greencc import api, load


@pytest.mark.parametrize(("quantize", "most"), [("none", 4.1), ("int8-all", 1.2), ("int8-weights", 1.2), ("int4", 0.8)])
def test_equal_weights_are_stored_once(tmp_path: Path, quantize: str, most: float) -> None:
    width, layers = 128, 5
    steps = "".join(f"p{i} = MatMul(x{i}, w) q{i} = Tanh(p{i}) x{i + 1} = Add(x{i}, q{i})" for i in range(layers))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[4, {width}] x0) => (float[4, {width}] x{layers}) {{ {steps} }}"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / np.float32(np.sqrt(width))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    report: dict[str, Any] = api.compile(tmp_path / "m.onnx", tmp_path / "a", quantize=quantize)
    assert report["bytes_after"] < most * width * width
    x = np.random.default_rng(1).standard_normal((4, width)).astype(np.float32)
    wanted = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x0": x})[0]
    found = load(tmp_path / "a")({"x0": x})[f"x{layers}"]
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
