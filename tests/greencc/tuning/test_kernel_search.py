"""The search for one kernel: its proposals are plans of the space, new ones, and soon good ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from greencc.targets.tuning.planned import Decision
from greencc.targets.tuning.space import Knob, Plan, Space, SpaceError
from greencc.tuning.costs import CostModel, Sample
from greencc.tuning.search import BATCH, KernelSearch, Tried, decision_of

KNOBS = (
    Knob("rows", (1, 2, 3, 4, 5, 6, 8, 12)),
    Knob("vectors", (1, 2, 3, 4)),
    Knob("task", (16, 32, 64, 128, 256)),
    Knob("unroll", (1, 2, 4)),
    Knob("tail", ("memory", "registers")),
    Knob("ahead", (0, 4, 8, 16)),
)
DEFAULT = {"rows": 8, "vectors": 3, "task": 128, "unroll": 1, "tail": "registers", "ahead": 8}


def too_large(plan: Plan) -> str | None:
    return "too many registers" if int(plan["rows"]) * int(plan["vectors"]) > 26 else None


def cost(plan: Plan) -> float:
    """Best is 1: rows 6, vectors 4, task 32, unroll 1, in registers, 4 ahead."""
    rows, vectors, task, ahead = (int(plan[name]) for name in ("rows", "vectors", "task", "ahead"))
    memory = 0.1 if plan["tail"] == "memory" else 0.0
    far = abs(task.bit_length() - 6)
    return (
        1
        + 0.1 * abs(rows - 6)
        + 0.2 * abs(vectors - 4)
        + 0.05 * far
        + 0.03 * (int(plan["unroll"]) - 1)
        + memory
        + (0.01 * abs(ahead - 4))
    )


SPACE = Space(KNOBS, DEFAULT, {"depth": 384}, too_large, lambda p: {"registers": int(p["rows"]) * int(p["vectors"])})


def new_search(
    space: Space = SPACE, seeds: tuple[Decision, ...] = (), others: Mapping[str, list[Sample]] | None = None
) -> KernelSearch:
    spaces = {"rule": space}
    return KernelSearch("kernel", spaces, CostModel(decision_of, {"kernel": spaces}, others or {}), seeds)


def test_it_finds_nearly_the_best_of_4000_plans_in_200_trials() -> None:
    search = new_search()
    best, tried = float("inf"), 0
    for _ in range(12):
        plans = search.propose(BATCH)
        results = [Tried(plan, cost(plan.plan)) for plan in plans]
        search.learn(results)
        tried += len(plans)
        best = min(best, *(result.ratio for result in results if result.ratio is not None))
    legal = [plan for plan in all_plans(SPACE) if too_large(plan) is None]
    ranked = sorted(map(cost, legal))
    assert tried <= 12 * BATCH
    assert best <= ranked[len(legal) // 200]


def all_plans(space: Space) -> list[Plan]:
    names = [knob.name for knob in space.knobs]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(k.values for k in space.knobs))]


def test_proposals_are_new_and_go_together() -> None:
    search = new_search()
    seen = []
    for _ in range(5):
        plans = search.propose(7)
        assert len(plans) <= 7
        search.learn([Tried(plan, None if i % 3 == 0 else cost(plan.plan)) for i, plan in enumerate(plans)])
        seen += plans
    assert len({repr(sorted(plan.plan.items())) for plan in seen}) == len(seen)
    assert all(SPACE.problem(plan.plan) is None for plan in seen)


def test_a_small_space_is_tried_to_the_last_plan() -> None:
    space = Space((Knob("rows", (1, 2, 3)), Knob("vectors", (1, 2))), {"rows": 1, "vectors": 1})
    search = new_search(space)
    seen = []
    while plans := search.propose(4):
        seen += plans
        search.learn([Tried(plan, 1.0) for plan in plans])
    assert search.is_exhausted
    assert sorted(tuple(plan.plan.values()) for plan in seen) == sorted(itertools.product((1, 2, 3), (1, 2)))


def test_what_was_learned_before_is_not_proposed() -> None:
    space = Space((Knob("rows", (1, 2, 3)),), {"rows": 1})
    search = new_search(space)
    search.learn([Tried(Decision("rule", {"rows": 2}), 0.9), Tried(Decision("gone", {"x": 1}), 0.5)])
    assert {plan.plan["rows"] for plan in search.propose(BATCH)} == {1, 3}


def test_seeds_come_first_with_the_nearest_values_that_the_space_has() -> None:
    seeds = (
        Decision("rule", {**DEFAULT, "rows": 7, "task": 1000}),
        Decision("another", DEFAULT),
        Decision("rule", {"rows": 2, "vectors": 1, "tail": "elsewhere"}),
    )
    first, second = new_search(seeds=seeds).propose(2)
    assert first.plan in ({**DEFAULT, "rows": 6, "task": 256}, {**DEFAULT, "rows": 8, "task": 256})
    assert second.plan == {**DEFAULT, "rows": 2, "vectors": 1}


def test_plans_of_other_kernels_teach_the_model_of_costs() -> None:
    """All of them are measured; the search proposes from the first on what they say is fast."""
    legal = [plan for plan in all_plans(SPACE) if too_large(plan) is None]
    samples = [Sample(Decision("rule", plan), {"depth": 512}, cost(plan)) for plan in legal[::16]]
    taught = new_search(others={"other": samples})
    taught.learn([Tried(Decision("rule", DEFAULT), cost(DEFAULT))])
    mean = [sum(cost(plan.plan) for plan in search.propose(BATCH)) / BATCH for search in (taught, new_search())]
    assert mean[0] < 0.8 * mean[1]


@pytest.mark.parametrize(("plan", "problem"), [
    ({"rows": 12, "vectors": 4}, "too many registers"),
    ({"rows": 7}, "rows is 7"),
    ({"more": 1}, "it has other knobs"),
])  # fmt: skip
def test_a_plan_that_is_none_of_the_space_is_named(plan: dict[str, int], problem: str) -> None:
    assert SPACE.problem({**DEFAULT, **plan}) == problem


def test_a_default_outside_its_knob_is_a_fault() -> None:
    with pytest.raises(SpaceError, match="rows"):
        Space((Knob("rows", (1, 2)),), {"rows": 3})
