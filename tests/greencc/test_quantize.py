"""--quantize int8 on the encoder with its real weights: all its products in integers, close to single precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from real_models import ENCODERS

from greencc import api, load

LENGTH, LAYERS = 128, 6


@pytest.mark.slow
@pytest.mark.network
def test_the_encoder_in_int8(minilm_onnx: Path, compiled_path: Callable[..., Path], tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    source, shapes = ENCODERS["directory"].source(), dict.fromkeys(names, (1, LENGTH))
    report: dict[str, Any] = api.compile(source, tmp_path / "a", shapes=shapes, quantize="int8-all", verify=True)
    model = load(tmp_path / "a")
    calls = [call for call in model.artifact.manifest.calls if call.arithmetic == "int8"]
    assert len(calls) == 4 * LAYERS  # of six products of a layer three are merged
    assert report["approximated_by"] == ["quantize-int8"]
    assert report["bytes_after"] < 0.66 * report["bytes_before"]
    session = onnxruntime.InferenceSession(str(minilm_onnx), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(6):
        inputs = {
            "input_ids": rng.integers(999, 30000, (1, LENGTH)),
            "attention_mask": np.ones((1, LENGTH), np.int64),
            "token_type_ids": np.zeros((1, LENGTH), np.int64),
        }
        wanted = np.asarray(session.run(["last_hidden_state"], inputs)[0])
        distances.append(np.linalg.norm(model(inputs)["last_hidden_state"] - wanted) / np.linalg.norm(wanted))
    assert np.mean(distances) <= 0.07, distances
