"""Which of two operators is faster, measured: no absolute times, only pairs that differ by orders of magnitude."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax, tirx

from greencc.ir import constant
from greencc.targets.cpu.target import host_target
from greencc.trials import OPEN_SIZE, Trials


def product(columns: int, rows: object = 256) -> relax.Call:
    x = relax.Var("x", relax.TensorType((rows, 256), "float32"))
    call = relax.op.matmul(x, constant(np.ones((256, columns), np.float32)))
    return relax.BlockBuilder().normalize(call)


def test_the_larger_product_takes_longer_and_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials(host_target(1), {})  # other processes may hold the other cores
    assert trials.time_ratio(product(2048), product(16)) > 2
    assert trials.time_ratio(product(16), product(2048)) < 0.5
    monkeypatch.setattr(Trials, "_measure", None)
    assert trials.time_ratio(product(2048), product(16)) > 2


def test_open_dimensions_get_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(Trials, "_measure", lambda self, *calls: tried.append(self._inputs(calls[0])) or 1.0)
    for sizes, wanted in (({}, OPEN_SIZE), ({"n": 7}, 7)):
        rows = tirx.Var("n", "int64")
        assert Trials(host_target(2), sizes).time_ratio(product(16, rows), product(16, rows)) == 1.0
        assert tried.pop()["x0"].shape == (wanted, 256)
