"""Weights in fewer bits, against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.passes.stored import store


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    axis=st.integers(0, 1),
    epsilon=st.floats(1e-3, 2.0),
    size=st.floats(1e-3, 100.0),
    seed=st.integers(0, 1000),
)
def test_the_fewest_bits_that_keep_every_weight(
    rows: int, columns: int, axis: int, epsilon: float, size: float, seed: int
) -> None:
    weight = (size * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)
    made = store(weight, axis, epsilon)
    largest = np.abs(weight).max(axis=1 - axis, keepdims=True)

    def apart(bits: int) -> float:
        scale = (largest / np.float32(2 ** (bits - 1) - 1)).astype(np.float32)
        levels = np.rint(np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0))
        return float(np.abs(levels * scale - weight).max())

    if made is None:
        assert apart(8) >= epsilon * 0.999
        return
    assert made.deviation < epsilon
    assert made.bits == 2 or apart(made.bits - 1) >= epsilon * 0.999
    assert np.abs(made.levels.astype(int)).max() <= 2 ** (made.bits - 1) - 1
    scale = made.scale[:, None] if axis == 0 else made.scale
    assert np.abs(made.levels * scale - weight).max() == pytest.approx(made.deviation, rel=1e-5, abs=1e-9)


def test_without_epsilon_eight_bits_are_used() -> None:
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    made = store(weight, 0)
    assert made is not None
    assert (made.bits, int(made.levels.max())) == (8, 127)
    zeros = store(np.zeros((3, 4), np.float32), 1, 0.01)
    assert zeros is not None
    assert (zeros.bits, zeros.deviation) == (2, 0.0)
