"""A fixed sample of the ONNX node suite through the whole compiler; the whole suite is `make node-suite`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.node_cases import load_cases
from benchmarks.node_suite import Outcome, run_cases, sample

SAMPLE = 120
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "node_suite_pass.txt"


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_cases(sample(load_cases(), SAMPLE), jobs=2)


def test_nothing_is_wrong_or_crashes(outcomes: list[Outcome]) -> None:
    assert len(outcomes) == SAMPLE
    bad = [f"{o.status} {o.name}: {o.reason}" for o in outcomes if o.status not in ("pass", "refused")]
    assert not bad, "\n".join(bad)


def test_every_refusal_has_a_reason(outcomes: list[Outcome]) -> None:
    assert [o.name for o in outcomes if o.status == "refused" and not o.reason] == []


def test_what_passed_before_still_passes(outcomes: list[Outcome], request: pytest.FixtureRequest) -> None:
    passing = sorted(outcome.name for outcome in outcomes if outcome.status == "pass")
    if request.config.getoption("--update-golden"):
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text("".join(f"{name}\n" for name in passing))
    lost = sorted(set(GOLDEN.read_text().split()) - set(passing))
    assert not lost, f"cases that passed before: {lost}; see benchmarks/node_suite.py --filter"
