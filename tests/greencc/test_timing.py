"""Timing in blocks, its statistics, and the comparison of outputs."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest

from greencc import timing
from greencc.compare import Tolerance, compare
from greencc.energy.reading import Reading
from greencc.timing import Series, measure, ratio_of

TIGHT = Tolerance(absolute=1e-4, relative=1e-4)


class CountingMeter:
    """Two joules for every interval."""

    method = "estimate"
    note = "counting"

    def mark(self) -> object:
        return None

    def since(self, mark: object) -> Reading:
        return Reading(2.0, 1.0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE_SECONDS", 0.0)


def test_programs_run_in_blocks_in_rotating_order() -> None:
    log: list[str] = []
    programs = {name: (lambda name=name: log.append(name)) for name in "abc"}
    series = measure(programs, CountingMeter(), repeat=20)
    blocks = ["".join(log)[i : i + 4] for i in range(6, len(log), 4)]
    assert "".join(log)[:6] == "aabbcc"
    assert all(len(set(block)) == 1 for block in blocks)
    assert [block[0] for block in blocks] == list("abcbcacab" * 3 + "abc")
    for name in "abc":
        assert len(series[name].milliseconds) == 20
        assert len(series[name].blocks) == 10


@pytest.mark.parametrize(("repeat", "runs"), [(1, 1), (7, 7), (10, 10), (11, 20), (100, 100)])
def test_repeat_is_rounded_up_to_whole_blocks(repeat: int, runs: int) -> None:
    series = measure({"a": lambda: None}, CountingMeter(), repeat)["a"]
    assert series.summary()["runs"] == runs
    assert series.joules_per_run == pytest.approx(2.0 * len(series.blocks) / runs)


def test_the_default_number_of_runs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(measure({"a": lambda: None}, CountingMeter())["a"].milliseconds) == 2000
    monkeypatch.setattr(timing, "_TARGET_SECONDS", 0.0)
    assert len(measure({"a": lambda: None}, CountingMeter())["a"].milliseconds) == 30


def test_the_collector_is_off_while_measuring_and_as_before_after() -> None:
    seen: list[bool] = []

    def program() -> None:
        seen.append(gc.isenabled())

    measure({"a": program}, CountingMeter(), repeat=2)
    assert not any(seen[2:])
    assert gc.isenabled()

    def fail() -> None:
        if len(seen) > 10:
            raise ValueError("stop")
        seen.append(True)

    with pytest.raises(ValueError, match="stop"):
        measure({"a": fail}, CountingMeter(), repeat=20)
    assert gc.isenabled()


def test_a_missing_figure_makes_the_energy_missing() -> None:
    assert Series(((1.0,), (1.0,)), (1.0, None)).joules_per_run is None
    assert Series(((1.0, 1.0), (1.0, 1.0)), (1.0, 2.0)).joules_per_run == pytest.approx(0.75)


def test_summary() -> None:
    summary = Series(((1.0, 2.0), (3.0, 10.0)), (None, None)).summary()
    assert summary == {"median": 2.5, "min": 1.0, "mean": 4.0, "p90": pytest.approx(7.9), "runs": 4}


def _noisy(scale: float, drift: np.ndarray, seed: int) -> Series:
    rng = np.random.default_rng(seed)
    blocks = scale * drift[:, None] * (1 + 0.01 * rng.standard_normal((len(drift), 20)))
    return Series(tuple(map(tuple, blocks.tolist())), (None,) * len(drift))


def test_the_ratio_survives_a_machine_that_slows_down() -> None:
    drift = np.linspace(1.0, 2.0, 10)
    ratio = ratio_of(_noisy(0.9, drift, 1), _noisy(1.0, drift, 2))
    assert ratio.value == pytest.approx(0.9, abs=0.01)
    assert 0.88 < ratio.low <= ratio.value <= ratio.high < 0.92


def test_the_interval_widens_with_noise() -> None:
    steady = np.ones(10)
    rng = np.random.default_rng(0)
    widths = []
    for noise in (0.01, 0.1, 0.3):
        drift = 1 + noise * np.abs(rng.standard_normal(10))
        ratio = ratio_of(_noisy(1.0, drift, 1), _noisy(1.0, steady, 2))
        widths.append(ratio.high - ratio.low)
    assert all(a < b for a, b in pairwise(widths))


# Comparison of outputs


@pytest.mark.parametrize(
    ("actual", "expected", "agrees", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], True, 0.0),
        ([1.0], [1.0 + 5e-5], True, 5e-5),
        ([1.0], [1.001], False, 1e-3),
        ([1000.0], [1000.05], True, 0.05),
        ([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf], True, 0.0),
        ([np.nan], [0.0], False, None),
        ([np.inf], [1.0], False, None),
        ([np.inf], [-np.inf], False, None),
        ([1.0], [np.inf], False, None),
        ([0.0], [-0.0], True, 0.0),
        ([], [], True, 0.0),
    ],
)
def test_compare_floats(actual: list[float], expected: list[float], agrees: bool, difference: float | None) -> None:
    found = compare({"y": np.array(actual)}, {"y": np.array(expected)}, TIGHT)
    assert found.agrees is agrees
    if difference is None:
        assert found.max_abs_difference is None
    else:
        assert found.max_abs_difference == pytest.approx(difference, rel=1e-3, abs=1e-12)
    assert found.worst == "y"


def test_compare_whole_numbers_exactly() -> None:
    big = np.array([2**62 + 1])
    assert compare({"y": big}, {"y": big.copy()}, TIGHT).agrees
    assert not compare({"y": np.array([1000000])}, {"y": np.array([1000001])}, TIGHT).agrees
    assert not compare({"y": np.array([True])}, {"y": np.array([False])}, TIGHT).agrees
    assert compare({"y": np.array([True])}, {"y": np.array([True])}, TIGHT).agrees


def test_compare_names_the_worst_output() -> None:
    actual = {"a": np.zeros(3), "b": np.array([0.0, 0.5]), "c": np.array([0.1])}
    found = compare(actual, {name: np.zeros_like(array) for name, array in actual.items()}, TIGHT)
    assert (found.agrees, found.worst, found.max_abs_difference) == (False, "b", 0.5)


@pytest.mark.parametrize("other", [np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(3)])
def test_compare_refuses_other_shapes_and_types(other: np.ndarray) -> None:
    found = compare({"y": np.zeros(2)}, {"y": other}, TIGHT)
    assert (found.agrees, found.max_abs_difference) == (False, None)


def test_neighbouring_large_whole_numbers_differ() -> None:
    """They are the same as floating-point numbers."""
    assert not compare({"y": np.array([2**62 + 1])}, {"y": np.array([2**62])}, TIGHT).agrees
