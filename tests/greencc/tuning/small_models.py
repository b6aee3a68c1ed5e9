"""Models of a few layers, as ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def perceptron(folder: Path, layers: int = 2, width: int = 64, rows: int | str = 16, seed: int = 0) -> Path:
    """x [rows, width] -> `layers` times a product by [width, width], a bias and Tanh -> y [rows, width]."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for i in range(layers):
        weights += [
            numpy_helper.from_array(rng.standard_normal((width, width)).astype("float32") / width**0.5, f"w{i}"),
            numpy_helper.from_array(rng.standard_normal(width).astype("float32"), f"b{i}"),
        ]
        out = "y" if i == layers - 1 else f"h{i}"
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"], name=f"/layer{i}/MatMul"),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"], name=f"/layer{i}/Add"),
            helper.make_node("Tanh", [f"s{i}"], [out], name=f"/layer{i}/Tanh"),
        ]
        value = out
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "perceptron", ends[:1], ends[1:], weights)
    path = folder / f"perceptron-{layers}-{width}-{rows}-{seed}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
