"""One module for each content, complete before anybody gets it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import greencc
from benchmarks.bert_onnx import INPUTS, BertSize, random_onnx

TINY = BertSize(layers=1, hidden=16, heads=1, feed_forward=16, vocabulary=20, positions=8)


@pytest.fixture(params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    greencc.compile(random_onnx(TINY), tmp_path / "a", target=request.param, shapes=dict.fromkeys(INPUTS, (1, 4)))
    return tmp_path / "a"


def test_many_threads_load_one_artifact_for_the_first_time(artifact: Path) -> None:
    inputs = dict.fromkeys(INPUTS, np.ones((1, 4), np.int64))
    results: list[Any] = []
    problems: list[Exception] = []

    def work() -> None:
        try:
            results.append(next(iter(greencc.load(artifact)(inputs).values())))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert all(np.array_equal(result, results[0]) for result in results)
