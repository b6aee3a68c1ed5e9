"""Perceptrons of any sizes as ONNX files, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def perceptron(path: Path, widths: Sequence[int], rows: int | str, seed: int = 0) -> Path:
    """Save x [rows, widths[0]] -> products by [widths[i], widths[i + 1]], each with a bias and Tanh -> y."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for i, (inner, outer) in enumerate(pairwise(widths)):
        weights += [
            numpy_helper.from_array(rng.standard_normal((inner, outer)).astype("float32") / inner**0.5, f"w{i}"),
            numpy_helper.from_array(rng.standard_normal(outer).astype("float32"), f"b{i}"),
        ]
        out = "y" if i == len(widths) - 2 else f"h{i}"
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"], name=f"/layer{i}/MatMul"),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"], name=f"/layer{i}/Add"),
            helper.make_node("Tanh", [f"s{i}"], [out], name=f"/layer{i}/Tanh"),
        ]
        value = out
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, width])
        for name, width in (("x", widths[0]), ("y", widths[-1]))
    ]
    graph = helper.make_graph(nodes, "perceptron", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
