"""The order of a search against all assignments there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.compress.candidates import Assessed, Candidate
from greencc.compress.ordering import in_effect, order


def item(node: str, label: str, gain: float, error: float, inside: frozenset[str] = frozenset()) -> Assessed:
    candidate = Candidate(node, label, is_precision=label.startswith("int"), inside=inside)
    return Assessed(candidate, 1.0, 0.0, int(gain * 100), gain, error)


PRECISIONS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 30)), min_size=1, max_size=3)


@given(st.lists(PRECISIONS, min_size=1, max_size=4))
def test_no_assignment_saves_more_for_as_small_an_error_as_a_beginning_of_the_order(
    operators: list[list[tuple[int, int]]],
) -> None:
    groups = [
        [item(f"n{i}", f"int{j}", gain, error) for j, (gain, error) in enumerate(group)]
        for i, group in enumerate(operators)
    ]
    all_items = [one for group in groups for one in group]
    first, rest = order(all_items)
    assert sorted((*first, *rest), key=all_items.index) == all_items

    def sums(some: list[Assessed]) -> tuple[float, float]:
        return sum(one.gain for one in some), sum(one.sensitivity**2 for one in some)

    every = [
        sums([one for one in chosen if one is not None]) for chosen in itertools.product(*([None, *g] for g in groups))
    ]
    for count in range(len(first) + 1):
        gain, error = sums(in_effect(first[:count]))
        assert max(g for g, e in every if e <= error) == gain


def test_a_precision_that_saves_less_for_its_error_than_the_next_is_passed_over() -> None:
    eight, six, four = item("a", "int8", 4, 1), item("a", "int6", 5, 3), item("a", "int4", 9, 4)
    other, worse = item("b", "int8", 1, 1), item("b", "int4", 0.5, 2)
    assert order([six, four, eight, worse, other]) == ([eight, other, four], [six, worse])


def test_what_is_done_has_one_precision_of_an_operator_and_nothing_in_layers_that_are_gone() -> None:
    layer = item("end", "layer", 9, 2, inside=frozenset({"a", "end"}))
    a, heads, end = item("a", "int8", 1, 1), item("a", "heads", 1, 1), item("end", "int8", 1, 1)
    b, b4 = item("b", "int8", 1, 1), item("b", "int4", 2, 2)
    assert in_effect([a, heads, b, b4]) == [a, heads, b4]
    assert in_effect([a, layer, b]) == in_effect([layer, b, a, end]) == [layer, b]


@pytest.mark.parametrize("items", [[], [item("a", "int8", 1, 0.0)]])
def test_none_and_one_without_error(items: list[Assessed]) -> None:
    assert order(items) == (items, [])
