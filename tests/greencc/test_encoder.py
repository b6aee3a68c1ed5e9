"""MiniLM with its real weights, from every source that people have, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from real_models import ENCODERS

ATOL = 1e-4
MAX_KERNELS = 60
SIZES = [(batch, length) for batch in (1, 4) for length in (7, 128, 256)]
LAYERS = 6


@pytest.fixture(scope="module")
def reference(minilm_onnx: Path) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(minilm_onnx), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(["last_hidden_state"], dict(inputs))[0])

    return run


def padded_batch(batch: int, length: int) -> dict[str, np.ndarray]:
    """Token ids with rows of different lengths: the first is full, the others end in padding."""
    rng = np.random.default_rng(batch * 1000 + length)
    ids = rng.integers(999, 30000, (batch, length))
    mask = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        kept = max(length - row * length // batch, 1)
        mask[row, kept:] = 0
        ids[row, kept:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("source", ENCODERS)
def test_equals_onnx_runtime_on_padded_batches(
    source: str, compiled: Callable[..., object], reference: Callable[..., np.ndarray]
) -> None:
    model = compiled(ENCODERS[source].source(), **ENCODERS[source].options)
    for batch, length in [(1, 128)] if source.endswith("static") else SIZES:
        inputs = padded_batch(batch, length)
        got = model(inputs)["last_hidden_state"]  # type: ignore[operator]
        np.testing.assert_allclose(got, reference(inputs), atol=ATOL, rtol=0, err_msg=f"{batch} x {length}")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("source", ENCODERS)
def test_every_block_is_fused(source: str, compiled_path: Callable[..., Path]) -> None:
    from greencc.artifact.format import read_artifact

    manifest = read_artifact(compiled_path(ENCODERS[source].source(), **ENCODERS[source].options)).manifest
    report = manifest.report
    fused = {entry["name"]: entry["rewrites"] for entry in report["passes"]}
    launched = [call.kernel for call in manifest.calls]
    assert report["kernels"] == len(launched) <= MAX_KERNELS
    assert fused["fuse-parallel-matmul"] == LAYERS
    assert fused["fuse-attention"] >= LAYERS
    assert sum(name.startswith("attention") for name in launched) == LAYERS
    assert sum("layer_norm" in name for name in launched) == 2 * LAYERS + 1
    assert sum("gelu" in name for name in launched) == LAYERS
    assert not any("softmax" in name or "erf" in name for name in launched)
