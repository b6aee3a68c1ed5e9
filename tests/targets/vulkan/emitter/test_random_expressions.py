"""Random expressions: what the shader computes is what LLVM makes of the same PrimFunc on the host.

Each example holds several trees, which one kernel evaluates. Integers are kept from overflowing, because TVM's
simplifier takes for granted that they don't; conditions are on integers, because a rounding error may flip others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import tvm
from emitted_kernels import PLAIN, evaluate_all, evaluate_on_host
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from tvm import tirx

pytestmark = pytest.mark.vulkan
COUNT = 128
LARGEST = 10_000
TREES = 12

Build = Callable[[tuple[tirx.Expr, ...]], tirx.Expr]


@dataclass(frozen=True)
class Tree:
    """An expression of the inputs, and the largest magnitude it can have."""

    build: Build
    bound: float
    text: str

    def __repr__(self) -> str:
        return self.text


def reduced(build: Build, bound: float, text: str, dtype: str) -> Tree:
    """The tree, brought back to small numbers where it may have become large."""
    if bound <= LARGEST:
        return Tree(build, bound, text)
    return Tree(lambda x: tirx.floormod(build(x), tirx.const(997, dtype)), 996, f"({text} % 997)")


def integers(dtype: str) -> st.SearchStrategy[Tree]:
    """Trees of int32 or int64; the inputs are int32, int64, int8 and float32."""
    # Inputs 0, 1 and 2 as this type, and constants.
    leaves = st.one_of(
        st.sampled_from([0, 1, 2]).map(lambda n: Tree(lambda x: x[n].astype(dtype), 128, f"x{n}")),
        st.integers(-50, 50).map(lambda c: Tree(lambda x: tirx.const(c, dtype), 50, str(c))),
    )

    def extend(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        arithmetic = {
            "+": (lambda a, b: a + b, lambda a, b: a + b),
            "-": (lambda a, b: a - b, lambda a, b: a + b),
            "*": (lambda a, b: a * b, lambda a, b: a * b),
            "min": (tirx.min, max),
            "max": (tirx.max, max),
            "&": (lambda a, b: a & b, lambda a, b: 2 * max(a, b) + 1),
            "|": (lambda a, b: a | b, lambda a, b: 2 * max(a, b) + 1),
            "^": (lambda a, b: a ^ b, lambda a, b: 2 * max(a, b) + 1),
        }
        divisions = {
            "//": tirx.floordiv,
            "%": tirx.floormod,
            "/": tirx.truncdiv,
            "rem": tirx.truncmod,
        }

        def binary(name: str, a: Tree, b: Tree) -> Tree:
            combine, bound = arithmetic[name]
            return reduced(
                lambda x: combine(a.build(x), b.build(x)), bound(a.bound, b.bound), f"({a} {name} {b})", dtype
            )

        def divided(name: str, a: Tree, by: int) -> Tree:
            combine, divisor = divisions[name], tirx.const(by, dtype)
            return Tree(lambda x: combine(a.build(x), divisor), max(a.bound, abs(by)), f"({a} {name} {by})")

        def divided_by_tree(name: str, a: Tree, b: Tree) -> Tree:
            # Odd, so that it is never 0.
            def odd(x: tuple[tirx.Expr, ...]) -> tirx.Expr:
                return b.build(x) * tirx.const(2, dtype) + tirx.const(1, dtype)

            combine = divisions[name]
            return Tree(lambda x: combine(a.build(x), odd(x)), max(a.bound, 2 * b.bound + 1), f"({a} {name} 2{b}+1)")

        def shifted(a: Tree, left: bool, by: int) -> Tree:
            amount = tirx.const(by, dtype)
            if left:
                return reduced(lambda x: a.build(x) << amount, a.bound * 2**by, f"({a} << {by})", dtype)
            return Tree(lambda x: a.build(x) >> amount, a.bound, f"({a} >> {by})")

        def chosen(lazy: bool, a: Tree, b: Tree, c: Tree, d: Tree) -> Tree:
            choose = tirx.if_then_else if lazy else tirx.Select

            def build(x: tuple[tirx.Expr, ...]) -> tirx.Expr:
                return choose(tirx.Or(a.build(x) < b.build(x), a.build(x).equal(c.build(x))), c.build(x), d.build(x))

            return Tree(build, max(c.bound, d.bound), f"({a} < {b} or {a} == {c} ? {c} : {d})")

        def narrowed(a: Tree, width: str) -> Tree:
            # With an input, because TVM refuses to convert a constant that doesn't fit.
            def build(x: tuple[tirx.Expr, ...]) -> tirx.Expr:
                return (a.build(x) + x[0].astype(dtype)).astype(width).astype(dtype)

            return Tree(build, 65536, f"{width}({a} + x0)")

        divisor = st.integers(-9, 9).filter(bool)
        return st.one_of(
            st.builds(binary, st.sampled_from(sorted(arithmetic)), children, children),
            st.builds(divided, st.sampled_from(sorted(divisions)), children, divisor),
            st.builds(divided_by_tree, st.sampled_from(sorted(divisions)), children, children),
            st.builds(shifted, children, st.booleans(), st.integers(0, 6)),
            st.builds(chosen, st.booleans(), children, children, children, children),
            st.builds(narrowed, children, st.sampled_from(["int8", "uint8", "int16", "uint16"])),
        )

    return st.recursive(leaves, extend, max_leaves=8)


def floats() -> st.SearchStrategy[Tree]:
    """Trees of float32."""
    leaves = st.one_of(
        st.just(Tree(lambda x: x[3], 4, "x3")),
        st.floats(-8, 8, width=16).map(lambda c: Tree(lambda x: tirx.const(c, "float32"), 8, str(c))),
        integers("int64").map(lambda t: Tree(lambda x: t.build(x).astype("float32"), t.bound, f"float({t})")),
    )

    def extend(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        def scaled(a: Tree) -> Tree:
            if a.bound <= 100:
                return a
            return Tree(lambda x: a.build(x) * tirx.const(1 / a.bound, "float32"), 1, f"({a} scaled)")

        def binary(name: str, a: Tree, b: Tree) -> Tree:
            combine = {"+": lambda u, v: u + v, "*": lambda u, v: u * v, "min": tirx.min, "max": tirx.max}[name]
            bound = a.bound * b.bound if name == "*" else a.bound + b.bound
            return scaled(Tree(lambda x: combine(a.build(x), b.build(x)), bound, f"({a} {name} {b})"))

        def unary(name: str, a: Tree) -> Tree:
            function = getattr(tirx, name)
            bound = {"tanh": 1, "sin": 1, "erf": 1, "abs": a.bound, "exp": 1e9}[name]
            inside = Tree(lambda x: a.build(x) * tirx.const(10 / max(10, a.bound), "float32"), 10, f"{a} to 10")
            return scaled(Tree(lambda x: function(inside.build(x)), bound, f"{name}({inside})"))

        return st.one_of(
            st.builds(binary, st.sampled_from(["+", "*", "min", "max"]), children, children),
            st.builds(unary, st.sampled_from(["tanh", "sin", "erf", "abs", "exp"]), children),
        )

    return st.recursive(leaves, extend, max_leaves=6)


def inputs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    signed = rng.integers(-128, 128, (3, COUNT))
    signed[:, :4] = [0, -1, 127, -128]
    return (
        signed[0].astype(np.int32), signed[1].astype(np.int64), signed[2].astype(np.int8),
        rng.uniform(-4, 4, COUNT).astype(np.float32),
    )  # fmt: skip


# Shrinking would compile hundreds of kernels; the message names the tree.
SETTINGS = settings(
    max_examples=3,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def both(trees: list[Tree], dtype: str) -> list[tuple[Tree, np.ndarray, np.ndarray]]:
    """Each tree with its results on the device and on the host."""
    elements = [lambda *x, tree=tree: tree.build(x) for tree in trees]
    try:
        got, want = evaluate_all(elements, inputs(), dtype, PLAIN), evaluate_on_host(elements, inputs(), dtype)
    except tvm.error.InternalError:
        # TVM's simplifier stops at some constants (a variable is 0.0 here and -0.0 there): those trees tell nothing.
        reject()
    return list(zip(trees, got, want, strict=True))


@SETTINGS
@given(trees=st.lists(integers("int32"), min_size=TREES, max_size=TREES))
def test_int32(trees: list[Tree]) -> None:
    for tree, got, want in both(trees, "int32"):
        np.testing.assert_array_equal(got, want, err_msg=repr(tree))


@SETTINGS
@given(trees=st.lists(integers("int64"), min_size=TREES, max_size=TREES))
def test_int64(trees: list[Tree]) -> None:
    for tree, got, want in both(trees, "int64"):
        np.testing.assert_array_equal(got, want, err_msg=repr(tree))


@SETTINGS
@given(trees=st.lists(floats(), min_size=TREES, max_size=TREES))
def test_float32(trees: list[Tree]) -> None:
    for tree, got, want in both(trees, "float32"):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * max(1, tree.bound), err_msg=repr(tree))
