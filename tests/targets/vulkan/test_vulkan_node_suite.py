"""A fixed sample of the ONNX node suite on a Vulkan device; the whole suite is `make node-suite TARGET=vulkan`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.node_cases import load_cases
from benchmarks.node_suite import Outcome, run_cases, sample

SAMPLE = 200
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "node_suite_pass_vulkan.txt"
pytestmark = [pytest.mark.vulkan, pytest.mark.slow]


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_cases(sample(load_cases(), SAMPLE), target="vulkan", jobs=2)


def test_nothing_is_wrong_or_crashes(outcomes: list[Outcome]) -> None:
    assert len(outcomes) == SAMPLE
    bad = [f"{o.status} {o.name}: {o.reason}" for o in outcomes if o.status not in ("pass", "refused")]
    assert not bad, "\n".join(bad)


def test_what_passed_before_still_passes(outcomes: list[Outcome], request: pytest.FixtureRequest) -> None:
    passing = sorted(outcome.name for outcome in outcomes if outcome.status == "pass")
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text("".join(f"{name}\n" for name in passing))
    lost = sorted(set(GOLDEN.read_text().split()) - set(passing))
    assert not lost, f"cases that passed before: {lost}; see benchmarks/node_suite.py --target vulkan --filter"
