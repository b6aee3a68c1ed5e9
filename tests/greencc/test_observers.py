"""Ranges of activations: histograms against numpy on the whole data, and observers against searches of other forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from greencc import UserError
from greencc.observers import BINS, OBSERVERS, Entropy, Histogram, MeanSquaredError, MinMax, Percentile, make_observer


def seen(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def heavy_tailed(seed: int = 0, count: int = 200_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, count).astype(np.float32)


def rectified(seed: int = 1, count: int = 200_000) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).laplace(0, 2, count), 0).astype(np.float32)


def gelu_like(seed: int = 2) -> np.ndarray:
    """Short on one side, long on the other."""
    x = np.random.default_rng(seed).standard_normal(200_000) * 2
    return (x / (1 + np.exp(-1.702 * x))).astype(np.float32)


DATA = {"heavy-tailed": heavy_tailed(), "rectified": rectified(), "gelu-like": gelu_like()}


def test_memory_is_that_of_the_bins_whatever_comes() -> None:
    histogram = seen(heavy_tailed(), heavy_tailed(1) * 1e6)
    assert histogram.counts.shape == (2 * BINS,)
    assert histogram.counts.sum() == 400_000


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.floats(2.0**-20, 2.0**20), min_size=1, max_size=4),
)
def test_widening_leaves_what_counting_all_at_once_gives(values: np.ndarray, factors: list[float]) -> None:
    parts = [values * np.float32(factor) for factor in factors]
    one_by_one, at_once = seen(*parts), seen(np.concatenate(parts))
    assert one_by_one.zeros == at_once.zeros == sum(np.count_nonzero(part == 0) for part in parts)
    assert (one_by_one.low, one_by_one.high) == (at_once.low, at_once.high)
    assert one_by_one.width == at_once.width
    # A value that lies on the upper end of all bins is counted below it; all others have the same bin.
    edges = sum(np.count_nonzero(np.log2(np.abs(part[part > 0])) % 1 == 0) for part in parts)
    assert np.abs(one_by_one.counts - at_once.counts).sum() <= 2 * edges
    inside = np.concatenate(parts).astype(np.float64)
    edge = np.arange(-BINS, BINS + 1) * at_once.width
    if at_once.width:
        np.testing.assert_array_equal(at_once.counts, np.histogram(inside, edge)[0])


def test_bins_are_fine_for_what_is_largest() -> None:
    for data in DATA.values():
        histogram = seen(data[:10], data)
        assert BINS / 2 <= np.abs(data).max() / histogram.width <= BINS


def test_min_max_is_all_and_zero() -> None:
    assert MinMax().range_of(seen(np.float32([1, 2]), np.float32([3]))) == (0.0, 3.0)
    assert MinMax().range_of(seen(np.float32([-1, -2]))) == (-2.0, 0.0)
    data = heavy_tailed()
    assert MinMax().range_of(seen(*np.split(data, 10))) == (data.min(), data.max())


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("percentile", [99.99, 99.9, 95.0])
def test_percentile_is_that_of_all_values_within_a_bin(name: str, percentile: float) -> None:
    data = DATA[name]
    histogram = seen(*np.split(data, 8))
    low, high = Percentile(percentile).range_of(histogram)
    exact = np.percentile(data, [100 - percentile, percentile], method="inverted_cdf")
    assert high == pytest.approx(max(exact[1], 0), abs=histogram.width)
    assert low == pytest.approx(min(exact[0], 0), abs=histogram.width)


def test_percentile_is_99_99_by_default_and_never_more_than_was_seen() -> None:
    data = heavy_tailed()
    assert Percentile().range_of(seen(data)) == Percentile(99.99).range_of(seen(data))
    few = np.float32([-1.5, 0.25, 3.1])
    assert Percentile().range_of(seen(few)) == (-1.5, np.float32(3.1))


def squared_error(data: np.ndarray, low: float, high: float) -> float:
    """What quantising every value costs, on average: float64, by the definition."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    levels = np.clip(np.round(data.astype(np.float64) / scale) + zero, 0, 255)
    return float(np.mean(((levels - zero) * scale - data) ** 2))


@pytest.mark.parametrize("name", DATA)
def test_mse_is_the_best_of_all_clipped_ranges(name: str) -> None:
    data = DATA[name]
    found = squared_error(data, *MeanSquaredError().range_of(seen(*np.split(data, 8))))
    # Other candidates: ends in geometric steps, on the values themselves.
    ends = np.abs(data).max() * np.geomspace(0.05, 1, 150)
    tried = [squared_error(data[::4], max(data.min(), -end), min(data.max(), end)) for end in ends]
    best = ends[int(np.argmin(tried))]
    assert found <= 1.02 * squared_error(data, max(data.min(), -best), min(data.max(), best))


def test_mse_clips_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    uniform = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    low, high = MeanSquaredError().range_of(seen(uniform))
    assert (low, high) == pytest.approx((-1, 1), abs=0.02)
    low, high = MeanSquaredError().range_of(seen(*[uniform] * 100, np.float32([8])))
    assert high < 2


def divergence(data: np.ndarray, end: float, width: float) -> float:
    """Kullback-Leibler divergence of data from their levels in [-end, end], bin by bin in plain Python."""
    low, high = max(float(data.min()), -end), min(float(data.max()), end)
    edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
    inside, _ = np.histogram(data[(data >= edges[0]) & (data < edges[-1])], edges)
    whole = inside.astype(float)
    whole[0] += np.count_nonzero(data < edges[0])
    whole[-1] += np.count_nonzero(data >= edges[-1])
    scale, groups = (high - low) / 255, {}
    for i, count in enumerate(inside):
        level = min(max(round((edges[i] + width / 2) / scale) - round(low / scale), 0), 255)
        groups.setdefault(level, []).append((count, whole[i]))
    total, total_inside, divergence = whole.sum(), inside.sum(), 0.0
    for members in groups.values():
        used = [there for _, there in members if there]
        shared = sum(count for count, _ in members) / len(used) / total_inside if used else 0.0
        for there in used:
            divergence += there / total * np.log(there / total / shared) if shared else np.inf
    return divergence


@pytest.mark.parametrize("name", ["heavy-tailed", "rectified"])
def test_entropy_is_the_best_of_all_clipped_ranges(name: str) -> None:
    data = DATA[name]
    histogram = seen(*np.split(data, 8))
    low, high = Entropy().range_of(histogram)
    width = histogram.width * 4
    data = data[data != 0]
    found = divergence(data, max(-low, high), width)
    # The ends of coarse bins: every thirtieth is tried.
    ends = np.arange(64, np.ceil(np.abs(data).max() / width) + 1, 30) * width
    best = min(divergence(data, end, width) for end in ends)
    assert found <= 1.05 * best
    assert max(-low, high) < 0.8 * np.abs(data).max()  # the tail isn't worth levels


def test_entropy_leaves_zeros_out() -> None:
    few = rectified()[rectified() > 0]
    many = np.concatenate([few, np.zeros(5_000_000, np.float32)])
    assert Entropy().range_of(seen(few)) == Entropy().range_of(seen(many))


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS)
def test_ranges_hold_zero_and_survive_what_is_degenerate(observer: object) -> None:
    for data in (np.zeros(5), np.full(5, 3.0), np.full(5, -3.0), np.float32([1e-45]), np.zeros(0), heavy_tailed()):
        low, high = observer.range_of(seen(data.astype(np.float32)))  # type: ignore[attr-defined]
        assert low <= 0 <= high
        assert low >= data.min(initial=0)
        assert high <= data.max(initial=0)
    for bad in (np.nan, np.inf):
        assert np.isnan(observer.range_of(seen(np.float32([1, bad]), np.float32([2])))).all()  # type: ignore[attr-defined]


def test_unknown_observers_are_named_beside_the_known() -> None:
    assert make_observer("mse", "--observer") is OBSERVERS["mse"]
    with pytest.raises(UserError, match="--observer median: unknown; known: min-max, percentile, entropy, mse"):
        make_observer("median", "--observer")
