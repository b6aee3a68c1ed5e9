"""Sizes for which a tensor inside the model would be empty are refused, not computed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import greencc
from greencc.errors import InputError, UserError
from greencc.extents import require_elements
from greencc.importers.onnx import import_onnx


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    """Windows of 8 with a step of 4: the first one is read, so a length below 8 leaves nothing to read."""
    text = """(float[1,1,L] x) => (float y) {
        w = Constant<value = float[1,1,8] {1,2,3,4,5,6,7,8}>()
        c = Conv<strides=[4]>(x, w)
        last = Constant<value = int64 {-1}>()
        y = Gather<axis=2>(c, last)
    }"""
    path = tmp_path / "windows.onnx"
    model = helper.make_model(onnx.parser.parse_graph(f"g {text}"), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


def test_the_least_size_is_the_runtimes_bound(windowed: Path, tmp_path: Path) -> None:
    with pytest.warns(match="stay symbolic"):
        greencc.compile(windowed, tmp_path / "out")
    model = greencc.load(tmp_path / "out", threads=1)
    assert model.symbols["L"][0] == 8
    session = onnxruntime.InferenceSession(str(windowed), providers=["CPUExecutionProvider"])
    for length in (8, 11, 12, 40):
        x = np.arange(length, dtype=np.float32).reshape(1, 1, -1)
        np.testing.assert_allclose(model(x=x)["y"], session.run(None, {"x": x})[0], rtol=1e-6)
    with pytest.raises(InputError, match="L"):
        model(x=np.ones((1, 1, 7), np.float32))


def test_a_lower_bound_that_asks_for_less_is_refused(windowed: Path) -> None:
    bounds = {"L": (5, 64)}
    with pytest.raises(UserError, match=r"--dynamic L=5\.\.64: a tensor of the model is empty below L=8"):
        require_elements(import_onnx(windowed, dynamic=bounds).module, bounds)
    bounds = {"L": (8, 64)}
    module = import_onnx(windowed, dynamic=bounds).module
    assert require_elements(module, bounds) is module
