"""Real models of other families, compiled to artifacts and run by the embedding runtime, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

ATOL = 1e-4
LIGHT = (
    "alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.network]


def reference(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_equal(model: Any, path: Path, inputs: dict[str, np.ndarray]) -> None:
    got, want = model(inputs), reference(path, inputs)
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, atol=ATOL, rtol=0, err_msg=name)


def images(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)}


def test_magika(magika: Path, compiled: Callable[..., Any]) -> None:
    model = compiled(magika, dynamic={"unk__214": (1, 16)})
    rng = np.random.default_rng(0)
    for count in (1, 3):
        assert_equal(model, magika, {"bytes": rng.integers(0, 257, (count, 2048)).astype(np.int32)})


def test_recognition_of_a_fixed_width(ppocr_rec: Path, compiled: Callable[..., Any]) -> None:
    model = compiled(ppocr_rec, shapes={"x": (1, 3, 48, 320)})
    assert_equal(model, ppocr_rec, images(1, 3, 48, 320))


def test_recognition_of_any_width(ppocr_rec: Path, compiled: Callable[..., Any]) -> None:
    bounds = {"p2o_DynamicDimension_0": (1, 4), "x_dim2": (48, 48), "p2o_DynamicDimension_1": (32, 640)}
    model = compiled(ppocr_rec, dynamic=bounds)
    for count, width in ((1, 64), (2, 100), (1, 333)):
        assert_equal(model, ppocr_rec, images(count, 3, 48, width))


def test_direction_classifier_of_a_fixed_width(ppocr_cls: Path, compiled: Callable[..., Any]) -> None:
    model = compiled(ppocr_cls, shapes={"x": (2, 3, 48, 192)})
    assert_equal(model, ppocr_cls, images(2, 3, 48, 192))


def test_weight_int8_encoder_of_any_size(minilm_int8: Path, compiled: Callable[..., Any]) -> None:
    model = compiled(minilm_int8, dynamic={"batch": (1, 8), "sequence": (1, 512)})
    for batch, length in ((1, 7), (4, 33)):
        rng = np.random.default_rng(length)
        ids, mask = rng.integers(0, 30000, (batch, length)), np.ones((batch, length), np.int64)
        mask[1:, length // 2 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        assert_equal(model, minilm_int8, inputs)


def test_voice_detector_takes_either_branch(silero_ifless: Path, compiled: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    for rate, length in ((16000, 576), (8000, 288)):
        model = compiled(silero_ifless, shapes={"input": (1, length)})
        inputs = {
            "input": rng.uniform(-1, 1, (1, length)).astype(np.float32),
            "sr": np.array(rate, np.int64),
            "state": rng.standard_normal((2, 1, 128)).astype(np.float32),
        }
        assert_equal(model, silero_ifless, inputs)


@pytest.mark.parametrize("name", LIGHT)
def test_light_network(name: str, light_networks: dict[str, Path], compiled: Callable[..., Any]) -> None:
    path = next(p for key, p in light_networks.items() if key.endswith(name))
    model = compiled(path)
    (spec,) = model.artifact.manifest.inputs
    data = np.random.default_rng(0).uniform(0, 1, spec.shape).astype(np.float32)
    assert_equal(model, path, {spec.name: data})
