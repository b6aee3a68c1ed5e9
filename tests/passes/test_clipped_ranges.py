"""Ranges of groups that leave out what matters least, against a plain search column by column."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes.grouped import round_to_nearest, scheme_of

SHARES = np.arange(70, 101, 5) / 100


def column_error(column: np.ndarray, scale: float, offset: float, importance: np.ndarray) -> float:
    """What levels with this scale and offset cost, in float64."""
    levels = np.clip(np.rint((column - offset) / scale), -8, 7)
    return float(importance @ (levels * scale + offset - column) ** 2)


def searched(column: np.ndarray, importance: np.ndarray) -> float:
    """The least error over all shares of the range of one column, scales and offsets in half precision."""
    column = column.astype(np.float64)
    middle, half = (column.min() + column.max()) / 2, (column.max() - column.min()) / 2
    errors = []
    for low, high in itertools.product(SHARES, repeat=2):
        scale = float(np.float16((low + high) * half / 15))
        # Levels -8 to 7 have their middle at -1/2.
        offset = float(np.float16(middle + (high - low) * half / 2 + scale / 2))
        errors.append(column_error(column, scale, offset, importance))
    return min(errors)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("importance", [None, np.ones(64)])
def test_groups_of_equal_weights_are_exact(bits: int, importance: np.ndarray | None) -> None:
    weight = np.zeros((64, 3), np.float32)
    weight[:, 1], weight[32:, 2] = 0.75, -1.5
    made = round_to_nearest(weight, 32, bits, importance)
    np.testing.assert_allclose(made.values, weight, rtol=1e-3, atol=0)
    assert (made.values[:, 0] == 0).all()


def test_ranges_are_the_best_of_those_tried() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_t(3, (32, 12)).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(32))
    scheme = scheme_of(rows, 4, importance)
    found = importance @ (scheme.values(scheme.levels(rows)).astype(np.float64) - rows) ** 2
    wanted = [searched(column, importance) for column in rows.T]
    # Which of two shares is taken, and half an offset's last place, may differ by float32.
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    whole = round_to_nearest(rows, 32, 4).values.astype(np.float64) - rows
    assert found.sum() < 0.8 * (importance @ whole**2).sum()


def test_eight_bits_keep_their_range() -> None:
    rows = np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)
    importance = np.arange(32.0)
    np.testing.assert_array_equal(scheme_of(rows, 8, importance).scale, scheme_of(rows, 8).scale)


def test_an_end_that_does_not_matter_is_cut_off() -> None:
    rows = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    rows[-1] = 1.4
    importance = np.ones(32)
    importance[-1] = 0
    wide, narrow = scheme_of(rows, 4), scheme_of(rows, 4, importance)
    low, high = np.array([[-8]], np.int8), np.array([[7]], np.int8)
    assert wide.values(high) == pytest.approx(1.4, abs=1e-3)
    assert narrow.values(high) == pytest.approx(1.0, abs=0.1)
    assert narrow.values(low) == pytest.approx(-1.0, abs=0.1)


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(1, 70),
    width=st.integers(1, 6),
    group=st.sampled_from([32, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_errors_are_never_above_those_of_whole_ranges(depth: int, width: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((depth, width)) ** 3).astype(np.float32)
    importance = rng.exponential(size=depth)
    whole, chosen = round_to_nearest(weight, group, 4), round_to_nearest(weight, group, 4, importance)
    for first in range(0, depth, group):
        part = slice(first, first + group)
        errors = [importance[part] @ (made.values[part] - weight[part]) ** 2 for made in (chosen, whole)]
        assert np.all(errors[0] <= errors[1] * (1 + 1e-5))
