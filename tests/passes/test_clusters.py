"""Clusters of weights, against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.passes.clusters import cluster, has_few_values


def plain_lloyd(weight: np.ndarray, count: int) -> np.ndarray:
    """K-means as the textbook has it, in float64, value by value."""
    middles = np.linspace(weight.min(), weight.max(), count)
    for _ in range(300):
        nearest = np.abs(weight[:, None] - middles).argmin(axis=1)
        moved = np.array([weight[nearest == i].mean() if (nearest == i).any() else middles[i] for i in range(count)])
        if np.array_equal(moved, middles):
            break
        middles = moved
    return middles[np.abs(weight[:, None] - middles).argmin(axis=1)]


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_k_means(bits: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal(500).astype(np.float32)
    made = cluster(weight, bits)
    np.testing.assert_allclose(made.values, plain_lloyd(weight.astype(np.float64), 2**bits), rtol=0, atol=1e-6)


@given(
    size=st.integers(0, 60),
    bits=st.integers(2, 8),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    seed=st.integers(0, 1000),
)
def test_every_weight_has_the_nearest_of_few_values(
    size: int, bits: int, zeros: float, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (scale * rng.standard_normal(size)).astype(np.float32)
    weight[rng.random(size) < zeros] = 0
    made = cluster(weight.reshape(1, -1), bits)
    values = made.values.reshape(-1)
    assert (made.values.dtype, made.values.shape, made.bits) == (np.float32, (1, size), bits)
    assert np.unique(values).size <= 2**bits
    np.testing.assert_array_equal(values[weight == 0], 0)
    kept, used = weight[weight != 0], values[weight != 0]
    apart = np.abs(kept - used)
    nearest = np.abs(kept[:, None].astype(np.float64) - np.unique(used)).min(axis=1, initial=np.inf)
    np.testing.assert_allclose(apart, nearest, rtol=1e-5, atol=1e-6 * scale)
    assert made.deviation == apart.max(initial=0.0)


def test_no_more_values_than_asked_for_are_kept_as_they_are() -> None:
    values = np.array([-3, -1, 0, 2], np.float32)
    weight = values[np.random.default_rng(0).integers(0, 4, (9, 7))]
    made = cluster(weight, 3)
    np.testing.assert_array_equal(made.values, weight)
    assert made.deviation == 0


def test_few_values_are_counted_all_over() -> None:
    weight = np.zeros(100_000, np.float32)
    assert has_few_values(weight, 1)
    weight[99_999] = 1  # none of the samples
    assert not has_few_values(weight, 1)
    assert has_few_values(weight, 2)
    assert not has_few_values(np.arange(9, dtype=np.float32), 8)
