"""Executables small enough to build in a test, wrapped as what a target hands to the artifact writer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from greencc.artifact.bundle import Array, Compiled, KernelCall, TensorSpec
from greencc.artifact.format import write_artifact
from greencc.artifact.manifest import Manifest, Source
from greencc.runtime.features import machine
from greencc.runtime.model import load

SOURCE = Source("affine.onnx", "0" * 64)


def affine_inputs(batch: int = 2, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, 4), dtype=np.float32),
        "scale": rng.standard_normal((batch, 1), dtype=np.float32),
    }


def affine_weights() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        "layer/w": rng.standard_normal((4, 3), dtype=np.float32),
        "layer/b": rng.standard_normal((3,), dtype=np.float32),
    }


def affine_reference(inputs: Mapping[str, Array]) -> Array:
    weights = affine_weights()
    return np.maximum(inputs["x"] @ weights["layer/w"] + weights["layer/b"], 0) * inputs["scale"]


@cache
def affine_library(negated: bool = False) -> bytes:
    """Machine code of y = relu(x w + b) * scale, or -y; it also returns x, w and y again, as they are."""
    import tvm
    from tvm import relax

    batch = tvm.tirx.Var("batch", "int64")
    parameters = [
        relax.Var("x", relax.TensorType((batch, 4), "float32")),
        relax.Var("scale", relax.TensorType((batch, 1), "float32")),
        relax.Var("w", relax.TensorType((4, 3), "float32")),
        relax.Var("b", relax.TensorType((3,), "float32")),
    ]
    x, scale, w, b = parameters
    builder = relax.BlockBuilder()
    with builder.function("main", parameters):
        with builder.dataflow():
            product = builder.emit(relax.op.add(relax.op.matmul(x, w), b))
            y = builder.emit(relax.op.multiply(relax.op.nn.relu(product), scale))
            y = builder.emit(relax.op.negative(y)) if negated else y
            result = builder.emit_output(relax.Tuple([y, x, w, y]))
        builder.emit_func_output(result)
    executable = tvm.compile(builder.get(), target=tvm.target.Target({"kind": "llvm"}))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code.so"
        executable.export_library(str(file))
        return file.read_bytes()


def affine(**changes: object) -> Compiled:
    """`affine_library` as a Compiled; `changes` replace its fields."""
    fields: dict[str, object] = {
        "library": affine_library(),
        "weights": affine_weights(),
        "inputs": (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("scale", "float32", ("batch", 1))),
        "outputs": (
            TensorSpec("y", "float32", ("batch", 3)),
            TensorSpec("x_again", "float32", ("batch", 4)),
            TensorSpec("w_again", "float32", (4, 3)),
            TensorSpec("y_again", "float32", ("batch", 3)),
        ),
        "symbols": {"batch": (1, 8)},
        "target": {
            "kind": "cpu",
            "mcpu": "generic",
            "features": [],
            "threads": None,
            "triple": f"{machine()}-unknown-linux-gnu",
        },
        "calls": (
            KernelCall("matmul", ("/layer/MatMul",)),
            KernelCall("add", ("/layer/Add",)),
            KernelCall("relu", ("/Relu",)),
            KernelCall("multiply", ("/Mul",)),
        ),
        "report": {"nodes_before": 5, "nodes_after": 4, "passes": []},
    }
    return Compiled(**{**fields, **changes})  # type: ignore[arg-type]


def write(path: Path, compiled: Compiled, inputs: Mapping[str, Array] | None = None) -> Manifest:
    """Write an artifact as `greencc compile` does, golden outputs included."""
    return write_artifact(
        path,
        compiled,
        source=SOURCE,
        golden_inputs=affine_inputs() if inputs is None else inputs,
        run=lambda staged, golden: load(staged, threads=1)(golden),
    )
