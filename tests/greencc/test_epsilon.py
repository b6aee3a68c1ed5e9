"""--epsilon on an encoder: every weight is where it was, within the bound, in the fewest bits that keep it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import bert_onnx
from greencc import UserError, api

EPSILON = 0.004
SIZE = bert_onnx.BertSize(layers=2, hidden=64, heads=4, feed_forward=256, vocabulary=100, positions=32)
SHAPES = dict.fromkeys(bert_onnx.INPUTS, (1, 16))


def test_bits_are_the_fewest_that_keep_the_bound(tmp_path: Path) -> None:
    model = bert_onnx.random_onnx(SIZE)
    report: Any = api.compile(model, tmp_path / "a", shapes=SHAPES, epsilon=EPSILON)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    stored = {entry["node"]: entry for item in report["passes"] for entry in item.get("stored", ())}
    assert len(stored) == 2 * 4 + 1  # of a layer's six products three are merged; and the words
    for node, entry in stored.items():
        assert entry["largest_deviation"] < EPSILON
        name = node.split("/")[1].removesuffix(".product") + ".weight"
        if name not in weights:
            continue  # merged products, and the table, whose rows have the scales
        largest = np.abs(weights[name]).max(axis=0)

        def apart(bits: int, weight: np.ndarray = weights[name], largest: np.ndarray = largest) -> float:
            scale = largest / (2 ** (bits - 1) - 1)
            return float(np.abs(np.rint(weight / scale) * scale - weight).max())

        assert apart(entry["bits"]) == pytest.approx(entry["largest_deviation"], rel=1e-3)
        assert entry["bits"] == 2 or apart(entry["bits"] - 1) >= EPSILON
    assert {entry["bits"] for entry in stored.values()} <= {4, 5}
    assert report["bytes_after"] < 0.35 * report["bytes_before"]


def test_what_no_bits_keep_stays_as_it_is(tmp_path: Path) -> None:
    report: Any = api.compile(bert_onnx.random_onnx(SIZE), tmp_path / "a", shapes=SHAPES, epsilon=1e-6)
    assert not any(item.get("stored") for item in report["passes"])
    assert report["bytes_after"] > 0.9 * report["bytes_before"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 0.0}, "--epsilon 0: no bits keep weights so close"),
        ({"epsilon": float("nan")}, "no bits keep weights so close"),
        ({"epsilon": 0.1, "quantize": "int8"}, "it quantises by itself: leave out --quantize"),
    ],
)
def test_requests_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        api.compile(bert_onnx.random_onnx(SIZE), tmp_path / "a", shapes=SHAPES, **options)
