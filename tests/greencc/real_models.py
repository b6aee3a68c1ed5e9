"""The real models that tests compile, each with the options it is compiled with, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import export_minilm, models

ENCODER_SIZES = {"batch": (1, 8), "sequence": (1, 512)}
LIGHT = models.LIGHT


@dataclass(frozen=True)
class RealModel:
    """A model and the options of `greencc.compile`. `source` may fetch or make the file."""

    source: Callable[[], Path]
    options: Mapping[str, Any] = field(default_factory=dict)


def _export(variant: str) -> RealModel:
    options = {} if variant.endswith("static") else {"dynamic": ENCODER_SIZES}
    return RealModel(lambda: export_minilm.minilm_exports()[variant], options)


def _light(name: str) -> RealModel:
    return RealModel(lambda: models.light_networks()[f"light_{name}"])


def _silero(length: int) -> RealModel:
    return RealModel(models.silero_ifless, {"shapes": {"input": (1, length)}})


ENCODERS = {
    **{variant: _export(variant) for variant in export_minilm.VARIANTS},
    "directory": RealModel(models.minilm_hf, {"dynamic": ENCODER_SIZES}),
}
OTHERS = {
    "magika": RealModel(models.magika, {"dynamic": {"unk__214": (1, 16)}}),
    "recognition": RealModel(models.ppocr_rec, {"shapes": {"x": (1, 3, 48, 320)}}),
    "recognition-any-width": RealModel(
        models.ppocr_rec,
        {
            "dynamic": {
                "p2o_DynamicDimension_0": (1, 4),
                "x_dim2": (48, 48),
                "p2o_DynamicDimension_1": (32, 640),
            }
        },
    ),
    "direction": RealModel(models.ppocr_cls, {"shapes": {"x": (2, 3, 48, 192)}}),
    "direction-any-width": RealModel(
        models.ppocr_cls, {"dynamic": {"x_dim0": (1, 4), "x_dim2": (48, 48), "x_dim3": (32, 320)}}
    ),
    "weight-int8-encoder": RealModel(models.minilm_int8, {"dynamic": ENCODER_SIZES}),
    "voice-16000": _silero(576),
    "voice-8000": _silero(288),
    "voice-any-length": RealModel(models.silero_ifless, {"dynamic": {"batch": (1, 4), "sequence": (192, 1024)}}),
    **{name: _light(name) for name in LIGHT},
}


def reference(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of ONNX Runtime by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_agrees(model: Any, path: Path, inputs: dict[str, np.ndarray], atol: float) -> None:
    """Assert that a compiled model's outputs have ONNX Runtime's names, order, types and values."""
    got, want = model(inputs), reference(path, inputs)
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, atol=atol, rtol=0, err_msg=name)
