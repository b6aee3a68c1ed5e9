"""awq_factors against a plain search over powers, with errors from the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes.awq import awq_factors
from greencc.passes.grouped import round_to_nearest


def inputs(rows: int, depth: int, seed: int = 0) -> np.ndarray:
    """Rows with some columns much larger than others."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, depth)) * np.exp(1.5 * rng.standard_normal(depth))


def weights(depth: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((depth, width)).astype(np.float32)


def factors_for(x: np.ndarray, weight: np.ndarray, group: int, bits: int) -> np.ndarray:
    factors = awq_factors(weight, np.abs(x).mean(axis=0), x.T @ x, group, bits)
    assert factors.dtype == np.float32
    assert factors.shape == (len(weight),)
    return factors


def lost(x: np.ndarray, weight: np.ndarray, factors: np.ndarray, group: int, bits: int) -> float:
    """Squared distance of matmul(x * (1 / s), q(s * w)) from matmul(x, w), computed as it is used."""
    stored = round_to_nearest((weight * factors[:, None]).astype(np.float32), group, bits)
    made = (x * (1 / factors.astype(np.float64))) @ stored.values.astype(np.float64)
    return float(np.linalg.norm(made - x @ weight) ** 2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("depth", "group"), [(96, 32), (80, 64)])
def test_factors_are_those_of_the_best_power(depth: int, group: int, bits: int) -> None:
    x, weight = inputs(150, depth), weights(depth, 24)
    sizes = np.abs(x).mean(axis=0)
    tried = []
    for power in np.arange(21) / 20:
        factors = sizes**power / np.sqrt((sizes**power).max() * (sizes**power).min())
        tried.append((lost(x, weight, factors.astype(np.float32), group, bits), factors))
    error, wanted = min(tried, key=lambda pair: pair[0])
    found = factors_for(x, weight, group, bits)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert error < 0.8 * tried[0][0]


def test_inputs_of_one_size_need_no_factors() -> None:
    signs = np.where(np.random.default_rng(0).random((150, 64)) < 0.5, -1.0, 1.0)
    np.testing.assert_array_equal(factors_for(signs, weights(64, 8), 32, 4), np.ones(64))


def test_weights_on_levels_need_no_factors() -> None:
    """They lose nothing as they are."""
    levels = np.random.default_rng(0).integers(-8, 8, (64, 8)).astype(np.float32)
    levels[::32], levels[1::32] = -8, 7
    np.testing.assert_array_equal(factors_for(inputs(150, 64), levels, 32, 4), np.ones(64))


def test_inputs_that_are_never_seen() -> None:
    x, weight = inputs(150, 64), weights(64, 8)
    x[:, 7] = 0
    factors = factors_for(x, weight, 32, 4)
    assert np.all(np.isfinite(factors))
    assert factors[7] == factors.min()
    assert factors.max() / factors.min() <= 1.001e4
    assert lost(x, weight, factors, 32, 4) < lost(x, weight, np.ones(64), 32, 4)
    np.testing.assert_array_equal(factors_for(0 * x, weight, 32, 4), np.ones(64))


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 70),
    width=st.integers(1, 6),
    rows=st.integers(1, 40),
    group=st.sampled_from([32, 64]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_errors_are_never_above_those_without_factors(
    depth: int, width: int, rows: int, group: int, bits: int, seed: int
) -> None:
    x, weight = inputs(rows, depth, seed), weights(depth, width, seed)
    factors = factors_for(x, weight, group, bits)
    plain = lost(x, weight, np.ones(depth), group, bits)
    # Errors from a gram are those from the rows up to rounding; near zero, only up to that of x and w.
    assert lost(x, weight, factors, group, bits) <= plain * (1 + 1e-5) + 1e-12 * np.linalg.norm(x @ weight) ** 2
