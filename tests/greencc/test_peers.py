"""What `--vs` says of runtimes that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc import UserError, peers
from greencc.peers import RUNTIMES, missing_packages, open_peer


def test_everything_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    assert missing_packages("torch") == ["torch", "onnx2torch"]
    assert missing_packages("onnxruntime-int8") == ["onnxruntime"]
    with pytest.raises(UserError, match="--vs torch: not installed: pip install torch onnx2torch"):
        open_peer("torch", Path("model.onnx"), {}, (), 1)


def test_an_unknown_runtime_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown runtime; known: " + ", ".join(RUNTIMES)):
        open_peer("pytorch", Path("model.onnx"), {}, (), 1)


def test_a_peer_says_which_kind_of_file_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: True)
    with pytest.raises(UserError, match=r"model\.onnx is not a \.gguf file: name one with --model FILE\.gguf"):
        open_peer("llama.cpp", Path("model.onnx"), {}, (), 1)
    with pytest.raises(UserError, match=r"model\.gguf is not an \.onnx file: name one with --model FILE\.onnx"):
        open_peer("onnxruntime", Path("model.gguf"), {}, (), 1)
