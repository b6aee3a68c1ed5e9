"""Expressions in symbols: what the compiler writes down is what the runtime reads."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx

from greencc.ir import dim_text
from greencc.symbolic import evaluate

NAMES = ("batch", "n")
EXPRESSIONS = st.recursive(
    st.one_of(st.integers(0, 1000), st.sampled_from(NAMES)),
    lambda inner: st.tuples(st.sampled_from(["+", "-", "*", "//", "%", "min", "max"]), inner, inner),
    max_leaves=8,
)


def build(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The tree as an expression: TVM's with TVM's leaves, Python's with integers."""
    if not isinstance(tree, tuple):
        return leaf(tree)
    sign, *sides = tree
    a, b = (build(side, leaf) for side in sides)
    symbolic = isinstance(a, tirx.Expr)
    if sign == "//":
        return tirx.floordiv(a, b) if symbolic else a // b
    if sign == "%":
        return tirx.floormod(a, b) if symbolic else a % b
    if sign in ("min", "max"):
        return getattr(tirx, sign)(a, b) if symbolic else {"min": min, "max": max}[sign](a, b)
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b}[sign]()


@given(EXPRESSIONS, st.integers(1, 100), st.integers(1, 100))
def test_an_expression_survives_the_manifest(tree: Any, batch: int, n: int) -> None:
    sizes = {"batch": batch, "n": n}
    symbols = {name: tirx.Var(name, "int64") for name in NAMES}
    try:
        expected = build(tree, lambda leaf: sizes.get(leaf, leaf))
        expr = build(tree, lambda leaf: symbols[leaf] if leaf in symbols else tirx.IntImm("int64", leaf))
    except ZeroDivisionError:
        return
    assert evaluate(dim_text(expr), sizes) == expected


@pytest.mark.parametrize(
    "text", ["other * 2", "__import__('os')", "batch.real", "1 +", "2 ** 9", "4 // 0", "f(1)", "'a'"]
)
def test_what_is_no_expression_in_known_symbols_is_unknown(text: str) -> None:
    assert evaluate(text, {"batch": 4}) is None


def test_integers_and_unknown_amounts_pass() -> None:
    assert evaluate(7, {}) == 7
    assert evaluate(None, {}) is None
