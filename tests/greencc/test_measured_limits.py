"""Limits: what counts of many runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from greencc import limits


class Clock:
    """A clock that stands still but for what runs take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def run(self, name: str, seconds: Callable[[int], float]) -> None:
        self.now += seconds(self.calls.count(name))
        self.calls.append(name)


@pytest.mark.parametrize(
    ("usual", "rounds"), [(0.2, limits._RUNS), (0.001, 1 + int(limits._SECONDS / 0.002))], ids=["slow", "fast"]
)
def test_runs_take_turns_for_long_enough_and_the_fastest_counts(
    monkeypatch: pytest.MonkeyPatch, usual: float, rounds: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(limits.time, "perf_counter", clock.perf_counter)
    runs = {
        "a": partial(clock.run, "a", lambda count: usual * (0.5 if count == 3 else 1)),
        "b": partial(clock.run, "b", lambda count: usual),
    }
    assert limits._fastest(runs) == pytest.approx({"a": usual / 2, "b": usual})
    assert clock.calls == ["a", "b"] * (len(clock.calls) // 2)
    assert len(clock.calls) // 2 == pytest.approx(rounds, abs=1)
