"""gptq against the optimal brain surgeon's loop with explicit inverses, and its error against the nearest levels'."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes.gptq import gptq
from greencc.passes.grouped import GroupedWeight, output_error, round_to_nearest, scheme_of

DAMPING = 0.1


def inputs(rows: int, depth: int, seed: int = 0) -> np.ndarray:
    """Rows whose columns are correlated and of many sizes, as activations are."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, depth)) @ rng.standard_normal((depth, depth))
    return mixed * np.exp(rng.standard_normal(depth))


def weights(depth: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((depth, width)).astype(np.float32)


def surgeon(weight: np.ndarray, gram: np.ndarray, group: int, bits: int) -> np.ndarray:
    """The levels by optimal brain surgery: row k is rounded and leaves, and the others move to the least squares.

    Each time with the inverse Hessian of the rows that are left, inverted anew. The inverse of its element at [0, 0] is
    what the product loses by an error of 1 in the row that leaves.
    """
    depth = len(weight)
    hessian = gram + DAMPING * np.trace(gram) / depth * np.eye(depth)
    inverses = [np.linalg.inv(hessian[k:, k:]) for k in range(depth)]
    importance = np.array([1 / inverse[0, 0] for inverse in inverses])
    left, levels = weight.astype(np.float64), np.empty(weight.shape, np.int8)
    for k, inverse in enumerate(inverses):
        if k % group == 0:
            rows = slice(k, k + group)
            scheme = scheme_of(left[rows].astype(np.float32), bits, importance[rows])
        levels[k] = scheme.levels(left[k])
        error = left[k] - scheme.values(levels[k])
        left[k:] -= np.outer(inverse[0], error) / inverse[0, 0]
    return levels


def error_of(made: GroupedWeight, weight: np.ndarray, x: np.ndarray) -> float:
    """Squared norm of the product's error, from the rows themselves."""
    return float(np.linalg.norm(x @ (made.values.astype(np.float64) - weight)) ** 2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("depth", "group"), [(96, 32), (80, 32), (40, 64)])
def test_levels_are_the_surgeons(depth: int, group: int, bits: int) -> None:
    x, weight = inputs(200, depth), weights(depth, 24)
    made = gptq(weight, x.T @ x, group, bits, DAMPING)
    np.testing.assert_array_equal(made.levels, surgeon(weight, x.T @ x, group, bits))
    assert made.scale.shape == (-(-depth // group), 24)
    assert (made.bits, made.group) == (bits, group)
    assert made.deviation == pytest.approx(np.abs(made.values - weight).max(), rel=1e-6)


@pytest.mark.parametrize(("bits", "share"), [(4, 1 / 3), (8, 2 / 3)])
def test_errors_are_smaller_than_the_nearest_levels(bits: int, share: float) -> None:
    x, weight = inputs(200, 96), weights(96, 24)
    made, nearest = gptq(weight, x.T @ x, 32, bits), round_to_nearest(weight, 32, bits)
    assert error_of(made, weight, x) < share * error_of(nearest, weight, x)
    assert made.deviation > nearest.deviation


def test_output_error_is_the_products() -> None:
    x, error = inputs(50, 20), weights(20, 6)
    assert output_error(error, x.T @ x) == pytest.approx(np.linalg.norm(x @ error) ** 2, rel=1e-9)


def test_inputs_that_are_never_seen_have_the_nearest_levels() -> None:
    """And the rest is what it is without them: in a group of their own they leave no trace."""
    x, weight = inputs(200, 64), weights(64, 24)
    x[:, 32:] = 0
    made = gptq(weight, x.T @ x, 32, 4)
    nearest = round_to_nearest(weight, 32, 4, np.ones(64))
    # The mean of the diagonal is half of what it is without these inputs.
    apart = gptq(weight[:32], x[:, :32].T @ x[:, :32], 32, 4, DAMPING / 2)
    np.testing.assert_array_equal(made.levels[:32], apart.levels)
    np.testing.assert_array_equal(made.levels[32:], nearest.levels[32:])
    assert not np.array_equal(made.levels[:32], nearest.levels[:32])


def test_fewer_rows_than_inputs_are_damped() -> None:
    """The gram is singular, its damped form isn't."""
    x, weight = inputs(10, 96), weights(96, 24)
    made = gptq(weight, x.T @ x, 32, 4)
    assert error_of(made, weight, x) < 0.25 * error_of(round_to_nearest(weight, 32, 4), weight, x)


@pytest.mark.parametrize(
    ("gram", "damping"), [(np.zeros((40, 40)), DAMPING), (np.ones((40, 40)), 0.0), (-np.eye(40), DAMPING)]
)
def test_without_an_inverse_levels_are_the_nearest(gram: np.ndarray, damping: float) -> None:
    made, nearest = gptq(weights(40, 6), gram, 32, 4, damping), round_to_nearest(weights(40, 6), 32, 4)
    np.testing.assert_array_equal(made.levels, nearest.levels)
    np.testing.assert_array_equal(made.scale, nearest.scale)


def test_independent_inputs_have_nothing_to_make_up_with() -> None:
    """Levels are the nearest, in ranges that serve the large inputs."""
    weight, squares = weights(96, 24), np.arange(1.0, 97.0)
    made = gptq(weight, np.diag(squares), 32, 4)
    nearest = round_to_nearest(weight, 32, 4, squares + DAMPING * squares.mean())
    np.testing.assert_array_equal(made.levels, nearest.levels)
    np.testing.assert_array_equal(made.scale, nearest.scale)


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(1, 70),
    width=st.integers(1, 9),
    rows=st.integers(1, 90),
    group=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_errors_are_never_above_the_nearest_levels(
    depth: int, width: int, rows: int, group: int, bits: int, seed: int
) -> None:
    x, weight = inputs(rows, depth, seed), weights(depth, width, seed)
    made, nearest = gptq(weight, x.T @ x, group, bits), round_to_nearest(weight, group, bits)
    assert error_of(made, weight, x) <= error_of(nearest, weight, x) * (1 + 1e-6)
    most = 2 ** (bits - 1) - 1
    assert -most - (bits == 4) <= made.levels.min() <= made.levels.max() <= most
