"""What an encoder is for: finding the passage that answers a question, as often as with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks import models, retrieval


@pytest.mark.slow
@pytest.mark.network
def test_accuracy_on_boolq_equals_that_of_onnx_runtime(
    minilm_hf: Path,
    minilm_onnx: Path,
    boolq_rows: list[models.BoolQRow],
    compiled_path: Callable[..., Path],
) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_hf / "tokenizer.json"))
    artifact = compiled_path(minilm_hf, dynamic=retrieval.DYNAMIC)
    ours = retrieval.accuracy(retrieval.of_artifact(artifact), tokenizer, boolq_rows)
    theirs = retrieval.accuracy(retrieval.of_onnx(minilm_onnx), tokenizer, boolq_rows)
    assert len(boolq_rows) == 1635
    assert theirs > 0.8
    assert abs(ours - theirs) <= 0.001
