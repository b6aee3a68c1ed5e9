"""Models with a product that int8 ruins, a layer that does nearly nothing, and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS, WIDTH = 64, 512


def write_planted(path: Path, layers: int = 5, planted: int | None = 2, idle: int | None = None) -> Path:
    """`layers` products with ReLU and residual; in number `planted` large weights cancel each other.

    Every column of that product has two large weights of opposite signs for two inputs that are always equal (the
    second half of the columns repeats the first). They cancel exactly, in integers too, but the column's scale leaves
    no levels to the other weights: whatever is done to rows or columns, int8 loses what the product computes. The
    layer `idle` adds a hundredth of what the others add.
    """
    rng = np.random.default_rng(0)
    half = WIDTH // 2
    nodes, constants = [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    x = "x"
    for number in range(layers):
        weight = rng.standard_normal((WIDTH, half)) / np.sqrt(WIDTH)
        if number == planted:
            at = rng.permutation(half)
            weight[at, np.arange(half)] += 300
            weight[at + half, np.arange(half)] -= 300
        if number == idle:
            weight /= 100
        nodes.append(
            helper.make_node("MatMul", [x, constant(f"w{number}", weight)], [f"p{number}"], name=f"product{number}")
        )
        nodes.append(helper.make_node("Relu", [f"p{number}"], [f"r{number}"], name=f"relu{number}"))
        nodes.append(helper.make_node("Concat", [f"r{number}"] * 2, [f"c{number}"], name=f"twice{number}", axis=2))
        name = f"x{number}" if number < layers - 1 else "y"
        nodes.append(helper.make_node("Add", [x, f"c{number}"], [name], name=f"add{number}"))
        x = name
    shape = [1, ROWS, WIDTH]
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)] for n in ("x", "y"))
    model = helper.make_model(
        helper.make_graph(nodes, "planted", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def samples(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs whose second half of columns repeats the first."""
    half = np.random.default_rng(seed).standard_normal((count, ROWS, WIDTH // 2)).astype(np.float32)
    return {"x": np.concatenate([half, half], axis=2)}
