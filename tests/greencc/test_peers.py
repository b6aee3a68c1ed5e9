"""What `--vs` says of runtimes that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc import UserError, peers
from greencc.peers import PEERS, missing_packages, open_peer


def test_everything_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    assert missing_packages("torch") == ["torch", "onnx2torch"]
    assert missing_packages("onnxruntime-int8") == ["onnxruntime"]
    with pytest.raises(UserError, match="--vs torch: not installed: pip install torch onnx2torch"):
        open_peer("torch", Path("model.onnx"), {}, (), 1)


def test_an_unknown_runtime_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown runtime; known: " + ", ".join(PEERS)):
        open_peer("pytorch", Path("model.onnx"), {}, (), 1)
