"""A stand-in for greencc.pipeline: 'compiles' any model file into the tiny affine executable."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tiny_models

from greencc.artifact.bundle import Array, Compiled
from greencc.errors import GreenccError, ModelError
from greencc.model_options import ModelOptions


@dataclass(frozen=True)
class Result:
    compiled: Compiled
    golden_inputs: Mapping[str, Array]
    source: tuple[str, str]
    report: Mapping[str, object]
    max_abs_error: float | None


calls: list[dict[str, object]] = []
"""Keyword arguments of every call."""


def compile_model(
    model: Path, *, options: ModelOptions, verify: bool, progress: Callable[[str], None], **request: object
) -> Result:
    calls.append({"model": model, "verify": verify, **vars(options), **request})
    content = model.read_bytes()
    if content == b"not a model":
        raise ModelError(f"{model}: not an ONNX model")
    if content == b"breaks a pass":
        raise GreenccError("pass fuse-nothing broke the IR")
    if content == b"breaks everything":
        raise ZeroDivisionError("no\nidea")
    if content == b"warns":
        warnings.warn("dimension batch\nstays unbounded", UserWarning, stacklevel=2)
    progress("importing")
    print("a library that prints")
    report = {
        "nodes_before": 12,
        "nodes_after": 4,
        "edges_before": 20,
        "edges_after": 6,
        "arena_bytes": 4096,
        "compression": None,
        "elided_padding": None,
        "tuning": None,
        "bytes_before": len(content),
        "passes": [
            {"name": "prune-dead-nodes", "rewrites": 3, "refused": 0},
            {"name": "fuse-layer-norm", "rewrites": 0, "refused": 2},
            {"name": "fold-constants", "rewrites": 0, "refused": 0},
        ],
    }
    return Result(
        tiny_models.affine(report=report),
        tiny_models.affine_inputs(),
        (model.name, hashlib.sha256(content).hexdigest()),
        report,
        1.5e-6 if verify else None,
    )


def affine_onnx() -> bytes:
    """The affine model as ONNX, for other runtimes."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, shape: list[object]) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    weights = [numpy_helper.from_array(array, name) for name, array in tiny_models.affine_weights().items()]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "layer/w"], ["product"], name="/layer/MatMul"),
            helper.make_node("Add", ["product", "layer/b"], ["sum"], name="/layer/Add"),
            helper.make_node("Relu", ["sum"], ["active"], name="/Relu"),
            helper.make_node("Mul", ["active", "scale"], ["y"], name="/Mul"),
            helper.make_node("Identity", ["x"], ["x_again"], name="/Identity"),
        ],
        "affine",
        [value("x", ["batch", 4]), value("scale", ["batch", 1])],
        [value("y", ["batch", 3]), value("x_again", ["batch", 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests")
    return bytes(model.SerializeToString())
