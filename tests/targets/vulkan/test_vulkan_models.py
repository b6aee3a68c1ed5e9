"""Real models on a Vulkan device, through artifacts, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bert_onnx, models
from tests.greencc.real_models import LIGHT, assert_agrees, reference

# What the sums of another order are apart, of outputs around 1 to 10.
ATOL = 1e-3
SHAPES = dict.fromkeys(bert_onnx.INPUTS, (1, 128))
pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.vulkan]

Compiled = Callable[..., Any]


def assert_close(model: Any, path: Path, inputs: dict[str, np.ndarray]) -> None:
    assert_agrees(model, path, inputs, ATOL)


def sentences(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    ids, mask = rng.integers(1000, 30000, (batch, length)), np.ones((batch, length), np.int64)
    mask[1:, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_an_encoder_of_any_length_from_one_artifact(compiled: Compiled) -> None:
    path = bert_onnx.encoder_onnx(models.minilm_hf())
    model = compiled(path, target="vulkan", dynamic={"batch": (1, 8), "sequence": (1, 512)})
    for batch, length in ((1, 7), (2, 128), (1, 200)):
        assert_close(model, path, sentences(batch, length))


def test_an_int8_encoder(compiled: Compiled) -> None:
    path = bert_onnx.encoder_onnx(models.minilm_hf())
    model = compiled(path, target="vulkan", shapes=SHAPES, quantize="int8-all")
    inputs = sentences(1, 128)
    want = reference(path, inputs)["last_hidden_state"]

    def distance(model: Any) -> float:
        return float(np.linalg.norm(model(inputs)["last_hidden_state"] - want) / np.linalg.norm(want))

    # One level more or less where rounding decides moves what follows, but not how far all of it is from the model.
    assert distance(model) < 1.1 * distance(compiled(path, shapes=SHAPES, quantize="int8-all")) < 0.08


def test_a_file_classifier(compiled: Compiled) -> None:
    path = models.magika()
    model = compiled(path, target="vulkan", dynamic={"unk__214": (1, 16)})
    rng = np.random.default_rng(0)
    for count in (1, 3):
        assert_close(model, path, {"bytes": rng.integers(0, 257, (count, 2048)).astype(np.int32)})


def test_text_recognition(compiled: Compiled) -> None:
    path = models.ppocr_rec()
    model = compiled(path, target="vulkan", shapes={"x": (1, 3, 48, 320)})
    data = np.random.default_rng(0).uniform(-1, 1, (1, 3, 48, 320)).astype(np.float32)
    assert_close(model, path, {"x": data})


@pytest.mark.parametrize("name", LIGHT)
def test_light_network(name: str, compiled: Compiled) -> None:
    path = models.light_networks()[f"light_{name}"]
    model = compiled(path, target="vulkan")
    (spec,) = model.artifact.manifest.inputs
    data = np.random.default_rng(0).uniform(0, 1, spec.shape).astype(np.float32)
    assert_close(model, path, {spec.name: data})
