"""disable_conditions.py must not call a condition covered when the run proves nothing."""

from __future__ import annotations

import pytest

from greencc.passes.registry import PASSES
from tests.conftest import disable_condition
from tests.disable_conditions import Job, Outcome, jobs_for, verdict

WHOLE, ONE = Job("a-pass", None), Job("a-pass", 2, "because")


@pytest.mark.parametrize(
    ("job", "outcome", "good"),
    [
        (WHOLE, Outcome((), 3), True),
        (WHOLE, Outcome(("test_x",), 3), False),
        (WHOLE, Outcome((), 0), False),
        (ONE, Outcome(("test_x",), 3), True),
        (ONE, Outcome((), 3), False),
        (ONE, Outcome(("test_x",), 3, "a fixture broke"), False),
        (ONE, Outcome(None, 0, "no end after 300 s"), False),
    ],
)
def test_verdict(job: Job, outcome: Outcome, good: bool) -> None:
    assert verdict(job, outcome)[0] is good


def test_every_condition_of_the_registry_is_a_job() -> None:
    wanted = {(name, c.number) for name, cls in PASSES.items() for c in getattr(cls, "conditions", ())}
    found = {(job.pass_name, job.number) for job in jobs_for([]) if job.number is not None}
    assert found == wanted
    for name, cls in PASSES.items():
        numbers = [condition.number for condition in getattr(cls, "conditions", ())]
        assert numbers == list(range(1, len(numbers) + 1)), name


def test_unknown_condition_is_refused() -> None:
    with pytest.raises(pytest.UsageError, match="no pass has this condition"):
        disable_condition("prune-dead-nodes:999")
