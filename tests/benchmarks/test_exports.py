"""MiniLM as ONNX by three writers: torch's two exporters and our own. They must agree, as peers do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import bert_onnx, export_minilm


def run(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(bert_onnx.INPUTS)
    assert [value.name for value in session.get_outputs()] == [bert_onnx.OUTPUT]
    return session.run(None, arrays)[0]


def padded_inputs(batch: int, sequence: int, vocabulary: int = 30522) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch + sequence)
    lengths = rng.integers(2, sequence + 1, (batch, 1))
    return {
        "input_ids": rng.integers(0, vocabulary, (batch, sequence)),
        "attention_mask": (np.arange(sequence) < lengths).astype(np.int64),
        "token_type_ids": np.zeros((batch, sequence), np.int64),
    }


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("variant", export_minilm.VARIANTS)
def test_exports_agree(minilm_exports: dict[str, Path], minilm_onnx: Path, variant: str) -> None:
    sizes = [(1, 128)] if variant.endswith("static") else [(1, 7), (4, 128), (1, 256)]
    for batch, sequence in sizes:
        arrays = padded_inputs(batch, sequence)
        actual, wanted = run(minilm_exports[variant], arrays), run(minilm_onnx, arrays)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)


def test_random_encoder_has_the_size_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path))
    size = bert_onnx.BertSize(layers=2, hidden=32, heads=4, feed_forward=64, vocabulary=50, positions=16)
    path = bert_onnx.random_onnx(size)
    weights = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer if tensor.data_type == 1)
    per_layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    constants = 5  # the scale, the mask's 1 and lowest value, GELU's 0.5 and root of 2
    assert weights == 32 * (50 + 16 + 2) + 64 + 2 * per_layer + constants
    assert run(path, padded_inputs(2, 9, vocabulary=50)).shape == (2, 9, 32)
    assert bert_onnx.random_onnx(size) == path
