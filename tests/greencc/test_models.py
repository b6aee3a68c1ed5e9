"""Real models of other families, compiled to artifacts and run by the embedding runtime, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_models import LIGHT, OTHERS, assert_agrees

ATOL = 1e-4
pytestmark = [pytest.mark.slow, pytest.mark.network]


def assert_equal(model: Any, path: Path, inputs: dict[str, np.ndarray]) -> None:
    assert_agrees(model, path, inputs, ATOL)


def images(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)}


@pytest.fixture(scope="module")
def loaded(compiled: Callable[..., Any]) -> Callable[[str], tuple[Any, Path]]:
    """`loaded(name)`: the compiled model, and the file that it comes from."""

    def load(name: str) -> tuple[Any, Path]:
        case = OTHERS[name]
        path = case.source()
        return compiled(path, **case.options), path

    return load


Loaded = Callable[[str], tuple[Any, Path]]


def test_magika(loaded: Loaded) -> None:
    model, path = loaded("magika")
    rng = np.random.default_rng(0)
    for count in (1, 3):
        assert_equal(model, path, {"bytes": rng.integers(0, 257, (count, 2048)).astype(np.int32)})


def test_recognition_of_a_fixed_width(loaded: Loaded) -> None:
    assert_equal(*loaded("recognition"), images(1, 3, 48, 320))


def test_recognition_of_any_width(loaded: Loaded) -> None:
    for count, width in ((1, 64), (2, 100), (1, 333)):
        assert_equal(*loaded("recognition-any-width"), images(count, 3, 48, width))


def test_direction_classifier_of_a_fixed_width(loaded: Loaded) -> None:
    assert_equal(*loaded("direction"), images(2, 3, 48, 192))


def test_direction_classifier_of_any_width(loaded: Loaded) -> None:
    for count, width in ((1, 192), (3, 100), (2, 33)):
        assert_equal(*loaded("direction-any-width"), images(count, 3, 48, width))


def test_weight_int8_encoder_of_any_size(loaded: Loaded) -> None:
    for batch, length in ((1, 7), (4, 33)):
        rng = np.random.default_rng(length)
        ids, mask = rng.integers(0, 30000, (batch, length)), np.ones((batch, length), np.int64)
        mask[1:, length // 2 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        assert_equal(*loaded("weight-int8-encoder"), inputs)


def voice(rate: int, length: int, count: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    return {
        "input": rng.uniform(-1, 1, (count, length)).astype(np.float32),
        "sr": np.array(rate, np.int64),
        "state": rng.standard_normal((2, count, 128)).astype(np.float32),
    }


def test_voice_detector_takes_either_branch(loaded: Loaded) -> None:
    for rate, length in ((16000, 576), (8000, 288)):
        assert_equal(*loaded(f"voice-{rate}"), voice(rate, length))


def test_voice_detector_takes_either_branch_for_any_length(loaded: Loaded) -> None:
    for rate, length, count in ((16000, 576, 1), (8000, 288, 3), (8000, 576, 2)):
        assert_equal(*loaded("voice-any-length"), voice(rate, length, count))


@pytest.mark.parametrize("name", LIGHT)
def test_light_network(name: str, loaded: Loaded) -> None:
    model, path = loaded(name)
    (spec,) = model.artifact.manifest.inputs
    data = np.random.default_rng(0).uniform(0, 1, spec.shape).astype(np.float32)
    assert_equal(model, path, {spec.name: data})
